# SPDX-License-Identifier: Apache-2.0
"""Denoising: from noise to what a diffusion model was trained on."""

from __future__ import annotations

from typing import Any

import torch
from monai.inferers import DiffusionInferer
from monai.networks.schedulers import RFlowScheduler, Scheduler
from monai.networks.utils import eval_mode
from torch import Tensor, nn


def denoise(
    inputs: Tensor,
    network: nn.Module,
    scheduler: Scheduler,
    n_steps: int,
    conditioning: Tensor | None = None,
    mode: str = "crossattn",
) -> Tensor:
    """Turn noise into what a diffusion model was trained on, with MONAI's DiffusionInferer.

    Args:
        inputs: standard normal noise, (n, C, *spatial).
        network: the diffusion model; sampled in evaluation mode, which is restored.
        scheduler: from :func:`monai_memorization.generation.solver.solver_of`; its time steps are set.
        n_steps: number of denoising steps; at most those of training.
        conditioning: (n, ...), or None.
        mode: how the condition is given, "crossattn" or "concat", as in MONAI.

    Returns:
        (n, C, *spatial).
    """
    settings: dict[str, Any] = {}
    if isinstance(scheduler, RFlowScheduler):
        settings["input_img_size_numel"] = inputs[0, 0].numel()
    n_steps = min(n_steps, scheduler.num_train_timesteps)
    scheduler.set_timesteps(n_steps, **settings)  # type: ignore[operator]
    inferer: Any = DiffusionInferer(scheduler)
    with eval_mode(network):
        return torch.as_tensor(inferer.sample(inputs, network, conditioning=conditioning, mode=mode, verbose=False))
