# SPDX-License-Identifier: Apache-2.0
"""Detectors are held against each other on planted copies, and drawn."""

from __future__ import annotations

import json

import pytest
from made_up_images import smooth_images, write_folder
from scripts import REPOSITORY, load_script

from monai_memorization.images.preparation import choose_preparation
from monai_memorization.images.prepared import read_prepared
from monai_memorization.images.sets import read_image_set


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return load_script("benchmarks/detection.py"), load_script("benchmarks/detection_figures.py")


def test_detectors_are_measured_once_and_drawn_the_best_first(benchmarks, training_folder, validation_folder, tmp_path):
    detection, figures = benchmarks
    holdout = write_folder(smooth_images(40, seed=5), tmp_path / "holdout", "held")
    sets = ["--training", training_folder, "--calibration", validation_folder, "--holdout", holdout]
    output = tmp_path / "detection.json"
    options = [*sets, "--n-copied", 4, "--output", output, "--detectors", "perceptual_hash", "pixel_correlation"]

    detection.main([str(option) for option in options])
    first = output.read_text()
    detection.main([str(option) for option in options])

    assert output.read_text() == first  # what ran is not run again
    runs = {run["detector"]: run for run in json.loads(first)["runs"]}
    for run in runs.values():
        untouched = run["cells"][0]
        # of forty patients no threshold keeps to 0.01, so nothing can be flagged there
        assert (untouched["family"], untouched["recall"], untouched["matched"]) == ("identity", [1.0, 0.0], 1.0)
    mirrored = runs["pixel_correlation"]["summary"]["by_family"]["flip"]
    assert mirrored < runs["pixel_correlation"]["summary"]["by_family"]["contrast"] == 1
    assert runs["perceptual_hash"]["summary"]["recall"][0] < runs["pixel_correlation"]["summary"]["recall"][0]

    figures.main([str(output), "--output", str(tmp_path / "figure.svg")])

    assert "pixel correlation" in (tmp_path / "figure.svg").read_text()
    rows = (tmp_path / "figure.md").read_text().splitlines()[2:]
    assert [row.split(" | ")[0] for row in rows] == ["| pixel correlation", "| perceptual hash"]


def test_latents_of_an_autoencoder_know_an_image_again(benchmarks, training_folder):
    images = read_image_set(training_folder, "training")
    training = read_prepared(images, choose_preparation(images))
    detect = load_script("benchmarks/detectors.py").autoencoder_latents(training, 0, n_steps=2)

    score, match = detect(training.pixels[[3, 8]].float())

    assert match.tolist() == [3, 8]
    assert score.min() > 0.999


def test_sets_that_share_patients_are_refused(benchmarks, training_folder, validation_folder, tmp_path):
    sets = ["--training", training_folder, "--calibration", validation_folder, "--holdout", training_folder]
    with pytest.raises(SystemExit, match="share patients"):
        benchmarks[0].main([str(option) for option in [*sets, "--output", tmp_path / "out.json"]])
    assert not (tmp_path / "out.json").exists()
