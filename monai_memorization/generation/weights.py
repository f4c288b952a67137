# SPDX-License-Identifier: Apache-2.0
"""Load the weights of generative networks."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from monai_memorization.errors import InputError


def load_weights(network: nn.Module, path: str | Path, device: str | torch.device = "cpu") -> nn.Module:
    """Fill a network with the weights of a file, every one of them, and return it on the device in evaluation mode.

    Args:
        network: network of the right structure; changed.
        path: plain state dict, as the bundles' trainings write it.
        device: where the network shall be.

    Returns:
        The same network.

    Raises:
        InputError: if the file is missing, is no state dict, or belongs to a network of another structure.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file of weights; train the network first, or name the file")
    try:
        network.load_state_dict(torch.load(path, map_location=device, weights_only=True))
    except Exception as error:  # unpickling fails in many ways
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{path}: does not hold the weights of this {type(network).__name__} ({reason})") from error
    return network.to(device).eval()
