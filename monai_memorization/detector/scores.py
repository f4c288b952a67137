# SPDX-License-Identifier: Apache-2.0
"""The score of an image: how much it is like the training image of which it is most likely a copy."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monai_memorization.detector.embeddings import Embeddings, embed_batch
from monai_memorization.detector.neighbors import nearest
from monai_memorization.detector.registration import agreement, fine_structure
from monai_memorization.ranks import current_ranks

N_CANDIDATES = 4
BATCH_SIZE = 64


def copy_scores(
    vectors: Tensor, structure: Tensor, training_vectors: Tensor, training_structure: Tensor, k: int = N_CANDIDATES
) -> tuple[Tensor, Tensor]:
    """Score images by their nearest training images, registered.

    The k nearest by embedding are registered. The score is the largest mean, in Fisher's z, of two correlations: that
    of the embeddings and that of the registered images. It depends on the image and on the training set alone, so
    scores of exchangeable images are exchangeable.

    Args:
        vectors: embeddings, (N, D).
        structure: fine structure of the same images, (N, C, *sides).
        training_vectors: embeddings of the training set, (n_T, D).
        training_structure: fine structure of the training set, (n_T, C, *sides).
        k: number of candidates; all of a smaller training set.

    Returns:
        Scores in [-1, 1], float32 (N,), and the position of the training image that gives each, int64 (N,).
    """
    similarity, index = nearest(vectors, training_vectors, min(k, len(training_vectors)))
    ranks = current_ranks()
    # whole batches are divided, as the last bits can depend on the batch
    own = ranks.rows(len(structure), BATCH_SIZE)
    parts = [
        agreement(structure[batch].float(), training_structure[index[batch]].float())
        for batch in torch.arange(own.start, own.stop).split(BATCH_SIZE)
        if len(batch) > 0
    ]
    (agreements,) = ranks.gather_rows(torch.cat([similarity[:0], *parts]))
    limit = 1 - 1e-9  # z of 1 is infinite
    z = torch.stack([similarity, agreements]).double().clamp(-limit, limit).atanh().mean(dim=0)
    score, column = z.tanh().float().max(dim=1)
    return score, index.gather(1, column[:, None])[:, 0]


def score_embedded(images: Embeddings, training: Embeddings) -> tuple[Tensor, Tensor]:
    """Return the scores and matches of a set, as :func:`copy_scores`."""
    return copy_scores(images.vectors, images.structure, training.vectors, training.structure)


def score_prepared(
    encoder: nn.Module, images: Tensor, training: Embeddings, device: str | torch.device = "cpu"
) -> tuple[Tensor, Tensor]:
    """Return the scores and matches of prepared images, (N, C, *image_size), as :func:`copy_scores`."""
    return copy_scores(
        embed_batch(encoder, images, device), fine_structure(images), training.vectors, training.structure
    )
