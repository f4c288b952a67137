# SPDX-License-Identifier: Apache-2.0
"""Similarity of two embeddings: their Pearson correlation, as one well-defined number wherever it is computed.

Both are standardized, rounded to float32, multiplied and summed in float64, and the result is rounded to float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from monai_memorization.errors import InputError

# Elements of a temporary float64 array (128 MB), which bounds the memory of every step that depends on the data.
MAX_ELEMENTS = 1 << 24
# elements of one that stays in the processor's cache (1 MB)
_CACHED_ELEMENTS = 1 << 17


def standardize(vectors: Tensor, name: str = "vectors") -> Tensor:
    """Centre each row and scale it to unit norm, so that a dot product of two rows is their Pearson correlation.

    Args:
        vectors: embeddings, (N, D).
        name: what to call them in an error.

    Returns:
        float32 copy, (N, D).

    Raises:
        InputError: a row is constant or not finite, which leaves its correlation undefined.
    """
    if vectors.ndim != 2:
        raise InputError(
            f"{name}: expected embeddings of shape (N, D), found {tuple(vectors.shape)}; pass one row each"
        )
    standardized = torch.empty(vectors.shape, dtype=torch.float32, device=vectors.device)
    rows = max(1, _n_elements(vectors) // max(1, vectors.shape[1]))
    for start in range(0, len(vectors), rows):
        block = vectors[start : start + rows].double()
        centred = block - block.mean(dim=1, keepdim=True)
        norm = centred.norm(dim=1, keepdim=True)
        # rounding leaves a constant row a norm of about 1e-16 of its size; NaN fails the comparison as well
        bad = ~((norm > 1e-12 * block.norm(dim=1, keepdim=True)) & norm.isfinite()).squeeze(1)
        if bad.any():
            row = start + int(bad.nonzero()[0])
            raise InputError(
                f"{name}: embedding {row} is constant or not finite, so its correlation is undefined; "
                "look at that image, or train the encoder again"
            )
        standardized[start : start + rows] = (centred / norm).float()
    return standardized


def spread_out(values: Tensor, amplitude: float) -> Tensor:
    """Add a faint fixed pattern to rows (N, D), lest one be constant and its correlation undefined."""
    return values + amplitude * torch.linspace(-1, 1, values.shape[1])


def paired(first: Tensor, second: Tensor) -> Tensor:
    """Return the similarity of each row of one set of embeddings, (N, D), to the same row of another, float32 (N,)."""
    rows = torch.arange(len(first), device=first.device)
    return pair_similarity(standardize(first), standardize(second), rows, rows)


def pair_similarity(query: Tensor, reference: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Return the similarity of row i[p] of one standardized set to row j[p] of another, float32 (P,)."""
    pairs = max(1, _n_elements(query) // query.shape[1])
    parts = [
        (query[a].double() * reference[b].double()).sum(dim=1).float()
        for a, b in zip(i.split(pairs), j.split(pairs), strict=True)
    ]
    return torch.cat(parts).clamp_(-1, 1)


def product_tolerance(size: int) -> float:
    """Twice the largest possible error of a product of two unit vectors: of summation plus that of rounded inputs."""
    try:
        precision = torch.get_float32_matmul_precision()
    except RuntimeError:  # set through torch's newer settings, which it does not read; the coarsest is always right
        precision = "medium"
    of_inputs = {"highest": 0.0, "high": 2.0**-9, "medium": 2.0**-7}[precision]  # TensorFloat-32 cuts off after 10 bits
    return 2 * (size * 2.0**-24 + of_inputs) + 2.0**-23


def _n_elements(vectors: Tensor) -> int:
    """How many elements are worked on at a time."""
    return _CACHED_ELEMENTS if vectors.device.type == "cpu" else MAX_ELEMENTS
