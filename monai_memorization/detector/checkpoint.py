# SPDX-License-Identifier: Apache-2.0
"""The state of a training, kept while it runs, so that one that was killed goes on as if nothing had happened."""

from __future__ import annotations

import io
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from monai_memorization.files import write_bytes


class Stateful(Protocol):
    """Anything whose state can be taken and given back: network, optimizer, scheduler, Ignite engine."""

    def state_dict(self) -> Any:
        """Return the state."""

    def load_state_dict(self, state: Any) -> Any:
        """Take a state up."""


class TrainingCheckpoint:
    """A file that holds the newest state of a training, random numbers included, whole at any moment.

    On a CPU, a training that goes on from it ends with the same weights, to the bit, as one that never stopped.

    Args:
        path: the file.
        key: of what the training depends on; the state of another training is not taken up.
        interval: seconds between two writes.
    """

    def __init__(self, path: Path, key: str, interval: float = 60.0) -> None:
        self.path = path
        self.key = key
        self.interval = interval
        self._written = time.monotonic()

    def restore(self, parts: Mapping[str, Stateful]) -> bool:
        """Give the parts of a training their state back, if there is one; the file is left where it is."""
        try:
            content = torch.load(self.path, weights_only=True, map_location="cpu")
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
            return False
        if content["key"] != self.key or content["states"].keys() != parts.keys():
            return False
        for name, part in parts.items():
            part.load_state_dict(content["states"][name])
        torch.set_rng_state(content["random"])
        for device, state in enumerate(content["random_of_gpus"]):
            torch.cuda.set_rng_state(state, device)
        return True

    def save(self, parts: Mapping[str, Stateful]) -> None:
        """Write the state, if the last time is long enough ago."""
        if time.monotonic() - self._written < self.interval:
            return
        content = io.BytesIO()
        torch.save(
            {
                "key": self.key,
                "states": {name: part.state_dict() for name, part in parts.items()},
                "random": torch.get_rng_state(),
                "random_of_gpus": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            },
            content,
        )
        write_bytes(self.path, content.getvalue())
        self._written = time.monotonic()

    def remove(self) -> None:
        """Remove the file, once the training is done."""
        self.path.unlink(missing_ok=True)
