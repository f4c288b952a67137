# SPDX-License-Identifier: Apache-2.0
"""The sets of an audit by role."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath

from monai_memorization.errors import InputError
from monai_memorization.images.division import check_disjoint
from monai_memorization.images.monitored import leave_out_monitored
from monai_memorization.images.sets import ImageSet, known_suffix, read_image_set


def read_roles(
    training: str | Path | None,
    validation: str | Path | None,
    synthetic: str | Path | None,
    reconstructed_validation: str | Path | None = None,
    reconstructed_training: str | Path | None = None,
    monitoring: str | Path | None = None,
) -> dict[str, ImageSet]:
    """List the sets of an audit.

    Args:
        training: source of the training set, as for :func:`monai_memorization.images.sets.read_image_set`.
        validation: source of the validation set; None is refused with what to do.
        synthetic: source of the synthetic set.
        reconstructed_validation: source of reconstructions, named after the validation images; of all of them.
        reconstructed_training: source of reconstructions, named after the training images; of all or some of them.
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
    for role, source in (("validation", reconstructed_validation), ("training", reconstructed_training)):
        if source is not None:
            reconstructed = read_image_set(source, f"reconstructed_{role}")
            sets[reconstructed.role] = _name_after(reconstructed, sets[role], whole=role == "validation")
    return sets if monitoring is None else leave_out_monitored(sets, monitoring)


def originals(reconstructed: ImageSet, images: ImageSet) -> list[int]:
    """Return the position in ``images`` of the image of the same name, whatever its folder; -1 where there is none."""
    position = {bare_name(name): i for i, name in enumerate(images.image_ids)}
    return [position.get(bare_name(name), -1) for name in reconstructed.image_ids]


def _name_after(reconstructed: ImageSet, images: ImageSet, whole: bool) -> ImageSet:
    """Give reconstructions the patients and labels of the images of the same name.

    Args:
        reconstructed: the reconstructions.
        images: what was reconstructed.
        whole: whether none may be lacking.
    """
    found, known = (Counter(map(bare_name, names)) for names in (reconstructed.image_ids, images.image_ids))
    problems = {
        f"reconstructions of no {images.role} image": found.keys() - known.keys(),
        f"{images.role} images without a reconstruction": known.keys() - found.keys() if whole else set(),
        "names that several reconstructions share": {name for name, n in found.items() if n > 1},
        f"names that several {images.role} images share": {name for name in found if known[name] > 1},
    }
    for problem, names in problems.items():
        if names:
            cure = f"reconstruct the whole {images.role} set, each image" if whole else "write each reconstruction"
            raise InputError(
                f"{reconstructed.role}: {problem}: {len(names)}, such as {min(names)}; {cure} under its own name"
            )
    named = images.subset(originals(reconstructed, images))
    return replace(named, role=reconstructed.role, image_ids=reconstructed.image_ids, paths=reconstructed.paths)


def bare_name(image_id: str) -> str:
    """Return the name of an image without its folder and suffix, by which a reconstruction is known.

    Other dots stay: DICOM files are named by UIDs, 1.2.840.113.7.
    """
    name = PurePosixPath(image_id).name
    return name[: -len(suffix)] if (suffix := known_suffix(name)) else name
