# SPDX-License-Identifier: Apache-2.0
"""Registration finds the map by which a copy was moved, and what is no copy does not agree."""

from __future__ import annotations

import pytest
import torch
from made_up_images import smooth_images

from monai_memorization.detector import degradations
from monai_memorization.detector.registration import agreement, fine_structure

SIZES = {2: (48, 48), 3: (20, 24, 22)}
MOVES = {
    "as it is": lambda images: images,
    "mirrored": lambda images: degradations.mirror(images, 0),
    "mirrored and turned": lambda images: degradations.turn(degradations.mirror(images, 1), 12),
    "turned": lambda images: degradations.turn(images, 9),
    "shifted": lambda images: degradations.shift(images, 0.08),
    "cropped": lambda images: degradations.crop(images, 0.85),
    "all at once": lambda images: degradations.shift(degradations.turn(degradations.crop(images, 0.9), -6), 0.05),
}


def textured(n, size):
    """Smooth images with detail, as anatomy has."""
    noise = torch.rand(n, 1, *size, generator=torch.Generator().manual_seed(n))
    detail = degradations.rescale(degradations.blur(noise, 0.04))
    return degradations.rescale(smooth_images(n, size)[:, None] + 0.5 * detail)


def agree(first, second):
    return agreement(fine_structure(first), fine_structure(second)[:, None])[:, 0]


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("move", MOVES)
def test_moved_copy_agrees_more_than_any_other_image(move, dimension):
    images = textured(8, SIZES[dimension])

    own = agree(MOVES[move](images), images)
    others = agree(MOVES[move](images), images.roll(1, 0))

    assert own.min() > 0.65
    assert own.min() > others.max() + 0.3


@pytest.mark.parametrize("dimension", [2, 3])
def test_agreement_of_an_image_with_itself_is_one_whatever_its_intensities(dimension):
    images = textured(4, SIZES[dimension])

    assert agree(images, images).min() > 0.999
    assert agree(degradations.gamma(images, 1.3) * 0.5 + 0.2, images).min() > 0.9


def test_overexposed_copy_is_told_by_the_rest_of_it():
    images = textured(6, (48, 48))
    overexposed = images.clone()
    overexposed[..., :20] = 1

    assert agree(overexposed, images).min() > agree(overexposed, images.roll(1, 0)).max() + 0.2


def test_each_pair_agrees_as_it_does_alone():
    images = fine_structure(textured(6, (32, 32)))
    candidates = torch.stack([images.roll(1, 0), images, images.roll(2, 0)], dim=1)

    together = agreement(images, candidates)

    assert together.shape == (6, 3)
    for i, k in [(0, 0), (3, 1), (5, 2)]:
        alone = agreement(images[i : i + 1], candidates[i : i + 1, k : k + 1])
        torch.testing.assert_close(together[i, k], alone[0, 0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("size", [(32, 32), (9, 24, 5), (4, 4, 4), (300, 20)])
def test_any_image_has_a_finite_agreement(size):
    images = torch.stack([torch.zeros(2, *size), torch.ones(2, *size), torch.rand(2, *size)])

    values = agreement(fine_structure(images), fine_structure(images)[:, None].expand(-1, 3, *[-1] * (len(size) + 1)))

    assert values.isfinite().all()
    assert values.abs().max() <= 1 + 1e-5
