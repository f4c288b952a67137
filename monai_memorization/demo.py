# SPDX-License-Identifier: Apache-2.0
"""The demo: over-train a diffusion model on a virtual cohort, and audit it early and late in its training."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from ignite.engine import Events
from monai.bundle import ConfigWorkflow

from monai_memorization.auditing import audit
from monai_memorization.detector.contrastive import train_encoder
from monai_memorization.detector.encoder import save_encoder
from monai_memorization.errors import InputError
from monai_memorization.files import write_text
from monai_memorization.images.cohort import write_cohort
from monai_memorization.images.preparation import prepared_images
from monai_memorization.progress import progress
from monai_memorization.reporting.formats import count, decimal, percent
from monai_memorization.reporting.sentences import verdict_label

MARK = "demo.json"
FOLDERS = ("cohort", "models", "encoder", "early", "late")


@dataclass(frozen=True)
class DemoSettings:
    """How much the demo does; the defaults take less than 10 minutes on two cores.

    Args:
        n_training: images that the generator is trained on, few enough to be memorized.
        n_validation: images of other subjects.
        n_synthetic: images drawn from the generator, each time.
        image_size: of all of them.
        autoencoder_steps: training steps of the autoencoder.
        early_steps: steps of the diffusion model after which it is audited first.
        late_steps: all of its steps; a multiple of ``early_steps`` or not.
        encoder_steps: training steps of the copy detector.
        seed: of everything random.
    """

    n_training: int = 64
    n_validation: int = 400
    n_synthetic: int = 500
    image_size: tuple[int, ...] = (64, 64)
    autoencoder_steps: int = 1000
    early_steps: int = 400
    late_steps: int = 2400
    encoder_steps: int = 500
    seed: int = 0


def run_demo(output_dir: Path, settings: DemoSettings | None = None) -> None:
    """Make data, train, sample and audit; print the time of each stage and a closing table.

    Writes the cohort (cohort/), the generator (models/), the copy detector (encoder/) and for both audits the synthetic
    images and the report (early/, late/).

    Args:
        output_dir: a new or empty folder, or that of an earlier demo, which is replaced.
        settings: how much to do; None for the defaults.

    Raises:
        InputError: if ``output_dir`` holds anything else, or the extra ``demo`` is not installed.
    """
    settings = settings or DemoSettings()
    output_dir = output_dir.resolve()
    _clear(output_dir, settings)
    with _stage("Make the virtual cohort"):
        training, validation = write_cohort(
            output_dir / "cohort", settings.n_training, settings.n_validation, settings.image_size, settings.seed
        )
    _train_generator(output_dir, training, settings)
    for moment, weights in _moments(settings).items():
        with _stage(f"Draw {settings.n_synthetic} images from the {moment} model"):
            _draw(output_dir, moment, weights, settings)
    encoder = output_dir / "encoder" / "model.pt"
    with _stage("Train the copy detector"):
        images = prepared_images(training, settings.image_size)
        save_encoder(train_encoder(images, settings.encoder_steps, settings.seed), encoder)
    reports = {}
    for moment in _moments(settings):
        with _stage(f"Audit the {moment} model"):
            folder = output_dir / moment
            reports[moment] = audit(
                training, validation, folder / "synthetic", folder, encoder=encoder, seed=settings.seed, gallery=True
            )
    print(_table(reports))
    for moment in reports:
        print(f"{moment.capitalize()}: {output_dir / moment / 'report.html'}, pairs in gallery.html beside it")


def _clear(output_dir: Path, settings: DemoSettings) -> None:
    """Remove what an earlier demo left; refuse any other folder with content."""
    if output_dir.exists() and not (
        output_dir.is_dir() and ((output_dir / MARK).is_file() or not any(output_dir.iterdir()))
    ):
        raise InputError(
            f"output_dir: {output_dir} exists and is not the folder of an earlier demo; nothing was written. "
            "Name a new folder, or empty this one"
        )
    for folder in FOLDERS:
        shutil.rmtree(output_dir / folder, ignore_errors=True)
    write_text(output_dir / MARK, json.dumps(asdict(settings), indent=2) + "\n")


def _train_generator(output_dir: Path, training: Path, settings: DemoSettings) -> None:
    common = {"training": str(training), "output_dir": str(output_dir / "models"), "seed": settings.seed}
    with _stage("Train the autoencoder"):
        # too few steps for an adversary to help
        steps = {"autoencoder_steps": settings.autoencoder_steps, "adversarial_warmup": settings.autoencoder_steps}
        _run_bundle("train_autoencoder", settings, **common, **steps)
    with _stage("Train the diffusion model"):
        steps = {"diffusion_steps": settings.late_steps, "save_interval": settings.early_steps}
        # the average must not reach back beyond the early model's own training
        _run_bundle("train_diffusion", settings, **common, **steps, ema_momentum=min(0.5, 10 / settings.early_steps))


def _moments(settings: DemoSettings) -> dict[str, str]:
    """The weights of the diffusion model at both moments of its training."""
    return {"early": f"diffusion_iteration={settings.early_steps}.pt", "late": "model.pt"}


def _draw(output_dir: Path, moment: str, weights: str, settings: DemoSettings) -> None:
    models = output_dir / "models"
    _run_bundle(
        "inference",
        settings,
        model_dir=str(models),
        diffusion_weights=str(models / weights),
        output_dir=str(output_dir / moment / "synthetic"),
        n_images=settings.n_synthetic,
    )


def _run_bundle(name: str, settings: DemoSettings, **overrides: Any) -> None:
    """Run a config of the bundle as MONAI's runner does, with a progress bar."""
    configs = files("monai_memorization.bundles") / "latent_diffusion_2d" / "configs"
    training = name.startswith("train")
    workflow = ConfigWorkflow(
        [str(configs / f"{name}.json"), str(configs / "quick.yaml")],
        logging_file=False,
        workflow_type="train" if training else "inference",
        image_size=list(settings.image_size),
        **overrides,
    )
    workflow.initialize()
    engine = workflow.parser.get_parsed_content("train#trainer" if training else "evaluator")
    with progress(engine.state.epoch_length * engine.state.max_epochs, name) as bar:
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda: bar.update())
        workflow.run()
    workflow.finalize()


@contextmanager
def _stage(title: str) -> Iterator[None]:
    """Say what is done, and how long it took."""
    print(f"{title} ...", flush=True)
    start = time.perf_counter()
    yield
    print(f"    {time.perf_counter() - start:.0f} s", flush=True)


def _table(reports: dict[str, dict[str, Any]]) -> str:
    """Set the audits side by side, one column each."""
    rows = [("", list(reports))]
    columns = list(reports.values())
    rows.append(("tau (paper protocol)", [decimal(r["paper_protocol"]["tau"], 3) or "" for r in columns]))
    for key, label in (("n_mem", "N_mem, copy candidates"), ("n_copies", "N_copies, copy candidates")):
        rows.append((label, [count(r["calibrated"][key]) or "" for r in columns]))
    rows.append(("Copy rate, at least", [percent(r["calibrated"]["copy_rate"]) or "" for r in columns]))
    rows.append(("FDR list", [count(r["calibrated"]["fdr"]["n_copies"]) or "" for r in columns]))
    rows.append(("Verdict", [verdict_label(r) for r in columns]))
    return "\n".join(f"{label:28}" + "".join(f"{cell:>20}" for cell in cells) for label, cells in rows)
