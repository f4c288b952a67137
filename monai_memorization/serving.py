# SPDX-License-Identifier: Apache-2.0
"""One image at a time: is it a near copy of a training image? What MONAI Label asks of the audit bundle.

An audit compares whole sets. A server has one image, so that what the answer needs is kept in one file, the reference:
embeddings and fine structure of the training set, and the scores of the validation images. It holds small patient
images and stays inside.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from monai.config import KeysCollection
from monai.data import ImageReader, MetaTensor, NibabelReader, NumpyReader, PILReader, PydicomReader
from monai.transforms import MapTransform
from torch import Tensor

from monai_memorization.auditing import choose_device
from monai_memorization.detector.candidates import number_patients
from monai_memorization.detector.embeddings import embed
from monai_memorization.detector.encoder import load_encoder
from monai_memorization.detector.leaks import find_leaks, refuse_identical
from monai_memorization.detector.registration import fine_structure
from monai_memorization.detector.scores import copy_scores, score_embedded
from monai_memorization.errors import InputError
from monai_memorization.files import write_bytes
from monai_memorization.images.contents import hash_content
from monai_memorization.images.division import check_disjoint
from monai_memorization.images.sets import kind, read_image_set
from monai_memorization.reporting.report import write_leaks
from monai_memorization.statistics.conformal import copy_candidates, n_patients_needed, p_values, smallest_p_value


@dataclass(frozen=True)
class CopyReference:
    """What one image is compared with.

    Args:
        vectors: embeddings of the training set, float32 (n_T, D).
        structure: its fine structure, float16 (n_T, C, *sides).
        patients: whose each image is, as numbers, int64 (n_T,).
        validation_score: a(v), (n_V,).
        n_patients: P, patients in the validation set.
        encoder_hash: hash of the weights that all this was computed with.
    """

    vectors: Tensor
    structure: Tensor
    patients: Tensor
    validation_score: Tensor
    n_patients: int
    encoder_hash: str


def write_reference(
    training: str | Path,
    validation: str | Path,
    encoder: str | Path,
    path: str | Path,
    *,
    device: str = "auto",
    cache_dir: str | Path | None = None,
) -> None:
    """Embed training and validation set, and write the reference, with leaks.csv of an audit beside it.

    Args:
        training: images that the generator was trained on; folder, CSV or MONAI data list.
        validation: images of other patients, as of an audit.
        encoder: weights of the encoder that was trained on the training set.
        path: file to write.
        device: as of an audit.
        cache_dir: folder of ``embeddings/`` of an audit of the same sets, which are then not computed again.

    Raises:
        InputError: for bad input, or where an image or patient is in both sets; no reference is written then.
    """
    detector = load_encoder(encoder)
    sets = {"training": read_image_set(training, "training"), "validation": read_image_set(validation, "validation")}
    check_disjoint(sets["training"], sets["validation"])
    cache, where = None if cache_dir is None else Path(cache_dir) / "embeddings", choose_device(device)
    embedded = {role: embed(detector, images, device=where, cache_dir=cache) for role, images in sets.items()}
    leaks = find_leaks(embedded["training"], embedded["validation"], detector.preparation)
    table = Path(path).with_name("leaks.csv")
    write_leaks(leaks, table)
    refuse_identical(leaks, table)
    score = score_embedded(embedded["validation"], embedded["training"]).score
    reference = CopyReference(
        embedded["training"].vectors,
        embedded["training"].structure,
        number_patients(embedded["training"].images.patient_ids),
        score,
        len(set(embedded["validation"].images.patient_ids)),
        hash_content(Path(encoder)),
    )
    content = io.BytesIO()
    torch.save(asdict(reference), content)
    write_bytes(Path(path), content.getvalue())


def read_reference(path: str | Path, encoder: str | Path) -> CopyReference:
    """Read what :func:`write_reference` wrote.

    Args:
        path: the file.
        encoder: weights in use, which must be those it was written with: others give other scores.

    Raises:
        InputError: if the file is missing or damaged, or the weights are others.
    """
    cure = "write it with the audit bundle's reference.json"
    if not Path(path).is_file():
        raise InputError(f"reference: {path} does not exist; {cure}")
    try:
        content = torch.load(path, weights_only=True)
        reference = CopyReference(**{field.name: content[field.name] for field in fields(CopyReference)})
    except (RuntimeError, TypeError, KeyError, EOFError, ValueError, pickle.UnpicklingError):
        raise InputError(f"reference: {path} holds no reference; {cure}") from None
    if reference.encoder_hash != hash_content(Path(encoder)):
        raise InputError(f"reference: {path} was written with other weights than {encoder}; {cure} again")
    return reference


class CandidateScored(MapTransform):
    """MONAI dictionary transform from an embedding to how sure it is that its image is no copy candidate, and is one.

    In place of the embedding, (D,), come p and 1 - p, (2,), where p is the p-value of the image. The image is a copy
    candidate where p <= alpha. Score, p-value and that answer are told under ``result``, from where MONAI Label
    hands them on.

    Args:
        keys: the embedding.
        reference: file of :func:`write_reference`, read at the first image.
        encoder: weights that gave the embedding.
        alpha: level of the copy candidates.
        image_key: the prepared image, (C, *image_size) in [0, 1].
    """

    def __init__(
        self,
        keys: KeysCollection,
        reference: str | Path,
        encoder: str | Path,
        alpha: float = 0.05,
        image_key: str = "image",
    ) -> None:
        super().__init__(keys)
        self.files = reference, encoder
        self.alpha = alpha
        self.image_key = image_key

    @cached_property
    def reference(self) -> CopyReference:
        """What images are compared with.

        Raises:
            InputError: as :func:`read_reference`, or if the validation patients are too few for alpha.
        """
        reference = read_reference(*self.files)
        if smallest_p_value(reference.n_patients) > self.alpha:
            raise InputError(
                f"reference: {self.files[0]} has {reference.n_patients} validation patients, with which no image can "
                f"be a copy candidate; alpha {self.alpha:g} needs at least {n_patients_needed(self.alpha)}"
            )
        return reference

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the two numbers and the answer."""
        item, reference = dict(data), self.reference
        for key in self.key_iterator(item):
            vector, image = (torch.as_tensor(item[name]).detach().float().cpu() for name in (key, self.image_key))
            structure = fine_structure(image[None]).half()
            training = reference.vectors, reference.structure, [str(number) for number in reference.patients.tolist()]
            score = copy_scores(vector[None], structure, *training).score
            calibration = reference.validation_score, score
            p_value = float(p_values(*calibration, reference.n_patients))
            candidate = bool(copy_candidates(*calibration, self.alpha, reference.n_patients))
            item[key] = MetaTensor(torch.tensor([p_value, 1 - p_value]))
            item["result"] = {"score": float(score), "p_value": p_value, "copy_candidate": candidate}
        return item


class CandidateMapd(MapTransform):
    """MONAI dictionary transform from the two numbers of :class:`CandidateScored` to a map of the file's own shape.

    The map is 1 everywhere in a copy candidate and else 0, uint8 (*spatial), as viewers show the labels of a
    segmentation. Shape and position are those with which MONAI reads the file. It has no channel, since MONAI Label
    takes that of a picture for a third axis.

    Args:
        keys: the two numbers.
        path_key: path of the file.
        image_key: image whose metadata are told, under ``<image_key>_meta_dict``, to what writes the map.
    """

    def __init__(self, keys: KeysCollection, path_key: str = "image_path", image_key: str = "image") -> None:
        super().__init__(keys)
        self.path_key = path_key
        self.image_key = image_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with the map."""
        item = dict(data)
        path = Path(item[self.path_key])
        # not by LoadImage, which warns of every reader whose package is missing
        reader = _READERS.get(kind(path) or "", PydicomReader)()
        _, meta = reader.get_data(reader.read(path))
        shape = [int(side) for side in meta["spatial_shape"]]
        for key in self.key_iterator(item):
            answer = int(item["result"]["copy_candidate"])
            item[key] = MetaTensor(torch.full(shape, answer, dtype=torch.uint8), meta=meta)
        item[f"{self.image_key}_meta_dict"] = dict(meta)
        return item


_READERS: dict[str, type[ImageReader]] = {
    ".nii.gz": NibabelReader,
    ".nii": NibabelReader,
    ".npy": NumpyReader,
    ".png": PILReader,
    ".jpg": PILReader,
    ".jpeg": PILReader,
}
