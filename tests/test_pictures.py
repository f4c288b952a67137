# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import base64
import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image

from monai_memorization.reporting.pictures import (
    DIFFERENCE_RANGE,
    N_SLICES,
    difference_picture,
    frames,
    picture,
    planes,
    strip,
)


def decoded(uri: str) -> np.ndarray:
    head, body = uri.split(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))


@pytest.mark.parametrize("channels", [1, 3])
def test_picture_shows_the_values_it_was_given(channels):
    values = torch.arange(channels * 6 * 4).reshape(channels, 6, 4) / 255

    pixels = decoded(picture(values))

    assert pixels.shape[:2] == (6, 4)
    assert np.array_equal(np.atleast_3d(pixels), (255 * values).round().permute(1, 2, 0).numpy())


def test_flat_image_is_one_plane():
    image = torch.rand(1, 5, 7)

    assert torch.equal(planes(image)[0], image[None])
    assert len(planes(image)) == 1


def test_volume_is_its_slices_across_three_axes_with_the_head_up():
    # canonical axes run to the right, to the front and up: the value at the top of the pictures is the largest z or y
    volume = torch.zeros(1, 4, 6, 8)
    volume[:, 2, 3, :] = torch.arange(8) / 7
    sagittal, coronal, axial = planes(volume)

    assert [tuple(s.shape) for s in (sagittal, coronal, axial)] == [(4, 1, 8, 6), (6, 1, 8, 4), (8, 1, 6, 4)]
    assert torch.equal(sagittal[2, 0, :, 3], (torch.arange(8) / 7).flip(0))
    assert torch.equal(coronal[3, 0, :, 2], (torch.arange(8) / 7).flip(0))
    assert axial[4, 0, 2, 2] == volume[0, 2, 3, 4]


@pytest.mark.parametrize("side", [1, 2, 8, 9, 10, 17, 32, 48, 200])
def test_slices_are_few_even_and_hold_the_middle_one(side):
    volume = torch.arange(side).view(1, 1, 1, side).float()

    shown = planes(volume)[2].flatten().tolist()

    assert len(shown) <= N_SLICES
    assert side // 2 in shown
    assert shown[len(shown) // 2] == side // 2
    assert len({b - a for a, b in pairwise(shown)}) <= 1


def test_strip_holds_the_slices_one_under_the_other():
    stack = torch.rand(3, 1, 4, 5)

    assert torch.equal(strip(stack)[:, 4:8], stack[1])


@pytest.mark.parametrize(("channels", "n_planes"), [(1, 1), (2, 2), (3, 1), (4, 4)])
def test_channels_that_are_no_colours_are_shown_one_by_one(channels, n_planes):
    image = torch.rand(channels, 5, 5)

    assert len(planes(image)) == n_planes
    assert all(plane.shape[1] in (1, 3) for plane in planes(image))


def test_difference_is_white_red_and_blue():
    training = torch.full((1, 1, 5), 0.5)
    synthetic = training + torch.tensor([0, 1, -1, 0.5, -0.5]) * DIFFERENCE_RANGE

    pixels = decoded(difference_picture(synthetic, training))[0]

    white, red, blue, pink, pale = map(tuple, pixels.tolist())
    assert white == (255, 255, 255)
    assert red == (255, 0, 0)
    assert blue == (0, 0, 255)
    assert pink[0] == 255
    assert 120 < pink[1] < 135
    assert pale[2] == 255


def test_values_outside_the_range_do_not_wrap_around():
    pixels = decoded(picture(torch.tensor([[[-0.5, 1.5, torch.nan]]])))

    assert pixels.tolist() == [[0, 255, 0]]


@pytest.mark.parametrize("part", [[(0.5, 1.0), (0.25, 0.75)], [(0.0, 0.5), (0.5, 1.0), (0.25, 0.75)]])
def test_frames_lie_round_the_part_in_each_picture(part):
    sides = [8] * len(part)
    image = torch.zeros(1, *sides)
    image[(0, *[slice(round(8 * begin), round(8 * end)) for begin, end in part])] = 1

    stacks, boxes = planes(image), frames(part)

    assert len(stacks) == len(boxes)
    for stack, frame in zip(stacks, boxes, strict=True):
        rows, columns = (8 * frame["top"] / 100, 8 * frame["left"] / 100)
        inside = torch.zeros(8, 8, dtype=torch.bool)
        inside[
            round(rows) : round(rows + 0.08 * frame["height"]), round(columns) : round(columns + 0.08 * frame["width"])
        ] = True
        assert torch.equal(stack.amax(dim=(0, 1)) > 0, inside)
