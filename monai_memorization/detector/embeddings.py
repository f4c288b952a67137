# SPDX-License-Identifier: Apache-2.0
"""Embeddings: one vector per image, with the names that belong to it."""

from __future__ import annotations

import hashlib
import logging
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_memorization.detector.encoder import ContrastiveEncoder
from monai_memorization.detector.registration import fine_structure
from monai_memorization.detector.shards import Shard, hash_settings, name_shard, read_shard, write_shard
from monai_memorization.errors import InputError
from monai_memorization.images.contents import hash_contents
from monai_memorization.images.prepared import Notes, prepared_batches
from monai_memorization.images.sets import ImageSet
from monai_memorization.ranks import current_ranks

logger = logging.getLogger(__name__)

THUMBNAIL_SIDES = {2: 16, 3: 8}
DIGEST_SIZE = 16
# a file of some hundred kilobytes; what is lost where an audit is stopped takes a second
SHARD_BATCHES = 8


@dataclass(frozen=True)
class Embeddings:
    """What is kept of a set of n images after it was read once.

    Args:
        images: the images that could be read, in their order; ids and patients.
        vectors: embeddings, float32 (n, D).
        thumbnails: the images shrunk to a few hundred values, float32 (n, E), for the near-identical check.
        structure: their fine structure, by which pairs are registered, float16 (n, C, *sides).
        digests: hash of each prepared image; equal for equal images, whatever their file.
        unreadable: messages on images that were left out.
        n_scaled: number of images that had another size than the encoder's.
        device: where the encoder ran, and where the set is compared with others; what is kept is on the CPU.
    """

    images: ImageSet
    vectors: Tensor
    thumbnails: Tensor
    structure: Tensor
    digests: tuple[str, ...]
    unreadable: tuple[str, ...] = ()
    n_scaled: int = 0
    device: str = "cpu"

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Sequence[int]) -> Embeddings:
        """Return the images at ``indices``, in that order, and what is kept of them."""
        rows = torch.as_tensor(indices, dtype=torch.int64)
        return replace(
            self,
            images=self.images.subset(indices),
            vectors=self.vectors[rows],
            thumbnails=self.thumbnails[rows],
            structure=self.structure[rows],
            digests=tuple(self.digests[i] for i in indices),
        )


def embed(
    encoder: ContrastiveEncoder,
    images: ImageSet,
    batch_size: int = 64,
    workers: int | None = None,
    device: str | torch.device = "cpu",
    skip_unreadable: bool = False,
    cache_dir: str | Path | None = None,
) -> Embeddings:
    """Embed a set, reading each image once, batch by batch; each rank embeds its part, and all get the whole.

    Args:
        encoder: in evaluation mode afterwards.
        images: the set.
        batch_size: images in a batch.
        workers: processes that read; None chooses.
        device: where the encoder runs, and stays, and where the embeddings are to be compared.
        skip_unreadable: leave out images that cannot be read instead of raising.
        cache_dir: folder that takes what is kept of every ``SHARD_BATCHES`` batches, and gives what it has of the same
            images; see :mod:`monai_memorization.detector.shards`. None keeps nothing.

    Returns:
        The embeddings, on the CPU.

    Raises:
        InputError: naming an image that cannot be read, or if none is left; or if ``cache_dir`` cannot be written.
    """
    encoder.to(device).eval()
    ranks = current_ranks()
    size = SHARD_BATCHES * batch_size
    ranges = [range(start, min(start + size, len(images))) for start in range(0, len(images), size)]
    files: list[Path | None] = [None] * len(ranges)
    if cache_dir is not None:
        settings, contents = hash_settings(encoder, batch_size, device), hash_contents(images.paths)
        files = [Path(cache_dir, name_shard(settings, contents[part.start : part.stop])) for part in ranges]
    parts = {number: ranges[number] for number in range(ranks.rank, len(ranges), ranks.n)}
    embedded = _embed_parts(encoder, images, parts, files, batch_size, workers, device, skip_unreadable)
    # whole shards are divided, as the last bits of an embedding can depend on its batch
    everything = dict(sorted(chain.from_iterable(found.items() for found in ranks.gather(embedded))))
    unreadable = tuple(message for part in everything.values() for message in part.unreadable)
    shards = [part.shard for part in everything.values() if part.shard is not None]
    if not shards:
        raise InputError(f"{images.role}: none of its {len(images)} images can be read; {unreadable[0]}")
    return Embeddings(
        images.subset(index for part in everything.values() for index in part.indices),
        torch.cat([shard.vectors for shard in shards]),
        torch.cat([shard.thumbnails for shard in shards]),
        torch.cat([shard.structure for shard in shards]),
        tuple(row.numpy().tobytes().hex() for shard in shards for row in shard.digests),
        unreadable,
        sum(shard.n_scaled for shard in shards),
        str(device),
    )


@dataclass(frozen=True)
class _Part:
    """A run of images of a set: those that could be read, what is kept of them, and what was said of the others."""

    indices: Sequence[int]
    shard: Shard | None
    unreadable: tuple[str, ...] = ()


def _embed_parts(
    encoder: ContrastiveEncoder,
    images: ImageSet,
    ranges: Mapping[int, range],
    files: Sequence[Path | None],
    batch_size: int,
    workers: int | None,
    device: str | torch.device,
    skip_unreadable: bool,
) -> dict[int, _Part]:
    """Embed parts of a set by their numbers, or read what is kept of them."""
    size = SHARD_BATCHES * batch_size
    shards = {number: shard for number in ranges if (shard := _read(files[number])) is not None}
    parts = {number: _Part(ranges[number], shard) for number, shard in shards.items()}
    missing = [number for number in ranges if number not in shards]
    rest = [index for number in missing for index in ranges[number]]
    n_images = sum(map(len, ranges.values()))
    if len(rest) < n_images:
        logger.debug("%s: %d of %d images are known from before", images.role, n_images - len(rest), n_images)
    notes = Notes()
    batches = prepared_batches(images.subset(rest), encoder.preparation, batch_size, workers, skip_unreadable, notes)
    for position, group in groupby(batches, lambda batch: int(batch[0][0]) // size):
        number = missing[position]
        indices, vectors, thumbnails, structure, digests = _embed_batches(encoder, group, device)
        first, last = (bisect_left(notes.scaled, end) for end in (position * size, (position + 1) * size))
        shard = Shard(vectors, thumbnails, structure, digests, last - first)
        parts[number] = _Part([rest[index] for index in indices], shard)
        file = files[number]
        if file is not None and len(indices) == len(ranges[number]):  # what cannot be read has to be said each time
            write_shard(shard, file)
    for position, number in enumerate(missing):
        said = tuple(m for index, m in notes.unreadable.items() if index // size == position)
        parts[number] = replace(parts.get(number, _Part((), None)), unreadable=said)
    return parts


def _read(file: Path | None) -> Shard | None:
    return None if file is None else read_shard(file)


def _embed_batches(
    encoder: ContrastiveEncoder, batches: Iterable[tuple[Tensor, Tensor]], device: str | torch.device
) -> tuple[list[int], Tensor, Tensor, Tensor, Tensor]:
    """Return the indices of the images, and of each its embedding, thumbnail, structure and digest, uint8 (n, 16)."""
    indices: list[int] = []
    vectors: list[Tensor] = []
    thumbnails: list[Tensor] = []
    structure: list[Tensor] = []
    digests = bytearray()
    for positions, batch in batches:
        indices += positions.tolist()
        vectors.append(embed_batch(encoder, batch, device))
        thumbnails.append(shrink(batch))
        structure.append(fine_structure(batch).half())
        for image in batch:
            digests += bytes.fromhex(digest(image))
    rows = torch.frombuffer(digests, dtype=torch.uint8).view(-1, DIGEST_SIZE)
    return indices, torch.cat(vectors), torch.cat(thumbnails), torch.cat(structure), rows


@torch.no_grad()
def embed_batch(encoder: nn.Module, images: Tensor, device: str | torch.device = "cpu") -> Tensor:
    """Return the embeddings, float32 (B, D) on the CPU, of prepared images (B, C, *image_size)."""
    with _full_precision():
        vectors: Tensor = encoder(images.to(device))
    return vectors.float().cpu()


@contextmanager
def _full_precision() -> Iterator[None]:
    """Have convolutions on a GPU compute in float32, lest embeddings depend on the device by more than rounding.

    By default torch lets them cut off what they multiply after 11 bits (TensorFloat-32).
    """
    settings: Any = getattr(torch.backends.cudnn, "conv", None)
    name = "fp32_precision"
    full: str | bool = "ieee"
    if settings is None:  # before torch 2.9
        settings, name, full = torch.backends.cudnn, "allow_tf32", False
    before = getattr(settings, name)
    setattr(settings, name, full)
    try:
        yield
    finally:
        setattr(settings, name, before)


def digest(image: Tensor) -> str:
    """Hash a prepared image, (C, *image_size): equal for equal images, whatever their file."""
    return hashlib.blake2b(image.numpy().tobytes(), digest_size=DIGEST_SIZE).hexdigest()


def shrink(images: Tensor) -> Tensor:
    """Average images, (B, C, *spatial), over cells down to a few hundred values each, (B, E)."""
    side = THUMBNAIL_SIDES[images.dim() - 2]
    return F.interpolate(images, size=[min(side, size) for size in images.shape[2:]], mode="area").flatten(1)
