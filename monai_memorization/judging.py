# SPDX-License-Identifier: Apache-2.0
"""Judge what a filter left: by its own recall, and by a detector that did not do the filtering."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_memorization.detector.embeddings import Embeddings, embed
from monai_memorization.detector.encoder import load_encoder
from monai_memorization.detector.scores import score_embedded, score_prepared
from monai_memorization.errors import InputError
from monai_memorization.findings import own_labels, own_thresholds
from monai_memorization.images.prepared import read_prepared
from monai_memorization.images.roles import originals
from monai_memorization.images.sets import ImageSet
from monai_memorization.statistics.power import AUTOENCODER, FAMILIES, choose_plants_within, plant_together
from monai_memorization.statistics.rates import copy_rate_at_power
from monai_memorization.statistics.residual import (
    noticeable_rate,
    rate_at_power_interval,
    residual_interval,
    residual_rate,
)
from monai_memorization.statistics.strata import recorded_strata


class Detector:
    """An encoder as an audit calibrated it: tells which images it flags.

    Args:
        path: weights of the encoder.
        training: the training set.
        report: of the audit.
        device: where the encoder runs, and where images are compared.
        skip_unreadable: leave out images that cannot be read.
        cache_dir: where that audit kept its embeddings; None embeds the training set again.
    """

    def __init__(
        self,
        path: Path,
        training: ImageSet,
        report: Mapping[str, Any],
        device: str,
        skip_unreadable: bool,
        cache_dir: Path | None = None,
    ) -> None:
        self.encoder = load_encoder(path).to(device)
        self.device = device
        self.skip_unreadable = skip_unreadable
        self.training = embed(
            self.encoder, training, device=device, skip_unreadable=skip_unreadable, cache_dir=cache_dir
        )
        strata = report["calibrated"]["strata"]
        self.n_synthetic = {s["label"]: s["n_synthetic"] for s in strata}
        self.thresholds = {s["label"]: math.inf if s["threshold"] is None else s["threshold"] for s in strata}

    def flags(self, embedded: Embeddings) -> Tensor:
        """Return which of n images it flags, bool (n,)."""
        return score_embedded(embedded, self.training)[0] > own_thresholds(embedded.images, self.thresholds)

    def flags_copies(self, copies: Tensor, originals: ImageSet) -> Tensor:
        """Return which of n copies of training images, (n, C, *spatial) in [0, 1], it flags, bool (n,)."""
        copies = torch.stack([self.encoder.preparation.fit(copy) for copy in copies])
        scores = score_prepared(self.encoder, copies, self.training, self.device)[0]
        return scores > own_thresholds(originals, self.thresholds)


def passing_images(sets: Mapping[str, ImageSet], detector: Detector) -> dict[str, ImageSet]:
    """Return the validation images that a filter lets pass, and their reconstructions where there are any.

    Args:
        sets: "validation" and where given "reconstructed_validation", which then decides.
        detector: the filter.

    Raises:
        InputError: if none passes.
    """
    calibration = sets.get("reconstructed_validation", sets["validation"])
    embedded = embed(detector.encoder, calibration, device=detector.device, skip_unreadable=detector.skip_unreadable)
    passed = (~detector.flags(embedded)).nonzero()[:, 0].tolist()
    if not passed:
        raise InputError(
            "validation: no image of the judge's half passes the filter; raise alpha or give more patients"
        )
    kept = embedded.images.subset(passed)
    if calibration is sets["validation"]:
        return {"validation": kept}
    return {
        "validation": sets["validation"].subset(originals(kept, sets["validation"])),
        "reconstructed_validation": kept,
    }


def describe_residual(report: Mapping[str, Any], n: int, seed: int) -> dict[str, Any]:
    """Say how many copies a filter left among ``n`` images, by its own recall: part of `release` of the report.

    Args:
        report: of the audit that filtered.
        n: images that are handed out.
        seed: of the interval.
    """
    calibrated, power = report["calibrated"], report["power_summary"]
    n_drawn, n_flagged = report["sets"]["synthetic"]["n_images"], calibrated["n_copies"]
    n_planted = min((cell["n"] for cell in report["power"] if cell["family"] != AUTOENCODER), default=0)
    planted = [(power[group], n_planted) for group in ("seen", "unseen") if power[group] is not None]
    # as in the working recall: no mean of families may outvote the generator's own reconstructions
    planted += [(cell["recall"], cell["n"]) for cell in report["power"] if cell["family"] == AUTOENCODER]
    ends = residual_interval(
        n_flagged, n_drawn, n, calibrated["alpha"], recorded_strata(calibrated["strata"]), planted, seed
    )
    return {
        "filter": {
            key: calibrated[key] for key in ("alpha_attained", "flagged_rate", "copy_rate_at_power", "n_near_identical")
        }
        | {"recall_seen": power["seen"], "recall_unseen": power["unseen"], "n_planted": n_planted},
        "residual_rate": residual_rate(n_flagged, n_drawn, calibrated["alpha_attained"], power["working_recall"]),
        "residual_rate_ci": ends,
    }


def describe_judge(
    report: Mapping[str, Any], filtering: Detector, judging: Detector, seed: int, n_plants: int
) -> dict[str, Any]:
    """Say what the judge finds, and how much of what passes the filter it can find: `release.judge` of the report.

    Args:
        report: of the judge's audit.
        filtering: the detector that filtered.
        judging: the detector that judges.
        seed: of the planted copies and the interval.
        n_plants: training images that are copied.
    """
    calibrated = report["calibrated"]
    n_passed, n_found, n_images = planted_that_pass(filtering, judging, seed, n_plants)
    recall = n_found / n_passed if n_passed else None
    n_flagged, n = calibrated["n_copies"], report["sets"]["synthetic"]["n_images"]
    strata, counted = recorded_strata(calibrated["strata"]), (n_flagged, n, calibrated["alpha"])
    return {
        "n_planted_passed": n_passed,
        "recall": recall,
        "copy_rate_at_power": copy_rate_at_power(n_flagged, n, calibrated["alpha_attained"], recall),
        "copy_rate_at_power_ci": rate_at_power_interval(*counted, strata, (recall or 0.0, n_images), seed),
        "noticeable_rate": noticeable_rate(*counted, strata, (recall or 0.0, n_images), seed),
    }


def planted_that_pass(filtering: Detector, judging: Detector, seed: int, n_plants: int) -> tuple[int, int, int]:
    """Plant whole copies of training images.

    Args:
        filtering: the detector that filtered.
        judging: the detector that judges.
        seed: of the choice of images and of the copies.
        n_plants: training images that are copied, all of a smaller set.

    Returns:
        How many pass the filter, how many of those the judge finds, and of how many training images they are: of as
        many as would tell as much if of each equally many passed (Kish 1965), rounded down.
    """
    images = filtering.training.images
    labels = own_labels(images, judging.thresholds)
    # those among what passed are among what was drawn too, so that the filter has a threshold of each
    index = choose_plants_within(labels, judging.n_synthetic, seed, n_plants)
    if len(index) == 0:
        return 0, 0, 0
    copied = images.subset(index.tolist())
    pixels = read_prepared(copied, filtering.encoder.preparation).pixels.float()
    passed, found = torch.zeros(len(index), dtype=torch.int64), 0
    for group in plant_together(pixels, [family for family in FAMILIES if family.whole], seed):
        copies = torch.cat([of_cell for _, _, of_cell in group])
        of = torch.arange(len(index)).repeat(len(group))
        passing = (~filtering.flags_copies(copies, copied.subset(of.tolist()))).nonzero()[:, 0]
        passed += of[passing].bincount(minlength=len(index))
        if len(passing) > 0:
            found += int(judging.flags_copies(copies[passing], copied.subset(of[passing].tolist())).sum())
    n_passed = int(passed.sum())
    return n_passed, found, n_passed**2 // max(1, int(passed.square().sum()))
