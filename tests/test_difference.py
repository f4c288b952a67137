# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from monai_memorization.statistics.conformal import attained_rank, largest_count
from monai_memorization.statistics.difference import FlaggedSet, copy_rate_difference_ci
from monai_memorization.statistics.rates import copy_rate_interval
from monai_memorization.statistics.strata import Stratum, stratify

ALPHA = 0.05


def flagged(n_copies: int, n_synthetic: int, n_patients: int = 100) -> FlaggedSet:
    return FlaggedSet(n_copies, n_synthetic, stratify([str(i) for i in range(n_patients)], n_synthetic))


def within_labels(n_copies: int, n_ill: int, n_well: int, n_well_patients: int = 60) -> FlaggedSet:
    labels = ("ill", n_ill, 60), ("well", n_well, n_well_patients)
    strata = [Stratum(name, torch.arange(p), torch.arange(n), ((1, p),)) for name, n, p in labels]
    return FlaggedSet(n_copies, n_ill + n_well, strata)


def drawn(before: FlaggedSet, after: FlaggedSet, n: int = 400_000, extreme: int = 0) -> tuple[float, float]:
    """The definition, by random draws: false-alarm rates common to both, flagged shares of each, end by end.

    Of a label with fewer than 19 patients no image can be flagged; all or none of them are copies.
    """
    rng = np.random.default_rng(0)
    alarms = []
    able = [i for i, stratum in enumerate(before.strata) if stratum.n_patients >= 19]
    for stratum in (before.strata[i] for i in able):
        n_patients, n_images = stratum.n_patients, len(stratum.validation)
        rank = attained_rank(ALPHA, n_patients, n_images)
        above = rank, largest_count(ALPHA, n_images, n_patients) + 1, math.floor(rank)  # alike, independent, the same
        total = n_patients, n_images, n_patients
        alarms.append(rng.beta(above[extreme], total[extreme] + 1 - above[extreme], size=n))
    ends = []
    for level, most in ((0.025, (1, 0)), (0.975, (0, 1))):  # most before and fewest after at the lower end
        rates = []
        for audit, upper in zip((before, after), most, strict=True):
            sizes = [len(audit.strata[i].synthetic) for i in able]
            alarm = sum(size / sum(sizes) * a for size, a in zip(sizes, alarms, strict=True))
            share = rng.beta(audit.n_copies + upper, sum(sizes) - audit.n_copies + 1 - upper, size=n)
            copied = sum(sizes) * np.maximum(0, (share - alarm) / (1 - alarm))
            rates.append((copied + upper * (audit.n_synthetic - sum(sizes))) / audit.n_synthetic)
        ends.append(float(np.quantile(rates[1] - rates[0], level)))
    return ends[0], ends[1]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (flagged(60, 400), flagged(200, 400)),
        (flagged(25, 500), flagged(24, 500)),
        (flagged(8, 100, 30), flagged(70, 1000, 30)),
        (within_labels(60, 100, 300), within_labels(120, 300, 100)),
        (within_labels(60, 100, 300, 10), within_labels(4, 300, 100, 10)),
    ],
)
def test_ends_are_percentiles_of_the_drawn_difference(before, after):
    assert copy_rate_difference_ci(before, after, ALPHA) == pytest.approx(drawn(before, after), abs=0.004)


def test_interval_holds_however_alike_the_images_of_a_patient_are():
    """20 patients of ten images each: the distributions differ most."""
    strata = stratify([str(i // 10) for i in range(200)], 1000)
    before, after = FlaggedSet(10, 1000, strata), FlaggedSet(110, 1000, strata)
    ends = [drawn(before, after, extreme=extreme) for extreme in range(3)]

    assert max(low for low, _ in ends) - min(low for low, _ in ends) > 0.02
    expected = min(low for low, _ in ends), max(high for _, high in ends)
    assert copy_rate_difference_ci(before, after, ALPHA) == pytest.approx(expected, abs=0.004)


def test_other_validation_patients_are_refused():
    both = within_labels(60, 100, 300)
    other = replace(both, strata=[replace(s, images_per_patient=((1, 58), (2, 1))) for s in both.strata])
    with pytest.raises(ValueError, match="not common"):
        copy_rate_difference_ci(both, other, ALPHA)


def test_more_copies_are_a_rise_and_fewer_a_fall():
    low, high = copy_rate_difference_ci(flagged(100, 1000), flagged(400, 1000), ALPHA)
    assert 0.2 < low < 0.33 < high < 0.4
    low, high = copy_rate_difference_ci(flagged(400, 1000), flagged(100, 1000), ALPHA)
    assert -0.4 < low < -0.33 < high < -0.2


@pytest.mark.parametrize(("n_before", "n_after", "share"), [(2, 2000, 0.05), (2, 2, 0.335)])
def test_a_change_is_claimed_in_at_most_one_of_twenty_pairs_where_there_is_none(n_before, n_after, share):
    """The false-alarm rate is all but known; by Jeffreys's intervals a change was claimed in 9.8 and 9.9 %."""
    claimed = 0.0
    for x in range(n_before + 1):
        for y in range(n_after + 1) if n_after < 10 else (round(share * n_after),):
            low, high = copy_rate_difference_ci(flagged(x, n_before, 20_000), flagged(y, n_after, 20_000), ALPHA)
            chance = binom.pmf(x, n_before, share) * (binom.pmf(y, n_after, share) if n_after < 10 else 1)
            claimed += chance * (low > 1e-4 or high < -1e-4)
    assert claimed <= 0.05


def test_common_false_alarms_cancel():
    """The interval is narrower than that of either rate where few validation patients make both uncertain."""
    low, high = copy_rate_difference_ci(flagged(500, 2000, 30), flagged(500, 2000, 30), ALPHA)
    alone = copy_rate_interval(500, 2000, ALPHA, flagged(500, 2000, 30).strata)

    assert low < 0 < high
    assert high - low < 0.6 * (alone[1] - alone[0])


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 200), st.integers(0, 200), st.integers(1, 200), st.integers(1, 200), st.sampled_from([19, 40, 200])
)
def test_interval_is_ordered_and_swaps_its_signs_with_the_audits(x, y, n, m, patients):
    before, after = flagged(min(x, n), n, patients), flagged(min(y, m), m, patients)
    low, high = copy_rate_difference_ci(before, after, ALPHA)
    other_low, other_high = copy_rate_difference_ci(after, before, ALPHA)

    assert -1 <= low <= high <= 1
    assert (-other_high, -other_low) == pytest.approx((low, high), abs=0.02)


def test_where_nothing_can_be_flagged_there_is_no_interval():
    assert copy_rate_difference_ci(flagged(0, 100, 18), flagged(0, 100, 18), ALPHA) is None


def test_other_validation_images_are_refused():
    with pytest.raises(ValueError, match="false-alarm rate is not common"):
        copy_rate_difference_ci(flagged(5, 100, 50), flagged(5, 100, 60), ALPHA)
