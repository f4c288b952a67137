# SPDX-License-Identifier: Apache-2.0
"""Validation patients that steer a training: which they are, and how a later audit leaves them out."""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

import pandas as pd

from monai_memorization.errors import InputError
from monai_memorization.files import write_text
from monai_memorization.images.division import split
from monai_memorization.images.sets import ImageSet

FILE = "monitoring.csv"

logger = logging.getLogger(__name__)


def choose_monitored(validation: ImageSet, share: float, seed: int) -> ImageSet:
    """Choose the patients that may steer a training, and return their images.

    Args:
        validation: the whole validation set.
        share: share of its patients, in (0, 1].
        seed: of the choice, which is the same in every run on this set.

    Raises:
        InputError: if the share leaves no patient on one side.
    """
    return validation if share == 1 else split(validation, share, seed)[1]


def write_monitored(monitored: ImageSet, folder: Path) -> None:
    """Write the ids of the images that steer a training to monitoring.csv."""
    write_text(folder / FILE, pd.DataFrame({"image_id": monitored.image_ids}).to_csv(index=False))


def leave_out_monitored(sets: dict[str, ImageSet], monitoring: str | Path) -> dict[str, ImageSet]:
    """Take the patients of monitoring.csv out of the validation set and of its reconstructions.

    Args:
        sets: "validation" and, where given, "reconstructed_validation", with the same patients; and others.
        monitoring: file that :func:`write_monitored` wrote.

    Returns:
        The sets.

    Raises:
        InputError: if the file cannot be read, names images that are not in the validation set, or leaves none.
    """
    validation = sets["validation"]
    names = _read_ids(Path(monitoring))
    unknown = sorted(names - set(validation.image_ids))
    if unknown:
        raise InputError(
            f"monitoring: {len(unknown)} images of {monitoring} are not in the validation set, such as {unknown[0]}; "
            "give the validation set of the handler: validation.csv beside that file, where it was given a data set"
        )
    pairs = zip(validation.image_ids, validation.patient_ids, strict=True)
    patients = {patient for name, patient in pairs if name in names}
    if patients >= set(validation.patient_ids):
        raise InputError(
            f"monitoring: {monitoring} names every patient of the validation set, so none is left to audit with; "
            "give images of further patients"
        )
    kept = dict(sets)
    for role in kept.keys() & {"validation", "reconstructed_validation"}:
        own = sets[role].patient_ids
        kept[role] = sets[role].subset(i for i, patient in enumerate(own) if patient not in patients)
    return kept


def warn_of_forgotten(encoder: Path, validation: ImageSet) -> None:
    """Tell where a watched training left this encoder, and with it a monitoring.csv of images that are to judge.

    Args:
        encoder: weights, in the folder that the handler keeps them in or anywhere else.
        validation: the validation set; silent where none of its images steered that training.
    """
    forgotten = encoder.parent.parent / FILE
    with suppress(InputError):  # there is none, or a file of another kind
        if _read_ids(forgotten) & set(validation.image_ids):
            logger.warning(
                "monitoring: none given, but %s names validation patients that steered a training with this encoder; "
                "give it, so that they have no part in the verdict on that training's model",
                forgotten,
            )


def _read_ids(path: Path) -> set[str]:
    try:
        return set(pd.read_csv(path, dtype=str, keep_default_na=False)["image_id"])
    except (ValueError, OSError, KeyError) as error:
        raise InputError(
            f"monitoring: {path} cannot be read as the monitoring.csv of a training ({type(error).__name__}: {error}); "
            "it has one column, image_id"
        ) from None
