# SPDX-License-Identifier: Apache-2.0
"""The over-training study: each kind of generator leaves its curve, and is stopped where the limit says."""

from __future__ import annotations

import json

import pytest
from made_up_images import smooth_images
from scripts import REPOSITORY, load_script

from monai_memorization.generation.sampling import GeneratorSampler
from monai_memorization.handlers import FIRST_SEED

pytestmark = pytest.mark.usefixtures("unchanged_process")


class CopyingLater(GeneratorSampler):
    """Draws training images from the third check on; stands in for a GAN that takes hours to over-train."""

    def __init__(self, *settings):
        super().__init__(*settings)
        self.checks = 0

    def __call__(self, seeds):
        self.checks += FIRST_SEED in seeds
        return super().__call__(seeds) if self.checks < 3 else smooth_images(len(seeds), seed=1)[:, None]


def test_each_kind_leaves_a_curve_and_the_one_that_copies_is_stopped(
    training_folder, validation_folder, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    overtraining = load_script("benchmarks/overtraining.py")
    monkeypatch.setattr(overtraining, "GeneratorSampler", CopyingLater)
    sets = ["--training", str(training_folder), "--validation", str(validation_folder)]

    overtraining.main(["run", *sets, "--output-dir", str(tmp_path), "--tiny"])
    results = {kind: json.loads((tmp_path / f"{kind}.json").read_text()) for kind in overtraining.KINDS}

    for result in results.values():
        assert [row["epoch"] for row in result["curve"]] == [1, 2, 3, 4]
        assert all(row["validation_loss"] > 0 and row["frechet_distance"] >= 0 for row in result["curve"])
    assert results["pixel_diffusion"]["stopped"] is results["latent_diffusion"]["stopped"] is None
    assert results["gan"]["stopped"] == {"epoch": 3, "kept_epoch": 2, "same_curve": True, "kept": True}

    # what was stopped in the second training goes on with it
    (tmp_path / "gan.json").unlink()
    trainings, train = [], overtraining.gan
    monkeypatch.setitem(overtraining.KINDS, "gan", lambda *given: trainings.append(given[2].name) or train(*given))
    overtraining.main(["run", *sets, "--output-dir", str(tmp_path), "--tiny"])
    again = json.loads((tmp_path / "gan.json").read_text())
    assert trainings == ["stopped"]
    assert [again[key] for key in ("curve", "stopped")] == [results["gan"][key] for key in ("curve", "stopped")]

    overtraining.main(["figure", str(tmp_path), "--output", str(tmp_path / "figure.svg")])
    figure = (tmp_path / "figure.svg").read_text()
    assert all(f">{word}<" in figure for word in (*overtraining.TITLES.values(), "stopped", "kept"))
