# SPDX-License-Identifier: Apache-2.0
"""Turns of phrase, and choices among the numbers of a report, that its sentences share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from monai_memorization.reporting.formats import count

SOME = "an unknown number"
A_SHARE = "a stated share"


def calibration_role(report: Mapping[str, Any]) -> str:
    """Name the set that the audit was calibrated on: the validation set, or its reconstructions where given."""
    return "reconstructed_validation" if "reconstructed_validation" in report["sets"] else "validation"


def fewest_patients(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the entry of `calibrated.strata` with the fewest validation patients: it limits what can be said."""
    return min(report["calibrated"]["strata"], key=lambda stratum: int(stratum["n_patients"]))


def is_labelled(report: Mapping[str, Any]) -> bool:
    """Tell whether p-values were taken within label."""
    return report["calibrated"]["strata"][0]["label"] is not None


def recall_group(cell: Mapping[str, Any]) -> str:
    """Name the mean that a cell of `power` belongs to: "seen" or "unseen" by the encoder, or "partial" copies."""
    return "partial" if cell.get("whole") is False else "seen" if cell.get("seen_in_training") else "unseen"


def patients(report: Mapping[str, Any], stratum: Mapping[str, Any]) -> str:
    """Say how many validation patients a stratum has, or images where it is not known whose they are."""
    noun = "image" if report["sets"]["validation"].get("patients_known") is False else "patient"
    label = "" if stratum["label"] is None else f" of label “{stratum['label']}”"
    return things(stratum["n_patients"], f"validation {noun}") + label


def all_patients(report: Mapping[str, Any]) -> str:
    """Say what the validation set is made of."""
    strata = report["calibrated"]["strata"]
    return f"the validation set of {len(strata)} labels" if len(strata) > 1 else patients(report, strata[0])


def things(n: float, noun: str) -> str:
    """Say how many there are: "1 image", "1,200 images"."""
    return f"{count(n)} {noun}" if n == 1 else f"{count(n)} {noun}s"
