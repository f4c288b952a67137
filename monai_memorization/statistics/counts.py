# SPDX-License-Identifier: Apache-2.0
"""Counts of the calibrated protocol: copies, memorized training images and patients, each with its expected error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from monai_memorization.statistics.conformal import threshold
from monai_memorization.statistics.discoveries import smallest_list
from monai_memorization.statistics.false_alarms import false_alarm_rate_interval
from monai_memorization.statistics.rates import (
    copy_rate,
    copy_rate_at_power,
    copy_rate_interval,
    excess_rate,
    mean_alpha_attained,
    n_mem_total_bound,
)
from monai_memorization.statistics.strata import Flags, Stratum


@dataclass(frozen=True)
class FdrList:
    """Counts of the FDR list; the fields are the keys of `calibrated.fdr` in report.json.

    Args:
        q: level of the list.
        smallest_list: fewest images a list can name with so many synthetic images and validation patients.
        n_copies: listed synthetic images, of n_synthetic.
        n_mem: training images that are the match of a listed image, of n_training.
        n_mem_expected_false: of those, at most so many expected by chance, q (1 - copy_rate) n_copies.
    """

    q: float
    smallest_list: int
    n_copies: int
    n_mem: int
    n_mem_expected_false: float


@dataclass(frozen=True)
class Calibrated:
    """Counts of the calibrated protocol; the fields are the keys of `calibrated` in report.json.

    Args:
        alpha: level of the copy candidates.
        alpha_attained: level that the number of validation patients attains, weighted by label where p-values are.
        false_alarm_rate_ci: 95 % interval of the false-alarm rate that this validation set gives.
        threshold: score above which an image is a candidate; null where it differs by label or none can be.
        n_copies: copy candidates, of n_synthetic.
        flagged_rate: n_copies / n_synthetic.
        expected_false_copies: candidates expected by chance, alpha_attained (1 - copy_rate) n_synthetic.
        copy_rate: lower bound on the share of copies, see `copy_rate`.
        copy_rate_ci: its 95 % interval, see `copy_rate_interval`.
        copy_rate_at_power: share of copies if the audit finds a copy with probability recall; null without power test.
        n_mem: training images that are the match of a candidate, of n_training.
        n_mem_expected_false: of those, at most so many expected by chance.
        mem_rate: (n_mem - n_mem_expected_false) / n_training, floored at 0; errs on the low side.
        n_mem_patients: patients of the n_mem images, of n_training_patients.
        n_mem_patients_expected_false: at most so many expected by chance; each false match adds at most one patient.
        mem_patients_rate: (n_mem_patients - n_mem_patients_expected_false) / n_training_patients, floored at 0.
        n_mem_total_bound: lower bound on memorized images if sampling went on, see `n_mem_total_bound`.
        n_near_identical: pairs with a pixel correlation of at least 0.999.
        fdr: counts of the FDR list.
    """

    alpha: float
    alpha_attained: float
    false_alarm_rate_ci: tuple[float, float]
    threshold: float | None
    n_copies: int
    flagged_rate: float
    expected_false_copies: float
    copy_rate: float
    copy_rate_ci: tuple[float, float]
    copy_rate_at_power: float | None
    n_mem: int
    n_mem_expected_false: float
    mem_rate: float
    n_mem_patients: int
    n_mem_patients_expected_false: float
    mem_patients_rate: float
    n_mem_total_bound: float | None
    n_near_identical: int
    fdr: FdrList


def measure_calibrated(
    flags: Flags,
    validation: Tensor,
    match: Tensor,
    training_patients: Sequence[str],
    strata: Sequence[Stratum],
    *,
    alpha: float,
    q: float,
    recall: float | None = None,
    n_near_identical: int = 0,
    seed: int = 0,
) -> Calibrated:
    """Count what the flags say (design: section 3.2).

    Args:
        flags: from `flag`, for n_S synthetic images.
        validation: a(v), (n_V,).
        match: nearest training image of each synthetic image, int64 (n_S,).
        training_patients: patient of each training image, n_T of them.
        strata: those that gave the flags.
        alpha: level that gave the candidates.
        q: level that gave the FDR list.
        recall: share of planted copies found at alpha; None without a power test.
        n_near_identical: near-identical pairs.
        seed: of the intervals where p-values are taken within label.

    Returns:
        All counts and rates.
    """
    n_synthetic, n_training = len(flags.p_value), len(training_patients)
    match, n_copies = match.cpu(), int(flags.copy_candidate.sum())
    attained = mean_alpha_attained(alpha, strata)
    rate = copy_rate(n_copies, n_synthetic, attained)
    expected_false = attained * (1 - rate) * n_synthetic
    matches = match[flags.copy_candidate].unique().tolist()
    patients = {training_patients[i] for i in matches}
    level = threshold(validation[strata[0].validation.to(validation.device)], alpha, strata[0].n_patients)
    listed = int(flags.in_fdr_list.sum())
    abundance = match[flags.in_fdr_list].unique(return_counts=True)[1]
    listed_false = q * (1 - rate) * listed
    return Calibrated(
        alpha=alpha,
        alpha_attained=attained,
        false_alarm_rate_ci=false_alarm_rate_interval(alpha, strata, seed),
        threshold=level if len(strata) == 1 and level != float("inf") else None,
        n_copies=n_copies,
        flagged_rate=n_copies / max(1, n_synthetic),
        expected_false_copies=expected_false,
        copy_rate=rate,
        copy_rate_ci=copy_rate_interval(n_copies, n_synthetic, alpha, strata, seed),
        copy_rate_at_power=copy_rate_at_power(n_copies, n_synthetic, attained, recall),
        n_mem=len(matches),
        n_mem_expected_false=expected_false,
        mem_rate=excess_rate(len(matches), expected_false, n_training),
        n_mem_patients=len(patients),
        n_mem_patients_expected_false=expected_false,
        mem_patients_rate=excess_rate(len(patients), expected_false, len(set(training_patients))),
        n_mem_total_bound=n_mem_total_bound(abundance, listed_false, n_training),
        n_near_identical=n_near_identical,
        fdr=FdrList(
            q, smallest_list(n_synthetic, q, max(s.n_patients for s in strata)), listed, len(abundance), listed_false
        ),
    )
