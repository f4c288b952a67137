# SPDX-License-Identifier: Apache-2.0
"""Sets of prepared images: in memory, or batch by batch from the files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from monai_memorization.errors import InputError, UnreadableError
from monai_memorization.images.preparation import Preparation, preparation_of
from monai_memorization.images.reading import read_with_spacing
from monai_memorization.images.sets import ImageSet, read_image_set
from monai_memorization.progress import progress


class PreparedImages(Dataset[dict[str, Tensor | str]]):
    """A set read into memory, prepared; items are ``{"image": (C, *image_size) in [0, 1], "image_id": str}``.

    Args:
        images: the set; images that could not be read are no longer in it.
        pixels: (n, C, *image_size) in [0, 1], float16 to halve the memory.
        preparation: how they were prepared.
    """

    def __init__(self, images: ImageSet, pixels: Tensor, preparation: Preparation) -> None:
        self.images = images
        self.pixels = pixels
        self.preparation = preparation

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
    spacing: Sequence[float] | None = None,
    window: Sequence[float] | None = None,
    clip: Sequence[float] | None = None,
) -> PreparedImages:
    """Read a whole set into memory, prepared as the keys of a config say.

    Args:
        source: as for :func:`monai_memorization.images.sets.read_image_set`, or a set already listed.
        image_size: spatial size.
        channels: number of channels.
        role: the name of the argument, for messages.
        skip_unreadable: leave out images that cannot be read.
        spacing: voxel size of the set, as of :class:`Preparation`.
        window: intensities that become 0 and 1, as of :class:`Preparation`.
        clip: intensities beyond which images are cut off, likewise.

    Returns:
        The data set.

    Raises:
        InputError: if an image cannot be read.
    """
    images = source if isinstance(source, ImageSet) else read_image_set(source, role)
    return read_prepared(images, preparation_of(image_size, channels, spacing, window, clip), skip_unreadable)


def read_prepared(images: ImageSet, preparation: Preparation, skip_unreadable: bool = False) -> PreparedImages:
    """Read a whole set into memory, prepared; arguments and errors as of :func:`prepared_images`."""
    pixels = torch.empty(len(images), preparation.channels, *preparation.image_size, dtype=torch.float16)
    read: list[int] = []
    for indices, batch in prepared_batches(images, preparation, skip_unreadable=skip_unreadable):
        pixels[len(read) : len(read) + len(batch)] = batch.half()
        read += indices.tolist()
    return PreparedImages(images.subset(read), pixels[: len(read)], preparation)


@dataclass
class Notes:
    """What was met while a set was read.

    Args:
        unreadable: messages on the images that were left out, by their indices.
        scaled: indices of the images that had another size.
    """

    unreadable: dict[int, str] = field(default_factory=dict)
    scaled: list[int] = field(default_factory=list)


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
    # a generator of its own, lest reading take from the random numbers of a training
    reader, drawn = _Reader(images, preparation), torch.Generator()
    batches = DataLoader(reader, batch_size, num_workers=workers, collate_fn=_stack, generator=drawn)
    with progress(len(images), f"read {images.role} images") as bar:
        for items, batch in batches:
            bar.update(len(items))
            for item in items:
                if item.error is not None:
                    _note(item.index, item.error, images.role, skip_unreadable, notes)
            notes.scaled += [item.index for item in items if item.scaled]
            if batch is not None:
                yield torch.tensor([item.index for item in items if item.error is None]), batch


@dataclass(frozen=True)
class _Item:
    index: int
    image: Tensor | None = None
    scaled: bool = False
    error: InputError | None = None


def _stack(items: list[_Item]) -> tuple[list[_Item], Tensor | None]:
    """Take the images out of the items, as one tensor: a worker hands over each tensor at a cost of its own."""
    images = [item.image for item in items if item.image is not None]
    return [replace(item, image=None) for item in items], torch.stack(images) if images else None


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
            image, spacing = read_with_spacing(path)
            scaled = tuple(image.shape[1:]) != self.preparation.image_size
            return _Item(index, self.preparation.prepare(image, path, spacing), scaled)
        except InputError as error:
            return _Item(index, error=type(error)(str(error)))  # without the chain of causes, which may not pickle


def _note(index: int, error: InputError, role: str, skip_unreadable: bool, notes: Notes) -> None:
    """Write down an image that is left out, or raise: only what cannot be read may be left out."""
    message = f"{role}: {error}"
    if not isinstance(error, UnreadableError):
        raise InputError(message)
    if not skip_unreadable:
        raise UnreadableError(f"{message}; --skip-unreadable goes on without such images")
    notes.unreadable[index] = message
