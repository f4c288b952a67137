# SPDX-License-Identifier: Apache-2.0
"""Progress bars for whatever may take longer than a few seconds; quiet where nobody watches."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

from monai_memorization.ranks import current_ranks


def progress(total: int, title: str) -> tqdm[Any]:
    """Return a bar on standard error that counts up to ``total``; it shows itself only on a terminal."""
    return tqdm(total=total, desc=title, disable=not sys.stderr.isatty() or current_ranks().rank > 0, leave=False)
