# SPDX-License-Identifier: Apache-2.0
"""Generators that are no diffusion models: a GAN, and an autoencoder with a prior fitted to its latents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from monai.data import DataLoader, Dataset
from monai.engines import GanTrainer
from monai.networks.nets import Discriminator, Generator
from torch import Tensor, nn

from monai_memorization.errors import InputError

CODE_SIZE = 64


def gan_trainer(images: Tensor, settings: Mapping[str, Any]) -> GanTrainer:
    """Return a trainer of a GAN with the non-saturating loss (Goodfellow et al. 2014), in MONAI's networks.

    Its generator, ``g_network``, maps codes of ``CODE_SIZE`` standard normal numbers to images in [0, 1].

    Args:
        images: training images, (n, C, *spatial) in [0, 1], sides divisible by 16.
        settings: ``epochs``, ``batch_size``, ``channels`` of the generator from the coarsest of its four maps on, and
            ``learning_rate``.

    Raises:
        InputError: for other sides, which four halvings do not fit.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    image_channels, *size = images.shape[1:]
    if any(side % 16 for side in size):
        raise InputError(f"image_size: found {size}, but a GAN of these networks needs sides divisible by 16")
    first, *channels = settings["channels"]
    start = [first, *(side // 8 for side in size)]
    generator = nn.Sequential(Generator(CODE_SIZE, start, [*channels, image_channels], [2, 2, 2, 1]), nn.Sigmoid())
    generator = generator.to(device)
    discriminator = Discriminator(images.shape[1:], [*settings["channels"][::-1], 1], [2, 2, 2, 2, 1], last_act=None)
    discriminator = discriminator.to(device)
    settings_of_adam = {"lr": settings["learning_rate"], "betas": (0.5, 0.999)}
    return GanTrainer(
        device=device,
        max_epochs=settings["epochs"],
        train_data_loader=loader(images, "reals", settings["batch_size"]),
        g_network=generator,
        g_optimizer=torch.optim.Adam(generator.parameters(), **settings_of_adam),
        g_loss_function=lambda fakes: real_or_fake_loss(discriminator, fakes, 1.0),
        d_network=discriminator,
        d_optimizer=torch.optim.Adam(discriminator.parameters(), **settings_of_adam),
        d_loss_function=lambda fakes, reals: (
            (real_or_fake_loss(discriminator, fakes.detach(), 0.0) + real_or_fake_loss(discriminator, reals, 1.0)) / 2
        ),
        latent_shape=CODE_SIZE,
        decollate=False,
    )


def real_or_fake_loss(discriminator: nn.Module, images: Tensor, real: float) -> Tensor:
    """Return the cross entropy of what the discriminator says of images that are all real, 1, or all fake, 0."""
    logits = discriminator(images)
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, real))


def loader(images: Tensor, key: str, batch_size: int) -> DataLoader:
    """Return the batches of images in memory."""
    return DataLoader(Dataset([{key: image} for image in images]), batch_size=batch_size, shuffle=True)


class GaussianPrior(nn.Module):
    """An autoencoder as a generator: decodes draws from a Gaussian of full covariance fitted to its latents.

    The covariance of the maximum likelihood is X'X/n, with the centred latents as the rows of X, so that X'c/sqrt(n) of
    standard normal codes c has it. No matrix of latent values squared is needed, and none has to be made regular.

    Args:
        autoencoder: a trained ``AutoencoderKL``.
        latents: of the training images, (n, C, *latent).
    """

    def __init__(self, autoencoder: nn.Module, latents: Tensor) -> None:
        super().__init__()
        device = next(autoencoder.parameters()).device
        self.autoencoder = autoencoder
        self.mean = latents.mean(0).to(device)
        self.root = (latents.to(device) - self.mean) / len(latents) ** 0.5

    def forward(self, codes: Tensor) -> Tensor:
        """Return the images of standard normal codes, (B, n)."""
        return self.autoencoder.decode(self.mean + torch.tensordot(codes, self.root, 1))
