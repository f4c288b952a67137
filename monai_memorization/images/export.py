# SPDX-License-Identifier: Apache-2.0
"""Write the images of a MONAI data set to files: what a generator is trained on is often not what lies on the disk."""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Affine,
    Affined,
    Compose,
    MapTransform,
    OneOf,
    RandAffine,
    RandAffined,
    Randomizable,
    RandomOrder,
    SomeOf,
)
from torch.utils.data import Dataset

from monai_memorization.errors import InputError, root_cause, some
from monai_memorization.files import write_bytes, write_text
from monai_memorization.images.reading import MAX_CHANNELS

# in the names of random transforms that leave a part of an image
CUTTING = ("Crop", "Patch")
logger = logging.getLogger(__name__)


def export_images(dataset: Dataset[Any], folder: str | Path, role: str, key: str = "image") -> Path:
    """Write each image of a data set to ``folder`` as NumPy, and a CSV of them beside it, named after ``folder``.

    An item may be a list, such as the slices of a volume; its images then belong to one patient. The patient is the
    item's ``patient_id``, or for a list its source file; the ``source`` is the item's, or the file that MONAI read.
    Constant images are left out, such as the slices above a head: nothing can be a copy of them.

    Args:
        dataset: items are dicts, or lists of dicts, that hold an image, (C, *spatial).
        folder: takes 000000.npy, 000001.npy, ...
        role: the name of the argument, for messages.
        key: which entry of an item is the image.

    Returns:
        The CSV, for :func:`monai_memorization.images.sets.read_image_set`.

    Raises:
        InputError: if the transforms are random or fail, an item holds no image, or there are none.
    """
    _refuse_random(dataset, role)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    n_constant = 0
    for item, source in _items(dataset, role):
        if not isinstance(item, dict) or key not in item:
            found = sorted(map(str, item)) if isinstance(item, dict) else type(item).__name__
            raise InputError(f"{role}: an item of the data set has no {key!r} but {found}; name the entry as image_key")
        image = torch.as_tensor(item[key]).float()
        if len(image) > MAX_CHANNELS:
            raise InputError(
                f"{role}: an image of the data set has {len(image)} channels, at most {MAX_CHANNELS} are read"
            )
        if image.min() == image.max():
            n_constant += 1
            continue
        name = f"{len(rows):06}.npy"
        _save(image.cpu().numpy(), folder / name)
        told = {"patient_id": item.get("patient_id", source), "source": item.get("source", _file_of(item[key]))}
        row = {"image": f"{folder.name}/{name}"}
        rows.append(row | {column: str(value) for column, value in told.items() if value is not None})
    if not rows:
        raise InputError(f"{role}: the data set is empty, or holds constant images only")
    if n_constant:
        logger.warning("%s: %d constant images of the data set are left out", role, n_constant)
    table = folder.with_name(f"{folder.name}.csv")
    write_text(table, pd.DataFrame(rows).to_csv(index=False))
    return table


def fixed_transforms(transform: Any, crop: Any = None) -> Compose:
    """Return the transforms of a training without the random ones, for configs.

    Of a random affine map to images of another size the size is left. What they do to other entries than the image,
    such as a label, is left out for items without these: the validation images come without.

    Args:
        transform: transforms of the data set that a generator is trained on.
        crop: takes the place of a random crop.

    Returns:
        The transforms, in their order.

    Raises:
        InputError: if there is a random crop and nothing to take its place: images would be of another size than those
            that the generator sees.
    """
    steps: list[Any] = []
    for step in _steps(transform):
        if not isinstance(step, Randomizable):
            steps.append(_allowing_missing_keys(step))
        elif isinstance(step, RandAffine | RandAffined):
            steps += _to_its_size(step)
        elif _cuts(step):
            if crop is None:
                raise InputError(
                    f"transforms: {type(step).__name__} cuts at random what the generator is trained on; give a fixed "
                    "crop in its place, or one that cuts the image into all such parts"
                )
            steps.append(crop)
    if crop is not None and not any(step is crop for step in steps):
        logger.warning("transforms: crop is given, but none of them cuts at random; it is not used")
    # maps that wait for each other give other values than one after the other
    return Compose(steps, lazy=transform.lazy if isinstance(transform, Compose) else False)


def _steps(transform: Any) -> list[Any]:
    """List the transforms within transforms; MONAI's flatten() would give the random ones new random states."""
    if isinstance(transform, Compose) and not isinstance(transform, OneOf | RandomOrder | SomeOf):  # those choose
        return [step for part in transform.transforms for step in _steps(part)]
    return [transform]


def _cuts(step: Any) -> bool:
    """Return whether a random transform, or one of those that it chooses from, gives a part or another size."""
    named = any(word in type(step).__name__ for word in CUTTING)
    parts = [step, *vars(step).values()]  # that of a dictionary is within it
    sized = any(
        getattr(part, "spatial_size", None) is not None or getattr(part, "keep_size", None) is False for part in parts
    )
    return named or sized or any(_cuts(part) for part in getattr(step, "transforms", ()))


def _to_its_size(step: RandAffine | RandAffined) -> list[Any]:
    """Return what a random affine map does where chance changes nothing: nothing, if it keeps the size."""
    size = (step.rand_affine if isinstance(step, RandAffined) else step).spatial_size
    if size is None:
        return []
    given: dict[str, Any] = {"spatial_size": size, "mode": step.mode, "padding_mode": step.padding_mode}
    if isinstance(step, RandAffined):
        return [Affined(step.keys, allow_missing_keys=True, **given)]
    return [Affine(image_only=True, **given)]


def _allowing_missing_keys(step: Any) -> Any:
    """Return a transform that does nothing to entries that an item lacks; the training's own stays as it is."""
    if isinstance(step, MapTransform):
        step = copy.copy(step)
        step.allow_missing_keys = True
    return step


def _save(image: npt.NDArray[np.float32], path: Path) -> None:
    """Write an image, unless it is there: an encoder is kept as long as the files of its training set are untouched."""
    content = io.BytesIO()
    np.save(content, image)
    if not path.is_file() or path.read_bytes() != content.getvalue():
        write_bytes(path, content.getvalue())


def _items(dataset: Dataset[Any], role: str) -> Iterator[tuple[Any, str | None]]:
    """Yield the images' items; those of a list with the name of their source."""
    for index in range(len(dataset)):  # type: ignore[arg-type]
        item = _read(dataset, index, role)
        if isinstance(item, list):
            yield from ((part, _source(item, index)) for part in item)
        else:
            yield item, None


def _read(dataset: Dataset[Any], index: int, role: str) -> Any:
    """Read an item; where its transforms fail, which are those of the training, say on what."""
    try:
        return dataset[index]
    except Exception as error:
        cause = root_cause(error)  # MONAI's own only names the transform
        data = getattr(dataset, "data", None)
        given = data[index] if isinstance(data, Sequence) else None
        files = (
            [str(value) for value in given.values() if isinstance(value, str | Path)] if isinstance(given, dict) else []
        )
        named = f" ({some(files)})" if files else ""
        raise InputError(
            f"{role}: item {index} of the data set{named} cannot be read: {type(cause).__name__}: "
            f"{str(cause).rstrip('.')}; its images have to be such as the transforms of the training take"
        ) from error


def _source(parts: list[Any], index: int) -> str:
    files = [file for value in parts[0].values() if (file := _file_of(value))] if parts else []
    return files[0] if files else str(index)


def _file_of(value: Any) -> str | None:
    """Return the file that MONAI read an image from, None where it does not say."""
    return str(value.meta.get("filename_or_obj", "")) or None if isinstance(value, MetaTensor) else None


def _refuse_random(dataset: Dataset[Any], role: str) -> None:
    """Reading a data set with random transforms moves their random state on, and with it the training that uses it."""
    steps = _steps(getattr(dataset, "transform", None))
    random = sorted({type(step).__name__ for step in steps if isinstance(step, Randomizable)})
    if random:
        raise InputError(
            f"{role}: the transforms of the data set are random ({', '.join(random)}); give one of its own without them"
        )
