# SPDX-License-Identifier: Apache-2.0
"""The generators of the study: each is trained on the run's training set, and draws its synthetic images."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai.utils import set_determinism
from peers import CODE_SIZE, GaussianPrior, gan_trainer
from torch import nn
from trainings import bundle_workflow, levers_of, run_bundle

from monai_memorization.files import write_text
from monai_memorization.generation.draws import SamplerDraw
from monai_memorization.generation.sampling import GeneratorSampler


@dataclass(frozen=True)
class Run:
    """One run of a cell.

    Args:
        settings: of the grid, with the changes of the cell.
        seed: of everything random.
        training: CSV of the training set.
        validation: CSV of the validation set.
        shared: folder of what runs have in common.
        work: folder of this run alone.
    """

    settings: Mapping[str, Any]
    seed: int
    training: Path
    validation: Path
    shared: Path
    work: Path


def latent_diffusion(run: Run) -> float:
    """Train the bundle's latent diffusion model and draw from it; return the seconds of both trainings."""
    weights, seconds = train_autoencoder(run)
    models = {"autoencoder_weights": weights, "model_dir": str(run.work), "handlers": []}
    changes = run.settings.get("diffusion", {})
    seconds += run_bundle(
        "train_diffusion", run.settings, **trained(run, run.work), **changes, autoencoder_weights=weights
    )
    n_images = run.settings["n_synthetic"]
    run_bundle("inference", run.settings, n_images=n_images, output_dir=str(run.work / "synthetic"), **models)
    return seconds


def gaussian_autoencoder(run: Run) -> float:
    """Fit a Gaussian to the latents of the bundle's autoencoder and draw; return the seconds of the training."""
    weights, seconds = train_autoencoder(run)
    # the diffusion model's config, for its autoencoder and latents
    workflow = bundle_workflow("train_diffusion", run.settings, **trained(run, run.work), autoencoder_weights=weights)
    start = time.perf_counter()
    dataset = workflow.parser.get_parsed_content("train#dataset")
    generator = GaussianPrior(dataset.autoencoder, dataset.latents)
    seconds += time.perf_counter() - start
    draw(run, generator, len(dataset))
    return seconds


def gan(run: Run) -> float:
    """Train a GAN and draw from it; return the seconds of the training."""
    # the autoencoder's config, for the images as the diffusion model gets them
    workflow = bundle_workflow("train_autoencoder", run.settings, **trained(run, run.work))
    images = workflow.parser.get_parsed_content("train#images").pixels.float()
    set_determinism(run.seed)
    trainer = gan_trainer(images, run.settings["gan"])
    start = time.perf_counter()
    trainer.run()
    seconds = time.perf_counter() - start
    draw(run, trainer.g_network, CODE_SIZE)
    return seconds


def draw(run: Run, generator: nn.Module, code_size: int) -> None:
    """Draw from a generator that maps codes to images."""
    (run.work / "synthetic").mkdir(parents=True, exist_ok=True)
    SamplerDraw(GeneratorSampler(generator, code_size))(range(run.settings["n_synthetic"]), run.work / "synthetic")


def train_autoencoder(run: Run) -> tuple[str, float]:
    """Train the autoencoder, or take that of an earlier run with the same training set; reconstruct V.

    Returns:
        Its weights, and the seconds that the training took.
    """
    levers = levers_of("train_autoencoder", run.settings)
    folder = run.shared / "_".join(["autoencoder", str(run.settings["n_training"]), *levers])
    if not (folder / "seconds.json").is_file():
        changes = run.settings.get("autoencoder", {})
        seconds = run_bundle("train_autoencoder", run.settings, **trained(run, folder), **changes)
        write_text(folder / "seconds.json", json.dumps(seconds) + "\n")
    given = {"validation": str(run.validation), "model_dir": str(folder), "handlers": []}
    run_bundle("reconstruct", run.settings, output_dir=str(run.work / "reconstructed"), **given)
    return str(folder / "autoencoder.pt"), json.loads((folder / "seconds.json").read_text(encoding="utf-8"))


def trained(run: Run, folder: Path) -> dict[str, Any]:
    """Return the keys of a training config."""
    return {"training": str(run.training), "output_dir": str(folder), "seed": run.seed}


GENERATORS = {"latent_diffusion": latent_diffusion, "autoencoder": gaussian_autoencoder, "gan": gan}
