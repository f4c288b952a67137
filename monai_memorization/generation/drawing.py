# SPDX-License-Identifier: Apache-2.0
"""Images straight from a sampler, in the form in which every image of an audit is compared, and cut off nowhere."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.utils import convert_to_tensor
from torch import Tensor

from monai_memorization.errors import InputError
from monai_memorization.generation.latents import beyond
from monai_memorization.generation.sampling import (
    GeneratorSampler,
    LatentDiffusionSampler,
    PixelDiffusionSampler,
    Sampler,
)
from monai_memorization.images.preparation import Preparation
from monai_memorization.images.sets import ImageSet


def check_value_range(images: ImageSet, sampler: Sampler, clip: Sequence[float] | None) -> None:
    """Refuse a sampler that would cut off what the generator draws: copies without their dark half are none.

    Args:
        images: what the generator is trained on, as it sees it, written as NumPy.
        sampler: one of ours; another may return images between other values than it was trained on.
        clip: as of the handler.

    Raises:
        InputError: if most of some images reach beyond what the sampler was told.
    """
    if not isinstance(sampler, GeneratorSampler | LatentDiffusionSampler | PixelDiffusionSampler):
        return
    looked_at = images.paths[:: len(images) // 16 + 1]
    ends = np.median([np.quantile(np.load(path, allow_pickle=False), (0.01, 0.99)) for path in looked_at], axis=0)
    ends = ends if clip is None else ends.clip(*clip)
    if beyond(ends, sampler.value_range):
        low, high = map(float, sampler.value_range)
        raise InputError(
            f"sampler: its value_range is [{low:g}, {high:g}], and what is drawn is cut off there, but the training "
            f"images reach from about {ends[0]:.3g} to {ends[1]:.3g}; give what they are scaled to as value_range"
        )


def prepare_drawn(images: Any, seeds: Sequence[int], preparation: Preparation) -> Tensor:
    """Check what a sampler returned, and prepare it as images of files are prepared.

    A constant image, which an untrained model may draw, is prepared as all 0: it cannot be a copy.

    Args:
        images: what the sampler returned for these seeds; should be (n, C, *spatial).
        seeds: n of them.
        preparation: of the images that they are compared with.

    Returns:
        float32 (n, channels, *image_size) in [0, 1], on the CPU.

    Raises:
        InputError: if it is of another shape, or not finite.
    """
    drawn = f"sampler: for {len(seeds)} seeds from {seeds[0]} on it returned"
    try:
        batch = convert_to_tensor(images, dtype=torch.float32, device="cpu", track_meta=False)
    except (TypeError, ValueError, RuntimeError):
        batch = images
    expected = f"({len(seeds)}, {preparation.channels}, {', '.join('side' for _ in preparation.image_size)})"
    if not isinstance(batch, Tensor) or batch.dim() != len(preparation.image_size) + 2 or len(batch) != len(seeds):
        found = tuple(batch.shape) if isinstance(batch, Tensor) else type(images).__name__
        raise InputError(f"{drawn} {found}, but {expected} was expected: one image per seed, as the training set's")
    if batch.shape[1] not in (1, preparation.channels):
        raise InputError(f"{drawn} {batch.shape[1]} channels, where the training set has {preparation.channels}")
    if not torch.isfinite(batch).all():
        raise InputError(f"{drawn} NaN or infinite values; look whether the training has diverged")
    return torch.stack([_prepare(image, seed, preparation) for image, seed in zip(batch, seeds, strict=True)])


def _prepare(image: Tensor, seed: int, preparation: Preparation) -> Tensor:
    if image.min() == image.max():
        return torch.zeros(preparation.channels, *preparation.image_size)
    return preparation.prepare(image, Path(f"image of seed {seed}"))
