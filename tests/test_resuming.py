# SPDX-License-Identifier: Apache-2.0
"""A training of a latent diffusion model that is killed goes on to the same losses and weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ignite.engine import Engine, Events
from made_up_images import smooth_images, write_folder
from monai.networks.schedulers import DDPMScheduler
from monai.transforms import Compose, RandFlip, RandRotate
from small_generators import SMALL
from torch import nn
from two_processes import TESTS

from monai_memorization.detector.order import BatchOrder
from monai_memorization.generation.resuming import ResumeHandler
from monai_memorization.images.prepared import prepared_images
from monai_memorization.ranks import Ranks

CONFIGS = TESTS.parent / "bundles" / "latent_diffusion_2d" / "configs"
WEIGHTS = {"autoencoder": "autoencoder.pt", "diffusion": "model.pt"}
# both stages in one process, each where its weights are not there yet
TRAININGS = """
import monai.bundle, pathlib
for stage, weights in {weights}.items():
    if not pathlib.Path("models", weights).exists():
        files = ["{configs}/train_" + stage + ".json", stage + ".json"]
        monai.bundle.run(config_file=files, **{options})
"""


def train(folder: Path, **kill_after: int) -> int:
    """Run the stages that are not complete, kill one after so many steps once, and return the exit status."""
    options = SMALL | {"training": "../training", "output_dir": "models", "logging_file": False}
    options |= {"autoencoder_steps": 6, "diffusion_steps": 6, "autoencoder_batch_size": 4, "diffusion_batch_size": 4}
    options |= {"checkpoint_interval": 0}
    flip = {"_target_": "monai.transforms.RandFlip", "prob": 0.5, "spatial_axis": 1}
    options["augmentation"] = {"_target_": "monai.transforms.Compose", "transforms": [flip]}
    folder.mkdir(exist_ok=True)
    for stage in WEIGHTS:
        record = {"_target_": "training_records.LossRecorder", "folder": ".", "kill_after": kill_after.get(stage)}
        (folder / f"{stage}.json").write_text(json.dumps({"+train#handlers": [record]}))
    script = TRAININGS.format(weights=WEIGHTS, options=options, configs=CONFIGS)
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr[-3000:]
    return done.returncode


def weights(path: Path) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in torch.load(path, weights_only=True).values()])


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "losses0.txt").read_text().splitlines()]


def test_both_stages_killed_in_the_middle_end_with_the_same_losses_and_weights(tmp_path):
    write_folder(smooth_images(11), tmp_path / "training")
    assert train(tmp_path / "whole") == 0
    killed = tmp_path / "killed"

    # a pass over the images has three steps: one is killed within a pass, one between two
    assert train(killed, autoencoder=2, diffusion=3) == -signal.SIGKILL
    assert [path.name for path in (killed / "models").iterdir()] == ["autoencoder_state.pt"]
    assert train(killed, autoencoder=2, diffusion=3) == -signal.SIGKILL
    assert sorted(path.name for path in (killed / "models").iterdir()) == ["autoencoder.pt", "diffusion_state.pt"]
    assert train(killed, autoencoder=2, diffusion=3) == 0

    assert lines(killed) == lines(tmp_path / "whole")
    assert [line["step"] for line in lines(killed)] == [1, 2, 3, 4, 5, 6] * 2
    assert sorted(path.name for path in (killed / "models").iterdir()) == ["autoencoder.pt", "model.pt"]
    for name in WEIGHTS.values():
        assert torch.equal(weights(killed / "models" / name), weights(tmp_path / "whole" / "models" / name))


@pytest.mark.parametrize("changed", ["autoencoder", "window", "schedule", "chance", "one transform less", None])
def test_state_of_another_training_is_not_taken_up(tmp_path, changed):
    images = prepared_images(write_folder(smooth_images(5), tmp_path / "images"), (32, 32))
    autoencoder, beta_end = nn.Conv2d(1, 1, 3), 0.02
    transforms = [RandFlip(prob=0.5, spatial_axis=0), RandRotate(0.1, prob=0.5)]

    def trained_steps() -> list[int]:
        engine, network, order = Engine(lambda *_: None), nn.Linear(2, 2), BatchOrder(5, 2)
        settings = [0, "linear", autoencoder, DDPMScheduler(1000, beta_end=beta_end)]
        ResumeHandler(
            tmp_path / "state.pt",
            images,
            order,
            {"network": network},
            settings,
            interval=0,
            augmentation=Compose(transforms),
        ).attach(engine)
        steps: list[int] = []
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: steps.append(engine.state.iteration))
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), engine.terminate)
        engine.run(range(3))
        return steps

    assert trained_steps() == [1, 2]
    if changed == "autoencoder":
        nn.init.zeros_(autoencoder.weight)
    elif changed == "window":
        images = prepared_images(tmp_path / "images", (32, 32), window=(0, 400))
    elif changed == "schedule":
        beta_end = 0.01
    elif changed == "chance":
        transforms[0] = RandFlip(prob=0.9, spatial_axis=0)
    elif changed == "one transform less":
        del transforms[1]
    else:  # what a transform draws is no part of what it is
        Compose(transforms)(torch.zeros(1, 8, 8))
    assert trained_steps()[0] == (3 if changed is None else 1)


@pytest.mark.parametrize("bundle", ["latent_diffusion_2d", "latent_diffusion_3d"])
def test_bundle_counts_the_weights_of_the_autoencoder(bundle):
    resume = json.loads((CONFIGS.parents[1] / bundle / "configs" / "train_diffusion.json").read_text())["train"][
        "resume"
    ]

    assert resume["settings"].endswith(", @autoencoder]")


@pytest.mark.parametrize(("n_images", "n_ranks"), [(11, 1), (11, 2), (1, 3), (12, 3)])
def test_ranks_see_each_image_in_each_pass_and_others_in_each_batch(n_images, n_ranks):
    orders = [BatchOrder(n_images, 2, seed=4, ranks=Ranks(n_ranks, rank)) for rank in range(n_ranks)]
    passes = [[batch for _, batch in zip(range(len(order)), order, strict=False)] for order in orders]
    assert len({tuple(map(len, batches)) for batches in passes}) == 1
    seen = [index for batches in passes for batch in batches for index in batch]
    assert set(seen) == set(range(n_images))
    assert len(seen) == -(-n_images // n_ranks) * n_ranks
    assert len(seen) - len(set(seen)) < n_ranks


def test_order_goes_on_after_the_batches_that_are_done():
    whole, rest = BatchOrder(11, 4, seed=4), BatchOrder(11, 4, seed=4)
    rest.n_done = 4
    expected = [batch for _, batch in zip(range(9), whole, strict=False)]
    assert [batch for _, batch in zip(range(5), rest, strict=False)] == expected[4:]
