# SPDX-License-Identifier: Apache-2.0
"""The amplitude spectrum of an image is kept by mirroring, nearly kept by shifts, and its own."""

from __future__ import annotations

import pytest
import torch
from test_registration import SIZES, textured

from monai_memorization.detector import degradations
from monai_memorization.detector.neighbors import nearest
from monai_memorization.detector.registration import fine_structure
from monai_memorization.detector.spectra import amplitudes


@pytest.mark.parametrize("dimension", [2, 3])
def test_mirrored_image_has_the_same_amplitudes(dimension):
    structure = fine_structure(textured(3, SIZES[dimension]))
    for axis in range(2, 2 + dimension):
        torch.testing.assert_close(amplitudes(structure.flip(axis)), amplitudes(structure), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dimension", [2, 3])
def test_shifted_image_is_nearest_to_itself(dimension):
    images = textured(30, SIZES[dimension])
    reference = amplitudes(fine_structure(images))
    for share in (0.05, 0.1):
        _, index = nearest(amplitudes(fine_structure(degradations.shift(images, share))), reference)
        assert (index[:, 0] == torch.arange(30)).double().mean() > 0.9


def test_amplitudes_are_those_of_the_transform_by_its_sum():
    structure = torch.rand(1, 1, 5, 4, generator=torch.Generator().manual_seed(0)).double()
    window = [torch.sin(torch.pi * torch.arange(1, n + 1).double() / (n + 1)) ** 2 for n in (5, 4)]
    values = structure[0, 0] * window[0][:, None] * window[1]

    def amplitude(u, v):
        phases = torch.outer(
            torch.exp(-2j * torch.pi * u * torch.arange(5).double() / 5),
            torch.exp(-2j * torch.pi * v * torch.arange(4).double() / 4),
        )
        return abs(complex((values * phases).sum()))

    expected = [
        torch.tensor(sum(amplitude(a, b) for a in (u, -u) for b in (v, -v)) / 4).log1p()
        for u in range(2)
        for v in range(2)
    ]
    torch.testing.assert_close(amplitudes(structure)[0].double(), torch.stack(expected).double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("sides", [(1, 7), (2, 2, 2), (32, 32)])
def test_any_structure_has_finite_amplitudes(sides):
    for structure in (torch.zeros(2, 1, *sides), torch.ones(2, 1, *sides)):
        assert amplitudes(structure).isfinite().all()
    assert len(amplitudes(torch.zeros(0, 1, *sides))) == 0
