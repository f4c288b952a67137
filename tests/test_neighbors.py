# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_similarity import embeddings, pearson

from monai_memorization.detector.neighbors import count_above, nearest, nearest_in_subsets
from monai_memorization.errors import InputError


def all_similarities(query, reference):
    return [[pearson(a, b) for b in reference.tolist()] for a in query.tolist()]


SIZES = [(1, 1, 3, 1), (7, 5, 4, 1), (7, 5, 4, 5), (30, 41, 16, 3), (12, 60, 128, 7)]


@pytest.mark.parametrize(("n", "m", "size", "k"), SIZES)
def test_nearest_equals_pearson_correlation_in_loops(n, m, size, k):
    query, reference = embeddings(n, size, 0), embeddings(m, size, 1)
    similarity, index = nearest(query, reference, k, query_block=8, reference_block=16)
    for row, values in enumerate(all_similarities(query, reference)):
        order = sorted(range(m), key=lambda j: (-values[j], j))[:k]
        assert index[row].tolist() == order
        assert similarity[row].tolist() == pytest.approx([values[j] for j in order], abs=1e-6)


@pytest.mark.parametrize(("n", "m", "size", "k"), SIZES)
@pytest.mark.parametrize("threshold", [-0.9, 0.0, 0.3])
def test_count_above_equals_loops(n, m, size, k, threshold):
    query, reference = embeddings(n, size, 2), embeddings(m, size, 3)
    expected = [sum(value > threshold for value in row) for row in all_similarities(query, reference)]
    assert count_above(query, reference, threshold, query_block=5, reference_block=9).tolist() == expected


def test_nearest_in_subsets_equals_nearest_of_each_subset():
    query, reference = embeddings(20, 8, 4), embeddings(50, 8, 5)
    subsets = torch.stack([torch.randperm(50, generator=torch.Generator().manual_seed(i))[:13] for i in range(6)])
    expected = torch.stack([nearest(query, reference[subset])[0][:, 0] for subset in subsets])
    assert torch.equal(nearest_in_subsets(query, reference, subsets), expected)


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 40),
    m=st.integers(1, 40),
    k=st.integers(1, 5),
    query_block=st.integers(1, 50),
    reference_block=st.integers(1, 50),
    n_duplicates=st.integers(0, 10),
    seed=st.integers(0, 2**20),
)
def test_block_size_does_not_matter(n, m, k, query_block, reference_block, n_duplicates, seed):
    query, reference = embeddings(n, 6, seed), embeddings(m, 6, seed + 1)
    # equal reference rows in different blocks, and queries that equal them
    reference = torch.cat([reference, reference[:n_duplicates]])
    query = torch.cat([query, reference[:n_duplicates]])
    k = min(k, len(reference))
    blocks = {"query_block": query_block, "reference_block": reference_block}
    whole, in_blocks = nearest(query, reference, k), nearest(query, reference, k, **blocks)
    assert torch.equal(whole[0], in_blocks[0])
    assert torch.equal(whole[1], in_blocks[1])
    level = float(whole[0].median())
    assert torch.equal(count_above(query, reference, level), count_above(query, reference, level, **blocks))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**20), reference_block=st.integers(1, 40))
def test_count_above_agrees_with_nearest_even_at_the_threshold(seed, reference_block):
    query, reference = embeddings(9, 5, seed), embeddings(30, 5, seed + 1)
    similarity = nearest(query, reference, 30)[0].double()
    for threshold in similarity.flatten()[::17].tolist():
        expected = (similarity > threshold).sum(dim=1)
        assert torch.equal(count_above(query, reference, threshold, reference_block=reference_block), expected)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_order_of_images_does_not_matter(seed):
    query, reference = embeddings(10, 7, seed), embeddings(25, 7, seed + 1)
    generator = torch.Generator().manual_seed(seed)
    of_query, of_reference = torch.randperm(10, generator=generator), torch.randperm(25, generator=generator)
    similarity, index = nearest(query, reference, 2)
    moved_similarity, moved_index = nearest(query[of_query], reference[of_reference], 2)
    assert torch.equal(moved_similarity, similarity[of_query])
    assert torch.equal(of_reference[moved_index], index[of_query])


def test_similarity_is_symmetric():
    a, b = embeddings(12, 33, 6), embeddings(12, 33, 7)
    forth, back = nearest(a, b, 12), nearest(b, a, 12)
    assert torch.equal(
        torch.zeros(12, 12).scatter(1, forth[1], forth[0]),
        torch.zeros(12, 12).scatter(1, back[1], back[0]).T,
    )


def test_exact_copy_is_found_at_similarity_one():
    reference = embeddings(3000, 128, 8)
    similarity, index = nearest(3 * reference[[2999, 0, 700]] + 5, reference)
    assert index[:, 0].tolist() == [2999, 0, 700]
    assert similarity[:, 0].tolist() == pytest.approx([1, 1, 1], abs=1e-6)


def test_ties_go_to_the_lowest_index():
    reference = embeddings(1, 16, 9).repeat(1500, 1)
    _, index = nearest(embeddings(5, 16, 10), reference, 4)
    assert index.tolist() == [[0, 1, 2, 3]] * 5


def test_similarities_that_single_precision_confuses_are_told_apart():
    size = 4096
    query = embeddings(1, size, 11)
    # float32 products of these differ by less than their own rounding error
    reference = query + torch.linspace(2e-3, 1e-3, 40)[:, None] * embeddings(40, size, 12)
    expected = torch.corrcoef(torch.cat([query, reference]).double())[0, 1:]
    similarity, index = nearest(query, reference, reference_block=3)
    assert float(expected.max() - expected[index[0, 0]]) < 2e-7
    assert float(similarity) == pytest.approx(float(expected.max()), abs=2e-7)


def test_reduced_matmul_precision_does_not_change_the_result():
    query, reference = embeddings(50, 64, 13), embeddings(700, 64, 14)
    exact = nearest(query, reference, 3)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        reduced = nearest(query, reference, 3)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(exact[0], reduced[0])
    assert torch.equal(exact[1], reduced[1])


def test_empty_query_gives_empty_result():
    similarity, index = nearest(torch.empty(0, 4), embeddings(3, 4, 16))
    assert similarity.shape == index.shape == (0, 1)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, float("nan"), float("inf")])
def test_constant_or_non_finite_embedding_is_named(value):
    query = embeddings(5, 8, 17)
    query[3] = value
    with pytest.raises(InputError, match="query: embedding 3 is constant or not finite"):
        nearest(query, embeddings(4, 8, 18))


def test_embeddings_of_different_encoders_are_refused():
    with pytest.raises(InputError, match="embeddings have 8 and 9 values"):
        nearest(embeddings(2, 8, 19), embeddings(2, 9, 20))


@pytest.mark.parametrize("k", [0, 4])
def test_number_of_neighbours_is_checked(k):
    with pytest.raises(InputError, match=f"k: found {k}, but must be between 1 and the 3"):
        nearest(embeddings(2, 8, 21), embeddings(3, 8, 22), k)


def test_empty_reference_is_refused():
    with pytest.raises(InputError, match="reference: found no embeddings"):
        nearest(embeddings(2, 8, 23), torch.empty(0, 8))


def test_empty_subsets_are_refused():
    with pytest.raises(InputError, match=r"subsets: .* found \(3, 0\)"):
        nearest_in_subsets(embeddings(2, 8, 24), embeddings(3, 8, 25), torch.empty(3, 0, dtype=torch.int64))


@pytest.mark.parametrize("value", ["tf32", "bf16"])
def test_search_runs_where_precision_was_set_through_torchs_newer_settings(value):
    query, reference = embeddings(50, 64, 13), embeddings(700, 64, 14)
    exact = nearest(query, reference, 3)
    before = torch.backends.mkldnn.matmul.fp32_precision
    try:
        torch.backends.mkldnn.matmul.fp32_precision = value
        reduced = nearest(query, reference, 3)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before
    assert torch.equal(exact[1], reduced[1])
