# SPDX-License-Identifier: Apache-2.0
"""Do something in the middle of a training without changing the training."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


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
