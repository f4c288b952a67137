# SPDX-License-Identifier: Apache-2.0
"""What an audit costs: constants of this machine, tried on other sizes, and from them an audit of a million images.

Steps on pairs cost operations over a rate, and beside them something for each image, as rows are standardized and
looked at; both are measured at two sizes and have to hold at others. Steps on images cost seconds each. CPU time of one
thread. All of it is divided among processes (docs/scaling.md), so that the time of n processes with a core each is an
n-th. For GPUs give their rate of float32 products, as `gpu.py` measures it, and how many cores read and register for
each.

    python benchmarks/costs.py --output costs.json [--images 1000000] [--gpu-tflops 20 --cores-of-gpu 16] [--tiny]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from overhead import commit, machine
from scipy.optimize import nnls
from torch import Tensor
from training_rates import cpu_seconds, rounded

from monai_memorization.detector.candidates import N_CANDIDATES, nearest_patients
from monai_memorization.detector.embeddings import Embeddings, embed
from monai_memorization.detector.encoder import ContrastiveEncoder
from monai_memorization.detector.near_identical import flips, near_identical
from monai_memorization.detector.regions import PLACES, regional_excess
from monai_memorization.detector.registration import agreement
from monai_memorization.files import write_text
from monai_memorization.images.cohort import write_cohort
from monai_memorization.images.contents import hash_contents
from monai_memorization.images.preparation import Preparation
from monai_memorization.images.sets import ImageSet, read_image_set

SIDE, D, E = 32, 128, 256
F = (SIDE // 2) ** 2
N_WINDOWS = PLACES**2
N_PROCESSES = (1, 8, 64)


@dataclass(frozen=True)
class Size:
    """How many training and synthetic images, and how long an embedding is."""

    n_training: int
    n_synthetic: int
    d: int = D

    def __str__(self) -> str:
        return f"{self.n_training} x {self.n_synthetic}, {self.d}"


FITTED = (Size(2_500, 2_500), Size(10_000, 10_000))
OTHERS = (
    Size(5_000, 5_000),
    Size(5_000, 20_000),
    Size(20_000, 20_000),
    Size(5_000, 5_000, 64),
    Size(5_000, 5_000, 512),
)
# floating point operations of one pair of images
OPERATIONS: dict[str, Callable[[Size], int]] = {
    "search": lambda size: 2 * size.d,
    "windows": lambda _: 2 * F * N_WINDOWS,
    "near-identical": lambda _: 2 * E * len(flips(2)),
}
# how often a step looks through all pairs: the search for candidates and for both counts of the paper protocol, the
# near-identical check within T too; V is small beside T and S
TIMES = {"search": 3, "windows": 1, "near-identical": 2}


def main(arguments: list[str] | None = None) -> None:
    """Measure the constants, try them, and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--images", type=int, default=1_000_000, help="of T, and of S")
    parser.add_argument("--gpu-tflops", type=float, help="float32 products of a GPU, 1e12 operations a second")
    parser.add_argument("--cores-of-gpu", type=int, default=16)
    parser.add_argument("--tiny", action="store_true", help="sizes that show that it runs, and nothing else")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    fitted, others = ((Size(200, 200), Size(400, 400)), (Size(400, 300),)) if options.tiny else (FITTED, OTHERS)
    costs = fit(fitted)
    result: dict[str, Any] = {"commit": commit(), "machine": machine(), "fitted": [str(size) for size in fitted]}
    result["gflops"] = {step: cost.gflops and rounded(cost.gflops) for step, cost in costs.items()}
    result["milliseconds of an image in a step on pairs"] = {
        step: rounded(1e3 * cost.of_image) for step, cost in costs.items()
    }
    result["predicted over measured"] = {
        str(size): {step: rounded(costs[step](step, size) / s) for step, s in seconds_of_pairs(size).items()}
        for size in others
    }
    each = seconds_of_images(20 if options.tiny else 64, (64, 64) if options.tiny else (512, 512))
    result["milliseconds of an image"] = {step: rounded(1e3 * seconds) for step, seconds in each.items()}
    result["hours"] = {f"{n} cores": hours(options.images, each, costs, n, n) for n in N_PROCESSES}
    if options.gpu_tflops:
        of_gpu = dict.fromkeys(costs, Cost(1e-12 / options.gpu_tflops, 0.0))
        result["gpu"] = {"tflops": options.gpu_tflops, "cores": options.cores_of_gpu}
        result["hours"] |= {
            f"{n} GPUs": hours(options.images, each, of_gpu, n, n * options.cores_of_gpu) for n in N_PROCESSES
        }
    write_text(options.output, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


@dataclass(frozen=True)
class Cost:
    """What a step on pairs takes: seconds of an operation, and of an image beside them."""

    of_operation: float
    of_image: float

    def __call__(self, step: str, size: Size) -> float:
        """Return the seconds of a step at this size."""
        operations = OPERATIONS[step](size) * pairs(size)
        return operations * self.of_operation + (size.n_training + size.n_synthetic) * self.of_image

    @property
    def gflops(self) -> float | None:
        """Operations a second, 1e9, where they take any time."""
        return 1e-9 / self.of_operation if self.of_operation else None


def fit(sizes: Sequence[Size]) -> dict[str, Cost]:
    """Measure what each step on pairs costs: medians of three calls at each of two sizes, by least squares."""
    measured = [[seconds_of_pairs(size) for _ in range(3)] for size in sizes]
    costs = {}
    for step in OPERATIONS:
        seconds = [median(call[step] for call in calls) for calls in measured]
        parts = [[1e-9 * OPERATIONS[step](size) * pairs(size), size.n_training + size.n_synthetic] for size in sizes]
        of_operation, of_image = nnls(parts, seconds)[0]
        costs[step] = Cost(1e-9 * float(of_operation), float(of_image))
    return costs


def pairs(size: Size) -> int:
    """Return how many pairs of a training and a synthetic image there are."""
    return size.n_training * size.n_synthetic


def seconds_of_pairs(size: Size) -> dict[str, float]:
    """Time the steps that compare all pairs; nothing is alike, so that nothing is looked at twice."""
    generator = torch.Generator().manual_seed(0)
    training, synthetic = (random_embeddings(n, size.d, generator) for n in (size.n_training, size.n_synthetic))
    patients = training.images.patient_ids
    preparation = Preparation((64, 64))
    return {
        "search": cpu_seconds(lambda: nearest_patients(synthetic.vectors, training.vectors, patients)),
        "windows": cpu_seconds(
            lambda: regional_excess(synthetic.structure, training.structure, patients, N_CANDIDATES)
        ),
        "near-identical": cpu_seconds(lambda: near_identical(synthetic, training, preparation)),
    }


def random_embeddings(n: int, d: int, generator: torch.Generator) -> Embeddings:
    """Make up what is kept of n images."""
    names = tuple(map(str, range(n)))
    images = ImageSet("training", names, tuple(map(Path, names)), names, None, False)
    kept = (torch.randn(n, *shape, generator=generator) for shape in ((d,), (E,), (1, SIDE, SIDE)))
    vectors, thumbnails, structure = kept
    return Embeddings(images, vectors, thumbnails, structure.half(), names)


def seconds_of_images(n: int, image_size: tuple[int, int]) -> dict[str, float]:
    """Time the steps that look at one image after the other, on files of this size; seconds of one image."""
    with tempfile.TemporaryDirectory() as folder:
        write_cohort(Path(folder), n_training=n, n_validation=1, image_size=image_size)
        images = read_image_set(Path(folder) / "training.csv", "training")
        encoder = ContrastiveEncoder((64, 64)).eval()
        embedded = embed(encoder, images.subset(range(2)), workers=0)  # what is loaded at the first call
        seconds = {
            "hash": cpu_seconds(lambda: hash_contents(images.paths)),
            "read and embed": cpu_seconds(lambda: embed(encoder, images, workers=0)),
        }
    structure: Tensor = embedded.structure.float()[torch.arange(n) % 2]
    candidates = structure[:, None].expand(-1, N_CANDIDATES, -1, -1, -1)
    batches = list(zip(structure.split(64), candidates.split(64), strict=True))
    seconds["register"] = cpu_seconds(lambda: [agreement(*batch) for batch in batches])
    return {step: value / n for step, value in seconds.items()}


def hours(
    n: int, each: Mapping[str, float], costs: Mapping[str, Cost], n_processes: int, n_cores: int
) -> dict[str, float]:
    """Return the hours of each step of an audit of n synthetic against n training images.

    Args:
        n: images of T, and of S.
        each: seconds of an image, on one core.
        costs: of the steps on pairs, in one process.
        n_processes: among which those are divided.
        n_cores: among which the steps on images are divided.
    """
    n_images = {"hash": 2 * n, "read and embed": 2 * n, "register": n}  # T is not registered
    steps = {step: n_images[step] * seconds / n_cores for step, seconds in each.items()}
    steps |= {step: TIMES[step] * cost(step, Size(n, n)) / n_processes for step, cost in costs.items()}
    return {step: rounded(seconds / 3600) for step, seconds in steps.items()}


if __name__ == "__main__":
    main()
