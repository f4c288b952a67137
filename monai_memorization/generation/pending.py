# SPDX-License-Identifier: Apache-2.0
"""Which images are still to be drawn, where a sampling was stopped or is divided among processes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from monai_memorization.errors import InputError
from monai_memorization.files import write_text
from monai_memorization.generation.described import described
from monai_memorization.images.reading import read_image

# hidden, so that the folder stays a set of images and nothing else
MARK = ".drawn_by"


def pending_seeds(
    first_seed: int,
    n_images: int,
    batch_size: int,
    output_dir: str | Path,
    suffix: str,
    networks: Sequence[nn.Module],
    settings: Sequence[Any] = (),
) -> list[int]:
    """List the seeds that this process has to draw, for configs: image n is ``output_dir``/<n, six digits><suffix>.

    A batch whose images are all there and complete is left out, if the same networks and settings drew them: a hash of
    these lies in the folder, and the images are younger than it. A batch is left out or drawn as a whole, since the
    last bits of an image can depend on its batch. Where torch.distributed is in use, the batches are divided among the
    processes.

    Args:
        first_seed: of the first image.
        n_images: number of images.
        batch_size: images drawn at a time.
        output_dir: where the images are written.
        suffix: of their files.
        networks: that draw them.
        settings: whatever else decides what is drawn: numbers, schedulers, ...

    Raises:
        InputError: if there is nothing to draw, or the folder cannot be written.
    """
    if n_images < 1 or batch_size < 1:
        raise InputError(f"n_images: {n_images}, batch_size: {batch_size}; both must be at least 1")
    folder, depends_on = Path(output_dir), described([*networks, batch_size, *settings])
    drawn_by = hashlib.sha256(repr(depends_on).encode()).hexdigest()
    distributed = dist.is_available() and dist.is_initialized()
    rank, n_ranks = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    mark = folder / MARK
    if rank == 0 and not (mark.is_file() and mark.read_text(encoding="utf-8") == drawn_by):
        write_text(mark, drawn_by)
    if distributed:
        dist.barrier()
    since = mark.stat().st_mtime_ns
    last = first_seed + n_images
    batches = [range(start, min(start + batch_size, last)) for start in range(first_seed, last, batch_size)]
    return [
        seed
        for batch in batches[rank::n_ranks]
        if not all(_is_complete(folder / f"{seed:06d}{suffix}", since) for seed in batch)
        for seed in batch
    ]


def _is_complete(path: Path, since: int) -> bool:
    """Read an image to its end: one that was being written when the process was killed is cut off."""
    try:
        if path.stat().st_mtime_ns < since:
            return False
        read_image(path)
    except (FileNotFoundError, InputError):
        return False
    return True
