# SPDX-License-Identifier: Apache-2.0
"""Difference of two copy rates that were measured against the same validation set, as an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import betainc, betaincinv

from monai_memorization.statistics.false_alarms import Array, false_alarm_rates
from monai_memorization.statistics.rates import able_strata
from monai_memorization.statistics.strata import ImagesPerPatient, Stratum

# Equally likely pairs that stand for the false-alarm rate and the first flagged share.
N_PAIRS = 2000


@dataclass(frozen=True)
class FlaggedSet:
    """What one of the two audits flagged.

    Args:
        n_copies: x, copy candidates.
        n_synthetic: n_S.
        strata: those that gave the candidates.
    """

    n_copies: int
    n_synthetic: int
    strata: Sequence[Stratum]


def copy_rate_difference_ci(
    before: FlaggedSet, after: FlaggedSet, alpha: float, seed: int = 0, level: float = 0.95
) -> tuple[float, float] | None:
    """Interval of the copy rate after less the copy rate before, where both have the same threshold.

    Training set, validation set, encoder and alpha must be the same, and the two synthetic sets drawn independently.
    The false-alarm rate A of that one threshold is then unknown but common, and does not count twice: the ends are
    percentiles of max(0, (f2 - A) / (1 - A)) - max(0, (f1 - A) / (1 - A)) with A distributed as for
    `copy_rate_interval`, and f1 and f2 as there: for the lower end f2 as at a lower end and f1 as at an upper one, for
    the upper end the other way round. P(difference <= d) is the mean over A and f1 of P(f2 <= A + (1 - A) (d + c1)), c1
    the first rate, and 0 where d + c1 < 0. Within label each label's false-alarm rate is common; of a label with too
    few patients to flag any image nothing is known, so that all or none of its images may be copies, before and after.

    Args:
        before: first audit.
        after: second audit, with the same labels.
        alpha: level of the candidates in both.
        seed: of the pairing of equally likely values.
        level: of the interval.

    Returns:
        Low and high end in [-1, 1]; None where one of the two sets is empty or no image of it can be flagged.

    Raises:
        ValueError: the two have other labels or other validation images.
    """
    if [_validation(s) for s in before.strata] != [_validation(s) for s in after.strata]:
        raise ValueError("before and after: other labels or validation images, so the false-alarm rate is not common")
    (before, share_before), (after, share_after) = (_able(audit, alpha) for audit in (before, after))
    if not share_before or not share_after:
        return None
    order = torch.randperm(N_PAIRS, generator=torch.Generator().manual_seed(seed + 1)).numpy()
    levels = (order + 0.5) / N_PAIRS

    # the same seed pairs the labels alike in both, so a rate of one and a rate of the other belong together
    of_both = (false_alarm_rates(alpha, audit.strata, seed, N_PAIRS).numpy() for audit in (before, after))
    possible: list[tuple[Array, Array]] = list(zip(*of_both, strict=True))

    def end(false_alarms: tuple[Array, Array], probability: float, upper: bool) -> float:
        rates, rates_after = false_alarms
        copied = share_before * ((_quantiles(before, not upper, levels) - rates) / (1 - rates)).clip(min=0)

        def probability_up_to(difference: float) -> float:
            rate = ((difference + copied) / share_after).clip(max=1)
            share = rates_after + (1 - rates_after) * rate.clip(min=0)
            return float((_probability_up_to(after, upper, share) * (rate >= 0)).mean())

        return float(brentq(lambda d: probability_up_to(d) - probability, -1 - 1e-9, 1 + 1e-9, xtol=1e-6))

    low = min(end(rates, (1 - level) / 2, upper=False) for rates in possible) - (1 - share_before)
    high = max(end(rates, (1 + level) / 2, upper=True) for rates in possible) + (1 - share_after)
    return max(-1.0, low), min(1.0, high)


def _able(audit: FlaggedSet, alpha: float) -> tuple[FlaggedSet, float]:
    """Return the part of a synthetic set whose images can be flagged, and its share of the set."""
    able = able_strata(alpha, audit.strata)
    n_able = sum(len(s.synthetic) for s in able)
    return replace(audit, n_synthetic=n_able, strata=able), n_able / max(1, audit.n_synthetic)


def _validation(stratum: Stratum) -> tuple[str | None, ImagesPerPatient, bool]:
    return stratum.label, stratum.images_per_patient, stratum.shares_patients


def _shape(audit: FlaggedSet, upper: bool) -> tuple[int, int]:
    """Parameters of the Beta distribution of a flagged share at one end (Clopper and Pearson 1934)."""
    return audit.n_copies + upper, audit.n_synthetic - audit.n_copies + (not upper)


def _quantiles(audit: FlaggedSet, upper: bool, levels: Array) -> Array:
    """Quantiles of a flagged share: 0 where nothing is flagged, at the lower end, and 1 where all is, at the upper."""
    low, high = _shape(audit, upper)
    return np.full_like(levels, high == 0) if 0 in (low, high) else betaincinv(low, high, levels)


def _probability_up_to(audit: FlaggedSet, upper: bool, share: Array) -> Array:
    low, high = _shape(audit, upper)
    return (share >= float(high == 0)).astype(float) if 0 in (low, high) else betainc(low, high, share)
