# SPDX-License-Identifier: Apache-2.0
"""Ignite handlers: train the copy detector and watch for copies within the training of any generative model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from itertools import chain
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.handlers import CheckpointSaver
from torch import Tensor

from monai_memorization.detector.embeddings import embed, embed_batch
from monai_memorization.detector.encoder import ContrastiveEncoder
from monai_memorization.detector.encoder_training import obtain_encoder
from monai_memorization.detector.leaks import find_leaks, refuse_identical
from monai_memorization.detector.registration import fine_structure
from monai_memorization.detector.scores import score_embedded
from monai_memorization.errors import InputError
from monai_memorization.files import check_writable
from monai_memorization.generation.drawing import check_value_range, prepare_drawn
from monai_memorization.generation.sampling import Sampler
from monai_memorization.images.division import check_disjoint
from monai_memorization.images.monitored import choose_monitored, write_monitored
from monai_memorization.images.sources import Source, list_source, refuse_divided
from monai_memorization.monitoring import measure_monitored, read_checks, write_checks
from monai_memorization.ranks import all_ranks
from monai_memorization.reporting.report import write_leaks
from monai_memorization.statistics.conformal import n_patients_needed
from monai_memorization.undisturbed import networks_of, refusing_training_mode, undisturbed

logger = logging.getLogger(__name__)

# an audit of the finished model starts at seed 0: images that steered the training must not be drawn again for it
FIRST_SEED = 1_000_000


class EncoderTrainingHandler:
    """Train the copy detector on the generator's training set before the training starts, and keep it.

    It is written to ``output_dir``/encoder, and not trained again while the images stay the same. Attach it on every
    rank: rank 0 trains, the others wait.

    Args:
        training: what the generator is trained on: folder, CSV, MONAI data list, or a MONAI data set that has no
            random transforms and is read by nobody else.
        output_dir: folder for the encoder.
        image_key: entry of the items of a data set that holds the image.
        seed: of the training.
        device: where to train; None for the engine's.
        clip: intensities at which images are cut off, as of the audit.
    """

    def __init__(
        self,
        training: Source,
        output_dir: str | Path,
        image_key: str = "image",
        seed: int = 0,
        device: str | torch.device | None = None,
        clip: Sequence[float] | None = None,
    ) -> None:
        self.training = training
        self.output_dir = Path(output_dir)
        self.image_key = image_key
        self.seed = seed
        self.device = device
        self.clip = clip

    def attach(self, engine: Engine) -> None:
        """Attach to the start of the run."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Obtain the encoder; the random state is left as it was."""
        ranks = all_ranks()
        refuse_divided(self.training, "training", ranks)
        with ranks.failing_together(), undisturbed(networks_of(engine)):
            if ranks.rank == 0:
                check_writable(self.output_dir)
                images = list_source(self.training, self.output_dir, "training", self.image_key)
                device = _device(self.device, engine)
                obtain_encoder(None, images, self.output_dir / "encoder", self.seed, device, clip=self.clip)
            ranks.share(None)


class MemorizationHandler:
    """Draw images every few epochs and count copies of training images among them.

    The counts go to ``engine.state.metrics``: ``n_copies``, ``copy_rate``, ``n_mem``, ``mem_rate`` of the calibrated
    protocol, ``paper_n_copies``, ``paper_n_mem``, ``tau`` of the paper's. They are there before any other handler of
    the same epoch runs, wherever this one stands in the list. The training is not disturbed: random states and the
    modes of the networks are restored, so that losses are the same to the bit. Attach it on every rank; each draws its
    part of the images.

    Validation patients that steer a training cannot judge it in the end. So a share of them is used here, chosen by
    seed. ``output_dir``/monitoring.csv names their images; the final audit leaves them out if it is given that file.
    ``output_dir``/checks.csv has the counts of every check, those of a training that was resumed included.

    Args:
        training: what the generator is trained on: folder, CSV, MONAI data list, or a MONAI data set that has no
            random transforms and is read by nobody else. A data set is written to ``output_dir`` once, so that the
            final audit can use it too.
        validation: images of other patients, likewise.
        sampler: draws images from seeds; see :mod:`monai_memorization.generation.sampling`. One of your own has to
            switch its networks to evaluation mode itself.
        output_dir: folder for monitoring.csv, checks.csv, leaks.csv, the encoder and the images of data sets. They stay
            inside.
        interval: epochs between two checks; the first epoch is always checked.
        n_images: images drawn for a check.
        batch_size: images drawn at a time; None for 16 pictures or one volume.
        copy_rate_limit: stop the training at the first check whose copy_rate is above it. With 100 images in each of 30
            checks chance alone stops a tenth of the trainings at 0.1, up to a half at 0.05. The metric
            ``last_epoch_within_limit`` is then kept too, 0 before any; :class:`WithinLimitSaver` goes by it.
        encoder: weights of an encoder trained on the training set; None trains one at the start of the run.
        monitoring_share: share of the validation patients used, in (0, 1].
        alpha: level of the copy candidates.
        image_key: entry of the items of a data set that holds the image.
        seed: of the choice of patients and of the encoder's training.
        device: where the encoder runs and images are compared; None for the engine's, of which it then takes memory.
        clip: intensities at which images are cut off, as of the audit.

    Raises:
        InputError: if a number is out of its range or no images are given; at the start of the run if the images are
            bad or too few, not the same on every rank, or reach beyond the sampler's value_range; at a check if the
            sampler returns no images, or runs a network of the engine in training mode.
    """

    def __init__(
        self,
        training: Source,
        validation: Source,
        sampler: Sampler,
        output_dir: str | Path,
        interval: int = 10,
        n_images: int = 100,
        batch_size: int | None = None,
        copy_rate_limit: float | None = None,
        encoder: str | Path | None = None,
        monitoring_share: float = 0.5,
        alpha: float = 0.05,
        image_key: str = "image",
        seed: int = 0,
        device: str | torch.device | None = None,
        clip: Sequence[float] | None = None,
    ) -> None:
        for name, number in (("interval", interval), ("n_images", n_images), ("batch_size", batch_size)):
            if number is not None and not _is_count(number):
                raise InputError(f"{name}: found {number!r}, but must be a whole number of at least 1")
        if copy_rate_limit is not None and not _is_share(copy_rate_limit):
            raise InputError(f"copy_rate_limit: found {copy_rate_limit!r}, but must lie between 0 and 1, such as 0.1")
        if not _is_share(monitoring_share) or monitoring_share == 0:
            raise InputError(f"monitoring_share: found {monitoring_share!r}, but must be above 0 and at most 1")
        self.sources = {"training": training, "validation": validation}
        for role, source in self.sources.items():
            if source is None:  # as in a config that is not told yet
                raise InputError(f"{role}: no images are given; give a folder, a CSV, a MONAI data list or a data set")
        self.sampler = sampler
        self.output_dir = Path(output_dir)
        self.interval = interval
        self.n_images = n_images
        self.batch_size = batch_size
        self.copy_rate_limit = copy_rate_limit
        self.given_encoder = encoder
        self.monitoring_share = monitoring_share
        self.alpha = alpha
        self.n_patients_needed = n_patients_needed(alpha)
        self.image_key = image_key
        self.seed = seed
        self.device = device
        self.clip = clip
        self._checks: list[dict[str, Any]] = []

    def attach(self, engine: Engine) -> None:
        """Attach to the start of the run and to the end of its epochs, there before all that is attached already."""
        engine.add_event_handler(Events.STARTED, self.start)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)
        # Ignite runs handlers in the order they were attached, and has no way to attach one first. After a
        # CheckpointSaver, the counts of an epoch would be taken for those of the next.
        handlers = engine._event_handlers[Events.EPOCH_COMPLETED]
        handlers.insert(0, handlers.pop())

    def start(self, engine: Engine) -> None:
        """Obtain the encoder and embed the real images."""
        self._ranks = all_ranks()
        for role, source in self.sources.items():
            refuse_divided(source, role, self._ranks)
        device = _device(self.device, engine)
        with self._ranks.failing_together(), undisturbed(networks_of(engine, self.sampler)):
            known = self._embed_real_images(device) if self._ranks.rank == 0 else None
            encoder, self._sides = self._ranks.share(known)
            self._encoder = encoder.to(device)
        if self.copy_rate_limit is not None:
            engine.state.metrics["last_epoch_within_limit"] = 0

    def __call__(self, engine: Engine) -> None:
        """Check the model, if it is time."""
        epoch = engine.state.epoch
        if epoch > 1 and epoch % self.interval:
            return
        ranks, metrics, networks = self._ranks, None, networks_of(engine, self.sampler)
        with ranks.failing_together(), undisturbed(networks):
            seeds = range(FIRST_SEED, FIRST_SEED + self.n_images)[ranks.rank :: ranks.n]
            with refusing_training_mode(networks):
                own = self._draw_and_embed(seeds, _device(self.device, engine))
            drawn = ranks.gather(own)
            if ranks.rank == 0:
                vectors, structure = (torch.cat(parts) for parts in zip(*chain(*drawn), strict=True))
                real = self._training, self._validation, self._validation_score
                metrics = measure_monitored(*real, vectors, structure, alpha=self.alpha, seed=self.seed)
                self._keep_check(epoch, metrics)
            metrics = ranks.share(metrics)
        engine.state.metrics.update(metrics)
        if ranks.rank == 0:
            counts = ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            logger.info("epoch %d: %d images drawn; %s", epoch, self.n_images, counts)
        if self.copy_rate_limit is not None:
            if metrics["copy_rate"] <= self.copy_rate_limit:
                engine.state.metrics["last_epoch_within_limit"] = epoch
            else:
                logger.warning(
                    "epoch %d: copy rate %.3f is above the limit of %g; stopping",
                    epoch,
                    metrics["copy_rate"],
                    self.copy_rate_limit,
                )
                engine.terminate()

    def _keep_check(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Write the counts below those of earlier epochs, which a training that was resumed has from before."""
        self._checks = [check for check in self._checks if check["epoch"] < epoch]
        self._checks.append({"epoch": epoch, "n_images": self.n_images} | dict(metrics))
        try:
            write_checks(self._checks, self.output_dir)
        except InputError as error:  # no reason to end a training; the next check writes all of them
            logger.warning("epoch %d: the counts are not kept: %s", epoch, error)

    def _embed_real_images(self, device: torch.device) -> tuple[ContrastiveEncoder, tuple[int, ...] | None]:
        """Return the encoder, and the sides of all training images where they are known and the same."""
        check_writable(self.output_dir)
        self._checks = read_checks(self.output_dir)
        sets = {
            role: list_source(source, self.output_dir, role, self.image_key) for role, source in self.sources.items()
        }
        check_disjoint(sets["training"], sets["validation"])
        sides = None
        if not isinstance(self.sources["training"], str | Path):  # then they are as the generator sees them
            check_value_range(sets["training"], self.sampler, self.clip)
            shapes = {np.load(path, mmap_mode="r", allow_pickle=False).shape for path in sets["training"].paths}
            sides = shapes.pop()[1:] if len(shapes) == 1 else None
        monitored = choose_monitored(sets["validation"], self.monitoring_share, self.seed)
        if monitored.n_patients < self.n_patients_needed:
            needed = self.n_patients_needed
            raise InputError(
                f"validation: {monitored.n_patients} of {sets['validation'].n_patients} patients are left for "
                f"monitoring, but copy candidates at alpha {self.alpha} need {needed}; give "
                f"{ceil(needed / self.monitoring_share)} patients, or a larger monitoring_share or alpha"
            )
        kept_in = self.output_dir / "encoder"
        encoder = obtain_encoder(self.given_encoder, sets["training"], kept_in, self.seed, device, clip=self.clip)
        training, validation = (embed(encoder, images, device=device) for images in (sets["training"], monitored))
        leaks = find_leaks(training, validation, encoder.preparation)
        write_leaks(leaks, self.output_dir / "leaks.csv")
        refuse_identical(leaks, self.output_dir / "leaks.csv")
        write_monitored(monitored, self.output_dir)  # that of an earlier training stays where this one is refused
        self._training, self._validation = training, validation
        self._validation_score = score_embedded(validation, training)[0]
        return encoder, sides

    def _draw_and_embed(self, seeds: Sequence[int], device: torch.device) -> list[tuple[Tensor, Tensor]]:
        """Return, batch by batch, the embeddings of the images of these seeds, (B, D), and their fine structure."""
        drawn, is_2d = [], len(self._encoder.preparation.image_size) == 2
        size = self.batch_size or (16 if is_2d else 1)
        for start in range(0, len(seeds), size):
            batch = seeds[start : start + size]
            with torch.no_grad():
                images = self.sampler(batch)
            prepared = prepare_drawn(images, batch, self._encoder.preparation)
            sides = tuple(images.shape[2:])
            if self._sides is not None and sides != self._sides:
                logger.warning(
                    "sampler: returned images of %s, but what the generator is trained on is %s: copies may go unseen",
                    *("x".join(map(str, found)) for found in (sides, self._sides)),
                )
                self._sides = None  # each rank says it once
            drawn.append((embed_batch(self._encoder, prepared, device), fine_structure(prepared).half()))
        return drawn


class WithinLimitSaver(CheckpointSaver):
    """Keep the last model that passed a check of a MemorizationHandler with a ``copy_rate_limit``, and no other.

    MONAI's own saver with this key metric would save the first model that is checked, within the limit or not.

    Args:
        save_dir: folder to save to.
        save_dict: what to save, as of ``CheckpointSaver``.
        filename: of the checkpoint; that of an earlier run stays until a check of this one is passed.
    """

    def __init__(self, save_dir: str, save_dict: dict[str, Any], filename: str = "model_within_limit.pt") -> None:
        super().__init__(
            save_dir,
            save_dict,
            save_key_metric=True,
            key_metric_name="last_epoch_within_limit",
            key_metric_filename=filename,
        )

    def attach(self, engine: Engine) -> None:
        """Attach as MONAI's saver, and forget at the start of a run what was saved in an earlier one."""
        super().attach(engine)
        if self._key_metric_checkpoint is not None:
            engine.add_event_handler(Events.STARTED, self._key_metric_checkpoint.reset)

    def metrics_completed(self, engine: Engine) -> None:
        """Save, if a check was passed since the last time."""
        if engine.state.metrics.get("last_epoch_within_limit", 0) > 0:
            super().metrics_completed(engine)


def _is_count(number: Any) -> bool:
    return isinstance(number, int | np.integer) and bool(number >= 1)


def _is_share(number: Any) -> bool:
    return isinstance(number, int | float | np.number) and bool(0 <= number <= 1)


def _device(given: str | torch.device | None, engine: Engine) -> torch.device:
    return torch.device(given or getattr(engine.state, "device", None) or "cpu")
