# SPDX-License-Identifier: Apache-2.0
r"""Detectors of copies against each other, on the same images, calibration and candidates.

Patients are disjoint in training, calibration and holdout. Copies of training images are planted, of every family and
strength of the power test; each image is scored against all training images. The threshold comes from the calibration
images by the package's conformal rule. Recall at two levels, area under the ROC curve against the holdout, share
matched with the right training image; false alarms on the holdout, and on images that were left out of the training set
though their patients are in it. Intervals are over copied images. A run that is cut off goes on where it stopped.

    python benchmarks/detection.py --training T.csv --calibration V.csv --holdout H.csv --output OUT.json \
        [--detectors ours pixel_correlation ...] [--encoder model.pt] [--n-training 1200] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import torch
from detectors import DETECTORS, TRAINED_BY_US, Detector
from sklearn.metrics import roc_auc_score
from torch import Tensor

from monai_memorization.detector import degradations
from monai_memorization.detector.encoder import load_encoder
from monai_memorization.images.preparation import choose_preparation
from monai_memorization.images.prepared import PreparedImages, read_prepared
from monai_memorization.images.sets import ImageSet, read_image_set
from monai_memorization.statistics.conformal import alpha_attained, threshold
from monai_memorization.statistics.power import FAMILIES, Family, choose_plants

ALPHAS = (0.05, 0.01)
N_LOWER = 3  # of the strengths of a family, those that the summary is of


def main(arguments: list[str] | None = None) -> None:
    """Measure each detector with each seed; the JSON is written after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=Path, required=True)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--holdout", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, help="weights trained on these training images, in place of training")
    parser.add_argument("--detectors", nargs="+", choices=list(DETECTORS), default=list(DETECTORS))
    parser.add_argument("--n-training", type=int, help="so many training images, spread over the set; default all")
    parser.add_argument("--n-copied", type=int, default=128, help="training images that are copied")
    parser.add_argument("--n-same-patient", type=int, default=200, help="images of patients in it, at most")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    if options.n_same_patient < 1:
        parser.error("--n-same-patient: must be at least 1")
    images = read_image_set(options.training, "training")
    training, same_patient = _leave_out(images, options.n_training, options.n_same_patient)
    # an encoder sees images as it did in its training
    preparation = choose_preparation(training) if options.encoder is None else load_encoder(options.encoder).preparation
    sets = {"training": training, "same_patient": same_patient}
    sets |= {role: read_image_set(getattr(options, role), role) for role in ("calibration", "holdout")}
    _check_disjoint(sets)
    prepared = {role: read_prepared(images, preparation) for role, images in sets.items() if len(images)}
    setting = {role: {"images": len(s), "patients": len(set(s.patient_ids))} for role, s in sets.items()}
    setting |= {"image_size": list(preparation.image_size), "n_copied": options.n_copied, "machine": _machine()}
    result = json.loads(options.output.read_text()) if options.output.exists() else {"setting": setting, "runs": []}
    if {**result["setting"], "machine": None} != {**setting, "machine": None}:
        raise SystemExit(f"--output: {options.output} is of other images or sizes; name another file")
    commit = _commit()  # before anything is measured, since the files may change meanwhile
    done = {(run["seed"], run["detector"]) for run in result["runs"]}
    for seed in options.seeds:
        for name in options.detectors:
            if (seed, name) not in done:
                build = DETECTORS[name]
                if name in TRAINED_BY_US:
                    build = partial(build, encoder=options.encoder)
                run = {"seed": seed, "detector": name, "commit": commit}
                run |= _measure(build, prepared, seed, options.n_copied)
                result["runs"].append(run)
                options.output.write_text(json.dumps(result, indent=1) + "\n")
                print(name, seed, json.dumps(run["summary"]), flush=True)


def _measure(build: Any, prepared: dict[str, PreparedImages], seed: int, n_copied: int) -> dict[str, Any]:
    start = time.perf_counter()
    training, calibration = prepared["training"], prepared["calibration"]
    detect: Detector = build(training, seed)
    built = time.perf_counter() - start
    scores = {role: _in_batches(detect, s.pixels)[0] for role, s in prepared.items() if role != "training"}
    per_image = (time.perf_counter() - start - built) / sum(map(len, scores.values()))
    n_patients = len(set(calibration.images.patient_ids))
    levels = [threshold(scores["calibration"], alpha, n_patients) for alpha in ALPHAS]
    index = choose_plants(len(training), seed, n_copied)
    images = training.pixels[index].float()
    others = calibration.pixels[torch.arange(len(index)) % len(calibration)].float()  # which parts are put into
    cells, found = [], []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for family, strength in _cells(images.dim() - 2):
            copies = degradations.rescale(family.degrade(images, others, strength))
            score, match = _in_batches(detect, copies)
            found.append(torch.stack([score > level for level in levels]).double())
            cells.append(_cell(family, strength, found[-1], score, match == index, scores["holdout"]))
    return {
        "summary": _summary(cells, torch.stack(found)),
        "false_alarms": {
            role: _false_alarms(scores[role], prepared[role].images, levels) for role in scores if role != "calibration"
        },
        "alpha_attained": [alpha_attained(alpha, n_patients, len(scores["calibration"])) for alpha in ALPHAS],
        "seconds_to_build": round(built, 1),
        "milliseconds_per_image": round(1000 * per_image, 2),
        "cells": cells,
    }


def _cells(dimension: int) -> list[tuple[Family, float]]:
    return [(f, s) for f in FAMILIES if dimension in f.dimensions for s in f.strengths]


def _cell(
    family: Family, strength: float, found: Tensor, score: Tensor, right: Tensor, untouched: Tensor
) -> dict[str, Any]:
    truth = [1] * len(score) + [0] * len(untouched)
    return {
        "family": family.name,
        "strength": strength,
        "lower": strength in family.strengths[:N_LOWER],
        "whole": family.whole,
        "recall": [round(share, 4) for share in found.mean(dim=1).tolist()],
        "auroc": round(float(roc_auc_score(truth, torch.cat([score, untouched]).numpy())), 4),
        "matched": round(right.double().mean().item(), 4),
    }


def _summary(cells: list[dict[str, Any]], found: Tensor) -> dict[str, Any]:
    """Means over the lower strengths of whole copies, with the interval over copied images, and the worst family."""
    lower = torch.tensor([cell["whole"] and cell["lower"] for cell in cells])
    mean_of_image = found[lower].mean(dim=0)  # (levels, copied images)
    error = mean_of_image.std(dim=1) / mean_of_image.shape[1] ** 0.5
    families: dict[str, list[float]] = {}
    for cell in cells:
        if cell["whole"] and cell["lower"]:
            families.setdefault(cell["family"], []).append(cell["recall"][0])
    by_family = {family: round(sum(recalls) / len(recalls), 4) for family, recalls in families.items()}
    return {
        "recall": [round(mean, 4) for mean in mean_of_image.mean(dim=1).tolist()],
        "half_width_95": [round(1.96 * e, 4) for e in error.tolist()],
        "auroc": round(sum(c["auroc"] for c in cells if c["whole"] and c["lower"]) / int(lower.sum()), 4),
        "matched": round(sum(c["matched"] for c in cells if c["whole"] and c["lower"]) / int(lower.sum()), 4),
        "by_family": by_family,
        "lowest_family": min(by_family, key=by_family.__getitem__),
        "partial": {f"{c['family']} {c['strength']}": c["recall"] for c in cells if not c["whole"]},
    }


def _false_alarms(scores: Tensor, images: ImageSet, levels: list[float]) -> dict[str, Any]:
    return {
        "images": len(scores),
        "patients": len(set(images.patient_ids)),
        "flagged": [round((scores > level).double().mean().item(), 4) for level in levels],
    }


def _in_batches(detect: Detector, pixels: Tensor, batch_size: int = 256) -> tuple[Tensor, Tensor]:
    scores, matches = zip(*(detect(batch.float()) for batch in pixels.split(batch_size)), strict=True)
    return torch.cat(scores), torch.cat(matches)


def _leave_out(images: ImageSet, n_training: int | None, n_same_patient: int) -> tuple[ImageSet, ImageSet]:
    """Return the training set, and images outside it of patients who are in it; of all images, one of each of some."""
    n = len(images)
    if n_training is not None and n_training < n:
        kept = [i * n // n_training for i in range(n_training)]
    else:
        count = Counter(images.patient_ids)
        last = {patient: i for i, patient in enumerate(images.patient_ids) if count[patient] > 1}
        kept = sorted(set(range(n)) - set(list(last.values())[:n_same_patient]))
    patients = {images.patient_ids[i] for i in kept}
    partners = [i for i in sorted(set(range(n)) - set(kept)) if images.patient_ids[i] in patients]
    return images.subset(kept), images.subset(partners[:: max(1, len(partners) // n_same_patient)][:n_same_patient])


def _check_disjoint(sets: dict[str, ImageSet]) -> None:
    roles = ("training", "calibration", "holdout")
    patients = [set(sets[role].patient_ids) for role in roles]
    if sum(map(len, patients)) != len(set.union(*patients)):
        raise SystemExit(f"{', '.join(roles)}: share patients; divide the images by patient")


def _machine() -> dict[str, Any]:
    return {"processor": platform.processor(), "torch": torch.__version__, "threads": torch.get_num_threads()}


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
