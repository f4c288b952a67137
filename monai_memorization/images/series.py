# SPDX-License-Identifier: Apache-2.0
"""DICOM slices of one volume: a series, each in a file of its own, in one folder, or the frames of one file."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom import Dataset

from monai_memorization.errors import InputError, some

Array = npt.NDArray[np.generic]

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
        found = [f"{uid} ({len(paths)} files, such as {paths[0].name})" for uid, paths in series.items()]
        raise InputError(
            f"{folder}: holds {len(series)} DICOM series, and an image is one: {some(found)}. Which one is meant? Put "
            "each into a folder of its own, or list the slices in a CSV to audit them as pictures"
        )
    datasets = [_read_grey_slice(path) for path in next(iter(series.values()))]
    inverted = datasets[0].get("PhotometricInterpretation") == "MONOCHROME1"
    return stack_slices([_slice(dataset, stored_values(dataset)) for dataset in datasets], folder, inverted)


def _read_grey_slice(path: Path) -> Dataset:
    """Read a file of a series; refuse one that is not one slice of grey values."""
    dataset = pydicom.dcmread(path)
    colours, n_frames = dataset.get("PhotometricInterpretation"), int(dataset.get("NumberOfFrames") or 1)
    if colours in ("MONOCHROME1", "MONOCHROME2") and n_frames == 1:
        return dataset
    found = f"{n_frames} frames" if n_frames > 1 else f"colours ({colours})"
    raise InputError(
        f"{path}: holds {found}, and slices of a volume are one frame of grey values each; keep the series of grey "
        "slices alone, or list the files in a CSV to audit them as images of their own"
    )


class Slice(NamedTuple):
    """One slice of a volume, and where it lies in the patient, in mm to the left, back and up.

    Args:
        values: intensities, (rows, columns).
        directions: unit vectors along a row and along a column, (2, 3).
        position: of the first pixel, (3,).
        spacing: distance of rows, of columns.
    """

    values: npt.NDArray[np.float32]
    directions: npt.NDArray[np.float64]
    position: npt.NDArray[np.float64]
    spacing: tuple[float, float]


def stack_slices(slices: Sequence[Slice], path: Path, inverted: bool = False) -> tuple[Array, tuple[float, ...]]:
    """Put the slices of a volume together, in any order; returns and errors as of :func:`read_series`.

    Args:
        slices: at least one.
        path: names the volume in errors.
        inverted: whether larger values are darker.
    """
    directions, spacing = slices[0].directions, slices[0].spacing
    if len({(s.values.shape, s.spacing) for s in slices}) > 1 or not all(
        np.allclose(s.directions, directions, atol=1e-3) for s in slices
    ):
        raise InputError(f"{path}: its slices differ in size or direction and form no volume; keep those of one scan")
    normal = np.cross(*directions)
    ordered = sorted(slices, key=lambda s: float(normal @ s.position))
    step = _even_step(np.array([s.position for s in ordered]), normal, path)
    affine = np.eye(4)
    # index (column, row, slice) to the patient's left, back and up, as DICOM counts; NIfTI counts right, front and up
    affine[:3, :3] = np.stack([directions[0] * spacing[1], directions[1] * spacing[0], normal * step], axis=1)
    affine[:3, 3] = ordered[0].position
    affine[:2] *= -1
    values = np.stack([s.values.T for s in ordered], axis=-1)
    if inverted:
        values = values.max() - values
    volume = nibabel.as_closest_canonical(nibabel.Nifti1Image(values, affine))
    sizes = nibabel.affines.voxel_sizes(volume.affine)
    return np.asarray(volume.dataobj)[None], tuple(float(size) for size in sizes)


def placed_frames(dataset: Dataset) -> list[Slice]:
    """Return the frames of a file that says where each lies, as those of enhanced CT and MR; none of another file.

    What is said of a frame stands with it, or once for all of them (DICOM PS3.3, C.7.6.16).
    """
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or []
    (shared,) = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
    told = []
    for frame in frames:
        of_frame = Dataset()
        for group in _GROUPS:
            for part in frame.get(group) or shared.get(group) or []:
                of_frame.update(part)
        told.append(of_frame)
    if not told or not all(name in of_frame for of_frame in told for name in _PLACE[1:]):
        return []
    pixels = stored_values(dataset).reshape(len(told), int(dataset.Rows), int(dataset.Columns))
    return [_slice(of_frame, _rescaled(values, of_frame)) for of_frame, values in zip(told, pixels, strict=True)]


def _slice(place: Dataset, values: npt.NDArray[np.float32]) -> Slice:
    directions = np.array(place.ImageOrientationPatient, dtype=float).reshape(2, 3)
    rows, columns = map(float, place.PixelSpacing)
    return Slice(values, directions, np.array(place.ImagePositionPatient, dtype=float), (rows, columns))


def series_in(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each series of slices in a folder, by its UID; subfolders are not looked into."""
    series = defaultdict[str, list[Path]](list)
    for path in sorted(folder.iterdir()):
        if (uid := slice_series(path)) is not None:
            series[uid].append(path)
    return dict(series)


def slice_series(path: Path) -> str | None:
    """Return the series of a file that is one slice through a body; None for any other file, a radiograph too.

    Raises:
        InputError: if its header cannot be read: as one file less of a series it would go unseen.
    """
    try:
        if not path.is_file() or not pydicom.misc.is_dicom(path):
            return None
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_PLACE))
        return str(header.SeriesInstanceUID) if all(header.get(name) is not None for name in _PLACE) else None
    except Exception as error:  # a damaged header fails in many ways
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: its DICOM header cannot be read ({reason}); mend or remove the file") from error


def stored_values(dataset: Dataset) -> npt.NDArray[np.float32]:
    """Return the pixels of a file after rescale slope and intercept."""
    return _rescaled(dataset.pixel_array.astype(np.float32), dataset)


def _rescaled(pixels: npt.NDArray[np.float32], told: Dataset) -> npt.NDArray[np.float32]:
    """Apply slope and intercept, which some files name and leave empty."""
    values: npt.NDArray[np.float32] = pixels * float(told.get("RescaleSlope") or 1)
    return values + float(told.get("RescaleIntercept") or 0)


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
# where a file of many frames says that of a frame, and its slope and intercept
_GROUPS = (
    "PlanePositionSequence",
    "PlaneOrientationSequence",
    "PixelMeasuresSequence",
    "PixelValueTransformationSequence",
)


def _share_a_series(paths: list[Path]) -> bool:
    """Tell whether two files are slices of one series."""
    seen = set[str]()
    for path in sorted(paths):
        if (uid := slice_series(path)) in seen:
            return True
        if uid is not None:
            seen.add(uid)
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
