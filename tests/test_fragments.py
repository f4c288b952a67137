# SPDX-License-Identifier: Apache-2.0
"""Fragments: a bundle's training is watched by override alone, through MONAI's own runner."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import monai.bundle
import pandas as pd
import pytest
import torch
from made_up_images import smooth_images
from small_generators import SMALL

from monai_memorization.handlers import FIRST_SEED

pytestmark = pytest.mark.usefixtures("unchanged_process")

BUNDLES = Path(__file__).parent.parent / "bundles"
FRAGMENT = BUNDLES / "memorization_audit" / "configs" / "fragments" / "latent_diffusion.yaml"


@pytest.fixture(scope="module")
def autoencoder(training_folder, tmp_path_factory) -> Path:
    """Folder with the autoencoder of the 2D bundle, after three steps."""
    folder = tmp_path_factory.mktemp("models")
    options = SMALL | {"autoencoder_steps": 3, "training": str(training_folder), "output_dir": str(folder)}
    config = BUNDLES / "latent_diffusion_2d" / "configs" / "train_autoencoder.json"
    monai.bundle.run(config_file=str(config), logging_file=False, **options)
    return folder / "autoencoder.pt"


class CopyingLater:
    """Draws training images from the second check on; stands in for a model that takes hours to over-train."""

    def __init__(self) -> None:
        self.checks = 0

    def __call__(self, seeds):
        self.checks += FIRST_SEED in seeds
        return smooth_images(len(seeds), seed=1 if self.checks > 1 else 50)[:, None]


def train(training_folder, autoencoder, output_dir, *fragments, **overrides) -> None:
    config = BUNDLES / "latent_diffusion_2d" / "configs" / "train_diffusion.json"
    options = SMALL | {"diffusion_steps": 12, "diffusion_batch_size": 10, "log_interval": 1, "save_interval": 4}
    options |= {"training": training_folder, "output_dir": output_dir, "autoencoder_weights": autoencoder}
    given = {key: str(value) if isinstance(value, Path) else value for key, value in (options | overrides).items()}
    monai.bundle.run(config_file=[str(config), *map(str, fragments)], logging_file=False, **given)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


def same(first: Path, second: Path) -> bool:
    one, other = weights(first), weights(second)
    return all(torch.equal(value, other[name]) for name, value in one.items())


def test_our_bundle_trains_as_without_and_keeps_the_last_model_within_the_limit(
    training_folder, validation_folder, autoencoder, encoder_file, tmp_path, caplog
):
    logging.getLogger("memorization").addHandler(caplog.handler)
    watch = {"validation": validation_folder, "memorization#handlers#0#encoder": encoder_file}
    watch |= {"memorization#handlers#0#n_images": 5, "memorization#sampler#n_steps": 2}
    train(training_folder, autoencoder, tmp_path / "alone")
    train(training_folder, autoencoder, tmp_path / "watched", FRAGMENT, **watch)

    assert same(tmp_path / "alone" / "model.pt", tmp_path / "watched" / "model.pt")
    # three epochs, checked at each; nothing is copied after twelve steps
    assert same(tmp_path / "watched" / "model_within_limit.pt", tmp_path / "watched" / "model.pt")
    lines = [record.getMessage() for record in caplog.records if "copy_rate: 0.0000" in record.getMessage()]
    assert [line.partition("]")[0] for line in lines] == ["Epoch[1", "Epoch[2", "Epoch[3"]
    assert len(pd.read_csv(tmp_path / "watched" / "memorization" / "monitoring.csv")) == 20


def test_our_bundle_stops_at_the_limit(training_folder, validation_folder, autoencoder, encoder_file, tmp_path):
    watch = {"validation": validation_folder, "memorization#handlers#0#encoder": encoder_file}
    watch |= {"memorization#handlers#0#n_images": 16, "memorization#sampler": {"_target_": f"{__name__}.CopyingLater"}}
    train(training_folder, autoencoder, tmp_path, FRAGMENT, diffusion_steps=40, **watch)

    # four steps to an epoch; the second check finds the copies
    assert (tmp_path / "diffusion_iteration=8.pt").is_file()
    assert not (tmp_path / "diffusion_iteration=12.pt").exists()
    assert same(tmp_path / "model_within_limit.pt", tmp_path / "diffusion_iteration=4.pt")
    assert not same(tmp_path / "model_within_limit.pt", tmp_path / "model.pt")


def test_limit_of_one_only_watches(training_folder, validation_folder, autoencoder, encoder_file, tmp_path):
    watch = {"validation": validation_folder, "memorization#handlers#0#encoder": encoder_file, "copy_rate_limit": 1}
    watch |= {"memorization#handlers#0#n_images": 16, "memorization#sampler": {"_target_": f"{__name__}.CopyingLater"}}
    train(training_folder, autoencoder, tmp_path, FRAGMENT, **watch)

    assert (tmp_path / "diffusion_iteration=12.pt").is_file()
    assert same(tmp_path / "model_within_limit.pt", tmp_path / "model.pt")


def test_audit_of_a_foreign_draw_looks_its_images_up_before_it_draws(tmp_path):
    config = {
        "imports": ["$import torch"],
        "bundle_root": str(tmp_path),
        "device": "cpu",
        "latent_size": 4,
        "ckpt_path": str(tmp_path / "weights.pt"),
        "network": {"_target_": "torch.nn.Linear", "in_features": 4, "out_features": 4},
    }
    (tmp_path / "inference.json").write_text(json.dumps(config))
    files = ["inference.json", str(BUNDLES / "memorization_audit" / "configs" / "fragments" / "audit_gan.yaml")]
    words = ["run", "inferring", "--config_file", str(files), "--logging_file", "False"]

    result = subprocess.run(
        [sys.executable, "-m", "monai.bundle", *words], capture_output=True, text=True, cwd=tmp_path, timeout=100
    )

    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert re.fullmatch(r"monai-memorization: training: \S+memorization/training.csv .*", last), result.stderr[-2000:]
    assert not (tmp_path / "memorization").exists()
