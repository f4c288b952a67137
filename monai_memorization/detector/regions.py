# SPDX-License-Identifier: Apache-2.0
"""Copies of a part: windows of an image that hold what one training image shows in the same place.

One embedding of the whole image hardly sees that a half or a quarter of it was copied. So the fine structure is cut
into windows of half its sides, and each is looked for among the same windows of the training set.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor

from monai_memorization.detector.candidates import excess, fisher_z, nearest_patients
from monai_memorization.detector.similarity import spread_out

# along each axis: the first half, the middle, the second half
PLACES = 3
# mean square of a window, as a share of the image's, below which it shows nothing, as where there is air
EMPTY = 0.1
FAINT = 1e-3


def regional_excess(
    structure: Tensor,
    training_structure: Tensor,
    patient_ids: Sequence[str],
    k: int,
    device: str | torch.device = "cpu",
) -> tuple[Tensor, Tensor, Tensor]:
    """Return how far the training image that one window is most like stands out from those of other patients.

    Args:
        structure: fine structure, (N, C, *sides).
        training_structure: fine structure of the training set, (n_T, C, *sides).
        patient_ids: whose each training image is, n_T.
        k: number of candidates of each window.
        device: where to search.

    Returns:
        The largest excess over the windows, at least 0, in Fisher's z, float64 (N,); the position of its training
        image, int64 (N,); the window, int64 (N,), as :func:`place` counts them.
    """
    structure = structure.float()
    whole = structure.flatten(1).square().mean(dim=1)
    excesses, indices = [], []
    for window in range(PLACES ** (structure.dim() - 2)):
        own, of_training = _cut(structure, window), _cut(training_structure, window).float()
        shown = own.square().mean(dim=1) > EMPTY * whole
        value, index = whole.new_zeros(len(own), dtype=torch.float64), torch.zeros(len(own), dtype=torch.int64)
        own, of_training = (spread_out(values, FAINT) for values in (own[shown], of_training))
        similarity, candidates = nearest_patients(own, of_training, patient_ids, k, device)
        value[shown], index[shown] = excess(fisher_z(similarity), candidates)
        excesses.append(value)
        indices.append(index)
    largest, window_of = torch.stack(excesses, dim=1).max(dim=1)
    return largest, torch.stack(indices, dim=1).gather(1, window_of[:, None])[:, 0], window_of


def place(window: int, dimension: int) -> list[tuple[float, float]]:
    """Return where a window begins and ends along each axis, as shares of the side."""
    return [(start / 4, start / 4 + 0.5) for start in list(product(range(PLACES), repeat=dimension))[window]]


def _cut(structure: Tensor, window: int) -> Tensor:
    """Return the values of one window of each image, (N, E)."""
    for axis, (start, _) in enumerate(place(window, structure.dim() - 2), start=2):
        side = structure.shape[axis]
        length = max(1, side // 2)
        structure = structure.narrow(axis, round(2 * start * (side - length)), length)
    return structure.flatten(1)
