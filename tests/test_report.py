# SPDX-License-Identifier: Apache-2.0
"""Records: the tables name every image once, hashes follow the content, and the numbers are JSON."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from monai_memorization.detector.embeddings import Embeddings
from monai_memorization.images.sets import ImageSet
from monai_memorization.reporting.report import (
    describe_distributions,
    describe_set,
    hash_images,
    write_memorized,
    write_near_identical,
    write_pairs,
    write_report,
)
from monai_memorization.statistics.strata import Flags


def embeddings(role, names, patients=None, digests=None, **more) -> Embeddings:
    names = tuple(names)
    images = ImageSet(
        role, names, tuple(map(Path, names)), tuple(patients or names), more.pop("labels", None), patients is not None
    )
    n = len(names)
    kept = torch.zeros(n, 2), torch.zeros(n, 4), torch.zeros(n, 1, 2, 2)
    return Embeddings(images, *kept, tuple(digests or names), **more)


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def flags(p_value, candidate, listed) -> Flags:
    return Flags(torch.tensor(p_value, dtype=torch.float64), torch.tensor(candidate), torch.tensor(listed))


TRAINING = embeddings("training", ["t0", "t1", "t2"], ["p0", "p1", "p1"])


def test_pairs_are_sorted_with_six_decimals(tmp_path):
    synthetic = embeddings("synthetic", ["s2", "s10", "s1"])
    verdicts = flags([1 / 3, 1, 0.25], [True, False, True], [False, False, True])

    write_pairs(
        synthetic,
        TRAINING,
        torch.tensor([1.0, -0.5, 2 / 3]),
        torch.tensor([0.9, 0.0, 1 / 3]),
        torch.tensor([2, 0, 1]),
        verdicts,
        tmp_path / "pairs.csv",
    )

    assert (tmp_path / "pairs.csv").read_text() == (
        "synthetic_id,training_id,training_patient_id,similarity,p_value,copy_candidate,in_fdr_list,score\n"
        "s1,t1,p1,0.666667,0.250000,True,True,0.333333\n"
        "s10,t0,p0,-0.500000,1.000000,False,False,0.000000\n"
        "s2,t2,p1,1.000000,0.333333,True,False,0.900000\n"
    )


def test_memorized_counts_the_listed_copies_of_each_training_image(tmp_path):
    similarity, match = torch.tensor([0.5, 0.9, 0.7, 0.8, 1.0]), torch.tensor([2, 0, 2, 2, 1])
    listed = torch.tensor([True, True, False, True, False])

    write_memorized(TRAINING, similarity, match, listed, tmp_path / "memorized.csv")

    assert (tmp_path / "memorized.csv").read_text() == (
        "training_id,training_patient_id,n_listed,best_similarity\nt2,p1,2,0.800000\nt0,p0,1,0.900000\n"
    )


def test_tables_without_finds_have_their_header(tmp_path):
    nothing = torch.zeros(2, dtype=torch.bool)

    write_memorized(TRAINING, torch.zeros(2), torch.zeros(2, dtype=torch.int64), nothing, tmp_path / "memorized.csv")
    write_near_identical(embeddings("synthetic", "ab"), TRAINING, torch.tensor([-1, -1]), tmp_path / "near.csv")

    assert (tmp_path / "memorized.csv").read_text() == "training_id,training_patient_id,n_listed,best_similarity\n"
    assert (tmp_path / "near.csv").read_text() == "synthetic_id,training_id,training_patient_id\n"


def test_near_identical_pairs_are_named(tmp_path):
    write_near_identical(embeddings("synthetic", "abc"), TRAINING, torch.tensor([-1, 2, 0]), tmp_path / "near.csv")

    assert [tuple(row.values()) for row in read_table(tmp_path / "near.csv")] == [("b", "t2", "p1"), ("c", "t0", "p0")]


def test_awkward_names_survive_in_the_tables(tmp_path):
    names = ['a,b "c".png', "ä/ö.png", "line\nbreak.png"]
    training = embeddings("training", names, ["1,2", '"', "x"])

    write_pairs(
        embeddings("synthetic", names),
        training,
        torch.ones(3),
        torch.ones(3),
        torch.arange(3),
        flags([1, 1, 1], [True] * 3, [True] * 3),
        tmp_path / "pairs.csv",
    )

    rows = read_table(tmp_path / "pairs.csv")
    assert {row["synthetic_id"] for row in rows} == set(names)
    assert all(row["synthetic_id"] == row["training_id"] for row in rows)
    assert {row["training_patient_id"] for row in rows} == {"1,2", '"', "x"}


def test_set_is_counted():
    known = describe_set(embeddings("training", "abcd", ["p", "p", "q", "r"], ["1", "2", "2", "2"], n_scaled=3))
    unknown = describe_set(embeddings("synthetic", "ab", unreadable=("message",)))

    assert known == {
        "n_images": 4,
        "n_patients": 3,
        "n_patients_equal": 16 / 6,
        "patients_known": True,
        "n_unreadable": 0,
        "n_ignored": None,
        "n_resized": 3,
        "n_duplicates": 2,
    }
    assert (unknown["n_patients"], unknown["patients_known"], unknown["n_unreadable"]) == (None, False, 1)


scores = st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40)


@given(validation=scores, synthetic=scores)
def test_every_value_lands_in_a_bin(validation, synthetic):
    p_value = torch.linspace(0.01, 1, len(synthetic), dtype=torch.float64)

    bins = describe_distributions(torch.tensor(validation), torch.tensor(synthetic), p_value)

    assert sum(bins["score"]["validation"]) == len(validation)
    assert sum(bins["score"]["synthetic"]) == len(synthetic)
    assert sum(bins["p_values"]["synthetic"]) == len(synthetic)
    assert len(bins["score"]["edges"]) == len(bins["score"]["synthetic"]) + 1
    assert bins["sorted_p_values"] == sorted(bins["sorted_p_values"])
    json.dumps(bins, allow_nan=False)


def test_score_a_rounding_error_above_one_is_binned():
    bins = describe_distributions(torch.tensor([0.5]), torch.tensor([1.0000001]), torch.tensor([0.5]))

    assert sum(bins["score"]["synthetic"]) == 1


def test_hash_of_a_list_follows_names_contents_and_order():
    sets = [
        embeddings("training", "ab", digests=["1", "2"]),
        embeddings("training", "ba", digests=["1", "2"]),
        embeddings("training", "ab", digests=["1", "3"]),
        embeddings("training", "ba", digests=["2", "1"]),
    ]

    assert len({hash_images(item.images.image_ids, item.digests) for item in sets}) == 4
    assert hash_images("ab", ["1", "2"]) == hash_images(["a", "b"], ("1", "2"))


def test_report_with_a_number_that_json_lacks_is_a_defect(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_report({"tau": float("nan")}, tmp_path / "report.json")
    assert not (tmp_path / "report.json").exists()
