# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from monai_memorization.detector import similarity
from monai_memorization.detector.neighbors import nearest
from monai_memorization.detector.similarity import paired, spread_out, standardize


def pearson(a: list[float], b: list[float]) -> float:
    """Correlation from its textbook definition."""
    mean_a, mean_b = math.fsum(a) / len(a), math.fsum(b) / len(b)
    covariance = math.fsum((x - mean_a) * (y - mean_b) for x, y in zip(a, b, strict=True))
    scale = math.fsum((x - mean_a) ** 2 for x in a) * math.fsum((y - mean_b) ** 2 for y in b)
    return covariance / math.sqrt(scale)


def embeddings(n, size, seed):
    return torch.randn(n, size, generator=torch.Generator().manual_seed(seed))


def test_standardized_rows_are_centred_and_of_unit_norm():
    rows = standardize(1e4 + embeddings(50, 20, 15)).double()
    assert rows.mean(dim=1).abs().max() < 1e-7
    assert (rows.norm(dim=1) - 1).abs().max() < 1e-6


def test_paired_rows_have_their_pearson_correlation():
    first, second = embeddings(40, 16, 1), embeddings(40, 16, 2)
    expected = [pearson(a, b) for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    assert paired(first, second).tolist() == pytest.approx(expected, abs=1e-6)


def test_similarity_of_a_pair_is_the_number_that_the_search_finds_for_it():
    query, reference = embeddings(300, 24, 3), embeddings(200, 24, 4)
    found, index = nearest(query, reference)
    assert torch.equal(paired(query, reference[index[:, 0]]), found[:, 0])


def test_no_row_is_more_than_equal_to_itself():
    rows = embeddings(2000, 7, 5)
    assert paired(rows, rows).max() == 1


def test_number_of_pairs_at_a_time_does_not_matter(monkeypatch):
    first, second = embeddings(50, 16, 6), embeddings(50, 16, 7)
    at_once = paired(first, second)
    monkeypatch.setattr(similarity, "_CACHED_ELEMENTS", 16 * 7)
    assert torch.equal(paired(first, second), at_once)


def test_nothing_is_paired_with_nothing():
    assert paired(torch.empty(0, 4), torch.empty(0, 4)).shape == (0,)


def test_constant_rows_have_a_similarity_once_they_are_spread_out():
    assert paired(spread_out(torch.zeros(1, 8), 1e-3), spread_out(torch.ones(1, 8), 1e-3)).item() == pytest.approx(1)
