# SPDX-License-Identifier: Apache-2.0
"""Calibrated protocol: conformal p-values with the patient as the unit, and their thresholds.

All comparisons of a p-value with a level are made in whole numbers. With P patients, n_V validation images and
c(s) = #{v : a(v) >= a(s)}, p(s) = (1 + P c / n_V) / (P + 1) <= alpha holds exactly when
c <= n_V (alpha (P + 1) - 1) / P, whose right side is rounded down once (`largest_count`); alpha counts as the decimal
fraction that was written, so that 0.05 of 60 is 3.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor

from monai_memorization.errors import InputError


def count_at_least(validation: Tensor, synthetic: Tensor) -> Tensor:
    """c(s) = #{v : a(v) >= a(s)}.

    Args:
        validation: a(v), (n_V,).
        synthetic: a(s), (n_S,).

    Returns:
        Counts between 0 and n_V, int64 (n_S,).
    """
    ordered = validation.double().sort().values
    return len(ordered) - torch.searchsorted(ordered, synthetic.double().contiguous())


def p_values(validation: Tensor, synthetic: Tensor, n_patients: int | None = None) -> Tensor:
    """Conformal p-values p(s) = (1 + P G(a(s))) / (P + 1), G(c) = share of validation images with a(v) >= c.

    Bates et al. 2023, "Testing for outliers with conformal p-values", with the patient as the unit: P counts patients
    while G is a share of images. With one image per patient it is the usual (1 + #) / (n_V + 1).

    Args:
        validation: a(v), scores of the validation images, (n_V,).
        synthetic: a(s), (n_S,).
        n_patients: P; n_V where patients are unknown.

    Returns:
        p-values in [1 / (P + 1), 1], float64 (n_S,).

    Raises:
        InputError: no validation images, or P outside 1..n_V.
    """
    patients = _check_validation(validation, n_patients)
    share = count_at_least(validation, synthetic).double() / len(validation)
    return (1 + patients * share) / (patients + 1)


def smallest_p_value(n_patients: int) -> float:
    """Smallest p-value that P patients allow, 1 / (P + 1): no smaller alpha can ever flag an image."""
    return 1 / (n_patients + 1)


def n_patients_needed(alpha: float) -> int:
    """Smallest P with 1 / (P + 1) <= alpha."""
    level = as_fraction(alpha, "alpha")
    return -((level - 1) // level)  # ceil(1 / alpha - 1)


def largest_count(alpha: float, n_validation: int, n_patients: int) -> int:
    """Largest c with p <= alpha: floor(n_V (alpha (P + 1) - 1) / P); negative where no image can reach alpha.

    Args:
        alpha: level in (0, 1).
        n_validation: n_V.
        n_patients: P.

    Returns:
        An integer below n_V.
    """
    return n_validation * (as_fraction(alpha, "alpha") * (n_patients + 1) - 1) // n_patients


def threshold(validation: Tensor, alpha: float, n_patients: int | None = None) -> float:
    """Largest a(v) whose own p exceeds alpha: a(s) > threshold exactly when p(s) <= alpha.

    Args:
        validation: a(v), (n_V,).
        alpha: level in (0, 1).
        n_patients: P; n_V where patients are unknown.

    Returns:
        A score; infinite where P < 1/alpha - 1, as then no image can be flagged.

    Raises:
        InputError: no validation images, P outside 1..n_V, or alpha outside (0, 1).
    """
    count = largest_count(alpha, len(validation), _check_validation(validation, n_patients))
    return float(validation.double().sort(descending=True).values[count]) if count >= 0 else float("inf")


def copy_candidates(validation: Tensor, synthetic: Tensor, alpha: float, n_patients: int | None = None) -> Tensor:
    """Mark the synthetic images with p(s) <= alpha, decided in whole numbers.

    Args:
        validation: a(v), (n_V,).
        synthetic: a(s), (n_S,).
        alpha: level in (0, 1).
        n_patients: P; n_V where patients are unknown.

    Returns:
        Mask, bool (n_S,).

    Raises:
        InputError: as `threshold`.
    """
    count = largest_count(alpha, len(validation), _check_validation(validation, n_patients))
    return count_at_least(validation, synthetic) <= count


def attained_rank(alpha: float, n_patients: int, n_validation: int | None = None) -> float:
    """Rank of the largest p-value not above alpha: r = 1 + P c / n_V with c = `largest_count`, 0 where there is none.

    With one image per patient r is the whole number k = floor(alpha (P + 1)).

    Args:
        alpha: level in (0, 1).
        n_patients: P.
        n_validation: n_V; P where left out.

    Returns:
        A number between k and alpha (P + 1).
    """
    images = n_patients if n_validation is None else n_validation
    count = largest_count(alpha, images, n_patients)
    return 1 + n_patients * count / images if count >= 0 else 0.0


def alpha_attained(alpha: float, n_patients: int, n_validation: int | None = None) -> float:
    """Level that the validation set attains: the largest p-value not above alpha, r / (P + 1) with r = `attained_rank`.

    Bounds the mean false-alarm rate: p(s) is at least the share of scores >= a(s) among all P + 1 exchangeable
    patients, its own included, and such a share is <= t with probability t at most. With one image per patient it is
    k / (P + 1), k = floor(alpha (P + 1)), as in design section 3.2; with several the p-values are finer, and
    k / (P + 1) is no bound (docs/method.md).

    Args:
        alpha: level in (0, 1).
        n_patients: P.
        n_validation: n_V; P where left out.

    Returns:
        A level in [0, alpha].
    """
    return attained_rank(alpha, n_patients, n_validation) / (n_patients + 1)


def as_fraction(level: float, name: str) -> Fraction:
    """The decimal fraction that was written: 0.05 is 1/20, not the binary number next to it."""
    if not 0 < level < 1:
        raise InputError(f"{name}: found {level}, but must lie between 0 and 1, for example 0.05")
    return Fraction(repr(float(level)))


def _check_validation(validation: Tensor, n_patients: int | None) -> int:
    if len(validation) == 0:
        raise InputError(
            "validation: found no images, so nothing can be calibrated; make a validation set with `split`"
        )
    patients = len(validation) if n_patients is None else n_patients
    if not 1 <= patients <= len(validation):
        raise InputError(
            f"n_patients: found {patients} for {len(validation)} validation images; must be 1 to that number"
        )
    return patients
