# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch

from monai_memorization.errors import InputError
from monai_memorization.statistics.gap import _clustered_auc, _share_ordered_right, gap_auc, nearest_in_training


def embeddings(n, size, seed):
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed))


def names(n, images_per_patient=1):
    return [str(i // images_per_patient) for i in range(n)]


def test_alike_sets_have_an_interval_that_holds_one_half():
    held = 0
    for seed in range(40):
        validation = embeddings(30, 8, seed).repeat_interleave(2, 0) + 0.3 * embeddings(60, 8, seed + 100)
        synthetic = embeddings(80, 8, seed + 200) * 1.09**0.5
        low, high = gap_auc(validation, synthetic, names(60, 2), seed).ci
        held += low <= 0.5 <= high
    # 0.95 less three standard errors
    assert held >= 40 * (0.95 - 3 * (0.95 * 0.05 / 40) ** 0.5)


@pytest.mark.parametrize(
    ("change", "least"), [(lambda s: s + 1, 0.95), (lambda s: 0.6 * s, 0.9), (lambda s: 1.5 * s, 0.8)]
)
def test_shifted_narrower_and_wider_sets_are_told_apart(change, least):
    gap = gap_auc(embeddings(150, 16, 0), change(embeddings(150, 16, 1)), names(150))
    assert gap.auc > least
    assert 0.5 < gap.ci[0] < gap.auc <= gap.ci[1] <= 1


def test_seed_makes_it_reproducible_and_order_of_sets_matters_not():
    validation, synthetic = embeddings(60, 8, 2), embeddings(60, 8, 3) + 0.4
    first = gap_auc(validation, synthetic, names(60), seed=5)
    assert first == gap_auc(validation, synthetic, names(60), seed=5)
    back = gap_auc(synthetic, validation, names(60), seed=5)
    assert back.auc == pytest.approx(first.auc, abs=0.05)


def test_images_of_one_patient_are_not_told_apart_by_knowing_the_patient():
    # 12 patients of 30 near-equal images: without grouping, any image's patient would give it away
    validation = embeddings(12, 64, 4).repeat_interleave(30, 0) + 0.01 * embeddings(360, 64, 5)
    gap = gap_auc(validation, embeddings(360, 64, 6), names(360, 30))
    assert gap.auc < 0.8
    assert gap.ci[0] <= 0.5


def test_few_images_that_are_all_told_apart_leave_the_area_uncertain():
    # of 20 and 20 images all pairs are ordered right; with an area of 0.8 that would not happen
    gap = gap_auc(embeddings(20, 4, 0), embeddings(20, 4, 1) + 20, names(20))
    assert gap.auc == gap.ci[1] == 1
    assert gap.ci[0] == pytest.approx(0.025 ** (1 / 20))


@pytest.mark.parametrize(("n_patients", "n_synthetic"), [(9, 50), (50, 9), (0, 0)])
def test_few_images_give_a_reason_instead_of_a_number(n_patients, n_synthetic):
    gap = gap_auc(embeddings(2 * n_patients, 4, 7), embeddings(n_synthetic, 4, 8), names(2 * n_patients, 2))
    assert (gap.auc, gap.ci) == (None, None)
    assert f"found {n_patients} and {n_synthetic}" in gap.reason


def test_placements_count_pairs_in_the_right_order():
    generator = np.random.default_rng(0)
    scores, is_synthetic = generator.integers(0, 6, 30).astype(float), generator.random(30) < 0.4
    expected = [
        np.mean(
            [
                (0.5 if other == mine else float((mine > other) == synthetic))
                for other in scores[is_synthetic != synthetic]
            ]
        )
        for mine, synthetic in zip(scores, is_synthetic, strict=True)
    ]
    assert _share_ordered_right(scores, is_synthetic) == pytest.approx(expected)


def test_variance_without_clusters_is_that_of_delong():
    generator = np.random.default_rng(1)
    scores, is_synthetic = generator.random(50), np.arange(50) < 20
    placements = _share_ordered_right(scores, is_synthetic)
    auc, variance = _clustered_auc(placements, is_synthetic, np.arange(50))
    pairs = scores[is_synthetic][:, None] > scores[~is_synthetic][None, :]
    assert auc == pytest.approx(pairs.mean())
    delong = pairs.mean(axis=1).var(ddof=1) / 20 + pairs.mean(axis=0).var(ddof=1) / 30
    assert variance == pytest.approx(delong)


def test_variance_counts_a_patients_equal_images_once():
    generator = np.random.default_rng(2)
    scores, is_synthetic = generator.random(50), np.arange(50) < 20
    placements = _share_ordered_right(scores, is_synthetic)
    once = _clustered_auc(placements, is_synthetic, np.arange(50))
    tripled = _clustered_auc(placements.repeat(3), is_synthetic.repeat(3), np.arange(50).repeat(3))
    assert tripled == pytest.approx(once)


def test_real_images_lie_as_near_to_training_as_to_held_out_images():
    shares = [
        nearest_in_training(embeddings(90, 8, s), embeddings(60, 8, s + 100), embeddings(80, 8, s + 200), names(60), s)
        for s in range(30)
    ]
    means, errors = np.mean(shares, axis=0), np.std(shares, axis=0) / 30**0.5
    assert (np.abs(means - 0.5) < 3 * errors).all()


def test_copies_of_training_images_lie_nearest_to_training_images():
    training = embeddings(100, 16, 9)
    query, real = nearest_in_training(training, embeddings(200, 16, 10), training + 0.01, names(200))
    assert query == pytest.approx(1)
    assert 0.4 < real < 0.6


def test_images_that_lean_to_training_images_are_seen_by_the_control():
    # half-way blends: each alone is unremarkable, the set is not
    training, held_out = embeddings(200, 16, 11), embeddings(200, 16, 12)
    leaning = embeddings(300, 16, 13) + training[torch.arange(300) % 200]
    query, real = nearest_in_training(training, held_out, leaning, names(200))
    assert query > real + 0.1


def test_shares_do_not_depend_on_which_set_is_larger():
    large, small = embeddings(500, 8, 14), embeddings(40, 8, 15)
    for training, held_out in ((large, small), (small, large)):
        query, real = nearest_in_training(training, held_out, embeddings(400, 8, 16), names(len(held_out)))
        assert query == pytest.approx(0.5, abs=0.1)
        assert real == pytest.approx(0.5, abs=0.15)


def test_a_single_held_out_patient_is_refused():
    with pytest.raises(InputError, match="validation: found 1 patients, but the control needs two"):
        nearest_in_training(embeddings(5, 4, 17), embeddings(5, 4, 18), embeddings(5, 4, 19), ["a"] * 5)
