# SPDX-License-Identifier: Apache-2.0
"""A DICOM series: the slices of one volume, each in a file of its own, in one folder."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import Dataset

from monai_memorization.errors import InputError

Array = npt.NDArray[np.generic]

# other files that a folder of slices may hold, reports and overviews, of which as many are looked at
N_OTHERS = 8
# slices may lie this much off their even grid, as a share of their distance: positions are written with few digits
UNEVEN = 0.05


def read_series(folder: Path) -> tuple[Array, tuple[float, ...]]:
    """Read the volume of the one series in a folder, in canonical orientation.

    Slices are ordered by their position along the normal of the slices, not by instance number, which need not follow
    it (DICOM PS3.3, C.7.6.2.1.1: image position and orientation).

    Args:
        folder: holds the files of one series.

    Returns:
        Intensities after rescale slope and intercept, (1, X, Y, Z), to the right, front and up; voxel sizes in mm.

    Raises:
        InputError: if there are several series, or slices are missing, of different sizes or not parallel.
    """
    series = series_in(folder)
    if not series:
        raise InputError(f"{folder}: a folder without the slices of a DICOM series; name a file, or a folder of slices")
    if len(series) > 1:
        found = ", ".join(f"{uid} ({len(paths)} files, such as {paths[0].name})" for uid, paths in series.items())
        raise InputError(
            f"{folder}: holds {len(series)} DICOM series, and an image is one: {found}. Which one is meant? Put each "
            "into a folder of its own"
        )
    slices = [pydicom.dcmread(path) for path in next(iter(series.values()))]
    orientation = np.array(slices[0].ImageOrientationPatient, dtype=float).reshape(2, 3)
    if len({(s.Rows, s.Columns, *map(float, s.PixelSpacing)) for s in slices}) > 1 or not all(
        np.allclose(np.array(s.ImageOrientationPatient, dtype=float).reshape(2, 3), orientation, atol=1e-3)
        for s in slices
    ):
        raise InputError(f"{folder}: its slices differ in size or direction and form no volume; keep those of one scan")
    normal = np.cross(orientation[0], orientation[1])
    slices.sort(key=lambda s: float(normal @ np.array(s.ImagePositionPatient, dtype=float)))
    positions = np.array([s.ImagePositionPatient for s in slices], dtype=float)
    step = _even_step(positions, normal, folder)
    rows, columns = map(float, slices[0].PixelSpacing)  # distance of rows, of columns
    affine = np.eye(4)
    # index (column, row, slice) to the patient's left, back and up, as DICOM counts; NIfTI counts right, front and up
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = orientation[0] * columns, orientation[1] * rows, normal * step
    affine[:3, 3] = positions[0]
    affine[:2] *= -1
    values = np.stack([stored_values(s).T for s in slices], axis=-1)
    if slices[0].get("PhotometricInterpretation") == "MONOCHROME1":
        values = values.max() - values
    volume = nibabel.as_closest_canonical(nibabel.Nifti1Image(values, affine))
    sizes = nibabel.affines.voxel_sizes(volume.affine)
    return np.asarray(volume.dataobj)[None], tuple(float(size) for size in sizes)


def series_in(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each series of slices in a folder, by its UID; subfolders are not looked into."""
    series = defaultdict[str, list[Path]](list)
    for path in sorted(folder.iterdir()):
        if (uid := slice_series(path)) is not None:
            series[uid].append(path)
    return dict(series)


def slice_series(path: Path) -> str | None:
    """Return the series of a file that is one slice through a body; None for any other file, a radiograph too."""
    if not path.is_file() or not pydicom.misc.is_dicom(path):
        return None
    header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_PLACE))
    return str(header.SeriesInstanceUID) if all(header.get(name) is not None for name in _PLACE) else None


def stored_values(dataset: Dataset) -> npt.NDArray[np.float32]:
    """Return the pixels of a file after rescale slope and intercept, which some files name and leave empty."""
    pixels = dataset.pixel_array.astype(np.float32)
    values: npt.NDArray[np.float32] = pixels * float(dataset.get("RescaleSlope") or 1)
    return values + float(dataset.get("RescaleIntercept") or 0)


def series_folders(paths: Iterable[Path]) -> set[Path]:
    """Return the folders whose DICOM files are slices of volumes: those in which two files are of one series.

    Args:
        paths: DICOM files.
    """
    files = defaultdict[Path, list[Path]](list)
    for path in paths:
        files[path.parent].append(path)
    return {folder for folder, members in files.items() if _share_a_series(members)}


_PLACE = ("SeriesInstanceUID", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")


def _share_a_series(paths: list[Path]) -> bool:
    """Tell whether two files are slices of one series; a folder of radiographs is told by its first few files."""
    seen, n_others = set[str](), 0
    for path in sorted(paths):
        uid = slice_series(path)
        if uid in seen:
            return True
        if uid is not None:
            seen.add(uid)
        elif (n_others := n_others + 1) == N_OTHERS:
            break
    return False


def _even_step(positions: npt.NDArray[np.float64], normal: npt.NDArray[np.float64], folder: Path) -> float:
    """Return the distance of the slices in mm."""
    if len(positions) < 2:
        return 1.0
    steps = np.diff(positions @ normal)
    step = float(np.median(steps))
    if step <= 0 or np.abs(steps - step).max() > UNEVEN * step:
        raise InputError(
            f"{folder}: its {len(positions)} slices are {steps.min():g} to {steps.max():g} mm apart; slices are "
            "missing or there twice. Complete the series, or keep one scan of it"
        )
    return step
