# SPDX-License-Identifier: Apache-2.0
"""The score of an image: how far the training image that it is most like stands out from those of other patients."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from monai_memorization.detector.embeddings import Embeddings, embed_batch
from monai_memorization.detector.neighbors import nearest, standardize
from monai_memorization.detector.registration import agreement, fine_structure
from monai_memorization.ranks import current_ranks

N_CANDIDATES = 4
BATCH_SIZE = 64
# correlation of embeddings from which two training images are one picture, whoever's they are said to be
REPEATED = 0.99
# of an image, among which candidates are looked for; more films of one patient are rare, and cost memory
MOST_NEIGHBOURS = 1024


def copy_scores(
    vectors: Tensor,
    structure: Tensor,
    training_vectors: Tensor,
    training_structure: Tensor,
    patient_ids: Sequence[str],
    k: int = N_CANDIDATES,
) -> tuple[Tensor, Tensor]:
    """Score images by how far the best of their candidates stands out from the others.

    The candidates are the nearest training images by embedding, one of each patient. A candidate's likeness is the
    mean, in Fisher's z, of two correlations: that of the embeddings and that of the registered images. The score is the
    largest likeness less the median of the others', as a correlation again: an image that is like everybody, as one
    without detail is, is a copy of nobody. It depends on the image and on the training set alone, so scores of
    exchangeable images are exchangeable.

    Args:
        vectors: embeddings, (N, D).
        structure: fine structure of the same images, (N, C, *sides).
        training_vectors: embeddings of the training set, (n_T, D).
        training_structure: fine structure of the training set, (n_T, C, *sides).
        patient_ids: whose each training image is, n_T.
        k: number of candidates; fewer where the training set has fewer patients.

    Returns:
        Scores in [0, 1], float32 (N,), and the position of the training image that gives each, int64 (N,).
    """
    similarity, index = nearest_patients(vectors, training_vectors, patient_ids, k)
    ranks = current_ranks()
    # whole batches are divided, as the last bits can depend on the batch
    own = ranks.rows(len(structure), BATCH_SIZE)
    parts = [
        agreement(structure[batch].float(), training_structure[index[batch].clamp_min(0)].float())
        for batch in torch.arange(own.start, own.stop).split(BATCH_SIZE)
        if len(batch) > 0
    ]
    (agreements,) = ranks.gather_rows(torch.cat([similarity[:0], *parts]))
    limit = 1 - 1e-9  # z of 1 is infinite
    likeness = torch.stack([similarity, agreements]).double().clamp(-limit, limit).atanh().mean(dim=0)
    likeness = likeness.masked_fill(index < 0, float("nan"))
    best, column = likeness.nan_to_num(-torch.inf).max(dim=1)
    others = likeness.scatter(1, column[:, None], float("nan")).nanmedian(dim=1).values
    # the only patient of a training set has nobody to be told from
    score = (best - others.nan_to_num(0.0)).clamp_min(0).tanh().float()
    return score, index.gather(1, column[:, None])[:, 0]


def nearest_patients(
    vectors: Tensor, training_vectors: Tensor, patient_ids: Sequence[str], k: int = N_CANDIDATES
) -> tuple[Tensor, Tensor]:
    """Find the nearest training image of each of the k nearest patients.

    An image that repeats a nearer one, with a correlation of embeddings of at least ``REPEATED``, is passed over too: a
    picture that the training set holds under several names would otherwise not stand out.

    Args:
        vectors: embeddings, (N, D).
        training_vectors: embeddings of the training set, (n_T, D).
        patient_ids: whose each training image is, n_T.
        k: how many patients.

    Returns:
        Correlations, largest first, float32 (N, k), 0 where there is no further patient, and positions in the
        training set, -1 there, int64 (N, k).
    """
    numbers = {patient: number for number, patient in enumerate(dict.fromkeys(patient_ids))}
    patients = torch.tensor([numbers[patient] for patient in patient_ids])
    reference = standardize(training_vectors)
    similarity, index = vectors.new_zeros(len(vectors), k), torch.full((len(vectors), k), -1)
    most = min(len(reference), MOST_NEIGHBOURS)
    rows, n = torch.arange(len(vectors)), min(k, most)
    while len(rows) > 0:
        values, neighbours = nearest(vectors[rows], training_vectors, n)
        new = ~_repeat(neighbours, reference, patients)
        columns = (~new).byte().argsort(dim=1, stable=True)[:, :k]
        found = new.gather(1, columns)
        similarity[rows, : columns.shape[1]] = values.gather(1, columns).where(found, 0)
        index[rows, : columns.shape[1]] = neighbours.gather(1, columns).where(found, -1)
        if n == most:
            break
        rows, n = rows[found.sum(dim=1) < k], min(4 * n, most)
    return similarity, index


def _repeat(neighbours: Tensor, reference: Tensor, patients: Tensor) -> Tensor:
    """Tell which neighbours (N, n), nearest first, are of the patient of a nearer one or repeat it, bool (N, n)."""
    parts = []
    for part in neighbours.split(max(1, (1 << 24) // (neighbours.shape[1] * reference.shape[1]))):
        near, of = reference[part], patients[part]
        alike = (near @ near.mT >= REPEATED) | (of[:, :, None] == of[:, None, :])
        parts.append(alike.tril(-1).any(dim=2))
    return torch.cat([neighbours[:0].bool(), *parts])


def score_embedded(images: Embeddings, training: Embeddings) -> tuple[Tensor, Tensor]:
    """Return the scores and matches of a set, as :func:`copy_scores`."""
    return score_vectors(images.vectors, images.structure, training)


def score_prepared(
    encoder: nn.Module, images: Tensor, training: Embeddings, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return the scores and matches of prepared images, (N, C, *image_size), as :func:`copy_scores`."""
    return score_vectors(embed_batch(encoder, images, device), fine_structure(images), training)


def score_vectors(vectors: Tensor, structure: Tensor, training: Embeddings) -> tuple[Tensor, Tensor]:
    """Return the scores and matches of embeddings and fine structure, as :func:`copy_scores`."""
    return copy_scores(vectors, structure, training.vectors, training.structure, training.images.patient_ids)
