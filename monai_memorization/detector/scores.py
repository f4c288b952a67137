# SPDX-License-Identifier: Apache-2.0
"""The score of an image: how far the training image that it is most like stands out from those of other patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from monai_memorization.detector.candidates import N_CANDIDATES, excess, fisher_z, nearest_patients
from monai_memorization.detector.embeddings import Embeddings, embed_batch
from monai_memorization.detector.regions import regional_excess
from monai_memorization.detector.registration import agreement, fine_structure
from monai_memorization.ranks import current_ranks

BATCH_SIZE = 64
# an excess of one of many windows says less than one of the whole image
REGIONAL_WEIGHT = 0.6


class Scores(NamedTuple):
    """What the detector says of N images.

    Args:
        score: in [0, 1], float32 (N,); 1 is the same picture.
        match: the training image that gives it, int64 (N,).
        window: the part of the image that matches, as :func:`monai_memorization.detector.regions.place` counts them,
            -1 for the whole, int64 (N,).
    """

    score: Tensor
    match: Tensor
    window: Tensor


def copy_scores(
    vectors: Tensor,
    structure: Tensor,
    training_vectors: Tensor,
    training_structure: Tensor,
    patient_ids: Sequence[str],
    k: int = N_CANDIDATES,
    device: str | torch.device = "cpu",
) -> Scores:
    """Score images by how far the best of their candidates stands out from the others.

    The candidates are the nearest training images by embedding, one of each patient. A candidate's likeness is the
    mean, in Fisher's z, of two correlations: that of the embeddings and that of the registered images. Its excess is
    that over the median of the others': an image that is like everybody, as one without detail is, is a copy of nobody.
    The largest excess of a part of the image counts by ``REGIONAL_WEIGHT``. The larger of both is the score, as a
    correlation again. It depends on the image and on the training set alone, so scores of exchangeable images are
    exchangeable.

    Args:
        vectors: embeddings, (N, D).
        structure: fine structure of the same images, (N, C, *sides).
        training_vectors: embeddings of the training set, (n_T, D).
        training_structure: fine structure of the training set, (n_T, C, *sides).
        patient_ids: whose each training image is, n_T.
        k: number of candidates; fewer where the training set has fewer patients.
        device: where to search and register; what goes in and comes out is on the CPU.

    Returns:
        Score, match and window of each image.
    """
    similarity, index = nearest_patients(vectors, training_vectors, patient_ids, k, device)
    ranks = current_ranks()
    # whole batches are divided, as the last bits can depend on the batch
    own = ranks.rows(len(structure), BATCH_SIZE)
    parts = [
        _agreement_on(device, structure[batch], training_structure[index[batch].clamp_min(0)])
        for batch in torch.arange(own.start, own.stop).split(BATCH_SIZE)
        if len(batch) > 0
    ]
    (agreements,) = ranks.gather_rows(torch.cat([similarity[:0], *parts]))
    whole, match = excess((fisher_z(similarity) + fisher_z(agreements)) / 2, index)
    part, part_match, window = regional_excess(structure, training_structure, patient_ids, k, device)
    partial = REGIONAL_WEIGHT * part > whole
    score = torch.maximum(whole, REGIONAL_WEIGHT * part).tanh().float()
    return Scores(score, part_match.where(partial, match), window.where(partial, -1))


def score_embedded(images: Embeddings, training: Embeddings) -> Scores:
    """Return the scores of a set, as :func:`copy_scores`."""
    return score_vectors(images.vectors, images.structure, training)


def score_prepared(
    encoder: nn.Module, images: Tensor, training: Embeddings, device: str | torch.device = "cpu"
) -> Scores:
    """Return the scores of prepared images, (N, C, *image_size), as :func:`copy_scores`."""
    batches = images.split(BATCH_SIZE)
    vectors = torch.cat([embed_batch(encoder, batch, device) for batch in batches])
    return score_vectors(vectors, torch.cat([fine_structure(batch) for batch in batches]), training)


def score_vectors(vectors: Tensor, structure: Tensor, training: Embeddings) -> Scores:
    """Return the scores of embeddings and fine structure, as :func:`copy_scores`."""
    patient_ids = training.images.patient_ids
    return copy_scores(vectors, structure, training.vectors, training.structure, patient_ids, device=training.device)


def _agreement_on(device: str | torch.device, query: Tensor, candidates: Tensor) -> Tensor:
    return agreement(query.to(device).float(), candidates.to(device).float()).cpu()
