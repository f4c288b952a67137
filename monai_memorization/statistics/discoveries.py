# SPDX-License-Identifier: Apache-2.0
"""Lists whose share of false discoveries is controlled."""

from __future__ import annotations

import torch
from torch import Tensor

from monai_memorization.statistics.conformal import as_fraction


def benjamini_hochberg(p_values: Tensor, q: float) -> Tensor:
    """Mark the FDR list: the j smallest p-values, j = max{i : p_(i) <= q i / n} (Benjamini and Hochberg 1995).

    The p-values share one validation set; Bates et al. 2023 show that this keeps the false discovery rate at q on
    average over validation sets. A p-value on the boundary counts as reached: the comparison allows for the rounding of
    a float64 product (1e-12 of it), far below the spacing of conformal p-values.

    Args:
        p_values: (n_S,).
        q: bound on the false discovery rate, in (0, 1).

    Returns:
        Mask, bool (n_S,).
    """
    as_fraction(q, "q")
    ordered, order = p_values.double().sort()
    ranks = torch.arange(1, len(ordered) + 1, dtype=torch.float64, device=ordered.device)
    reached = (ordered <= q * ranks / max(1, len(ordered)) * (1 + 1e-12)).nonzero()
    listed = torch.zeros(len(ordered), dtype=torch.bool, device=ordered.device)
    if len(reached) > 0:
        listed[order[: int(reached[-1]) + 1]] = True
    return listed


def smallest_list(n_synthetic: int, q: float, n_patients: int) -> int:
    """Fewest images that an FDR list can name: the smallest whole number not below n_S / (q (P + 1)).

    Above n_S no list is possible at all with so few patients.
    """
    return -(-n_synthetic // (as_fraction(q, "q") * (n_patients + 1)))
