# SPDX-License-Identifier: Apache-2.0
"""Do something in the middle of a training without changing the training."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain

import numpy as np
import torch
from torch import nn

from monai_memorization.errors import InputError


@contextmanager
def undisturbed(networks: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Restore afterwards the random states of Python, NumPy and torch (CPU and every GPU in use), and all modes.

    Args:
        networks: their training or evaluation mode is restored, for each of their parts.
    """
    modes = [(part, part.training) for network in networks for part in network.modules()]
    python, legacy_numpy = random.getstate(), np.random.get_state()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy_numpy)
        for part, training in modes:
            part.training = training


def networks_of(*holders: object) -> list[nn.Module]:
    """Return the networks among the attributes of an engine or a sampler."""
    values = [value for holder in holders for value in vars(holder).values()]
    # some of MONAI's schedules and inferers are Modules that do not set up what makes a Module
    return [value for value in values if isinstance(value, nn.Module) and "_modules" in vars(value)]


@contextmanager
def refusing_training_mode(networks: Sequence[nn.Module]) -> Iterator[None]:
    """Refuse a sampler that runs one of the networks in training mode: its batch normalization then counts a batch."""
    before = _batches_counted(networks)
    try:
        yield
    finally:  # also where torch stops over a batch of one, after it was counted
        if _batches_counted(networks) != before:
            raise InputError(
                "sampler: ran a network of the training in training mode, which changes the statistics of its batch "
                "normalization and mixes the images of a batch; let it draw within monai.networks.utils.eval_mode"
            )


def _batches_counted(networks: Sequence[nn.Module]) -> list[int]:
    buffers = chain.from_iterable(network.named_buffers() for network in networks)
    return [int(value) for name, value in buffers if name.endswith("num_batches_tracked")]
