# SPDX-License-Identifier: Apache-2.0
"""One image: read it and bring it to the form in which every image of an audit is compared."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, Resize, SpatialPad
from monai.utils import convert_to_tensor
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from monai_memorization.errors import InputError, UnreadableError
from monai_memorization.images.reading import read_image
from monai_memorization.images.sets import ImageSet, read_image_set
from monai_memorization.progress import progress

PERCENTILES = (0.5, 99.5)
LONGEST_SIDE = 64


@dataclass(frozen=True)
class Preparation:
    """How every image of an audit is prepared, whichever set it is from.

    Intensities go from the image's own 0.5 and 99.5 percentile to [0, 1]; the size is reached by scaling with the
    aspect kept, then padding with 0.

    Args:
        image_size: spatial size of the result.
        channels: number of channels of the set.
    """

    image_size: tuple[int, ...]
    channels: int = 1

    def __call__(self, path: Path) -> Tensor:
        """Return the prepared image of a file, (channels, *image_size), float32 in [0, 1]."""
        return self.prepare(read_image(path), path)

    def prepare(self, image: Tensor, path: Path) -> Tensor:
        """Return the prepared image of one already read, (C, *spatial); ``path`` names it in errors."""
        if image.dim() - 1 != len(self.image_size):
            raise InputError(
                f"{path}: is {_spell(image.shape[1:])}, a {image.dim() - 1}D image among {len(self.image_size)}D ones "
                f"({_spell(self.image_size)}); 2D and 3D images cannot be compared"
            )
        if len(image) not in (1, self.channels):
            raise InputError(f"{path}: has {len(image)} channels where the training set has {self.channels}")
        return self.fit(scale_intensities(image).expand(self.channels, *image.shape[1:]))

    def fit(self, image: Tensor) -> Tensor:
        """Scale an image, (C, *spatial), to fit ``image_size`` with its aspect kept, and pad the rest with 0."""
        if tuple(image.shape[1:]) == self.image_size:
            return image.contiguous()
        factor = min(target / size for target, size in zip(self.image_size, image.shape[1:], strict=True))
        scaled = [
            min(target, max(1, round(size * factor)))
            for target, size in zip(self.image_size, image.shape[1:], strict=True)
        ]
        mode = "bilinear" if len(scaled) == 2 else "trilinear"
        resized = Resize(scaled, mode=mode, anti_aliasing=factor < 1)(image)
        return convert_to_tensor(SpatialPad(self.image_size)(resized), track_meta=False).clamp(0, 1)


class PrepareImaged(MapTransform):
    """MONAI dictionary transform that puts the prepared image in the place of its path.

    Args:
        keys: which items hold paths.
        image_size: as of :class:`Preparation`.
        channels: as of :class:`Preparation`.
    """

    def __init__(self, keys: KeysCollection, image_size: Sequence[int], channels: int = 1) -> None:
        super().__init__(keys)
        self.preparation = Preparation(tuple(image_size), channels)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with prepared images, (C, *image_size) in [0, 1]."""
        return dict(data) | {key: self.preparation(Path(data[key])) for key in self.key_iterator(data)}


def scale_intensities(image: Tensor) -> Tensor:
    """Bring an image, (C, *spatial), to [0, 1] by its own 0.5 and 99.5 percentile, and cut off beyond them."""
    low, high = np.percentile(image.numpy(), PERCENTILES)
    if high <= low:  # nearly all of it is one value: a thin object on an empty background
        low, high = float(image.min()), float(image.max())
    return ((image - float(low)) / float(high - low)).clamp(0, 1)


def choose_preparation(images: ImageSet, longest_side: int = LONGEST_SIDE, n: int = 32) -> Preparation:
    """Choose size and channels for a set from up to ``n`` of its images, spread evenly.

    Args:
        images: the training set.
        longest_side: no side of the result is longer; smaller images keep their size.
        n: number of images looked at.

    Returns:
        The median size, scaled down to ``longest_side`` with the aspect kept, and the largest number of channels.

    Raises:
        InputError: if images of two and of three dimensions are mixed, or none of them can be read.
    """
    step = max(1, len(images) // n)
    shapes = [shape for path in images.paths[::step] if (shape := _shape(path)) is not None]
    if not shapes:
        raise InputError(f"{images.role}: none of its images can be read, the first is {images.paths[0]}")
    dimensions = Counter(len(shape) - 1 for shape in shapes)
    if len(dimensions) > 1:
        raise InputError(f"{images.role}: holds 2D and 3D images; audit them apart")
    median = [int(np.median(sides)) for sides in zip(*(shape[1:] for shape in shapes), strict=True)]
    factor = min(1.0, longest_side / max(median))
    return Preparation(tuple(max(4, round(side * factor)) for side in median), max(shape[0] for shape in shapes))


class PreparedImages(Dataset[dict[str, Tensor | str]]):
    """A set read into memory, prepared; items are ``{"image": (C, *image_size) in [0, 1], "image_id": str}``.

    Args:
        images: the set; images that could not be read are no longer in it.
        pixels: (n, C, *image_size) in [0, 1], float16 to halve the memory.
    """

    def __init__(self, images: ImageSet, pixels: Tensor) -> None:
        self.images = images
        self.pixels = pixels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor | str]:
        return {"image": self.pixels[index].float(), "image_id": self.images.image_ids[index]}


def prepared_images(
    source: str | Path | ImageSet,
    image_size: Sequence[int],
    channels: int = 1,
    role: str = "training",
    skip_unreadable: bool = False,
) -> PreparedImages:
    """Read a whole set into memory, prepared; for configs and for training.

    Args:
        source: as for :func:`monai_memorization.images.sets.read_image_set`, or a set already listed.
        image_size: spatial size.
        channels: number of channels.
        role: the name of the argument, for messages.
        skip_unreadable: leave out images that cannot be read.

    Returns:
        The data set.

    Raises:
        InputError: if an image cannot be read.
    """
    images = source if isinstance(source, ImageSet) else read_image_set(source, role)
    preparation = Preparation(tuple(image_size), channels)
    pixels = torch.empty(len(images), channels, *image_size, dtype=torch.float16)
    read: list[int] = []
    for indices, batch in prepared_batches(images, preparation, skip_unreadable=skip_unreadable):
        pixels[len(read) : len(read) + len(batch)] = batch.half()
        read += indices.tolist()
    return PreparedImages(images.subset(read), pixels[: len(read)])


@dataclass
class Notes:
    """What was met while a set was read.

    Args:
        unreadable: messages on the images that were left out.
        n_scaled: number of images that had another size.
    """

    unreadable: list[str] = field(default_factory=list)
    n_scaled: int = 0


def prepared_batches(
    images: ImageSet,
    preparation: Preparation,
    batch_size: int = 64,
    workers: int | None = None,
    skip_unreadable: bool = False,
    notes: Notes | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Read and prepare a set batch by batch, in worker processes where it is large.

    Args:
        images: the set, n images.
        preparation: how each is prepared.
        batch_size: images in a batch, B.
        workers: number of processes; None chooses by the size of the set and of the machine.
        skip_unreadable: leave out images that cannot be read instead of raising; not those of another dimension or
            number of channels, which are of another kind than the set.
        notes: takes what was met.

    Yields:
        Indices into the set, (B,), and images, (B, C, *image_size) in [0, 1].

    Raises:
        InputError: naming the first image that cannot be read.
    """
    if workers is None:
        workers = 0 if len(images) < 1024 else min(8, os.cpu_count() or 1)
    notes = notes or Notes()
    batches = DataLoader(_Reader(images, preparation), batch_size, num_workers=workers, collate_fn=list)
    with progress(len(images), f"read {images.role} images") as bar:
        for items in batches:
            bar.update(len(items))
            for item in items:
                if item.error is not None:
                    _note(item.error, images.role, skip_unreadable, notes)
            notes.n_scaled += sum(item.scaled for item in items)
            good = [(item.index, item.image) for item in items if item.image is not None]
            if good:
                yield torch.tensor([index for index, _ in good]), torch.stack([image for _, image in good])


@dataclass(frozen=True)
class _Item:
    index: int
    image: Tensor | None = None
    scaled: bool = False
    error: InputError | None = None


class _Reader(Dataset[_Item]):
    """Hands out errors in place of images that cannot be read: raised in a worker they would lose their type."""

    def __init__(self, images: ImageSet, preparation: Preparation) -> None:
        self.images = images
        self.preparation = preparation

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> _Item:
        path = self.images.paths[index]
        try:
            image = read_image(path)
            return _Item(
                index, self.preparation.prepare(image, path), tuple(image.shape[1:]) != self.preparation.image_size
            )
        except InputError as error:
            return _Item(index, error=type(error)(str(error)))  # without the chain of causes, which may not pickle


def _note(error: InputError, role: str, skip_unreadable: bool, notes: Notes) -> None:
    """Write down an image that is left out, or raise: only what cannot be read may be left out."""
    message = f"{role}: {error}"
    if not isinstance(error, UnreadableError):
        raise InputError(message)
    if not skip_unreadable:
        raise UnreadableError(f"{message}; --skip-unreadable goes on without such images")
    notes.unreadable.append(message)


def _shape(path: Path) -> tuple[int, ...] | None:
    try:
        return tuple(read_image(path).shape)
    except InputError:
        return None


def _spell(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))
