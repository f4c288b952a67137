# SPDX-License-Identifier: Apache-2.0
"""How many denoising steps it takes: speed, copies and memorized images against DDPM with every step of the training.

The same latent diffusion model draws by the solver that is the default, and by DDIM, with some numbers of steps each,
and by DDPM (Ho et al. 2020) with its 1,000 steps. Each set is audited with one encoder.

    python benchmarks/sampling_steps.py inference.json quick.yaml --set model_dir=MODELS --training T.csv \
        --validation V.csv [--reconstructed-validation DIR] --encoder model.pt --output OUT.json [--n 500]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.inferers import DiffusionInferer
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, Scheduler
from overhead import commit, machine
from torch import Tensor, nn

from monai_memorization.auditing import audit
from monai_memorization.files import write_text
from monai_memorization.generation.draws import SamplerDraw
from monai_memorization.generation.latents import decode
from monai_memorization.generation.sampling import LatentDiffusionSampler, Sampler, noise
from monai_memorization.generation.solver import DPMSolverScheduler

SOLVER_STEPS = (10, 20, 25, 50)
DDIM_STEPS = (20, 50, 1000)
KEPT = ("n_copies", "expected_false_copies", "copy_rate", "copy_rate_ci", "n_mem", "mem_rate", "n_partial")


class DDPMSampler:
    """Draw with every step of the training's noise schedule, and new noise in each.

    Args:
        autoencoder: decodes.
        network: the diffusion model, with its scale factor.
        scheduler: of the training.
        latent_shape: (C, *latent).
    """

    def __init__(
        self, autoencoder: nn.Module, network: nn.Module, scheduler: DDPMScheduler, latent_shape: list[int]
    ) -> None:
        self.autoencoder, self.network, self.scheduler = autoencoder, network, scheduler
        self.latent_shape = latent_shape
        scheduler.set_timesteps(scheduler.num_train_timesteps)

    def __call__(self, seeds: range) -> Tensor:
        """Draw one image per seed; another batch gives other images."""
        torch.manual_seed(seeds[0])
        latents = DiffusionInferer(self.scheduler).sample(
            noise(seeds, self.latent_shape), self.network, self.scheduler, verbose=False
        )
        return decode(self.autoencoder, latents / self.network.scale_factor)  # type: ignore[operator]


def main(arguments: list[str] | None = None) -> None:
    """Draw and audit; the JSON is written anew after each set."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE")
    for name in ("training", "validation", "encoder", "output"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--reconstructed-validation", type=Path)
    parser.add_argument("--n", type=int, default=500, help="images in each set")
    parser.add_argument("--solver-steps", type=int, nargs="+", default=SOLVER_STEPS)
    parser.add_argument("--ddim-steps", type=int, nargs="+", default=DDIM_STEPS)
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {"commit": commit(), "machine": machine(), "n": options.n, "sets": {}}
    with tempfile.TemporaryDirectory() as folder:
        for name, sampler in samplers(options).items():
            drawn = Path(folder) / name.replace(" ", "_")
            seconds = drawing_seconds(SamplerDraw(sampler, 100), options.n, drawn)
            row = audited(options, drawn, Path(folder) / "audit")
            result["sets"][name] = {"images_per_cpu_second": float(f"{options.n / seconds:.4g}")} | row
            write_text(options.output, json.dumps(result, indent=1) + "\n")
            print(name, result["sets"][name], flush=True)


def samplers(options: argparse.Namespace) -> dict[str, Sampler]:
    """Return the solver and DDIM with each number of steps, and DDPM, on the model that the config names."""
    config = ConfigParser()
    config.read_config(options.configs)
    config.update(dict(pair.split("=", 1) for pair in options.set))
    network, autoencoder = (config.get_parsed_content(name).eval() for name in ("network", "autoencoder"))
    shape = config.get_parsed_content("latent_shape")
    schedule = {name: value for name, value in config["scheduler"].items() if name != "_target_"}

    def sampler(scheduler: Scheduler, n_steps: int) -> LatentDiffusionSampler:
        way = LatentDiffusionSampler(autoencoder, network, scheduler, shape, network.scale_factor, n_steps)
        way.inferer.scheduler = scheduler  # which a sampler gives to the solver
        return way

    ways: dict[str, Sampler] = {
        f"solver {n} steps": sampler(DPMSolverScheduler(**schedule), n) for n in options.solver_steps
    }
    ways |= {f"DDIM {n} steps": sampler(DDIMScheduler(**schedule), n) for n in options.ddim_steps}
    return ways | {"DDPM": DDPMSampler(autoencoder, network, DDPMScheduler(**schedule), shape)}


def drawing_seconds(draw: Callable[[range, Path], None], n: int, folder: Path) -> float:
    """Draw into a folder, and return the CPU time."""
    folder.mkdir()
    start = time.process_time()
    draw(range(n), folder)
    return time.process_time() - start


def audited(options: argparse.Namespace, drawn: Path, folder: Path) -> dict[str, Any]:
    """Return what an audit of the images counts."""
    report = audit(
        options.training,
        options.validation,
        drawn,
        folder,
        encoder=options.encoder,
        reconstructed_validation=options.reconstructed_validation,
        cache_dir=folder.with_name("cache"),
        fidelity=True,
    )
    paper = {f"paper_{name}": report["paper_protocol"][name] for name in ("n_mem", "n_copies")}
    distance = {"frechet_distance": report["fidelity"]["frechet_distance"]}
    return {name: report["calibrated"][name] for name in KEPT} | paper | distance


if __name__ == "__main__":
    main()
