# SPDX-License-Identifier: Apache-2.0
"""What a handler is given: images in files, or a MONAI data set, whose images are written first."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from monai_memorization.images.export import export_images
from monai_memorization.images.sets import ImageSet, read_image_set

Source = str | Path | Dataset[Any]


def list_source(source: Source, folder: Path, role: str, image_key: str) -> ImageSet:
    """List the images of a source; those of a data set are written first."""
    if isinstance(source, str | Path):
        return read_image_set(source, role)
    return read_image_set(export_images(source, folder / role, role, image_key), role)


def hash_source(source: Source) -> str:
    """Hash what a source lists, as far as it can be told without reading images."""
    if isinstance(source, str | Path):
        return str(source)
    listed = getattr(source, "data", None)
    if not isinstance(listed, Sequence):
        return str(len(source))  # type: ignore[arg-type]
    return hashlib.sha256(repr(_told(listed)).encode()).hexdigest()


def _told(item: Any) -> Any:
    if isinstance(item, Mapping):
        return [_told(value) for value in item.values()]
    if isinstance(item, list | tuple):
        return [_told(value) for value in item]
    return str(item) if isinstance(item, str | Path | int) else None
