# SPDX-License-Identifier: Apache-2.0
"""The processes that torchrun starts: who works, what they tell each other, and how they fail together.

Within a function that runs :func:`on_every_rank`, every rank goes through the same lines in the same order. Where work
is worth dividing, each rank does its part of it and all get the whole; files are written by rank 0 alone.
"""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from monai_memorization.errors import InputError

# the others wait while rank 0 trains an encoder, which can take longer than the half hour after which torch gives up
PATIENCE = timedelta(days=1)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The processes that work together, or the only one; all of them make the same calls in the same order.

    They talk through a group of their own, on the CPU, whatever a training uses.

    Args:
        n: number of processes.
        rank: which of them this one is.
        group: through which they talk; None for the only one.
    """

    n: int = 1
    rank: int = 0
    group: Any = None

    def gather(self, content: Any) -> list[Any]:
        """Return what each rank passed, in their order.

        Raises:
            InputError: on all ranks, if one of them met it in place of this call; see :meth:`failing_together`.
        """
        boxes = [content] * self.n
        if self.n > 1:
            dist.all_gather_object(boxes, content, group=self.group)
        for box in boxes:
            if isinstance(box, _Failure):
                raise _ToldError(box.message)
        return boxes

    def share(self, content: Any) -> Any:
        """Return on every rank what rank 0 passed; errors as of :meth:`gather`."""
        box = [content]
        if self.n > 1:
            self.gather(None)
            dist.broadcast_object_list(box, src=0, group=self.group)
        return box[0]

    def rows(self, n: int, block: int = 1) -> slice:
        """Return this rank's part of n rows: a run of whole blocks, the last of which may be cut off."""
        n_blocks = -(-n // block)
        first, last = (n_blocks * rank // self.n * block for rank in (self.rank, self.rank + 1))
        return slice(min(first, n), min(last, n))

    def gather_rows(self, *parts: Tensor) -> tuple[Tensor, ...]:
        """Return tensors of which each rank passed its rows, on the device of these; errors as of :meth:`gather`."""
        if self.n == 1:
            return parts
        gathered = zip(*self.gather([part.cpu() for part in parts]), strict=True)
        return tuple(torch.cat(whole).to(part.device) for whole, part in zip(gathered, parts, strict=True))

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """End on all ranks a block that bad input stops on one of them.

        Whichever :meth:`gather` the others come to next tells them.
        """
        if self.n == 1:
            yield
            return
        try:
            yield
            self.gather(None)
        except _ToldError:
            raise
        except InputError as error:
            self.gather(_Failure(str(error)))


ALONE = Ranks()
_current = ALONE


def current_ranks() -> Ranks:
    """Return those that go through the same lines: the ranks of :func:`on_every_rank`, elsewhere this process alone."""
    return _current


def all_ranks() -> Ranks:
    """Return all processes of torch.distributed, or the only one; the first call has to be made on all of them."""
    distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return _talking(dist.group.WORLD) if distributed else ALONE


@lru_cache(maxsize=1)
def _talking(world: Any) -> Ranks:
    return Ranks(dist.get_world_size(), dist.get_rank(), dist.new_group(backend="gloo", timeout=PATIENCE))


def on_every_rank(function: Callable[P, T]) -> Callable[P, T]:
    """Have all processes go through a function together, where torchrun started several.

    It is then to be called on every rank, and returns the same on each. Bad input on one rank ends all: rank 0 raises,
    the others leave quietly, so that there is one message.
    """

    @wraps(function)
    def together(*args: P.args, **kwargs: P.kwargs) -> T:
        global _current
        before = _current
        if before is ALONE:
            start()
            _current = all_ranks()
        try:
            with _current.failing_together():
                return function(*args, **kwargs)
        except InputError:
            if _current.rank > 0:
                # with status 0, lest torchrun stop rank 0 before it has said what was wrong
                raise SystemExit(0) from None
            raise
        finally:
            _current = before

    return together


def speaks() -> bool:
    """Tell whether this is rank 0 of all processes that torchrun started, or the only one."""
    return int(os.environ.get("RANK", 0)) == 0


def say(text: str) -> None:
    """Print a line on rank 0 alone."""
    if speaks():
        print(text, flush=True)


def start() -> None:
    """Form the process group of what torchrun started, once: on GPUs where there are any, each process on its own."""
    if not dist.is_available() or dist.is_initialized() or not several_processes():
        return
    if torch.cuda.is_available():
        local_rank, n_gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local_rank >= n_gpus:
            raise InputError(f"nproc_per_node: this machine has {n_gpus} GPUs, too few for process {local_rank}")
        torch.cuda.set_device(local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


# at the very end: torch cannot form a second group in the same processes
@atexit.register
def stop() -> None:
    """Part from the other processes, and end the threads through which they talked.

    These live as long as anything holds the group, and one that lets go of a tensor when the interpreter has gone takes
    the process down with it ("terminate called without an active exception").
    """
    if not dist.is_available() or not several_processes():
        return
    if dist.is_initialized():
        dist.destroy_process_group()
    _talking.cache_clear()
    gc.collect()


def several_processes() -> bool:
    """Tell whether torchrun started more than this one."""
    return int(os.environ.get("WORLD_SIZE", 1)) > 1


def summed(tensor: Tensor) -> Tensor:
    """Return the sum over all processes of torch.distributed, with the gradient of the sum of what each makes of it."""
    total: Tensor = _Sum.apply(tensor)
    return total


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradients[0])


@dataclass(frozen=True)
class _Failure:
    """In place of what a rank would have told."""

    message: str


class _ToldError(InputError):
    """Bad input that all ranks know of."""
