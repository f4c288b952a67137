# SPDX-License-Identifier: Apache-2.0
"""Start two processes with torchrun, on CPUs."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).parent


def torchrun(*words: object, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command, ``-m module ...`` or a script, in two processes within a folder, and return what they said."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", *map(str, words)]
    # files, not pipes: what ends is the command, whatever it started may end later
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as told:
        done = subprocess.run(
            command,
            stdout=out,
            stderr=told,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(TESTS), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            timeout=400,
        )
        for file in (out, told):
            file.seek(0)
        return subprocess.CompletedProcess(done.args, done.returncode, out.read(), told.read())
