# SPDX-License-Identifier: Apache-2.0
"""Findings: search, calibrate, count and judge; everything between the embeddings and the report."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_memorization.detector.embeddings import Embeddings
from monai_memorization.detector.encoder import ContrastiveEncoder
from monai_memorization.detector.near_identical import near_identical
from monai_memorization.detector.scores import score_embedded, score_prepared
from monai_memorization.images.prepared import read_prepared
from monai_memorization.images.roles import originals
from monai_memorization.images.sets import ImageSet
from monai_memorization.statistics.conformal import threshold
from monai_memorization.statistics.counts import Calibrated, measure_calibrated
from monai_memorization.statistics.gap import gap_auc, nearest_in_training
from monai_memorization.statistics.paper_protocol import PaperProtocol, measure_paper_protocol
from monai_memorization.statistics.power import (
    PowerSummary,
    Recall,
    choose_plants,
    choose_plants_within,
    measure_power,
    measure_reconstructions,
    summarize_power,
)
from monai_memorization.statistics.rates import accumulation_curve
from monai_memorization.statistics.residual import noticeable_rate
from monai_memorization.statistics.strata import Flags, Stratum, flag, stratify
from monai_memorization.statistics.verdict import Verdict, decide

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Findings:
    """What an audit found, before it is written down.

    Args:
        score: a(s), the score of each synthetic image, (n_S,).
        match: position of the training image that gives it, int64 (n_S,).
        window: the part of the synthetic image that matches, -1 for the whole, int64 (n_S,).
        validation_score: a(v), (n_V,).
        flags: p-values, candidates and FDR list.
        identical: position of a near-identical training image or -1, int64 (n_S,).
        recalls: the power test.
        power: its means.
        paper: counts of the paper protocol.
        calibrated: counts of the calibrated protocol.
        controls: `controls` of the report.
        strata: the groups within which p-values were taken: all images, or those of one label.
        accumulation: training images matched against images drawn.
        verdict: the verdict.
    """

    score: Tensor
    match: Tensor
    window: Tensor
    validation_score: Tensor
    flags: Flags
    identical: Tensor
    recalls: list[Recall]
    power: PowerSummary
    paper: PaperProtocol
    calibrated: Calibrated
    controls: dict[str, Any]
    strata: list[dict[str, Any]]
    accumulation: dict[str, Any]
    verdict: Verdict


def measure(
    encoder: ContrastiveEncoder,
    embedded: Mapping[str, Embeddings],
    settings: Mapping[str, Any],
    seconds: dict[str, float],
) -> Findings:
    """Search, calibrate, count and judge: everything between the embeddings and the report.

    Args:
        encoder: the detector, for the power test.
        embedded: "training", "validation", "synthetic" and where given "reconstructed_validation" and
            "reconstructed_training".
        settings: alpha, q, seed, device, n_plants, reconstructed, filtered.
        seconds: takes the time of each stage.

    Returns:
        The findings.
    """
    training, validation, synthetic = (embedded[role] for role in ("training", "validation", "synthetic"))
    calibration = embedded.get("reconstructed_validation", validation)
    alpha, q, seed = settings["alpha"], settings["q"], settings["seed"]
    with timed(seconds, "search"):
        validation_score, validation_match, _ = score_embedded(calibration, training)
        score, match, window = score_embedded(synthetic, training)
        identical = near_identical(synthetic, training, encoder.preparation)[1]
    strata = stratify(
        calibration.images.patient_ids, len(synthetic), calibration.images.labels, synthetic.images.labels
    )
    flags = flag(validation_score, score, strata, alpha=alpha, q=q)
    with timed(seconds, "power"):
        thresholds = {s.label: threshold(validation_score[s.validation], alpha, s.n_patients) for s in strata}
        recalls = _measure_power(encoder, embedded, thresholds, strata, settings)
        power = summarize_power(recalls)
    with timed(seconds, "statistics"):
        calibrated = measure_calibrated(
            flags,
            validation_score,
            match,
            training.images.patient_ids,
            strata,
            alpha=alpha,
            q=q,
            recall=power.working_recall,
            n_near_identical=int((identical >= 0).sum()),
            seed=seed,
        )
        where = training.device
        vectors = training.vectors.to(where), validation.vectors.to(where), synthetic.vectors.to(where)
        paper = measure_paper_protocol(*vectors, seed=seed)
        controls = _controls(vectors, validation, calibration, synthetic, seed)
    noticeable = None
    if power.working_recall is not None:
        planted = power.working_recall, power.n_planted
        noticeable = noticeable_rate(calibrated.n_copies, len(synthetic), alpha, strata, planted, seed)
    verdict = decide(
        n_fdr_list=calibrated.fdr.n_copies,
        copy_rate_ci=calibrated.copy_rate_ci,
        n_near_identical=calibrated.n_near_identical,
        n_patients=min(stratum.n_patients for stratum in strata),
        alpha=alpha,
        recall=power.working_recall,
        noticeable=noticeable,
        gap_auc=controls["gap_auc"],
        reconstructed=settings["reconstructed"],
        filtered=settings["filtered"],
        has_patient_ids=training.images.has_patients and calibration.images.has_patients,
    )
    accumulation = _accumulation(match, flags, calibration, validation_score, validation_match, thresholds)
    return Findings(
        score,
        match,
        window,
        validation_score,
        flags,
        identical,
        recalls,
        power,
        paper,
        calibrated,
        controls,
        [_describe(stratum, thresholds[stratum.label]) for stratum in strata],
        accumulation,
        verdict,
    )


def _describe(stratum: Stratum, level: float) -> dict[str, Any]:
    return {
        "label": stratum.label,
        "n_images": len(stratum.validation),
        "n_patients": stratum.n_patients,
        "images_per_patient": [list(pair) for pair in stratum.images_per_patient],
        "n_synthetic": len(stratum.synthetic),
        "shares_patients": stratum.shares_patients,
        "threshold": level if level != float("inf") else None,
    }


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Write down under ``stage`` how long the block took."""
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
    logger.debug("%s: %.1f s", stage, seconds[stage])


def _measure_power(
    encoder: ContrastiveEncoder,
    embedded: Mapping[str, Embeddings],
    thresholds: Mapping[str | None, float],
    strata: Sequence[Stratum],
    settings: Mapping[str, Any],
) -> list[Recall]:
    """Plant copies of training images whose label has a threshold."""
    training, seed, device = embedded["training"], settings["seed"], settings["device"]
    level, n_synthetic = own_thresholds(training.images, thresholds), {s.label: len(s.synthetic) for s in strata}
    recalls = []
    index = choose_plants_within(own_labels(training.images, thresholds), n_synthetic, seed, settings["n_plants"])
    if len(index) > 0:
        images = read_prepared(training.images.subset(index.tolist()), encoder.preparation).pixels.float()
        score = partial(score_prepared, encoder, training=training, device=device)
        others = embedded["validation"].images
        chosen = choose_plants(len(others), seed, len(index)).tolist()
        hosts = read_prepared(others.subset(chosen), encoder.preparation).pixels.float()
        recalls = measure_power(score, images, index, level[index], seed=seed, hosts=hosts)
    if (reconstructed := embedded.get("reconstructed_training")) is not None:
        index = torch.tensor(originals(reconstructed.images, training.images))
        known = (index >= 0).nonzero()[:, 0]
        labels = own_labels(training.images.subset(index[known].tolist()), thresholds)
        kept = known[choose_plants_within(labels, n_synthetic, seed, len(known))]
        if len(kept) > 0:
            scores, match, _ = score_embedded(reconstructed, training)
            recalls.append(measure_reconstructions(scores[kept], match[kept], index[kept], level[index[kept]]))
    return recalls


def own_thresholds(images: ImageSet, thresholds: Mapping[str | None, float]) -> Tensor:
    """Return the threshold of each image, that of its label where there are labels; nan where there is none."""
    return torch.tensor([thresholds.get(label, float("nan")) for label in own_labels(images, thresholds)])


def own_labels(images: ImageSet, thresholds: Mapping[str | None, float]) -> Sequence[str | None]:
    """Return the label of each image among those of the thresholds; an empty one where the set has none."""
    return (None,) * len(images) if None in thresholds else images.labels or ("",) * len(images)


def _controls(
    vectors: tuple[Tensor, Tensor, Tensor],
    validation: Embeddings,
    calibration: Embeddings,
    synthetic: Embeddings,
    seed: int,
) -> dict[str, Any]:
    """Compare synthetic images with those they are calibrated on, and real with real ones: never reconstructed."""
    patients = validation.images.patient_ids
    gap = gap_auc(calibration.vectors, synthetic.vectors, calibration.images.patient_ids, seed)
    shares: tuple[float | None, float | None] = (None, None)
    if len(set(patients)) > 1:
        shares = nearest_in_training(*vectors, patients, seed)
    return {
        "gap_auc": gap.auc,
        "gap_auc_ci": gap.ci,
        "gap_reason": gap.reason,
        "gap_reference": calibration.images.role,
        "nearest_in_training": shares[0],
        "nearest_in_training_real": shares[1],
    }


def _accumulation(
    match: Tensor,
    flags: Flags,
    calibration: Embeddings,
    validation_score: Tensor,
    validation_match: Tensor,
    thresholds: Mapping[str | None, float],
) -> dict[str, Any]:
    """Count training images matched as images are drawn, by candidates and by as many false ones of validation."""
    drawn, matched = accumulation_curve(match, flags.copy_candidate)
    false_drawn, false_matched = accumulation_curve(
        validation_match, validation_score > own_thresholds(calibration.images, thresholds)
    )
    common = drawn[drawn <= len(calibration)]
    return {
        "n_drawn": drawn.tolist(),
        "synthetic": matched.tolist(),
        "validation": np.interp(common, false_drawn, false_matched).tolist(),
    }
