# SPDX-License-Identifier: Apache-2.0
"""A second device without a GPU: the CPU computes what is on it, and it may not meet tensors of the CPU.

Within :func:`second_device` what is on torch's "meta" device holds values. As on a GPU, an operation fails that mixes
tensors of both devices, but for copies, for numbers without dimension, and for indices, which torch moves by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

NAME = "meta"


@contextmanager
def second_device() -> Iterator[Counter[str]]:
    """Yield how often each operation ran on the second device."""
    with _Compute() as compute, _Make():
        yield compute.n_calls


class _Held(Tensor):
    """A tensor that says it is on the second device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> _Held:
        layout = {"strides": held.stride(), "dtype": held.dtype, "device": NAME}
        made = Tensor._make_wrapper_subclass(cls, held.shape, **layout)  # type: ignore[attr-defined]
        made.held = held
        return made  # type: ignore[no-any-return]

    def tolist(self) -> Any:
        return self.held.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("a tensor of the second device has to be copied to the CPU first")

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{function}: outside of second_device")


class _Make(TorchFunctionMode):
    """Makes a tensor of Python's numbers here and moves it there: below this nobody sees its values."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return function(*args, **kwargs).to(device)
        return function(*args, **kwargs)


class _Compute(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.n_calls: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = function._schema.name.removeprefix("aten::"), dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        there = [tensor for tensor in tensors if isinstance(tensor, _Held)]
        alone = len(there) == len(tensors) or all(t.dim() == 0 for t in tensors if not isinstance(t, _Held))
        moved_by_torch = name in ("copy_", "_to_copy") or (name.startswith("index") and isinstance(args[0], _Held))
        if there and not alone and not moved_by_torch:
            raise RuntimeError(f"{name}: tensors of two devices")
        on_it = bool(there)
        if name == "copy_":
            on_it = isinstance(args[0], _Held)
        elif kwargs.get("device") is not None:
            on_it = torch.device(kwargs["device"]).type == NAME
            kwargs["device"] = torch.device("cpu")
        args, kwargs = tree_map_only(_Held, lambda tensor: tensor.held, (args, kwargs))
        result = function(*args, **kwargs)
        if not on_it:
            return result
        self.n_calls[name] += 1
        known = {id(tensor.held): tensor for tensor in there}  # what an operation changed in place
        return tree_map_only(Tensor, lambda made: known[id(made)] if id(made) in known else _Held(made), result)
