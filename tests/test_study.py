# SPDX-License-Identifier: Apache-2.0
"""The study's grid: every cell as it is written can be run, and what has run is not run again."""

from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
import torch
import yaml
from made_up_images import smooth_images, write_csv, write_folder
from scipy.signal import convolve2d
from scipy.stats import binom
from scripts import REPOSITORY, load_script
from small_generators import SMALL, small_autoencoder

from monai_memorization.errors import InputError
from monai_memorization.generation.latents import encode
from monai_memorization.generation.sampling import GeneratorSampler
from monai_memorization.images.sets import read_image_set

pytestmark = pytest.mark.usefixtures("unchanged_process")

GRIDS = sorted((REPOSITORY / "benchmarks" / "study").iterdir())


@pytest.fixture(scope="module", autouse=True)
def scripts_found():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY / "benchmarks")
        yield


@pytest.fixture(scope="module")
def study():
    return load_script("benchmarks/study.py")


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_grid_names_levers_recipes_and_keys_that_exist(path, study):
    grid = yaml.safe_load(path.read_text(encoding="utf-8"))
    configs = REPOSITORY / "bundles" / grid["bundle"] / "configs"

    assert all((configs / name).is_file() for name in grid.get("recipe", []))
    for cell in grid["cells"].values():
        assert set(cell) <= {"levers", "n_training", "diffusion", "generator"}
        assert cell.get("generator", "latent_diffusion") in study.GENERATORS
        assert all((configs / "mitigation" / f"{lever}.yaml").is_file() for lever in cell.get("levers", []))
        for stage in ("autoencoder", "diffusion"):
            keys = json.loads((configs / f"train_{stage}.json").read_text())
            assert set(cell.get(stage, {})) | set(grid.get(stage, {})) <= set(keys)


def test_smaller_training_set_is_part_of_the_larger_and_has_one_image_of_a_patient(study, tmp_path):
    folder = write_folder(smooth_images(30), tmp_path / "images")
    images = read_image_set(write_csv(folder, tmp_path / "i.csv", [f"p{i // 2}" for i in range(30)]), "training")

    small, large = (study.choose_training(images, n, seed=3) for n in (5, 10))

    assert set(small.image_ids) < set(large.image_ids)
    assert len(set(large.patient_ids)) == 10


def test_more_patients_than_there_are_is_an_error(study, tmp_path):
    images = read_image_set(write_folder(smooth_images(5), tmp_path / "images"), "training")
    with pytest.raises(InputError, match="5 patients, but 6 are asked for"):
        study.choose_training(images, 6, seed=0)


@pytest.fixture(scope="module")
def outcome(study, tmp_path_factory):
    """A study of every kind of cell at tiny size, through MONAI's runner, its trainers and the whole audit."""
    folder = tmp_path_factory.mktemp("study")
    images = write_folder(smooth_images(24, seed=1), folder / "t")
    training = write_csv(images, folder / "t.csv", [str(i) for i in range(24)])
    validation = write_folder(smooth_images(40, seed=2), folder / "v", "val")
    grid = {
        "bundle": "latent_diffusion_2d",
        "common": SMALL | {"denoising_steps": 2},
        "seeds": [0],
        "n_training": 16,
        "n_synthetic": 20,
        "encoder_steps": 2,
        "n_plants": 2,
        "autoencoder": {"autoencoder_steps": 1},
        "diffusion": {"diffusion_steps": 1},
        "gan": {"epochs": 1, "batch_size": 8, "channels": [4, 4, 4, 4], "learning_rate": 1e-3},
        "cells": {
            "smaller": {"levers": ["smaller_network", "regularization"]},
            "augmented": {"levers": ["augmentation"], "n_training": 20},
            "gan": {"generator": "gan"},
            "autoencoder": {"generator": "autoencoder"},
        },
    }
    (folder / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    words = [str(folder / "grid.yaml"), "--training", str(training), "--validation", str(validation)]
    words += ["--output-dir", str(folder / "out")]
    study.main(words)
    return folder / "out", words


def test_every_kind_of_cell_leaves_what_the_study_shows(outcome):
    rows = {path.stem: json.loads(path.read_text()) for path in outcome[0].glob("*.json")}

    assert set(rows) == {f"{cell}_0" for cell in ("smaller", "augmented", "gan", "autoencoder")}
    for name, row in rows.items():
        n_training = 20 if name == "augmented_0" else 16
        for part, n_synthetic in ((row, 20), (row["equal_sizes"], n_training)):
            assert part["sets"]["training"]["n_images"] == n_training
            assert part["sets"]["synthetic"]["n_images"] == n_synthetic
            for protocol in ("paper_protocol", "calibrated"):
                for rate in ("copy_rate", "mem_rate"):
                    low, high = part[protocol][f"{rate}_ci"]
                    assert 0 <= low <= part[protocol][rate] <= high <= 1
        fidelity = row["fidelity"]
        shown = ("frechet_distance", "distribution_precision", "distribution_recall", "ms_ssim")
        assert all(fidelity[key] is not None and fidelity[f"{key}_real"] is not None for key in shown)
        assert row["training_seconds"] >= 0
        assert row["commit"]
        reference = "validation" if name == "gan_0" else "reconstructed_validation"
        assert row["controls"]["gap_reference"] == reference


def test_rows_hold_no_file_names(outcome):
    for path in outcome[0].glob("*.json"):
        assert not re.search(r"\.png|\.csv|image_\d|val_\d|/", path.read_text())


def test_cells_with_one_training_set_share_encoder_and_autoencoder(outcome):
    shared = outcome[0] / "shared" / "0"
    names = {path.name for path in shared.iterdir() if path.is_dir()}
    assert names == {"autoencoder_16", "autoencoder_20_augmentation"}
    assert (shared / "model.pt").is_file()


def test_what_has_run_is_not_run_again(study, outcome, monkeypatch):
    monkeypatch.setattr(study, "run_cell", lambda *_: pytest.fail("a cell ran twice"))
    study.main(outcome[1])


def test_run_without_its_json_is_audited_again_but_not_trained(study, outcome, monkeypatch):
    path = outcome[0] / "gan_0.json"
    before = json.loads(path.read_text())
    path.unlink()
    monkeypatch.setattr(study, "GENERATORS", {})

    study.main([*outcome[1], "--only", "gan"])

    after = json.loads(path.read_text())
    for part in ("training_seconds", "calibrated", "paper_protocol", "fidelity"):
        assert after[part] == before[part]


def test_cell_that_the_grid_does_not_have_is_an_error(study, outcome, capsys):
    with pytest.raises(SystemExit):
        study.main([*outcome[1], "--only", "gan", "other"])
    assert "--only: other: no cell of" in capsys.readouterr().err


def test_seeds_given_take_the_place_of_those_of_the_grid(study, outcome, monkeypatch):
    ran = []
    monkeypatch.setattr(study, "prepare", lambda options, settings, seed, *_: ran.append(seed))
    monkeypatch.setattr(study, "run_cell", lambda run: {"calibrated": {"copy_rate": 0.0}})
    monkeypatch.setattr(study, "write_text", lambda path, text: None)

    study.main([*outcome[1], "--only", "gan", "--seeds", "0", "7"])

    assert ran == [7]


def test_figure_and_table_show_the_cells_that_ran_and_no_others(outcome, tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    for name in ("smaller_0", "gan_0"):
        (folder / f"{name}.json").write_text((outcome[0] / f"{name}.json").read_text())

    load_script("benchmarks/study_figures.py").main([str(folder), "--output", str(tmp_path / "figure.svg")])

    figure, table = (tmp_path / f"figure.{end}" for end in ("svg", "md"))
    assert all(f">{cell}<" in figure.read_text() for cell in ("smaller", "gan"))
    assert "augmented" not in figure.read_text()
    lines = table.read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")] == [
        "| cell",
        "| ---",
        "| smaller",
        "| gan",
    ] * 3
    row = json.loads((folder / "smaller_0.json").read_text())
    for part, line in zip((row, row["equal_sizes"]), [line for line in lines if "| smaller" in line], strict=False):
        paper = part["paper_protocol"]
        low, high = (100 * end for end in paper["copy_rate_ci"])
        reach = f"{low:.1f} to {high:.1f}; chance {100 * paper['copy_null_rate']:.1f}"
        assert f"{100 * paper['copy_rate']:.1f} % ({reach})" in line


def test_figure_of_an_empty_folder_is_an_error(study, tmp_path, capsys):
    with pytest.raises(SystemExit):
        load_script("benchmarks/study_figures.py").main([str(tmp_path), "--output", str(tmp_path / "figure.svg")])
    assert "holds no <cell>_<seed>.json" in capsys.readouterr().err


@pytest.mark.parametrize(("count", "total"), [(0, 20), (7, 20), (20, 20)])
def test_interval_of_a_share_leaves_out_what_makes_the_count_improbable(study, count, total):
    low, high = study.share_ci(count, total)

    assert low == 0 if count == 0 else binom.sf(count - 1, total, low) == pytest.approx(0.025)
    assert high == 1 if count == total else binom.cdf(count, total, high) == pytest.approx(0.025)


def test_lower_end_of_mem_rate_has_the_most_false_matches_taken_off_and_the_upper_end_none(study):
    report = {part: {} for part in study.PARTS}
    report["sets"] = {"training": {"n_images": 64}, "synthetic": {"n_images": 100}}
    report["paper_protocol"] = {"n_mem": 10, "n_copies": 30}
    report["calibrated"] = {"n_mem": 40, "false_alarm_rate_ci": (0.02, 0.08), "copy_rate_ci": (0.5, 0.7)}

    low, high = study.counts(report)["calibrated"]["mem_rate_ci"]

    plain = study.share_ci(40, 64)
    assert low == pytest.approx(plain[0] - 0.08 * (1 - 0.5) * 100 / 64)
    assert high == plain[1]


def slow_ms_ssim(one: np.ndarray, other: np.ndarray, weights: list[float]) -> float:
    """Wang et al. 2003, equation 7, with the window and constants of Wang et al. 2004."""
    across = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(across, across) / across.sum() ** 2

    def local(image: np.ndarray) -> np.ndarray:
        return convolve2d(image, window, mode="valid")

    value = 1.0
    for scale, weight in enumerate(weights):
        mean_one, mean_other = local(one), local(other)
        spread = local(one**2) - mean_one**2 + local(other**2) - mean_other**2
        structure = (2 * (local(one * other) - mean_one * mean_other) + 0.03**2) / (spread + 0.03**2)
        luminance = (2 * mean_one * mean_other + 0.01**2) / (mean_one**2 + mean_other**2 + 0.01**2)
        last = scale == len(weights) - 1
        value *= max(0.0, float((structure * luminance if last else structure).mean())) ** weight
        one, other = (x.reshape(x.shape[0] // 2, 2, x.shape[1] // 2, 2).mean((1, 3)) for x in (one, other))
    return value


@pytest.mark.parametrize(("side", "n_scales"), [(16, 1), (32, 2), (64, 3)])
def test_ms_ssim_of_a_pair_is_that_of_the_definition(study, side, n_scales):
    diversity = sys.modules["diversity"]
    one = smooth_images(1, (side, side), seed=3)
    images = torch.cat([one, 0.7 * one + 0.3 * smooth_images(1, (side, side), seed=4)])[:, None]
    first = [0.0448, 0.2856, 0.3001][:n_scales]

    expected = slow_ms_ssim(*images[:, 0].double().numpy(), [weight / sum(first) for weight in first])

    assert expected < 0.95
    assert diversity.mean_ms_ssim(images, n_pairs=3) == pytest.approx(expected, abs=1e-4)


def test_ms_ssim_is_the_mean_over_pairs_of_different_images_of_any_dimension(study):
    diversity = sys.modules["diversity"]
    alike, other = smooth_images(1, (12, 12, 12)), smooth_images(1, (12, 12, 12), seed=5)
    assert diversity.mean_ms_ssim(alike[None].repeat(3, 1, 1, 1, 1)) == pytest.approx(1, abs=1e-5)

    images = torch.cat([alike, alike, other])[:, None]
    between = diversity.mean_ms_ssim(torch.cat([alike, other])[:, None])
    assert diversity.mean_ms_ssim(images, 2000) == pytest.approx((1 + 2 * between) / 3, abs=0.03)


def test_gaussian_autoencoder_draws_latents_with_the_mean_and_covariance_of_the_training_images(study):
    peers, autoencoder = sys.modules["peers"], small_autoencoder()
    latents = encode(autoencoder, smooth_images(200, (8, 8), seed=6)[:, None])
    prior = peers.GaussianPrior(autoencoder, latents)
    prior.autoencoder = torch.nn.Module()
    prior.autoencoder.decode = lambda latents: latents

    drawn = prior(torch.randn(20_000, len(latents), generator=torch.Generator().manual_seed(0)))

    assert drawn.shape[1:] == latents.shape[1:]
    scale = latents.std()
    torch.testing.assert_close(drawn.mean(0), latents.mean(0), atol=float(0.05 * scale), rtol=0)
    covariances = [values.flatten(1).T.cov(correction=0) for values in (drawn, latents)]
    torch.testing.assert_close(*covariances, atol=float(0.05 * scale**2), rtol=0.05)


def test_peers_draw_the_same_image_from_a_seed_whatever_it_is_drawn_with(study):
    peers, autoencoder = sys.modules["peers"], small_autoencoder()
    latents = encode(autoencoder, smooth_images(30, (16, 16))[:, None])
    settings = {"epochs": 1, "batch_size": 8, "channels": [4, 4, 4, 4], "learning_rate": 1e-3}
    gan = peers.gan_trainer(smooth_images(16, (16, 16))[:, None], settings).g_network
    prior = peers.GaussianPrior(autoencoder, latents)

    for network, size in ((gan, peers.CODE_SIZE), (prior, len(latents))):
        sampler = GeneratorSampler(network, size)
        images = sampler([5, 6, 7])
        torch.testing.assert_close(sampler([6]), images[1:2], atol=1e-5, rtol=0)
        assert images.shape[1:] == (1, 16, 16)
        assert not torch.equal(images[0], images[1])


def test_gan_of_sides_that_cannot_be_halved_four_times_is_an_error(study):
    with pytest.raises(InputError, match=r"found \[16, 24\], but a GAN of these networks needs sides divisible by 16"):
        sys.modules["peers"].gan_trainer(torch.rand(4, 1, 16, 24), {})
