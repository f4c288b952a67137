# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from dataclasses import asdict
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from monai_memorization.errors import InputError
from monai_memorization.statistics.paper_protocol import (
    calibrate_tau,
    measure_paper_protocol,
    mem_null_rate,
    share_drawn,
)


def embeddings(n, size, seed):
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed))


def similarities(a, b):
    """Pearson correlations (n, m) by numpy, rounded to float32."""
    return np.corrcoef(a.double().numpy(), b.double().numpy())[: len(a), len(a) :].astype(np.float32).tolist()


def percentile_by_hand(values, percentile):
    ordered = sorted(values)
    rank = percentile / 100 * (len(ordered) - 1)
    low = math.floor(rank)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (rank - low) * (ordered[high] - ordered[low])


def reference_protocol(training, validation, synthetic, percentile):
    """Section 3.1 of the design in loops; every draw for mem_rate_matched is enumerated."""
    t_v, t_s = similarities(training, validation), similarities(training, synthetic)
    s_t, v_t = similarities(synthetic, training), similarities(validation, training)
    tau = percentile_by_hand([max(row) for row in t_v], percentile)
    n_mem = sum(max(row) > tau for row in t_s)
    n_copies = sum(max(row) > tau for row in s_t)
    n_validation, n_synthetic = len(validation), len(synthetic)
    shares = []
    for draw in combinations(range(max(n_validation, n_synthetic)), min(n_validation, n_synthetic)):
        if n_synthetic >= n_validation:
            shares += [sum(max(row[s] for s in draw) > tau for row in t_s) / len(training)]
        else:
            tau_of_draw = percentile_by_hand([max(row[v] for v in draw) for row in t_v], percentile)
            shares += [sum(max(row) > tau_of_draw for row in t_s) / len(training)]
    return {
        "percentile": percentile,
        "tau": tau,
        "n_mem": n_mem,
        "mem_rate": n_mem / len(training),
        "n_copies": n_copies,
        "copy_rate": n_copies / n_synthetic,
        "mem_null_rate": 1 - (percentile / 100) ** (n_synthetic / n_validation),
        "copy_null_rate": sum(max(row) > tau for row in v_t) / n_validation,
        "mem_rate_matched": sum(shares) / len(shares),
    }


@pytest.mark.parametrize("percentile", [50.0, 80.0, 95.0])
@pytest.mark.parametrize(("n_training", "n_validation", "n_synthetic"), [(20, 3, 8), (7, 4, 4), (31, 1, 6), (1, 2, 9)])
def test_paper_protocol_equals_loops_over_every_draw(n_training, n_validation, n_synthetic, percentile):
    sets = embeddings(n_training, 6, 0), embeddings(n_validation, 6, 1), embeddings(n_synthetic, 6, 2)
    found = asdict(measure_paper_protocol(*sets, percentile=percentile))
    assert found == pytest.approx(reference_protocol(*sets, percentile), abs=1e-6)


def test_fewer_synthetic_images_draw_the_validation_set_down():
    sets = embeddings(200, 6, 3), embeddings(9, 6, 4), embeddings(3, 6, 5)
    found = measure_paper_protocol(*sets)
    # 100 of the 84 possible draws at random, so the mean is close but not equal
    assert found.mem_rate_matched == pytest.approx(reference_protocol(*sets, 95.0)["mem_rate_matched"], abs=0.02)
    assert found == measure_paper_protocol(*sets)
    assert found.mem_rate_matched != measure_paper_protocol(*sets, seed=1).mem_rate_matched


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.floats(-1, 1), min_size=1, max_size=40),
    percentile=st.floats(0.1, 99.9),
)
def test_tau_is_numpys_linear_percentile(values, percentile):
    found = float(calibrate_tau(torch.tensor(values, dtype=torch.float64), percentile))
    assert found == pytest.approx(np.percentile(values, percentile), abs=1e-9)


@pytest.mark.parametrize("n", [21, 61, 101, 1001, 20001])
def test_image_at_tau_is_not_counted(n):
    # 95 % of n - 1 is a whole number: tau is one of the values, and exactly 5 % of n - 1 lie above it
    values = embeddings(n, 1, 6)[:, 0]
    tau = calibrate_tau(values)
    assert int((values.double() > tau).sum()) == (n - 1) // 20
    assert (values.double() == tau).any()


def test_tau_works_along_the_last_dimension():
    values = embeddings(4, 30, 7)
    assert calibrate_tau(values).tolist() == [float(calibrate_tau(row)) for row in values]


@pytest.mark.parametrize(
    ("n_validation", "n_synthetic", "rate"), [(1000, 1000, 0.05), (226, 904, 0.1855), (200, 10_000, 0.923)]
)
def test_null_rate_at_the_published_sizes(n_validation, n_synthetic, rate):
    assert mem_null_rate(n_validation, n_synthetic) == pytest.approx(rate, abs=5e-4)


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 60), data=st.data())
def test_share_drawn_is_hypergeometric(n, data):
    marked, drawn = data.draw(st.integers(0, n)), data.draw(st.integers(0, n))
    expected = 1 - math.comb(n - marked, drawn) / math.comb(n, drawn)
    assert float(share_drawn(torch.tensor([marked]), n, drawn)) == pytest.approx(expected, abs=1e-10)


def test_share_drawn_is_precise_for_large_sets():
    # one marked image among a million: the chance is drawn / total
    assert float(share_drawn(torch.tensor([1]), 10**6, 1234)) == pytest.approx(1234e-6, rel=1e-4)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_raising_the_percentile_never_raises_a_count(seed):
    sets = embeddings(30, 5, seed), embeddings(12, 5, seed + 1), embeddings(25, 5, seed + 2)
    found = [measure_paper_protocol(*sets, percentile=p) for p in (10.0, 50.0, 90.0, 99.0)]
    for lower, higher in pairwise(found):
        assert lower.tau <= higher.tau
        for name in ("n_mem", "n_copies", "copy_null_rate", "mem_rate_matched"):
            assert getattr(lower, name) >= getattr(higher, name)
    assert all(r.n_mem <= 30 and r.n_copies <= 25 for r in found)


def test_training_set_against_itself_is_all_memorized():
    training = embeddings(40, 16, 8)
    found = measure_paper_protocol(training, embeddings(40, 16, 9), training)
    assert found.tau < 0.95
    assert (found.n_mem, found.n_copies, found.mem_rate, found.copy_rate) == (40, 40, 1.0, 1.0)


def test_one_exact_copy_more_adds_one_copy():
    training, validation, synthetic = embeddings(40, 16, 10), embeddings(30, 16, 11), embeddings(30, 16, 12)
    before = measure_paper_protocol(training, validation, synthetic)
    after = measure_paper_protocol(training, validation, torch.cat([synthetic, training[[5]]]))
    assert after.tau == before.tau
    assert after.n_copies == before.n_copies + 1


def test_duplicated_synthetic_set_leaves_the_memorized_alone():
    training, validation, synthetic = embeddings(40, 8, 13), embeddings(20, 8, 14), embeddings(30, 8, 15)
    once = measure_paper_protocol(training, validation, synthetic)
    twice = measure_paper_protocol(training, validation, synthetic.repeat(2, 1))
    assert (twice.n_mem, twice.copy_rate) == (once.n_mem, once.copy_rate)


@pytest.mark.parametrize(("n_validation", "n_synthetic"), [(200, 100), (100, 100), (50, 200)])
def test_matched_rate_is_five_percent_without_memorization_at_any_sizes(n_validation, n_synthetic):
    rates = torch.tensor(
        [
            measure_paper_protocol(
                embeddings(200, 16, 3 * r),
                embeddings(n_validation, 16, 3 * r + 1),
                embeddings(n_synthetic, 16, 3 * r + 2),
            ).mem_rate_matched
            for r in range(60)
        ],
        dtype=torch.float64,
    )
    assert abs(float(rates.mean()) - 0.05) < 3 * float(rates.std()) / 60**0.5 + 1 / 200


@pytest.mark.parametrize("role", [0, 1, 2])
def test_empty_set_is_named(role):
    sets = [embeddings(5, 4, i) for i in range(3)]
    sets[role] = torch.empty(0, 4)
    with pytest.raises(InputError, match=f"{('training', 'validation', 'synthetic')[role]}: found no embeddings"):
        measure_paper_protocol(*sets)


@pytest.mark.parametrize("percentile", [0, 100, -3.5])
def test_percentile_is_checked(percentile):
    with pytest.raises(InputError, match=f"percentile: found {percentile}"):
        calibrate_tau(torch.zeros(3), percentile)
