# SPDX-License-Identifier: Apache-2.0
"""What a training or a drawing depends on, in a form by which what an earlier run left is known again."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
from monai.networks.schedulers import Scheduler
from monai.transforms import Transform
from torch import Tensor, nn

from monai_memorization.detector.shards import hash_weights


def described(setting: Any) -> Any:
    """Describe a setting by plain values only, whose repr is the same in another process.

    Of a network the weights count; of a noise schedule its tables; of transforms their types, what they were made with
    and the transforms within, but not what they draw at random.

    Args:
        setting: number, text, tensor, network, schedule, transform, or a list of such.
    """
    if isinstance(setting, Tensor | np.ndarray | np.generic):
        return setting.tolist()
    if isinstance(setting, list | tuple):
        return [described(part) for part in setting]
    if isinstance(setting, Scheduler | Transform):
        return type(setting).__qualname__, [(name, described(value)) for name, value in _made_of(setting)]
    if isinstance(setting, nn.Module):
        return hash_weights(setting)
    return setting if setting is None or isinstance(setting, int | float | str) else type(setting).__qualname__


def _made_of(thing: Scheduler | Transform) -> Iterator[tuple[str, Any]]:
    arguments = inspect.signature(type(thing)).parameters
    for name, value in sorted(vars(thing).items()):
        if isinstance(thing, Scheduler):
            counts = isinstance(value, int | float | str | Tensor)
        else:
            counts = name in arguments or isinstance(value, Transform)
        if counts:
            yield name, value
