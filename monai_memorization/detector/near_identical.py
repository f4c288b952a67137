# SPDX-License-Identifier: Apache-2.0
"""Near-identical pairs: the same picture but for a flip and the scale of its intensities, without any encoder."""

from __future__ import annotations

from itertools import chain, combinations

import torch
from torch import Tensor

from monai_memorization.detector.embeddings import THUMBNAIL_SIDES, Embeddings
from monai_memorization.detector.neighbors import nearest
from monai_memorization.images.preparation import Preparation

CORRELATION = 0.999
# averaging removes what differs most between near-identical images, so their thumbnails are more alike than this
THUMBNAIL_CORRELATION = 0.995
N_CANDIDATES = 3


def near_identical(synthetic: Embeddings, training: Embeddings, preparation: Preparation) -> Tensor:
    """Find the synthetic images whose pixels correlate with a training image at 0.999 or more after the best flip.

    Thumbnails narrow the search down to a few candidates for each flip; their images are read again.

    Args:
        synthetic: n_S images.
        training: n_T images.
        preparation: as both were prepared.

    Returns:
        Index of the training image, or -1 where there is none, int64 (n_S,).
    """
    found = torch.full((len(synthetic),), -1)
    dimension = len(preparation.image_size)
    grid = [len(synthetic), preparation.channels] + [min(THUMBNAIL_SIDES[dimension], n) for n in preparation.image_size]
    thumbnails = synthetic.thumbnails.view(grid)
    k = min(N_CANDIDATES, len(training))
    for flip in flips(dimension):
        similarity, index = nearest(_spread_out(thumbnails.flip(flip).flatten(1)), _spread_out(training.thumbnails), k)
        for row, column in (similarity >= THUMBNAIL_CORRELATION).nonzero().tolist():
            if found[row] < 0:
                match = int(index[row, column])
                image = preparation(synthetic.images.paths[row]).flip([axis - 1 for axis in flip])
                if correlation(image, preparation(training.images.paths[match])) >= CORRELATION:
                    found[row] = match
    return found


def flips(dimension: int) -> list[tuple[int, ...]]:
    """Return the axes of a batch, (B, C, *spatial), that each of the 2^d mirror images reverses."""
    axes = range(2, dimension + 2)
    return list(chain.from_iterable(combinations(axes, n) for n in range(dimension + 1)))


def correlation(first: Tensor, second: Tensor) -> float:
    """Return the Pearson correlation of two images of one shape over all their values; 0 for a constant one."""
    first, second = first.double().flatten(), second.double().flatten()
    first, second = first - first.mean(), second - second.mean()
    return float(first @ second / (first.norm() * second.norm()).clamp_min(1e-12))


def _spread_out(thumbnails: Tensor) -> Tensor:
    """Add a faint fixed pattern, lest a thumbnail be constant and its correlation undefined."""
    return thumbnails + 1e-6 * torch.linspace(-1, 1, thumbnails.shape[1])
