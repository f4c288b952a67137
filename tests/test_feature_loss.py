# SPDX-License-Identifier: Apache-2.0
"""The perceptual term: what it weighs that an L1 loss does not, in 2D and 3D."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_up_images import smooth_images
from torch.nn.functional import l1_loss

from monai_memorization.generation.feature_loss import FeatureLoss, blur, laplacian_bands

SIZES = [(24, 20), (12, 14, 10)]


def fine_images(size: tuple[int, ...], n: int = 2) -> torch.Tensor:
    """Smooth images under fine noise, (n, 1, *size)."""
    noise = torch.rand(n, *size, generator=torch.Generator().manual_seed(9))
    return (0.7 * smooth_images(n, size) + 0.3 * noise)[:, None]


def slow_blur(image: np.ndarray) -> np.ndarray:
    """Binomial blur of one array of any dimension, one element at a time, edges repeated."""
    for axis in range(image.ndim):
        result = np.zeros_like(image)
        for index in np.ndindex(*image.shape):
            for offset, weight in zip((-2, -1, 0, 1, 2), (1, 4, 6, 4, 1), strict=True):
                neighbor = list(index)
                neighbor[axis] = min(max(index[axis] + offset, 0), image.shape[axis] - 1)
                result[index] += weight / 16 * image[tuple(neighbor)]
        image = result
    return image


def slow_loss(reconstruction: np.ndarray, image: np.ndarray, levels: int, floor: float) -> float:
    """The loss of two single arrays, written from its definition."""
    losses = []
    for _ in range(levels):
        coarse, coarse_reconstruction = slow_blur(image), slow_blur(reconstruction)
        band, band_reconstruction = image - coarse, reconstruction - coarse_reconstruction
        amplitude, amplitude_reconstruction = slow_blur(abs(band)), slow_blur(abs(band_reconstruction))
        difference = abs(band - band_reconstruction) + abs(amplitude - amplitude_reconstruction)
        losses.append((difference / (amplitude + floor)).mean())
        halves = tuple(slice(None, None, 2) for _ in image.shape)
        image, reconstruction = coarse[halves], coarse_reconstruction[halves]
    return float(np.mean(losses))


@pytest.mark.parametrize("size", [(11, 9), (9, 8, 7)])
@pytest.mark.parametrize("floor", [0.02, 0.3])
def test_loss_equals_its_definition(size, floor):
    image, reconstruction = fine_images(size).double()
    loss = FeatureLoss(levels=2, floor=floor)(reconstruction[None], image[None])
    assert loss.item() == pytest.approx(slow_loss(reconstruction[0].numpy(), image[0].numpy(), 2, floor), rel=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_only_the_image_itself_has_no_loss(size):
    image, other = fine_images(size)[:, None]
    assert FeatureLoss()(image, image) == 0
    assert FeatureLoss()(other, image) > 0.1


@pytest.mark.parametrize("size", SIZES)
def test_loss_does_not_see_brightness(size):
    image = fine_images(size)
    assert FeatureLoss()(image + 0.1, image).item() == pytest.approx(0, abs=1e-4)


def test_fading_detail_costs_more_than_displacing_it():
    # where an L1 loss prefers the faded image
    image = fine_images((32, 32), n=1)
    faded = blur(blur(image))
    displaced = image.roll(1, dims=-1)
    assert l1_loss(faded, image) < l1_loss(displaced, image)
    amplitude_term = FeatureLoss()
    band, band_faded, band_displaced = (laplacian_bands(x, 1)[0].abs().mean() for x in (image, faded, displaced))
    assert band_faded < 0.3 * band
    assert band_displaced == pytest.approx(band.item(), rel=0.1)
    relative = amplitude_term(faded, image) / amplitude_term(displaced, image)
    assert relative > l1_loss(faded, image) / l1_loss(displaced, image)


def test_faint_detail_counts_like_strong_detail():
    image = fine_images((32, 32), n=1)
    faint = image * 0.25
    without_floor = FeatureLoss(floor=1e-6)
    assert without_floor(blur(faint), faint).item() == pytest.approx(without_floor(blur(image), image).item(), rel=1e-3)


@pytest.mark.parametrize("size", SIZES)
def test_every_pixel_gets_a_gradient(size):
    image = fine_images(size, n=1)
    reconstruction = blur(image).requires_grad_()
    FeatureLoss()(reconstruction, image).backward()
    assert (reconstruction.grad != 0).all()


def test_channels_are_compared_apart():
    image = fine_images((16, 16))[:, 0][None]
    reconstruction = blur(image)
    apart = torch.stack([FeatureLoss()(reconstruction[:, [c]], image[:, [c]]) for c in range(2)]).mean()
    assert FeatureLoss()(reconstruction, image).item() == pytest.approx(apart.item(), rel=1e-5)


def test_small_images_have_fewer_bands():
    assert [tuple(band.shape[2:]) for band in laplacian_bands(torch.rand(1, 1, 10, 9), 4)] == [(10, 9), (5, 5)]
