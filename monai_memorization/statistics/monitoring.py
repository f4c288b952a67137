# SPDX-License-Identifier: Apache-2.0
"""Monitoring: the counts that are worth watching while a generator is trained."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from monai_memorization.detector.neighbors import nearest
from monai_memorization.statistics.conformal import flag, stratify
from monai_memorization.statistics.counts import measure_calibrated
from monai_memorization.statistics.paper_protocol import measure_paper_protocol


def measure_monitored(
    training: Tensor,
    validation: Tensor,
    synthetic: Tensor,
    training_patients: Sequence[str],
    validation_patients: Sequence[str],
    *,
    alpha: float = 0.05,
    q: float = 0.05,
    seed: int = 0,
) -> dict[str, float]:
    """Count copies by both protocols, without the power test and the controls that a verdict needs.

    Args:
        training: embeddings, (n_T, D).
        validation: embeddings of the monitoring share of the validation set, (n_V, D).
        synthetic: embeddings, (n_S, D).
        training_patients: patient of each training image.
        validation_patients: patient of each validation image.
        alpha: level of the copy candidates.
        q: level of the FDR list.
        seed: of the random draws of the paper protocol.

    Returns:
        n_copies, copy_rate, n_mem and mem_rate of the calibrated protocol; paper_n_copies, paper_n_mem and tau of the
        paper protocol.
    """
    similarity, match = (column[:, 0] for column in nearest(synthetic, training))
    validation_similarity = nearest(validation, training)[0][:, 0]
    strata = stratify(validation_patients, len(synthetic))
    flags = flag(validation_similarity, similarity, strata, alpha=alpha, q=q)
    calibrated = measure_calibrated(
        flags, validation_similarity, match, training_patients, strata, alpha=alpha, q=q, seed=seed
    )
    paper = measure_paper_protocol(training, validation, synthetic, seed=seed)
    return {
        "n_copies": calibrated.n_copies,
        "copy_rate": calibrated.copy_rate,
        "n_mem": calibrated.n_mem,
        "mem_rate": calibrated.mem_rate,
        "paper_n_copies": paper.n_copies,
        "paper_n_mem": paper.n_mem,
        "tau": paper.tau,
    }
