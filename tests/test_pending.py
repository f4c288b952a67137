# SPDX-License-Identifier: Apache-2.0
"""Seeds that are still to be drawn: all that are not there, complete, from the same model."""

from __future__ import annotations

import os
from functools import partial

import pytest
import torch
from made_up_images import smooth_images, write_image
from small_generators import ddim_scheduler
from torch import nn

from monai_memorization.errors import InputError
from monai_memorization.generation.pending import pending_seeds


@pytest.fixture
def pending(tmp_path):
    """Seeds 3 to 12 in batches of four: 3-6, 7-10, 11-12."""
    network = nn.Linear(2, 2)
    settings = [ddim_scheduler(), 50, [3, 8, 8]]
    numbers = {"first_seed": 3, "n_images": 10, "batch_size": 4}
    return partial(pending_seeds, **numbers, output_dir=tmp_path, suffix=".png", networks=[network], settings=settings)


def draw(folder, seeds) -> None:
    for seed in seeds:
        write_image(smooth_images(1, (16, 16), seed=seed)[0], folder / f"{seed:06d}.png")


def test_everything_is_pending_at_first_and_nothing_in_the_end(pending, tmp_path):
    assert pending() == list(range(3, 13))
    draw(tmp_path, range(3, 13))
    assert pending() == []
    assert pending(n_images=11) == [11, 12, 13]


def test_batch_with_a_missing_or_cut_image_is_drawn_again_as_a_whole(pending, tmp_path):
    pending()
    draw(tmp_path, range(3, 12))
    assert pending() == [11, 12]
    path = tmp_path / "000005.png"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert pending() == [3, 4, 5, 6, 11, 12]
    path.write_bytes(b"")
    assert pending() == [3, 4, 5, 6, 11, 12]


def test_images_of_other_weights_or_settings_are_drawn_again(pending, tmp_path):
    pending()
    draw(tmp_path, range(3, 13))
    assert pending() == []
    scheduler = ddim_scheduler()
    scheduler.clip_sample = True
    for change in ({"networks": [nn.Linear(2, 2)]}, {"settings": [scheduler, 50, [3, 8, 8]]}, {"settings": [51]}):
        mark = tmp_path / ".drawn_by"
        assert pending(**change) == list(range(3, 13))
        # nor are they taken for those of a run that was stopped before it drew any
        assert pending(**change) == list(range(3, 13))
        os.utime(mark, ns=(0, 0))
        assert pending(**change) == []


def test_one_changed_weight_is_another_model(pending, tmp_path):
    network = pending.keywords["networks"][0]
    pending()
    draw(tmp_path, range(3, 13))
    with torch.no_grad():
        network.weight[0, 0] += 1e-6
    assert pending() == list(range(3, 13))


@pytest.mark.parametrize("change", [{"n_images": 0}, {"batch_size": 0}])
def test_nothing_to_draw_is_refused(pending, change):
    with pytest.raises(InputError, match="must be at least 1"):
        pending(**change)
