# SPDX-License-Identifier: Apache-2.0
"""Handlers with which tests look into trainings that run in other processes."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import torch
from ignite.engine import Engine, Events


class LossRecorder:
    """Appends the loss of each step to ``folder``/losses<rank>.txt, and kills the process after a step, once."""

    def __init__(self, folder: str, kill_after: int | None = None) -> None:
        self.folder = Path(folder)
        self.kill_after = kill_after

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self.kill)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def kill(self, engine: Engine) -> None:
        mark = self.folder / f"killed_{type(engine).__name__}"
        if engine.state.iteration - 1 == self.kill_after and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def __call__(self, engine: Engine) -> None:
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        outputs = engine.state.output if isinstance(engine.state.output, list) else [engine.state.output]
        loss = float(outputs[0]["loss"])
        first = engine.state.batch[0] if isinstance(engine.state.batch, list) else engine.state.batch
        line = {"step": engine.state.iteration, "loss": loss, "first": first["image_id"]}
        with (self.folder / f"losses{rank}.txt").open("a") as file:
            print(json.dumps(line), file=file)
