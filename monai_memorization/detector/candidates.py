# SPDX-License-Identifier: Apache-2.0
"""Candidates: the nearest training image of each of the nearest patients, and how far the best of them stands out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from monai_memorization.detector.neighbors import nearest
from monai_memorization.detector.similarity import standardize

N_CANDIDATES = 4
# correlation from which two training images are one picture, whoever's they are said to be
REPEATED = 0.99
# of an image, among which candidates are looked for; more images of one patient are rare, and cost memory
MOST_NEIGHBOURS = 1024
# elements of a temporary array (64 MB)
_MAX_ELEMENTS = 1 << 24


def nearest_patients(
    vectors: Tensor,
    training_vectors: Tensor,
    patient_ids: Sequence[str],
    k: int = N_CANDIDATES,
    device: str | torch.device = "cpu",
) -> tuple[Tensor, Tensor]:
    """Find the nearest training image of each of the k nearest patients.

    Going down from the nearest, an image is passed over if it is of the patient of one that was taken, or repeats it,
    with a correlation of at least ``REPEATED``: a picture that the training set holds under several names would
    otherwise not stand out from itself.

    Args:
        vectors: what the images are compared by, (N, D).
        training_vectors: the same of the training set, (n_T, D).
        patient_ids: whose each training image is, n_T.
        k: how many patients.
        device: where to search.

    Returns:
        Correlations, largest first, float32 (N, k), 0 where there is no further patient, and positions in the
        training set, int64 (N, k), -1 there.
    """
    patients = number_patients(patient_ids)
    reference = standardize(training_vectors)
    similarity, index = vectors.new_zeros(len(vectors), k), torch.full((len(vectors), k), -1)
    most, searched = min(len(reference), MOST_NEIGHBOURS), training_vectors.to(device)
    rows, n = torch.arange(len(vectors)), min(k, most)
    while len(rows) > 0:
        values, neighbours = (found.cpu() for found in nearest(vectors[rows].to(device), searched, n))
        columns = _take(neighbours, reference, patients, k)
        found = columns >= 0
        similarity[rows] = values.gather(1, columns.clamp_min(0)).where(found, 0)
        index[rows] = neighbours.gather(1, columns.clamp_min(0)).where(found, -1)
        if n == most:
            break
        rows, n = rows[~found.all(dim=1)], min(4 * n, most)
    return similarity, index


def number_patients(patient_ids: Sequence[str]) -> Tensor:
    """Return a number for each image, equal for images of one patient, int64 (n,)."""
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(patient_ids))}
    return torch.tensor([numbers[patient] for patient in patient_ids])


def excess(likeness: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return by how much the best candidate exceeds the median of the others.

    The only patient of a training set has nobody to be held against, and exceeds 0.

    Args:
        likeness: of the candidates, in Fisher's z, (N, k).
        index: their positions in the training set, -1 where there is none, (N, k).

    Returns:
        The excess, at least 0, (N,), and the position of the best candidate, int64 (N,).
    """
    likeness = likeness.masked_fill(index < 0, float("nan"))
    best, column = likeness.nan_to_num(-torch.inf).max(dim=1)
    others = likeness.scatter(1, column[:, None], float("nan")).nanmedian(dim=1).values
    return (best - others.nan_to_num(0.0)).clamp_min(0), index.gather(1, column[:, None])[:, 0]


def fisher_z(correlation: Tensor) -> Tensor:
    """Return Fisher's z of correlations, float64; those of 1 and -1 are cut, where it is infinite."""
    limit = 1 - 1e-9
    return correlation.double().clamp(-limit, limit).atanh()


def _take(neighbours: Tensor, reference: Tensor, patients: Tensor, k: int) -> Tensor:
    """Return the columns of k different pictures of different patients, -1 where there are no more, (N, k)."""
    taken = []
    for part in neighbours.split(max(1, _MAX_ELEMENTS // (neighbours.shape[1] * reference.shape[1]))):
        near, of, rows = reference[part], patients[part], torch.arange(len(part))
        free, columns = torch.ones_like(part, dtype=torch.bool), []
        for _ in range(k):
            column = free.byte().argmax(dim=1)  # the first that is free
            columns.append(column.where(free.any(dim=1), -1))
            repeats = (near @ near[rows, column, :, None])[..., 0] >= REPEATED
            free &= ~(repeats | (of == of[rows, column, None]))
        taken.append(torch.stack(columns, dim=1))
    return torch.cat([neighbours.new_empty(0, k), *taken])
