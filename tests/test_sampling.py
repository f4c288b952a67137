# SPDX-License-Identifier: Apache-2.0
"""Sampling: one seed, one image, whatever it is drawn together with."""

from __future__ import annotations

import pytest
import torch
from small_generators import ddim_scheduler, small_autoencoder, small_diffusion
from torch import nn

from monai_memorization.generation.sampling import LatentDiffusionSampler, LatentSamplingInferer, noise

LATENTS = [(3, 8, 8), (3, 4, 4, 4)]


def sampler(latent_shape: tuple[int, ...], scale_factor: float = 1.0) -> LatentDiffusionSampler:
    spatial_dims = len(latent_shape) - 1
    networks = small_autoencoder(spatial_dims), small_diffusion(spatial_dims)
    return LatentDiffusionSampler(*networks, ddim_scheduler(), latent_shape, scale_factor)


@pytest.mark.parametrize("latent_shape", LATENTS)
def test_batch_size_does_not_matter(latent_shape):
    draw = sampler(latent_shape)
    together = draw(range(7))
    assert together.shape == (7, 1, *(2 * side for side in latent_shape[1:]))
    one_by_one = torch.cat([draw([seed]) for seed in range(7)])
    torch.testing.assert_close(together, one_by_one, atol=1e-4, rtol=0)


@pytest.mark.parametrize("latent_shape", LATENTS)
def test_seeds_decide_the_image(latent_shape):
    draw = sampler(latent_shape)
    torch.manual_seed(5)  # which has no part in it
    first = draw([3, 4])
    torch.manual_seed(6)
    assert torch.equal(draw([3, 4]), first)
    assert not torch.allclose(first[0], first[1], atol=0.01)
    assert first.min() >= 0
    assert first.max() <= 1


def test_noise_is_standard_normal_and_differs_between_seeds():
    values = noise(range(200), (2, 10, 10))
    assert values.mean().abs() < 0.02
    assert values.std().item() == pytest.approx(1, abs=0.02)
    correlation = torch.corrcoef(values.flatten(1)).fill_diagonal_(0)
    assert correlation.abs().max() < 0.4


class PerfectDenoiser(nn.Module):
    """Knows the only latent there is, and hence the noise in any mixture with it."""

    def __init__(self, latent: torch.Tensor) -> None:
        super().__init__()
        self.latent = latent
        self.alphas = ddim_scheduler().alphas_cumprod

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: None = None) -> torch.Tensor:
        alpha = self.alphas[timesteps.long()]
        return (x - alpha.sqrt() * self.latent) / (1 - alpha).sqrt()


@pytest.mark.parametrize("n_steps", [50, 100, 1000])
def test_perfect_denoiser_ends_at_its_latent_divided_by_the_scale(n_steps):
    # a clipped or unscaled latent would end elsewhere
    latent = 3 * torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1))
    autoencoder = small_autoencoder()
    inferer = LatentSamplingInferer(autoencoder, ddim_scheduler(), scale_factor=2.0, n_steps=n_steps)
    with torch.no_grad():
        expected = autoencoder.decode(latent[None] / 2).clamp(0, 1)
    drawn = inferer(noise([0, 1], latent.shape), PerfectDenoiser(latent))
    torch.testing.assert_close(drawn, expected.expand_as(drawn), atol=1e-3, rtol=0)


def test_sampling_leaves_networks_and_scheduler_as_they_were():
    autoencoder, diffusion, scheduler = small_autoencoder().train(), small_diffusion().train(), ddim_scheduler()
    timesteps = scheduler.timesteps.clone()
    LatentDiffusionSampler(autoencoder, diffusion, scheduler, (3, 8, 8), n_steps=2)([0])
    assert autoencoder.training
    assert diffusion.training
    assert torch.equal(scheduler.timesteps, timesteps)
