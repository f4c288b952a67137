# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import betabinom, false_discovery_control

from monai_memorization.errors import InputError
from monai_memorization.statistics.conformal import (
    alpha_attained,
    attained_rank,
    copy_candidates,
    count_at_least,
    largest_count,
    n_patients_needed,
    p_values,
    smallest_p_value,
    threshold,
)
from monai_memorization.statistics.discoveries import benjamini_hochberg, smallest_list
from monai_memorization.statistics.false_alarms import false_alarm_rate_interval
from monai_memorization.statistics.strata import flag, stratify

# few distinct values, so that ties are common
SIMILARITIES = st.lists(st.integers(0, 12).map(lambda i: i / 12), min_size=1, max_size=40)
LEVELS = st.one_of(
    st.sampled_from([0.01, 0.05, 0.1, 0.2, 0.25, 0.29, 0.3, 0.5, 0.58, 0.9]),
    st.integers(1, 999).map(lambda i: i / 1000),
)


def p_by_hand(validation, value, n_patients):
    """p(s) = (1 + P G(a(s))) / (P + 1) in exact fractions."""
    share = Fraction(sum(v >= value for v in validation), len(validation))
    return (1 + n_patients * share) / (n_patients + 1)


def written(level):
    return Fraction(str(level))


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


@settings(max_examples=100, deadline=None)
@given(validation=SIMILARITIES, synthetic=SIMILARITIES, data=st.data())
def test_p_values_equal_the_definition(validation, synthetic, data):
    n_patients = data.draw(st.integers(1, len(validation)))
    found = p_values(tensor(validation), tensor(synthetic), n_patients).tolist()
    assert found == pytest.approx([float(p_by_hand(validation, s, n_patients)) for s in synthetic], abs=1e-12)


@settings(max_examples=300, deadline=None)
@given(validation=SIMILARITIES, synthetic=SIMILARITIES, alpha=LEVELS, data=st.data())
def test_candidates_are_exactly_those_with_p_at_most_alpha_and_those_above_the_threshold(
    validation, synthetic, alpha, data
):
    n_patients = data.draw(st.integers(1, len(validation)))
    by_definition = [p_by_hand(validation, s, n_patients) <= written(alpha) for s in synthetic]
    assert copy_candidates(tensor(validation), tensor(synthetic), alpha, n_patients).tolist() == by_definition
    level = threshold(tensor(validation), alpha, n_patients)
    assert [s > level for s in synthetic] == by_definition


@settings(max_examples=200, deadline=None)
@given(validation=SIMILARITIES, alpha=LEVELS, data=st.data())
def test_threshold_is_the_largest_validation_similarity_whose_p_exceeds_alpha(validation, alpha, data):
    n_patients = data.draw(st.integers(1, len(validation)))
    above = [v for v in validation if p_by_hand(validation, v, n_patients) > written(alpha)]
    reachable = Fraction(1, n_patients + 1) <= written(alpha)
    assert threshold(tensor(validation), alpha, n_patients) == (max(above) if reachable else math.inf)


@pytest.mark.parametrize(
    ("alpha", "n_patients", "rank"), [(0.05, 59, 3), (0.29, 99, 29), (0.07, 99, 7), (0.58, 49, 29)]
)
def test_level_counts_as_the_decimal_that_was_written(alpha, n_patients, rank):
    # 0.29 * 100 is 28.999999999999996 and 0.07 * 100 is 7.000000000000001 in floating point
    assert attained_rank(alpha, n_patients) == rank
    validation = torch.arange(n_patients).double()
    assert int(copy_candidates(validation, validation + 0.5, alpha).sum()) == rank


@settings(max_examples=100, deadline=None)
@given(validation=SIMILARITIES, synthetic=SIMILARITIES, alpha=LEVELS, data=st.data())
def test_order_does_not_matter(validation, synthetic, alpha, data):
    shuffled, order = data.draw(st.permutations(validation)), data.draw(st.permutations(range(len(synthetic))))
    before = p_values(tensor(validation), tensor(synthetic))
    assert torch.equal(p_values(tensor(shuffled), tensor(synthetic)[list(order)]), before[list(order)])
    assert threshold(tensor(shuffled), alpha) == threshold(tensor(validation), alpha)


@settings(max_examples=100, deadline=None)
@given(validation=SIMILARITIES, synthetic=SIMILARITIES, alphas=st.tuples(LEVELS, LEVELS))
def test_raising_alpha_never_lowers_the_number_of_candidates(validation, synthetic, alphas):
    low, high = sorted(alphas)
    sets = tensor(validation), tensor(synthetic)
    assert bool((copy_candidates(*sets, low) <= copy_candidates(*sets, high)).all())
    assert threshold(sets[0], low) >= threshold(sets[0], high)


@settings(max_examples=100, deadline=None)
@given(validation=SIMILARITIES, synthetic=SIMILARITIES)
def test_more_similar_images_have_no_larger_p_value(validation, synthetic):
    values = p_values(tensor(validation), tensor(sorted(synthetic))).tolist()
    assert values == sorted(values, reverse=True)


def test_one_image_per_patient_is_the_usual_conformal_p_value():
    assert p_values(tensor([0.1, 0.2, 0.3, 0.4]), tensor([0.05, 0.3, 0.35, 0.9])).tolist() == [1.0, 0.6, 0.4, 0.2]


def test_repeating_every_image_of_a_patient_changes_nothing():
    validation, synthetic = torch.rand(30), torch.rand(50)
    repeated = validation.repeat(4)
    assert torch.allclose(p_values(repeated, synthetic, 30), p_values(validation, synthetic))
    assert threshold(repeated, 0.1, 30) == threshold(validation, 0.1)


@settings(max_examples=30, deadline=None)
@given(n_patients=st.integers(19, 60), seed=st.integers(0, 2**20))
def test_exact_copy_is_a_copy_candidate(n_patients, seed):
    validation = torch.rand(n_patients, generator=torch.Generator().manual_seed(seed)) * 0.9
    assert copy_candidates(validation, tensor([1.0]), 0.05).tolist() == [True]


@pytest.mark.parametrize(("alpha", "needed"), [(0.05, 19), (0.01, 99), (0.1, 9), (0.3, 3), (0.5, 1)])
def test_too_few_patients_flag_nothing(alpha, needed):
    assert n_patients_needed(alpha) == needed
    assert smallest_p_value(needed) <= alpha
    few, enough = torch.zeros(needed - 1), torch.zeros(needed)
    assert copy_candidates(enough, tensor([1.0]), alpha).tolist() == [True]
    if len(few) > 0:
        assert copy_candidates(few, tensor([1.0]), alpha).tolist() == [False]
        assert threshold(few, alpha) == math.inf
        assert alpha_attained(alpha, len(few)) == 0
        assert false_alarm_rate_interval(alpha, stratify([str(i) for i in range(len(few))], 1)) == (0.0, 0.0)


@settings(max_examples=100, deadline=None)
@given(counts=st.lists(st.integers(1, 61), min_size=1, max_size=80), q=st.sampled_from([0.05, 0.1, 0.2, 0.5]))
def test_fdr_list_equals_the_step_up_rule_in_fractions(counts, q):
    values = [Fraction(c, 61) for c in counts]
    ordered = sorted(values)
    ranks = [i for i, p in enumerate(ordered, 1) if p <= written(q) * i / len(values)]
    expected = [bool(ranks) and p <= ordered[ranks[-1] - 1] for p in values]
    assert benjamini_hochberg(tensor([float(p) for p in values]), q).tolist() == expected


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.floats(1e-4, 1), min_size=1, max_size=60))
def test_fdr_list_agrees_with_scipy(values):
    adjusted = false_discovery_control(values)
    if abs(adjusted - 0.05).min() > 1e-9:
        assert benjamini_hochberg(tensor(values), 0.05).tolist() == (adjusted <= 0.05).tolist()


@settings(max_examples=50, deadline=None)
@given(counts=st.lists(st.integers(1, 61), min_size=1, max_size=80))
def test_raising_q_never_shortens_the_list(counts):
    values = tensor(counts) / 61
    assert bool((benjamini_hochberg(values, 0.05) <= benjamini_hochberg(values, 0.2)).all())


@pytest.mark.parametrize(
    ("n_synthetic", "q", "n_patients"), [(1000, 0.05, 60), (100, 0.05, 39), (57, 0.1, 19), (40, 0.2, 9)]
)
def test_smallest_list_is_the_shortest_one_that_can_be_had(n_synthetic, q, n_patients):
    shortest = smallest_list(n_synthetic, q, n_patients)
    for n_copies in range(n_synthetic + 1):
        values = torch.ones(n_synthetic, dtype=torch.float64)
        values[:n_copies] = smallest_p_value(n_patients)
        assert int(benjamini_hochberg(values, q).sum()) == (n_copies if n_copies >= shortest else 0)


def test_empty_list_of_p_values():
    assert benjamini_hochberg(torch.empty(0), 0.05).tolist() == []


def test_flags_within_label_compare_only_images_of_that_label():
    validation = tensor([0.1] * 30 + [0.8] * 30)
    labels = ["normal"] * 30 + ["pneumonia"] * 30
    patients = [f"p{i}" for i in range(60)]
    synthetic, of_synthetic = tensor([0.5, 0.5, 0.9]), ["normal", "pneumonia", "pneumonia"]
    within = flag(validation, synthetic, stratify(patients, 3, labels, of_synthetic), alpha=0.05, q=0.05)
    assert within.copy_candidate.tolist() == [True, False, True]
    assert within.p_value.tolist() == pytest.approx([1 / 31, 1, 1 / 31])
    without = flag(validation, synthetic, stratify(patients, 3), alpha=0.05, q=0.05)
    assert without.copy_candidate.tolist() == [False, False, True]


def test_strata_count_patients_within_label_and_hold_every_synthetic_image_once():
    strata = stratify(["a", "a", "b", "b", "c"], 4, ["x", "y", "x", "x", "y"], ["y", "x", "y", "y"])
    assert [(s.label, s.n_patients) for s in strata] == [("x", 2), ("y", 2)]
    assert [s.validation.tolist() for s in strata] == [[0, 2, 3], [1, 4]]
    assert [s.shares_patients for s in strata] == [True, True]  # a
    assert sorted(i for s in strata for i in s.synthetic.tolist()) == [0, 1, 2, 3]


def test_labels_with_patients_of_their_own_share_none():
    # of b, who is in two labels, only one occurs among the synthetic images
    strata = stratify(["a", "b", "b", "c"], 2, ["x", "y", "z", "y"], ["x", "y"])
    assert [s.shares_patients for s in strata] == [False, False]


def test_label_that_validation_lacks_is_named():
    with pytest.raises(InputError, match="label: found 2 synthetic images labelled 'viral' but no validation image"):
        stratify(["a", "b"], 3, ["normal", "normal"], ["normal", "viral", "viral"])


def test_empty_validation_set_is_refused_with_a_cure():
    with pytest.raises(InputError, match=r"validation: found no images.*split"):
        stratify([], 3)
    with pytest.raises(InputError, match="validation: found no images"):
        p_values(torch.empty(0), torch.zeros(1))


@pytest.mark.parametrize("n_patients", [0, 6])
def test_number_of_patients_is_checked(n_patients):
    with pytest.raises(InputError, match=f"n_patients: found {n_patients} for 5 validation images"):
        p_values(torch.zeros(5), torch.zeros(1), n_patients)


@pytest.mark.parametrize("level", [0, 1, -0.1, 5])
def test_level_is_checked(level):
    with pytest.raises(InputError, match=f"alpha: found {level}"):
        threshold(torch.zeros(5), level)
    with pytest.raises(InputError, match=f"q: found {level}"):
        benjamini_hochberg(torch.ones(3), level)


# --- error rates with planted truth ---


def exchangeable(n_patients, images_per_patient, correlation, generator):
    """Similarities of patients whose images are correlated; a(x) needs no embeddings to be exchangeable."""
    of_patient = torch.randn(n_patients, 1, generator=generator)
    of_image = torch.randn(n_patients, images_per_patient, generator=generator)
    return (correlation**0.5 * of_patient + (1 - correlation) ** 0.5 * of_image).flatten()


@pytest.mark.parametrize("n_synthetic", [30, 60, 600])
def test_flagged_count_is_beta_binomial_when_nothing_is_copied(n_synthetic):
    generator, n_patients, n_replicates = torch.Generator().manual_seed(1), 60, 1000
    rank = attained_rank(0.05, n_patients)
    counts = torch.stack(
        [
            copy_candidates(
                torch.randn(n_patients, generator=generator), torch.randn(n_synthetic, generator=generator), 0.05
            ).sum()
            for _ in range(n_replicates)
        ]
    ).double()
    share = counts / n_synthetic
    assert abs(float(share.mean()) - alpha_attained(0.05, n_patients)) < 3 * float(share.std()) / n_replicates**0.5
    low, high = betabinom.interval(0.95, n_synthetic, rank, n_patients + 1 - rank)
    assert float(((counts >= low) & (counts <= high)).double().mean()) >= 0.93


# 58 and 50 patients: alpha (P + 1) is 2.95 and 2.55, where floor(alpha (P + 1)) / (P + 1) is exceeded
@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("n_patients", [50, 58, 60])
def test_several_images_per_patient_keep_the_mean_false_alarm_rate_at_the_attained_level(n_patients, correlation):
    generator, n_replicates = torch.Generator().manual_seed(2), 400
    share = torch.stack(
        [
            copy_candidates(
                exchangeable(n_patients, 4, correlation, generator),
                torch.randn(200, generator=generator),
                0.05,
                n_patients,
            )
            .double()
            .mean()
            for _ in range(n_replicates)
        ]
    )
    attained = alpha_attained(0.05, n_patients, 4 * n_patients)
    assert attained <= 0.05
    assert float(share.mean()) < attained + 3 * float(share.std()) / n_replicates**0.5


@settings(max_examples=100, deadline=None)
@given(validation=SIMILARITIES, alpha=LEVELS, data=st.data())
def test_attained_level_is_the_largest_p_value_not_above_alpha(validation, alpha, data):
    n_images, n_patients = len(validation), data.draw(st.integers(1, len(validation)))
    attainable = [(1 + Fraction(n_patients * c, n_images)) / (n_patients + 1) for c in range(n_images + 1)]
    largest = max((p for p in attainable if p <= written(alpha)), default=0)
    assert alpha_attained(alpha, n_patients, n_images) == pytest.approx(float(largest), abs=1e-12)
    assert alpha_attained(alpha, n_patients) == math.floor(written(alpha) * (n_patients + 1)) / (n_patients + 1)


@pytest.mark.parametrize("n_copies", [0, 30, 120])
def test_false_discoveries_stay_below_q(n_copies):
    generator, n_replicates, n_synthetic = torch.Generator().manual_seed(3), 300, 400
    proportions = []
    for _ in range(n_replicates):
        synthetic = torch.randn(n_synthetic, generator=generator)
        synthetic[:n_copies] += 4
        listed = benjamini_hochberg(p_values(torch.randn(400, generator=generator), synthetic), 0.05)
        proportions.append(float(listed[n_copies:].sum()) / max(1, int(listed.sum())))
    values = torch.tensor(proportions)
    assert float(values.mean()) <= 0.05 + 3 * float(values.std()) / n_replicates**0.5


def test_largest_count_is_below_the_number_of_images():
    assert all(largest_count(a / 100, n, p) < n for a in range(1, 100) for n in range(1, 12) for p in range(1, n + 1))


def test_count_at_least_includes_ties():
    assert count_at_least(tensor([0.1, 0.5, 0.5, 0.9]), tensor([0.5, 0.95, 0.0])).tolist() == [3, 0, 4]
