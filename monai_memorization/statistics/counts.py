# SPDX-License-Identifier: Apache-2.0
"""Counts of the calibrated protocol: copies, memorized training images and patients, each with its expected error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import brentq
from scipy.special import betainc, betaincinv
from torch import Tensor

from monai_memorization.statistics.conformal import (
    Flags,
    Stratum,
    alpha_attained,
    false_alarm_rate_ci,
    false_alarm_shapes,
    smallest_list,
    threshold,
)
from monai_memorization.statistics.paper_protocol import share_drawn

# Equally likely values that stand for a distribution of false-alarm rates; pairing those of several labels needs more.
N_RATES, N_RATES_BY_LABEL = 500, 10_000


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


def copy_rate(n_copies: int, n_synthetic: int, attained: float) -> float:
    """Share of copies, (flagged_rate - alpha_attained) / (1 - alpha_attained) floored at 0.

    A lower bound on average: copies that the audit cannot see do not count, and honest images are flagged at
    alpha_attained at most. Flooring errs upwards where nothing is copied, by the mean of the noise's positive part.
    """
    return max(0.0, (n_copies / max(1, n_synthetic) - attained) / (1 - attained))


def copy_rate_at_power(n_copies: int, n_synthetic: int, attained: float, recall: float | None) -> float | None:
    """Share of copies if each is found with probability `recall`: (flagged_rate - attained) / (recall - attained).

    Held to [0, 1]; None where the recall is unknown or not above alpha_attained: flags then say nothing about copies.
    """
    if recall is None or recall <= attained:
        return None
    return min(1.0, max(0.0, (n_copies / max(1, n_synthetic) - attained) / (recall - attained)))


def excess_rate(count: int, expected_false: float, total: int) -> float:
    """(count - expected_false) / total, floored at 0."""
    return max(0.0, (count - expected_false) / total)


def copy_rate_interval(
    n_copies: int, n_synthetic: int, alpha: float, strata: Sequence[Stratum], seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the copy rate over both sources of error, the validation patients and the synthetic images.

    The 2.5 and 97.5 percentile of (f - A) / (1 - A), floored at 0, where A is the false-alarm rate of this validation
    set, the wider Beta of `false_alarm_shapes`, and f the flagged share, Beta(x + 1/2, n_S - x + 1/2) for x
    flagged images (Jeffreys), with the ends at x = 0 and n_S as in Brown, Cai and DasGupta 2001. Without draws:
    P((f - A) / (1 - A) <= c) is the mean over A of P(f <= c + (1 - c) A).

    It takes the place of the percentile bootstrap of design section 3.2, in which every draw reuses the same few
    largest a(v): with 20 patients that found copies in 23 % of honest audits (docs/method.md).

    Args:
        n_copies: x, copy candidates.
        n_synthetic: n_S.
        alpha: level of the candidates.
        strata: those that gave the candidates.
        seed: of the pairing of labels; unused with one stratum.
        level: of the interval.

    Returns:
        Low and high end; (0, 1) where no image can be flagged, as nothing is then known.
    """
    if n_synthetic == 0 or mean_alpha_attained(alpha, strata) == 0:
        return 0.0, 1.0
    false_alarms = false_alarm_rates(alpha, strata, seed).numpy()
    shape = n_copies + 0.5, n_synthetic - n_copies + 0.5

    def probability_up_to(rate: float) -> float:
        return float(betainc(*shape, rate + (1 - rate) * false_alarms).mean())

    def end(probability: float) -> float:
        if probability_up_to(0.0) >= probability:
            return 0.0
        return float(brentq(lambda rate: probability_up_to(rate) - probability, 0.0, 1.0, xtol=1e-8))

    low, high = end((1 - level) / 2), end((1 + level) / 2)
    return (0.0 if n_copies == 0 else low), (1.0 if n_copies == n_synthetic else high)


def mean_alpha_attained(alpha: float, strata: Sequence[Stratum]) -> float:
    """`alpha_attained`, as mean over the synthetic images where it differs between strata."""
    total = sum(len(s.synthetic) for s in strata)
    return sum(len(s.synthetic) * alpha_attained(alpha, s.n_patients, len(s.validation)) for s in strata) / max(
        1, total
    )


def false_alarm_rate_interval(
    alpha: float, strata: Sequence[Stratum], seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """`false_alarm_rate_ci`; with p-values within label that of the weighted sum of one independent Beta per label.

    Args:
        alpha: level of the candidates.
        strata: those that give the candidates.
        seed: of the pairing of labels; unused with one stratum.
        level: probability of the interval.

    Returns:
        Low and high end.
    """
    if len(strata) == 1:
        return false_alarm_rate_ci(alpha, strata[0].n_patients, len(strata[0].validation), level)
    ends = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    alike, independent = (false_alarm_rates(alpha, strata, seed, extreme).quantile(ends) for extreme in (0, 1))
    return float(min(alike[0], independent[0])), float(max(alike[1], independent[1]))


def n_mem_total_bound(abundance: Tensor, expected_false: float, n_training: int) -> float | None:
    """Lower bound on the number of memorized training images that unlimited sampling would show.

    Chao1 in its bias-corrected form (Chao 2005), S + f1 (f1 - 1) / (2 (f2 + 1)), where S training images are the
    match of a listed image, f1 of them of one and f2 of two. False listings are nearly all singletons, so
    expected_false is taken off S and f1.

    Args:
        abundance: listed images per matched training image, all >= 1, (S,).
        expected_false: matches expected by chance.
        n_training: n_T, which bounds the result.

    Returns:
        A number in [0, n_T]; None where the correction leaves no singletons.
    """
    single = int((abundance == 1).sum()) - expected_false
    double = int((abundance == 2).sum())
    if single <= 0:
        return None
    bound = len(abundance) - expected_false + max(0.0, single * (single - 1)) / (2 * (double + 1))
    return min(bound, float(n_training))


def accumulation_curve(match: Tensor, flagged: Tensor, n_points: int = 50) -> tuple[Tensor, Tensor]:
    """Number of distinct training images matched by flagged images, against images drawn.

    The exact mean over all orders of drawing: a training image that is the match of c of n images is met among m drawn
    ones with probability 1 - C(n - c, m) / C(n, m). For the curve of false matches pass validation images, flagged
    where a(v) reaches the threshold.

    Args:
        match: nearest training image, int64 (n,).
        flagged: bool (n,).
        n_points: at most so many points.

    Returns:
        Images drawn, int64 (points,), the last n, and mean number matched, float64 (points,).
    """
    n_total = len(match)
    drawn = torch.linspace(0, n_total, min(n_points, n_total + 1)).round().long()
    abundance = match[flagged].unique(return_counts=True)[1]
    return drawn, torch.stack([share_drawn(abundance, n_total, int(m)).sum() for m in drawn])


def false_alarm_rates(
    alpha: float, strata: Sequence[Stratum], seed: int, extreme: int = 0, n_rates: int | None = None
) -> Tensor:
    """Equally likely values of the false-alarm rate: each stratum's quantiles, paired at random with the others'.

    Args:
        alpha: level of the candidates.
        strata: those that give the candidates.
        seed: of the pairing; strata of the same labels are paired alike by the same seed.
        extreme: 0 for a patient's images alike, 1 for independent ones, see `false_alarm_shapes`.
        n_rates: how many values; 500, or 10,000 with several strata, where left out.

    Returns:
        Rates in [0, 1], float64 (n_rates,), in random order.
    """
    generator, total = torch.Generator().manual_seed(seed), sum(len(s.synthetic) for s in strata)
    n_rates = n_rates or (N_RATES if len(strata) == 1 else N_RATES_BY_LABEL)
    levels = (torch.arange(n_rates, dtype=torch.float64) + 0.5) / n_rates
    rates = torch.zeros(n_rates, dtype=torch.float64)
    for stratum in strata:
        shapes = false_alarm_shapes(alpha, stratum.n_patients, len(stratum.validation))
        order = torch.randperm(n_rates, generator=generator)
        if shapes is not None:
            quantiles = torch.from_numpy(betaincinv(*shapes[extreme], levels.numpy()))
            rates += len(stratum.synthetic) / total * quantiles[order]
    return rates
