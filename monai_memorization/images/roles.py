# SPDX-License-Identifier: Apache-2.0
"""The sets of an audit by role, and that none of them leaks into another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from monai_memorization.errors import InputError
from monai_memorization.images.monitored import leave_out_monitored
from monai_memorization.images.sets import ImageSet, check_disjoint, read_image_set


def read_roles(
    training: str | Path | None,
    validation: str | Path | None,
    synthetic: str | Path | None,
    reconstructed_validation: str | Path | None,
    monitoring: str | Path | None = None,
) -> dict[str, ImageSet]:
    """List the sets of an audit.

    Args:
        training: source of the training set, as for :func:`monai_memorization.images.sets.read_image_set`.
        validation: source of the validation set; None is refused with what to do.
        synthetic: source of the synthetic set.
        reconstructed_validation: source of the reconstructions, named after the validation images; or None.
        monitoring: monitoring.csv of the training, whose patients are left out of the validation set; or None.

    Returns:
        The sets by the names of these arguments.

    Raises:
        InputError: if a source is bad, a patient is in training and validation, or a reconstruction has no original.
    """
    if validation is None:
        raise InputError(
            "validation: none given; without images of other patients no similarity can be called too high. If "
            "the generator has not been trained yet, `monai-memorization split` sets some apart; if it was trained on "
            "all, give images from the same source and time that it has not seen"
        )
    given = {"training": training, "validation": validation, "synthetic": synthetic}
    for role in given:
        if given[role] is None:
            raise InputError(f"{role}: none given; give a folder of images, a CSV or a MONAI data list (JSON)")
    sets = {role: read_image_set(source, role) for role, source in given.items() if source is not None}
    check_disjoint(sets["training"], sets["validation"])
    if reconstructed_validation is not None:
        reconstructed = read_image_set(reconstructed_validation, "reconstructed_validation")
        sets["reconstructed_validation"] = _name_after(reconstructed, sets["validation"])
    return sets if monitoring is None else leave_out_monitored(sets, monitoring)


def check_identical(training: ImageSet, validation: ImageSet, digests: Sequence[str], others: Sequence[str]) -> None:
    """Refuse a validation image that is in the training set too: it would make a copy look ordinary.

    Args:
        training: the training set.
        validation: the validation set.
        digests: hash of each training image.
        others: hash of each validation image.

    Raises:
        InputError: naming a shared image in both sets.
    """
    known = dict(zip(digests, training.image_ids, strict=True))
    shared = [(name, known[hash_]) for name, hash_ in zip(validation.image_ids, others, strict=True) if hash_ in known]
    if shared:
        raise InputError(
            f"validation: {len(shared)} of its images are in the training set too, {shared[0][0]} as {shared[0][1]}; "
            "copies of them would go unseen. Remove them from one of the two sets"
        )


def _name_after(reconstructed: ImageSet, validation: ImageSet) -> ImageSet:
    """Give reconstructions the patients and labels of the validation images of the same name, whatever their folder."""
    position = {_stem(name): i for i, name in enumerate(validation.image_ids)}
    stems = Counter(_stem(name) for name in reconstructed.image_ids)
    problems = {
        "reconstructions of no validation image": sorted(stems.keys() - position.keys()),
        "validation images without a reconstruction": sorted(position.keys() - stems.keys()),
        "names that several reconstructions share": sorted(name for name, n in stems.items() if n > 1),
        "names that several validation images share": sorted(
            name for name, n in Counter(map(_stem, validation.image_ids)).items() if n > 1
        ),
    }
    for problem, names in problems.items():
        if names:
            raise InputError(
                f"reconstructed_validation: {problem}: {len(names)}, such as {names[0]}; reconstruct the whole "
                "validation set, each image under its own name"
            )
    originals = validation.subset(position[_stem(name)] for name in reconstructed.image_ids)
    return replace(originals, role=reconstructed.role, image_ids=reconstructed.image_ids, paths=reconstructed.paths)


def _stem(name: str) -> str:
    return PurePosixPath(name).name.split(".")[0]
