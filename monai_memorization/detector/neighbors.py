# SPDX-License-Identifier: Apache-2.0
"""Exact nearest neighbours by similarity, block by block in bounded memory.

Fast float32 products only narrow down where the similarity itself has to be looked at, so no result depends on a block
size, a batch or a device. Each rank searches for its part of the query rows, and all get the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from monai_memorization.detector.similarity import MAX_ELEMENTS, pair_similarity, product_tolerance, standardize
from monai_memorization.errors import InputError
from monai_memorization.ranks import current_ranks

# Query and reference rows per product: on a CPU one whose result (1 MB) hardly leaves the cache of its core, on a GPU
# one that keeps it busy for longer than it takes to start.
_BLOCKS_CPU = 512, 512
_BLOCKS_GPU = 4096, 8192
# reference rows that share a maximum: fewer cost memory, more cost time where they are looked at again
_STRIP = 128
# query rows whose maxima are gathered before any block is looked at again: with fewer, these looks are too many
_GATHERED_ROWS = 16384

# values of the query rows that look at a strip, on average, from which on one product with the strip pays
_LOOKED_AT = 1 << 18


@torch.no_grad()
def nearest(
    query: Tensor,
    reference: Tensor,
    k: int = 1,
    *,
    query_block: int | None = None,
    reference_block: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the k most similar reference rows of each query row; ties go to the lowest index.

    Of a float32 product only the maxima of strips of reference rows are kept. At least k similarities reach the k-th
    largest of these maxima, so the k nearest lie in the few strips whose maximum reaches it too, and only those are
    looked at again.

    Args:
        query: embeddings, (N, D).
        reference: embeddings, (M, D) with M >= k.
        k: how many neighbours.
        query_block: query rows per product, None for what suits the device; changes speed and memory only.
        reference_block: reference rows per product, likewise.

    Returns:
        Similarity in [-1, 1], largest first, float32 (N, k), and row in `reference`, int64 (N, k).

    Raises:
        InputError: constant or non-finite embeddings, different D, or k outside 1..M.
    """
    query, reference = _standardize_both(query, reference)
    if not 1 <= k <= len(reference):
        raise InputError(f"k: found {k}, but must be between 1 and the {len(reference)} reference rows")
    ranks = current_ranks()
    query = query[ranks.rows(len(query))]
    similarity = torch.empty(len(query), k, dtype=torch.float32, device=query.device)
    index = torch.empty(len(query), k, dtype=torch.int64, device=query.device)
    blocks = _blocks(query, query_block, reference_block)
    strips = reference.split(min(_STRIP, blocks[1]))
    gathered = max(blocks[0], min(_GATHERED_ROWS, MAX_ELEMENTS // len(strips)))
    for start in range(0, len(query), gathered):
        rows = slice(start, start + gathered)
        similarity[rows], index[rows] = _nearest_of_rows(query[rows], reference, strips, k, blocks)
    similarity, index = ranks.gather_rows(similarity, index)
    return similarity, index


def count_above(
    query: Tensor,
    reference: Tensor,
    threshold: float,
    *,
    query_block: int | None = None,
    reference_block: int | None = None,
) -> Tensor:
    """Count, for each query row, the reference rows whose similarity lies strictly above the threshold.

    Args:
        query: embeddings, (N, D).
        reference: embeddings, (M, D).
        threshold: a similarity.
        query_block: query rows per product, None for what suits the device; changes speed and memory only.
        reference_block: reference rows per product, likewise.

    Returns:
        Counts between 0 and M, int64 (N,).

    Raises:
        InputError: constant or non-finite embeddings, or different D.
    """
    query, reference = _standardize_both(query, reference)
    ranks = current_ranks()
    query = query[ranks.rows(len(query))]
    counts = torch.zeros(len(query), dtype=torch.int64, device=query.device)
    tolerance = product_tolerance(query.shape[1])
    query_block, reference_block = _blocks(query, query_block, reference_block)
    for start in range(0, len(query), query_block):
        rows = query[start : start + query_block]
        for block in reference.split(reference_block):
            product = rows @ block.T
            clear = (product > threshold + tolerance).sum(dim=1)
            i, j = ((product - threshold).abs() <= tolerance).nonzero(as_tuple=True)
            clear.index_add_(0, i, (pair_similarity(rows, block, i, j).double() > threshold).long())
            counts[start : start + query_block] += clear
    return ranks.gather_rows(counts)[0]


def nearest_in_subsets(query: Tensor, reference: Tensor, subsets: Tensor) -> Tensor:
    """Find, for each query row, its largest similarity within each of several subsets of the reference rows.

    Each product is taken once and serves all subsets.

    Args:
        query: embeddings, (N, D).
        reference: embeddings, (M, D).
        subsets: rows of `reference`, int64 (draws, m) with m >= 1.

    Returns:
        Similarities, float32 (draws, N).

    Raises:
        InputError: constant or non-finite embeddings, different D, or empty subsets.
    """
    query, reference = _standardize_both(query, reference)
    if subsets.ndim != 2 or subsets.shape[1] == 0:
        raise InputError(f"subsets: expected row numbers of shape (draws, m >= 1), found {tuple(subsets.shape)}")
    ranks = current_ranks()
    query = query[ranks.rows(len(query))]
    largest = torch.empty(len(subsets), len(query), dtype=torch.float32, device=query.device)
    reference64 = reference.double()
    columns = max(1, MAX_ELEMENTS // len(reference))
    for start in range(0, len(query), columns):
        # reference along the rows: a subset is then a gather of contiguous rows
        product = (reference64 @ query[start : start + columns].double().T).float().clamp_(-1, 1)
        for draw, subset in enumerate(subsets):
            largest[draw, start : start + columns] = product[subset].amax(dim=0)
    return ranks.gather_rows(largest.T)[0].T


def _standardize_both(query: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    if query.ndim == reference.ndim == 2 and query.shape[1] != reference.shape[1]:
        raise InputError(
            f"query, reference: embeddings have {query.shape[1]} and {reference.shape[1]} values; "
            "embed both sets with the same encoder"
        )
    if len(reference) == 0:
        raise InputError("reference: found no embeddings; pass at least one")
    return standardize(query, "query"), standardize(reference, "reference")


def _blocks(vectors: Tensor, query_block: int | None, reference_block: int | None) -> tuple[int, int]:
    """How many query and reference rows are multiplied at a time."""
    fitting = _BLOCKS_CPU if vectors.device.type == "cpu" else _BLOCKS_GPU
    return query_block or fitting[0], reference_block or fitting[1]


def _strip_maxima(query: Tensor, reference: Tensor, strip: int, query_block: int, reference_block: int) -> Tensor:
    """The largest product of each query row within each strip of reference rows, (N, number of strips)."""
    maxima = query.new_empty(len(query), -(-len(reference) // strip))
    width = reference_block // strip * strip
    n_blocks = len(reference) // width
    blocks = [reference[start : start + width].T for start in range(0, n_blocks * width, width)]
    # one product's memory serves all: new memory is a tenth of the time
    memory = query.new_empty(min(query_block, len(query)), width)
    for rows, of_rows in zip(query.split(query_block), maxima.split(query_block), strict=True):
        product = memory[: len(rows)]
        by_strip = product.unflatten(1, (-1, strip))
        for block, of_block in zip(blocks, of_rows.split(width // strip, dim=1), strict=False):
            torch.mm(rows, block, out=product)
            torch.amax(by_strip, dim=2, out=of_block)
    for column in range(n_blocks * width // strip, maxima.shape[1]):  # what is left over fills no block
        torch.amax(query @ reference[column * strip : (column + 1) * strip].T, dim=1, out=maxima[:, column])
    return maxima


def _nearest_of_rows(
    query: Tensor, reference: Tensor, strips: tuple[Tensor, ...], k: int, blocks: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """`nearest` for some standardized query rows."""
    if k <= len(strips):
        bounds = maxima = _strip_maxima(query, reference, len(strips[0]), *blocks)
    else:  # too few maxima: the largest k of each strip bound the k-th largest of all as well
        largest = [torch.mm(query, strip.T).topk(min(k, len(strip)), dim=1).values for strip in strips]
        bounds, maxima = torch.cat(largest, dim=1), torch.stack([values[:, 0] for values in largest], dim=1)
    lowest = bounds.amax(dim=1) if k == 1 else bounds.topk(k, dim=1).values[:, -1]
    floor = lowest - product_tolerance(query.shape[1])
    strip_of, row_of = (maxima >= floor[:, None]).T.nonzero(as_tuple=True)
    if query.device.type == "cpu" or len(row_of) * query.shape[1] > _LOOKED_AT * len(strips):
        looks = _look_by_strip(query, strips, strip_of, row_of, floor, blocks[0])
    else:
        looks = _look_together(query, reference, len(strips[0]), strip_of, row_of, floor)
    found = _Found(*(query.new_empty(0, dtype=dtype) for dtype in (torch.int64, torch.int64, torch.float32)))
    waiting, n_waiting = [found], 0
    for n_looks, i, j in looks:
        pairs = _Found(i, j, pair_similarity(query, reference, i, j))
        if len(i) > 4 * k * n_looks:  # many equal images: only the first of them are needed
            pairs = _largest([pairs], k)
        waiting, n_waiting = [*waiting, pairs], n_waiting + len(pairs.row)
        if n_waiting > MAX_ELEMENTS // 4:
            waiting, n_waiting = [_largest(waiting, k)], 0
    found = _largest(waiting, k)
    return found.similarity.view(-1, k), found.column.view(-1, k)


# how many rows were looked at, and query and reference row of each pair that reaches the floor, by ascending strip
_Looks = Iterator[tuple[int, Tensor, Tensor]]


def _look_by_strip(
    query: Tensor, strips: tuple[Tensor, ...], strip_of: Tensor, row_of: Tensor, floor: Tensor, query_block: int
) -> _Looks:
    """Look at one strip after the other, each for all rows that need it."""
    visited, n_rows = strip_of.unique_consecutive(return_counts=True)
    for s, all_rows in zip(visited.tolist(), row_of.split(n_rows.tolist()), strict=True):
        for rows in all_rows.split(query_block):
            i, j = (query[rows] @ strips[s].T >= floor[rows, None]).nonzero(as_tuple=True)
            yield len(rows), rows[i], j + s * len(strips[0])


def _look_together(
    query: Tensor, reference: Tensor, strip: int, strip_of: Tensor, row_of: Tensor, floor: Tensor
) -> _Looks:
    """Look at many strips at once, each for one row: a GPU takes longer to start an operation than to do it."""
    n_looks = max(1, 2 * MAX_ELEMENTS // (strip * query.shape[1]))
    places = torch.arange(strip, device=query.device)
    for strips, rows in zip(strip_of.split(n_looks), row_of.split(n_looks), strict=True):
        columns = strips[:, None] * strip + places
        exists = columns < len(reference)  # the last strip may be shorter
        columns = columns.clamp_max(len(reference) - 1)
        product = torch.bmm(reference[columns], query[rows][:, :, None])[:, :, 0]
        look, place = ((product >= floor[rows, None]) & exists).nonzero(as_tuple=True)
        yield len(rows), rows[look], columns[look, place]


class _Found(NamedTuple):
    """Pairs of a query and a reference row with their similarity; the reference rows of each query row ascend."""

    row: Tensor
    column: Tensor
    similarity: Tensor


def _largest(found: list[_Found], k: int) -> _Found:
    """The k largest of each row, sorted; ties go to the lowest index, as sorting leaves the order of equal ones."""
    row, column, similarity = (torch.cat(parts) for parts in zip(*found, strict=True))
    order = similarity.argsort(descending=True, stable=True)
    order = order[row[order].argsort(stable=True)]
    n_before = torch.searchsorted(row[order], row[order])
    order = order[torch.arange(len(order), device=order.device) - n_before < k]
    return _Found(row[order], column[order], similarity[order])
