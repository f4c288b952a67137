# SPDX-License-Identifier: Apache-2.0
"""The audit: from three sets of images to a report that states its own error rates."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from monai_memorization.detector.contrastive import obtain_encoder
from monai_memorization.detector.embeddings import Embeddings, embed
from monai_memorization.detector.encoder import ContrastiveEncoder
from monai_memorization.detector.near_identical import near_identical
from monai_memorization.detector.neighbors import nearest
from monai_memorization.errors import InputError
from monai_memorization.images.preparation import prepared_images
from monai_memorization.images.sets import ImageSet, check_disjoint, read_image_set
from monai_memorization.reporting.pages import GalleryPair, write_gallery_page, write_report_page
from monai_memorization.reporting.report import compose_report, write_report, write_tables
from monai_memorization.statistics.conformal import Flags, flag, stratify, threshold
from monai_memorization.statistics.counts import Calibrated, accumulation_curve, measure_calibrated
from monai_memorization.statistics.gap import gap_auc, nearest_in_training
from monai_memorization.statistics.paper_protocol import PaperProtocol, measure_paper_protocol
from monai_memorization.statistics.power import (
    PowerSummary,
    Recall,
    choose_plants,
    measure_power,
    summarize_power,
)
from monai_memorization.statistics.verdict import Verdict, decide

N_GALLERY_PAIRS = 200


@dataclass(frozen=True)
class Findings:
    """What an audit found, before it is written down.

    Args:
        similarity: a(s), of each synthetic image to its nearest training image, (n_S,).
        match: position of that training image, int64 (n_S,).
        validation_similarity: a(v), (n_V,).
        flags: p-values, candidates and FDR list.
        identical: position of a near-identical training image or -1, int64 (n_S,).
        recalls: the power test.
        power: its means.
        paper: counts of the paper protocol.
        calibrated: counts of the calibrated protocol.
        controls: `controls` of the report.
        accumulation: training images matched against images drawn.
        verdict: the verdict.
    """

    similarity: Tensor
    match: Tensor
    validation_similarity: Tensor
    flags: Flags
    identical: Tensor
    recalls: list[Recall]
    power: PowerSummary
    paper: PaperProtocol
    calibrated: Calibrated
    controls: dict[str, Any]
    accumulation: dict[str, Any]
    verdict: Verdict


def audit(
    training: str | Path,
    validation: str | Path | None,
    synthetic: str | Path,
    output_dir: str | Path,
    *,
    encoder: str | Path | None = None,
    reconstructed_validation: str | Path | None = None,
    alpha: float = 0.05,
    q: float = 0.05,
    seed: int = 0,
    device: str = "auto",
    gallery: bool = False,
    skip_unreadable: bool = False,
) -> dict[str, Any]:
    """Audit a synthetic set: which of its images are copies of training images, and how sure is that?

    Writes report.json and report.html, which may be handed out, and pairs.csv, memorized.csv, near_identical.csv,
    encoder/ and on request gallery.html, which stay inside.

    Args:
        training: images that the generator was trained on; folder, CSV or MONAI data list.
        validation: images of other patients from the same source, seen by neither generator nor encoder.
        synthetic: images drawn from the generator.
        output_dir: folder for the results.
        encoder: weights of an encoder trained on the training set; without it one is trained, and kept in
            `output_dir`/encoder for the next run.
        reconstructed_validation: the validation images through the generator's autoencoder, under the same names; the
            audit is then calibrated on them.
        alpha: level of the copy candidates, in (0, 1).
        q: level of the FDR list, in (0, 1).
        seed: of everything random.
        device: "cpu", "cuda", "cuda:1", ..., or "auto".
        gallery: whether to write gallery.html, which shows patient images.
        skip_unreadable: leave out images that cannot be read instead of stopping at the first.

    Returns:
        The content of report.json.

    Raises:
        InputError: for bad input, before anything is written to `output_dir` but the encoder.
    """
    settings: dict[str, Any] = {"alpha": alpha, "q": q, "seed": seed, "device": choose_device(device)}
    settings |= {"skip_unreadable": skip_unreadable, "reconstructed": reconstructed_validation is not None}
    output, seconds = Path(output_dir), dict[str, float]()
    for name in ("alpha", "q"):
        if not 0 < settings[name] < 1:
            raise InputError(f"{name}: found {settings[name]}, but must lie between 0 and 1, for example 0.05")
    sets = _read_sets(training, validation, synthetic, reconstructed_validation)
    with _timed(seconds, "encoder"):
        detector = obtain_encoder(
            encoder, sets["training"], output / "encoder", seed, settings["device"], skip_unreadable
        )
    with _timed(seconds, "embedding"):
        embedded = {
            role: embed(detector, images, device=settings["device"], skip_unreadable=skip_unreadable)
            for role, images in sets.items()
        }
    _check_leaks(embedded["training"], embedded["validation"])
    findings = measure(detector, embedded, settings, seconds)
    report = compose_report(findings, embedded, detector, settings, seconds)
    write_tables(findings, embedded, output)
    if gallery:
        write_gallery_page(_gallery_pairs(findings, embedded, detector), output / "gallery.html")
    write_report(report, output / "report.json")
    write_report_page(report, output / "report.html")
    return report


def measure(
    encoder: ContrastiveEncoder,
    embedded: Mapping[str, Embeddings],
    settings: Mapping[str, Any],
    seconds: dict[str, float],
) -> Findings:
    """Search, calibrate, count and judge: everything between the embeddings and the report.

    Args:
        encoder: the detector, for the power test.
        embedded: "training", "validation", "synthetic" and where given "reconstructed_validation".
        settings: alpha, q, seed, device.
        seconds: takes the time of each stage.

    Returns:
        The findings.
    """
    training, validation, synthetic = (embedded[role] for role in ("training", "validation", "synthetic"))
    calibration = embedded.get("reconstructed_validation", validation)
    alpha, q, seed = settings["alpha"], settings["q"], settings["seed"]
    with _timed(seconds, "search"):
        validation_similarity = nearest(calibration.vectors, training.vectors)[0][:, 0]
        similarity, match = (column[:, 0] for column in nearest(synthetic.vectors, training.vectors))
        identical = near_identical(synthetic, training, encoder.preparation)
    strata = stratify(
        calibration.images.patient_ids, len(synthetic), calibration.images.labels, synthetic.images.labels
    )
    flags = flag(validation_similarity, similarity, strata, alpha=alpha, q=q)
    with _timed(seconds, "power"):
        thresholds = {s.label: threshold(validation_similarity[s.validation], alpha, s.n_patients) for s in strata}
        recalls = _measure_power(encoder, training, thresholds, settings)
        power = summarize_power(recalls)
    with _timed(seconds, "statistics"):
        calibrated = measure_calibrated(
            flags,
            validation_similarity,
            match,
            training.images.patient_ids,
            strata,
            alpha=alpha,
            q=q,
            recall=power.working_recall,
            n_near_identical=int((identical >= 0).sum()),
            seed=seed,
        )
        paper = measure_paper_protocol(training.vectors, validation.vectors, synthetic.vectors, seed=seed)
        controls = _controls(training, calibration, synthetic, seed)
    verdict = decide(
        n_fdr_list=calibrated.fdr.n_copies,
        copy_rate_ci=calibrated.copy_rate_ci,
        n_near_identical=calibrated.n_near_identical,
        n_patients=min(stratum.n_patients for stratum in strata),
        alpha=alpha,
        recall=power.working_recall,
        gap_auc=controls["gap_auc"],
        reconstructed=settings["reconstructed"],
        has_patient_ids=validation.images.has_patients,
    )
    accumulation = _accumulation(match, flags, calibration, training, validation_similarity, thresholds)
    return Findings(
        similarity,
        match,
        validation_similarity,
        flags,
        identical,
        recalls,
        power,
        paper,
        calibrated,
        controls,
        accumulation,
        verdict,
    )


def choose_device(device: str) -> str:
    """Return the device meant by ``device``: a GPU for "auto" where there is one.

    Raises:
        InputError: for a device that torch does not know or this machine does not have.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device: {device!r} cannot be used here ({reason}); give cpu, cuda or auto") from None
    return device


def _read_sets(
    training: str | Path,
    validation: str | Path | None,
    synthetic: str | Path,
    reconstructed_validation: str | Path | None,
) -> dict[str, ImageSet]:
    if validation is None:
        raise InputError(
            "validation: none given; without images of other patients no similarity can be called too high. If "
            "the generator has not been trained yet, `monai-memorization split` sets some apart; if it was trained on "
            "all, give images from the same source and time that it has not seen"
        )
    given = {"training": training, "validation": validation, "synthetic": synthetic}
    sets = {role: read_image_set(source, role) for role, source in given.items()}
    check_disjoint(sets["training"], sets["validation"])
    if reconstructed_validation is not None:
        reconstructed = read_image_set(reconstructed_validation, "reconstructed_validation")
        sets["reconstructed_validation"] = _name_after(reconstructed, sets["validation"])
    return sets


def _name_after(reconstructed: ImageSet, validation: ImageSet) -> ImageSet:
    """Give reconstructions the patients and labels of the validation images of the same name, whatever their folder."""
    position = {_stem(name): i for i, name in enumerate(validation.image_ids)}
    unknown = [name for name in reconstructed.image_ids if _stem(name) not in position]
    if unknown or len(position) < len(validation):
        raise InputError(
            f"reconstructed_validation: {len(unknown)} of its images are named like no validation image"
            f"{f' (such as {unknown[0]})' if unknown else ''}, or validation names repeat in several folders; "
            "reconstruct the validation set under its own, different names"
        )
    originals = validation.subset(position[_stem(name)] for name in reconstructed.image_ids)
    return replace(originals, role=reconstructed.role, image_ids=reconstructed.image_ids, paths=reconstructed.paths)


def _stem(name: str) -> str:
    return PurePosixPath(name).name.split(".")[0]


def _check_leaks(training: Embeddings, validation: Embeddings) -> None:
    """Refuse a validation image that is in the training set too: it would make a copy look ordinary."""
    known = dict(zip(training.digests, training.images.image_ids, strict=True))
    shared = [
        (name, known[digest])
        for name, digest in zip(validation.images.image_ids, validation.digests, strict=True)
        if digest in known
    ]
    if shared:
        raise InputError(
            f"validation: {len(shared)} of its images are in the training set too, {shared[0][0]} as {shared[0][1]}; "
            "copies of them would go unseen. Remove them from one of the two sets"
        )


def _measure_power(
    encoder: ContrastiveEncoder,
    training: Embeddings,
    thresholds: Mapping[str | None, float],
    settings: Mapping[str, Any],
) -> list[Recall]:
    labels = training.images.labels
    index = choose_plants(len(training), settings["seed"])
    if None not in thresholds and labels is not None:
        index = torch.tensor([i for i in index.tolist() if labels[i] in thresholds], dtype=torch.int64)
    if len(index) == 0 or (None not in thresholds and labels is None):
        return []
    level = [thresholds[None if None in thresholds or labels is None else labels[i]] for i in index.tolist()]
    images = prepared_images(training.images.subset(index.tolist()), *_form(encoder)).pixels.float()
    return measure_power(
        encoder,
        images,
        index,
        training.vectors,
        torch.tensor(level),
        seed=settings["seed"],
        device=settings["device"],
    )


def _controls(training: Embeddings, validation: Embeddings, synthetic: Embeddings, seed: int) -> dict[str, Any]:
    patients = validation.images.patient_ids
    gap = gap_auc(validation.vectors, synthetic.vectors, patients, seed)
    shares: tuple[float | None, float | None] = (None, None)
    if len(set(patients)) > 1:
        shares = nearest_in_training(training.vectors, validation.vectors, synthetic.vectors, patients, seed)
    return {
        "gap_auc": gap.auc,
        "gap_auc_ci": gap.ci,
        "nearest_in_training": shares[0],
        "nearest_in_training_real": shares[1],
    }


def _accumulation(
    match: Tensor,
    flags: Flags,
    calibration: Embeddings,
    training: Embeddings,
    validation_similarity: Tensor,
    thresholds: Mapping[str | None, float],
) -> dict[str, Any]:
    """Count training images matched as images are drawn, by candidates and by as many false ones of validation."""
    labels = calibration.images.labels if None not in thresholds else None
    levels = [thresholds.get(labels[i] if labels else None, float("inf")) for i in range(len(calibration))]
    false_match = nearest(calibration.vectors, training.vectors)[1][:, 0]
    drawn, matched = accumulation_curve(match, flags.copy_candidate)
    false_drawn, false_matched = accumulation_curve(false_match, validation_similarity > torch.tensor(levels))
    common = drawn[drawn <= len(calibration)]
    return {
        "n_drawn": drawn.tolist(),
        "synthetic": matched.tolist(),
        "validation": np.interp(common, false_drawn, false_matched).tolist(),
    }


def _gallery_pairs(
    findings: Findings, embedded: Mapping[str, Embeddings], encoder: ContrastiveEncoder
) -> list[GalleryPair]:
    """Read the most similar pairs again, prepared as they were compared."""
    synthetic, training = embedded["synthetic"].images, embedded["training"].images
    pairs = []
    for i in findings.similarity.argsort(descending=True, stable=True)[:N_GALLERY_PAIRS].tolist():
        match = int(findings.match[i])
        pairs.append(
            GalleryPair(
                synthetic.image_ids[i],
                training.image_ids[match],
                training.patient_ids[match],
                float(findings.similarity[i]),
                float(findings.flags.p_value[i]),
                bool(findings.flags.copy_candidate[i]),
                bool(findings.flags.in_fdr_list[i]),
                int(findings.identical[i]) == match,
                encoder.preparation(synthetic.paths[i]),
                encoder.preparation(training.paths[match]),
            )
        )
    return pairs


def _form(encoder: ContrastiveEncoder) -> tuple[tuple[int, ...], int]:
    return encoder.preparation.image_size, encoder.preparation.channels


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - start
