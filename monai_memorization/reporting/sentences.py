# SPDX-License-Identifier: Apache-2.0
"""The sentences that the numbers of a report make: the verdict, its reasons, and what the audit cannot see."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from monai_memorization.reporting.formats import count, decimal, p_value, percent, percent_interval, say
from monai_memorization.statistics.conformal import n_patients_needed
from monai_memorization.statistics.verdict import GAP_ALLOWED, RECALL_NEEDED

SOME = "an unknown number"
A_SHARE = "a stated share"

VERDICTS = {
    "copies_found": "Copies found",
    "no_copies_found": "No copies found",
    "inconclusive": "Inconclusive",
}


class Reason(NamedTuple):
    """One clause of the verdict: what was seen, and what to do about it."""

    text: str
    cure: str


def calibration_role(report: Mapping[str, Any]) -> str:
    """Name the set that the audit was calibrated on: the validation set, or its reconstructions where given."""
    return "reconstructed_validation" if "reconstructed_validation" in report["sets"] else "validation"


def fewest_patients(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the entry of `calibrated.strata` with the fewest validation patients: it limits what can be said."""
    return min(report["calibrated"]["strata"], key=lambda stratum: int(stratum["n_patients"]))


def is_labelled(report: Mapping[str, Any]) -> bool:
    """Tell whether p-values were taken within label."""
    return report["calibrated"]["strata"][0]["label"] is not None


def verdict_label(report: Mapping[str, Any]) -> str:
    """Name the verdict as people read it."""
    status = report["verdict"]["status"]
    return VERDICTS.get(status, str(status))


def verdict_sentence(report: Mapping[str, Any]) -> str:
    """Say the verdict in one sentence, with the number that matters (design.md 3.4).

    Args:
        report: The dict of `report.json`.

    Returns:
        A sentence that follows on the name of the verdict.
    """
    verdict = report["verdict"]
    reasons = verdict.get("reasons") or []
    if verdict["status"] == "copies_found":
        return _copies_sentence(report, reasons)
    if verdict["status"] == "no_copies_found":
        return _clean_sentence(report)
    causes = [reason(report, code).text for code in reasons if code != "no_patient_ids"]
    because = f": {causes[0][0].lower()}{causes[0][1:]}" if causes else "."
    return "this audit can neither find copies nor rule them out" + because


def verdict_line(report: Mapping[str, Any]) -> str:
    """Say the verdict by its name and in its sentence, for a terminal."""
    return f"{verdict_label(report)}: {verdict_sentence(report)}"


def _copies_sentence(report: Mapping[str, Any], reasons: list[str]) -> str:
    calibrated, n = report["calibrated"], count(report["sets"]["synthetic"]["n_images"])
    if "excess" in reasons:
        by_chance = say(" (about {} would by chance)", count(false_alarms_expected(report))) or ""
        share = say("; an estimated {} of the set", percent(calibrated.get("copy_rate"))) or "; part of the set"
        interval = say(" (95 % interval {})", percent_interval(calibrated.get("copy_rate_ci"))) or ""
        return (
            f"{count(calibrated.get('n_copies')) or SOME} of {n} synthetic images match a training image more closely "
            f"than {percent(1 - calibrated['alpha'])} of {_yardstick(report)} do{by_chance}{share}{interval} are "
            "copies, overlooked ones not counted."
        )
    if "fdr_list" in reasons:
        fdr = calibrated.get("fdr") or {}
        return (
            f"{count(fdr.get('n_copies')) or SOME} of {n} synthetic images match a training image so closely that, on "
            f"average, at most {percent(fdr.get('q')) or A_SHARE} of such a list are false alarms."
        )
    pairs = count(calibrated.get("n_near_identical")) or SOME
    return f"{pairs} of {n} synthetic images are almost pixel for pixel a training image."


def _yardstick(report: Mapping[str, Any]) -> str:
    images = {"validation": "real images", "reconstructed_validation": "reconstructed real images"}
    label = " with the same label" if is_labelled(report) else ""
    return f"{images[calibration_role(report)]} of other patients{label}"


def _clean_sentence(report: Mapping[str, Any]) -> str:
    noticeable = percent(report["verdict"].get("noticeable_rate"))
    noticed = (
        f"a copy rate above {noticeable} would have been noticed."
        if noticeable
        else "what would have been noticed is not known."
    )
    return (
        f"no more of the {count(report['sets']['synthetic']['n_images'])} synthetic images come close to a training "
        f"image than chance explains; {noticed}"
    )


def false_alarms_expected(report: Mapping[str, Any]) -> float | None:
    """Return how many copy candidates the set would have if nothing in it were copied."""
    attained = report["calibrated"].get("alpha_attained")
    return None if attained is None else attained * report["sets"]["synthetic"]["n_images"]


def reason(report: Mapping[str, Any], code: str) -> Reason:
    """Spell out one code of `verdict.reasons`.

    Args:
        report: The dict of `report.json`.
        code: One of the codes of design.md 3.4; another is repeated as it is.
    """
    spell_out = _REASONS.get(code)
    return spell_out(report) if spell_out else Reason(f"Reason given: {code}.", "")


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
        f"{_patients(report, fewest)} {verb} too few for a false-alarm rate of {percent(alpha)}, which needs {needed}.",
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
    return (
        "Train the encoder longer, on more training images or at a larger image size, and audit again: "
        "an audit that overlooks planted copies would overlook real ones."
    )


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


def _no_patient_ids(report: Mapping[str, Any]) -> Reason:
    unknown = [role for role in ("training", "validation") if not report["sets"][role].get("patients_known")]
    optimistic = (
        "each validation image counts as a patient of its own, which makes the error rates optimistic, and "
        if "validation" in unknown
        else ""
    )
    return Reason(
        f"Patients of the {' and the '.join(f'{role} set' for role in unknown)} are not known: {optimistic}"
        "patients in both sets could not be looked for, who would hide copies.",
        f"Give the {' and the '.join(f'{role} set' for role in unknown)} with a patient_id column (CSV).",
    )


_REASONS = {
    "fdr_list": _fdr_list,
    "excess": _excess,
    "near_identical": _near_identical,
    "few_validation_patients": _few_validation_patients,
    "low_power": _low_power,
    "synthetic_differs": _synthetic_differs,
    "gap_not_measured": _gap_not_measured,
    "no_patient_ids": _no_patient_ids,
}


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
                "Leave --encoder out, and one is trained on this set.",
            )
        )
    if found.get("shared_images"):
        caveats.append(
            Reason(
                "Validation images that agree pixel by pixel with a training image: "
                f"{count(found['shared_images'])}. They make copies look ordinary, so that fewer are found.",
                "Look them up in leaks.csv, take those that show the same person out of one of the two sets, and audit "
                "again.",
            )
        )
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
            f"With {_all_patients(report)} the share of honest images flagged lies between "
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
    start = f"With {_patients(report, stratum)} no p-value can be below 1/{n + 1:,} = {p_value(1 / (n + 1))}"
    out_of_reach = next((level for level in (0.05, 0.01, 0.001) if n_patients_needed(level) > n), None)
    if out_of_reach is None:
        return f"{start}."
    cannot = "this audit cannot flag" if stratum["label"] is None else "no image of that label can be flagged"
    needed = f"{n_patients_needed(out_of_reach):,}"
    return f"{start}: {cannot} at alpha {out_of_reach:g}, which needs {needed} of them."


def _patients(report: Mapping[str, Any], stratum: Mapping[str, Any]) -> str:
    noun = "image" if report["sets"]["validation"].get("patients_known") is False else "patient"
    label = "" if stratum["label"] is None else f" of label “{stratum['label']}”"
    return _things(stratum["n_patients"], f"validation {noun}") + label


def _all_patients(report: Mapping[str, Any]) -> str:
    strata = report["calibrated"]["strata"]
    return f"the validation set of {len(strata)} labels" if len(strata) > 1 else _patients(report, strata[0])


def _things(n: float, noun: str) -> str:
    return f"{count(n)} {noun}" if n == 1 else f"{count(n)} {noun}s"


def _smallest_list(smallest: int, n_synthetic: int) -> str:
    if smallest > n_synthetic:
        return f"The FDR list can name none of the {count(n_synthetic)} images: it names {count(smallest)} or more."
    return (
        f"The FDR list cannot name fewer than {_things(smallest, 'image')}: a handful of copies stays off it, however "
        "close they are, and only more validation patients change that."
    )
