# SPDX-License-Identifier: Apache-2.0
"""Find out whether a generative model hands out copies of its training patients."""

from __future__ import annotations

from monai_memorization.version import __version__

__all__ = ["__version__"]
