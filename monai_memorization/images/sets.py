# SPDX-License-Identifier: Apache-2.0
"""Image sets: which images there are, and whose they are."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd

from monai_memorization.errors import InputError, counted, some
from monai_memorization.files import write_text
from monai_memorization.images.lists import read_columns
from monai_memorization.images.series import series_folders, slice_series

logger = logging.getLogger(__name__)

SUFFIXES = (".nii.gz", ".nii", ".png", ".jpg", ".jpeg", ".npy", ".dcm")
# where MONAI Label, the Medical Segmentation Decathlon and others keep segmentations under the name of their image
MASKS = re.compile(r"(labels?|masks?|segmentations?)(Tr|Ts)?", re.IGNORECASE)
LARGEST_SEED = 2**63 - 1


@dataclass(frozen=True)
class ImageSet:
    """One set of images, by name only: nothing is read until it is needed.

    Args:
        role: the argument that the set was given as: "training", "validation", "synthetic".
        image_ids: one name per image, unique in the set.
        paths: where each image lies.
        patient_ids: whose image it is; the image id itself where patients are unknown.
        labels: the class of each image, or None.
        has_patients: whether ``patient_ids`` came with the images.
        n_ignored: files of a folder that are no images of a known kind; None for a list.
    """

    role: str
    image_ids: tuple[str, ...]
    paths: tuple[Path, ...]
    patient_ids: tuple[str, ...]
    labels: tuple[str, ...] | None
    has_patients: bool
    n_ignored: int | None = None

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def n_patients(self) -> int:
        """Number of different patients."""
        return len(set(self.patient_ids))

    @property
    def n_patients_equal(self) -> float:
        """Number of patients with equally many images that would say as much: Kish's n^2 / (sum of squares)."""
        return len(self) ** 2 / sum(n**2 for n in Counter(self.patient_ids).values())

    def subset(self, indices: Iterable[int]) -> ImageSet:
        """Return the images at ``indices``, in that order."""
        chosen = list(indices)
        return replace(
            self,
            image_ids=tuple(self.image_ids[i] for i in chosen),
            paths=tuple(self.paths[i] for i in chosen),
            patient_ids=tuple(self.patient_ids[i] for i in chosen),
            labels=None if self.labels is None else tuple(self.labels[i] for i in chosen),
        )


def read_image_set(source: str | Path, role: str) -> ImageSet:
    """List the images of a folder, a CSV file or a MONAI data list.

    A folder is searched recursively; links to folders in it, which may form a loop, are refused. A folder of DICOM
    slices of one series is one image, a volume, and so may an entry of a list be. Where a folder holds other images
    too, such as masks, a pattern behind it chooses by name: ``folder/*_image.nii.gz``. A CSV has the column ``image``
    and optionally ``patient_id`` and ``label``; a data list (JSON) has the same keys and is read at its section
    ``role`` or at its only one. Paths are relative to the file that holds them.

    Args:
        source: folder, folder and pattern, ``.csv`` or ``.json`` file.
        role: name of the argument, for the messages and as the section of a data list.

    Returns:
        The set, in the order of the file, or sorted by name for a folder.

    Raises:
        InputError: if nothing is there, a folder holds a link to a folder, a listed image is missing, an image is
            listed twice, or a column is nearly one of those that are read, such as ``PatientID``.
    """
    source = Path(source)
    if source.is_dir():
        return _from_folder(source, role)
    if "*" in source.name and source.parent.is_dir() and not source.is_file():
        return _from_folder(source.parent, role, source.name)
    if not source.is_file():
        raise InputError(f"{role}: {source} does not exist; give a folder of images, a CSV or a MONAI data list (JSON)")
    return _from_list(source, role)


def data_list(source: str | Path | None, role: str, key: str = "image") -> list[dict[str, str]]:
    """Return a set as a MONAI data list, for configs.

    Args:
        source: as for :func:`read_image_set`.
        role: likewise.
        key: entry for the path.

    Returns:
        Items ``{key: path, "source": image id}``, and ``"patient_id"`` where patients are known.

    Raises:
        InputError: as of :func:`read_image_set`, or if no source is given.
    """
    if source is None:  # as a config has it until it is told
        raise InputError(f"{role}: no images are given; give a folder of images, a CSV or a MONAI data list (JSON)")
    images = read_image_set(source, role)
    # not "image_id": MONAI's Spacingd takes what begins with the image's own key and _ for its meta data
    items = [{key: str(path), "source": name} for name, path in zip(images.image_ids, images.paths, strict=True)]
    if images.has_patients:
        for item, patient in zip(items, images.patient_ids, strict=True):
            item["patient_id"] = patient
    return items


def write_image_set(images: ImageSet, path: Path) -> None:
    """Write a set as a CSV that :func:`read_image_set` reads back; see :func:`list_images`."""
    write_text(path, list_images(images, path.parent))


def list_images(images: ImageSet, folder: Path) -> str:
    """Return a set as a CSV that belongs in ``folder``: paths are relative to it where they lie on one drive."""
    columns: dict[str, Sequence[str]] = {"image": [path_seen_from(folder, image) for image in images.paths]}
    if images.has_patients:
        columns["patient_id"] = images.patient_ids
    if images.labels is not None:
        columns["label"] = images.labels
    return pd.DataFrame(columns).to_csv(index=False)


def kind(path: Path) -> str | None:
    """Return the suffix in ``SUFFIXES`` that tells how to read a file; None for a file of another kind.

    Archives name DICOM files without a suffix or by numbers; these are known by the mark behind their preamble. So is
    the index of such an archive, which is no image.
    """
    if path.name.lower() == "dicomdir" or path.is_fifo():  # whoever opens a pipe waits for a writer
        return None
    if (suffix := known_suffix(path.name)) is not None:
        return suffix
    try:
        with path.open("rb") as file:
            return ".dcm" if file.read(132)[128:] == b"DICM" else None
    except OSError:
        return None


def known_suffix(name: str) -> str | None:
    """Return the one of ``SUFFIXES`` that a name ends in, in small letters; None for another."""
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), None)


def check_seed(seed: int) -> None:
    """Refuse a seed that torch or numpy would refuse later.

    Raises:
        InputError: naming it.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"seed: found {seed}, but must lie between 0 and {LARGEST_SEED}")


def _from_folder(folder: Path, role: str, pattern: str = "*") -> ImageSet:
    files = []
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        links = [path for name in folders if (path := Path(parent, name)).is_symlink()]
        if links:
            raise InputError(
                f"{role}: {links[0]} is a link to a folder, whose images would go unseen; give that folder itself, "
                "list all images in a CSV, or remove the link"
            )
        shown = [name for name in names if not name.startswith(".") and fnmatchcase(name, pattern)]
        files += [Path(parent, name) for name in shown]
    kinds = {path: kind(path) for path in files}
    found = [path for path in files if kinds[path] is not None]
    n_ignored = len(files) - len(found)
    if found and n_ignored:
        example = next(path for path in files if kinds[path] is None)
        logger.warning("%s: %d files of %s are no images of a known kind, such as %s", role, n_ignored, folder, example)
    if not found:
        wanted = ", ".join(SUFFIXES) + ("" if pattern == "*" else f" among {pattern}")
        raise InputError(f"{role}: no image in {folder}; looked for {wanted} in it and its subfolders")
    masks = [path for path in found if any(MASKS.fullmatch(part) for part in path.relative_to(folder).parts[:-1])]
    if masks and len(masks) < len(found):
        logger.warning(
            "%s: %d files of %s lie in a folder such as %s and are taken as images; if they are masks, give the folder "
            "of the images, or list these in a CSV",
            *(role, len(masks), folder, masks[0].parent),
        )
    series = series_folders(path for path in found if kinds[path] == ".dcm")
    within = [path for path in found if kinds[path] == ".dcm" and path.parent in series]
    if within and pattern != "*":
        raise InputError(
            f"{role}: {pattern} picks files, but those of {within[0].parent} are slices of a volume; leave the pattern "
            "out, and put each series into a folder of its own"
        )
    if others := [path for path in within if slice_series(path) is None]:
        logger.warning(
            "%s: %d DICOM files of %s are no slices of the volume beside them and are left out, such as %s; if they "
            "are images, put them into a folder of their own",
            *(role, len(others), folder, others[0]),
        )
    n_ignored += len(others)
    images = {*(path.parent for path in within), *found} - {*within}
    ids = sorted(path.relative_to(folder).as_posix() for path in images)
    _refuse_unwritable(ids, role)
    return ImageSet(role, tuple(ids), tuple(folder / name for name in ids), tuple(ids), None, False, n_ignored)


def _refuse_unwritable(ids: Iterable[str], role: str) -> None:
    """Refuse names in another encoding than UTF-8, in which tables are written at the end of an audit."""
    for name in ids:
        try:
            name.encode()
        except UnicodeEncodeError:
            raise InputError(f"{role}: the name {os.fsencode(name)!r} is not in UTF-8; rename that file") from None


def _refuse(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be searched ({error.strerror}); its images would go unseen") from None


def _from_list(source: Path, role: str) -> ImageSet:
    columns = read_columns(source, role)
    ids, patients, labels = columns["image"], columns.get("patient_id"), columns.get("label")
    _refuse_unwritable((*ids, *(patients or ()), *(labels or ())), role)
    if files := [label for label in labels or () if known_suffix(label)]:
        logger.warning("%s: label in %s names files such as %s, no classes, and is not used", role, source, files[0])
        labels = None
    paths = tuple(source.parent / name for name in ids)
    _check_files(ids, paths, source, role)
    return ImageSet(role, ids, paths, patients or ids, labels, patients is not None)


def _check_files(ids: Sequence[str], paths: Sequence[Path], source: Path, role: str) -> None:
    repeated = sorted(name for name, n in Counter(ids).items() if n > 1)
    if repeated:
        raise InputError(f"{role}: {source} lists {counted(repeated, 'image')} more than once ({some(repeated)})")
    missing = [name for name, path in zip(ids, paths, strict=True) if not _exists(path)]
    if missing:
        raise InputError(
            f"{role}: {counted(missing, 'image')} of {source} missing ({some(missing)}); paths are relative to "
            f"{source.parent}"
        )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for any file
        return False


def path_seen_from(folder: Path, path: Path) -> str:
    """Return the relative path of a file as seen from a folder; its absolute one on another drive."""
    place = path.parent.resolve() / path.name  # a link keeps its name, and two to one file stay two
    try:
        return Path(os.path.relpath(place, folder.resolve())).as_posix()
    except ValueError:  # another drive
        return place.as_posix()
