# SPDX-License-Identifier: Apache-2.0
r"""What watching a training costs: the diffusion stage of the 2D bundle with and without the fragment, as they are.

    python benchmarks/overhead.py --training T.csv --validation V.csv --output overhead.json \
        [--n-training 256] [--autoencoder autoencoder.pt] [--encoder model.pt] [--tiny]

The autoencoder is trained first, and the encoder, which is timed by itself: a later audit needs it too, and a run that
is started again keeps it. Within the watched run the start (real images read and embedded) and each check are timed, so
that the share does not rest on the difference of two long runs on a machine that others use. CPU time is given beside
wall time for the same reason. The weights of both runs have to be the same to the bit.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from ignite.engine import Engine
from simulation import hardware
from trainings import choose_training, run_bundle

from monai_memorization.detector.encoder import save_encoder
from monai_memorization.detector.encoder_training import obtain_encoder, train_encoder
from monai_memorization.files import write_text
from monai_memorization.handlers import MemorizationHandler
from monai_memorization.images.preparation import choose_preparation
from monai_memorization.images.prepared import read_prepared
from monai_memorization.images.sets import read_image_set, write_image_set

SETTINGS: dict[str, Any] = {"bundle": "latent_diffusion_2d", "recipe": ["quick.yaml"]}
FRAGMENT = "mitigation/early_stopping.yaml"  # the fragment of the audit bundle, a test says so
TINY = {
    "image_size": [32, 32],
    "autoencoder_channels": [8, 8],
    "autoencoder_norm_groups": 2,
    "autoencoder_steps": 1,
    "diffusion_channels": [8, 16],
    "diffusion_norm_groups": 2,
    "diffusion_attention": [False, True],
    "diffusion_head_channels": 8,
    "diffusion_steps": 4,
}
TINY_WATCH = {"memorization#handlers#0#n_images": 4, "memorization#sampler#n_steps": 2}
Seconds = dict[str, float]


class TimedHandler(MemorizationHandler):
    """The handler, with a clock at its start and at each check."""

    start_seconds: ClassVar[Seconds] = {}
    checks: ClassVar[list[Seconds]] = []

    def start(self, engine: Engine) -> None:
        """Time the start, in which nothing has been checked yet."""
        type(self).checks = []
        with timed() as seconds:
            super().start(engine)
        type(self).start_seconds = seconds

    def __call__(self, engine: Engine) -> None:
        """Time a check; a call between two checks returns at once."""
        with timed() as seconds:
            super().__call__(engine)
        if engine.state.epoch == 1 or engine.state.epoch % self.interval == 0:
            self.checks.append(seconds)


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--n-training", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--autoencoder", type=Path, help="weights that an earlier run left, in place of training it")
    parser.add_argument("--encoder", type=Path, help="the same of the encoder; its training is then not timed")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="sizes that show that it runs, and nothing else")
    options = parser.parse_args(arguments)
    result = {"commit": commit(), "machine": machine(), "seed": options.seed, "settings": SETTINGS}
    with tempfile.TemporaryDirectory() as folder:
        result |= measure(options, Path(folder))
    write_text(options.output, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["share_of_run"], indent=1))


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """Train the autoencoder, then the diffusion model twice."""
    images = choose_training(read_image_set(options.training, "training"), options.n_training, options.seed)
    write_image_set(images, work / "training.csv")
    settings = SETTINGS | {"common": TINY if options.tiny else {}}
    given = {"training": str(work / "training.csv"), "seed": options.seed}
    weights = {"autoencoder_weights": str(options.autoencoder or work / "autoencoder" / "autoencoder.pt")}
    seconds: dict[str, Any] = {}
    if options.autoencoder is None:
        run_bundle("train_autoencoder", settings, output_dir=str(work / "autoencoder"), **given)
    with timed() as seconds["alone"]:
        run_bundle("train_diffusion", settings, output_dir=str(work / "alone"), **given, **weights)
    encoder = options.encoder or work / "encoder" / "model.pt"
    if options.encoder is None:
        with timed() as seconds["encoder"]:
            if options.tiny:
                save_encoder(train_encoder(read_prepared(images, choose_preparation(images)), 2), encoder)
            else:
                obtain_encoder(None, images, encoder.parent, options.seed)
    watch: dict[str, Any] = {"validation": str(options.validation), "copy_rate_limit": 1}
    watch |= {"memorization#handlers#0#encoder": str(encoder), **(TINY_WATCH if options.tiny else {})}
    watch["memorization#handlers#0#_target_"] = f"{__name__}.TimedHandler"
    watched = settings | {"recipe": [*SETTINGS["recipe"], FRAGMENT]}
    with timed() as seconds["watched"]:
        run_bundle("train_diffusion", watched, output_dir=str(work / "watched"), **given, **weights, **watch)
    seconds["start"], seconds["checks"] = TimedHandler.start_seconds, TimedHandler.checks
    shares = {clock: shares_of_run(seconds, clock) for clock in ("wall", "cpu")}
    return {"n_training": len(images), "seconds": seconds, "same_weights": same(work), "share_of_run": shares}


def shares_of_run(seconds: dict[str, Any], clock: str) -> dict[str, float]:
    """Return shares of the time that the run takes alone: of the checks, of start and checks, and with the encoder.

    The last only where the encoder was trained.
    """
    checks = sum(check[clock] for check in seconds["checks"])
    parts = {"checks": checks, "start_and_checks": checks + seconds["start"][clock]}
    if "encoder" in seconds:
        parts["with_encoder_training"] = parts["start_and_checks"] + seconds["encoder"][clock]
    parts["difference_of_runs"] = seconds["watched"][clock] - seconds["alone"][clock]
    return {name: round(part / seconds["alone"][clock], 4) for name, part in parts.items()}


def same(work: Path) -> bool:
    """Say whether both runs ended with the same weights, to the bit."""
    one, other = (torch.load(work / run / "model.pt", weights_only=True) for run in ("alone", "watched"))
    return all(torch.equal(value, other[name]) for name, value in one.items())


@contextmanager
def timed() -> Iterator[Seconds]:
    """Give a dict that holds wall and CPU seconds once the block is left, those of processes that ended included."""
    clocks: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": lambda: sum(os.times()[:4])}
    seconds: Seconds = {}
    start = {name: clock() for name, clock in clocks.items()}
    yield seconds
    seconds |= {name: round(clock() - start[name], 3) for name, clock in clocks.items()}


def machine() -> dict[str, Any]:
    """Say what it was measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return hardware() | {"gpu": gpu, "cores": os.cpu_count(), "load": os.getloadavg()}


def commit() -> str:
    """Name the code: the commit, and whether it was changed."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
