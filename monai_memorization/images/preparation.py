# SPDX-License-Identifier: Apache-2.0
"""One image: read it and bring it to the form in which every image of an audit is compared."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Resize, SpatialPad
from monai.utils import convert_to_tensor
from torch import Tensor

from monai_memorization.errors import InputError, UnreadableError
from monai_memorization.images.reading import read_with_spacing
from monai_memorization.images.sets import ImageSet

PERCENTILES = (0.5, 99.5)
LONGEST_SIDE = 64
# with these the 3,000 steps on a hundred volumes take about ten minutes on two cores; larger ones learn no faster
N_VOXELS = 8_000


@dataclass(frozen=True)
class Preparation:
    """How every image of an audit is prepared, whichever set it is from.

    Intensities go from the image's own 0.5 and 99.5 percentile to [0, 1], in a volume those of each channel, since the
    sequences of an MR examination have no common unit. The size is reached by scaling with the aspect kept, then
    padding with 0; the aspect is that of the body where volume and set state voxel sizes, else that of the voxels.

    Args:
        image_size: spatial size of the result.
        channels: number of channels of the set.
        spacing: voxel size of the set of volumes, of which only the proportions count; None where it is not known.
        window: intensities that become 0 and 1, in place of the percentiles; for CT, in Hounsfield units.
        clip: intensities beyond which an image is cut off before its percentiles are taken, so that real CT and images
            of a generator that knows a range of Hounsfield units only are scaled alike; images in [0, 1] stay.
    """

    image_size: tuple[int, ...]
    channels: int = 1
    spacing: tuple[float, ...] | None = None
    window: tuple[float, float] | None = None
    clip: tuple[float, float] | None = None

    def __call__(self, path: Path) -> Tensor:
        """Return the prepared image of a file, (channels, *image_size), float32 in [0, 1]."""
        image, spacing = read_with_spacing(path)
        return self.prepare(image, path, spacing)

    def prepare(self, image: Tensor, path: Path, spacing: Sequence[float] | None = None) -> Tensor:
        """Return the prepared image of one already read, (C, *spatial); ``path`` names it in errors."""
        if image.dim() - 1 != len(self.image_size):
            raise InputError(
                f"{path}: is {_spell(image.shape[1:])}, a {image.dim() - 1}D image among {len(self.image_size)}D ones "
                f"({_spell(self.image_size)}); 2D and 3D images cannot be compared"
            )
        if len(image) not in (1, self.channels):
            raise InputError(f"{path}: has {len(image)} channels where the training set has {self.channels}")
        scaled = scale_intensities(self._cut_off(image, path), self.window)
        return self.fit(scaled.expand(self.channels, *image.shape[1:]), spacing)

    def _cut_off(self, image: Tensor, path: Path) -> Tensor:
        if self.clip is None:
            return image
        cut_off, (low, high) = image.clamp(*self.clip), self.clip
        if cut_off.min() == cut_off.max() and image.min() < image.max():
            raise InputError(
                f"clip: {low:g} to {high:g} leaves nothing of {path}, whose intensities go from {image.min():g} to "
                f"{image.max():g}; give the range in the unit of the files"
            )
        return cut_off

    def fit(self, image: Tensor, spacing: Sequence[float] | None = None) -> Tensor:
        """Scale an image, (C, *spatial), to fit ``image_size`` with its aspect kept, and pad the rest with 0."""
        sides = list(image.shape[1:])
        extents = _extent(sides, spacing, self.spacing)
        factor = min(target / extent for target, extent in zip(self.image_size, extents, strict=True))
        scaled = [
            min(target, max(1, round(extent * factor))) for target, extent in zip(self.image_size, extents, strict=True)
        ]
        if scaled == sides == list(self.image_size):
            return image.contiguous()
        mode = "bilinear" if len(scaled) == 2 else "trilinear"
        smaller = any(new < old for new, old in zip(scaled, sides, strict=True))
        resized = Resize(scaled, mode=mode, anti_aliasing=smaller)(image)
        return convert_to_tensor(SpatialPad(self.image_size)(resized), track_meta=False).clamp(0, 1)


def enlarged(preparation: Preparation, longest_side: int) -> Preparation:
    """Return the preparation of volumes whose longest side is this long, of the same proportions; flat ones stay."""
    size = preparation.image_size
    if len(size) == 2:
        return preparation
    return replace(preparation, image_size=tuple(max(1, round(side * longest_side / max(size))) for side in size))


class PrepareImaged(MapTransform):
    """MONAI dictionary transform that puts the prepared image in the place of its path.

    Args:
        keys: which items hold paths.
        image_size: as of :class:`Preparation`.
        channels: as of :class:`Preparation`.
        spacing: as of :class:`Preparation`.
        window: as of :class:`Preparation`.
        clip: as of :class:`Preparation`.
    """

    def __init__(
        self,
        keys: KeysCollection,
        image_size: Sequence[int],
        channels: int = 1,
        spacing: Sequence[float] | None = None,
        window: Sequence[float] | None = None,
        clip: Sequence[float] | None = None,
    ) -> None:
        super().__init__(keys)
        self.preparation = preparation_of(image_size, channels, spacing, window, clip)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with prepared images, (C, *image_size) in [0, 1]."""
        return dict(data) | {key: self.preparation(Path(data[key])) for key in self.key_iterator(data)}


def preparation_of(
    image_size: Sequence[int],
    channels: int = 1,
    spacing: Sequence[float] | None = None,
    window: Sequence[float] | None = None,
    clip: Sequence[float] | None = None,
) -> Preparation:
    """Return the preparation that the keys of a config describe.

    Raises:
        InputError: if the spacing does not fit the size, or a range of intensities is empty.
    """
    sizes = tuple(int(side) for side in image_size)
    if spacing is not None and (len(spacing) != len(sizes) or min(spacing) <= 0):
        raise InputError(
            f"spacing: found {list(spacing)}, but images of {_spell(sizes)} need {len(sizes)} voxel sizes above 0"
        )
    return Preparation(
        sizes,
        channels,
        None if spacing is None else tuple(float(size) for size in spacing),
        as_range(window, "window", "become 0 and 1"),
        as_range(clip, "clip", "an image is cut off at"),
    )


def recorded_preparation(settings: Mapping[str, Any]) -> Preparation:
    """Return the preparation that the settings of an encoder, or of the report of an audit with it, record."""
    size, channels = settings["image_size"], settings["channels"]
    return preparation_of(size, channels, settings.get("spacing"), clip=settings.get("clip"))


def as_range(values: Sequence[float] | None, name: str, meaning: str) -> tuple[float, float] | None:
    """Return a range of intensities; None if there is none.

    Raises:
        InputError: naming the argument, if it is not two finite numbers that rise.
    """
    if values is None:
        return None
    if not (len(values) == 2 and all(map(math.isfinite, values)) and values[0] < values[1]):
        raise InputError(f"{name}: found {list(values)}; give the two intensities that {meaning}, as [-1000, 400]")
    return float(values[0]), float(values[1])


def scale_intensities(image: Tensor, window: tuple[float, float] | None = None) -> Tensor:
    """Bring an image, (C, *spatial), to [0, 1] by its own 0.5 and 99.5 percentile, and cut off beyond them.

    The percentiles are those of the whole image in 2D, where channels are colours, and of each channel in 3D.

    Args:
        image: the image.
        window: intensities that become 0 and 1, in place of the percentiles.
    """
    if image.dim() == 4 and len(image) > 1:
        return torch.cat([scale_intensities(channel, window) for channel in image[:, None]])
    low, high = np.percentile(image.numpy(), PERCENTILES) if window is None else window
    if high <= low:  # nearly all of it is one value: a thin object on an empty background
        low, high = float(image.min()), float(image.max())
    return ((image - float(low)) / max(float(high - low), 1e-12)).clamp(0, 1)


def choose_preparation(
    images: ImageSet, longest_side: int = LONGEST_SIDE, n: int = 32, clip: Sequence[float] | None = None
) -> Preparation:
    """Choose size, channels and spacing for a set from up to ``n`` of its images, spread evenly.

    Args:
        images: the training set.
        longest_side: no side of the result is longer; smaller images keep their size.
        n: number of images looked at.
        clip: as of :class:`Preparation`.

    Returns:
        The median size, scaled down with the aspect kept to ``longest_side`` and, in 3D, to ``N_VOXELS``; the largest
        number of channels; in 3D the median of the voxel sizes that are stated.

    Raises:
        InputError: if images of two and of three dimensions are mixed, none of them can be read, or the range to clip
            to is empty.
    """
    step = max(1, -(-len(images) // n))
    read = [found for path in images.paths[::step] if (found := _shape_and_spacing(path)) is not None]
    if not read:
        raise InputError(f"{images.role}: none of its images can be read, the first is {images.paths[0]}")
    shapes = [shape for shape, _ in read]
    dimensions = Counter(len(shape) - 1 for shape in shapes)
    if len(dimensions) > 1:
        raise InputError(f"{images.role}: holds 2D and 3D images; audit them apart")
    spacings = [spacing for _, spacing in read if spacing is not None]
    spacing = tuple(float(np.median(sizes)) for sizes in zip(*spacings, strict=True)) if spacings else None
    extents = [_extent(shape[1:], own, spacing) for shape, own in read]
    median = [int(np.median(sides)) for sides in zip(*extents, strict=True)]
    factor = min(1.0, longest_side / max(median))
    if len(median) == 3:
        factor = min(factor, (N_VOXELS / math.prod(median)) ** (1 / 3))
    size = tuple(max(4, round(side * factor)) for side in median)
    return preparation_of(size, max(shape[0] for shape in shapes), spacing, clip=clip)


def _shape_and_spacing(path: Path) -> tuple[tuple[int, ...], tuple[float, ...] | None] | None:
    try:
        image, spacing = read_with_spacing(path)
    except UnreadableError:
        return None
    return tuple(image.shape), spacing


def _extent(sides: Sequence[int], own: Sequence[float] | None, common: Sequence[float] | None) -> list[float]:
    """Return the sides in voxels of the common size; as they are where one of the two sizes is unknown."""
    if own is None or common is None:
        return list(sides)
    return [side * size / other for side, size, other in zip(sides, own, common, strict=True)]


def _spell(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
