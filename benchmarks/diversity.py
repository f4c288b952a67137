# SPDX-License-Identifier: Apache-2.0
"""Diversity of a set of images: how alike two images drawn at random are, by MS-SSIM.

As usual for generators of medical images: the mean over random pairs of one set, high where images are all alike.
MONAI's metric has the five scales of Wang et al. 2003, for which the images of the study are too small.
"""

from __future__ import annotations

import torch
from monai.metrics import MultiScaleSSIMMetric
from torch import Tensor

KERNEL = 11
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def mean_ms_ssim(images: Tensor, n_pairs: int = 1000, seed: int = 0) -> float:
    """Return the mean MS-SSIM over random pairs of different images, with as many scales as the images allow.

    Args:
        images: (n, C, *spatial) in [0, 1], n >= 2, no side shorter than 11.
        n_pairs: number of pairs.
        seed: of the pairs.
    """
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(len(images), (n_pairs,), generator=generator)
    second = (first + torch.randint(1, len(images), (n_pairs,), generator=generator)) % len(images)
    weights = scale_weights(min(images.shape[2:]))
    metric = MultiScaleSSIMMetric(images.dim() - 2, kernel_size=KERNEL, weights=weights)
    for one, other in zip(first.split(64), second.split(64), strict=True):
        metric(images[one].float(), images[other].float())
    return float(metric.aggregate())


def scale_weights(side: int) -> tuple[float, ...]:
    """Return the weights of the scales at which images of this shortest side still hold the kernel; they sum to 1."""
    # each scale halves the sides; MONAI asks for a little more, the square of the number of scales before the last
    n = sum(side // max(2**i, i**2) >= KERNEL for i in range(len(WEIGHTS)))
    return tuple(weight / sum(WEIGHTS[:n]) for weight in WEIGHTS[:n])
