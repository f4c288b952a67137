# SPDX-License-Identifier: Apache-2.0
"""The demo: over-train a diffusion model on a virtual cohort, and audit it early and late in its training."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from ignite.engine import Events
from monai.bundle import ConfigWorkflow

from monai_memorization.auditing import audit
from monai_memorization.detector.encoder import save_encoder
from monai_memorization.detector.encoder_training import train_encoder
from monai_memorization.errors import InputError
from monai_memorization.files import write_text
from monai_memorization.images.cohort import write_cohort
from monai_memorization.images.preparation import choose_preparation
from monai_memorization.images.prepared import read_prepared
from monai_memorization.images.sets import read_image_set
from monai_memorization.progress import progress
from monai_memorization.reporting.formats import correlation, count, duration
from monai_memorization.reporting.sentences import verdict_label

MARK = "demo.json"
FOLDERS = ("cohort", "models", "reconstructed", "encoder", "early", "late")


@dataclass(frozen=True)
class DemoSettings:
    """How much the demo does; the defaults are for images, two CPU cores and 10 minutes.

    Args:
        n_training: images that the generator is trained on, few enough to be memorized.
        n_validation: images of other subjects.
        n_synthetic: images drawn from the generator, each time.
        image_size: of all of them.
        autoencoder_steps: training steps of the autoencoder.
        early_steps: training steps of the diffusion model before it is audited first.
        late_steps: all of its training steps.
        encoder_steps: training steps of the copy detector.
        seed: of everything random.
        bundle_keys: keys of all configs of the bundle, laid over `quick.yaml`.
    """

    n_training: int = 64
    n_validation: int = 400
    n_synthetic: int = 500
    image_size: tuple[int, ...] = (64, 64)
    autoencoder_steps: int = 1000
    early_steps: int = 400
    late_steps: int = 2000
    encoder_steps: int = 500
    seed: int = 0
    bundle_keys: Mapping[str, Any] = field(default_factory=dict)


# volumes take about ten times as long as images of the same side, so they are fewer and smaller; a second halving would
# leave odd sides of their latents
VOLUMES = DemoSettings(
    n_training=24,
    n_validation=240,
    n_synthetic=240,
    image_size=(24, 24, 24),
    autoencoder_steps=1200,
    early_steps=300,
    late_steps=3000,
    encoder_steps=800,
    bundle_keys={"diffusion_channels": [32, 64], "diffusion_attention": [False, True]},
)


def run_demo(output_dir: Path, settings: DemoSettings | None = None) -> None:
    """Make data, train, sample and audit; print the time of each stage and a closing table.

    Writes the cohort (cohort/), the generator (models/), its reconstructions of the validation images (reconstructed/),
    the copy detector (encoder/), and the synthetic images and the report of both audits (early/, late/).

    Args:
        output_dir: a new or empty folder, or that of an earlier demo, whose results are replaced.
        settings: how much to do; None for the defaults, ``VOLUMES`` for 3D.

    Raises:
        InputError: if ``output_dir`` holds anything else, or the extra ``demo`` is not installed.
    """
    start, settings = time.perf_counter(), settings or DemoSettings()
    _clear(output_dir, settings)
    with _stage("make the virtual cohort"):
        training, validation = write_cohort(
            output_dir / "cohort", settings.n_training, settings.n_validation, settings.image_size, settings.seed
        )
    _train(output_dir, training, validation, settings)
    reports = {}
    for moment in _weights(settings):
        _draw(output_dir, moment, settings)
        with _stage(f"audit the {moment} model"):
            reports[moment] = audit(
                training,
                validation,
                output_dir / moment / "synthetic",
                output_dir / moment,
                encoder=output_dir / "encoder" / "model.pt",
                reconstructed_validation=output_dir / "reconstructed",
                seed=settings.seed,
                gallery=True,
            )
    print(f"done in {duration(time.perf_counter() - start)}\n\n{_table(reports, settings)}\n")
    for moment in reports:
        print(f"{moment} report: {output_dir / moment / 'report.html'}, the pairs side by side: gallery.html beside it")


def _clear(output_dir: Path, settings: DemoSettings) -> None:
    """Make room: remove what an earlier demo left, refuse any other content."""
    occupied = output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir()))
    if occupied and not (output_dir / MARK).is_file():
        raise InputError(
            f"output_dir: {output_dir} exists and is not the folder of an earlier demo; nothing was written. Name "
            "a new folder, or empty this one"
        )
    for folder in FOLDERS:
        shutil.rmtree(output_dir / folder, ignore_errors=True)
    write_text(output_dir / MARK, json.dumps(asdict(settings), indent=2) + "\n")


def _train(output_dir: Path, training: Path, validation: Path, settings: DemoSettings) -> None:
    """Train the generator, reconstruct the validation images with it, train the copy detector."""
    models = str(output_dir / "models")
    common = {"training": str(training), "output_dir": models, "seed": settings.seed}
    with _stage("train the autoencoder"):
        # so short a training is better off without an adversary
        steps = {"autoencoder_steps": settings.autoencoder_steps, "adversarial_warmup": settings.autoencoder_steps}
        _run_bundle("train_autoencoder", settings, **common, **steps)
    with _stage("train the diffusion model"):
        steps = {"diffusion_steps": settings.late_steps, "save_interval": settings.early_steps}
        # the average of the weights must not reach back to the beginning when the model is audited first
        _run_bundle("train_diffusion", settings, **common, **steps, ema_momentum=min(0.5, 4 / settings.early_steps))
    with _stage("reconstruct the validation images"):
        reconstructed = str(output_dir / "reconstructed")
        _run_bundle(
            "reconstruct", settings, validation=str(validation), model_dir=models, output_dir=reconstructed, handlers=[]
        )
    with _stage("train the copy detector"):
        images = read_image_set(training, "training")
        prepared = read_prepared(images, choose_preparation(images))
        encoder = train_encoder(prepared, settings.encoder_steps, settings.seed)
        save_encoder(encoder, output_dir / "encoder" / "model.pt")


def _weights(settings: DemoSettings) -> dict[str, str]:
    """Files of the diffusion model's weights at both moments of its training."""
    return {"early": f"diffusion_iteration={settings.early_steps}.pt", "late": "model.pt"}


def _draw(output_dir: Path, moment: str, settings: DemoSettings) -> None:
    with _stage(f"draw {settings.n_synthetic} images from the {moment} model"):
        _run_bundle(
            "inference",
            settings,
            model_dir=str(output_dir / "models"),
            diffusion_weights=str(output_dir / "models" / _weights(settings)[moment]),
            output_dir=str(output_dir / moment / "synthetic"),
            n_images=settings.n_synthetic,
            handlers=[],
        )


def _run_bundle(name: str, settings: DemoSettings, **overrides: Any) -> None:
    """Run a config of the 2D or 3D bundle as MONAI's runner does, with a progress bar of ours."""
    bundle = f"latent_diffusion_{len(settings.image_size)}d"
    configs = files("monai_memorization.bundles") / bundle / "configs"
    trains = name.startswith("train")
    with _quiet():
        workflow = ConfigWorkflow(
            [str(configs / f"{name}.json"), str(configs / "quick.yaml")],
            logging_file=False,
            workflow_type="train" if trains else "inference",
            image_size=list(settings.image_size),
            **settings.bundle_keys,
            **overrides,
        )
        workflow.initialize()
        engine = workflow.parser.get_parsed_content("train#trainer" if trains else "evaluator")
        with progress(engine.state.epoch_length * engine.state.max_epochs, name) as bar:
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: bar.update())
            workflow.run()
        workflow.finalize()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep MONAI's and Ignite's running commentary out: the stages and bars say the same."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@contextmanager
def _stage(title: str) -> Iterator[None]:
    """Say what is being done, and how long it took."""
    print(f"{title} ...", flush=True)
    start = time.perf_counter()
    yield
    print(f"  {duration(time.perf_counter() - start)}", flush=True)


def _table(reports: Mapping[str, Mapping[str, Any]], settings: DemoSettings) -> str:
    """Both audits side by side."""
    steps = {"early": settings.early_steps, "late": settings.late_steps}
    rows: list[tuple[str, list[Any]]] = [("", list(reports)), ("training steps", [count(steps[m]) for m in reports])]
    for title, value in _ROWS.items():
        rows.append((title, [value(report) for report in reports.values()]))
    return "\n".join(f"{title:<58}" + "".join(f"{cell:>20}" for cell in cells) for title, cells in rows)


_ROWS = {
    "tau": lambda r: correlation(r["paper_protocol"]["tau"]),
    "N_mem, training images memorized (paper protocol)": lambda r: _share(r, "paper_protocol", "n_mem", "training"),
    "N_copies, synthetic images that are copies (same)": lambda r: _share(r, "paper_protocol", "n_copies", "synthetic"),
    "copy candidates (calibrated protocol)": lambda r: _share(r, "calibrated", "n_copies", "synthetic"),
    "... expected by chance": lambda r: count(r["calibrated"]["expected_false_copies"]),
    "FDR list": lambda r: count(r["calibrated"]["fdr"]["n_copies"]),
    "... training images on it": lambda r: count(r["calibrated"]["fdr"]["n_mem"]),
    "verdict": verdict_label,
}


def _share(report: Mapping[str, Any], protocol: str, key: str, role: str) -> str:
    return f"{count(report[protocol][key])} of {count(report['sets'][role]['n_images'])}"
