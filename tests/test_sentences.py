# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_examples import (
    EXAMPLES,
    copies_found,
    few_patients,
    gap_not_measured,
    labels_on_reconstructions,
    no_copies_found,
    unknown_patients,
)

from monai_memorization.reporting.formats import NO_BREAK
from monai_memorization.reporting.limits import limits, mistakes
from monai_memorization.reporting.reasons import reason
from monai_memorization.reporting.sentences import (
    near_identical_by_chance,
    verdict_label,
    verdict_line,
    verdict_sentence,
)
from monai_memorization.reporting.wording import fewest_patients


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
        "do (about 48 would by chance); an estimated 63 % of the set (95 % interval 59 to 67 %) are "
        "copies, overlooked ones not counted."
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
        ("synthetic_differs", "AUC 0.97, above 0.9"),
        ("no_patient_ids", "each validation image counts as a patient of its own"),
    ],
)
def test_each_reason_for_doubt_has_its_number_and_a_cure(code, text):
    spelled_out = reason(unknown_patients(), code)

    assert text in said(spelled_out.text)
    assert len(spelled_out.cure) > 20


def test_a_gap_that_was_not_measured_is_said_with_its_reason():
    report = gap_not_measured()

    assert "found 300 and 8" in reason(report, "gap_not_measured").text
    assert "more synthetic images" in reason(report, "gap_not_measured").cure
    assert "how far synthetic images differ" in verdict_sentence(report)


@given(st.floats(0, 0.8, exclude_max=True))
def test_a_recall_below_the_one_needed_never_reads_like_it(recall):
    report = unknown_patients()
    report["power_summary"]["working_recall"] = recall if recall < 0.8 - 1e-7 else 0.8 - 1e-7

    found, needed = re.findall(r"([\d.]+) %", said(reason(report, "low_power").text))

    assert float(found) < float(needed) == 80


def test_recall_just_below_the_one_needed_gets_the_digit_that_tells():
    report = unknown_patients()
    report["power_summary"]["working_recall"] = 0.797

    assert "only 79.7 % were found; it needs at least 80 %" in said(reason(report, "low_power").text)


def test_gap_just_above_the_one_allowed_gets_the_digit_that_tells():
    report = unknown_patients()
    report["controls"]["gap_auc"] = 0.9012

    assert "AUC 0.901, above 0.9" in reason(report, "synthetic_differs").text


def test_cure_for_copies_not_seen_is_what_would_help():
    labelled = labels_on_reconstructions()
    labelled["power_summary"] = dict.fromkeys(labelled["power_summary"])
    blurred = unknown_patients()
    blurred["power_summary"] |= {"seen": 0.91, "unseen": 0.95, "working_recall": 0.76}

    assert "Train the encoder longer" in reason(unknown_patients(), "low_power").cure
    assert "Add validation patients first" in reason(few_patients(), "low_power").cure
    assert "went through the generator's autoencoder" in reason(blurred, "low_power").cure
    assert "labels that the synthetic set has" in reason(labelled, "low_power").cure


@pytest.mark.parametrize(
    ("known", "text"),
    [
        ((False, False), "Patients of the training set and the validation set are not known: each validation image"),
        ((True, False), "Patients of the validation set are not known: each validation image counts"),
        ((False, True), "Patients of the training set are not known: patients in both sets could not be looked for"),
    ],
)
def test_unknown_patients_are_said_of_the_sets_that_lack_them(known, text):
    report = unknown_patients()
    for role, value in zip(("training", "validation"), known, strict=True):
        report["sets"][role]["patients_known"] = value

    assert reason(report, "no_patient_ids").text.startswith(text)


def test_reconstructions_and_labels_are_named_where_images_are_compared_with_them():
    report = labels_on_reconstructions()
    report["verdict"] |= {"status": "copies_found", "reasons": ["excess"]}

    assert "than 95 % of reconstructed real images of other patients with the same label do" in said(
        verdict_sentence(report)
    )


def test_label_with_the_fewest_patients_decides():
    report = labels_on_reconstructions()
    text = " ".join(limits(report))

    assert fewest_patients(report)["label"] == "ill"
    assert reason(report, "few_validation_patients").text.startswith("12 validation patients of label “ill” are too")
    assert "at least 19 of each label" in reason(report, "few_validation_patients").cure
    assert "12 validation patients of label “ill” no p-value can be below 1/13 = 0.077: no image of that label" in text
    assert "With the validation set of 2 labels the share of honest images" in text


def test_images_are_counted_where_patients_are_not_known():
    assert "With 100 validation images no p-value" in limits(unknown_patients())[0]
    assert "With 300 validation patients no p-value" in limits(copies_found())[0]


def test_list_of_a_single_image_is_no_limit():
    assert not any("FDR list" in sentence for sentence in limits(gap_not_measured()))


def test_where_nothing_can_be_flagged_no_share_of_flagged_images_is_said():
    assert not any("share of honest images flagged" in sentence for sentence in limits(few_patients()))
    assert any("share of honest images flagged" in sentence for sentence in limits(copies_found()))


def test_line_for_a_terminal_is_verdict_and_sentence():
    report = no_copies_found()

    assert verdict_line(report) == f"No copies found: {verdict_sentence(report)}"


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


@pytest.mark.parametrize(
    ("n_patients", "sentence"),
    [
        (12, "1/13 = 0.077: this audit cannot flag at alpha 0.05, which needs 19 of them."),
        (60, "1/61 = 0.016: this audit cannot flag at alpha 0.01, which needs 99 of them."),
        (99, "1/100 = 0.01: this audit cannot flag at alpha 0.001, which needs 999 of them."),
        (999, "no p-value can be below 1/1,000 = 0.001."),
    ],
)
def test_limits_say_which_level_is_out_of_reach(n_patients, sentence):
    report = copies_found()
    report["calibrated"]["strata"][0]["n_patients"] = n_patients

    assert sentence in limits(report)[0]


def test_limits_say_the_shortest_list():
    report = copies_found()
    report["calibrated"]["fdr"]["smallest_list"] = 66.4
    assert "cannot name fewer than 67 images" in " ".join(limits(report))

    report["calibrated"]["fdr"]["smallest_list"] = 1500.0
    assert "can name none of the 1,000 images" in " ".join(limits(report))


def test_leaks_are_said_with_whose_images_they_are():
    report = copies_found()
    assert mistakes(report) == []
    report["sets"]["leaks"] |= {
        "shared_images": 3,
        "repeated_in_training": 7,
        "repeated_same_patient": 5,
        "repeated_other_patient": 2,
    }

    shared, repeated = (said(found.text) for found in mistakes(report))

    assert "with a training image: 3. They make copies look ordinary" in shared
    assert "near-identical pairs, as images do that show next to nothing, may come about without any copying" in shared
    assert near_identical_by_chance(report) == "so are 3 of the validation images"
    assert near_identical_by_chance(copies_found()) == "none expected by chance"
    assert "pixel by pixel: 7 (5 of the same patient, 2 of another). What a generator sees twice" in repeated


def test_a_few_patients_with_most_of_the_images_are_told():
    report = copies_found()
    report["sets"]["validation"] |= {"n_patients": 100, "n_patients_equal": 50.0}
    assert mistakes(report) == []

    report["sets"]["validation"]["n_patients_equal"] = 16.7

    (uneven,) = mistakes(report)
    assert "A few of the 100 validation patients" in said(uneven.text)
    assert "about 17 patients" in said(uneven.text)


def test_synthetic_images_that_belong_together_are_told():
    report = copies_found()
    report["sets"]["synthetic"] |= {"n_images": 500, "n_patients": 250, "n_patients_equal": 250.0}
    assert mistakes(report) == []

    report["sets"]["synthetic"]["n_patients_equal"] = 20.0

    (grouped,) = mistakes(report)
    assert "The 500 synthetic images are said to be of patients, about 20" in said(grouped.text)
    assert "Keep one synthetic image of each" in grouped.cure


def test_what_was_not_audited_is_told():
    report = copies_found()
    report["sets"]["synthetic"] |= {"n_unreadable": 12, "n_ignored": 1}

    (left_out,) = mistakes(report)

    assert "12 images could not be read, and 1 file of its folder was not taken for an image" in said(left_out.text)
    assert "filter" in left_out.cure


def test_synthetic_images_unlike_reconstructions_too_are_told():
    report = labels_on_reconstructions()
    report["controls"] |= {"gap_reference": "reconstructed_validation", "gap_auc": 0.9}
    assert mistakes(report) == []

    report["controls"]["gap_auc"] = 0.93

    (differs,) = mistakes(report)
    assert "even from reconstructed validation images (AUC 0.93)" in said(differs.text)
    report["controls"]["gap_reference"] = "validation"  # the verdict says it then
    assert mistakes(report) == []


def test_leaks_of_an_older_report_are_passed_over():
    report = copies_found()
    del report["sets"]["leaks"]

    assert mistakes(report) == []


def test_reconstructions_that_were_not_planted_are_said_to_be_missing():
    assert "--reconstructed-training" in " ".join(limits(copies_found()))
    assert "--reconstructed-training" not in " ".join(limits(labels_on_reconstructions()))
