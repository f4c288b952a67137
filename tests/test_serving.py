# SPDX-License-Identifier: Apache-2.0
"""One image at a time: the answer is that of an audit, and what it needs is refused where it does not fit."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from made_up_images import smooth_images, write_csv, write_folder, write_image
from monai.transforms import Compose

from monai_memorization.auditing import audit
from monai_memorization.detector.encoder import ContrastiveEncoder, load_encoder, save_encoder
from monai_memorization.errors import InputError
from monai_memorization.images.preparation import PrepareImaged
from monai_memorization.serving import CandidateMapd, CandidateScored, read_reference, write_reference


@pytest.fixture(scope="module")
def reference(training_folder, validation_folder, encoder_file, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("reference") / "reference.pt"
    write_reference(training_folder, validation_folder, encoder_file, path)
    return path


def ask(path: Path, encoder_file: Path, reference: Path, **settings: float) -> dict:
    """Say what MONAI Label is told of one image."""
    encoder = load_encoder(encoder_file)
    prepare = PrepareImaged("image", encoder.preparation.image_size)
    image = prepare({"image": path})["image"]
    with torch.no_grad():
        item = {"image": image, "image_path": str(path), "pred": encoder(image[None])[0]}
    return CandidateScored("pred", reference, encoder_file, **settings)(item)


def test_answer_for_each_image_is_that_of_the_audit(
    training_folder, validation_folder, encoder_file, reference, tmp_path
):
    synthetic = write_folder(smooth_images(6, seed=3), tmp_path / "synthetic")
    copies = smooth_images(40, seed=1)[:4].roll(1, dims=2)
    write_folder(copies, synthetic, "copy")
    audit(training_folder, validation_folder, synthetic, tmp_path / "out", encoder=encoder_file, n_plants=1)

    with (tmp_path / "out" / "pairs.csv").open(newline="", encoding="utf-8") as file:
        pairs = list(csv.DictReader(file))
    answers = [ask(synthetic / pair["synthetic_id"], encoder_file, reference) for pair in pairs]

    for pair, answer in zip(pairs, answers, strict=True):
        assert answer["result"]["score"] == pytest.approx(float(pair["score"]), abs=1e-4)
        assert answer["result"]["p_value"] == pytest.approx(float(pair["p_value"]), abs=1e-6)
        assert str(answer["result"]["copy_candidate"]) == pair["copy_candidate"]
        torch.testing.assert_close(answer["pred"][1].item(), 1 - answer["result"]["p_value"])
    assert sum(answer["result"]["copy_candidate"] for answer in answers) >= 4


@pytest.mark.parametrize("copied", [True, False])
def test_map_has_the_shape_and_place_of_the_file_and_one_value(copied, tmp_path):
    affine = np.diag([2.0, 3.0, -1.5, 1.0])
    path = tmp_path / "volume.nii.gz"
    nibabel.save(nibabel.Nifti1Image(smooth_images(1, (9, 12, 7))[0].numpy(), affine), path)

    item = CandidateMapd("pred")({"image_path": str(path), "pred": None, "result": {"copy_candidate": copied}})

    assert item["pred"].dtype == torch.uint8
    assert item["pred"].shape == (9, 12, 7)
    assert item["pred"].unique().tolist() == [int(copied)]
    np.testing.assert_allclose(item["pred"].affine, affine)
    np.testing.assert_allclose(item["image_meta_dict"]["original_affine"], affine)


def test_colours_are_no_axis_of_the_map(tmp_path):
    path = write_image(smooth_images(1, (20, 14))[0], tmp_path / "picture.png")
    colours = write_image(torch.rand(20, 14, 3), tmp_path / "colours.png")

    for file in (path, colours):
        item = CandidateMapd("pred")({"image_path": str(file), "pred": None, "result": {"copy_candidate": True}})
        assert item["pred"].shape == (14, 20), "MONAI reads pictures with the horizontal axis first"


def test_patients_are_counted_not_images(training_folder, validation_folder, encoder_file, tmp_path):
    pairs_of_images = [f"p{i // 2}" for i in range(40)]
    folder = shutil.copytree(validation_folder, tmp_path / "images")
    validation = write_csv(folder, tmp_path / "validation.csv", pairs_of_images)
    write_reference(training_folder, validation, encoder_file, tmp_path / "reference.pt")

    copy = sorted(training_folder.iterdir())[0]
    assert ask(copy, encoder_file, tmp_path / "reference.pt", alpha=0.1)["result"]["p_value"] == pytest.approx(1 / 21)


def test_too_few_validation_patients_are_told_instead_of_a_clean_answer(encoder_file, reference, training_folder):
    with pytest.raises(InputError, match=r"40 validation patients.*alpha 0.01 needs at least 99"):
        ask(sorted(training_folder.iterdir())[0], encoder_file, reference, alpha=0.01)


def test_other_weights_than_those_of_the_reference_are_refused(reference, tmp_path):
    save_encoder(ContrastiveEncoder((32, 32)), tmp_path / "model.pt")

    with pytest.raises(InputError, match=r"written with other weights than .*model\.pt; .*reference\.json again"):
        read_reference(reference, tmp_path / "model.pt")


@pytest.mark.parametrize("content", [None, b"", b"no reference", "dictionary"])
def test_missing_or_damaged_reference_is_named_with_the_cure(content, encoder_file, tmp_path):
    path = tmp_path / "reference.pt"
    if content == "dictionary":
        torch.save({"vectors": torch.zeros(2, 3)}, path)
    elif content is not None:
        path.write_bytes(content)

    with pytest.raises(InputError, match=r"reference\.pt (does not exist|holds no reference); write it with"):
        read_reference(path, encoder_file)


def test_image_in_both_sets_leaves_no_reference(training_folder, encoder_file, tmp_path):
    with pytest.raises(InputError, match="40 of its images are in the training set too"):
        write_reference(training_folder, training_folder, encoder_file, tmp_path / "reference.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["leaks.csv"]


def test_both_transforms_go_after_one_another(encoder_file, reference, training_folder):
    path = sorted(training_folder.iterdir())[0]
    encoder = load_encoder(encoder_file)
    image = PrepareImaged("image", (32, 32))({"image": path})["image"]
    with torch.no_grad():
        item = {"image": image, "image_path": str(path), "pred": encoder(image[None])[0]}

    answered = Compose([CandidateScored("pred", reference, encoder_file), CandidateMapd("pred")])(item)

    assert answered["result"]["copy_candidate"]
    assert answered["pred"].unique().tolist() == [1]
