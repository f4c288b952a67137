# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import sqrtm

from monai_memorization.statistics.fidelity import (
    frechet_distance,
    mean_similarity,
    measure_fidelity,
    precision_recall,
)


def vectors(n: int, seed: int, size: int = 6, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed)) + shift * torch.arange(size)


def slow_covered(query: torch.Tensor, reference: torch.Tensor) -> float:
    """Kynkaanniemi et al. 2019, image by image, with the radius of the third neighbour."""
    covered = 0
    for one in query:
        for i, other in enumerate(reference):
            own = sorted((float(np.corrcoef(other, x)[0, 1]) for j, x in enumerate(reference) if j != i), reverse=True)
            if np.corrcoef(one, other)[0, 1] >= own[2]:
                covered += 1
                break
    return covered / len(query)


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_frechet_distance_is_that_of_the_formula(shift):
    real, synthetic = vectors(80, 0).double(), vectors(60, 1, shift=shift).double()
    one, other = (np.cov(x.numpy(), rowvar=False) for x in (real, synthetic))
    gap = np.square(real.mean(0).numpy() - synthetic.mean(0).numpy()).sum()

    expected = gap + np.trace(one + other - 2 * sqrtm(one @ other).real)

    assert frechet_distance(real, synthetic) == pytest.approx(expected, abs=1e-8)


def test_frechet_distance_of_shifted_copies_is_the_square_of_the_shift():
    real = vectors(50, 0)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(real, real + torch.tensor([3.0, 0, 0, 4.0, 0, 0])) == pytest.approx(25, rel=1e-5)


def test_frechet_distance_needs_no_more_images_than_features():
    assert np.isfinite(frechet_distance(vectors(5, 0, 40), vectors(7, 1, 40)))


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 12), st.integers(0, 100))
def test_mean_similarity_is_that_over_all_pairs(n, seed):
    images = vectors(n, seed)
    pairs = np.corrcoef(images.numpy())[np.triu_indices(n, 1)]

    assert mean_similarity(images) == pytest.approx(pairs.mean(), abs=1e-5)


@settings(deadline=None, max_examples=10)
@given(st.integers(5, 14), st.integers(5, 14), st.integers(0, 50))
def test_precision_and_recall_are_those_of_the_definition(n, m, seed):
    real, synthetic = vectors(n, seed).double(), vectors(m, seed + 1).double()

    expected = slow_covered(synthetic, real), slow_covered(real, synthetic)

    assert precision_recall(real, synthetic) == pytest.approx(expected)


def test_copying_a_few_images_is_precise_but_recalls_little():
    real = vectors(200, 0)
    precision, recall = precision_recall(real, real[:5].repeat(40, 1) + 1e-3 * vectors(200, 1))

    assert precision == 1
    assert recall < 0.2


def test_real_images_in_the_place_of_synthetic_ones_look_like_real_ones():
    validation, synthetic = vectors(400, 0, 12), vectors(300, 1, 12)
    found = measure_fidelity(validation, synthetic, [f"patient-{i // 2}" for i in range(400)])

    assert found["n_images"] == 200
    for key in ("frechet_distance", "mean_similarity", "distribution_precision", "distribution_recall"):
        assert found[key] == pytest.approx(found[f"{key}_real"], rel=0.5, abs=0.02), key
    far = measure_fidelity(validation, vectors(300, 1, 12, shift=0.5), [f"patient-{i}" for i in range(400)])
    assert far["frechet_distance"] > 3 * far["frechet_distance_real"]
    assert far["mean_similarity"] > far["mean_similarity_real"]


def test_too_few_images_are_not_compared():
    found = measure_fidelity(vectors(6, 0), vectors(20, 1), list("abcdef"))

    assert found["n_images"] == 3
    assert found["frechet_distance"] is None
