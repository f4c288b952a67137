# SPDX-License-Identifier: Apache-2.0
"""Controls at the level of the set: does S look like V, and does S lie nearer to T than real images do?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import norm, rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torch import Tensor

from monai_memorization.detector.neighbors import nearest
from monai_memorization.errors import InputError

N_FOLDS = 5
N_SPLITS = 20

# Images per set beyond which the classifier gains nothing that matters at an AUC of 0.9.
MAX_IMAGES = 2000


@dataclass(frozen=True)
class Gap:
    """How well a classifier tells synthetic from validation images.

    Args:
        auc: area under the ROC curve, 0.5 for alike sets, 1 for separate ones; None if not measured.
        ci: its 95 % interval; None if not measured.
        reason: why it was not measured, else None.
    """

    auc: float | None
    ci: tuple[float, float] | None
    reason: str | None = None


def gap_auc(validation: Tensor, synthetic: Tensor, validation_patients: Sequence[str], seed: int = 0) -> Gap:
    """AUC of a cross-validated classifier on embeddings, validation against synthetic.

    Logistic regression on standardized values and their squares, so that a set which is merely narrower than the other
    is told apart too. Five folds, no patient in two of them. The AUC is the mean over folds of pairs ordered right
    within the fold. Its variance is that of DeLong et al. 1988 with a patient's images as one cluster (Obuchowski
    1997), times 1 + 5/4 as the folds share their training images (Nadeau and Bengio 2003, "Inference for the
    generalization error"): without that factor the interval holds 0.5 for alike sets in about 80 % of cases only.
    Where all pairs are ordered alike there is no variance to go by: the interval then is that of a share of n of n
    (Clopper and Pearson 1934), n the synthetic images or the patients, whichever are fewer.

    Args:
        validation: embeddings, (n_V, D).
        synthetic: embeddings, (n_S, D).
        validation_patients: patient of each validation image.
        seed: of the folds and of the draw from sets above 2,000 images.

    Returns:
        AUC and interval, or the reason why there is none.
    """
    rng = np.random.default_rng(seed)
    rows = [np.sort(rng.permutation(len(s))[:MAX_IMAGES]) for s in (validation, synthetic)]
    patients = np.unique(np.asarray(validation_patients)[rows[0]], return_inverse=True)[1]
    n_patients, n_synthetic = len(set(patients.tolist())), len(rows[1])
    if min(n_patients, n_synthetic) < 2 * N_FOLDS:
        return Gap(
            None,
            None,
            f"the classifier needs {2 * N_FOLDS} validation patients and synthetic images, "
            f"found {n_patients} and {n_synthetic}",
        )
    values = [s.double().cpu().numpy()[r] for s, r in zip((validation, synthetic), rows, strict=True)]
    is_synthetic = np.repeat([False, True], [len(r) for r in rows])
    groups = np.concatenate([patients, n_patients + np.arange(n_synthetic)])
    # each set is dealt evenly to the folds, all images of a patient to one
    fold = np.concatenate([rng.permutation(n) % N_FOLDS for n in (n_patients, n_synthetic)])[groups]
    placements = _placements(np.concatenate(values), is_synthetic, fold)
    auc, variance = _clustered_auc(placements, is_synthetic, groups)
    half = float(norm.ppf(0.975)) * (variance * (1 + N_FOLDS / (N_FOLDS - 1))) ** 0.5
    if variance == 0:
        half = 1 - 0.025 ** (1 / min(n_patients, n_synthetic))
    return Gap(auc, (max(0.0, auc - half), min(1.0, auc + half)))


def nearest_in_training(
    training: Tensor,
    held_out: Tensor,
    query: Tensor,
    held_out_patients: Sequence[str],
    seed: int = 0,
) -> tuple[float, float]:
    """Share of images whose nearest neighbour among equally many training and held-out images is a training image.

    The held-out images are split by patient, half as candidates and half as real queries; as many training images as
    candidates are drawn (of both as many as the smaller side has); the synthetic queries see the same candidates. Mean
    of 20 such splits. About 0.49, not 0.5, for real images: the encoder spreads the images it was trained on.

    Args:
        training: embeddings, (n_T, D).
        held_out: embeddings of real images that neither model was trained on, (n_V, D).
        query: embeddings of synthetic images, (n_S, D).
        held_out_patients: patient of each held-out image.
        seed: of the splits.

    Returns:
        Share of the query images, and the same share of the held-out images.

    Raises:
        InputError: fewer than two held-out patients.
    """
    names = sorted(set(held_out_patients))
    if len(names) < 2:
        raise InputError(f"validation: found {len(names)} patients, but the control needs two; add validation patients")
    code = {name: i for i, name in enumerate(names)}
    patients = torch.tensor([code[p] for p in held_out_patients])
    generator = torch.Generator().manual_seed(seed)
    shares = torch.zeros(2, dtype=torch.float64)
    for _ in range(N_SPLITS):
        is_candidate = torch.zeros(len(names), dtype=torch.bool)
        is_candidate[torch.randperm(len(names), generator=generator)[: len(names) // 2]] = True
        side = is_candidate[patients].nonzero().squeeze(1)
        size = min(len(side), len(training))
        side = side[torch.randperm(len(side), generator=generator)[:size]]
        drawn = torch.randperm(len(training), generator=generator)[:size]
        candidates = torch.cat([training[drawn.to(training.device)], held_out[side.to(held_out.device)]])
        real = held_out[(~is_candidate[patients]).to(held_out.device)]
        for i, images in enumerate((query, real)):
            shares[i] += (nearest(images, candidates)[1] < size).double().mean().item()
    return float(shares[0] / N_SPLITS), float(shares[1] / N_SPLITS)


def _placements(values: np.ndarray, is_synthetic: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """For each image, out of fold: share of the other set's images in its fold that it is ordered right against."""
    placements = np.full(len(values), np.nan)
    for test in (fold == i for i in range(N_FOLDS)):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000))
        features = np.hstack([values, np.square(values - values[~test].mean(axis=0))])
        # threads wait for each other by spinning, and so small a product gains nothing from them
        with threadpool_limits(1, "blas"):
            scores = model.fit(features[~test], is_synthetic[~test]).decision_function(features[test])
        placements[test] = _share_ordered_right(scores, is_synthetic[test])
    return placements


def _share_ordered_right(scores: np.ndarray, is_synthetic: np.ndarray) -> np.ndarray:
    """Placement values: P(score of the other set lies on the right side of mine), ties counting half."""
    share = np.empty(len(scores))
    overall = rankdata(scores)
    for mine, sign in ((is_synthetic, 1), (~is_synthetic, -1)):
        below = (overall[mine] - rankdata(scores[mine])) / max(1, (~mine).sum())
        share[mine] = below if sign == 1 else 1 - below
    return share


def _clustered_auc(placements: np.ndarray, is_synthetic: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Mean placement and its variance, each set's from sums over its clusters."""
    auc, variance = float(placements[is_synthetic].mean()), 0.0
    for mine in (is_synthetic, ~is_synthetic):
        clusters = np.unique(groups[mine], return_inverse=True)[1]
        sums = np.bincount(clusters, placements[mine] - placements[mine].mean())
        n = len(sums)
        variance += n / (n - 1) * float(np.square(sums).sum()) / int(mine.sum()) ** 2
    return auc, variance
