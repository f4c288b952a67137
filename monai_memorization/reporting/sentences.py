# SPDX-License-Identifier: Apache-2.0
"""The sentences of the verdict, made from the numbers of a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai_memorization.reporting.formats import count, percent, percent_interval, say
from monai_memorization.reporting.reasons import reason
from monai_memorization.reporting.wording import A_SHARE, SOME, calibration_role, is_labelled

VERDICTS = {
    "copies_found": "Copies found",
    "no_copies_found": "No copies found",
    "inconclusive": "Inconclusive",
}


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


def near_identical_by_chance(report: Mapping[str, Any]) -> str:
    """Say what stands beside the number of near-identical pairs: of how many validation images the same holds."""
    shared = (report["sets"].get("leaks") or {}).get("shared_images")
    return f"so are {count(shared)} of the validation images" if shared else "none expected by chance"


def false_alarms_expected(report: Mapping[str, Any]) -> float | None:
    """Return how many copy candidates the set would have if nothing in it were copied."""
    attained = report["calibrated"].get("alpha_attained")
    return None if attained is None else attained * report["sets"]["synthetic"]["n_images"]
