# SPDX-License-Identifier: Apache-2.0
"""Why a verdict is what it is, each reason with its cure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from monai_memorization.reporting.formats import count, decimal, percent, percent_interval, say
from monai_memorization.reporting.wording import A_SHARE, fewest_patients, is_labelled, patients
from monai_memorization.statistics.conformal import n_patients_needed
from monai_memorization.statistics.verdict import GAP_ALLOWED, RECALL_NEEDED


class Reason(NamedTuple):
    """One clause of the verdict: what was seen, and what to do about it."""

    text: str
    cure: str


def reason(report: Mapping[str, Any], code: str) -> Reason:
    """Spell out one code of `verdict.reasons`.

    Args:
        report: The dict of `report.json`.
        code: One of the codes of design.md 3.4; another is repeated as it is.
    """
    spell_out = _REASONS.get(code)
    return spell_out(report) if spell_out else Reason(f"Reason given: {code}.", "")


def unknown_patients(roles: Sequence[str]) -> Reason:
    """Say what an audit cannot know where the patients of these sets, training or validation, are not known."""
    optimistic = (
        "each validation image counts as a patient of its own, which makes the error rates optimistic, and "
        if "validation" in roles
        else ""
    )
    sets = " and the ".join(f"{role} set" for role in roles)
    return Reason(
        f"Patients of the {sets} are not known: {optimistic}"
        "patients in both sets could not be looked for, who would hide copies.",
        f"Give the {sets} with a patient_id column (CSV).",
    )


def _fdr_list(report: Mapping[str, Any]) -> Reason:
    fdr = report["calibrated"].get("fdr") or {}
    return Reason(
        f"Images on the list of very probable copies (FDR list): {count(fdr.get('n_copies')) or 'number not known'}; "
        f"on average at most {percent(fdr.get('q')) or A_SHARE} of such a list are false.",
        "",
    )


def _excess(report: Mapping[str, Any]) -> Reason:
    interval = say(" ({})", percent_interval(report["calibrated"].get("copy_rate_ci"))) or ""
    text = f"More images are flagged than chance explains: the 95 % interval of the copy rate{interval} lies above 0."
    return Reason(text, "")


def _near_identical(report: Mapping[str, Any]) -> Reason:
    calibrated = report["calibrated"]
    least = calibrated.get("near_identical_threshold") or 0.999
    return Reason(
        f"Images that agree with a training image pixel by pixel (correlation of at least {least:g} after the best "
        f"flip): {count(calibrated.get('n_near_identical')) or 'number not known'}.",
        "",
    )


def _few_validation_patients(report: Mapping[str, Any]) -> Reason:
    alpha = report["calibrated"]["alpha"]
    needed = n_patients_needed(alpha)
    each, fewest = " of each label" if is_labelled(report) else "", fewest_patients(report)
    verb = "is" if fewest["n_patients"] == 1 else "are"
    return Reason(
        f"{patients(report, fewest)} {verb} too few for a false-alarm rate of {percent(alpha)}, which needs {needed}.",
        f"Add validation patients until there are at least {needed}{each}, better a few hundred, or ask for a larger "
        "alpha.",
    )


def _low_power(report: Mapping[str, Any]) -> Reason:
    needed = percent(RECALL_NEEDED)
    recall = percent((report.get("power_summary") or {}).get("working_recall"), RECALL_NEEDED)
    if recall is None:
        text = f"It is not known whether the audit finds at least {needed} of planted copies, as none could be planted."
    else:
        text = f"Of the copies planted to test the audit only {recall} were found; it needs at least {needed}."
    return Reason(text, _cure_of_low_power(report, recall is not None))


def _cure_of_low_power(report: Mapping[str, Any], planted: bool) -> str:
    if is_labelled(report) and not planted:
        return "Give the training set the labels that the synthetic set has, so that copies can be planted within them."
    if "few_validation_patients" in (report["verdict"].get("reasons") or []):
        return "Add validation patients first: with too few nothing can be flagged, planted copies included."
    if _reconstructions_are_least(report):
        return (
            "Those that went through the generator's autoencoder are found least: it loses what tells patients apart. "
            "Train the encoder longer or at a larger image size, or a better autoencoder, and audit again."
        )
    return (
        "Train the encoder longer, on more training images or at a larger image size, and audit again: "
        "an audit that overlooks planted copies would overlook real ones."
    )


def _reconstructions_are_least(report: Mapping[str, Any]) -> bool:
    """Tell whether the working recall is that of planted reconstructions, not of what we degrade ourselves."""
    recalls = report.get("power_summary") or {}
    ours = [recalls[group] for group in ("seen", "unseen") if recalls.get(group) is not None]
    return recalls.get("working_recall") is not None and bool(ours) and recalls["working_recall"] < min(ours)


def _synthetic_differs(report: Mapping[str, Any]) -> Reason:
    auc = decimal((report.get("controls") or {}).get("gap_auc"), 2, GAP_ALLOWED)
    measured = f"{auc}, above {GAP_ALLOWED:g}" if auc else f"above {GAP_ALLOWED:g}"
    return Reason(
        f"A classifier tells synthetic images from real ones so easily (AUC {measured}) that "
        "validation images do not show how an honest synthetic image would score.",
        "Pass the validation images through the generator's autoencoder and give them as --reconstructed-validation.",
    )


def _gap_not_measured(report: Mapping[str, Any]) -> Reason:
    why = (report.get("controls") or {}).get("gap_reason")
    return Reason(
        "How far synthetic images differ from validation images could not be measured"
        f"{f' ({why})' if why else ''}, so it is not known whether they can be compared.",
        "Give more synthetic images or more validation patients, whichever are short.",
    )


def _filtered(_: Mapping[str, Any]) -> Reason:
    return Reason(
        "The set is what a filter left. The copies in it are those that the filter overlooked, and how well planted "
        "copies are found says nothing about those.",
        "Audit the set as it was drawn, or have monai-memorization release draw, filter and judge: it measures how "
        "many copies of the kind that passes are found.",
    )


def _nothing_noticeable(report: Mapping[str, Any]) -> Reason:
    n = count(report["sets"]["synthetic"]["n_images"])
    return Reason(
        f"Whatever share of the {n} synthetic images were copies, this audit could have overlooked it.",
        "Give more synthetic images, more validation patients or a better encoder, whichever is short.",
    )


def _no_patient_ids(report: Mapping[str, Any]) -> Reason:
    sets = report["sets"]
    return unknown_patients([role for role in ("training", "validation") if not sets[role].get("patients_known")])


_REASONS = {
    "fdr_list": _fdr_list,
    "excess": _excess,
    "near_identical": _near_identical,
    "few_validation_patients": _few_validation_patients,
    "low_power": _low_power,
    "synthetic_differs": _synthetic_differs,
    "gap_not_measured": _gap_not_measured,
    "filtered": _filtered,
    "nothing_noticeable": _nothing_noticeable,
    "no_patient_ids": _no_patient_ids,
}
