# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betainc
from scipy.stats import beta, binom, norm

from monai_memorization.images.sets import ImageSet
from monai_memorization.reporting.limits import uneven_patients
from monai_memorization.statistics.conformal import alpha_attained, attained_rank, largest_count, threshold
from monai_memorization.statistics.false_alarms import (
    false_alarm_quantiles,
    false_alarm_rate_interval,
    false_alarm_rates,
)
from monai_memorization.statistics.rates import copy_rate_interval
from monai_memorization.statistics.strata import Stratum, count_images_per_patient, recorded_strata, stratify

ALPHA = 0.05
UNEVEN = [
    [1] * 390 + [24] * 10,
    [1] * 99 + [200],  # two images of three are of one patient
    [1] * 97 + [60] * 3,
    [1] * 50 + [2] * 20 + [3] * 10 + [8] * 5 + [20] * 2,
]


def one_stratum(counts: list[int], n_synthetic: int = 1) -> tuple[Stratum, ...]:
    return stratify(patients_of(counts), n_synthetic)


def patients_of(counts: list[int]) -> list[str]:
    return [str(i) for i, n in enumerate(counts) for _ in range(n)]


def draw_rates(counts: list[int], correlation: float, n: int, seed: int = 7) -> np.ndarray:
    """The false-alarm rates of n validation sets; a(x) is standard normal, so that of each threshold is known."""
    generator, sizes = torch.Generator().manual_seed(seed), torch.tensor(counts)
    rates = []
    for _ in range(n):
        of_patient = torch.randn(len(counts), generator=generator).repeat_interleave(sizes)
        of_image = torch.randn(sum(counts), generator=generator)
        scores = correlation**0.5 * of_patient + (1 - correlation) ** 0.5 * of_image
        rates.append(norm.sf(threshold(scores, ALPHA, len(counts))))
    return np.array(rates)


@pytest.mark.parametrize(("n_patients", "low", "high"), [(60, 0.01, 0.12), (400, 0.03, 0.07)])
def test_interval_at_the_sizes_of_the_design(n_patients, low, high):
    assert false_alarm_rate_interval(ALPHA, one_stratum([1] * n_patients)) == pytest.approx((low, high), abs=0.006)


@pytest.mark.parametrize("alpha", [0.05, 0.13])
@pytest.mark.parametrize("n_patients", [20, 60, 99])
def test_interval_holds_the_mass_of_the_order_statistic(alpha, n_patients):
    rank = attained_rank(alpha, n_patients)
    low, high = false_alarm_rate_interval(alpha, one_stratum([1] * n_patients))
    assert beta.cdf(low, rank, n_patients + 1 - rank) == pytest.approx(0.025)
    assert beta.sf(high, rank, n_patients + 1 - rank) == pytest.approx(0.025)
    assert low < alpha_attained(alpha, n_patients) < high


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9, 1.0])
# 38 patients with many images have a rank of nearly 2, but where these are alike the level is that of rank 1
@pytest.mark.parametrize("counts", [[3] * 20, [3] * 58, [10] * 38, *UNEVEN])
def test_either_end_of_the_interval_holds_with_several_images_per_patient(counts, correlation):
    n_replicates = 600
    low, high = false_alarm_rate_interval(ALPHA, one_stratum(counts))
    rates = draw_rates(counts, correlation, n_replicates)
    allowed = 0.025 + 3 * (0.025 * 0.975 / n_replicates) ** 0.5
    assert (rates < low).mean() <= allowed
    assert (rates > high).mean() <= allowed


@settings(max_examples=40, deadline=None)
@given(counts=st.lists(st.integers(1, 6), min_size=4, max_size=9), alpha=st.sampled_from([0.2, 0.3, 0.45]))
def test_wholly_alike_images_give_the_distribution_of_the_definition(counts, alpha):
    """P(A <= t), by all subsets of patients: each is among the highest t with probability t, and more than c images."""
    count = largest_count(alpha, sum(counts), len(counts))
    levels = np.linspace(0.01, 0.99, 25)
    possible = false_alarm_quantiles(alpha, count_images_per_patient(patients_of(counts)), levels)
    if count < 0 or sum(counts) == len(counts):
        assert len(possible) == 1
        assert possible.any() == (count >= 0)
        return
    rates = possible[2]
    probabilities = np.zeros_like(rates)
    for among in product((False, True), repeat=len(counts)):
        if np.dot(among, counts) > count:
            probabilities += rates ** sum(among) * (1 - rates) ** (len(counts) - sum(among))
    assert probabilities == pytest.approx(levels, abs=1e-3)


@pytest.mark.parametrize(("n_patients", "n_images"), [(30, 2), (300, 7), (20_000, 3)])
def test_wholly_alike_images_of_equal_number_give_the_order_statistic_of_patients(n_patients, n_images):
    levels = np.array([1e-4, 0.025, 0.5, 0.975, 1 - 1e-4])
    rates = false_alarm_quantiles(ALPHA, ((n_images, n_patients),), levels)[2]
    above = largest_count(ALPHA, n_patients * n_images, n_patients) // n_images
    assert betainc(above + 1, n_patients - above, rates) == pytest.approx(levels, abs=2e-4)


@pytest.mark.parametrize("correlation", [1.0, 0.9, 0.5])
@pytest.mark.parametrize("counts", UNEVEN)
def test_copy_rate_lies_beyond_neither_end_however_uneven_the_patients_are(counts, correlation):
    """By the number of patients alone, up to 71 % of honest sets of 2,000 images were an excess."""
    n_synthetic, n_replicates, strata = 2000, 600, one_stratum(counts, 2000)
    false_alarms = draw_rates(counts, correlation, n_replicates)
    allowed = 0.025 + 3 * (0.025 * 0.975 / n_replicates) ** 0.5
    for share in (0.0, 0.1):
        flagged = np.random.default_rng(0).binomial(n_synthetic, share + (1 - share) * false_alarms)
        ends = {int(x): copy_rate_interval(int(x), n_synthetic, ALPHA, strata) for x in np.unique(flagged)}
        low, high = np.array([ends[int(x)] for x in flagged]).T
        assert (low > share).mean() <= allowed
        assert (high < share).mean() <= allowed


@pytest.mark.parametrize("counts", [[2] * 30, [1] * 60 + [5] * 4, [1] * 10_000 + [2000]])
def test_table_of_wholly_alike_images_is_the_distribution_of_the_definition(counts):
    """P(A <= t) with a binomial number of patients among the highest t, summed plainly over two sizes at most."""
    (few, n_few), (many, n_many) = (*count_images_per_patient(patients_of(counts)), (1, 0))[:2]
    count = largest_count(ALPHA, sum(counts), len(counts))
    levels = np.linspace(0.005, 0.995, 100)
    rates = false_alarm_quantiles(ALPHA, count_images_per_patient(patients_of(counts)), levels)[2]
    at_most = sum(
        binom.pmf(n, n_many, rates) * binom.cdf((count - n * many) // few, n_few, rates) for n in range(n_many + 1)
    )
    assert 1 - at_most == pytest.approx(levels, abs=2e-3)


def test_rates_of_uneven_patients_are_those_of_their_labels():
    patients = [*patients_of([1] * 60 + [30] * 5), *(f"b{i}" for i in range(50))]
    strata = stratify(patients, 40, ["a"] * 210 + ["b"] * 50, ["a"] * 10 + ["b"] * 30)
    rates = false_alarm_rates(ALPHA, strata, 0).numpy()
    levels = (np.arange(10_000) + 0.5) / 10_000
    of_a, of_b = (false_alarm_quantiles(ALPHA, s.images_per_patient, levels) for s in strata)
    assert [len(of_a), len(of_b), len(rates)] == [4, 1, 4]
    assert rates.mean(1) == pytest.approx(0.25 * of_a.mean(1) + 0.75 * of_b.mean(1), rel=1e-9)
    # the labels have patients of their own, so their rates vary independently
    assert rates.var(1) == pytest.approx(0.25**2 * of_a.var(1) + 0.75**2 * of_b.var(1), rel=0.05)


def test_recorded_strata_are_those_that_were_recorded_and_of_older_reports_as_even_as_can_be():
    (stratum,) = one_stratum([1, 1, 4, 2], 3)
    record = {"label": None, "n_images": 8, "n_patients": 4, "n_synthetic": 3}
    (read,) = recorded_strata([record | {"images_per_patient": [[1, 2], [2, 1], [4, 1]]}])
    assert read.images_per_patient == stratum.images_per_patient == ((1, 2), (2, 1), (4, 1))
    assert read.n_patients == stratum.n_patients == 4
    assert recorded_strata([record])[0].images_per_patient == ((2, 4),)
    assert recorded_strata([record | {"n_images": 11}])[0].images_per_patient == ((2, 1), (3, 3))


@pytest.mark.parametrize(("n_few", "n_images", "least"), [(10, 30, 0.055), (1, 200, 0.08)])
def test_uneven_patients_are_flagged_beyond_the_level_and_told(n_few, n_images, least):
    counts = [n_images] * n_few + [1] * (100 - n_few)
    assert draw_rates(counts, 0.9, 300).mean() > least > alpha_attained(ALPHA, 100, sum(counts))
    names, patients = tuple(map(str, range(sum(counts)))), tuple(patients_of(counts))
    images = ImageSet("validation", names, tuple(map(Path, names)), patients, None, True)
    equal = sum(counts) ** 2 / sum(n**2 for n in counts)
    told = uneven_patients(images.n_patients, images.n_patients_equal)
    assert told is not None
    assert "A few of the 100 validation patients have most of the images" in told.text
    assert f"those of about {round(equal)} patients" in told.text
    one_each = images.subset([patients.index(str(i)) for i in range(100)])
    assert uneven_patients(one_each.n_patients, one_each.n_patients_equal) is None
