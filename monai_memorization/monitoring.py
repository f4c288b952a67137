# SPDX-License-Identifier: Apache-2.0
"""Monitoring: the counts that are worth watching while a generator is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import Tensor

from monai_memorization.detector.embeddings import Embeddings
from monai_memorization.detector.scores import score_vectors
from monai_memorization.errors import InputError
from monai_memorization.files import write_text
from monai_memorization.statistics.counts import measure_calibrated
from monai_memorization.statistics.paper_protocol import measure_paper_protocol
from monai_memorization.statistics.strata import flag, stratify

FILE = "checks.csv"


def measure_monitored(
    training: Embeddings,
    validation: Embeddings,
    validation_score: Tensor,
    vectors: Tensor,
    structure: Tensor,
    *,
    alpha: float = 0.05,
    q: float = 0.05,
    seed: int = 0,
) -> dict[str, float]:
    """Count copies by both protocols, without the power test and the controls that a verdict needs.

    Args:
        training: the training set.
        validation: the monitoring share of the validation set.
        validation_score: scores of its images, (n_V,), the same in every check of a training.
        vectors: embeddings of the synthetic images, (n_S, D).
        structure: their fine structure, (n_S, C, *sides).
        alpha: level of the copy candidates.
        q: level of the FDR list.
        seed: of the random draws of the paper protocol.

    Returns:
        n_copies, copy_rate, n_mem and mem_rate of the calibrated protocol; paper_n_copies, paper_n_mem and tau of the
        paper protocol.
    """
    score, match, _ = score_vectors(vectors, structure, training)
    strata = stratify(validation.images.patient_ids, len(vectors))
    flags = flag(validation_score, score, strata, alpha=alpha, q=q)
    calibrated = measure_calibrated(
        flags, validation_score, match, training.images.patient_ids, strata, alpha=alpha, q=q, seed=seed
    )
    compared = [of_set.to(training.device) for of_set in (training.vectors, validation.vectors, vectors)]
    paper = measure_paper_protocol(*compared, seed=seed)
    return {
        "n_copies": calibrated.n_copies,
        "copy_rate": calibrated.copy_rate,
        "n_mem": calibrated.n_mem,
        "mem_rate": calibrated.mem_rate,
        "paper_n_copies": paper.n_copies,
        "paper_n_mem": paper.n_mem,
        "tau": paper.tau,
    }


def read_checks(folder: Path) -> list[dict[str, Any]]:
    """Return the checks that an earlier training left in checks.csv, epoch and counts of each.

    Raises:
        InputError: if the file is another.
    """
    table = folder / FILE
    if not table.is_file():
        return []
    try:
        checks = pd.read_csv(table).astype({"epoch": int})
    except (ValueError, OSError, KeyError) as error:
        raise InputError(
            f"{table}: cannot be read as the checks of an earlier training ({type(error).__name__}: {error}); remove it"
        ) from None
    return [{str(name): value for name, value in check.items()} for check in checks.to_dict("records")]


def write_checks(checks: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write the checks of a training to checks.csv."""
    write_text(folder / FILE, pd.DataFrame(checks).to_csv(index=False))
