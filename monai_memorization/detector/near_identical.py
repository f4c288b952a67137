# SPDX-License-Identifier: Apache-2.0
"""Near-identical pairs: the same picture but for a flip and the scale of its intensities, without any encoder."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, combinations
from typing import NamedTuple

import torch
from torch import Tensor

from monai_memorization.detector.embeddings import THUMBNAIL_SIDES, Embeddings
from monai_memorization.detector.neighbors import nearest
from monai_memorization.detector.similarity import spread_out
from monai_memorization.images.preparation import Preparation
from monai_memorization.ranks import current_ranks

CORRELATION = 0.999
# averaging removes what differs most between near-identical images, so their thumbnails are more alike than this
THUMBNAIL_CORRELATION = 0.995
N_CANDIDATES = 3
FAINT = 1e-6


def near_identical(query: Embeddings, reference: Embeddings, preparation: Preparation) -> tuple[Tensor, Tensor]:
    """Find the images whose pixels correlate with a reference image at 0.999 or more after the best flip.

    Thumbnails narrow the search down to a few candidates for each flip; their images are read again.

    Args:
        query: N images.
        reference: M images.
        preparation: as both were prepared.

    Returns:
        Correlation with a reference image, 0 where there is none, float64 (N,), and its index or -1, int64 (N,).
    """
    agreement = torch.zeros(len(query), dtype=torch.float64)
    index = torch.full((len(query),), -1)
    ranks = current_ranks()
    own = ranks.rows(len(query))
    for candidate in _candidates(query, reference, preparation, N_CANDIDATES):
        if not own.start <= candidate.row < own.stop or index[candidate.row] >= 0:
            continue
        if (value := _agreement(candidate, query, reference, preparation)) >= CORRELATION:
            agreement[candidate.row], index[candidate.row] = value, candidate.column
    agreement, index = ranks.gather_rows(agreement[own], index[own])
    return agreement, index


def near_identical_pairs(images: Embeddings, preparation: Preparation) -> dict[tuple[int, int], float]:
    """Find near-identical pairs within a set, among the few most similar of each image.

    Args:
        images: n images.
        preparation: as they were prepared.

    Returns:
        Correlation of each pair; the lower index comes first.
    """
    ranks = current_ranks()
    own = ranks.rows(len(images))
    pairs: dict[tuple[int, int], float] = {}
    for candidate in _candidates(images, images, preparation, N_CANDIDATES + 1):  # one of them is the image itself
        pair = min(candidate.row, candidate.column), max(candidate.row, candidate.column)
        if own.start <= candidate.row < own.stop and pair[0] < pair[1] and pair not in pairs:
            value = _agreement(candidate, images, images, preparation)
            if value >= CORRELATION:
                pairs[pair] = value
    return {pair: value for found in reversed(ranks.gather(pairs)) for pair, value in found.items()}


def flips(dimension: int) -> list[tuple[int, ...]]:
    """Return the axes of a batch, (B, C, *spatial), that each of the 2^d mirror images reverses."""
    axes = range(2, dimension + 2)
    return list(chain.from_iterable(combinations(axes, n) for n in range(dimension + 1)))


def correlation(first: Tensor, second: Tensor) -> float:
    """Return the Pearson correlation of two images of one shape over all their values; 0 for a constant one."""
    first, second = first.double().flatten(), second.double().flatten()
    first, second = first - first.mean(), second - second.mean()
    return float(first @ second / (first.norm() * second.norm()).clamp_min(1e-12))


class _Candidate(NamedTuple):
    row: int
    column: int
    flip: tuple[int, ...]


def _candidates(query: Embeddings, reference: Embeddings, preparation: Preparation, k: int) -> Iterator[_Candidate]:
    """Yield pairs whose thumbnails agree, flip by flip and the most similar of each image first."""
    dimension = len(preparation.image_size)
    grid = [len(query), preparation.channels] + [min(THUMBNAIL_SIDES[dimension], n) for n in preparation.image_size]
    thumbnails = query.thumbnails.view(grid)
    k, searched = min(k, len(reference)), spread_out(reference.thumbnails, FAINT).to(reference.device)
    for flip in flips(dimension):
        flipped = spread_out(thumbnails.flip(flip).flatten(1), FAINT).to(reference.device)
        similarity, index = (found.cpu() for found in nearest(flipped, searched, k))
        for row, column in (similarity >= THUMBNAIL_CORRELATION).nonzero().tolist():
            yield _Candidate(row, int(index[row, column]), flip)


def _agreement(candidate: _Candidate, query: Embeddings, reference: Embeddings, preparation: Preparation) -> float:
    """Read both images again and correlate their pixels."""
    image = preparation(query.images.paths[candidate.row]).flip([axis - 1 for axis in candidate.flip])
    return correlation(image, preparation(reference.images.paths[candidate.column]))
