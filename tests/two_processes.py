# SPDX-License-Identifier: Apache-2.0
"""Start two processes with torchrun, on CPUs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def torchrun(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command, ``-m module ...`` or a script, in two processes within a folder, and return what they said."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        timeout=200,
    )
