# SPDX-License-Identifier: Apache-2.0
"""Degradations: nothing happens at strength zero, known cases come out exactly, each image gets its own strength."""

from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np
import pytest
import torch
from made_up_images import disc, smooth_images
from scipy.ndimage import gaussian_filter

from monai_memorization.detector import degradations
from monai_memorization.images.preparation import scale_intensities

SIZES = [(32, 32), (20, 32), (12, 16, 10)]


def batch(size, n=3, channels=1, seed=0):
    return torch.stack([smooth_images(channels, size, seed=seed + i) for i in range(n)])


def seeded(degrade, *arguments):
    """Call a random degradation with a generator in a known state."""
    return degrade(*arguments, generator=torch.Generator().manual_seed(4))


# name: (degradation, strength of doing nothing, some strength per image)
GRADED = {
    "rotate": (degradations.turn, 0, [3, -20, 90]),
    "shift": (degradations.shift, 0, [0.05, -0.1, 0.3]),
    "crop": (degradations.crop, 1, [0.9, 0.65, 1]),
    "gamma": (degradations.gamma, 1, [0.5, 2, 1.2]),
    "contrast": (degradations.contrast, 1, [0.7, 2, 1.2]),
    "brightness": (degradations.brightness, 1, [0.7, 2, 1.2]),
    "bias_field": (degradations.bias_field, 0, [0.1, 0.3, 0.5]),
    "blur": (degradations.blur, 0, [0.01, 0.04, 0.1]),
    "noise": (degradations.noise, 0, [0.01, 0.1, 0.3]),
    "elastic": (degradations.elastic, 0, [0.01, 0.03, 0.05]),
    "sharpen": (degradations.sharpen, 0, [0.5, 1, 2]),
}
RANDOM = ("bias_field", "noise", "elastic")
OTHER = {
    "flip": lambda images: degradations.mirror(images, 0),
    "resample": lambda images: degradations.coarsen(images, 0.3),
    "quantize": lambda images: degradations.quantize(images, 8),
    "blend": lambda images: degradations.blend(images, images.flip(0), 0.6),
    "splice": lambda images: degradations.splice(images, images.flip(0), 0.5),
    "rescale": degradations.rescale,
}


def degrade(name, images, strength):
    return seeded(GRADED[name][0], images, strength) if name in RANDOM else GRADED[name][0](images, strength)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", GRADED)
def test_strength_zero_changes_nothing(name, size):
    images = batch(size)

    torch.testing.assert_close(degrade(name, images, GRADED[name][1]), images, atol=1e-5, rtol=0)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    ("name", "size"), [*product([*GRADED, *OTHER], SIZES), *(("jpeg", size) for size in SIZES if len(size) == 2)]
)
def test_shape_and_range_are_kept_and_the_input_is_not_touched(name, size, channels):
    images = batch(size, channels=channels)
    before = images.clone()

    others = OTHER | {"jpeg": partial(degradations.jpeg, quality=50)}
    degraded = degrade(name, images, torch.tensor(GRADED[name][2])) if name in GRADED else others[name](images)

    assert degraded.shape == images.shape
    assert degraded.dtype == torch.float32
    assert degraded.min() >= 0
    assert degraded.max() <= 1 + 1e-6
    assert not torch.allclose(degraded, images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", sorted(set(GRADED) - set(RANDOM)))
def test_each_image_gets_its_own_strength(name, size):
    images, strengths = batch(size), GRADED[name][2]

    together = degrade(name, images, torch.tensor(strengths))

    alone = torch.cat([degrade(name, images[i : i + 1], strength) for i, strength in enumerate(strengths)])
    # the strongest blur of a batch sets where all of its Gaussians are cut off, at 3 deviations or later
    torch.testing.assert_close(together, alone, atol=2e-3 if name == "blur" else 1e-5, rtol=0)


@pytest.mark.parametrize("name", RANDOM)
def test_random_degradation_repeats_with_its_generator_and_differs_between_images(name):
    images = batch((32, 32), n=1).repeat(2, 1, 1, 1)

    degraded = degrade(name, images, 0.2)

    assert torch.equal(degraded, degrade(name, images, 0.2))
    assert not torch.allclose(degraded[0], degraded[1])


@pytest.mark.parametrize("quarter", [1, 2, 3])
def test_rotation_by_quarters_of_a_square_is_exact(quarter):
    images = batch((24, 24), channels=2)

    rotated = degradations.turn(images, 90 * quarter)

    torch.testing.assert_close(rotated, torch.rot90(images, -quarter, (2, 3)), atol=1e-4, rtol=0)


@pytest.mark.parametrize(("plane", "axes"), [(0, (2, 3)), (1, (2, 4)), (2, (3, 4))])
def test_rotation_of_a_cube_turns_the_plane_that_is_named(plane, axes):
    images = batch((12, 12, 12))

    torch.testing.assert_close(degradations.turn(images, 90, plane), torch.rot90(images, -1, axes), atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(24, 48), (48, 24), (16, 24, 32)])
@pytest.mark.parametrize("degrees", [30, 45, 90])
def test_rotated_disc_on_an_oblong_image_stays_a_disc(size, degrees):
    images = disc(size, 0.35 * min(size))[None, None]

    torch.testing.assert_close(degradations.turn(images, degrees), images, atol=0.25, rtol=0)


def test_rotation_moves_an_off_centre_disc_along_its_circle():
    center = torch.tensor([23.5, 31.5])
    images = disc((48, 64), 4, center + torch.tensor([0.0, 15.0]))[None, None]

    rotated = degradations.turn(images, 30)

    radians = np.deg2rad(30)
    expected = center + 15 * torch.tensor([np.sin(radians), np.cos(radians)])  # down, from the right: clockwise
    grid = torch.stack(torch.meshgrid(torch.arange(48.0), torch.arange(64.0), indexing="ij"))
    middle = (rotated[0] * grid).flatten(1).sum(1) / rotated.sum()
    torch.testing.assert_close(middle, expected.float(), atol=0.1, rtol=0)


@pytest.mark.parametrize("size", [(40, 40), (40, 80), (20, 40, 60)])
def test_shift_by_whole_pixels_is_a_roll_within_the_image(size):
    images, step = batch(size), min(size) // 10
    axes = tuple(range(2, images.dim()))
    inside = (..., *[slice(step, None)] * len(size))

    shifted = degradations.shift(images, step / min(size))

    rolled = torch.roll(images, [step] * len(size), axes)
    torch.testing.assert_close(shifted[inside], rolled[inside], atol=1e-4, rtol=0)
    assert shifted[..., :step].abs().max() < 1e-4  # zeros come in


def test_crop_to_a_half_magnifies_the_middle_twice():
    image = disc((40, 60), 5)[None, None]

    torch.testing.assert_close(degradations.crop(image, 0.5), disc((40, 60), 10)[None, None], atol=0.4, rtol=0)
    assert degradations.crop(image, 0.5).sum() == pytest.approx(4 * image.sum().item(), rel=0.02)


@pytest.mark.parametrize("size", SIZES)
def test_flip_twice_is_the_image_and_once_is_a_mirror(size):
    images = batch(size)

    for axis in range(len(size)):
        assert torch.equal(degradations.mirror(degradations.mirror(images, axis), axis), images)
        assert torch.equal(degradations.mirror(images, axis), images.flip(axis + 2))
        assert torch.equal(degradations.mirror(images, axis - len(size)), images.flip(axis + 2))


@pytest.mark.parametrize("size", SIZES)
def test_affine_flips_as_flip_does(size):
    images = batch(size)

    for axis in range(len(size)):
        flips = torch.zeros(len(images), len(size), dtype=torch.bool)
        flips[1:, axis] = True

        flipped = degradations.affine(images, flips=flips)

        torch.testing.assert_close(flipped[0], images[0], atol=1e-4, rtol=0)
        torch.testing.assert_close(flipped[1:], degradations.mirror(images[1:], axis), atol=1e-4, rtol=0)


@pytest.mark.parametrize("share", [0.01, 0.04, 0.1])
@pytest.mark.parametrize("size", SIZES)
def test_blur_is_the_gaussian_filter_of_scipy(size, share):
    images = batch(size, channels=2)

    blurred = degradations.blur(images, share)

    sigma = share * min(size)
    expected = [[gaussian_filter(channel, sigma, mode="nearest", truncate=6) for channel in i] for i in images.numpy()]
    torch.testing.assert_close(blurred, torch.from_numpy(np.array(expected)), atol=2e-3, rtol=0)


def test_blur_keeps_the_mean_of_an_object_away_from_the_edge():
    images = disc((40, 60), 6)[None, None]

    assert degradations.blur(images, 0.05).mean() == pytest.approx(images.mean().item(), rel=1e-4)


def test_blur_of_a_set_of_equal_slices_is_that_of_the_slice():
    images = batch((24, 24))

    volumes = degradations.blur(images[..., None].expand(-1, -1, -1, -1, 24), 0.05)

    torch.testing.assert_close(volumes[..., 7], degradations.blur(images, 0.05), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["rotate", "gamma", "contrast", "brightness"])
def test_volume_of_equal_slices_is_degraded_as_its_slice(name):
    images, strengths = batch((24, 24)), torch.tensor(GRADED[name][2])

    volumes = degrade(name, images[..., None].expand(-1, -1, -1, -1, 24), strengths)

    torch.testing.assert_close(volumes[..., 7], degrade(name, images, strengths), atol=1e-4, rtol=0)


def test_intensities_change_by_hand():
    images = torch.tensor([[[[0.0, 0.25], [0.5, 1.0]]]])

    torch.testing.assert_close(degradations.gamma(images, 2), images**2, atol=1e-5, rtol=0)
    torch.testing.assert_close(degradations.brightness(images, 2), torch.tensor([[[[0, 0.5], [1, 1]]]]))
    mean = 0.4375
    expected = torch.tensor([[[[0.5 * mean, 0.125 + 0.5 * mean], [0.25 + 0.5 * mean, 0.5 + 0.5 * mean]]]])
    torch.testing.assert_close(degradations.contrast(images, 0.5), expected)
    torch.testing.assert_close(degradations.quantize(images, 3), torch.tensor([[[[0, 0], [0.5, 1]]]]), atol=0, rtol=0)


def test_noise_has_the_deviation_that_is_asked_for():
    images = torch.full((4, 1, 64, 64), 0.5)

    noisy = seeded(degradations.noise, images, torch.tensor([0.01, 0.02, 0.05, 0.1]))

    assert noisy.flatten(1).std(1).tolist() == pytest.approx([0.01, 0.02, 0.05, 0.1], rel=0.05)


def test_bias_field_stays_within_its_strength():
    images = torch.full((8, 1, 32, 32), 0.5)

    ratio = seeded(degradations.bias_field, images, 0.3) / images

    assert ratio.min() >= 0.7
    assert ratio.max() <= 1.3
    assert ratio.amax((1, 2, 3)).min() > ratio.amin((1, 2, 3)).max()  # each image is brightened here and darkened there
    assert (ratio[..., 1:] - ratio[..., :-1]).abs().max() < 0.05  # smoothly


def test_elastic_moves_nothing_further_than_its_share():
    ramp = torch.linspace(0, 1, 64).expand(1, 1, 64, 64)
    share = 0.05

    moved = (seeded(degradations.elastic, ramp, share) - ramp) * 63

    assert 0.2 * share * 64 < moved.abs().max() <= share * 64 + 1e-3


@pytest.mark.parametrize("pixels", [1, 2, 5])
def test_resampling_keeps_flat_images_and_loses_checkers_whatever_the_size(pixels):
    flat, checkers = torch.full((1, 1, 24 * pixels, 24 * pixels), 0.3), torch.zeros(1, 1, 24, 24)
    checkers[..., ::2, ::2] = checkers[..., 1::2, 1::2] = 1
    checkers = checkers.repeat_interleave(pixels, 2).repeat_interleave(pixels, 3)

    torch.testing.assert_close(degradations.coarsen(flat, 2 / 24), flat)
    torch.testing.assert_close(degradations.coarsen(checkers, 2 / 24), torch.full_like(checkers, 0.5))


@pytest.mark.parametrize("share", [0.02, 0.04])
@pytest.mark.parametrize("size", [(20, 20, 20), (24, 20, 16), (64, 64, 8), (36, 48), (2, 40)])
def test_resampling_loses_something_however_few_the_voxels(size, share):
    images = batch(size)

    lost = (degradations.coarsen(images, share) - images).abs().flatten(1).amax(1)

    assert lost.min() > 0.01


def test_jpeg_of_good_quality_is_close_and_of_bad_quality_less_so():
    images = batch((32, 24), channels=2)

    good, bad = ((degradations.jpeg(images, quality) - images).abs().mean() for quality in (95, 10))

    assert good < 0.01 < bad


def test_sharpening_undoes_a_slight_blur_in_part():
    images = batch((32, 32), seed=3)
    blurred = degradations.blur(images, 0.02)

    assert (degradations.sharpen(blurred, 1) - images).abs().mean() < 0.5 * (blurred - images).abs().mean()


def test_blend_mixes_by_share():
    first, second = batch((8, 8)), batch((8, 8), seed=9)

    mixed = degradations.blend(first, second, torch.tensor([1.0, 0.0, 0.6]))

    torch.testing.assert_close(mixed, torch.stack([first[0], second[1], 0.6 * first[2] + 0.4 * second[2]]))


@pytest.mark.parametrize("size", [(16, 16), (8, 16, 16)])
@pytest.mark.parametrize("share", [0.5, 0.25])
def test_splice_keeps_just_its_share(size, share):
    first, second = torch.ones(2, 1, *size), torch.zeros(2, 1, *size)

    spliced = degradations.splice(first, second, share)

    assert spliced.flatten(1).mean(1).tolist() == [share, share]
    assert spliced[0, 0].flatten()[0] == 1


@pytest.mark.parametrize("size", [(48, 64), (256, 256), (512, 512), (300, 100), (40, 48, 32)])
def test_rescale_does_what_the_preparation_does(size):
    images = batch(size, seed=2) * torch.tensor([0.3, 0.5, 0.9]).view(-1, 1, *[1] * len(size)) + 0.05
    images = images * torch.linspace(0.2, 1, size[-1])  # a gradient, which a few columns alone would not show

    expected = torch.stack([scale_intensities(image) for image in images])
    torch.testing.assert_close(degradations.rescale(images), expected, atol=0.15, rtol=0)


@pytest.mark.parametrize("size", [(1, 64, 64), (2, 24, 24, 24)])
def test_rescale_leaves_a_thin_object_on_an_empty_background_as_the_preparation_does(size):
    image = torch.zeros(size)
    image[(slice(None), *[slice(4, 6)] * (len(size) - 1))] = torch.rand(size[0], *[2] * (len(size) - 1)) / 2 + 0.25
    prepared = scale_intensities(image)

    torch.testing.assert_close(degradations.rescale(prepared[None])[0], prepared)
    assert len(prepared.unique()) > 4  # and not black and white


def test_rescale_treats_each_channel_of_a_volume_as_the_preparation_does():
    volume = torch.rand(2, 10, 10, 10, generator=torch.Generator().manual_seed(0))
    volume[1] = volume[1] / 3 + 0.1

    (rescaled,) = degradations.rescale(volume[None])

    torch.testing.assert_close(rescaled, scale_intensities(volume), atol=0.02, rtol=0)


def test_rescale_survives_a_constant_image():
    assert degradations.rescale(torch.full((2, 1, 8, 8), 0.4)).isfinite().all()
