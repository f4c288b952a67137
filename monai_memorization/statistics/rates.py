# SPDX-License-Identifier: Apache-2.0
"""Rates that counts stand for, beyond what chance alone gives, and their intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import betainc
from torch import Tensor

from monai_memorization.statistics.conformal import alpha_attained
from monai_memorization.statistics.false_alarms import false_alarm_rates
from monai_memorization.statistics.paper_protocol import share_drawn
from monai_memorization.statistics.strata import Stratum


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

    Of a label with too few patients to flag any image nothing is known: all or none of its images may be copies.

    The 2.5 and 97.5 percentile of (f - A) / (1 - A), floored at 0, where A is the false-alarm rate of this validation
    set, distributed as in `false_alarm_quantiles`, and f the flagged share: for x flagged images Beta(x, n_S - x + 1)
    for the lower end and Beta(x + 1, n_S - x) for the upper (Clopper and Pearson 1934), 0 and 1 where x is 0 and n_S.
    With one image per patient the lower end is then above 0 exactly where a beta-binomial count of at least x has a
    probability of less than 2.5 %. With several the interval holds the ends for each of the distributions, since how
    alike a patient's images are is not known. Without draws: P((f - A) / (1 - A) <= c) is the mean over A of
    P(f <= c + (1 - c) A).

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
    able = able_strata(alpha, strata)
    n_able = sum(len(s.synthetic) for s in able)
    if n_able == 0:
        return 0.0, 1.0
    possible = false_alarm_rates(alpha, able, seed).numpy()

    def end(n_below: int, n_above: int, probability: float, outermost: Callable[..., np.float64]) -> float:
        def excess(rate: float) -> float:
            up_to = betainc(n_below, n_above, rate + (1 - rate) * possible).mean(axis=1)
            return float(outermost(up_to)) - probability

        return 0.0 if excess(0.0) >= 0 else float(brentq(excess, 0.0, 1.0, xtol=1e-8))

    # where the largest of these probabilities reaches a level, the first of them does; where the least does, the last
    rest, share = n_able - n_copies, n_able / n_synthetic
    low = 0.0 if n_copies == 0 else end(n_copies, rest + 1, (1 - level) / 2, np.max)
    high = 1.0 if rest == 0 else end(n_copies + 1, rest, (1 + level) / 2, np.min)
    return share * low, 1 - share * (1 - high)


def able_strata(alpha: float, strata: Sequence[Stratum]) -> list[Stratum]:
    """Return those that have patients enough for an image to be flagged at all."""
    return [s for s in strata if alpha_attained(alpha, s.n_patients, len(s.validation)) > 0]


def mean_alpha_attained(alpha: float, strata: Sequence[Stratum]) -> float:
    """`alpha_attained`, as mean over the synthetic images where it differs between strata."""
    total = sum(len(s.synthetic) for s in strata)
    return sum(len(s.synthetic) * alpha_attained(alpha, s.n_patients, len(s.validation)) for s in strata) / max(
        1, total
    )


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
        A number in [0, n_T]; None where the correction leaves no singletons, or nothing but singletons was seen: how
        many more there are is told by what comes again.
    """
    single = int((abundance == 1).sum()) - expected_false
    double = int((abundance == 2).sum())
    if single <= 0 or not (abundance > 1).any():
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
