# SPDX-License-Identifier: Apache-2.0
"""Train the encoder of a training set, or find the one that an earlier run left."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import Tensor

from monai_memorization.detector.checkpoint import TrainingCheckpoint
from monai_memorization.detector.contrastive import N_STEPS, ContrastiveTrainer
from monai_memorization.detector.embeddings import embed_batch
from monai_memorization.detector.encoder import WIDTHS, ContrastiveEncoder, load_encoder, save_encoder
from monai_memorization.detector.neighbors import nearest
from monai_memorization.detector.shards import hash_code
from monai_memorization.detector.views import Views
from monai_memorization.errors import InputError
from monai_memorization.images.contents import hash_contents
from monai_memorization.images.preparation import choose_preparation
from monai_memorization.images.prepared import PreparedImages, read_prepared
from monai_memorization.images.sets import ImageSet
from monai_memorization.progress import progress
from monai_memorization.ranks import current_ranks

# an encoder that learned anything finds nearly all of the images behind views of this strength again
SLIGHT = 0.1
TOLD_APART = 0.5
logger = logging.getLogger(__name__)


def train_encoder(
    images: PreparedImages,
    n_steps: int = N_STEPS,
    seed: int = 0,
    device: str | torch.device = "cpu",
    widths: Sequence[int] = WIDTHS,
    checkpoint: TrainingCheckpoint | None = None,
    **settings: Any,
) -> ContrastiveEncoder:
    """Train an encoder on a training set.

    Args:
        images: the training set, prepared.
        n_steps: number of steps.
        seed: of weights, order and views; torch's own random state is left as it was.
        device: where to train.
        widths: of the network.
        checkpoint: where the state is kept while the training runs, and taken up if it was stopped; None keeps none.
        settings: further arguments of :class:`ContrastiveTrainer`.

    Returns:
        The encoder, on the CPU, in evaluation mode.
    """
    devices = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices), progress(n_steps, "train the encoder") as bar:
        torch.manual_seed(seed)
        preparation = images.preparation
        encoder = ContrastiveEncoder(
            preparation.image_size,
            preparation.channels,
            widths=widths,
            spacing=preparation.spacing,
            clip=preparation.clip,
            training_steps=n_steps,
        )
        trainer = ContrastiveTrainer(device, 1, images, encoder, n_steps, seed=seed, **settings)
        if checkpoint is not None:
            trainer.keep(checkpoint)
        n_done = trainer.state.iteration
        bar.update(n_done)
        trainer.add_event_handler(Events.ITERATION_COMPLETED, lambda: bar.update())
        trainer.add_event_handler(
            Events.ITERATION_COMPLETED(once=min(n_done + 10, n_steps)), _tell_duration, time.perf_counter(), n_done
        )
        trainer.run()
        share = share_told_apart(encoder.eval(), images.pixels, device=device)
    if share < TOLD_APART:
        logger.warning(
            "training: the encoder collapsed or learned too little: of slightly changed training images it finds "
            "%.0f %% again. An audit with it will not see copies; train for more steps, or at a lower learning rate",
            100 * share,
        )
    # in the layout of one that is loaded, so that embeddings are the same to the bit
    return encoder.cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


@torch.no_grad()
def share_told_apart(
    encoder: ContrastiveEncoder, pixels: Tensor, n: int = 128, device: str | torch.device = "cpu"
) -> float:
    """Return the share of training images that are nearest to a slight view of themselves, next to 0 after a collapse.

    The loss tells less: it depends on the strength of the views, and on the batch.

    Args:
        encoder: in evaluation mode, on ``device``.
        pixels: prepared training images, (n_T, C, *image_size).
        n: number of images that are viewed, spread evenly; each is looked for among at most 16 n.
        device: where the encoder runs.
    """
    pixels = pixels[:: math.ceil(len(pixels) / (16 * n))]
    chosen = torch.arange(len(pixels))[:: math.ceil(len(pixels) / n)]
    training = torch.cat([embed_batch(encoder, batch.float(), device) for batch in pixels.split(64)])
    views = embed_batch(encoder, Views().scaled(SLIGHT)(pixels[chosen].float()), device)
    return (nearest(views, training)[1][:, 0] == chosen).double().mean().item()


def obtain_encoder(
    given: str | Path | None,
    training: ImageSet,
    folder: Path,
    seed: int = 0,
    device: str | torch.device = "cpu",
    skip_unreadable: bool = False,
    widths: Sequence[int] = WIDTHS,
    clip: Sequence[float] | None = None,
) -> ContrastiveEncoder:
    """Load the given encoder, or the one that an earlier run left in ``folder``, or train one and keep it there.

    Args:
        given: weights of an encoder, or None.
        training: the training set.
        folder: where trained encoders are kept.
        seed: of the training.
        device: where to train.
        skip_unreadable: train without the images that cannot be read.
        widths: of the network that is trained.
        clip: intensities beyond which images are cut off; None for none, or those of a given encoder.

    Returns:
        The encoder, in evaluation mode.

    Raises:
        InputError: if the given encoder cannot be loaded, or is for images of other dimension than the training set's
            or of another ``clip``.
    """
    if given is not None:
        encoder, preparation = load_encoder(given), choose_preparation(training, clip=clip)
        if len(encoder.preparation.image_size) != len(preparation.image_size):
            raise InputError(
                f"encoder: {given} is for {len(encoder.preparation.image_size)}D images, the training set is "
                f"{len(preparation.image_size)}D; train one on this set, or leave --encoder out"
            )
        if clip is not None and encoder.preparation.clip != preparation.clip:
            raise InputError(
                f"clip: found {list(clip)}, but {given} is of images cut off at {encoder.settings['clip']}; leave clip "
                "out to go by the encoder, or leave the encoder out to train one"
            )
        return encoder
    kept, trained_on = folder / "model.pt", _hash(training, seed, widths, clip)
    # rank 0 looks: another might not see the file, or one that rank 0 only just wrote
    ranks = current_ranks()
    kept_encoder = ranks.share(_load_kept(kept) if ranks.rank == 0 else None)
    if kept_encoder is not None and kept_encoder.trained_on == trained_on:
        logger.info("using the encoder that an earlier run trained on these images: %s", kept)
        return kept_encoder
    logger.info("no encoder given: training one on the %d training images", len(training))
    images = read_prepared(training, choose_preparation(training, clip=clip), skip_unreadable)
    checkpoint = TrainingCheckpoint(folder / "training.pt", f"{trained_on} {hash_code()}")
    encoder = train_encoder(images, seed=seed, device=device, widths=widths, checkpoint=checkpoint)
    encoder.trained_on = trained_on
    if ranks.rank == 0:
        save_encoder(encoder, kept)
    checkpoint.remove()
    return encoder


def of_other_images(encoder: ContrastiveEncoder, training: ImageSet) -> bool:
    """Say whether an encoder is known to have been trained on another training set than this."""
    return encoder.trained_on is not None and encoder.trained_on.split()[0] != _hash_set(training)


def _load_kept(path: Path) -> ContrastiveEncoder | None:
    """Load what an earlier run kept; None where there is none, it was cut off, or another version wrote it."""
    if not path.with_suffix(".json").is_file():
        return None
    try:
        return load_encoder(path)
    except InputError as error:
        logger.info("training anew: %s", error)
        return None


def _tell_duration(engine: Engine, start: float, n_done: int) -> None:
    n_steps = engine.state.epoch_length or 0
    seconds = (time.perf_counter() - start) / (engine.state.iteration - n_done) * (n_steps - n_done)
    logger.info(
        "training the encoder takes about %s", f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
    )


def _hash(images: ImageSet, seed: int, widths: Sequence[int], clip: Sequence[float] | None) -> str:
    """Name training set, seed, network and range of intensities: an encoder is kept for one of each."""
    settings = seed, N_STEPS, list(widths), *(() if clip is None else map(float, clip))
    return f"{_hash_set(images)} {hashlib.sha256(repr(settings).encode()).hexdigest()[:16]}"


def _hash_set(images: ImageSet) -> str:
    """Name the images whatever their names and order, as of a folder and of a list of its files."""
    return hashlib.sha256(repr(sorted(hash_contents(images.paths))).encode()).hexdigest()
