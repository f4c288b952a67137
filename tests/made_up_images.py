# SPDX-License-Identifier: Apache-2.0
"""Made-up images: smooth, seeded, each unlike the others; and the files they are written to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pandas as pd
import pydicom
import torch
import torch.nn.functional as F
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid
from torch import Tensor


def smooth_images(n: int, size: Sequence[int] = (32, 32), seed: int = 0, coarse: int = 7) -> Tensor:
    """Return n different images in [0, 1], float32 (n, *size)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(n, 1, *[coarse] * len(size), generator=generator)
    mode = "bilinear" if len(size) == 2 else "trilinear"
    images = F.interpolate(noise, size=list(size), mode=mode, align_corners=True)[:, 0]
    low, high = images.flatten(1).amin(1), images.flatten(1).amax(1)
    shape = (-1, *[1] * len(size))
    return (images - low.view(shape)) / (high - low).view(shape)


def disc(size: Sequence[int], radius: float, center: Sequence[float] | None = None) -> Tensor:
    """Return a disc or ball of 1 on 0 with an edge of one pixel, float32 (*size)."""
    center = [(side - 1) / 2 for side in size] if center is None else center
    axes = [torch.arange(side) - middle for side, middle in zip(size, center, strict=True)]
    squares = sum(axis**2 for axis in torch.meshgrid(*axes, indexing="ij"))
    return (radius + 0.5 - squares.sqrt()).clamp(0, 1)


def write_image(image: Tensor, path: Path) -> Path:
    """Write an image (*spatial) in [0, 1] as the suffix says: 8-bit PNG, float32 NumPy or NIfTI of rows and columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        Image.fromarray((image.numpy() * 255).round().astype(np.uint8)).save(path)
    elif path.suffix == ".npy":
        np.save(path, image.numpy())
    else:
        array = image.numpy().T if image.dim() == 2 else image.numpy()
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    return path


def write_folder(images: Tensor, folder: Path, prefix: str = "image", suffix: str = ".png") -> Path:
    """Write images (n, *spatial) as prefix_000, prefix_001, ... into a folder."""
    for i, image in enumerate(images):
        write_image(image, folder / f"{prefix}_{i:03}{suffix}")
    return folder


def write_csv(folder: Path, path: Path, patients: Sequence[str], labels: Sequence[str] | None = None) -> Path:
    """List the images of a folder in a CSV beside it, with a patient each."""
    columns = {"image": [f"{folder.name}/{file.name}" for file in sorted(folder.iterdir())], "patient_id": patients}
    pd.DataFrame(columns | ({} if labels is None else {"label": labels})).to_csv(path, index=False)
    return path


def write_series(volume: np.ndarray, affine: np.ndarray, folder: Path, uid: str | None = None) -> Path:
    """Write a volume of whole numbers (X, Y, Z), affine as NIfTI has it, as DICOM slices across its last axis.

    Files are named in another order than that of the slices; intensities are stored with slope 2 and intercept -1024.
    """
    folder.mkdir(parents=True, exist_ok=True)
    to_dicom = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    steps = np.linalg.norm(to_dicom[:3, :3], axis=0)
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    uid = uid or generate_uid()
    for z in range(volume.shape[2]):
        path = folder / f"{(7 * z) % 97:03}_{uid[-4:]}.dcm"
        dataset = pydicom.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
        dataset.SOPClassUID, dataset.SOPInstanceUID = MRImageStorage, generate_uid()
        meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
        dataset.SeriesInstanceUID, dataset.InstanceNumber = uid, volume.shape[2] - z
        dataset.ImageOrientationPatient = [*(to_dicom[:3, 0] / steps[0]), *(to_dicom[:3, 1] / steps[1])]
        dataset.ImagePositionPatient = list(np.round(to_dicom[:3] @ [0, 0, z, 1], 6))
        dataset.PixelSpacing = [steps[1], steps[0]]
        pixels = volume[:, :, z].T
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated = dataset.BitsStored = 16
        dataset.HighBit, dataset.PixelRepresentation = 15, 1
        dataset.RescaleSlope, dataset.RescaleIntercept = 2, -1024
        dataset.PixelData = pixels.astype(np.int16).tobytes()
        dataset.save_as(path, enforce_file_format=True)
    return folder
