# SPDX-License-Identifier: Apache-2.0
"""Fidelity: how like the real images the synthetic set is as a whole, beside how much of it is copied.

Each number improves when a model copies, so none is a reason to prefer a model: they are shown together with the counts
of copies, and each with what other real images would give.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

N_NEAREST = 3
LARGEST = 2_000


def measure_fidelity(
    validation: Tensor, synthetic: Tensor, validation_patients: Sequence[str], seed: int = 0
) -> dict[str, float | int | None]:
    """Compare synthetic with validation images, and real with real ones: the content of `fidelity` in report.json.

    The validation images are halved by patient: one half is the reference, the other stands for a perfect generator.
    All three are of one size, since each of these numbers depends on how many images there are. Embeddings are centred
    and scaled to unit norm, as similarity takes them.

    Args:
        validation: embeddings, (n_V, D).
        synthetic: embeddings, (n_S, D).
        validation_patients: patient of each validation image.
        seed: of the halves.

    Returns:
        `n_images` compared with as many, and `frechet_distance`, `mean_similarity`, `distribution_precision`,
        `distribution_recall`, each also with `_real`; None where there are too few images.
    """
    generator = torch.Generator().manual_seed(seed)
    names = sorted(set(validation_patients))
    chosen = {names[i] for i in torch.randperm(len(names), generator=generator)[: len(names) // 2].tolist()}
    is_reference = torch.tensor([patient in chosen for patient in validation_patients])
    sides = validation[is_reference], validation[~is_reference], synthetic
    n = min(LARGEST, *map(len, sides))
    keys = ("frechet_distance", "mean_similarity", "distribution_precision", "distribution_recall")
    if n <= N_NEAREST + 1:
        return {"n_images": n} | {key + end: None for key in keys for end in ("", "_real")}
    reference, real, drawn = (_unit(side[torch.randperm(len(side), generator=generator)[:n]]) for side in sides)
    fidelity: dict[str, float | int | None] = {"n_images": n}
    for end, images in (("", drawn), ("_real", real)):
        values = frechet_distance(reference, images), mean_similarity(images), *precision_recall(reference, images)
        fidelity |= {key + end: value for key, value in zip(keys, values, strict=True)}
    return fidelity


def frechet_distance(real: Tensor, synthetic: Tensor) -> float:
    """Frechet distance of two Gaussians (Heusel et al. 2017, equation 6): |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)).

    The trace of the root is the sum of the singular values of C1^(1/2) C2^(1/2). MONAI's FIDMetric takes a matrix root
    of the product instead, which fails where there are fewer images than features, and prints.

    Args:
        real: embeddings, (n, D).
        synthetic: embeddings, (m, D).

    Returns:
        A distance, at least 0; smaller is more alike.
    """
    centres, roots, traces = [], [], []
    for vectors in (real.double(), synthetic.double()):
        centres.append(vectors.mean(0))
        # R'R = C, so that R1 R2' has the singular values of C1^(1/2) C2^(1/2)
        roots.append((vectors - centres[-1]) / (len(vectors) - 1) ** 0.5)
        traces.append(roots[-1].square().sum())
    shared = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return float(((centres[0] - centres[1]).square().sum() + traces[0] + traces[1] - 2 * shared).clamp_min(0))


def mean_similarity(vectors: Tensor) -> float:
    """Mean Pearson correlation over all pairs of a set: the higher, the less diverse.

    With unit vectors u it is (|sum u|^2 - n) / (n (n - 1)).

    Args:
        vectors: embeddings, (n, D) with n >= 2.
    """
    units = _unit(vectors)
    return float((units.sum(0).square().sum() - len(units)) / (len(units) * (len(units) - 1)))


def precision_recall(real: Tensor, synthetic: Tensor) -> tuple[float, float]:
    """Precision and recall of a distribution (Kynkaanniemi et al. 2019, equations 1 and 2), on correlations.

    A set is taken to cover what lies at least as close to one of its images as that image's third-nearest in the set.

    Args:
        real: embeddings, (n, D) with n > 3.
        synthetic: embeddings, (m, D) with m > 3.

    Returns:
        Share of synthetic images that the real set covers, and share of real images that the synthetic set covers.
    """
    return _covered(synthetic, real), _covered(real, synthetic)


def _covered(query: Tensor, reference: Tensor) -> float:
    units = _unit(reference)
    # the most similar of its own set is the image itself
    reach = (units @ units.T).topk(N_NEAREST + 1, dim=1).values[:, -1]
    return float(((_unit(query) @ units.T) >= reach).any(1).double().mean())


def _unit(vectors: Tensor) -> Tensor:
    centred = vectors.double() - vectors.double().mean(1, keepdim=True)
    return centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-12)
