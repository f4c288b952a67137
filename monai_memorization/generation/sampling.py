# SPDX-License-Identifier: Apache-2.0
"""Draw images from a generative model, one seed per image."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from typing import Protocol

import torch
from monai.inferers import DiffusionInferer, Inferer
from monai.networks.schedulers import Scheduler
from monai.networks.utils import eval_mode
from torch import Tensor, nn

from monai_memorization.generation.latents import decode


class Sampler(Protocol):
    """Anything that draws images from seeds, the same image from the same seed whatever it is drawn together with."""

    def __call__(self, seeds: Sequence[int]) -> Tensor:
        """Return one image per seed, (n, C, *spatial) in [0, 1]."""


def noise(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Draw standard normal noise, each item from its own seed, on the CPU so that devices agree.

    Args:
        seeds: one per item, n of them.
        shape: of one item.

    Returns:
        (n, *shape).
    """
    return torch.stack([torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


class LatentSamplingInferer(Inferer):
    """Turn latent noise into images: denoise, divide by the scale factor, decode.

    With a DDIM scheduler the result depends on the noise alone: nothing random is added on the way. In MONAI 1.6 the
    scheduler's stride is 1000 // n_steps; with 50 steps or more it is exact to one step of the noise schedule.

    Args:
        autoencoder: a trained ``AutoencoderKL``.
        scheduler: noise schedule that the network was trained with, ``clip_sample`` false; copied, since it is changed.
        scale_factor: what latents were multiplied with in training.
        n_steps: number of denoising steps.
    """

    def __init__(
        self, autoencoder: nn.Module, scheduler: Scheduler, scale_factor: float | Tensor = 1.0, n_steps: int = 50
    ) -> None:
        self.autoencoder = autoencoder
        self.scheduler = deepcopy(scheduler)
        self.scheduler.set_timesteps(n_steps)  # type: ignore[operator]
        self.scale_factor = float(scale_factor)

    def __call__(self, inputs: Tensor, network: nn.Module) -> Tensor:  # type: ignore[override]
        """Return images, (n, C, *spatial) in [0, 1].

        Args:
            inputs: standard normal noise, (n, C, *latent).
            network: the diffusion model.
        """
        with eval_mode(network):
            latents = DiffusionInferer(self.scheduler).sample(inputs, network, verbose=False)  # type: ignore[arg-type]
        return decode(self.autoencoder, torch.as_tensor(latents) / self.scale_factor)


class LatentDiffusionSampler:
    """A sampler of a latent diffusion model; see LatentSamplingInferer.

    Args:
        autoencoder: a trained ``AutoencoderKL``.
        diffusion: the network that was trained on its latents.
        scheduler: noise schedule that it was trained with.
        latent_shape: (C, *latent).
        scale_factor: what latents were multiplied with in training.
        n_steps: number of denoising steps.
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        diffusion: nn.Module,
        scheduler: Scheduler,
        latent_shape: Sequence[int],
        scale_factor: float | Tensor = 1.0,
        n_steps: int = 50,
    ) -> None:
        self.inferer = LatentSamplingInferer(autoencoder, scheduler, scale_factor, n_steps)
        self.diffusion = diffusion
        self.latent_shape = tuple(latent_shape)

    def __call__(self, seeds: Sequence[int]) -> Tensor:
        """Draw one image per seed, (n, C, *spatial) in [0, 1], all of them in one batch."""
        device = next(self.diffusion.parameters()).device
        return self.inferer(noise(seeds, self.latent_shape).to(device), self.diffusion)
