# SPDX-License-Identifier: Apache-2.0
"""Leaks: training images that came into the validation set, and training images that repeat each other.

An image in both sets makes copies of it look ordinary. An image that the training set repeats is memorized first.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import minimum_spanning_tree

from monai_memorization.detector.embeddings import Embeddings, digest, shrink
from monai_memorization.detector.near_identical import near_identical, near_identical_pairs
from monai_memorization.errors import InputError
from monai_memorization.images.preparation import Preparation, choose_preparation
from monai_memorization.images.prepared import prepared_batches
from monai_memorization.images.sets import ImageSet, read_image_set

logger = logging.getLogger(__name__)

Kind = Literal["identical_in_validation", "near_identical_in_validation", "repeated_in_training"]


@dataclass(frozen=True)
class Leak:
    """Two real images that are one picture; the fields are the columns of leaks.csv.

    Args:
        kind: the validation image is identical or near-identical to a training image, or a training image repeats
            another.
        image_id: the validation image, or the later of two training images.
        patient_id: whose it is said to be.
        other_image_id: the training image that it repeats.
        other_patient_id: whose that is said to be.
        similarity: correlation of their pixels after the best flip, in [0.999, 1].
    """

    kind: Kind
    image_id: str
    patient_id: str
    other_image_id: str
    other_patient_id: str
    similarity: float


def find_leaks(training: Embeddings, validation: Embeddings, preparation: Preparation) -> list[Leak]:
    """Look for validation images among the training images, and for repeated training images.

    Of images that are all alike, each but one is named once, with one that it repeats, one of the same patient where
    there is one: as many images as would have to go.

    Args:
        training: n_T images.
        validation: n_V images.
        preparation: as both were prepared.

    Returns:
        Validation images first, each kind in the order of its set.
    """
    return _in_validation(training, validation, preparation) + _repeated(training, preparation)


def distinct_images(source: str | Path | ImageSet, role: str = "training") -> ImageSet:
    """Return a set without the images that repeat another one of it, for configs.

    What a generator sees twice it memorizes first.

    Args:
        source: as for :func:`monai_memorization.images.sets.read_image_set`, or a set already listed.
        role: the name of the argument, for messages.

    Returns:
        Of images that are identical or near-identical the first, and all others.
    """
    images = source if isinstance(source, ImageSet) else read_image_set(source, role)
    preparation = choose_preparation(images)
    thumbnails, digests = [], list[str]()
    for _, batch in prepared_batches(images, preparation):
        thumbnails.append(shrink(batch))
        digests += map(digest, batch)
    # no encoder is needed to see that two images are one picture
    nothing = torch.empty(len(images), 0)
    pictures = Embeddings(images, nothing, torch.cat(thumbnails), nothing, tuple(digests))
    repeated = {leak.image_id for leak in _repeated(pictures, preparation)}
    logger.info("%s: %d of %d images repeat another one and are left out", role, len(repeated), len(images))
    return images.subset(i for i, name in enumerate(images.image_ids) if name not in repeated)


def refuse_identical(leaks: Sequence[Leak], table: Path) -> None:
    """Refuse a validation image that is in the training set too: it would make a copy look ordinary.

    A near-identical one may be another person after all, and is left to whoever reads the report.

    Args:
        leaks: of :func:`find_leaks`.
        table: the file to which they were written.

    Raises:
        InputError: naming a shared image in both sets, and the table.
    """
    shared = [leak for leak in leaks if leak.kind == "identical_in_validation"]
    if shared:
        raise InputError(
            f"validation: {len(shared)} of its images are in the training set too, {shared[0].image_id} as "
            f"{shared[0].other_image_id}; copies of them would go unseen. Remove them from one of the two sets; "
            f"{table} names all"
        )


def refuse_shared(synthetic: Embeddings, real: Embeddings) -> None:
    """Refuse a synthetic set that holds a validation image: no generator draws it, so that a wrong set was given.

    Raises:
        InputError: naming a shared image in both sets.
    """
    names = dict(zip(real.digests, real.images.image_ids, strict=True))
    shared = [i for i, digest in enumerate(synthetic.digests) if digest in names]
    if shared:
        raise InputError(
            f"synthetic: {len(shared)} of its images are in the {real.images.role} set too, "
            f"{synthetic.images.image_ids[shared[0]]} as {names[synthetic.digests[shared[0]]]}; held against "
            "themselves they say nothing. Give what the generator drew, and validation images that are not among it"
        )


def refuse_unchanged(reconstructed: Embeddings, images: Embeddings) -> None:
    """Refuse reconstructions most of which are the very images that they are named after: no autoencoder returns those.

    Raises:
        InputError: naming one.
    """
    contents = set(images.digests)
    same = [i for i, digest in enumerate(reconstructed.digests) if digest in contents]
    if 2 * len(same) > len(reconstructed):
        raise InputError(
            f"{reconstructed.images.role}: {len(same)} of its {len(reconstructed)} images are those of the "
            f"{images.images.role} set unchanged, such as {reconstructed.images.image_ids[same[0]]}; give what the "
            "generator's autoencoder makes of them"
        )


def _in_validation(training: Embeddings, validation: Embeddings, preparation: Preparation) -> list[Leak]:
    position = {digest: i for i, digest in reversed(list(enumerate(training.digests)))}
    identical = [
        _leak("identical_in_validation", validation, i, training, position[digest], 1.0)
        for i, digest in enumerate(validation.digests)
        if digest in position
    ]
    others = validation.subset([i for i, digest in enumerate(validation.digests) if digest not in position])
    agreement, match = near_identical(others, training, preparation)
    return identical + [
        _leak("near_identical_in_validation", others, i, training, int(match[i]), float(agreement[i]))
        for i in (match >= 0).nonzero()[:, 0].tolist()
    ]


def _repeated(training: Embeddings, preparation: Preparation) -> list[Leak]:
    """Link images that are alike, and keep of the links a spanning forest, those within a patient first."""
    digests, patients = training.digests, training.images.patient_ids
    order = sorted(range(len(training)), key=lambda i: (digests[i], patients[i], i))
    alike = {(min(a, b), max(a, b)): 1.0 for a, b in pairwise(order) if digests[a] == digests[b]}
    # identical images would crowd out near-identical ones among the few nearest
    firsts = sorted({digests[i]: i for i in reversed(order)}.values())
    found = near_identical_pairs(training.subset(firsts), preparation)
    alike |= {(firsts[a], firsts[b]): value for (a, b), value in found.items()}
    if not alike:
        return []
    rows, columns = zip(*alike, strict=True)
    weights = [1 if patients[a] == patients[b] else 2 for a, b in alike]
    forest = minimum_spanning_tree(coo_array((weights, (rows, columns)), shape=(len(training), len(training))))
    kept = sorted((int(later), int(earlier)) for earlier, later in zip(*forest.nonzero(), strict=True))
    return [_leak("repeated_in_training", training, a, training, b, alike[b, a]) for a, b in kept]


def _leak(kind: Kind, images: Embeddings, i: int, training: Embeddings, match: int, similarity: float) -> Leak:
    return Leak(
        kind,
        images.images.image_ids[i],
        images.images.patient_ids[i],
        training.images.image_ids[match],
        training.images.patient_ids[match],
        similarity,
    )
