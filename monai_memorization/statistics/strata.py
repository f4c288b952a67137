# SPDX-License-Identifier: Apache-2.0
"""The calibrated protocol label by label: each stratum has its own validation images and thresholds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from monai_memorization.errors import InputError
from monai_memorization.statistics.conformal import copy_candidates, p_values
from monai_memorization.statistics.discoveries import benjamini_hochberg

# pairs of a number of images and the number of patients with so many, the first ascending
ImagesPerPatient = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Stratum:
    """Images that are compared with each other: all of them, or those of one label.

    Args:
        label: None where labels are not used.
        validation: positions of its validation images, int64 (n_V',).
        synthetic: positions of its synthetic images, int64 (n_S',).
        images_per_patient: of its validation images.
        shares_patients: whether a patient of its validation images has one in another stratum too.
    """

    label: str | None
    validation: Tensor
    synthetic: Tensor
    images_per_patient: ImagesPerPatient
    shares_patients: bool = False

    @property
    def n_patients(self) -> int:
        """P, the number of patients among its validation images."""
        return sum(n for _, n in self.images_per_patient)


def recorded_strata(records: Sequence[Mapping[str, Any]]) -> tuple[Stratum, ...]:
    """Return the strata that a report records, whose images are known by number only."""
    return tuple(
        Stratum(
            s["label"],
            torch.arange(s["n_images"]),
            torch.arange(s["n_synthetic"]),
            _recorded_images_per_patient(s),
            s.get("shares_patients", False),
        )
        for s in records
    )


def _recorded_images_per_patient(record: Mapping[str, Any]) -> ImagesPerPatient:
    """Return what a report records; older ones do not, where patients count as having as equally many as can be."""
    if "images_per_patient" in record:
        return tuple((int(n_images), int(n_patients)) for n_images, n_patients in record["images_per_patient"])
    each, more = divmod(record["n_images"], record["n_patients"])
    return ((each, record["n_patients"] - more), *(((each + 1, more),) if more else ()))


def count_images_per_patient(patients: Iterable[str]) -> ImagesPerPatient:
    """Count how many patients have how many images, from the patient of each image."""
    return tuple(sorted(Counter(Counter(patients).values()).items()))


@dataclass(frozen=True)
class Flags:
    """What the calibrated protocol says of each synthetic image, in the order of the set.

    Args:
        p_value: float64 (n_S,).
        copy_candidate: p(s) <= alpha, bool (n_S,).
        in_fdr_list: bool (n_S,).
    """

    p_value: Tensor
    copy_candidate: Tensor
    in_fdr_list: Tensor


def stratify(
    validation_patients: Sequence[str],
    n_synthetic: int,
    validation_labels: Sequence[str] | None = None,
    synthetic_labels: Sequence[str] | None = None,
) -> tuple[Stratum, ...]:
    """Group the images within which p-values are taken: by label where both sets have labels, else all together.

    Args:
        validation_patients: patient of each validation image (the image's own id where patients are unknown).
        n_synthetic: n_S.
        validation_labels: label of each validation image.
        synthetic_labels: label of each synthetic image.

    Returns:
        One stratum, or one per label that occurs among the synthetic images, sorted by label.

    Raises:
        InputError: no validation images, or a synthetic label that the validation set lacks.
    """
    if len(validation_patients) == 0:
        raise InputError(
            "validation: found no images, so nothing can be calibrated; make a validation set with `split`"
        )
    if validation_labels is None or synthetic_labels is None:
        everything = torch.arange(len(validation_patients)), torch.arange(n_synthetic)
        return (Stratum(None, *everything, count_images_per_patient(validation_patients)),)
    strata, labels = [], sorted(set(synthetic_labels))
    labelled = list(zip(validation_patients, validation_labels, strict=True))
    patients = {label: {patient for patient, other in labelled if other == label} for label in labels}
    for label in labels:
        validation = [i for i, other in enumerate(validation_labels) if other == label]
        synthetic = [i for i, other in enumerate(synthetic_labels) if other == label]
        if not validation:
            raise InputError(
                f"label: found {len(synthetic)} synthetic images labelled {label!r} but no validation image; "
                "add validation images of that label, or leave the label column out"
            )
        shares = any(patients[label] & patients[other] for other in labels if other != label)
        sizes = count_images_per_patient(validation_patients[i] for i in validation)
        strata.append(Stratum(label, torch.tensor(validation), torch.tensor(synthetic), sizes, shares))
    return tuple(strata)


def flag(validation: Tensor, synthetic: Tensor, strata: Sequence[Stratum], *, alpha: float, q: float) -> Flags:
    """Give each synthetic image its p-value within its stratum, and its place among the candidates and the listed.

    Args:
        validation: a(v), scores of the validation images, (n_V,).
        synthetic: a(s), (n_S,).
        strata: from `stratify`; every synthetic image is in exactly one.
        alpha: level of the copy candidates.
        q: level of the FDR list, which is taken over all strata together.

    Returns:
        p-values and marks.

    Raises:
        InputError: alpha or q outside (0, 1).
    """
    p_value = torch.ones(len(synthetic), dtype=torch.float64)
    candidate = torch.zeros(len(synthetic), dtype=torch.bool)
    validation, synthetic = validation.cpu(), synthetic.cpu()
    for stratum in strata:
        sets = validation[stratum.validation], synthetic[stratum.synthetic]
        p_value[stratum.synthetic] = p_values(*sets, stratum.n_patients)
        candidate[stratum.synthetic] = copy_candidates(*sets, alpha, stratum.n_patients)
    return Flags(p_value, candidate, benjamini_hochberg(p_value, q))
