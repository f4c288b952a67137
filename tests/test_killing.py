# SPDX-License-Identifier: Apache-2.0
"""A run that is killed at any moment is run again, and ends as if nothing had happened."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from made_up_images import smooth_images, write_folder

from monai_memorization.auditing import audit
from monai_memorization.detector import embeddings

# an audit of small shards, so that a kill finds some of them written
AUDIT = """
import sys
from monai_memorization.auditing import audit
from monai_memorization.detector import embeddings
embeddings.SHARD_BATCHES = 1
print("started", flush=True)
audit("training", "validation", "synthetic", "killed", encoder=sys.argv[1])
"""


def run_audit(folder: Path, encoder_file: Path, seconds: float | None) -> int:
    """Start the audit, kill it some seconds after something was kept, unless they are None; return its exit status."""
    command = [sys.executable, "-c", AUDIT, str(encoder_file)]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        if seconds is not None:
            while process.poll() is None and not any((folder / "killed").glob("embeddings/*.pt")):
                time.sleep(0.005)
            time.sleep(seconds)
            process.send_signal(signal.SIGKILL)
        return process.wait()


def tables(folder: Path) -> dict[str, bytes]:
    names = ("pairs.csv", "memorized.csv", "near_identical.csv", "leaks.csv")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.parametrize("n_kills", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_audit_killed_at_random_moments_ends_with_the_same_tables(encoder_file, tmp_path, monkeypatch, n_kills):
    for seed, (role, n) in enumerate([("training", 150), ("validation", 60), ("synthetic", 150)]):
        write_folder(smooth_images(n, seed=seed), tmp_path / role, role)
    monkeypatch.setattr(embeddings, "SHARD_BATCHES", 1)
    begun = time.monotonic()
    audit(*(tmp_path / role for role in ("training", "validation", "synthetic", "whole")), encoder=encoder_file)
    seconds, moments = time.monotonic() - begun, random.Random(0)
    expected = tables(tmp_path / "whole")

    statuses = []
    for i in range(n_kills):
        # the first as soon as something is kept: how long the others take depends on what else the machine does
        statuses.append(run_audit(tmp_path, encoder_file, moments.uniform(0, seconds) if i else 0))
        if (tmp_path / "killed" / "pairs.csv").exists():  # whole or not at all
            assert tables(tmp_path / "killed") == expected
    assert statuses[0] == -signal.SIGKILL
    assert run_audit(tmp_path, encoder_file, None) == 0

    assert tables(tmp_path / "killed") == expected
    assert not list((tmp_path / "killed").glob(".*.unfinished"))
