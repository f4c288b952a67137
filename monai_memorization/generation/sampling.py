# SPDX-License-Identifier: Apache-2.0
"""Draw images from a generative model, one seed per image.

An image depends on its seed alone, not on those it is drawn together with nor on the process that draws it. So whatever
is random on the way to the image is drawn from a stream of its own.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from monai.inferers import Inferer
from monai.networks.schedulers import Scheduler
from monai.networks.utils import eval_mode
from torch import Tensor, nn

from monai_memorization.errors import InputError
from monai_memorization.generation.denoising import denoise
from monai_memorization.generation.latents import beyond, decode, to_unit_range, unwrap
from monai_memorization.generation.solver import solver_of
from monai_memorization.undisturbed import undisturbed

logger = logging.getLogger(__name__)


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


def choose_conditions(seeds: Sequence[int], conditions: Tensor) -> Tensor:
    """Choose the condition of each image by its seed, as often as they occur in training.

    Args:
        seeds: n of them.
        conditions: those of the training images, (m, ...).

    Returns:
        (n, ...).
    """
    # a stream of its own: the noise is drawn from the seed itself
    generators = (torch.Generator().manual_seed(2**40 + seed) for seed in seeds)
    return conditions[[int(torch.randint(len(conditions), (), generator=generator)) for generator in generators]]


class LatentSamplingInferer(Inferer):
    """Turn latent noise into images: denoise, divide by the scale factor, decode.

    Args:
        autoencoder: a trained ``AutoencoderKL``.
        scheduler: noise schedule that the network was trained with; copied. Latents are never clipped.
        scale_factor: what latents were multiplied with in training.
        n_steps: number of denoising steps.
        mode: how a condition is given, "crossattn" or "concat".
        value_range: of the images that the autoencoder was trained on; brought to [0, 1].
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        scheduler: Scheduler,
        scale_factor: float | Tensor = 1.0,
        n_steps: int = 20,
        mode: str = "crossattn",
        value_range: Sequence[float] = (0.0, 1.0),
    ) -> None:
        self.autoencoder = unwrap(autoencoder)
        self.scheduler = solver_of(scheduler)
        if hasattr(self.scheduler, "clip_sample"):  # MONAI's default, which is meant for images in [-1, 1]
            self.scheduler.clip_sample = False  # type: ignore[assignment]
        self.scale_factor = float(torch.as_tensor(scale_factor).detach())
        self.n_steps = n_steps
        self.mode = mode
        self.value_range = value_range

    def __call__(self, inputs: Tensor, network: nn.Module, conditioning: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Return images, (n, C, *spatial) in [0, 1].

        Args:
            inputs: standard normal noise, (n, C, *latent).
            network: the diffusion model.
            conditioning: (n, ...), or None.
        """
        latents = denoise(inputs, network, self.scheduler, self.n_steps, conditioning, self.mode)
        return decode(self.autoencoder, latents / self.scale_factor, self.value_range)


class LatentDiffusionSampler:
    """Draw from a latent diffusion model or latent rectified flow; see LatentSamplingInferer.

    Args:
        autoencoder: a trained ``AutoencoderKL``.
        diffusion: the network that was trained on its latents.
        scheduler: noise schedule that it was trained with.
        latent_shape: (C, *latent).
        scale_factor: what latents were multiplied with in training.
        n_steps: number of denoising steps.
        conditions: those of the training images, (m, ...), for a conditional model; drawn as often as they occur.
        mode: how a condition is given, "crossattn" or "concat".
        value_range: of the images that the autoencoder was trained on; brought to [0, 1].

    Raises:
        InputError: if the autoencoder or the shape is not given.
    """

    def __init__(
        self,
        autoencoder: nn.Module,
        diffusion: nn.Module,
        scheduler: Scheduler,
        latent_shape: Sequence[int],
        scale_factor: float | Tensor = 1.0,
        n_steps: int = 20,
        conditions: Tensor | None = None,
        mode: str = "crossattn",
        value_range: Sequence[float] = (0.0, 1.0),
    ) -> None:
        if autoencoder is None:
            raise InputError("sampler: no autoencoder is given; name the one that decodes the latents, as autoencoder")
        self.inferer = LatentSamplingInferer(autoencoder, scheduler, scale_factor, n_steps, mode, value_range)
        self.autoencoder, self.diffusion = self.inferer.autoencoder, unwrap(diffusion)
        self.latent_shape = _shape(latent_shape, "latent_shape", "latent")
        self.conditions = conditions
        self.value_range = value_range

    def __call__(self, seeds: Sequence[int]) -> Tensor:
        """Draw one image per seed, (n, C, *spatial) in [0, 1], all of them in one batch."""
        return self.inferer(*_inputs(seeds, self.diffusion, self.latent_shape, self.conditions))


class PixelDiffusionSampler:
    """Draw from a diffusion model or rectified flow on images themselves.

    Args:
        network: the network that predicts noise, velocity or image.
        scheduler: noise schedule that it was trained with; copied.
        image_shape: (C, *spatial).
        n_steps: number of denoising steps.
        value_range: of the images that it was trained on; brought to [0, 1].
        conditions: those of the training images, (m, ...), for a conditional model; drawn as often as they occur.
        mode: how a condition is given, "crossattn" or "concat".

    Raises:
        InputError: if the shape is not given.
    """

    def __init__(
        self,
        network: nn.Module,
        scheduler: Scheduler,
        image_shape: Sequence[int],
        n_steps: int = 20,
        value_range: Sequence[float] = (0.0, 1.0),
        conditions: Tensor | None = None,
        mode: str = "crossattn",
    ) -> None:
        self.network = unwrap(network)
        self.scheduler = solver_of(scheduler)
        self.image_shape = _shape(image_shape, "image_shape", "image")
        self.n_steps = n_steps
        self.value_range = value_range
        self.conditions = conditions
        self.mode = mode

    def __call__(self, seeds: Sequence[int]) -> Tensor:
        """Draw one image per seed, (n, C, *spatial) in [0, 1], all of them in one batch."""
        inputs, network, conditioning = _inputs(seeds, self.network, self.image_shape, self.conditions)
        return to_unit_range(
            denoise(inputs, network, self.scheduler, self.n_steps, conditioning, self.mode), self.value_range
        )


class GeneratorSampler:
    """Draw from a generator that maps a latent code to an image, as in a GAN.

    Args:
        network: the generator.
        latent_shape: of a code, a number for a vector.
        value_range: of the images that it was trained on; brought to [0, 1].
    """

    def __init__(
        self, network: nn.Module, latent_shape: int | Sequence[int], value_range: Sequence[float] = (0.0, 1.0)
    ) -> None:
        self.network = unwrap(network)
        self.latent_shape = (latent_shape,) if isinstance(latent_shape, int) else tuple(latent_shape)
        self.value_range = value_range

    def __call__(self, seeds: Sequence[int]) -> Tensor:
        """Draw one image per seed, (n, C, *spatial) in [0, 1], all of them in one batch."""
        codes, network, _ = _inputs(seeds, self.network, self.latent_shape, None)
        with eval_mode(network):
            return to_unit_range(network(codes), self.value_range)


class FunctionSampler:
    """Draw with any function of a number and a seed: VQ-VAE with transformer, MAISI, a model outside MONAI.

    It is called for one image at a time, with the random states of torch, NumPy and Python set to the seed and restored
    afterwards: slow, but an image then has a seed of its own whatever the function does.

    Args:
        function: called with n = 1 and the seed; returns a batch, (1, C, *spatial). It has to switch its networks to
            evaluation mode itself: in training mode batch normalization refuses a single vector, and learns from what
            is drawn.
        value_range: of the images that it returns; brought to [0, 1]. What lies beyond is cut off, and told once.

    Raises:
        InputError: at a call, if the function does not return a batch.
    """

    def __init__(self, function: Callable[[int, int], Tensor], value_range: Sequence[float] = (0.0, 1.0)) -> None:
        self.function = function
        self.value_range = value_range
        self._told = False

    def __call__(self, seeds: Sequence[int]) -> Tensor:
        """Draw one image per seed, (n, C, *spatial) in [0, 1]."""
        images = []
        with undisturbed(), torch.no_grad():
            for seed in seeds:
                torch.manual_seed(seed)
                np.random.seed(seed % 2**32)
                random.seed(seed)
                images.append(_as_tensor(self.function(1, seed)))
        batch = torch.cat(images)
        self._tell_of_values_beyond(batch)
        return to_unit_range(batch, self.value_range)

    def _tell_of_values_beyond(self, batch: Tensor) -> None:
        """Warn of values that are cut off: copies without their dark half are none."""
        if self._told or batch.numel() == 0:
            return
        ends = np.quantile(batch.flatten()[:: batch.numel() // 2**16 + 1].float().cpu().numpy(), (0.01, 0.99))
        if not beyond(ends, self.value_range):
            return
        self._told = True
        logger.warning(
            "sampler: the function returned values from about %.3g to %.3g, and what lies outside of its value_range, "
            "[%g, %g], is cut off: copies may go unseen. Unless the generator has hardly been trained, give what its "
            "images are scaled to as value_range",
            *ends,
            *self.value_range,
        )


def _as_tensor(returned: Any) -> Tensor:
    try:
        return torch.as_tensor(returned)
    except (TypeError, ValueError, RuntimeError):  # such as all that a variational autoencoder returns
        raise InputError(
            f"sampler: the function returned {type(returned).__name__}, but one batch of images was expected, "
            "(1, C, *spatial)"
        ) from None


def _shape(given: Sequence[int] | None, name: str, thing: str) -> tuple[int, ...]:
    if given is None:
        raise InputError(f"sampler: no {name} is given; give channels and sides of one {thing}, such as [1, 64, 64]")
    return tuple(given)


def _inputs(
    seeds: Sequence[int], network: nn.Module, shape: Sequence[int], conditions: Tensor | None
) -> tuple[Tensor, nn.Module, Tensor | None]:
    device = next(network.parameters()).device
    conditioning = None if conditions is None else choose_conditions(seeds, conditions).to(device)
    return noise(seeds, shape).to(device), network, conditioning
