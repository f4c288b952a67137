# SPDX-License-Identifier: Apache-2.0
"""The state of a training, kept while it runs, so that one that was killed goes on as if nothing had happened."""

from __future__ import annotations

import io
import logging
import pickle
import random
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from monai.transforms import Randomizable, Transform

from monai_memorization.files import write_bytes
from monai_memorization.ranks import Ranks, current_ranks

logger = logging.getLogger(__name__)


class Stateful(Protocol):
    """Anything whose state can be taken and given back: network, optimizer, scheduler, Ignite engine."""

    def state_dict(self) -> Any:
        """Return the state."""

    def load_state_dict(self, state: Any) -> Any:
        """Take a state up."""


class TrainingCheckpoint:
    """A file that holds the newest state of a training, random numbers included, whole at any moment.

    On a CPU, a training that goes on from it ends with the same weights, to the bit, as one that never stopped. All
    ranks save and restore together, as they have random numbers of their own; rank 0 writes.

    Args:
        path: the file.
        key: of what the training depends on; the state of another training is not taken up.
        interval: seconds between two writes.
        randoms: random numbers beside torch's.
        ranks: that train; None for those that go through the same lines.
    """

    def __init__(
        self,
        path: Path,
        key: str,
        interval: float = 60.0,
        randoms: RandomStates | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.path = path
        self.key = key
        self.interval = interval
        self.ranks = current_ranks() if ranks is None else ranks
        self._randoms = RandomStates() if randoms is None else randoms
        self._written = time.monotonic()

    def restore(self, parts: Mapping[str, Stateful]) -> bool:
        """Give the parts of a training their state back, if there is one; the file is left where it is."""
        content = self.ranks.share(self._read(parts) if self.ranks.rank == 0 else None)
        if content is None:
            return False
        for name, part in parts.items():
            part.load_state_dict(content["states"][name])
        self._randoms.load_state_dict(content["randoms"][self.ranks.rank % len(content["randoms"])])
        return True

    def _read(self, parts: Mapping[str, Stateful]) -> dict[str, Any] | None:
        try:
            content: dict[str, Any] = torch.load(self.path, weights_only=True, map_location="cpu")
        except FileNotFoundError:
            return None
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError):
            logger.warning("%s cannot be read; the training starts anew", self.path)
            return None
        same = content.get("key") == self.key and "randoms" in content and content["states"].keys() == parts.keys()
        if not same:
            logger.info("%s is the state of another training, which is not taken up", self.path)
        return content if same else None

    def save(self, parts: Mapping[str, Stateful]) -> None:
        """Write the state, if the last time is long enough ago."""
        if not self.ranks.share(time.monotonic() - self._written >= self.interval):
            return
        randoms = self.ranks.gather(self._randoms.state_dict())
        states = {name: part.state_dict() for name, part in parts.items()}
        if self.ranks.rank == 0:
            content = io.BytesIO()
            torch.save({"key": self.key, "states": states, "randoms": randoms}, content)
            write_bytes(self.path, content.getvalue())
        self._written = time.monotonic()

    def remove(self) -> None:
        """Remove the file, once the training is done."""
        if self.ranks.rank == 0:
            self.path.unlink(missing_ok=True)


class RandomStates:
    """The random states of torch (CPU and every GPU in use), Python, NumPy, and of MONAI's random transforms.

    Args:
        transform: a transform, or several in lists and in each other, or what holds none.
    """

    def __init__(self, transform: Any = None) -> None:
        self._transform = transform

    def state_dict(self) -> dict[str, Any]:
        """Return all states, in a form that torch loads without executing anything."""
        return {
            "torch": torch.get_rng_state(),
            "gpus": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
            "python": random.getstate(),
            "numpy": _plain(np.random.get_state()),
            "transforms": [_plain(generator.get_state()) for generator in _generators(self._transform)],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the states up."""
        torch.set_rng_state(state["torch"])
        # there may be fewer now
        for device, of_gpu in zip(range(torch.cuda.device_count()), state["gpus"], strict=False):
            torch.cuda.set_rng_state(of_gpu, device)
        random.setstate(state["python"])
        np.random.set_state(_legacy(state["numpy"]))
        for generator, own in zip(_generators(self._transform), state["transforms"], strict=True):
            generator.set_state(_legacy(own))


def _generators(transform: Any) -> Iterator[np.random.RandomState]:
    """Yield the generators of MONAI's random transforms, those within others included."""
    if isinstance(transform, Randomizable):
        yield transform.R
    if isinstance(transform, list | tuple):
        for part in transform:
            yield from _generators(part)
    elif isinstance(transform, Transform):
        yield from _generators(list(vars(transform).values()))


def _plain(state: Any) -> tuple[Any, ...]:
    """Return NumPy's state without arrays, which torch does not load as plain data."""
    return tuple(part.tolist() if isinstance(part, np.ndarray) else part for part in state)


def _legacy(state: tuple[Any, ...]) -> Any:
    name, keys, *rest = state
    return (name, np.array(keys, dtype=np.uint32), *rest)
