# SPDX-License-Identifier: Apache-2.0
"""The study: train the same generator in many ways, audit each, and show copies beside fidelity.

    python benchmarks/study.py run GRID.yaml --training T.csv --validation V.csv --output-dir OUT [--only CELL ...]
    python benchmarks/study.py figure OUT --output FIGURE.svg

A cell of the grid changes the settings above it; each is run with each seed, which also chooses the training patients.
A run leaves one JSON, OUT/<cell>_<seed>.json, and is not repeated while that is there, so that a study goes on where
it was stopped. V is the same in all runs. For the size of a GPU leave ``recipe`` and the steps of the grid out: the
defaults of the bundles then hold.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import time
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import matplotlib
import torch
import yaml
from monai.bundle import ConfigWorkflow

from monai_memorization.auditing import audit
from monai_memorization.detector.contrastive import train_encoder
from monai_memorization.detector.encoder import save_encoder
from monai_memorization.files import write_text
from monai_memorization.images.preparation import choose_preparation, read_prepared
from monai_memorization.images.sets import ImageSet, cap_patients, read_image_set, write_image_set

matplotlib.use("svg")
COUNTS = ("n_copies", "flagged_rate", "copy_rate", "copy_rate_ci", "copy_rate_at_power", "n_mem", "mem_rate")
PAPER = ("n_mem", "mem_rate", "n_copies", "copy_rate", "mem_rate_matched")


def main(arguments: list[str] | None = None) -> None:
    """Run the grid, or draw the figure of what has run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, dest="command")
    runner = commands.add_parser("run")
    runner.add_argument("grid", type=Path)
    runner.add_argument("--training", type=Path, required=True)
    runner.add_argument("--validation", type=Path, required=True)
    runner.add_argument("--output-dir", type=Path, required=True)
    runner.add_argument("--only", nargs="+", help="cells to run")
    drawer = commands.add_parser("figure")
    drawer.add_argument("output_dir", type=Path)
    drawer.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    if options.command == "figure":
        draw_figure(options.output_dir, options.output)
    else:
        run_grid(options)


def run_grid(options: argparse.Namespace) -> None:
    """Run what has not run yet, seed by seed, so that a study that is stopped has whole rows."""
    grid = yaml.safe_load(options.grid.read_text(encoding="utf-8"))
    cells = grid.pop("cells")
    for seed in grid.pop("seeds"):
        for name in options.only or cells:
            result = options.output_dir / f"{name}_{seed}.json"
            if not result.is_file():
                start = time.perf_counter()
                row = run_cell(merged(grid, cells[name]), seed, options)
                row = {"cell": name, "seed": seed, "seconds": round(time.perf_counter() - start)} | row
                write_text(result, json.dumps(row, indent=1) + "\n")
                print(
                    f"{name}, seed {seed}: {row['seconds']} s, copy rate {row['calibrated']['copy_rate']:.3f}",
                    flush=True,
                )


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay the changes of a cell over the settings of the grid."""
    result = dict(settings)
    for key, value in changes.items():
        result[key] = result.get(key, {}) | value if isinstance(value, dict) else value
    return result


def run_cell(settings: Mapping[str, Any], seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train, draw, reconstruct and audit; the folder of the work is kept only while it runs, encoders longer."""
    n_training = settings["n_training"]
    shared = options.output_dir / "encoders" / f"{n_training}_{seed}"
    training = shared / "training.csv"
    if not (shared / "model.pt").is_file():
        images = choose_training(read_image_set(options.training, "training"), n_training, seed)
        write_image_set(images, training)
        prepared = read_prepared(images, choose_preparation(images))
        save_encoder(train_encoder(prepared, settings["encoder_steps"], seed), shared / "model.pt")
    work = options.output_dir / "work"
    shutil.rmtree(work, ignore_errors=True)
    models = {"model_dir": str(work / "models"), "handlers": []}
    trained = {"training": str(training), "output_dir": str(work / "models"), "seed": seed}
    seconds = run_bundle("train_autoencoder", settings, **trained, **settings.get("autoencoder", {}))
    seconds += run_bundle("train_diffusion", settings, **trained, **settings.get("diffusion", {}))
    run_bundle("inference", settings, n_images=settings["n_synthetic"], output_dir=str(work / "synthetic"), **models)
    validation = str(options.validation)
    run_bundle("reconstruct", settings, validation=validation, output_dir=str(work / "reconstructed"), **models)
    report = audit(
        training,
        options.validation,
        work / "synthetic",
        work / "audit",
        encoder=shared / "model.pt",
        reconstructed_validation=work / "reconstructed",
        seed=seed,
        fidelity=True,
    )
    row = {"settings": dict(settings), "training_seconds": round(seconds), "fidelity": report["fidelity"]}
    row |= {"calibrated": {key: report["calibrated"][key] for key in COUNTS}, "verdict": report["verdict"]["status"]}
    return row | {"paper_protocol": {key: report["paper_protocol"][key] for key in PAPER}}


def choose_training(images: ImageSet, n: int, seed: int) -> ImageSet:
    """Choose the images of n patients, one of each, so that a smaller set is part of a larger one of the same seed."""
    if images.has_patients:
        images = cap_patients(images, 1, seed)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images.subset(sorted(order[:n].tolist()))


def run_bundle(name: str, settings: Mapping[str, Any], **overrides: Any) -> float:
    """Run a config of the bundle through MONAI's runner, and return how long it took, in seconds."""
    configs = files("monai_memorization.bundles") / settings["bundle"] / "configs"
    # of the levers only the network matters to the inference, and none to the autoencoder's reconstructions
    levers = settings.get("levers", [])
    if name == "train_autoencoder":
        levers = [lever for lever in levers if lever not in ("smaller_network", "regularization")]
    elif name != "train_diffusion":
        levers = [lever for lever in levers if lever == "smaller_network" and name == "inference"]
    names = [f"{name}.json", *settings.get("recipe", []), *(f"mitigation/{lever}.yaml" for lever in levers)]
    kind = "train" if name.startswith("train") else "inference"
    logging.disable(logging.WARNING)
    start = time.perf_counter()
    paths = [str(configs / one) for one in names]
    workflow = ConfigWorkflow(paths, logging_file=False, workflow_type=kind, **settings.get("common", {}) | overrides)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    logging.disable(logging.NOTSET)
    return time.perf_counter() - start


def draw_figure(folder: Path, path: Path) -> None:
    """Show the copy rate of each run with its interval, and beside it the Frechet distance to validation images."""
    from matplotlib import pyplot

    rows = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*_*.json"))]
    cells = sorted({row["cell"] for row in rows})
    figure, (left, right) = pyplot.subplots(1, 2, sharey=True, figsize=(9, 1 + 0.45 * len(cells)), layout="constrained")
    for row in rows:
        calibrated, place = row["calibrated"], cells.index(row["cell"]) + 0.15 * (row["seed"] - 1)
        low, high = (100 * end for end in calibrated["copy_rate_ci"])
        left.plot([low, high], [place, place], color="0.6")
        left.plot(100 * calibrated["copy_rate"], place, "o", color="C3")
        right.plot(row["fidelity"]["frechet_distance"], place, "o", color="C0")
        right.plot(row["fidelity"]["frechet_distance_real"], place, "|", color="0.4")
    left.set(
        yticks=range(len(cells)), yticklabels=[cell.replace("_", " ") for cell in cells], xlabel="copies, at least (%)"
    )
    left.invert_yaxis()
    right.set(xlabel="Frechet distance to validation images (bar: other real images)")
    figure.savefig(path)


if __name__ == "__main__":
    main()
