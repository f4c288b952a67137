# SPDX-License-Identifier: Apache-2.0
"""Near-identical pairs: exact, mirrored and intensity-scaled copies are found with their original, nothing else is."""

from __future__ import annotations

import itertools

import pytest
import torch
from made_up_images import smooth_images, write_folder

from monai_memorization.detector import degradations
from monai_memorization.detector.embeddings import Embeddings, embed, shrink
from monai_memorization.detector.encoder import ContrastiveEncoder
from monai_memorization.detector.near_identical import THUMBNAIL_CORRELATION, correlation, flips, near_identical
from monai_memorization.images.sets import read_image_set

SIZES = {2: (32, 32), 3: (12, 14, 16)}


def embedded(images: torch.Tensor, folder, role: str, suffix: str) -> Embeddings:
    """Write images and read them back; what the encoder says plays no part in this check."""
    image_set = read_image_set(write_folder(images, folder / role, role, suffix), role)
    return embed(ContrastiveEncoder(images.shape[1:], widths=(2, 2), embedding_size=4), image_set)


def search(training, synthetic, folder, suffix=".nii.gz"):
    sets = [embedded(images, folder, role, suffix) for images, role in ((synthetic, "s"), (training, "t"))]
    preparation = ContrastiveEncoder(training.shape[1:], widths=(2, 2)).preparation
    return near_identical(*sets, preparation)[1].tolist()


@pytest.mark.parametrize("dimension", [2, 3])
def test_copies_are_found_with_their_original(dimension, tmp_path):
    training = smooth_images(30, SIZES[dimension], seed=1)
    others = smooth_images(20, SIZES[dimension], seed=2)
    copies = {
        7: training[7],
        11: 0.7 * training[11],
        3: 0.2 + 0.5 * training[3],
        29: training[29].flip(0),
        20: 0.8 * training[20].flip(1),
        5: training[5].flip(*range(dimension)),
    }

    found = search(training, torch.cat([torch.stack([*copies.values()]), others]), tmp_path)

    assert found == [*copies, *[-1] * len(others)]


def test_copy_written_as_8_bit_picture_is_found(tmp_path):
    training = smooth_images(30, seed=1)

    assert search(training, torch.stack([0.7 * training[4], training[9].flip(1)]), tmp_path, ".png") == [4, 9]


def test_altered_copies_are_not_near_identical(tmp_path):
    training = smooth_images(10, seed=1)
    first = training[None, :1]
    altered = [
        degradations.turn(first, 5),
        degradations.noise(first, 0.1, torch.Generator().manual_seed(0)),
        degradations.shift(first, 0.1),
        degradations.gamma(first, 2),
    ]

    assert search(training, torch.cat(altered)[:, 0], tmp_path) == [-1] * len(altered)


def test_noise_that_thumbnails_average_away_is_seen_in_the_pixels(tmp_path):
    training = smooth_images(10, (64, 64), seed=1)
    noisy = degradations.noise(training[:4, None], 0.05, torch.Generator().manual_seed(0))[:, 0]
    thumbnails = shrink(torch.cat([training[:4], noisy])[:, None])
    assert all(correlation(thumbnails[i], thumbnails[i + 4]) > THUMBNAIL_CORRELATION for i in range(4))

    assert search(training, noisy, tmp_path) == [-1] * 4


def test_first_of_equal_training_images_is_named(tmp_path):
    training = smooth_images(5, seed=1)

    assert search(torch.cat([training, training]), training, tmp_path) == [0, 1, 2, 3, 4]


def test_image_with_an_empty_thumbnail_pattern_is_compared_all_the_same(tmp_path):
    stripes = torch.zeros(32, 32)
    stripes[:, ::2] = 1  # every cell of its thumbnail has the same mean

    assert search(torch.cat([smooth_images(5), stripes[None]]), stripes[None], tmp_path) == [5]


@pytest.mark.parametrize("dimension", [2, 3])
def test_every_mirror_image_is_tried_once(dimension):
    axes = range(2, 2 + dimension)
    expected = {subset for n in range(dimension + 1) for subset in itertools.combinations(axes, n)}

    assert set(flips(dimension)) == expected
    assert len(flips(dimension)) == 2**dimension
    assert flips(dimension)[0] == ()


def test_correlation_is_that_of_pearson():
    first, second = smooth_images(2)

    expected = torch.corrcoef(torch.stack([first.flatten(), second.flatten()]).double())[0, 1]
    assert correlation(first, second) == pytest.approx(expected.item())
    assert correlation(first, 3 - 2 * first) == pytest.approx(-1)
    assert correlation(first, torch.full_like(first, 0.4)) == pytest.approx(0, abs=1e-9)
