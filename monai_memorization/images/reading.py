# SPDX-License-Identifier: Apache-2.0
"""Read one image file as it was stored: NIfTI, PNG, JPEG, NumPy, DICOM."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pydicom
import torch
from PIL import Image
from torch import Tensor

from monai_memorization.errors import InputError, UnreadableError
from monai_memorization.images.sets import kind

MAX_CHANNELS = 4


def read_image(path: Path) -> Tensor:
    """Read one image as stored, in canonical orientation where the file says one.

    Args:
        path: NIfTI, PNG, JPEG, NumPy or DICOM file.

    Returns:
        Raw intensities, (C, *spatial), float32. Equal channels, as of grey saved as RGB, are one.

    Raises:
        InputError: if the file is of an unknown kind.
        UnreadableError: if it cannot be read, or holds NaN, infinite or constant intensities.
    """
    if (suffix := kind(path)) is None:
        raise InputError(f"{path}: unknown kind of image; known are {', '.join(_READERS)}")
    try:
        image = torch.from_numpy(np.ascontiguousarray(_READERS[suffix](path), dtype=np.float32))
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
    return image


Array = npt.NDArray[np.generic]


def _read_picture(path: Path) -> Array:
    with Image.open(path) as file:
        plain = {"1": "L", "LA": "L"} | dict.fromkeys(("P", "PA", "CMYK", "RGBA", "YCbCr"), "RGB")
        array = np.asarray(file.convert(plain[file.mode]) if file.mode in plain else file)
    return array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)


def _read_nifti(path: Path) -> Array:
    volume = nibabel.as_closest_canonical(nibabel.load(path))
    array = np.asarray(volume.dataobj, dtype=np.float32)
    while array.ndim > 2 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim == 2:
        return array.T[None]  # rows and columns, as pictures are stored
    return array[None] if array.ndim == 3 else np.moveaxis(array, -1, 0)


def _read_numpy(path: Path) -> Array:
    array = np.load(path, allow_pickle=False)
    if array.ndim == 2 or (array.ndim == 3 and min(array.shape[0], array.shape[-1]) > MAX_CHANNELS):
        return array[None]
    if array.ndim in (3, 4):
        return array if array.shape[0] <= MAX_CHANNELS else np.moveaxis(array, -1, 0)
    raise ValueError(f"has {array.ndim} dimensions")


def _read_dicom(path: Path) -> Array:
    dataset = pydicom.dcmread(path)
    array = dataset.pixel_array.astype(np.float32)
    array = array * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        array = array.max() - array
    return array[None] if dataset.SamplesPerPixel == 1 else np.moveaxis(array, -1, 0)


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
