# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from report_examples import EXAMPLES, copies_found, few_patients, no_copies_found, unknown_patients

from monai_memorization.reporting.formats import NO_BREAK
from monai_memorization.reporting.sentences import (
    limits,
    reason,
    validation_patients,
    verdict_label,
    verdict_sentence,
)


def said(text: str) -> str:
    return text.replace(NO_BREAK, " ")


def decided_by(*reasons: str) -> dict:
    report = copies_found()
    report["calibrated"] |= {"n_copies": 652, "copy_rate": 0.634, "copy_rate_ci": [0.591, 0.672], "n_near_identical": 3}
    report["calibrated"]["fdr"] |= {"n_copies": 12, "q": 0.05}
    report["calibrated"] |= {"alpha": 0.05, "alpha_attained": 0.048}
    report["verdict"]["reasons"] = list(reasons)
    return report


def test_excess_is_said_with_count_chance_share_and_interval():
    assert said(verdict_sentence(decided_by("fdr_list", "excess", "near_identical"))) == (
        "652 of 1,000 synthetic images match a training image more closely than 95 % of real images of other patients "
        "do (about 48 would by chance); at least 63 % of the set (95 % interval 59 to 67 %) are copies."
    )


def test_a_list_alone_is_said_with_its_share_of_false_alarms():
    sentence = said(verdict_sentence(decided_by("fdr_list")))

    assert sentence.startswith("12 of 1,000 synthetic images")
    assert "at most 5 % of such a list are false alarms" in sentence


def test_near_identical_pairs_alone_are_said_with_their_number():
    assert verdict_sentence(decided_by("near_identical")).startswith("3 of 1,000 synthetic images are almost pixel for")


def test_a_clean_verdict_names_the_copy_rate_it_would_have_noticed():
    report = no_copies_found()
    report["verdict"]["noticeable_rate"] = 0.0213

    assert verdict_label(report) == "No copies found"
    assert "a copy rate above 2.1 % would have been noticed" in said(verdict_sentence(report))


def test_an_inconclusive_verdict_says_why_and_what_to_do():
    report = few_patients()

    assert said(verdict_sentence(report)) == (
        "this audit can neither find copies nor rule them out: 12 validation patients are too few for a false-alarm "
        "rate of 5 %, which needs 19."
    )
    assert "at least 19" in reason(report, "few_validation_patients").cure


def test_an_inconclusive_verdict_is_one_sentence():
    sentence = said(verdict_sentence(unknown_patients()))

    assert (
        "rule them out: of the copies planted to test the audit only 62 % were found; it needs at least 80 %"
        in sentence
    )
    assert sentence.count(".") == 1


@pytest.mark.parametrize(
    ("code", "text"),
    [
        ("low_power", "only 62 %"),
        ("synthetic_differs", "AUC 0.97"),
        ("no_patient_ids", "each image counts as a patient"),
    ],
)
def test_each_reason_for_doubt_has_its_number_and_a_cure(code, text):
    spelled_out = reason(unknown_patients(), code)

    assert text in said(spelled_out.text)
    assert len(spelled_out.cure) > 20


def test_a_code_of_a_later_version_is_repeated():
    assert "moon_phase" in reason(copies_found(), "moon_phase").text


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_sentence_calls_a_set_private_or_safe(name):
    report = EXAMPLES[name]()
    text = " ".join(
        [
            verdict_sentence(report),
            *limits(report),
            *map(str, (reason(report, c) for c in report["verdict"]["reasons"])),
        ]
    )

    assert not {"private", "safe", "None", "nan"} & set(text.split())


def test_images_count_as_patients_where_patients_are_null():
    report = copies_found()
    report["sets"]["validation"] |= {"n_patients": None, "n_images": 300}

    assert validation_patients(report) == 300


@pytest.mark.parametrize(
    ("n_patients", "sentence"),
    [
        (12, "1/13 = 0.077: this audit cannot flag at 0.05, which needs 19."),
        (60, "1/61 = 0.016: this audit cannot flag at 0.01, which needs 99."),
        (99, "1/100 = 0.01: this audit cannot flag at 0.001, which needs 999."),
        (999, "no p-value can be below 1/1,000 = 0.001."),
    ],
)
def test_limits_say_which_level_is_out_of_reach(n_patients, sentence):
    report = copies_found()
    report["sets"]["validation"]["n_patients"] = n_patients

    assert sentence in limits(report)[0]


def test_limits_say_the_shortest_list():
    report = copies_found()
    report["calibrated"]["fdr"]["smallest_list"] = 66.4
    assert "cannot name fewer than 67 images" in " ".join(limits(report))

    report["calibrated"]["fdr"]["smallest_list"] = 1500.0
    assert "can name none of the 1,000 images" in " ".join(limits(report))
