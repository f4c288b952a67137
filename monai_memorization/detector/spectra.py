# SPDX-License-Identifier: Apache-2.0
"""Amplitude spectra: what of an image stays as it is when the image is shifted or mirrored."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = 1024  # transformed at a time


def amplitudes(structure: Tensor) -> Tensor:
    """Return log(1 + amplitude) of the lower spatial frequencies, (N, E), E a quarter or an eighth of the values.

    A shift changes the phases of a Fourier transform alone, and mirroring an axis exchanges frequencies of both signs,
    over which the mean is taken. A Hann window fades out the border, where a shift brings in and takes away.

    Args:
        structure: fine structure, (N, C, *sides).
    """
    some = (
        structure if len(structure) > 0 else structure.new_zeros(1, *structure.shape[1:])
    )  # none cannot be transformed
    return torch.cat([_amplitudes(part.float()) for part in some.split(_ROWS)])[: len(structure)]


def _amplitudes(structure: Tensor) -> Tensor:
    axes = list(range(2, structure.dim()))
    for axis in axes:
        side = structure.shape[axis]
        window = torch.hann_window(side + 2, periodic=False, device=structure.device)[1:-1]
        structure = structure * window.view(-1, *[1] * (structure.dim() - 1 - axis))
    spectrum = torch.fft.fftn(structure, dim=axes).abs()
    for axis in axes:
        both = (spectrum + spectrum.flip(axis).roll(1, axis)) / 2
        spectrum = both.narrow(axis, 0, max(1, both.shape[axis] // 2))
    return spectrum.log1p().flatten(1)
