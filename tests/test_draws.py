# SPDX-License-Identifier: Apache-2.0
"""Drawing into folders: what samplers return is what is read back, and bundles draw through MONAI's runner."""

from __future__ import annotations

import json
from pathlib import Path

import monai.bundle
import pytest
import torch
from made_up_images import smooth_images, write_csv, write_folder
from small_generators import SMALL

from monai_memorization import InputError
from monai_memorization.cli import main
from monai_memorization.generation.draws import BundleDraw, SamplerDraw
from monai_memorization.images.reading import read_image
from monai_memorization.reporting.reading import read_report

pytestmark = pytest.mark.usefixtures("unchanged_process")

CONFIGS = Path(__file__).parent.parent / "bundles" / "latent_diffusion_2d" / "configs"
DRAWING = {"denoising_steps": 2, "batch_size": 3}


class FixedSampler:
    """Image number s of a stack for seed s."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __call__(self, seeds):
        return self.images[list(seeds)]


@pytest.fixture(scope="module")
def models(training_folder, tmp_path_factory) -> Path:
    """Weights of the 2D bundle after three steps."""
    folder = tmp_path_factory.mktemp("models")
    options = SMALL | {"autoencoder_steps": 3, "diffusion_steps": 3, "training": str(training_folder)}
    for name in ("train_autoencoder", "train_diffusion"):
        config = str(CONFIGS / f"{name}.json")
        monai.bundle.run(config_file=config, logging_file=False, output_dir=str(folder), **options)
    return folder


@pytest.mark.parametrize("shape", [(1, 24, 16), (3, 24, 16), (1, 10, 8, 6), (2, 10, 8, 6)])
def test_image_is_read_back_as_it_was_drawn(tmp_path, shape):
    images = torch.stack([smooth_images(shape[0], shape[1:], seed=seed) for seed in range(5)])

    SamplerDraw(FixedSampler(images), batch_size=2)(range(1, 4), tmp_path)

    suffix = ".png" if len(shape) == 3 else ".nii.gz"
    assert {path.name for path in tmp_path.iterdir()} == {f"00000{seed}{suffix}" for seed in (1, 2, 3)}
    for seed in (1, 2, 3):
        back = read_image(tmp_path / f"00000{seed}{suffix}")
        torch.testing.assert_close(back / (255 if suffix == ".png" else 1), images[seed], atol=1 / 255, rtol=0)


@pytest.mark.parametrize("returned", [torch.rand(2, 1, 8, 8), torch.full((3, 1, 8, 8), torch.nan), torch.rand(3, 8, 8)])
def test_anything_but_one_finite_image_per_seed_is_refused(tmp_path, returned):
    with pytest.raises(InputError, match=r"sampler: for 3 seeds from 7 on it returned \("):
        SamplerDraw(lambda _: returned)(range(7, 10), tmp_path)


@pytest.mark.parametrize("n_channels", [2, 4])
def test_pictures_that_png_cannot_hold_are_refused(tmp_path, n_channels):
    with pytest.raises(InputError, match=f"sampler: returned pictures of {n_channels} channels, but 1 or 3 are"):
        SamplerDraw(lambda seeds: torch.rand(len(seeds), n_channels, 8, 8))(range(2), tmp_path)
    assert not list(tmp_path.iterdir())


def test_config_that_runs_under_another_name_is_refused(tmp_path):
    path = tmp_path / "inference.json"
    path.write_text('{"n_images": 1, "first_seed": 0, "output_dir": "out", "drawing": ["$1"]}')
    with pytest.raises(InputError, match=r"inference\.json: has no key 'run'"):
        BundleDraw([path])


def test_bundle_draws_the_images_of_the_seeds_wherever_it_is_called_from(models, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = BundleDraw([CONFIGS / "inference.json"], SMALL | DRAWING | {"model_dir": str(models)})

    draw(range(3), tmp_path / "drawn")
    draw(range(3, 5), tmp_path / "drawn")
    draw(range(5), tmp_path / "at_once")

    first, second = (sorted((tmp_path / name).glob("*.png")) for name in ("drawn", "at_once"))
    assert [path.name for path in first] == [f"{seed:06}.png" for seed in range(5)] == [path.name for path in second]
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(read_image(one), read_image(other), atol=1.01, rtol=0)


def test_config_without_the_keys_is_refused(tmp_path):
    config = tmp_path / "inference.json"
    config.write_text(json.dumps({"n_images": 3, "output_dir": "out"}))

    with pytest.raises(
        InputError, match=r"inference\.json: has no key 'first_seed'.*lay a file over it.*call release\(\) in Python"
    ):
        BundleDraw([config])


def test_bad_input_within_the_bundle_keeps_its_message(tmp_path):
    draw = BundleDraw([CONFIGS / "inference.json"], SMALL | {"model_dir": str(tmp_path)})

    with pytest.raises(InputError, match=r"(model|autoencoder)\.pt: no such file of weights"):
        draw(range(2), tmp_path / "drawn")


def test_config_that_writes_other_than_one_image_per_seed_is_refused(models, tmp_path):
    same_name = {"dataset#data": "$[{'image': 0, 'pred_meta_dict': {'filename_or_obj': 'one'}}] * @n_images"}
    draw = BundleDraw([CONFIGS / "inference.json"], SMALL | DRAWING | {"model_dir": str(models)} | same_name)

    with pytest.raises(InputError, match=r"wrote 1 new images for 3 seeds from 0 on.*names must differ"):
        draw(range(3), tmp_path / "drawn")


def test_command_releases_from_a_bundle_or_says_why_not(
    models, training_folder, tmp_path, few_steps, monkeypatch, capsys
):
    monkeypatch.setattr("monai_memorization.releasing.N_PLANTS", 2)
    validation = write_folder(smooth_images(60, seed=2), tmp_path / "val", "val")
    listed = write_csv(validation, tmp_path / "val.csv", [f"patient-{i}" for i in range(60)])
    keys = SMALL | DRAWING | {"model_dir": str(models)}
    words = ["--set", *(f"{key}={json.dumps(value)}" for key, value in keys.items())]
    words += ["--training", str(training_folder), "--validation", str(listed)]

    status = main(
        ["release", str(CONFIGS / "inference.json"), "--n", "4", "--output-dir", str(tmp_path / "out"), *words]
    )

    printed = capsys.readouterr().out
    # thirty patients on each side: too few for the default policy
    assert status in (1, 3)
    assert "min_validation_patients: required at least 100; found" in printed
    assert "Not released, as the gate does not let the images pass" in printed
    assert read_report(tmp_path / "out")["release"]["n_asked"] == 4
    assert not (tmp_path / "out" / "images").exists()


@pytest.mark.parametrize(("name", "reason"), [("nope.json", "No such file"), ("folder.yaml", "Is a directory")])
def test_config_that_cannot_be_read_is_named(tmp_path, name, reason):
    (tmp_path / "folder.yaml").mkdir()

    with pytest.raises(InputError, match=rf"{name}: cannot be read \({reason}.*\); give a config of a bundle"):
        BundleDraw([tmp_path / name])


def test_command_refuses_a_key_without_a_value(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(
            ["release", "x.json", "--n", "1", "--training", "a", "--validation", "b", "--output-dir", "c", "--set", "d"]
        )

    assert "argument --set: found 'd'; give KEY=VALUE" in capsys.readouterr().err
