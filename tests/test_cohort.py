# SPDX-License-Identifier: Apache-2.0
"""The virtual cohort: distinct subjects, alike scans, files that the interface reads."""

from __future__ import annotations

import csv
import sys

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from monai_memorization.errors import InputError
from monai_memorization.images import cohort
from monai_memorization.images.cohort import virtual_subject, write_cohort

SIZE = (64, 64)
N_SUBJECTS = 60


def correlation(images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    def standardized(x: torch.Tensor) -> torch.Tensor:
        x = x.flatten(1).double()
        x = x - x.mean(dim=1, keepdim=True)
        return x / x.norm(dim=1, keepdim=True)

    return standardized(images) @ standardized(others).T


def read_table(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def first_scans() -> torch.Tensor:
    return torch.stack([virtual_subject(seed, SIZE) for seed in range(N_SUBJECTS)])


@pytest.fixture(scope="module")
def second_scans() -> torch.Tensor:
    return torch.stack([virtual_subject(seed, SIZE, scan=1) for seed in range(N_SUBJECTS)])


def test_second_scan_is_nearest_to_the_first_of_the_same_subject(first_scans, second_scans):
    assert torch.equal(correlation(second_scans, first_scans).argmax(dim=1), torch.arange(N_SUBJECTS))


def test_distinct_subjects_are_clearly_less_alike_than_two_scans_of_one(first_scans, second_scans):
    two_scans = correlation(first_scans, second_scans).diagonal()
    to_others = correlation(first_scans, first_scans).fill_diagonal_(-1).amax(dim=1)
    # half as much unexplained variance is a difference that a detector must be able to use
    assert 1 - two_scans.median() < (1 - to_others.median()) / 2


def test_two_scans_of_one_subject_differ(first_scans, second_scans):
    assert correlation(first_scans, second_scans).diagonal().max() < 0.999


@pytest.mark.parametrize("image_size", [(64, 64), (64, 40), (12, 16, 14)])
def test_image_has_the_asked_size_and_lies_in_the_unit_range(image_size):
    image = virtual_subject(3, image_size)
    assert image.shape == (1, *image_size)
    assert image.dtype == torch.float32
    assert image.min() >= 0
    assert image.max() <= 1
    assert image.std() > 0.1


def test_seed_and_scan_decide_the_image():
    image = virtual_subject(3, SIZE, scan=1)
    assert torch.equal(image, virtual_subject(3, SIZE, scan=1))
    assert not torch.equal(image, virtual_subject(3, SIZE))
    assert not torch.equal(image, virtual_subject(4, SIZE, scan=1))


def test_random_state_of_the_caller_is_left_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(1), np.random.random()
    torch.manual_seed(0)
    np.random.seed(0)
    virtual_subject(3, SIZE)
    assert (torch.rand(1), np.random.random()) == expected


def test_random_field_has_unit_variance_and_the_asked_length():
    random = np.random.default_rng(0)
    points = np.array([[0.0, 0.0, 0.0], [20.0, 0.0, 0.0], [300.0, 0.0, 0.0]])
    fields = np.stack([cohort._smooth_field(points, 20.0, random) for _ in range(4000)])
    covariance = np.cov(fields.T)
    # squared-exponential covariance: exp(-1/2) at one length, nothing far away; 5 standard errors of 4,000 draws
    assert covariance[0, 0] == pytest.approx(1.0, abs=0.12)
    assert covariance[0, 1] == pytest.approx(np.exp(-0.5), abs=0.1)
    assert covariance[0, 2] == pytest.approx(0.0, abs=0.08)


@pytest.mark.parametrize(("image_size", "ending"), [((16, 16), ".png"), ((16, 16, 16), ".nii.gz")])
def test_cohort_on_disk_has_two_tables_without_a_common_patient(tmp_path, image_size, ending):
    training_csv, validation_csv = write_cohort(tmp_path / "cohort", 9, 6, image_size, seed=1)
    training, validation = read_table(training_csv), read_table(validation_csv)
    assert [len(training), len(validation)] == [9, 6]
    assert list(training[0]) == ["image", "patient_id"]
    files = {row["image"] for row in training + validation}
    assert len(files) == 15
    assert all(file.endswith(ending) and (tmp_path / "cohort" / file).is_file() for file in files)
    assert {row["patient_id"] for row in training}.isdisjoint(row["patient_id"] for row in validation)


def test_some_patients_have_two_scans(tmp_path):
    training_csv, _ = write_cohort(tmp_path, 18, 0, (16, 16))
    patients = [row["patient_id"] for row in read_table(training_csv)]
    assert sorted(patients.count(patient) for patient in set(patients)) == [1] * 14 + [2] * 2


def test_file_holds_the_image_of_its_subject(tmp_path):
    write_cohort(tmp_path, 1, 0, (16, 16), seed=2)
    pixels = np.asarray(Image.open(tmp_path / "images" / "subject00000_scan0.png"))
    np.testing.assert_allclose(pixels / 255, virtual_subject(2_000_000, (16, 16))[0], atol=0.5 / 255 + 1e-6)


def test_volume_file_is_in_canonical_orientation(tmp_path):
    write_cohort(tmp_path, 1, 0, (16, 16, 16))
    volume = nibabel.load(tmp_path / "images" / "subject00000_scan0.nii.gz")
    assert nibabel.aff2axcodes(volume.affine) == ("R", "A", "S")
    assert volume.shape == (16, 16, 16)


def test_cohorts_of_different_seeds_share_no_subject(tmp_path):
    for seed in (0, 1):
        write_cohort(tmp_path / str(seed), 3, 3, (16, 16), seed=seed)
    first, second = ({file.read_bytes() for file in (tmp_path / seed / "images").iterdir()} for seed in "01")
    assert len(first) == 6
    assert first.isdisjoint(second)


def test_wrong_dimension_is_named():
    with pytest.raises(InputError, match=r"image_size: found \(64,\)"):
        virtual_subject(0, (64,))


def test_without_nilearn_the_message_names_the_extra(monkeypatch):
    cohort._template.cache_clear()
    monkeypatch.setitem(sys.modules, "nilearn", None)
    with pytest.raises(InputError, match=r"nilearn: not installed.*monai-memorization\[demo\]"):
        virtual_subject(0, (16, 16))
