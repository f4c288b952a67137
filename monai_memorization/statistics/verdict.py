# SPDX-License-Identifier: Apache-2.0
"""Verdict: the rule that turns the numbers of an audit into one of three statements, with its reasons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from monai_memorization.statistics.conformal import n_patients_needed

Status = Literal["copies_found", "inconclusive", "no_copies_found"]

RECALL_NEEDED = 0.8
GAP_ALLOWED = 0.9


@dataclass(frozen=True)
class Verdict:
    """What the audit says; the fields are the keys of `verdict` in report.json.

    Args:
        status: `copies_found`, `inconclusive` or `no_copies_found`.
        reasons: codes of what decided, and `no_patient_ids` where that weakens the statement.
        noticeable_rate: copy rate above which copies would have been noticed, in [0, 1]; None without a power test.
    """

    status: Status
    reasons: tuple[str, ...]
    noticeable_rate: float | None = None


def decide(
    *,
    n_fdr_list: int,
    copy_rate_ci: tuple[float, float],
    n_near_identical: int,
    n_patients: int,
    alpha: float,
    recall: float | None,
    noticeable: float | None,
    gap_auc: float | None,
    reconstructed: bool,
    filtered: bool,
    has_patient_ids: bool,
) -> Verdict:
    """Apply the rule (design: section 3.4).

    `copies_found` for any of: an FDR list (`fdr_list`), lower end of the copy rate's interval above 0 (`excess`), a
    near-identical pair (`near_identical`). Else `inconclusive` for any of: P < 1/alpha - 1 (`few_validation_patients`),
    recall below 0.8 or not measured (`low_power`), gap AUC above 0.9 (`synthetic_differs`) or not measured
    (`gap_not_measured`) without reconstructions, a filtered set, of whose copies no planted one tells anything
    (`filtered`), no copy rate that would have been noticed (`nothing_noticeable`).
    Else `no_copies_found`, which says nothing about privacy beyond that.

    Args:
        n_fdr_list: synthetic images on the FDR list.
        copy_rate_ci: low and high end.
        n_near_identical: near-identical pairs.
        n_patients: P, the smallest where p-values are taken within label.
        alpha: level of the copy candidates.
        recall: the working recall of the power test; None if not measured.
        noticeable: X, copy rate above which copies would have been noticed; None if not measured.
        gap_auc: AUC between synthetic and validation embeddings; None if not measured.
        reconstructed: whether the audit was calibrated on reconstructions of the validation images.
        filtered: whether the set is what a filter left.
        has_patient_ids: whether the patients of the training and validation images are known.

    Returns:
        Status and reasons.
    """
    found = {
        "fdr_list": n_fdr_list > 0,
        "excess": copy_rate_ci[0] > 0,
        "near_identical": n_near_identical > 0,
    }
    doubts = {
        "few_validation_patients": n_patients < n_patients_needed(alpha),
        "low_power": recall is None or recall < RECALL_NEEDED,
        "synthetic_differs": gap_auc is not None and gap_auc > GAP_ALLOWED and not reconstructed,
        "gap_not_measured": gap_auc is None and not reconstructed,
        "filtered": filtered,
        "nothing_noticeable": noticeable is not None and noticeable >= 1,
    }
    status: Status = (
        "copies_found" if any(found.values()) else "inconclusive" if any(doubts.values()) else "no_copies_found"
    )
    decisive = {"copies_found": found, "inconclusive": doubts, "no_copies_found": {}}[status]
    reasons = [code for code, holds in decisive.items() if holds]
    return Verdict(status, (*reasons, *(() if has_patient_ids else ("no_patient_ids",))), noticeable)


def restate(verdict: Mapping[str, Any], noticeable: float) -> dict[str, Any]:
    """Return a verdict on what a filter left, with the copy rate that a judge of what passes would have noticed.

    That takes the place of the doubts that stand for its not being known.

    Args:
        verdict: `verdict` of a report.
        noticeable: X.
    """
    status, reasons = verdict["status"], list(verdict["reasons"])
    if status != "copies_found":
        reasons = [code for code in reasons if code not in ("filtered", "nothing_noticeable")]
        if noticeable >= 1:
            reasons.insert(0, "nothing_noticeable")
        status = "inconclusive" if set(reasons) - {"no_patient_ids"} else "no_copies_found"
    return {**verdict, "status": status, "reasons": reasons, "noticeable_rate": noticeable}
