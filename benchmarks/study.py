# SPDX-License-Identifier: Apache-2.0
"""The study: train the same generator in many ways, audit each, and show copies beside fidelity.

    python benchmarks/study.py GRID.yaml --training T.csv --validation V.csv --output-dir OUT [--only CELL] [--seeds 0]
    python benchmarks/study_figures.py OUT --output FIGURE.svg

A cell of the grid changes the settings above it; each is run with each seed, which also chooses the training patients.
A run leaves one JSON, OUT/<cell>_<seed>.json, and is not repeated while that is there, so that a study goes on where
it was stopped. Its images stay in OUT/work/<cell>_<seed>: where the JSON is deleted, they are audited again and nothing
is trained. One folder is for one grid: OUT/shared keeps what runs have in common, the encoder of a seed, trained on the
largest training set of the grid, which holds the smaller ones, and the autoencoders. V is the same in all runs.
For the size of a GPU leave ``recipe`` and the steps of the grid out: the defaults of the bundles then hold.

Each run is audited twice: with all synthetic images, and with as many as training images (``equal_sizes``).
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from diversity import mean_ms_ssim
from generators import GENERATORS, Run
from overhead import commit, machine
from scipy.stats import binomtest
from trainings import choose_training

from monai_memorization.auditing import audit, choose_device
from monai_memorization.detector.encoder import save_encoder
from monai_memorization.detector.encoder_training import train_encoder
from monai_memorization.files import write_text
from monai_memorization.images.preparation import choose_preparation
from monai_memorization.images.prepared import read_prepared
from monai_memorization.images.sets import ImageSet, read_image_set, write_image_set
from monai_memorization.statistics.power import N_PLANTS

PARTS = ("sets", "paper_protocol", "calibrated", "controls", "power_summary", "verdict", "provenance")


def main(arguments: list[str] | None = None) -> None:
    """Run what has not run yet, seed by seed, so that a study that is stopped has whole rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path)
    parser.add_argument("--training", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, required=True)
    parser.add_argument("--only", nargs="+", help="cells to run; all where none is given")
    parser.add_argument("--seeds", nargs="+", type=int, help="of these; those of the grid where none is given")
    options = parser.parse_args(arguments)
    grid = yaml.safe_load(options.grid.read_text(encoding="utf-8"))
    cells, seeds = grid.pop("cells"), grid.pop("seeds")
    if unknown := set(options.only or []) - set(cells):
        parser.error(f"--only: {', '.join(sorted(unknown))}: no cell of {options.grid}, which has {', '.join(cells)}")
    chosen = {name: merged(grid, cells[name]) for name in options.only or cells}
    largest = max(merged(grid, changes)["n_training"] for changes in cells.values())
    for seed in options.seeds or seeds:
        for name, settings in chosen.items():
            result = options.output_dir / f"{name}_{seed}.json"
            if not result.is_file():
                start = time.perf_counter()
                row = {"cell": name, "seed": seed, "commit": commit(), "machine": machine(), "settings": settings}
                row |= run_cell(prepare(options, settings, seed, largest, result.stem))
                row["seconds"] = round(time.perf_counter() - start)
                write_text(result, json.dumps(row, indent=1) + "\n")
                rate = row["calibrated"]["copy_rate"]
                print(f"{name}, seed {seed}: {row['seconds']} s, copy rate {rate:.3f}", flush=True)


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Lay the changes of a cell over the settings of the grid."""
    result = dict(settings)
    for key, value in changes.items():
        result[key] = result.get(key, {}) | value if isinstance(value, dict) else value
    return result


def prepare(options: argparse.Namespace, settings: Mapping[str, Any], seed: int, largest: int, name: str) -> Run:
    """Write the training set of the run, and train the encoder of the seed where it is not there."""
    shared, work = options.output_dir / "shared" / str(seed), options.output_dir / "work" / name
    given = read_image_set(options.training, "training")
    training = work / "training.csv"
    write_image_set(choose_training(given, settings["n_training"], seed), training)
    if not (shared / "model.pt").is_file():
        images = choose_training(given, largest, seed)
        prepared = read_prepared(images, choose_preparation(images))
        save_encoder(
            train_encoder(prepared, settings["encoder_steps"], seed, choose_device("auto")), shared / "model.pt"
        )
    return Run(settings, seed, training, options.validation, shared, work)


def run_cell(run: Run) -> dict[str, Any]:
    """Train, draw and audit: the content of the run's JSON, which holds no names of images and no pixels."""
    drawn = run.work / "training_seconds.json"
    if not drawn.is_file():
        for folder in ("synthetic", "reconstructed", "cache"):  # of another model, if the run was stopped
            shutil.rmtree(run.work / folder, ignore_errors=True)
        seconds = GENERATORS[run.settings.get("generator", "latent_diffusion")](run)
        write_text(drawn, json.dumps(seconds) + "\n")
    synthetic = read_image_set(run.work / "synthetic", "synthetic")
    report = audited(run, synthetic)
    n_equal = min(len(synthetic), report["sets"]["training"]["n_images"])
    row = {"training_seconds": round(json.loads(drawn.read_text(encoding="utf-8")))} | counts(report)
    row["fidelity"] = report["fidelity"] | measure_diversity(run, synthetic)
    return row | {"equal_sizes": counts(audited(run, synthetic.subset(range(n_equal))))}


def audited(run: Run, synthetic: ImageSet) -> dict[str, Any]:
    """Audit images of the run, calibrated on reconstructions where its generator has an autoencoder."""
    write_image_set(synthetic, run.work / f"synthetic_{len(synthetic)}.csv")
    reconstructed = run.work / "reconstructed"
    return audit(
        run.training,
        run.validation,
        run.work / f"synthetic_{len(synthetic)}.csv",
        run.work / "audit",
        encoder=run.shared / "model.pt",
        reconstructed_validation=reconstructed if reconstructed.is_dir() else None,
        seed=run.seed,
        n_plants=run.settings.get("n_plants", N_PLANTS),
        cache_dir=run.work / "cache",
        fidelity=True,
    )


def counts(report: Mapping[str, Any]) -> dict[str, Any]:
    """Take what the study shows out of a report, with an interval beside each share that has none there.

    Those of the paper protocol and of ``mem_rate`` are exact binomial ones (Clopper and Pearson 1934): of ``copy_rate``
    for another draw of synthetic images with the same tau, of ``mem_rate`` for other training patients. Of calibrated
    ``mem_rate``, the lower end has as many false matches taken off as false-alarm rate and copy rate allow, the upper
    end none, since all of them may have fallen on images that are memorized.
    """
    row = {part: dict(report[part]) for part in PARTS}
    paper, calibrated = row["paper_protocol"], row["calibrated"]
    n_training, n_synthetic = (report["sets"][role]["n_images"] for role in ("training", "synthetic"))
    paper["mem_rate_ci"] = share_ci(paper["n_mem"], n_training)
    paper["copy_rate_ci"] = share_ci(paper["n_copies"], n_synthetic)
    low, high = share_ci(calibrated["n_mem"], n_training)
    most_false = calibrated["false_alarm_rate_ci"][1] * (1 - calibrated["copy_rate_ci"][0]) * n_synthetic
    calibrated["mem_rate_ci"] = [max(0.0, low - most_false / n_training), high]
    return row


def share_ci(count: int, total: int) -> list[float]:
    """Return the exact 95 % interval of a share."""
    return list(binomtest(count, total).proportion_ci())


def measure_diversity(run: Run, synthetic: ImageSet) -> dict[str, float]:
    """Measure how alike synthetic images are by MS-SSIM, and how alike validation images."""
    preparation = choose_preparation(read_image_set(run.training, "training"))
    sets = {"ms_ssim": synthetic, "ms_ssim_real": read_image_set(run.validation, "validation")}
    return {
        key: mean_ms_ssim(read_prepared(images, preparation).pixels.float(), seed=run.seed)
        for key, images in sets.items()
    }


if __name__ == "__main__":
    main()
