# SPDX-License-Identifier: Apache-2.0
"""Generative networks that are small enough to train for a few steps in a test."""

from __future__ import annotations

import torch
from monai.networks.nets import AutoencoderKL
from monai.networks.schedulers import DDIMScheduler

from monai_memorization.generation.latents import LatentDiffusionUNet

# the same networks as options of the bundle
SMALL = {
    "image_size": [32, 32],
    "autoencoder_channels": [8, 8],
    "autoencoder_res_blocks": 1,
    "autoencoder_norm_groups": 2,
    "autoencoder_attention": False,
    "diffusion_channels": [8, 16],
    "diffusion_res_blocks": 1,
    "diffusion_norm_groups": 2,
    "diffusion_attention": [False, True],
    "diffusion_head_channels": 8,
    "discriminator_channels": 4,
    "discriminator_layers": 2,
    "adversarial_warmup": 1,
}


def small_autoencoder(spatial_dims: int = 2, seed: int = 0) -> AutoencoderKL:
    """Return an autoencoder of one channel that halves each side; 3 latent channels."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        spatial_dims,
        channels=(8, 8),
        num_res_blocks=(1, 1),
        attention_levels=(False, False),
        norm_num_groups=2,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
        include_fc=False,
    ).eval()


def small_diffusion(spatial_dims: int = 2, seed: int = 0, **settings: object) -> LatentDiffusionUNet:
    """Return a diffusion model of 3 latent channels whose output is not the zero that MONAI starts with."""
    torch.manual_seed(seed)
    defaults = {
        "in_channels": 3,
        "out_channels": 3,
        "channels": (8, 16),
        "num_res_blocks": (1, 1),
        "attention_levels": (False, True),
        "norm_num_groups": 2,
        "num_head_channels": 8,
        "include_fc": False,
    }
    network = LatentDiffusionUNet(spatial_dims, **(defaults | settings)).eval()
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return network


def ddim_scheduler() -> DDIMScheduler:
    """Return the noise schedule of the bundles."""
    return DDIMScheduler(1000, schedule="scaled_linear_beta", beta_start=0.0015, beta_end=0.0195, clip_sample=False)
