# SPDX-License-Identifier: Apache-2.0
"""The residual copy rate: by hand, and its interval in simulations with planted copies of known number."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from monai_memorization.statistics.conformal import alpha_attained, copy_candidates, threshold
from monai_memorization.statistics.rates import copy_rate_at_power, copy_rate_interval
from monai_memorization.statistics.residual import (
    noticeable_rate,
    rate_at_power_interval,
    residual_interval,
    residual_rate,
)
from monai_memorization.statistics.strata import stratify

ALPHA = 0.05
N_PLANTED = 128
N_CELLS = 20


def one_stratum(n_patients: int, n_synthetic: int):
    return stratify([f"patient-{i}" for i in range(n_patients)], n_synthetic)


def test_rate_by_hand():
    # of 1,000 images 200 are copies; 150 of them and 40 of the 800 others are flagged, at a level of 5 %
    assert copy_rate_at_power(190, 1000, 0.05, 0.75) == pytest.approx(0.2)
    assert residual_rate(190, 1000, 0.05, 0.75) == pytest.approx(50 / 810)


@pytest.mark.parametrize(("n_flagged", "recall"), [(100, None), (100, 0.04), (1000, 0.9)])
def test_rate_is_not_known_without_power_or_images(n_flagged, recall):
    assert residual_rate(n_flagged, 1000, 0.05, recall) is None


def test_nothing_is_left_of_what_is_always_found():
    assert residual_rate(300, 1000, 0.05, 1.0) == 0


@given(st.integers(0, 99), st.floats(0.1, 1), st.floats(0.1, 1))
def test_higher_recall_leaves_fewer(n_flagged, one, other):
    low, high = sorted((one, other))
    assert residual_rate(n_flagged, 100, 0.05, high) <= residual_rate(n_flagged, 100, 0.05, low) + 1e-12


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 300), st.floats(0.3, 1), st.integers(20, 300))
def test_interval_is_ordered_holds_the_rate_and_widens_with_groups(n_flagged, recall, n_planted):
    arguments = n_flagged, 301, 301 - n_flagged, ALPHA, one_stratum(100, 301)
    low, high = residual_interval(*arguments, [(recall, n_planted)])
    wider = residual_interval(*arguments, [(recall, n_planted), (recall / 2, n_planted)])

    assert 0 <= low <= high <= 1
    assert wider[0] <= low
    assert wider[1] >= high
    rate = residual_rate(n_flagged, 301, alpha_attained(ALPHA, 100), recall)
    assert low <= rate + 1 / (301 - n_flagged)
    assert rate <= high + 1 / (301 - n_flagged)


@pytest.mark.parametrize(("n_patients", "planted"), [(10, [(0.9, 100)]), (100, [])])
def test_without_calibration_or_plants_anything_is_possible(n_patients, planted):
    assert residual_interval(5, 100, 95, ALPHA, one_stratum(n_patients, 100), planted) == (0, 1)


def test_too_few_flagged_leave_room_for_copies():
    assert residual_interval(0, 1000, 1000, ALPHA, one_stratum(200, 1000), [(0.5, 200)])[1] > 0.02


def simulate(rng: np.random.Generator, n_patients: int, n_drawn: int, share: float, shift: float):
    """Draw similarities, filter them, and return (truth, interval, n_left): what is left of planted copies.

    Copies of one training image are alike: their similarities share half of the variance.
    """
    n_copies = round(share * n_drawn)
    validation = torch.tensor(rng.normal(size=n_patients))
    honest = rng.normal(size=n_drawn - n_copies)
    source = rng.normal(size=(N_PLANTED, 1))
    copies = shift + np.sqrt(0.5) * (rng.choice(source[:, 0], n_copies) + rng.normal(size=n_copies))
    plants = shift + np.sqrt(0.5) * (rng.normal(size=(N_PLANTED, 1)) + rng.normal(size=(N_PLANTED, N_CELLS)))
    flagged = copy_candidates(validation, torch.tensor(np.concatenate([copies, honest])), ALPHA)
    n_left = int((~flagged).sum())
    recall = float((plants > threshold(validation, ALPHA)).mean())
    interval = residual_interval(
        int(flagged.sum()), n_drawn, n_left, ALPHA, one_stratum(n_patients, n_drawn), [(recall, N_PLANTED)]
    )
    return float((~flagged[:n_copies]).sum()) / max(1, n_left), interval, n_left


@pytest.mark.parametrize(
    ("n_patients", "n_drawn", "share", "shift"),
    [
        (100, 1000, 0.0, 3.0),
        (100, 1000, 0.05, 3.0),  # about 90 % of the copies are found
        (50, 500, 0.3, 3.0),
        (200, 1000, 0.5, 1.8),  # about a half: the trial in which a third of the rest were copies
        (200, 2000, 0.5, 5.0),  # nearly all
        (60, 200, 0.2, 2.4),
    ],
)
def test_interval_holds_the_truth_in_nine_of_ten_sets(n_patients, n_drawn, share, shift):
    rng = np.random.default_rng(0)
    held = []
    for _ in range(60):
        truth, (low, high), n_left = simulate(rng, n_patients, n_drawn, share, shift)
        held.append(low - 1e-9 <= truth <= high + 1e-9 or n_left == 0)

    assert np.mean(held) >= 0.9


def test_interval_of_the_judge_holds_the_truth():
    """A judge that finds a third of the copies, which are a third of the images."""
    rng, held = np.random.default_rng(0), []
    for _ in range(100):
        false_alarms = rng.beta(5, 96)
        flagged = rng.binomial(300, 0.33) + rng.binomial(600, false_alarms)
        recall = rng.binomial(60, 0.33) / 60
        interval = rate_at_power_interval(flagged, 900, ALPHA, one_stratum(100, 900), (recall, 60))
        held.append(interval[0] <= 1 / 3 <= interval[1])
    assert np.mean(held) >= 0.9


@given(st.integers(0, 200), st.floats(0.2, 1), st.integers(1, 300))
@settings(deadline=None, max_examples=20)
def test_noticeable_rate_falls_with_the_recall_and_is_a_rate(n_flagged, recall, n_planted):
    counted = n_flagged, 200, ALPHA, one_stratum(100, 200)
    rate, of_half = (noticeable_rate(*counted, (share, n_planted)) for share in (recall, recall / 2))
    assert 0 <= rate <= of_half <= 1


@given(st.integers(0, 60), st.floats(0.3, 1), st.integers(20, 400))
@settings(deadline=None, max_examples=30)
def test_noticeable_rate_lies_above_the_interval_of_the_copies_that_are_seen(n_flagged, recall, n_patients):
    strata = one_stratum(n_patients, 60)
    seen = copy_rate_interval(n_flagged, 60, ALPHA, strata)[1]
    # quantiles of 4,000 draws
    assert noticeable_rate(n_flagged, 60, ALPHA, strata, (recall, 256)) >= min(1, seen) - 0.02


def test_nothing_is_noticeable_where_copies_are_found_as_seldom_as_honest_images_are_flagged():
    assert noticeable_rate(25, 1000, ALPHA, one_stratum(100, 1000), (0.04, 256)) == 1


def test_flags_fewer_than_chance_never_promise_to_notice_every_copy():
    none_flagged = noticeable_rate(0, 1000, ALPHA, one_stratum(1000, 1000), (0.8, 10_000))
    # 5 % copies of which 80 % are found would make up for the honest images that are not flagged
    assert none_flagged == pytest.approx(alpha_attained(ALPHA, 1000) / 0.8, abs=1e-4)
    assert noticeable_rate(0, 10, ALPHA, one_stratum(10, 10), (0.8, 100)) == 1  # no image can be flagged


@pytest.mark.parametrize("recall", [0.6, 0.7, 0.9])
def test_share_of_copies_lies_below_the_noticeable_rate_with_few_planted_images(recall):
    """Sixteen training images are planted in twenty ways, and copies of one image are alike."""
    rng, n_patients, n_synthetic, share, below = np.random.default_rng(0), 400, 1000, 0.15, []
    shift = float(norm.ppf(1 - ALPHA) - norm.ppf(1 - recall))
    for _ in range(300):
        validation = torch.tensor(rng.normal(size=n_patients))
        level = threshold(validation, ALPHA)
        of_image = rng.normal(size=(16, 1))
        plants = shift + 0.8**0.5 * of_image + 0.2**0.5 * rng.normal(size=(16, 20))
        copies, honest = shift + rng.normal(size=round(share * n_synthetic)), rng.normal(size=round(0.85 * n_synthetic))
        n_flagged = int((copies > level).sum() + (honest > level).sum())
        planted = float((plants > level).mean()), 16
        below.append(
            share <= noticeable_rate(n_flagged, n_synthetic, ALPHA, one_stratum(n_patients, n_synthetic), planted)
        )
    assert np.mean(below) >= 0.95


def test_upper_ends_hold_where_the_images_of_a_patient_have_nothing_in_common():
    """A tenth of the images are copies, nine in ten of them are seen; 20 patients of ten images."""
    rng, n_drawn, share, recall, missed = np.random.default_rng(0), 2000, 0.1, 0.9, []
    strata = stratify([str(i // 10) for i in range(200)], n_drawn)
    for _ in range(200):
        level = threshold(torch.tensor(rng.normal(size=200)), ALPHA, 20)
        n_copies = rng.binomial(n_drawn, share)
        n_seen = rng.binomial(n_copies, recall)
        n_flagged = n_seen + rng.binomial(n_drawn - n_copies, norm.sf(level))
        left = n_drawn - n_flagged
        planted = rng.binomial(1000, recall) / 1000, 1000
        upper = residual_interval(n_flagged, n_drawn, left, ALPHA, strata, [planted])[1]
        noticeable = noticeable_rate(n_flagged, n_drawn, ALPHA, strata, planted)
        missed.append((n_copies - n_seen > upper * left, share > noticeable))
    # with the false-alarm rate of alike images alone: 8 and 15 %
    assert np.max(np.mean(missed, axis=0)) <= 0.025 + 3 * (0.025 * 0.975 / len(missed)) ** 0.5
