# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import product

import pytest

from monai_memorization.statistics.verdict import Verdict, decide, restate

CLEAN = {
    "n_fdr_list": 0,
    "copy_rate_ci": (0.0, 0.03),
    "n_near_identical": 0,
    "n_patients": 60,
    "alpha": 0.05,
    "recall": 0.9,
    "noticeable": 0.04,
    "gap_auc": 0.6,
    "reconstructed": False,
    "filtered": False,
    "has_patient_ids": True,
}


def test_clean_audit_with_power_finds_no_copies():
    assert decide(**CLEAN) == Verdict("no_copies_found", (), 0.04)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"n_fdr_list": 1}, "fdr_list"),
        ({"copy_rate_ci": (0.001, 0.1)}, "excess"),
        ({"n_near_identical": 1}, "near_identical"),
    ],
)
def test_each_sign_of_a_copy_suffices(change, reason):
    assert decide(**CLEAN | change) == Verdict("copies_found", (reason,), 0.04)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"n_patients": 18}, "few_validation_patients"),
        ({"n_patients": 60, "alpha": 0.01}, "few_validation_patients"),
        ({"recall": 0.799}, "low_power"),
        ({"recall": None}, "low_power"),
        ({"gap_auc": 0.901}, "synthetic_differs"),
        ({"gap_auc": None}, "gap_not_measured"),
        ({"filtered": True}, "filtered"),
        ({"noticeable": 1.0}, "nothing_noticeable"),
    ],
)
def test_each_doubt_makes_the_audit_inconclusive(change, reason):
    verdict = decide(**CLEAN | change)
    assert (verdict.status, verdict.reasons) == ("inconclusive", (reason,))


@pytest.mark.parametrize(
    "change",
    [
        {"n_patients": 19},
        {"n_patients": 99, "alpha": 0.01},
        {"recall": 0.8},
        {"noticeable": 0.999},
        {"gap_auc": 0.9},
        {"gap_auc": 0.99, "reconstructed": True},
        {"gap_auc": None, "reconstructed": True},
    ],
)
def test_the_limits_themselves_pass(change):
    assert decide(**CLEAN | change).status == "no_copies_found"


def test_missing_patient_ids_are_said_whatever_the_status():
    for change in ({}, {"n_fdr_list": 3}, {"recall": 0.1}):
        with_ids, without = decide(**CLEAN | change), decide(**CLEAN | change | {"has_patient_ids": False})
        assert without == Verdict(with_ids.status, (*with_ids.reasons, "no_patient_ids"), 0.04)


def test_every_combination_follows_the_rule():
    options = {
        "n_fdr_list": (0, 5),
        "copy_rate_ci": ((0.0, 0.1), (0.2, 0.4)),
        "n_near_identical": (0, 2),
        "n_patients": (10, 60),
        "recall": (None, 0.5, 0.95),
        "gap_auc": (None, 0.5, 0.95),
        "reconstructed": (False, True),
    }
    for values in product(*options.values()):
        case = CLEAN | dict(zip(options, values, strict=True))
        verdict = decide(**case)
        copies = case["n_fdr_list"] > 0 or case["copy_rate_ci"][0] > 0 or case["n_near_identical"] > 0
        doubt = (
            case["n_patients"] < 19
            or (case["recall"] or 0) < 0.8
            or ((case["gap_auc"] is None or case["gap_auc"] > 0.9) and not case["reconstructed"])
        )
        assert verdict.status == ("copies_found" if copies else "inconclusive" if doubt else "no_copies_found")
        assert bool(verdict.reasons) == (verdict.status != "no_copies_found")


@pytest.mark.parametrize("noticeable", [0.2, 1.0])
@pytest.mark.parametrize("reasons", [["filtered"], ["filtered", "nothing_noticeable"], ["low_power", "filtered"]])
def test_judge_takes_the_place_of_the_doubts_about_a_filtered_set(reasons, noticeable):
    verdict = restate({"status": "inconclusive", "reasons": reasons, "noticeable_rate": 0.04}, noticeable)
    left = ["nothing_noticeable"] * (noticeable == 1) + ["low_power"] * ("low_power" in reasons)
    assert verdict["reasons"] == left
    assert verdict["status"] == ("inconclusive" if left else "no_copies_found")


@pytest.mark.parametrize(
    ("status", "noticeable", "restated"),
    [
        ("no_copies_found", 0.2, ("no_copies_found", ["no_patient_ids"])),
        ("no_copies_found", 1.0, ("inconclusive", ["nothing_noticeable", "no_patient_ids"])),
        ("copies_found", 1.0, ("copies_found", ["no_patient_ids"])),
    ],
)
def test_verdict_is_restated_where_less_would_have_been_noticed(status, noticeable, restated):
    verdict = restate({"status": status, "reasons": ["no_patient_ids"], "noticeable_rate": 0.04}, noticeable)
    assert verdict == {"status": restated[0], "reasons": restated[1], "noticeable_rate": noticeable}
