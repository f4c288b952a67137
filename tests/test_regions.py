# SPDX-License-Identifier: Apache-2.0
"""Windows are where :func:`place` says, and find what was copied there."""

from __future__ import annotations

import pytest
import torch

from monai_memorization.detector.regions import place, regional_excess


@pytest.mark.parametrize("sides", [(8, 12), (9, 7), (8, 8, 4)])
def test_what_is_copied_into_a_window_is_found_there(sides):
    generator = torch.Generator().manual_seed(1)
    training, images = (torch.randn(n, 1, *sides, generator=generator) for n in (30, 3 ** len(sides)))
    for window, image in enumerate(images):
        box = [
            slice(round(begin * side), round(end * side))
            for (begin, end), side in zip(place(window, len(sides)), sides, strict=True)
        ]
        image[0][tuple(box)] = training[window, 0][tuple(box)]

    value, index, window = regional_excess(images, training, [str(i) for i in range(30)], 4)

    assert window.tolist() == list(range(3 ** len(sides)))
    assert index.tolist() == list(range(3 ** len(sides)))
    assert value.min() > 1


def test_empty_windows_say_nothing():
    training, image = torch.zeros(5, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    image[..., 4:, :] = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))
    training[1:] = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(3))

    # in their upper halves it and image 0 of the training set are equally empty
    _, _, window = regional_excess(image, training, list("abcde"), 4)

    assert place(int(window[0]), 2)[0] != (0.0, 0.5)


def test_nothing_of_an_empty_image_is_a_copy():
    training = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    value, _, _ = regional_excess(torch.zeros(1, 1, 8, 8), training, list("abcd"), 4)
    assert value.tolist() == [0.0]
