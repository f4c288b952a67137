# SPDX-License-Identifier: Apache-2.0
"""Go on with the training of a latent diffusion model that was killed, to the same losses and weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler

from monai_memorization.detector.checkpoint import RandomStates, Stateful, TrainingCheckpoint
from monai_memorization.detector.order import BatchOrder
from monai_memorization.generation.described import described
from monai_memorization.images.contents import hash_contents
from monai_memorization.images.prepared import PreparedImages
from monai_memorization.ranks import ALONE, Ranks


class ResumeHandler:
    """Keep the state of a training in a file, and go on from it where an earlier run was killed.

    It has to be attached last, so that what it keeps is the state after all that other handlers do. The file is removed
    when the training is complete.

    Args:
        path: the file.
        images: the training set; its files and how they are prepared are part of what the training depends on.
        order: of its batches.
        parts: whatever changes while the training runs, by name: networks, optimizers, schedulers, ...
        settings: whatever else the training depends on, as of
            :func:`monai_memorization.generation.described.described`; the state of another training is not taken up.
        interval: seconds between two writes.
        augmentation: random transform of the images, on which the training depends too, and whose random state is
            kept; None for none.
        ranks: that train.
    """

    def __init__(
        self,
        path: str | Path,
        images: PreparedImages,
        order: BatchOrder,
        parts: Mapping[str, Stateful],
        settings: Sequence[Any] = (),
        interval: float = 600.0,
        augmentation: Any = None,
        ranks: Ranks = ALONE,
    ) -> None:
        files = list(zip(images.images.image_ids, hash_contents(images.images.paths), strict=True))
        told = described([*settings, augmentation])
        key = hashlib.sha256(repr((told, ranks.n, images.preparation, files)).encode()).hexdigest()
        self._checkpoint = TrainingCheckpoint(Path(path), key, interval, RandomStates(augmentation), ranks)
        self.order = order
        self.parts = dict(parts)

    def attach(self, engine: Engine) -> None:
        """Attach to start and end of the run, and to each iteration."""
        engine.add_event_handler(Events.STARTED, self.restore)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.save)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.save, at_end=True)
        engine.add_event_handler(Events.COMPLETED, self._checkpoint.remove)

    def restore(self, engine: Engine) -> None:
        """Take up the state of an earlier run, if there is one of this training."""
        if self._checkpoint.restore(self.parts | _engine_parts(engine)):
            self.order.n_done = engine.state.iteration
            engine.logger.info("going on with the training that was stopped after %d steps", engine.state.iteration)

    def save(self, engine: Engine, at_end: bool = False) -> None:
        """Keep the state, if it is time; that after the last iteration of an epoch once the epoch is complete."""
        if at_end or engine.state.iteration % len(self.order) != 0:
            self._checkpoint.save(self.parts | _engine_parts(engine))


def _engine_parts(engine: Engine) -> dict[str, Stateful]:
    # MONAI's trainers make the scaler of mixed precision when they start, ours has it from the beginning
    scaler = getattr(engine, "grad_scaler", None) or getattr(engine, "scaler", None)
    return {"engine": engine} | ({} if scaler is None else {"scaler": scaler})


class AveragingHandler(EMAHandler):
    """Ignite's average of the weights, with a state that can be kept; arguments as of Ignite's."""

    def state_dict(self) -> dict[str, Any]:
        """Return the averaged weights, and how far the warm-up of the momentum is."""
        warmup = self._warmup()
        return {"weights": self.ema_model.state_dict(), "n_updates": 0 if warmup is None else warmup.event_index}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take a state up, once the handler is attached."""
        self.ema_model.load_state_dict(state["weights"])
        if (warmup := self._warmup()) is not None:
            warmup.event_index = state["n_updates"]

    def _warmup(self) -> Any:
        # Ignite's own state of it holds an object, which torch does not load as plain data
        return getattr(self, "momentum_scheduler", None)  # None without a warm-up
