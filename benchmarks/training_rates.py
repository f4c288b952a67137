# SPDX-License-Identifier: Apache-2.0
"""What the ways of training are worth: views made in the batch, latents encoded once, the autoencoder's trainer.

Views: those of the encoder, against the same chain of MONAI's dictionary transforms taken image by image; images per
second of the views alone, and of whole training steps. Latents: steps per second of the diffusion stage as the bundle
runs it, against a step that encodes its images first. The ceiling is what is won if nothing else takes time: (encoding
and a bare step) / bare step. Autoencoder: seconds of a step of the bundle against one of a plain loop over the same
parts of MONAI, adversary included. CPU time of one thread, and of both in turn, so that other work on the machine
disturbs little.

    python benchmarks/training_rates.py --films T.csv --volumes T.csv --output OUT.json [--tiny]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.data import DataLoader
from monai.losses import PatchAdversarialLoss
from monai.transforms import (
    Compose,
    RandAdjustContrastd,
    RandAffined,
    RandBiasFieldd,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandScaleIntensityFixedMeand,
    ScaleIntensityd,
)
from overhead import TINY, commit, machine
from torch import Tensor, nn
from trainings import bundle_workflow, choose_training

from monai_memorization.detector.contrastive import MixedPrecisionInferer, nt_xent
from monai_memorization.detector.encoder import ContrastiveEncoder
from monai_memorization.detector.views import Views
from monai_memorization.files import write_text
from monai_memorization.generation.autoencoding import kl_divergence
from monai_memorization.images.sets import read_image_set, write_image_set

N_TRAINING = 32
BATCH = 64
SIZES = {"64x64": (64, 64), "32x48x32": (32, 48, 32)}
LARGEST = "3D, default networks, 32x48x32"  # its autoencoder is left out: ten minutes
N_UNCOUNTED = 2  # first steps of a run
Case = dict[str, Any]
CASES: dict[str, Case] = {
    "2D, quick recipe": {"bundle": "latent_diffusion_2d", "recipe": ["quick.yaml"]},
    "2D, default networks, 64x64": {
        "bundle": "latent_diffusion_2d",
        "common": {"image_size": [64, 64], "diffusion_batch_size": 8},
    },
    "3D, quick recipe": {"bundle": "latent_diffusion_3d", "recipe": ["quick.yaml", "data/hippocampus.yaml"]},
    LARGEST: {
        "bundle": "latent_diffusion_3d",
        "common": {"image_size": [32, 48, 32], "diffusion_batch_size": 4},
    },
}
TINY_CASES: dict[str, Case] = {"tiny": {"bundle": "latent_diffusion_2d", "recipe": ["quick.yaml"], "common": TINY}}


class StepClock:
    """Handler that notes how long each step takes, and in turn with it calls what the step is compared with.

    In turn, as other work on the machine changes in minutes how long the same step takes.
    """

    compared: ClassVar[dict[str, Callable[[], Any]]] = {}
    times: ClassVar[dict[str, list[float]]] = {}

    def attach(self, engine: Engine) -> None:
        """Forget an earlier run, and listen."""
        type(self).times = {name: [] for name in ("bundle", *self.compared)}
        engine.add_event_handler(Events.STARTED, lambda _: self._start())
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: self._note())

    def _start(self) -> None:
        self.started = time.process_time()

    def _note(self) -> None:
        self.times["bundle"].append(time.process_time() - self.started)
        for name, function in self.compared.items():
            self.times[name].append(cpu_seconds(function))
        self._start()


def main(arguments: list[str] | None = None) -> None:
    """Measure case by case; the JSON is written anew after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=Path, required=True, help="training images, 2D")
    parser.add_argument("--volumes", type=Path, required=True, help="training images, 3D")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="sizes that show that it runs, and nothing else")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    result: Case = {"commit": commit(), "machine": machine(), "threads": torch.get_num_threads()}
    result |= {"views": {}, "latents": {}, "autoencoder": {}}
    for name, size in {"16x16": (16, 16)}.items() if options.tiny else SIZES.items():
        result["views"][name] = rates_of_views(size, 4 if options.tiny else BATCH)
        write_text(options.output, json.dumps(result, indent=1) + "\n")
    for name, case in TINY_CASES.items() if options.tiny else CASES.items():
        source = options.volumes if "3d" in case["bundle"] else options.films
        with tempfile.TemporaryDirectory() as folder:
            n_steps = 6 if options.tiny else 12 if "default" in name else 30
            result["latents"][name] = rates_of_latents(case, source, Path(folder), n_steps)
            if name != LARGEST:
                result["autoencoder"][name] = times_of_autoencoder(case, source, Path(folder), n_steps)
        write_text(options.output, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def rates_of_views(size: tuple[int, ...], n: int) -> Case:
    """Images per second of both ways, alone and within a training step, and how many times faster the batch is."""
    images, views, transform = torch.rand(n, 1, *size), Views(), dictionary_transforms(Views(), size)
    encoder = ContrastiveEncoder(size)
    if len(size) == 2:  # as ContrastiveTrainer lays it out
        encoder = encoder.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(encoder.parameters())
    called = partial(MixedPrecisionInferer(), network=encoder)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "batch": views,
        "item_by_item": lambda batch: torch.stack([transform({"image": image})["image"] for image in batch]),
    }
    compared = {
        "views": {way: partial(make, images) for way, make in ways.items()},
        "training": {way: partial(train_step, called, optimizer, images, make) for way, make in ways.items()},
    }
    rates = {}
    for name, functions in compared.items():
        times = seconds_in_turn(functions)
        rates[name] = {way: rounded(n / duration) for way, duration in times.items()}
        rates[name]["times_faster"] = rounded(times["item_by_item"] / times["batch"])
    return rates


def dictionary_transforms(views: Views, size: tuple[int, ...]) -> Compose:
    """Return MONAI's transforms of the same kinds and strengths, for one image at a time."""
    keys, sides, d = ["image"], min(size), len(size)
    gain = views.gain - 1
    return Compose(
        [
            *(RandFlipd(keys, prob=views.flip_rate, spatial_axis=axis) for axis in range(d)),
            RandAffined(
                keys,
                prob=1.0,
                rotate_range=[math.radians(views.angle)] * (d * (d - 1) // 2),
                translate_range=[views.shift * sides] * d,
                scale_range=[views.zoom - 1] * d,
                padding_mode="border",
            ),
            RandAdjustContrastd(keys, prob=1.0, gamma=(1 / views.gamma, views.gamma)),
            RandScaleIntensityFixedMeand(keys, prob=1.0, factors=gain),
            RandScaleIntensityd(keys, prob=1.0, factors=gain),
            RandBiasFieldd(keys, prob=1.0, degree=2, coeff_range=(0.0, views.bias)),
            RandGaussianSmoothd(keys, prob=1.0, **{f"sigma_{axis}": (0.01, views.blur * sides) for axis in "xyz"[:d]}),
            RandGaussianNoised(keys, prob=1.0, std=views.noise),
            ScaleIntensityd(keys),
        ]
    )


def train_step(
    encoder: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    views: Callable[[Tensor], Tensor],
) -> None:
    """Take one step, as the encoder's training does."""
    first, second = encoder(torch.cat([images, torch.as_tensor(views(images))])).chunk(2)
    optimizer.zero_grad()
    nt_xent(first, second, 0.1).backward()
    optimizer.step()


def rates_of_latents(case: Case, source: Path, folder: Path, n_steps: int) -> Case:
    """Seconds of a step in the bundle, of a bare step and of the encoding of its batch, and what caching is worth."""
    # values do not change how long it takes
    weights = folder / "autoencoder.pt"
    torch.save(parse("train_autoencoder", case)("autoencoder_def").state_dict(), weights)
    given = {"training": write_training_list(source, folder), "autoencoder_weights": str(weights), "seed": 0}
    parser = parse("train_diffusion", case | {"common": case.get("common", {}) | given})
    network, autoencoder, scheduler = (parser(name) for name in ("network_def", "autoencoder", "scheduler"))
    batch_size, size = parser("diffusion_batch_size"), parser("image_size")
    batch = torch.rand(batch_size, 1, *size)
    latents = encode(autoencoder, batch)
    optimizer = torch.optim.AdamW(network.parameters())
    compared = {
        "bare": partial(denoising_step, network, optimizer, scheduler, latents),
        "encoding": partial(encode, autoencoder, batch),
    }
    of_steps = given | {"diffusion_steps": n_steps}
    in_bundle, step, encoding = steps_in_turn("train_diffusion", case, folder, compared, **of_steps).values()
    won = {"ceiling": (encoding + step) / step, "reached": (encoding + step) / in_bundle}
    won["share_of_ceiling"] = won["reached"] / won["ceiling"]
    times = {"bundle_step": in_bundle, "bare_step": step, "encoding": encoding}
    return {"batch_size": batch_size, "seconds": {name: rounded(value) for name, value in times.items()}} | {
        name: rounded(value) for name, value in won.items()
    }


def times_of_autoencoder(case: Case, source: Path, folder: Path, n_steps: int) -> Case:
    """Seconds of a step of the autoencoder in the bundle and in a plain loop, both with the discriminator."""
    given = {"training": write_training_list(source, folder), "seed": 0, "adversarial_warmup": 0}
    parser = parse("train_autoencoder", case | {"common": case.get("common", {}) | given})
    autoencoder, discriminator = parser("autoencoder_def"), parser("discriminator_def")
    optimizers = [torch.optim.Adam(network.parameters()) for network in (autoencoder, discriminator)]
    batches = DataLoader(
        parser("train#dataset"), batch_size=parser("autoencoder_batch_size"), shuffle=True, drop_last=True
    )
    weights = [parser(f"{name}_weight") for name in ("kl", "feature", "adversarial")]
    losses = parser("feature_loss"), PatchAdversarialLoss(criterion="least_squares")
    endless = chain.from_iterable(repeat(batches))
    step = partial(adversarial_step, autoencoder, discriminator, optimizers, losses, weights)
    compared = {"plain": lambda: step(next(endless)["image"])}
    of_steps = given | {"autoencoder_steps": n_steps}
    in_bundle, plain = steps_in_turn("train_autoencoder", case, folder, compared, **of_steps).values()
    return {"bundle": rounded(in_bundle), "plain_loop": rounded(plain), "ratio": rounded(in_bundle / plain)}


def adversarial_step(
    autoencoder: nn.Module,
    discriminator: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    losses: tuple[nn.Module, PatchAdversarialLoss],
    weights: Sequence[float],
    images: Tensor,
) -> None:
    """Take one step of both networks, as a user of MONAI writes it."""
    feature_loss, adversarial_loss = losses
    optimizers[0].zero_grad()
    reconstruction, mu, sigma = autoencoder(images)
    parts = (
        kl_divergence(mu, sigma),
        feature_loss(reconstruction, images),
        adversarial_loss(discriminator(reconstruction)[-1], target_is_real=True, for_discriminator=False),
    )
    loss = F.l1_loss(reconstruction, images) + sum(w * part for w, part in zip(weights, parts, strict=True))
    loss.backward()
    optimizers[0].step()
    optimizers[1].zero_grad()
    judged = [
        adversarial_loss(discriminator(x.detach())[-1], target_is_real=is_real, for_discriminator=True)
        for x, is_real in ((reconstruction, False), (images, True))
    ]
    (sum(judged) / 2).backward()
    optimizers[1].step()


def write_training_list(source: Path, folder: Path) -> str:
    """Write the list of the images that are trained on, and return where it is."""
    images = choose_training(read_image_set(source, "training"), N_TRAINING, 0)
    write_image_set(images, folder / "training.csv")
    return str(folder / "training.csv")


def steps_in_turn(
    name: str, case: Case, folder: Path, compared: Mapping[str, Callable[[], Any]], **given: Any
) -> dict[str, float]:
    """Return the median seconds of a step as the bundle runs it, under ``bundle``, and of what it is compared with."""
    (folder / "clock.json").write_text(json.dumps({"+train#handlers": [{"_target_": f"{__name__}.StepClock"}]}))
    StepClock.compared = dict(compared)
    settings = case | {"recipe": [*case.get("recipe", []), str(folder / "clock.json")]}
    workflow = bundle_workflow(name, settings, **given | {"output_dir": str(folder / name)})
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return {name: statistics.median(times[N_UNCOUNTED:]) for name, times in StepClock.times.items()}


def parse(name: str, case: Case) -> Callable[[str], Any]:
    """Return what gives the parts of a config of the bundle by their names."""
    parser: ConfigParser = bundle_workflow(name, case).parser
    return parser.get_parsed_content


def encode(autoencoder: nn.Module, images: Tensor) -> Tensor:
    """Encode a batch, as training without a cache does in each step."""
    with torch.no_grad():
        return autoencoder.encode_stage_2_inputs(images)  # type: ignore[operator, no-any-return]


def denoising_step(network: nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, latents: Tensor) -> None:
    """Take one step on the velocity, without loader, engine or averaging."""
    noise = torch.randn_like(latents)
    timesteps = torch.randint(scheduler.num_train_timesteps, (len(latents),))
    predicted = network(scheduler.add_noise(latents, noise, timesteps), timesteps)
    loss = F.mse_loss(predicted, scheduler.get_velocity(latents, noise, timesteps))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def seconds(function: Callable[[], Any], repeats: int = 7) -> float:
    """Return the median CPU time of a call, after one that is not counted."""
    return seconds_in_turn({"": function}, repeats)[""]


def seconds_in_turn(functions: Mapping[str, Callable[[], Any]], repeats: int = 7) -> dict[str, float]:
    """Return the median CPU time of a call of each function, called in turn, after one call that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(1 + repeats):
        for name, function in functions.items():
            times[name].append(cpu_seconds(function))
    return {name: statistics.median(of_one[1:]) for name, of_one in times.items()}


def cpu_seconds(function: Callable[[], Any]) -> float:
    """Return the CPU time of a call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def rounded(value: float) -> float:
    """Keep four digits."""
    return float(f"{value:.4g}")


if __name__ == "__main__":
    main()
