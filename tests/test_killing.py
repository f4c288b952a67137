# SPDX-License-Identifier: Apache-2.0
"""A run that is killed at any moment is run again, and ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from made_up_images import smooth_images, write_folder
from small_generators import SMALL
from two_processes import TESTS

from monai_memorization.auditing import audit
from monai_memorization.detector import embeddings

# an audit of small shards, so that a kill finds some of them written
AUDIT = """
import sys
from monai_memorization.auditing import audit
from monai_memorization.detector import embeddings
embeddings.SHARD_BATCHES = 1
print("started", flush=True)
audit("training", "validation", "synthetic", "killed", encoder=sys.argv[1], n_plants=1)
"""


def run(command: list[str], wait: Callable[[subprocess.Popen], None] | None, **options: Any) -> int:
    """Start a command that says when it has started, kill it after waiting, unless that is None; return its status."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options) as process:
        assert process.stdout.readline() == "started\n"
        if wait is None:
            process.communicate()
        else:
            wait(process)
            process.send_signal(signal.SIGKILL)
        return process.wait()


def run_audit(folder: Path, encoder_file: Path, seconds: float | None) -> int:
    """Start the audit, kill it some seconds after something was kept, unless they are None; return its exit status."""

    def wait(process: subprocess.Popen) -> None:
        while process.poll() is None and not any((folder / "killed").glob("embeddings/*.pt")):
            time.sleep(0.005)
        time.sleep(seconds)

    return run([sys.executable, "-c", AUDIT, str(encoder_file)], None if seconds is None else wait, cwd=folder)


def tables(folder: Path) -> dict[str, bytes]:
    names = ("pairs.csv", "memorized.csv", "near_identical.csv", "leaks.csv")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.parametrize("n_kills", [2, pytest.param(30, marks=pytest.mark.slow)])
def test_audit_killed_at_random_moments_ends_with_the_same_tables(encoder_file, tmp_path, monkeypatch, n_kills):
    for seed, (role, n) in enumerate([("training", 150), ("validation", 60), ("synthetic", 150)]):
        write_folder(smooth_images(n, seed=seed), tmp_path / role, role)
    monkeypatch.setattr(embeddings, "SHARD_BATCHES", 1)
    begun = time.monotonic()
    sets = (tmp_path / role for role in ("training", "validation", "synthetic", "whole"))
    audit(*sets, encoder=encoder_file, n_plants=1)
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


# from training images to the audit of what was drawn; a stage that is complete is not begun again
WORKFLOW = """
import monai.bundle, pathlib, sys
from monai_memorization.auditing import audit
configs, encoder, options = sys.argv[1:]
options = monai.bundle.ConfigParser.load_config_file(options)
print("started", flush=True)
for stage, weights in {"autoencoder": "autoencoder.pt", "diffusion": "model.pt"}.items():
    if not pathlib.Path("models", weights).exists():
        files = [f"{configs}/train_{stage}.json", "losses.json"]
        monai.bundle.run(config_file=files, training="../training", output_dir="models", **options)
options |= {"model_dir": "models", "output_dir": "drawn", "n_images": 24, "batch_size": 2}
monai.bundle.run(config_file=f"{configs}/inference.json", **options)
audit("../training", "../validation", "drawn", "audit", encoder=encoder)
"""


def run_workflow(folder: Path, encoder_file: Path, seconds: float | None) -> int:
    """Start the workflow in a folder, kill it some seconds later, unless they are None, and return its exit status."""
    folder.mkdir(exist_ok=True)
    options = SMALL | {"logging_file": False, "checkpoint_interval": 0, "autoencoder_steps": 40, "diffusion_steps": 40}
    options |= {"autoencoder_batch_size": 8, "diffusion_batch_size": 8}
    (folder / "options.json").write_text(json.dumps(options))
    losses = {"+train#handlers": [{"_target_": "training_records.LossRecorder", "folder": "."}]}
    (folder / "losses.json").write_text(json.dumps(losses))
    configs = TESTS.parent / "bundles" / "latent_diffusion_2d" / "configs"
    command = [sys.executable, "-c", WORKFLOW, str(configs), str(encoder_file), "options.json"]
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    wait = None if seconds is None else lambda _: time.sleep(seconds)
    with (folder / "errors.txt").open("w") as errors:
        return run(command, wait, cwd=folder, env=environment, stderr=errors)


def results(folder: Path) -> tuple[set[str], list[torch.Tensor], dict[str, bytes], dict[str, bytes]]:
    """Return the loss of every step of both stages, all weights, the images drawn, and the tables of the audit."""
    weights = [
        value
        for name in ("autoencoder.pt", "model.pt")
        for value in torch.load(folder / "models" / name, weights_only=True).values()
    ]
    images = {path.name: path.read_bytes() for path in (folder / "drawn").glob("*.png")}
    # a step that was done after the last checkpoint is done again, with the same loss
    return set((folder / "losses0.txt").read_text().splitlines()), weights, images, tables(folder / "audit")


@pytest.mark.slow
def test_workflow_killed_at_30_random_moments_ends_with_the_same_weights_images_and_tables(encoder_file, tmp_path):
    for seed, (role, n) in enumerate([("training", 40), ("validation", 20)]):
        write_folder(smooth_images(n, seed=seed), tmp_path / role, role)
    begun = time.monotonic()
    assert run_workflow(tmp_path / "whole", encoder_file, None) == 0
    seconds, moments = time.monotonic() - begun, random.Random(0)
    losses, weights, images, expected = results(tmp_path / "whole")
    assert (len(losses), len(images)) == (80, 24)

    n_kills, n_ends, folder = 0, 0, tmp_path / "killed_0"
    while n_kills < 30 or not n_ends:
        # the last run is left to end
        moment = moments.uniform(0, seconds / 4) if n_kills < 30 else None
        status = run_workflow(folder, encoder_file, moment)
        assert status in (0, -signal.SIGKILL), (folder / "errors.txt").read_text()[-3000:]
        n_kills += status != 0
        if status == 0:
            again = results(folder)
            assert again[0] == losses
            assert all(torch.equal(one, other) for one, other in zip(again[1], weights, strict=True))
            assert again[2] == images
            assert again[3] == expected
            n_ends += 1
            folder = tmp_path / f"killed_{n_ends}"
