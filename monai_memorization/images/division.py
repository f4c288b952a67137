# SPDX-License-Identifier: Apache-2.0
"""Divide image sets by patient, write what came of it, and keep those divided apart."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from monai_memorization.errors import InputError, counted, some
from monai_memorization.files import write_text, written_together
from monai_memorization.images.sets import ImageSet, check_seed, list_images, read_image_set


def check_disjoint(training: ImageSet, validation: ImageSet) -> None:
    """Refuse a validation set that shares patients with the training set: it would hide copies of them.

    Raises:
        InputError: naming the shared patients, or those whose number one of the sets writes otherwise, as 007 and 7.
    """
    if not (training.has_patients and validation.has_patients):
        return
    shared = sorted(set(training.patient_ids) & set(validation.patient_ids))
    if shared:
        raise InputError(
            f"validation: {counted(shared, 'patient')} also in the training set ({some(shared)}); copies of them "
            "would go unseen. Remove them from one of the two sets, or divide anew with `monai-memorization split`"
        )
    numbers, others = _by_number(training.patient_ids), _by_number(validation.patient_ids)
    alike = [f"{others[number]} and {numbers[number]}" for number in sorted(numbers.keys() & others.keys())]
    if alike:
        raise InputError(
            f"validation: {counted(alike, 'patient')} also in the training set if numbers are compared "
            f"({some(alike)}); copies of them would go unseen. Write each patient alike in both sets, and two "
            "patients unlike"
        )


def split(images: ImageSet, share: float = 0.2, seed: int = 0) -> tuple[ImageSet, ImageSet]:
    """Divide a set at random by patient, so that no patient is on both sides.

    Args:
        images: the set to divide, n patients.
        share: share of the patients that goes to the validation set, in (0, 1).
        seed: of the random order.

    Returns:
        Training set and validation set, in the order of ``images``.

    Raises:
        InputError: if ``share`` is not in (0, 1), one side would be empty, the seed is below 0, or a patient of one
            side may be one of the other, written otherwise.
    """
    check_seed(seed)
    patients = sorted(set(images.patient_ids))
    n_validation = round(share * len(patients)) if 0 < share < 1 else 0
    if not 0 < n_validation < len(patients):
        cure = "give another share in (0, 1)" if len(patients) > 1 else "at least 2 patients are needed"
        raise InputError(f"share: {share} of {len(patients)} patients leaves one side empty; {cure}")
    order = torch.randperm(len(patients), generator=torch.Generator().manual_seed(seed)).tolist()
    validation_patients = {patients[i] for i in order[:n_validation]}
    sides: tuple[list[int], list[int]] = ([], [])
    for index, patient in enumerate(images.patient_ids):
        sides[patient in validation_patients].append(index)
    training, validation = (images.subset(side) for side in sides)
    sets = replace(training, role="training"), replace(validation, role="validation")
    check_disjoint(*sets)
    return sets


def cap_patients(source: str | Path | ImageSet, n: int, seed: int = 0, role: str = "training") -> ImageSet:
    """Return a set with at most ``n`` images of each patient, chosen at random, for configs.

    Args:
        source: as for :func:`read_image_set`, or a set already listed.
        n: images of a patient, at least 1.
        seed: of the choice.
        role: the name of the argument, for messages.

    Returns:
        The chosen images, in their order.

    Raises:
        InputError: if patients are not known, or ``n`` or the seed is out of its range.
    """
    check_seed(seed)
    images = source if isinstance(source, ImageSet) else read_image_set(source, role)
    if n < 1:
        raise InputError(f"n: found {n} images per patient, but must be at least 1")
    if not images.has_patients:
        raise InputError(f"{role}: names no patients, whose images could be counted; give a CSV with patient_id")
    met: Counter[str] = Counter()
    chosen = []
    for i in torch.randperm(len(images), generator=torch.Generator().manual_seed(seed)).tolist():
        met[images.patient_ids[i]] += 1
        if met[images.patient_ids[i]] <= n:
            chosen.append(i)
    return images.subset(sorted(chosen))


def write_division(sides: Sequence[ImageSet], folder: Path, source: Path) -> list[Path]:
    """Write each side as a CSV that has its role for a name; all or none.

    Args:
        sides: of :func:`split`.
        folder: where to.
        source: what was divided.

    Returns:
        The files.

    Raises:
        InputError: if one would replace the source or another list.
    """
    lists = {folder / f"{side.role}.csv": list_images(side, folder) for side in sides}
    if source.resolve() in [path.resolve() for path in lists]:
        raise InputError(f"output_dir: {source} itself would be replaced; name another folder")
    for path, text in lists.items():
        if path.exists() and not _holds(path, text):
            raise InputError(
                f"output_dir: {path} exists with other content, and a generator may have been trained on it; name "
                "another folder, or remove it"
            )
    with written_together(folder) as unfinished:
        for path, text in lists.items():
            write_text(unfinished / path.name, text)
    return list(lists)


def _by_number(patient_ids: Iterable[str]) -> dict[str, str]:
    """Return those that are whole numbers, by the number: programs write tables back with 7 or 7.0 for 007."""
    found = ((re.fullmatch(r"0*(\d+?)(\.0+)?", patient), patient) for patient in patient_ids)
    return {match[1]: patient for match, patient in found if match}


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False
