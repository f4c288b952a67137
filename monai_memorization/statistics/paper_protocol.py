# SPDX-License-Identifier: Apache-2.0
"""Paper protocol: counts above tau as in Dar et al. (arXiv 2402.01054), with what they are under no memorization.

Reported for comparison with the literature only. tau is the percentile of a nearest neighbour among n_V candidates but
is applied to nearest neighbours among n_S or n_T, so the counts grow with the set sizes even when nothing is copied.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monai_memorization.detector.neighbors import count_above, nearest, nearest_in_subsets
from monai_memorization.errors import InputError

N_DRAWS = 100


@dataclass(frozen=True)
class PaperProtocol:
    """Counts of the paper protocol; the fields are the keys of `paper_protocol` in report.json.

    Args:
        percentile: percentile that defines tau, in (0, 100).
        tau: threshold on the similarity.
        n_mem: training images with a synthetic image above tau.
        mem_rate: n_mem / n_training.
        n_copies: synthetic images with a training image above tau.
        copy_rate: n_copies / n_synthetic.
        mem_null_rate: mem_rate to expect when nothing is memorized; see `mem_null_rate`.
        copy_null_rate: share of validation images with a training image above tau.
        mem_rate_matched: mem_rate when as many synthetic as validation images are drawn; see `measure_paper_protocol`.
    """

    percentile: float
    tau: float
    n_mem: int
    mem_rate: float
    n_copies: int
    copy_rate: float
    mem_null_rate: float
    copy_null_rate: float
    mem_rate_matched: float


def calibrate_tau(similarity: Tensor, percentile: float = 95.0) -> Tensor:
    """Take the percentile, interpolated linearly as numpy does, over training images of max over v of rho(t, v).

    Args:
        similarity: similarity of each training image to its nearest validation image, (..., n_T).
        percentile: in (0, 100).

    Returns:
        tau, float64 (...).

    Raises:
        InputError: no training images, or percentile outside (0, 100).
    """
    if not 0 < percentile < 100:
        raise InputError(f"percentile: found {percentile}, but must lie between 0 and 100, for example 95")
    if similarity.shape[-1] == 0:
        raise InputError("training: found no images, so tau is undefined; pass at least one")
    ordered = similarity.double().sort(dim=-1).values
    # multiplied before divided: exact wherever the rank is a whole number, so that ties with tau are ties
    rank = percentile * (similarity.shape[-1] - 1) / 100
    below = int(rank)
    above = min(below + 1, similarity.shape[-1] - 1)
    return ordered[..., below] + (rank - below) * (ordered[..., above] - ordered[..., below])


def mem_null_rate(n_validation: int, n_synthetic: int, percentile: float = 95.0) -> float:
    """Share of training images above tau when nothing is memorized: 1 - (percentile / 100)^(n_S / n_V).

    5 % at equal sizes, 18.5 % for 904 against 226, 92 % for 10,000 against 200. It takes the similarities of a training
    image to its nearest neighbours in disjoint groups of n_V images as independent; they share the training image and
    are positively dependent, so above ratio 1 the formula errs upwards, and below ratio 1 downwards. The error of tau
    itself works the other way: it raises the true share, by a tenth at n_T = 200 (docs/method.md).

    Args:
        n_validation: n_V.
        n_synthetic: n_S.
        percentile: percentile that defines tau.

    Returns:
        A rate in [0, 1].
    """
    return 1 - (percentile / 100) ** (n_synthetic / n_validation)


def share_drawn(counts: Tensor, n_total: int, n_drawn: int) -> Tensor:
    """Probability that a draw without replacement holds at least one marked item: 1 - C(n - c, m) / C(n, m).

    Args:
        counts: c, marked items among the total, (...).
        n_total: n.
        n_drawn: m, at most n.

    Returns:
        Probabilities, float64 (...).
    """
    rest = n_total - counts.double()
    total = torch.tensor(float(n_total), dtype=torch.float64, device=counts.device)
    # C(n-c, m) / C(n, m) = (n-c)! (n-m)! / ((n-c-m)! n!); impossible to escape where fewer than m are unmarked
    log_escape = (
        torch.lgamma(rest + 1)
        + torch.lgamma(total - n_drawn + 1)
        - torch.lgamma((rest - n_drawn).clamp(min=0) + 1)
        - torch.lgamma(total + 1)
    )
    escape = torch.where(rest >= n_drawn, log_escape.clamp(max=0).exp(), 0.0)
    return torch.where(counts == 0, 0.0, 1 - escape)


def measure_paper_protocol(
    training: Tensor, validation: Tensor, synthetic: Tensor, *, percentile: float = 95.0, seed: int = 0
) -> PaperProtocol:
    """Apply the paper protocol (design: section 3.1); every comparison with tau is strict.

    tau = percentile over t of max_v rho(t, v), N_mem = #{t : max_s rho(t, s) > tau},
    N_copies = #{s : max_t rho(s, t) > tau}.

    `mem_rate_matched` is the share of training images above tau when only as many synthetic as validation images are
    drawn, 5 % without memorization. For n_S >= n_V it is the exact mean over all draws of n_V of the n_S synthetic
    images (`share_drawn`), for n_S < n_V the mean of 100 draws of n_S validation images, tau computed anew in each.

    Args:
        training: embeddings, (n_T, D).
        validation: embeddings, (n_V, D).
        synthetic: embeddings, (n_S, D).
        percentile: percentile that defines tau.
        seed: of the draws for mem_rate_matched.

    Returns:
        The counts and rates.

    Raises:
        InputError: an empty set, embeddings of different size, or constant embeddings.
    """
    for name, vectors in (("training", training), ("validation", validation), ("synthetic", synthetic)):
        if len(vectors) == 0:
            raise InputError(f"{name}: found no embeddings; pass at least one image")
    n_training, n_validation, n_synthetic = len(training), len(validation), len(synthetic)
    tau = float(calibrate_tau(_largest(training, validation), percentile))
    n_above = count_above(training, synthetic, tau)
    n_mem = int((n_above > 0).sum())
    n_copies = int((_largest(synthetic, training) > tau).sum())
    if n_synthetic >= n_validation:
        matched = float(share_drawn(n_above, n_synthetic, n_validation).mean())
    else:
        matched = _mem_rate_drawn_down(training, validation, synthetic, percentile, seed)
    return PaperProtocol(
        percentile=percentile,
        tau=tau,
        n_mem=n_mem,
        mem_rate=n_mem / n_training,
        n_copies=n_copies,
        copy_rate=n_copies / n_synthetic,
        mem_null_rate=mem_null_rate(n_validation, n_synthetic, percentile),
        copy_null_rate=int((_largest(validation, training) > tau).sum()) / n_validation,
        mem_rate_matched=matched,
    )


def _largest(query: Tensor, reference: Tensor) -> Tensor:
    return nearest(query, reference)[0][:, 0].double()


def _mem_rate_drawn_down(
    training: Tensor, validation: Tensor, synthetic: Tensor, percentile: float, seed: int
) -> float:
    """Mean share of training images above tau over draws of n_S of the n_V > n_S validation images."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randperm(len(validation), generator=generator)[: len(synthetic)] for _ in range(N_DRAWS)]
    drawn = nearest_in_subsets(training, validation, torch.stack(draws).to(validation.device))
    taus = calibrate_tau(drawn, percentile)
    return float((_largest(training, synthetic) > taus[:, None]).double().mean())
