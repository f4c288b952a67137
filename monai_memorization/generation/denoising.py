# SPDX-License-Identifier: Apache-2.0
"""Denoising: from noise to what a diffusion model was trained on, without further randomness."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from monai.inferers import DiffusionInferer
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, RFlowScheduler, Scheduler
from monai.networks.utils import eval_mode
from torch import Tensor, nn


def deterministic(scheduler: Scheduler) -> Scheduler:
    """Copy a noise schedule for sampling; a DDPM schedule, which adds noise in each step, becomes that of DDIM.

    DDIM (Song et al. 2021, eta = 0) samples from any network that was trained with the same noise schedule.
    """
    if not isinstance(scheduler, DDPMScheduler):
        return deepcopy(scheduler)
    low, high = scheduler.clip_sample_values
    steps = DDIMScheduler(
        scheduler.num_train_timesteps,
        clip_sample=scheduler.clip_sample,
        clip_sample_min=low,
        clip_sample_max=high,
        prediction_type=str(scheduler.prediction_type),
    )
    for name in ("betas", "alphas", "alphas_cumprod"):
        setattr(steps, name, getattr(scheduler, name).clone())
    return steps


def denoise(
    inputs: Tensor,
    network: nn.Module,
    scheduler: Scheduler,
    n_steps: int,
    conditioning: Tensor | None = None,
    mode: str = "crossattn",
) -> Tensor:
    """Turn noise into what a diffusion model was trained on, with MONAI's DiffusionInferer.

    In MONAI 1.6 the stride of DDIM is num_train_timesteps // n_steps; with 50 of 1,000 steps or more it is exact to one
    step of the schedule.

    Args:
        inputs: standard normal noise, (n, C, *spatial).
        network: the diffusion model; sampled in evaluation mode, which is restored.
        scheduler: from :func:`deterministic`; its time steps are set.
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
