# SPDX-License-Identifier: Apache-2.0
"""What a handler is given: images in files, or a MONAI data set, whose images are written first."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from monai_memorization.errors import InputError
from monai_memorization.images.export import export_images
from monai_memorization.images.sets import ImageSet, read_image_set
from monai_memorization.ranks import Ranks

Source = str | Path | Dataset[Any]


def list_source(source: Source, folder: Path, role: str, image_key: str) -> ImageSet:
    """List the images of a source; those of a data set are written first."""
    if isinstance(source, str | Path):
        return read_image_set(source, role)
    return read_image_set(export_images(source, folder / role, role, image_key), role)


def refuse_divided(source: Source, role: str, ranks: Ranks) -> None:
    """Refuse a data set of which each rank was given a part, as far as its list tells without reading images.

    Raises:
        InputError: on all ranks, if one lists other images than another.
    """
    if len(set(ranks.gather(_hash_listed(source)))) > 1:
        raise InputError(
            f"{role}: each process was given other images, as where a data set is divided among processes, and "
            "copies of the others' would go unseen; give all processes the whole set"
        )


def _hash_listed(source: Source) -> str:
    """Hash what a source lists, in whatever order."""
    if isinstance(source, str | Path):
        return str(source)
    listed = getattr(source, "data", None)
    if not isinstance(listed, Sequence):
        return str(len(source))  # type: ignore[arg-type]
    return hashlib.sha256(repr(sorted(repr(_told(item)) for item in listed)).encode()).hexdigest()


def _told(item: Any) -> Any:
    if isinstance(item, Mapping):
        return [_told(value) for value in item.values()]
    if isinstance(item, list | tuple):
        return [_told(value) for value in item]
    return str(item) if isinstance(item, str | Path | int) else None
