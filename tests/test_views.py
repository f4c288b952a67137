# SPDX-License-Identifier: Apache-2.0
"""Views: seeded, one of its own for each image, and without what the power test keeps for itself."""

from __future__ import annotations

from dataclasses import asdict

import pytest
import torch
from made_up_images import smooth_images

from monai_memorization.detector import degradations
from monai_memorization.detector.views import Views
from monai_memorization.statistics.power import FAMILIES

SIZES = [(32, 32), (20, 36), (10, 12, 14)]
NOTHING = {
    "angle": 0,
    "shift": 0,
    "zoom": 1,
    "flip_rate": 0,
    "gamma": 1,
    "gain": 1,
    "bias": 0,
    "blur": 0,
    "noise": 0,
}


def view(views: Views, images: torch.Tensor, seed: int = 0) -> torch.Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return views(images)


@pytest.mark.parametrize("size", SIZES)
def test_view_has_shape_and_range_of_its_image(size):
    images = torch.stack([smooth_images(2, size, seed=i) for i in range(4)])

    for seed in range(10):
        seen = view(Views(), images, seed)
        assert seen.shape == images.shape
        assert seen.dtype == torch.float32
        assert seen.min() >= 0
        assert seen.max() <= 1


def test_view_repeats_with_the_seed_and_differs_with_another():
    images = smooth_images(4)[:, None]

    assert torch.equal(view(Views(), images, 1), view(Views(), images, 1))
    assert not torch.allclose(view(Views(), images, 1), view(Views(), images, 2), atol=0.1)


def test_every_image_of_a_batch_gets_a_view_of_its_own():
    images = smooth_images(1).expand(8, 1, 32, 32)

    seen = view(Views(), images).flatten(1)

    assert torch.cdist(seen, seen).fill_diagonal_(1).min() > 0.1


@pytest.mark.parametrize("size", SIZES)
def test_views_without_strength_are_the_images_rescaled(size):
    images = smooth_images(4, size)[:, None]

    assert set(NOTHING) == set(asdict(Views()))
    torch.testing.assert_close(view(Views(**NOTHING), images), degradations.rescale(images), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NOTHING)
def test_every_strength_changes_the_view(name):
    images = smooth_images(8)[:, None]
    alone = Views(**NOTHING | {name: getattr(Views(), name)})

    assert (view(alone, images) - view(Views(**NOTHING), images)).abs().max() > 0.005


def test_scaled_views_shrink_to_flips_alone():
    images = smooth_images(8)[:, None]
    flips = Views(**NOTHING | {"flip_rate": Views().flip_rate})

    assert Views().scaled(1) == Views()
    assert Views().scaled(0.5).angle == Views().angle / 2
    assert asdict(Views().scaled(1e-9)) == pytest.approx(asdict(flips), abs=1e-6)
    torch.testing.assert_close(view(Views().scaled(1e-9), images), view(flips, images), atol=1e-3, rtol=0)


def test_views_use_no_degradation_of_an_unseen_family(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("an unseen family was used in training")

    unseen = ("coarsen", "elastic", "jpeg", "quantize", "sharpen", "blend", "splice")
    for name in unseen:
        monkeypatch.setattr(degradations, name, refuse)

    for seed in range(10):
        view(Views(), smooth_images(4)[:, None], seed)
    assert len({family.name for family in FAMILIES if not family.seen_in_training}) == len(unseen)
