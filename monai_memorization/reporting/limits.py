# SPDX-License-Identifier: Apache-2.0
"""What a reader of a report should know: mistakes in its input, and what the audit cannot see."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from monai_memorization.reporting.formats import count, decimal, p_value, percent, percent_interval, say
from monai_memorization.reporting.reasons import Reason
from monai_memorization.reporting.wording import (
    all_patients,
    calibration_role,
    fewest_patients,
    patients,
    things,
)
from monai_memorization.statistics.conformal import n_patients_needed
from monai_memorization.statistics.verdict import GAP_ALLOWED


def mistakes(report: Mapping[str, Any]) -> list[Reason]:
    """Say what was given that should not have been: images, or an encoder; nothing where all is well.

    Args:
        report: The dict of `report.json`.
    """
    found = report["sets"].get("leaks") or {}
    caveats = []
    if ((report.get("provenance") or {}).get("settings") or {}).get("encoder_of_other_images"):
        caveats.append(
            Reason(
                "The encoder was trained on other images than this training set. Copies may be found less often; the "
                "recall of planted copies, which was measured with it, says how often.",
                f"Leave {'--judge' if report.get('release') else '--encoder'} out, and one is trained on this set.",
            )
        )
    if found.get("shared_images"):
        caveats.append(
            Reason(
                "Validation images that agree pixel by pixel with a training image: "
                f"{count(found['shared_images'])}. They make copies look ordinary, so that fewer are found, "
                "and near-identical pairs, as images do that show next to nothing, may come about without any copying.",
                "Look them up in leaks.csv, take those that show the same person out of one of the two sets, and audit "
                "again.",
            )
        )
    validation = report["sets"][calibration_role(report)]
    uneven = uneven_patients(validation.get("n_patients"), validation.get("n_patients_equal"))
    if uneven is not None:
        caveats.append(uneven)
    synthetic = report["sets"]["synthetic"]
    caveats += [found for found in (_left_out(synthetic), _unlike_reconstructions(report)) if found is not None]
    grouped = grouped_images(synthetic.get("n_images"), synthetic.get("n_patients_equal"))
    if grouped is not None:
        caveats.append(grouped)
    if found.get("repeated_in_training"):
        whose = say(
            " ({} of the same patient, {} of another)",
            count(found.get("repeated_same_patient")),
            count(found.get("repeated_other_patient")),
        )
        caveats.append(
            Reason(
                "Training images that repeat another one, pixel by pixel: "
                f"{count(found['repeated_in_training'])}{whose or ''}. What a generator sees twice it memorizes first.",
                "Look them up in leaks.csv, and keep one of each before you train again.",
            )
        )
    return caveats


def uneven_patients(n: int | None, equal: float | None) -> Reason | None:
    """Say that a few patients have most of the images on which the error rates rest; None where they have not.

    Args:
        n: `n_patients` of the set; None where not known.
        equal: its `n_patients_equal`.
    """
    if n is None or equal is None or equal >= n / 2:
        return None
    return Reason(
        f"A few of the {count(n)} validation patients have most of the images, which say no more than those of about "
        f"{count(round(equal))} patients with equally many would. The intervals take that into account and are wide; "
        "p-values and expected numbers do not: more honest images may be flagged than they say.",
        "Keep a few images of each validation patient, chosen at random, and audit again.",
    )


def grouped_images(n: int | None, equal: float | None) -> Reason | None:
    """Say that synthetic images belong together, which are taken for independent draws; None where they do not.

    Args:
        n: `n_images` of the synthetic set; None where not known.
        equal: its `n_patients_equal`; None where its images are not said to be of patients.
    """
    if n is None or equal is None or equal >= n / 2:
        return None
    return Reason(
        f"The {count(n)} synthetic images are said to be of patients, about {count(round(equal))} with equally many "
        "images. Images that belong together are alike, and each is counted as drawn on its own: the intervals are "
        "too narrow, and a set without copies is called one with copies more often.",
        "Keep one synthetic image of each of these patients, chosen at random, and audit again.",
    )


def _left_out(synthetic: Mapping[str, Any]) -> Reason | None:
    """Say that not everything in the synthetic set was looked at; None where it was."""
    unreadable, unknown = synthetic.get("n_unreadable") or 0, synthetic.get("n_ignored") or 0
    if not unreadable and not unknown:
        return None
    parts = [f"{things(unreadable, 'image')} could not be read"] if unreadable else []
    if unknown:
        were = "was not taken for an image" if unknown == 1 else "were not taken for images"
        parts.append(f"{things(unknown, 'file')} of its folder {were}")
    return Reason(
        f"Not all of the synthetic set was looked at: {', and '.join(parts)}. Copies among these are not counted.",
        "Hand out what was audited and nothing else; monai-memorization filter writes it.",
    )


def _unlike_reconstructions(report: Mapping[str, Any]) -> Reason | None:
    """Say that not even reconstructions look like the synthetic images; None where they do or none were given."""
    controls = report.get("controls") or {}
    auc = controls.get("gap_auc")
    if controls.get("gap_reference") != "reconstructed_validation" or auc is None or auc <= GAP_ALLOWED:
        return None
    return Reason(
        "Synthetic images are easily told even from reconstructed validation images (AUC "
        f"{decimal(auc, 2, GAP_ALLOWED)}), as those of a model that is hardly trained are: how an honest synthetic "
        "image would score is then less sure than the error rates say.",
        f"If images are handed out on this report, set max_gap_auc to {GAP_ALLOWED:g} in the policy of the gate.",
    )


def limits(report: Mapping[str, Any]) -> list[str]:
    """Say what this audit cannot see, as plain sentences with its own numbers.

    Args:
        report: The dict of `report.json`.
    """
    calibrated = report["calibrated"]
    sentences = [_finest_level(report)]
    smallest = (calibrated.get("fdr") or {}).get("smallest_list")
    if smallest is not None and smallest > 1:
        sentences.append(_smallest_list(math.ceil(smallest), report["sets"]["synthetic"]["n_images"]))
    interval = percent_interval(calibrated.get("false_alarm_rate_ci"))
    if interval is not None and calibrated.get("alpha_attained"):  # at 0 nothing can be flagged
        sentences.append(
            f"With {all_patients(report)} the share of honest images flagged lies between "
            f"{interval.replace(' to ', ' and ')} (95 % interval); more validation patients narrow it."
        )
    unseen = percent((report.get("power_summary") or {}).get("unseen"))
    if unseen is not None:
        sentences.append(
            f"Of planted copies altered in ways that the encoder was never shown, {unseen} were found; copies altered "
            "in ways that nobody planted may be found less often."
        )
    if "reconstructed_training" not in report["sets"]:
        sentences.append(
            "Training images through the generator's autoencoder were not among the planted copies; if it has one, "
            "give them as --reconstructed-training."
        )
    sentences.append(
        f"The audit speaks of these {count(report['sets']['synthetic']['n_images'])} synthetic images. Further images "
        "of the same generator may copy further patients."
    )
    return sentences


def _finest_level(report: Mapping[str, Any]) -> str:
    stratum = fewest_patients(report)
    n = int(stratum["n_patients"])
    start = f"With {patients(report, stratum)} no p-value can be below 1/{n + 1:,} = {p_value(1 / (n + 1))}"
    out_of_reach = next((level for level in (0.05, 0.01, 0.001) if n_patients_needed(level) > n), None)
    if out_of_reach is None:
        return f"{start}."
    cannot = "this audit cannot flag" if stratum["label"] is None else "no image of that label can be flagged"
    needed = f"{n_patients_needed(out_of_reach):,}"
    return f"{start}: {cannot} at alpha {out_of_reach:g}, which needs {needed} of them."


def _smallest_list(smallest: int, n_synthetic: int) -> str:
    if smallest > n_synthetic:
        return f"The FDR list can name none of the {count(n_synthetic)} images: it names {count(smallest)} or more."
    return (
        f"The FDR list cannot name fewer than {things(smallest, 'image')}: a handful of copies stays off it, however "
        "close they are, and only more validation patients change that."
    )
