# SPDX-License-Identifier: Apache-2.0
"""Filter: the images of an audited set that the audit does not suspect, as a MONAI data list with links to them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from monai_memorization.detector.embeddings import digest
from monai_memorization.errors import InputError
from monai_memorization.files import new_folder, write_text
from monai_memorization.images.preparation import recorded_preparation
from monai_memorization.images.prepared import Notes, prepared_batches
from monai_memorization.images.sets import ImageSet, read_image_set
from monai_memorization.reporting.reading import read_report
from monai_memorization.reporting.report import hash_images

Suspicion = Literal["candidates", "fdr"]
# with q above alpha images are listed that are no candidates
_COLUMNS: dict[Suspicion, list[str]] = {"candidates": ["copy_candidate", "in_fdr_list"], "fdr": ["in_fdr_list"]}
DATA_LIST = "synthetic.json"
IMAGES = "images"
FILTERED = "filtered"  # key of a data list


@dataclass(frozen=True)
class Filtered:
    """What a filter did.

    Args:
        data_list: the list that was written.
        n_kept: images on it.
        n_dropped: images that the audit suspects.
        n_unread: images that the audit could not read, which are not kept either.
    """

    data_list: Path
    n_kept: int
    n_dropped: int
    n_unread: int


def filter_synthetic(
    audit_dir: str | Path, synthetic: str | Path, output_dir: str | Path, suspicion: Suspicion = "candidates"
) -> Filtered:
    """Write an audited set without the images that the audit suspects.

    Near-identical images are left out whatever is chosen, and so are images that could not be read. What is left is not
    clean: the copies that this audit overlooks are in it. :func:`monai_memorization.releasing.release` judges that.

    Args:
        audit_dir: folder of the finished audit.
        synthetic: the set that was audited, given as it was given to the audit.
        output_dir: a new or empty folder; takes synthetic.json, a MONAI data list, and images/, hard links where the
            disk allows and copies elsewhere.
        suspicion: which images are left out, "candidates" (at alpha, or on the FDR list) or "fdr" (the list only).

    Returns:
        The counts.

    Raises:
        InputError: if the audit is not complete, the images are not those that were audited, none would be left, or
            the folder is not empty. Nothing is then written.
    """
    listed = read_image_set(synthetic, "synthetic")
    images, suspected = read_suspected(Path(audit_dir), listed, suspicion)
    kept = [i for i, name in enumerate(images.image_ids) if not suspected[name]]
    if not kept:
        raise InputError(
            f"{audit_dir}: all {len(images)} images are suspected, so nothing is left; train the generator anew, "
            "docs/copies_found.md says how"
        )
    write_data_list(images.subset(kept), Path(output_dir))
    return Filtered(Path(output_dir) / DATA_LIST, len(kept), len(images) - len(kept), len(listed) - len(images))


def read_suspected(
    audit_dir: Path, images: ImageSet, suspicion: Suspicion = "candidates"
) -> tuple[ImageSet, dict[str, bool]]:
    """Return the images that the audit could read, and for each id whether the audit suspects it.

    Args:
        audit_dir: folder of the finished audit.
        images: the set that was audited.
        suspicion: as of :func:`filter_synthetic`.

    Raises:
        InputError: if the audit is not complete, or the images are not those that were audited.
    """
    if suspicion not in _COLUMNS:
        raise InputError(f"list: found {suspicion!r}; give one of {', '.join(_COLUMNS)}")
    report = read_report(audit_dir)
    columns = _COLUMNS[suspicion]
    pairs = _read_table(audit_dir / "pairs.csv", ("synthetic_id", *columns))
    identical = set(_read_table(audit_dir / "near_identical.csv", ("synthetic_id",))["synthetic_id"])
    marks = zip(pairs["synthetic_id"], (pairs[columns] != "False").any(axis=1), strict=True)
    suspected = {name: bool(marked) or name in identical for name, marked in marks}
    audited = images.subset(i for i, name in enumerate(images.image_ids) if name in suspected)
    n_unread = report["sets"]["synthetic"].get("n_unreadable") or 0
    if len(audited) != len(suspected) or len(images) - len(audited) > n_unread:
        raise InputError(
            f"synthetic: holds {len(images)} images, {len(audited)} of the {len(suspected)} that {audit_dir} audited "
            "among them; give the set that was audited, as it was given then"
        )
    if not _are_the_audited(audited, report):
        raise InputError(
            f"synthetic: its images are not what they were when {audit_dir} audited them; audit them again"
        )
    return audited, suspected


def was_filtered(source: str | Path, images: ImageSet) -> bool:
    """Tell whether images of a set are what a filter left, by the mark in its data list.

    That is the source of the set or lies in it, or it lies beside a folder of the images. No planted copy
    stands for the copies in such a set: the filter took out those that are like planted ones.

    Args:
        source: what the set was given as.
        images: the set.
    """
    source = Path(source).absolute()
    lists = [source, source / DATA_LIST]
    folders = {path.parent for path in images.paths}
    folders |= {path.resolve().parent for path in images.paths if path.is_symlink()}
    folders = {place for folder in folders for place in (folder.absolute(), folder.resolve())}
    folders |= {above for folder in folders for above in folder.parents}
    lists += [folder.parent / DATA_LIST for folder in folders if folder.name == IMAGES]
    return any(map(_is_marked, lists))


def _is_marked(path: Path) -> bool:
    if path.suffix != ".json" or not path.is_file():
        return False
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, RecursionError):
        return False  # whoever reads the set says what is wrong
    return isinstance(content, dict) and content.get(FILTERED) is True


def write_data_list(images: ImageSet, folder: Path) -> None:
    """Write what a filter left to a new folder: links to its files under images/, and a MONAI data list, marked.

    Names are those of the files, with the folders that they do not all have in common.

    Raises:
        InputError: if the folder is not new or empty, or cannot be written.
    """
    # a list may name files by "..", which must not lead out of the new folder
    plain = [Path(os.path.normpath(path.absolute())) for path in images.paths]
    root = os.path.commonpath([path.parent for path in plain])
    names = [f"{IMAGES}/" + path.relative_to(root).as_posix() for path in plain]
    items: list[dict[str, Any]] = [{"image": name} for name in names]
    if images.labels is not None:
        items = [item | {"label": label} for item, label in zip(items, images.labels, strict=True)]
    with new_folder(folder) as unfinished:
        for path, name in zip(images.paths, names, strict=True):
            _link(path, unfinished / name)
        write_text(unfinished / DATA_LIST, json.dumps({FILTERED: True, "synthetic": items}, indent=2) + "\n")


def _link(path: Path, target: Path) -> None:
    """Link a file, or each file of a folder of DICOM slices; copy where links are not possible."""
    if path.is_dir():
        for part in path.iterdir():
            if part.is_file():  # folders below are other images, which may be suspected
                _link(part, target / part.name)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(path.resolve(), target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(path, target)


def _are_the_audited(images: ImageSet, report: dict[str, Any]) -> bool:
    """Tell whether the images still have the contents that the report has the hash of."""
    preparation = recorded_preparation(report["encoder"])
    digests: list[str] = []
    for _, batch in prepared_batches(images, preparation, skip_unreadable=True, notes=Notes()):
        digests += map(digest, batch)
    audited: str = report["provenance"]["image_list_sha256"]["synthetic"]
    return len(digests) == len(images) and hash_images(images.image_ids, digests) == audited


def _read_table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)[list(columns)]
    except (ValueError, OSError, KeyError) as error:
        raise InputError(
            f"{path}: cannot be read as a table of an audit ({type(error).__name__}: {error}); give the folder of a "
            "finished audit"
        ) from None
