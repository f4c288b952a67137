# SPDX-License-Identifier: Apache-2.0
"""Embeddings: one vector per image, with the names that belong to it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_memorization.detector.encoder import ContrastiveEncoder
from monai_memorization.errors import InputError
from monai_memorization.images.preparation import Notes, prepared_batches
from monai_memorization.images.sets import ImageSet

THUMBNAIL_SIDES = {2: 16, 3: 8}


@dataclass(frozen=True)
class Embeddings:
    """What is kept of a set of n images after it was read once.

    Args:
        images: the images that could be read, in their order; ids and patients.
        vectors: embeddings, float32 (n, D).
        thumbnails: the images shrunk to a few hundred values, float32 (n, E), for the near-identical check.
        digests: hash of each prepared image; equal for equal images, whatever their file.
        unreadable: messages on images that were left out.
        n_scaled: number of images that had another size than the encoder's.
    """

    images: ImageSet
    vectors: Tensor
    thumbnails: Tensor
    digests: tuple[str, ...]
    unreadable: tuple[str, ...] = ()
    n_scaled: int = 0

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
            digests=tuple(self.digests[i] for i in indices),
        )


def embed(
    encoder: ContrastiveEncoder,
    images: ImageSet,
    batch_size: int = 64,
    workers: int | None = None,
    device: str | torch.device = "cpu",
    skip_unreadable: bool = False,
) -> Embeddings:
    """Embed a set, reading each image once, batch by batch.

    Args:
        encoder: in evaluation mode afterwards.
        images: the set.
        batch_size: images in a batch.
        workers: processes that read; None chooses.
        device: where the encoder runs; it stays there.
        skip_unreadable: leave out images that cannot be read instead of raising.

    Returns:
        The embeddings, on the CPU.

    Raises:
        InputError: naming an image that cannot be read, or if none is left.
    """
    encoder.to(device).eval()
    notes = Notes()
    kept: list[Tensor] = []
    vectors: list[Tensor] = []
    thumbnails: list[Tensor] = []
    digests: list[str] = []
    for indices, batch in prepared_batches(images, encoder.preparation, batch_size, workers, skip_unreadable, notes):
        kept.append(indices)
        vectors.append(embed_batch(encoder, batch, device))
        thumbnails.append(shrink(batch))
        digests += map(digest, batch)
    if not kept:
        raise InputError(f"{images.role}: none of its {len(images)} images can be read; {notes.unreadable[0]}")
    return Embeddings(
        images.subset(torch.cat(kept).tolist()),
        torch.cat(vectors),
        torch.cat(thumbnails),
        tuple(digests),
        tuple(notes.unreadable),
        notes.n_scaled,
    )


@torch.no_grad()
def embed_batch(encoder: nn.Module, images: Tensor, device: str | torch.device = "cpu") -> Tensor:
    """Return the embeddings, float32 (B, D) on the CPU, of prepared images (B, C, *image_size)."""
    vectors: Tensor = encoder(images.to(device))
    return vectors.float().cpu()


def digest(image: Tensor) -> str:
    """Hash a prepared image, (C, *image_size): equal for equal images, whatever their file."""
    return hashlib.blake2b(image.numpy().tobytes(), digest_size=16).hexdigest()


def shrink(images: Tensor) -> Tensor:
    """Average images, (B, C, *spatial), over cells down to a few hundred values each, (B, E)."""
    side = THUMBNAIL_SIDES[images.dim() - 2]
    return F.interpolate(images, size=[min(side, size) for size in images.shape[2:]], mode="area").flatten(1)
