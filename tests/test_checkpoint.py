# SPDX-License-Identifier: Apache-2.0
"""A training that was stopped goes on, and ends with the same losses and weights as one that was not."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from ignite.engine import Events
from made_up_images import smooth_images, write_folder

from monai_memorization.detector import encoder_training
from monai_memorization.detector.checkpoint import TrainingCheckpoint
from monai_memorization.detector.encoder_training import obtain_encoder, train_encoder
from monai_memorization.images.prepared import prepared_images
from monai_memorization.images.sets import read_image_set

N_STEPS = 8


class StoppedError(Exception):
    """In place of a kill."""


class Losses:
    """Handler that writes the losses down, and stops the training after a step."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.stop_after = stop_after
        self.values: dict[int, float] = {}

    def attach(self, engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self.stop)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.note)

    def stop(self, engine) -> None:
        if self.stop_after is not None and engine.state.iteration > self.stop_after:
            raise StoppedError

    def note(self, engine) -> None:
        self.values[engine.state.iteration] = engine.state.output["loss"].item()


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = write_folder(smooth_images(7, (16, 16)), tmp_path_factory.mktemp("seven") / "training")
    return prepared_images(folder, (16, 16))


def train(images, losses: Losses, checkpoint: TrainingCheckpoint | None = None):
    # two batches to a pass, one image left over
    return train_encoder(images, N_STEPS, batch_size=3, checkpoint=checkpoint, train_handlers=[losses])


def weights(encoder) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in encoder.state_dict().values()])


@pytest.mark.parametrize("n_done", [1, 4, 5])
def test_stopped_training_goes_on_to_the_same_losses_and_weights(images, tmp_path, n_done):
    checkpoint = partial(TrainingCheckpoint, tmp_path / "training.pt", "key", interval=0)
    whole, before, after = Losses(), Losses(n_done), Losses()
    expected = train(images, whole)
    with pytest.raises(StoppedError):
        train(images, before, checkpoint())
    torch.manual_seed(77)  # which has no part in it

    encoder = train(images, after, checkpoint())

    assert list(after.values) == list(range(n_done + 1, N_STEPS + 1))
    assert before.values | after.values == whole.values
    assert torch.equal(weights(encoder), weights(expected))


@pytest.mark.parametrize("content", [b"", b"PK not a checkpoint", None])
def test_state_that_is_damaged_or_of_another_training_is_not_taken_up(images, tmp_path, content):
    with pytest.raises(StoppedError):
        train(images, Losses(3), TrainingCheckpoint(tmp_path / "training.pt", "another", interval=0))
    if content is not None:
        (tmp_path / "training.pt").write_bytes(content)
    losses = Losses()

    train(images, losses, TrainingCheckpoint(tmp_path / "training.pt", "key"))

    assert list(losses.values) == list(range(1, N_STEPS + 1))


def test_state_is_written_no_more_often_than_asked(images, tmp_path):
    train(images, Losses(), TrainingCheckpoint(tmp_path / "training.pt", "key", interval=3600))

    assert not (tmp_path / "training.pt").exists()


def test_kept_encoder_of_a_stopped_training_is_that_of_one_that_was_not(images, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder_training, "TrainingCheckpoint", partial(TrainingCheckpoint, interval=0))
    listed = read_image_set(images.images.paths[0].parent, "training")
    encoders = []
    for losses in (Losses(), Losses(3), Losses()):
        short = partial(train_encoder, n_steps=N_STEPS, train_handlers=[losses])
        monkeypatch.setattr(encoder_training, "train_encoder", short)
        folder = tmp_path / ("kept" if encoders else "whole")
        try:
            encoders.append(obtain_encoder(None, listed, folder))
        except StoppedError:
            assert [path.name for path in folder.iterdir()] == ["training.pt"]

    assert list(losses.values) == list(range(4, N_STEPS + 1))
    assert torch.equal(*map(weights, encoders))
    assert sorted(path.name for path in folder.iterdir()) == ["model.json", "model.pt"]
