# SPDX-License-Identifier: Apache-2.0
"""The false-alarm rate that a validation set gives: what it may be, from how many images each patient has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from scipy.signal import fftconvolve
from scipy.special import betaincinv
from scipy.stats import binom
from torch import Tensor

from monai_memorization.statistics.conformal import attained_rank, largest_count
from monai_memorization.statistics.strata import ImagesPerPatient, Stratum

Array = npt.NDArray[np.float64]

# Equally likely values that stand for a distribution of false-alarm rates; pairing those of several labels needs more.
N_RATES, N_RATES_BY_LABEL = 500, 10_000
# The table of a distribution without a closed form: points, and the probability beyond its ends.
N_POINTS, BEYOND = 257, 1e-6
NEGLIGIBLE = 1e-14  # probability of more patients than are looked at


def false_alarm_quantiles(alpha: float, images_per_patient: ImagesPerPatient, levels: Array) -> Array:
    """Quantiles of the false-alarm rate over validation sets, for each distribution that it may have.

    Vovk 2012, "Conditional validity of inductive conformal predictors": with one image per patient the rate is the
    level of an order statistic, Beta(k, P + 1 - k). With several it depends on how alike a patient's images are:
    Beta(r, P + 1 - r), r = `attained_rank`, where they are alike; Beta(c + 1, n_V - c), c = `largest_count`, where they
    are independent. Where they are wholly alike the rate is at most t exactly where more than c images are of patients
    among the highest t: of the patients with m images a binomial number is, so that
    P(A <= t) = P(sum over m of m Binomial(patients with m images, t) > c). Lowest is a rate where a patient with more
    than c images has them in groups of just more than c, wholly alike within a group: each of them is then enough.

    Args:
        alpha: level of the candidates.
        images_per_patient: of the validation set.
        levels: probabilities in (0, 1), (n,).

    Returns:
        Rates in [0, 1], (1, n) with one image per patient, else (4, n): alike, independent, wholly alike, wholly alike
        in groups; 0 where no image can be flagged.
    """
    n_patients = sum(n for _, n in images_per_patient)
    n_images = sum(m * n for m, n in images_per_patient)
    count, rank = largest_count(alpha, n_images, n_patients), attained_rank(alpha, n_patients, n_images)
    if count < 0:
        return np.zeros((1, len(levels)))
    alike = betaincinv(rank, n_patients + 1 - rank, levels)
    if n_images == n_patients:
        return np.stack([alike])
    independent = betaincinv(count + 1, n_images - count, levels)
    groups = _groups(images_per_patient, count + 1)
    return np.stack(
        [alike, independent, *(_wholly_alike(count, sizes, levels) for sizes in (images_per_patient, groups))]
    )


def false_alarm_rates(alpha: float, strata: Sequence[Stratum], seed: int, n_rates: int | None = None) -> Tensor:
    """Equally likely values of the false-alarm rate, for each distribution that it may have (`false_alarm_quantiles`).

    They are each stratum's quantiles, paired at random with the others'. Strata that share patients are paired in the
    same order: a patient who is typical in one is likely to be so in the others, and where all rates are high together
    the rate of the set varies most.

    Args:
        alpha: level of the candidates.
        strata: those that give the candidates.
        seed: of the pairing; strata of the same labels are paired alike by the same seed.
        n_rates: how many values; 500, or 10,000 with several strata, where left out.

    Returns:
        Rates in [0, 1], float64 (distributions, n_rates).
    """
    generator, total = torch.Generator().manual_seed(seed), sum(len(s.synthetic) for s in strata)
    n_rates = n_rates or (N_RATES if len(strata) == 1 else N_RATES_BY_LABEL)
    levels, common = (np.arange(n_rates) + 0.5) / n_rates, torch.arange(n_rates)
    rates = torch.zeros(1, n_rates, dtype=torch.float64)
    for stratum in strata:
        quantiles = torch.from_numpy(false_alarm_quantiles(alpha, stratum.images_per_patient, levels))
        order = common if stratum.shares_patients else torch.randperm(n_rates, generator=generator)
        rates = rates + len(stratum.synthetic) / total * quantiles[:, order]
    return rates


def false_alarm_rate_interval(
    alpha: float, strata: Sequence[Stratum], seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Central interval of the false-alarm rate that the validation set at hand gives.

    With several images per patient it holds the ends of each distribution of `false_alarm_quantiles`, and is wider
    than needed. With p-values within label it is that of the weighted sum of one rate per label, which are independent
    but for those of labels that share patients.

    Args:
        alpha: level of the candidates.
        strata: those that give the candidates.
        seed: of the pairing of labels; unused with one stratum.
        level: probability of the interval.

    Returns:
        Low and high end; (0, 0) where no image can be flagged.
    """
    ends = np.array([(1 - level) / 2, (1 + level) / 2])
    if len(strata) == 1:
        low, high = false_alarm_quantiles(alpha, strata[0].images_per_patient, ends).T
    else:
        low, high = np.quantile(false_alarm_rates(alpha, strata, seed).numpy(), ends, axis=1)
    return float(low.min()), float(high.max())


def _groups(images_per_patient: ImagesPerPatient, largest: int) -> ImagesPerPatient:
    """Divide the images of each patient into groups of ``largest`` and what is left, each as if of a patient."""
    sizes = Counter[int]()
    for n_images, n_patients in images_per_patient:
        whole, rest = divmod(n_images, largest)
        sizes += Counter({largest: whole * n_patients}) + Counter({rest: n_patients if rest else 0})
    return tuple(sorted(sizes.items()))


def _wholly_alike(count: int, images_per_patient: ImagesPerPatient, levels: Array) -> Array:
    """Return quantiles of the rate where a patient's images are wholly alike."""
    if len(images_per_patient) == 1:
        ((n_images, n_patients),) = images_per_patient
        above = count // n_images
        return betaincinv(above + 1, n_patients - above, levels)
    rates, probabilities = _tabulate(count, images_per_patient)
    return np.interp(levels, probabilities, rates)


@lru_cache(maxsize=64)
def _tabulate(count: int, images_per_patient: ImagesPerPatient) -> tuple[Array, Array]:
    """Return rates t and P(A <= t) where a patient's images are wholly alike."""

    def probability_up_to(angles: Array) -> Array:
        # of the number of images of patients among the highest t, the probabilities of 0 to count
        rates, at_most = np.sin(angles) ** 2, np.eye(1, count + 1).repeat(len(angles), axis=0)
        for n_images, n_patients in images_per_patient:
            most = min(count // n_images, int(binom.isf(NEGLIGIBLE, n_patients, rates.max())))
            at_most = _add(at_most, binom.pmf(np.arange(most + 1), n_patients, rates[:, None]), n_images)
        return np.maximum.accumulate((1 - at_most.sum(1)).clip(0, 1))

    # equally spaced in the arcsine of the root, in which a rate spreads alike wherever it lies
    low, high = 0.0, np.pi / 2
    for _ in range(5):
        angles = np.linspace(low, high, 9)
        probabilities = probability_up_to(angles)
        low, high = angles[probabilities <= BEYOND][-1], angles[probabilities >= 1 - BEYOND][0]
    angles = np.linspace(low, high, N_POINTS)
    return np.sin(angles) ** 2, probability_up_to(angles)


def _add(number: Array, patients: Array, n_images: int) -> Array:
    """Return the distribution of a number of images when those of some patients are added, cut off where it was.

    Args:
        number: probabilities of 0, 1, ... images, (points, n).
        patients: probabilities of 0, 1, ... patients, (points, at most n).
        n_images: of each of these patients.
    """
    if patients.shape[1] > 16:
        images = np.zeros_like(number)
        images[:, : n_images * patients.shape[1] : n_images] = patients
        return fftconvolve(number, images, axes=1)[:, : number.shape[1]]
    total = np.zeros_like(number)
    for n in range(patients.shape[1]):
        total[:, n * n_images :] += patients[:, [n]] * number[:, : number.shape[1] - n * n_images]
    return total
