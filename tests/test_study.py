# SPDX-License-Identifier: Apache-2.0
"""The study's grid: every cell as it is written can be run, and what has run is not run again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from made_up_images import smooth_images, write_csv, write_folder
from scripts import load_script
from small_generators import SMALL

from monai_memorization.images.sets import read_image_set

pytestmark = pytest.mark.usefixtures("unchanged_process")

REPOSITORY = Path(__file__).parent.parent
GRIDS = sorted((REPOSITORY / "benchmarks" / "study").iterdir())


@pytest.fixture(scope="module")
def study():
    return load_script("benchmarks/study.py")


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_grid_names_levers_recipes_and_keys_that_exist(path):
    grid = yaml.safe_load(path.read_text(encoding="utf-8"))
    configs = REPOSITORY / "bundles" / grid["bundle"] / "configs"

    assert all((configs / name).is_file() for name in grid["recipe"])
    for cell in grid["cells"].values():
        assert set(cell) <= {"levers", "n_training", "diffusion", "autoencoder"}
        assert all((configs / "mitigation" / f"{lever}.yaml").is_file() for lever in cell.get("levers", []))
        keys = json.loads((configs / "train_diffusion.json").read_text())
        assert set(cell.get("diffusion", {})) | set(grid["diffusion"]) <= set(keys)


def test_smaller_training_set_is_part_of_the_larger_and_has_one_image_of_a_patient(study, tmp_path):
    folder = write_folder(smooth_images(30), tmp_path / "images")
    images = read_image_set(write_csv(folder, tmp_path / "i.csv", [f"p{i // 2}" for i in range(30)]), "training")

    small, large = (study.choose_training(images, n, seed=3) for n in (5, 10))

    assert set(small.image_ids) < set(large.image_ids)
    assert len(set(large.patient_ids)) == 10


def test_study_runs_each_cell_once_and_draws_its_figure(study, tmp_path, monkeypatch):
    images = write_folder(smooth_images(24, seed=1), tmp_path / "t")
    training = write_csv(images, tmp_path / "t.csv", [str(i) for i in range(24)])
    validation = write_folder(smooth_images(40, seed=2), tmp_path / "v", "val")
    grid = {
        "bundle": "latent_diffusion_2d",
        "common": SMALL | {"denoising_steps": 2},
        "seeds": [0],
        "n_training": 20,
        "n_synthetic": 12,
        "encoder_steps": 2,
        "autoencoder": {"autoencoder_steps": 1},
        "diffusion": {"diffusion_steps": 1},
        "cells": {"baseline": {}, "augmented": {"levers": ["augmentation", "smaller_network"]}},
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    words = ["--training", str(training), "--validation", str(validation), "--output-dir", str(tmp_path / "out")]

    study.main(["run", str(tmp_path / "grid.yaml"), *words])
    rows = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "out").glob("*.json")}
    monkeypatch.setattr(study, "run_cell", lambda *_: pytest.fail("a cell ran twice"))
    study.main(["run", str(tmp_path / "grid.yaml"), *words])
    study.main(["figure", str(tmp_path / "out"), "--output", str(tmp_path / "figure.svg")])

    assert set(rows) == {"baseline_0", "augmented_0"}
    assert all(row["calibrated"]["copy_rate_ci"] and row["fidelity"]["n_images"] for row in rows.values())
    assert "<svg" in (tmp_path / "figure.svg").read_text()
