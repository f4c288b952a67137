# SPDX-License-Identifier: Apache-2.0
"""Read one image as it was stored: NIfTI, PNG, JPEG, NumPy, a DICOM file or the folder of a DICOM series."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pydicom
import torch
from PIL import Image
from pydicom.pixels.processing import apply_color_lut
from torch import Tensor

from monai_memorization.errors import InputError, UnreadableError
from monai_memorization.images.series import placed_frames, read_series, stack_slices, stored_values
from monai_memorization.images.sets import kind

MAX_CHANNELS = 4
# 4 GiB as float32; a few compressed kilobytes can claim, or even hold, more than any memory
MAX_VALUES = 2**30


def read_image(path: Path) -> Tensor:
    """Return the image of :func:`read_with_spacing` alone."""
    return read_with_spacing(path)[0]


def read_with_spacing(path: Path) -> tuple[Tensor, Spacing | None]:
    """Read one image as stored, in canonical orientation where the file says one.

    Args:
        path: NIfTI, PNG, JPEG, NumPy or DICOM file, or the folder of a DICOM series.

    Returns:
        Raw intensities, (C, *spatial), float32; equal channels, as of grey saved as RGB, are one. And the voxel sizes
        of a volume, None where the file does not state them; the identity that converters write states nothing.

    Raises:
        InputError: if the file is of an unknown kind, holds many volumes, or the folder several series.
        UnreadableError: if it cannot be read, or holds complex, NaN, infinite or constant intensities.
    """
    reader: Callable[[Path], tuple[Array, Spacing | None]] = read_series
    if not path.is_dir():
        if (suffix := kind(path)) is None:
            raise InputError(f"{path}: unknown kind of image; known are {', '.join(_READERS)}")
        reader = _READERS[suffix]
    try:
        array, spacing = reader(path)
        image = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    except InputError:
        raise
    except Exception as error:  # readers raise whatever the broken file led them into
        raise UnreadableError(f"{path}: cannot be read ({_one_line(error)})") from error
    if image.numel() == 0:
        raise UnreadableError(f"{path}: holds no values; its shape is {list(image.shape)}")
    if not torch.isfinite(image).all():
        raise UnreadableError(f"{path}: holds NaN or infinite values; replace them or leave the image out")
    if image.min() == image.max():
        raise UnreadableError(f"{path}: all values are {image.min().item():g}; a constant image cannot be compared")
    if len(image) > 1 and bool((image == image[:1]).all()):
        image = image[:1]
    return image, spacing if image.dim() == 4 else None


Array = npt.NDArray[np.generic]
Spacing = tuple[float, ...]


def _read_picture(path: Path) -> tuple[Array, None]:
    with Image.open(path) as file:
        _refuse_huge(file.size)
        plain = {"1": "L", "LA": "L"} | dict.fromkeys(("P", "PA", "CMYK", "RGBA", "YCbCr"), "RGB")
        array = np.asarray(file.convert(plain[file.mode]) if file.mode in plain else file)
    return (array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)), None


def _refuse_huge(shape: Sequence[int]) -> None:
    """Refuse by its header, before its values are read, what would fill the memory."""
    if math.prod(map(int, shape)) > MAX_VALUES:
        raise ValueError(f"its header claims {'x'.join(map(str, shape))} values, more than {MAX_VALUES:,}")


def _refuse_complex(dtype: np.dtype[Any]) -> None:
    """Refuse what a conversion to real numbers would leave the real part of."""
    if dtype.kind == "c":
        raise ValueError("it holds complex values; give their magnitude")


def _refuse_series(path: Path, shape: Sequence[int], n_channels: int) -> None:
    if n_channels > MAX_CHANNELS:
        raise InputError(
            f"{path}: is {'x'.join(map(str, shape))}, a series of volumes; give one volume per file, or one with at "
            f"most {MAX_CHANNELS} sequences as channels"
        )


def _read_nifti(path: Path) -> tuple[Array, Spacing | None]:
    stored: Any = nibabel.load(path)
    _refuse_huge(stored.shape)
    _refuse_complex(stored.get_data_dtype())
    volume = nibabel.as_closest_canonical(stored)
    coloured = volume.get_data_dtype().names is not None  # RGB24: a voxel is one value of three or four fields
    _refuse_series(path, volume.shape, math.prod(volume.shape[3:]) * (3 if coloured else 1))
    space = (*volume.shape, 1, 1)[:3]
    if coloured:
        values = np.asarray(volume.dataobj).reshape(space)
        array = np.stack([values[name] for name in "RGB"], axis=-1)
    else:
        array = np.asarray(volume.dataobj, dtype=np.float32).reshape(*space, -1)  # (X, Y, Z, C)
    if 1 in array.shape[:3]:  # one slice, whichever way it lies
        return array.squeeze(array.shape.index(1)).T, None  # rows and columns, as pictures are stored
    return np.moveaxis(array, -1, 0), _voxel_size(stored, volume.affine)


def _voxel_size(stored: Any, canonical: Array) -> Spacing | None:
    """Return the voxel sizes; None for ones that no scanner states: no code says what they mean, or the identity."""
    sizes = nibabel.affines.voxel_sizes(canonical)
    coded = any(stored.header.get(name, 1) for name in ("qform_code", "sform_code"))
    placeholder = np.array_equal(stored.affine, np.eye(4)) or (not coded and bool((sizes == 1).all()))
    if placeholder or not (np.isfinite(sizes).all() and sizes.min() > 0):
        return None
    return tuple(float(size) for size in sizes)


def _read_numpy(path: Path) -> tuple[Array, None]:
    array = np.load(path, allow_pickle=False)
    _refuse_complex(array.dtype)
    if array.ndim == 2 or (array.ndim == 3 and min(array.shape[0], array.shape[-1]) > MAX_CHANNELS):
        return array[None], None
    if array.ndim in (3, 4):
        _refuse_series(path, array.shape, min(array.shape[0], array.shape[-1]))
        return (array if array.shape[0] <= MAX_CHANNELS else np.moveaxis(array, -1, 0)), None
    raise ValueError(f"has {array.ndim} dimensions")


def _read_dicom(path: Path) -> tuple[Array, Spacing | None]:
    dataset = pydicom.dcmread(path)
    _refuse_huge([dataset.get(name) or 1 for name in ("Rows", "Columns", "SamplesPerPixel", "NumberOfFrames")])
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return np.moveaxis(apply_color_lut(dataset.pixel_array, dataset), -1, 0), None
    inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    if len(frames := placed_frames(dataset)) > 1:
        return stack_slices(frames, path, inverted)
    array = frames[0].values if frames else stored_values(dataset)
    if inverted:
        array = array.max() - array
    return (array[None] if dataset.SamplesPerPixel == 1 else np.moveaxis(array, -1, 0)), None


_READERS = {
    ".nii.gz": _read_nifti,
    ".nii": _read_nifti,
    ".png": _read_picture,
    ".jpg": _read_picture,
    ".jpeg": _read_picture,
    ".npy": _read_numpy,
    ".dcm": _read_dicom,
}


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
