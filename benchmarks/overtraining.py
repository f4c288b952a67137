# SPDX-License-Identifier: Apache-2.0
"""Over-training: copies against epochs beside fidelity and validation loss, for three kinds of generators.

    python benchmarks/overtraining.py run --training T.csv --validation V.csv --output-dir OUT [--only latent_diffusion]
    python benchmarks/overtraining.py figure OUT --output FIGURE.svg

The latent diffusion model is the 2D bundle with its fragment, trained as the baseline of a study; the pixel-space
diffusion model and the GAN are small networks of MONAI in MONAI's trainers, on the same films at 32x32. Each is
watched by the handler and trained to the end. Then it is trained again with the limit on the copy rate, which stops it:
what is kept is in the JSON, and whether its checks were those of the first run. Nothing is repeated while
OUT/<kind>.json is there, nor the first run while its curve is kept in OUT: what was stopped goes on there, if code and
settings are the same.

The Frechet distance is that of `report.json`, between embeddings of drawn images and of validation images, beside that
of real images. The validation loss is the training loss on validation images: of the denoising, with noise of its own
seed; for the GAN, which has none of its own, that of its discriminator on real images it has not seen.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import overhead
import torch
import torch.nn.functional as F
import yaml
from ignite.engine import Engine
from ignite.handlers import EMAHandler
from matplotlib.figure import Figure
from monai.engines import DiffusionPrepareBatch, SupervisedTrainer, Trainer
from monai.inferers import DiffusionInferer
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import DDPMScheduler, Scheduler
from monai.networks.utils import eval_mode
from monai.utils import set_determinism
from overhead import commit, machine
from peers import CODE_SIZE, gan_trainer, loader, real_or_fake_loss
from simulation_figures import write_svg
from torch import Tensor, nn
from trainings import choose_training, run_bundle

from monai_memorization.auditing import choose_device
from monai_memorization.detector.encoder import save_encoder
from monai_memorization.detector.encoder_training import train_encoder
from monai_memorization.files import write_text
from monai_memorization.generation.latents import encode
from monai_memorization.generation.sampling import GeneratorSampler, PixelDiffusionSampler, Sampler
from monai_memorization.handlers import MemorizationHandler, WithinLimitSaver
from monai_memorization.images.export import export_images
from monai_memorization.images.preparation import choose_preparation
from monai_memorization.images.prepared import prepared_images, read_prepared
from monai_memorization.images.sets import ImageSet, read_image_set, write_image_set
from monai_memorization.statistics.fidelity import measure_fidelity

KEPT = "model_within_limit.pt"
GRID = Path(__file__).parent / "study" / "cxr64.yaml"
SETTINGS: dict[str, Any] = {
    "n_images": 200,
    "batch_size": None,
    "n_checks": 20,
    "copy_rate_limit": 0.1,
    "n_steps": 20,
    "image_size": [32, 32],
    "pixel_diffusion": {"epochs": 1500, "batch_size": 32, "channels": [32, 64, 64], "learning_rate": 5e-4},
    "gan": {"epochs": 3000, "batch_size": 32, "channels": [64, 64, 32, 16], "learning_rate": 2e-4},
}
TINY: dict[str, Any] = {
    "n_training": 40,
    "encoder_steps": 2,
    "n_images": 8,
    "n_checks": 4,
    "n_steps": 2,
    "latent_diffusion": {
        "bundle": "latent_diffusion_2d",
        "recipe": ["quick.yaml"],
        "common": overhead.TINY | {"diffusion_steps": 8},
    },
    "pixel_diffusion": {"epochs": 4, "batch_size": 20, "channels": [8, 8, 8], "learning_rate": 1e-3},
    "gan": {"epochs": 4, "batch_size": 20, "channels": [8, 8, 8, 4], "learning_rate": 1e-3},
}


class CurveHandler(MemorizationHandler):
    """The handler, which also keeps at each check how like real images the drawn ones are, and the validation loss.

    Args:
        validation_loss: called without arguments.
        settings: as of MemorizationHandler.
    """

    rows: ClassVar[list[dict[str, Any]]] = []

    def __init__(self, validation_loss: Callable[[], float], **settings: Any) -> None:
        super().__init__(**settings)
        self.validation_loss = validation_loss

    def start(self, engine: Engine) -> None:
        """Begin a curve."""
        type(self).rows = []
        super().start(engine)

    def __call__(self, engine: Engine) -> None:
        """Check, and add a row if it was time."""
        self.vectors: Tensor | None = None
        super().__call__(engine)
        if self.vectors is not None:
            validation = self._validation
            fidelity = measure_fidelity(validation.vectors, self.vectors, validation.images.patient_ids, self.seed)
            row = {"epoch": engine.state.epoch, "validation_loss": self.validation_loss()}
            row |= {name: engine.state.metrics[name] for name in METRICS}
            self.rows.append(row | {name: fidelity[name] for name in ("frechet_distance", "frechet_distance_real")})
            print(json.dumps(self.rows[-1]), flush=True)

    def _draw_and_embed(self, *given: Any) -> list[tuple[Tensor, Tensor]]:
        drawn = super()._draw_and_embed(*given)
        self.vectors = torch.cat([vectors for vectors, _ in drawn])
        return drawn


METRICS = ("n_copies", "copy_rate", "n_mem", "mem_rate", "paper_n_copies", "paper_n_mem", "tau")


class DenoisingLoss:
    """The loss that a diffusion model is trained with, on validation images, with noise and time steps of one seed.

    Args:
        network: predicts noise, or velocity if the schedule says so.
        scheduler: noise schedule; copied.
        images: what the network is trained on, (n, C, *spatial).
    """

    def __init__(self, network: nn.Module, scheduler: Scheduler, images: Tensor) -> None:
        self.network = network
        self.scheduler = deepcopy(scheduler)
        generator = torch.Generator().manual_seed(0)
        self.images, self.noise = images, torch.randn(images.shape, generator=generator)
        self.timesteps = torch.randint(scheduler.num_train_timesteps, (len(images),), generator=generator)

    def __call__(self) -> float:
        """Return the mean squared error."""
        given = self.images, self.noise, self.timesteps
        velocity = str(self.scheduler.prediction_type) == "v_prediction"
        target = self.scheduler.get_velocity(*given) if velocity else self.noise
        noisy = self.scheduler.add_noise(*given)
        device = next(self.network.parameters()).device
        with eval_mode(self.network):
            batches = zip(noisy.split(64), self.timesteps.split(64), strict=True)
            predicted = torch.cat([self.network(x.to(device), t.to(device)).cpu() for x, t in batches])
        return float(F.mse_loss(predicted, target))


def latent_loss(
    network: nn.Module, scheduler: Scheduler, autoencoder: nn.Module, scale_factor: Tensor, source: str, size: list[int]
) -> DenoisingLoss:
    """Return the loss on the latents of validation images, for the config of the bundle."""
    images = prepared_images(source, size, role="validation").pixels.float()
    device = next(autoencoder.parameters()).device
    latents = torch.cat([encode(autoencoder, batch.to(device)).cpu() for batch in images.split(16)])
    return DenoisingLoss(network, scheduler, latents * scale_factor.cpu())


def latent_diffusion(settings: dict[str, Any], given: dict[str, Any], folder: Path, limit: float) -> list[dict]:
    """Train the diffusion model of the 2D bundle; the autoencoder is kept for the second run."""
    own = dict(settings["latent_diffusion"])
    common = {"training": given["training"], "seed": given["seed"]}
    autoencoder = folder.parent / "autoencoder"
    if not (autoencoder / "autoencoder.pt").is_file():
        run_bundle("train_autoencoder", own, output_dir=str(autoencoder), **common, **own.get("autoencoder", {}))
    watch = {name: given[name] for name in ("encoder", "n_images", "batch_size")}
    watch["_target_"] = f"{__name__}.CurveHandler"
    watch["interval"] = f"$max(1, @train#trainer#max_epochs // {settings['n_checks']})"
    watch["validation_loss"] = {
        "_target_": f"{__name__}.latent_loss",
        "network": "$@train#handlers#0.ema_model",
        "scheduler": "@scheduler",
        "autoencoder": "@autoencoder",
        "scale_factor": "$@train#dataset.scale_factor",
        "source": "@validation",
        "size": "@image_size",
    }
    overrides = {f"memorization#handlers#0#{name}": value for name, value in watch.items()}
    overrides |= {"memorization#sampler#n_steps": settings["n_steps"], "copy_rate_limit": limit}
    overrides |= {"autoencoder_weights": str(autoencoder / "autoencoder.pt"), "validation": given["validation"]}
    own["recipe"] = [*own.get("recipe", []), "mitigation/early_stopping.yaml"]
    overrides |= own.get("diffusion", {})
    run_bundle("train_diffusion", own, output_dir=str(folder), **common, **overrides)
    return CurveHandler.rows


def pixel_diffusion(settings: dict[str, Any], given: dict[str, Any], folder: Path, limit: float) -> list[dict]:
    """Train a diffusion model on the pixels, in [-1, 1]; drawn from are the averaged weights."""
    own, size = settings["pixel_diffusion"], settings["image_size"]
    set_determinism(given["seed"])
    training, validation = (prepared_images(given[role], size, role=role) for role in ("training", "validation"))
    network = DiffusionModelUNet(
        2,
        in_channels=1,
        out_channels=1,
        channels=own["channels"],
        num_res_blocks=1,
        attention_levels=[False, False, True],
        norm_num_groups=8,
        num_head_channels=8,
        include_fc=False,
    ).to(choose_device("auto"))
    scheduler = DDPMScheduler(1000, schedule="scaled_linear_beta", beta_start=0.0015, beta_end=0.0195)
    average = EMAHandler(network, momentum=0.002, momentum_warmup=0.1, warmup_iters=1000)
    trainer = SupervisedTrainer(
        device=torch.device(choose_device("auto")),
        max_epochs=own["epochs"],
        train_data_loader=loader(training.pixels.float() * 2 - 1, "image", own["batch_size"]),
        network=network,
        optimizer=torch.optim.Adam(network.parameters(), own["learning_rate"]),
        loss_function=nn.MSELoss(),
        inferer=DiffusionInferer(scheduler),
        prepare_batch=DiffusionPrepareBatch(1000),
        decollate=False,
    )
    average.attach(trainer)
    model = average.ema_model
    sampler = PixelDiffusionSampler(model, scheduler, [1, *size], settings["n_steps"], (-1.0, 1.0))
    loss = DenoisingLoss(model, scheduler, validation.pixels.float() * 2 - 1)
    return watched(trainer, model, sampler, loss, settings, given, folder, limit)


def gan(settings: dict[str, Any], given: dict[str, Any], folder: Path, limit: float) -> list[dict]:
    """Train a GAN with the non-saturating loss (Goodfellow et al. 2014)."""
    set_determinism(given["seed"])
    size = settings["image_size"]
    training, validation = (prepared_images(given[role], size, role=role) for role in ("training", "validation"))
    trainer = gan_trainer(training.pixels.float(), settings["gan"])
    generator, discriminator = trainer.g_network, trainer.d_network

    held_out = validation.pixels.float().to(next(discriminator.parameters()).device)

    def validation_loss() -> float:
        with eval_mode(discriminator):
            return float(real_or_fake_loss(discriminator, held_out, 1.0))

    sampler = GeneratorSampler(generator, CODE_SIZE)
    return watched(trainer, generator, sampler, validation_loss, settings, given, folder, limit)


def watched(
    trainer: Trainer,
    network: nn.Module,
    sampler: Sampler,
    validation_loss: Callable[[], float],
    settings: dict[str, Any],
    given: dict[str, Any],
    folder: Path,
    limit: float,
) -> list[dict]:
    """Train under the handler, keep the last model within the limit, and return the curve."""
    handler = CurveHandler(
        validation_loss,
        sampler=sampler,
        output_dir=folder / "memorization",
        interval=max(1, trainer.state.max_epochs // settings["n_checks"]),
        copy_rate_limit=limit,
        **given,
    )
    handler.attach(trainer)
    WithinLimitSaver(str(folder), {"model": network}, KEPT).attach(trainer)
    trainer.run()
    return CurveHandler.rows


KINDS = {"latent_diffusion": latent_diffusion, "pixel_diffusion": pixel_diffusion, "gan": gan}
TITLES = {"latent_diffusion": "latent diffusion", "pixel_diffusion": "pixel-space diffusion", "gan": "GAN"}


def main(arguments: list[str] | None = None) -> None:
    """Run what has not run yet, or draw the figure of what has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    runner = commands.add_parser("run")
    runner.add_argument("--training", type=Path, required=True)
    runner.add_argument("--validation", type=Path, required=True)
    runner.add_argument("--output-dir", type=Path, required=True)
    runner.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    runner.add_argument("--seed", type=int, default=0)
    runner.add_argument("--grid", type=Path, default=GRID, help="study whose baseline and checks these are")
    runner.add_argument("--tiny", action="store_true", help="sizes that show that it runs, and nothing else")
    drawer = commands.add_parser("figure")
    drawer.add_argument("output_dir", type=Path)
    drawer.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    if options.command == "run":
        run(options)
        return
    files = [options.output_dir / f"{kind}.json" for kind in KINDS]
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
    write_svg(options.output, (4 * len(results), 8), partial(draw, results=results))


def run(options: argparse.Namespace) -> None:
    """Train each kind to the end, and again with the limit where it was passed."""
    grid = yaml.safe_load(options.grid.read_text(encoding="utf-8"))
    baseline = {name: grid[name] for name in ("bundle", "recipe", "common", "autoencoder", "diffusion") if name in grid}
    settings = SETTINGS | {name: grid[name] for name in ("n_training", "encoder_steps")}
    settings |= {"latent_diffusion": baseline} | grid.get("checks", {}) | (TINY if options.tiny else {})
    images = choose_training(read_image_set(options.training, "training"), settings["n_training"], options.seed)
    for kind in options.only:
        file = options.output_dir / f"{kind}.json"
        if file.is_file():
            continue
        result = {"kind": kind, "commit": commit(), "seed": options.seed, "settings": settings}
        work = options.output_dir / "work" / kind
        size = None if kind == "latent_diffusion" else settings["image_size"]
        given = sets_and_encoder(images, options, size, settings["encoder_steps"]) | {
            "n_images": settings["n_images"],
            "batch_size": settings["batch_size"],
            "seed": options.seed,
        }
        whole = first_run(kind, result, given, work)
        curve, start = whole["curve"], time.perf_counter()
        result |= {"machine": machine(), "n_training": len(images), "curve": curve, "stopped": None}
        limit = settings["copy_rate_limit"]
        if any(row["copy_rate"] > limit for row in curve):
            shutil.rmtree(work / "stopped", ignore_errors=True)  # the bundle would go on with what is there
            stopped = KINDS[kind](settings, given, work / "stopped", limit)
            within = [row["epoch"] for row in stopped if row["copy_rate"] <= limit]
            result["stopped"] = {"epoch": stopped[-1]["epoch"], "kept_epoch": within[-1] if within else None}
            result["stopped"] |= {"same_curve": stopped == curve[: len(stopped)]}
            result["stopped"] |= {"kept": (work / "stopped" / KEPT).is_file()}
        result["seconds"] = whole["seconds"] + round(time.perf_counter() - start)
        write_text(file, json.dumps(result, indent=1) + "\n")
        print(f"{kind}: {result['seconds']} s, stopped: {result['stopped']}", flush=True)


def first_run(kind: str, identity: dict[str, Any], given: dict[str, Any], work: Path) -> dict[str, Any]:
    """Train to the end, or return what an earlier call of the same code, seed and settings kept: curve and seconds.

    Args:
        kind: one of KINDS.
        identity: what has to be the same.
        given: sets, encoder and numbers for the handler.
        work: folder of this kind; another run's is emptied.
    """
    file = work / "whole.json"
    kept: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if kept.pop("identity", None) == identity:
        return kept
    shutil.rmtree(work, ignore_errors=True)
    start = time.perf_counter()
    curve = KINDS[kind](identity["settings"], given, work / "whole", 1.0)
    kept = {"curve": curve, "seconds": round(time.perf_counter() - start)}
    write_text(file, json.dumps({"identity": identity} | kept) + "\n")
    return kept


def sets_and_encoder(
    training: ImageSet, options: argparse.Namespace, size: list[int] | None, n_steps: int
) -> dict[str, str]:
    """Write the sets as a generator of this size sees them, as they are for None, and train the encoder on them."""
    sets = {"training": training, "validation": read_image_set(options.validation, "validation")}
    folder = options.output_dir / ("images" if size is None else f"images_{size[0]}")
    for role, images in sets.items():
        if size is None:
            write_image_set(images, folder / f"{role}.csv")
        else:
            pixels = prepared_images(images, size, role=role).pixels.float()
            names = images.patient_ids if images.has_patients else [None] * len(images)
            items = [{"image": image, "patient_id": name} for image, name in zip(pixels, names, strict=True)]
            export_images(items, folder / role, role)
    seen = read_image_set(folder / "training.csv", "training")
    encoder = folder / "encoder" / "model.pt"
    if not encoder.is_file():
        prepared = read_prepared(seen, choose_preparation(seen))
        save_encoder(train_encoder(prepared, n_steps, options.seed, choose_device("auto")), encoder)
    return {role: str(folder / f"{role}.csv") for role in sets} | {"encoder": str(encoder)}


def draw(figure: Figure, results: list[dict[str, Any]]) -> None:
    """Draw a column for each kind: copies, memorized images, Frechet distance and validation loss against epochs."""
    for column, panels in zip(results, figure.subplots(4, len(results), sharex="col", squeeze=False).T, strict=True):
        curve, n_images, n_training = column["curve"], column["settings"]["n_images"], column["n_training"]
        epochs = [row["epoch"] for row in curve]
        shares = (("copies", "n_copies", n_images), ("memorized", "n_mem", n_training))
        for axes, (label, name, n) in zip(panels[:2], shares, strict=True):
            axes.plot(epochs, [100 * row[name] / n for row in curve], "o-", ms=3, label="calibrated")
            axes.plot(epochs, [100 * row[f"paper_{name}"] / n for row in curve], "s--", ms=3, label="paper")
            axes.set(ylabel=f"{label} (%)", ylim=(0, None))
        panels[0].set_title(TITLES[column["kind"]])
        panels[2].plot(epochs, [row["frechet_distance"] for row in curve], "o-", ms=3, label="drawn")
        panels[2].plot(epochs, [row["frechet_distance_real"] for row in curve], ":", color="0.4", label="real")
        panels[2].set_ylabel("Fréchet distance")
        panels[3].plot(epochs, [row["validation_loss"] for row in curve], "o-", ms=3)
        # of an untrained model it is so large that what comes later would lie on one line
        panels[3].set(ylabel="validation loss", xlabel="epoch", yscale="log")
        if column["stopped"]:
            for axes in panels:
                axes.axvline(column["stopped"]["epoch"], color="C3", lw=1, label="stopped")
                if column["stopped"]["kept_epoch"] is not None:
                    axes.axvline(column["stopped"]["kept_epoch"], color="C2", lw=1, label="kept")
        panels[0].legend(frameon=False, fontsize="small")
        panels[2].legend(frameon=False, fontsize="small")


if __name__ == "__main__":
    main()
