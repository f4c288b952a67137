# SPDX-License-Identifier: Apache-2.0
"""Residual: how many copies are left in a set after its copy candidates were taken out (docs/method.md, section 7)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from monai_memorization.statistics.false_alarms import Array, false_alarm_rates
from monai_memorization.statistics.rates import copy_rate_at_power, mean_alpha_attained
from monai_memorization.statistics.strata import Stratum

N_DRAWS = 4_000

Planted = tuple[float, int]


def residual_rate(n_flagged: int, n_drawn: int, attained: float, recall: float | None) -> float | None:
    """Share of copies among the images left: (1 - R) pi / (1 - F), pi = `copy_rate_at_power`.

    Of a share pi of copies 1 - R pass the filter, of all images 1 - F.

    Args:
        n_flagged: copy candidates, which were taken out.
        n_drawn: images before.
        attained: level that the validation set attains.
        recall: R, share of copies that the filter finds; None where not known.

    Returns:
        A rate in [0, 1]; None where the recall is unknown or not above the level, or nothing is left.
    """
    rate = copy_rate_at_power(n_flagged, n_drawn, attained, recall)
    if rate is None or recall is None or n_flagged >= n_drawn:
        return None
    return min(1.0, (1 - recall) * rate / (1 - n_flagged / n_drawn))


def residual_interval(
    n_flagged: int,
    n_drawn: int,
    n_left: int,
    alpha: float,
    strata: Sequence[Stratum],
    planted: Sequence[Planted],
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Interval of the share of copies among the images that were left, over four sources of error.

    Drawn together: the false-alarm rate A of this validation set, as in `copy_rate_interval`; the flagged share F
    of the generator, Beta(x + 1/2, n - x + 1/2) (Jeffreys); the recall R, Beta(k + 1/2, m - k + 1/2) for k of m planted
    training images found; and the number of copies among the n_left images, binomial with (1 - R) pi / (1 - F).
    m counts training images, not planted copies: copies of one image are found or overlooked together, and a share
    that is known per image varies most if it is always 0 or 1, so this errs on the wide side.

    What the generator's copies look like is not known, so the recall may be that of any group of families: the interval
    holds those of all groups. Where fewer images are flagged than chance explains, the upper end allows for as many
    copies as would make up for the difference, as in :func:`noticeable_rate`.

    Args:
        n_flagged: x, copy candidates.
        n_drawn: n, images before.
        n_left: images left, or as many of them as are handed out.
        alpha: level of the candidates.
        strata: those that gave the candidates.
        planted: for each group of families the share found and the number of training images that were planted.
        seed: of the draws.
        level: of the interval.

    Returns:
        Low and high end; (0, 1) where nothing is known.
    """
    if min(n_drawn, n_left) < 1 or not planted or mean_alpha_attained(alpha, strata) == 0:
        return 0.0, 1.0
    ends = []
    for group in planted:
        rng = np.random.default_rng(seed)
        false_alarms, flagged, recall = _draw(rng, n_flagged, n_drawn, alpha, strata, group, seed)
        deficit = max(0.0, mean_alpha_attained(alpha, strata) - n_flagged / n_drawn)
        for possible in false_alarms:
            shares = []
            for unseen in (0.0, deficit):
                rate = _rate(flagged + unseen, possible, recall)
                left = np.clip((1 - recall) * rate / np.maximum(1 - flagged, 1e-12), 0, 1)
                shares.append(rng.binomial(n_left, left) / n_left)
            ends.append((np.quantile(shares[0], (1 - level) / 2), np.quantile(shares[1], (1 + level) / 2)))
    return float(min(low for low, _ in ends)), float(max(high for _, high in ends))


def rate_at_power_interval(
    n_flagged: int,
    n_images: int,
    alpha: float,
    strata: Sequence[Stratum],
    planted: Planted,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Interval of `copy_rate_at_power`, over the false-alarm rate, the flagged share and the recall.

    The flagged share is distributed at each end as for `copy_rate_interval`, the recall as for `residual_interval`.

    Args:
        n_flagged: copy candidates.
        n_images: images audited.
        alpha: level of the candidates.
        strata: those that gave the candidates.
        planted: share found and number of training images planted.
        seed: of the draws.
        level: of the interval.

    Returns:
        Low and high end; (0, 1) where nothing is known.
    """
    if n_images == 0 or planted[1] == 0 or mean_alpha_attained(alpha, strata) == 0:
        return 0.0, 1.0
    rng, rest = np.random.default_rng(seed), n_images - n_flagged
    false_alarms, _, recall = _draw(rng, n_flagged, n_images, alpha, strata, planted, seed)
    fewest = rng.beta(n_flagged, rest + 1, N_DRAWS) if n_flagged > 0 else np.zeros(N_DRAWS)
    most = rng.beta(n_flagged + 1, rest, N_DRAWS) if rest > 0 else np.ones(N_DRAWS)
    low = min(np.quantile(_rate(fewest, possible, recall), (1 - level) / 2) for possible in false_alarms)
    high = max(np.quantile(_rate(most, possible, recall), (1 + level) / 2) for possible in false_alarms)
    return float(low), float(high)


def noticeable_rate(
    n_flagged: int, n_images: int, alpha: float, strata: Sequence[Stratum], planted: Planted, seed: int = 0
) -> float:
    """Copy rate above which copies would have been noticed: the upper end of `rate_at_power_interval`, and more.

    A flagged share below the attained level shows that this generator's images are flagged less often than validation
    images are; copies that make up for the difference would not be seen, so the difference over the recall is added.

    Arguments as of `rate_at_power_interval`.

    Returns:
        A rate in [0, 1]; 1 where planted copies are found no more often than honest images are flagged.
    """
    attained = mean_alpha_attained(alpha, strata)
    if planted[0] <= attained:
        return 1.0
    deficit = max(0.0, attained - n_flagged / max(1, n_images))
    highest = rate_at_power_interval(n_flagged, n_images, alpha, strata, planted, seed)[1]
    return min(1.0, highest + deficit / planted[0])


def _draw(
    rng: np.random.Generator,
    n_flagged: int,
    n_images: int,
    alpha: float,
    strata: Sequence[Stratum],
    planted: Planted,
    seed: int,
) -> tuple[Array, Array, Array]:
    """Draw false-alarm rates, (distributions, N_DRAWS), flagged shares and recalls, (N_DRAWS,) each."""
    found, n_planted = planted[0] * planted[1], planted[1]
    return (
        false_alarm_rates(alpha, strata, seed, N_DRAWS).numpy(),
        rng.beta(n_flagged + 0.5, n_images - n_flagged + 0.5, N_DRAWS),
        rng.beta(found + 0.5, n_planted - found + 0.5, N_DRAWS),
    )


def _rate(flagged: Array, false_alarms: Array, recall: Array) -> Array:
    """Return (F - A) / (R - A) in [0, 1]; where the recall is not above the false-alarm rate anything is possible."""
    excess = np.maximum(flagged - false_alarms, 0)
    visible = recall - false_alarms
    return np.where(visible > 0, np.minimum(excess / np.where(visible > 0, visible, 1), 1), np.sign(excess))
