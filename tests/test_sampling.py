# SPDX-License-Identifier: Apache-2.0
"""Sampling: one seed, one image, whatever it is drawn together with."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch
from monai.inferers import VQVAETransformerInferer
from monai.networks.nets import VQVAE, DecoderOnlyTransformer, Generator
from monai.networks.schedulers import DDPMScheduler, PNDMScheduler, RFlowScheduler
from monai.utils.ordering import Ordering
from small_generators import ddim_scheduler, small_autoencoder, small_diffusion
from torch import nn

from monai_memorization.errors import InputError
from monai_memorization.generation.latents import decode
from monai_memorization.generation.sampling import (
    FunctionSampler,
    GeneratorSampler,
    LatentDiffusionSampler,
    LatentSamplingInferer,
    PixelDiffusionSampler,
    Sampler,
    choose_conditions,
    noise,
    unwrap,
)

LATENTS = [(3, 8, 8), (3, 4, 4, 4)]


def sampler(latent_shape: tuple[int, ...], scale_factor: float = 1.0) -> LatentDiffusionSampler:
    spatial_dims = len(latent_shape) - 1
    networks = small_autoencoder(spatial_dims), small_diffusion(spatial_dims)
    return LatentDiffusionSampler(*networks, ddim_scheduler(), latent_shape, scale_factor)


def small_vqvae() -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(
        2,
        in_channels=1,
        out_channels=1,
        channels=(4, 4),
        num_res_layers=1,
        num_res_channels=(4, 4),
        downsample_parameters=((2, 4, 1, 1),) * 2,
        upsample_parameters=((2, 4, 1, 1, 0),) * 2,
        num_embeddings=8,
        embedding_dim=4,
    ).eval()


def transformer_sampler() -> FunctionSampler:
    """VQ-VAE and transformer of MONAI, whose sampling is random throughout."""
    autoencoder = small_vqvae()
    transformer = DecoderOnlyTransformer(9, 16, attn_layers_dim=8, attn_layers_depth=1, attn_layers_heads=2).eval()
    order = Ordering("raster_scan", 2, (1, 4, 4))

    def draw(n: int, seed: int) -> torch.Tensor:
        start = 8 * torch.ones(n, 1)
        inferer = VQVAETransformerInferer()
        return inferer.sample((4, 4), start, autoencoder, transformer, order, verbose=False)

    return FunctionSampler(draw, value_range=(-1, 1))


def conditional(**settings: object) -> torch.nn.Module:
    return small_diffusion(with_conditioning=True, cross_attention_dim=2, **settings)


def gan(seed: int = 0) -> nn.Module:
    """Generator with batch normalisation, which mixes the images of a batch unless it is in evaluation mode."""
    torch.manual_seed(seed)
    return Generator(6, (4, 4, 4), (4, 1), (2, 2), norm="BATCH", num_res_units=0).train()


CONDITIONS = torch.eye(2)[torch.tensor([0, 0, 0, 1])][:, None]
SCHEDULE = {"num_train_timesteps": 1000, "schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0195}


def ddpm_scheduler() -> DDPMScheduler:
    """Of velocity: with that of noise, an untrained network makes large differences out of rounding errors."""
    return DDPMScheduler(**SCHEDULE, prediction_type="v_prediction")


SAMPLERS = {
    "latent 2D": lambda: sampler((3, 8, 8)),
    "latent 3D": lambda: sampler((3, 4, 4, 4)),
    "latent flow": lambda: LatentDiffusionSampler(
        small_autoencoder(), small_diffusion(), RFlowScheduler(use_timestep_transform=True, spatial_dim=2), (3, 8, 8)
    ),
    "DDPM": lambda: PixelDiffusionSampler(small_diffusion(), ddpm_scheduler(), (3, 16, 16)),
    "PNDM": lambda: PixelDiffusionSampler(small_diffusion(), PNDMScheduler(**SCHEDULE), (3, 16, 16), 20),
    "flow 3D": lambda: PixelDiffusionSampler(small_diffusion(3), RFlowScheduler(), (3, 8, 8, 8), 10, (-1, 1)),
    "conditional": lambda: PixelDiffusionSampler(
        conditional(), ddpm_scheduler(), (3, 16, 16), 20, conditions=CONDITIONS
    ),
    "GAN": lambda: GeneratorSampler(gan(), 6, (-2, 2)),
    "transformer": transformer_sampler,
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_image_depends_on_its_seed_alone(name):
    draw: Sampler = SAMPLERS[name]()
    torch.manual_seed(5)  # which has no part in it
    together = draw(range(5))
    state = torch.get_rng_state()

    one_by_one = torch.cat([draw([seed]) for seed in range(5)])
    torch.testing.assert_close(together, one_by_one, atol=1e-4, rtol=0)
    torch.testing.assert_close(together[[4, 2]], draw([4, 2]), atol=1e-4, rtol=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert (together[0] - together[1]).abs().max() > 0.01
    assert together.min() >= 0
    assert together.max() <= 1


def test_latent_images_have_the_size_of_the_decoder():
    for latent_shape in LATENTS:
        assert sampler(latent_shape)([0]).shape == (1, 1, *(2 * side for side in latent_shape[1:]))


def test_conditions_are_drawn_as_often_as_in_training():
    drawn = choose_conditions(range(2000), CONDITIONS)
    assert drawn.shape == (2000, 1, 2)
    assert drawn[:, 0, 1].mean().item() == pytest.approx(0.25, abs=0.04)
    # and have nothing to do with the noise
    both = torch.stack([drawn[:, 0, 1], noise(range(2000), (1,))[:, 0]])
    assert torch.corrcoef(both)[0, 1].abs() < 0.08


@pytest.mark.parametrize("mode", ["crossattn", "concat"])
def test_condition_reaches_the_network(mode):
    network = conditional() if mode == "crossattn" else small_diffusion(in_channels=4)
    images = []
    for value in (0.0, 3.0):
        condition = torch.full((1, 1, 2) if mode == "crossattn" else (1, 1, 16, 16), value)
        images.append(
            PixelDiffusionSampler(network, ddim_scheduler(), (3, 16, 16), 20, (-3, 3), condition, mode)(range(2))
        )
    assert (images[0] - images[1]).abs().max() > 1e-3


def test_value_range_is_brought_to_zero_to_one():
    class Linear(nn.Linear):
        def forward(self, codes):
            return codes[:, None, :, None] * 2

    network = Linear(1, 1)
    codes = noise(range(4), (3,))[:, None, :, None] * 2
    expected = ((codes + 1) / 4).clamp(0, 1)
    torch.testing.assert_close(GeneratorSampler(network, (3,), (-1, 3))(range(4)), expected)


def test_value_range_of_an_autoencoder_is_brought_to_zero_to_one():
    autoencoder, latent_shape = small_autoencoder(), (3, 8, 8)
    given = autoencoder, small_diffusion(), ddim_scheduler(), latent_shape
    wide = LatentDiffusionSampler(*given, n_steps=2, value_range=(-9, 9))([0])
    assert wide.min() > 0
    assert wide.max() < 1
    torch.testing.assert_close((wide * 18 - 9).clamp(0, 1), LatentDiffusionSampler(*given, n_steps=2)([0]))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            lambda: PixelDiffusionSampler(small_diffusion(), ddim_scheduler(), None),
            "no image_shape is given; give chan",
        ),
        (
            lambda: LatentDiffusionSampler(small_autoencoder(), small_diffusion(), ddim_scheduler(), None),
            "no latent_shape is given; give channels and sides of one latent",
        ),
        (
            lambda: LatentDiffusionSampler(None, small_diffusion(), ddim_scheduler(), (3, 8, 8)),
            "no autoencoder is given; name",
        ),
    ],
)
def test_what_a_config_leaves_out_is_named(made, message):
    with pytest.raises(InputError, match=f"sampler: {message}"):
        made()


@pytest.mark.parametrize("returned", [(torch.rand(1, 1, 4, 4), torch.rand(1, 8)), None, "image"])
def test_function_that_returns_no_batch_is_named(returned):
    message = f"sampler: the function returned {type(returned).__name__}, but one batch of images was expected"
    with pytest.raises(InputError, match=message):
        FunctionSampler(lambda n, seed: returned)([0])


def test_function_has_a_seed_of_its_own_wherever_its_numbers_come_from():
    def draw(n: int, seed: int) -> torch.Tensor:
        return torch.rand(n, 1, 4, 4) / 3 + np.random.rand() / 3 + random.random() / 3

    sampler, before = FunctionSampler(draw), (random.getstate(), np.random.get_state()[1].tolist())
    first, second = sampler([3, 5])
    assert torch.equal(sampler([5])[0], second)
    assert not torch.allclose(first, second)
    assert before == (random.getstate(), np.random.get_state()[1].tolist())


def test_values_that_are_cut_off_are_told_once(caplog):
    def draw(n: int, seed: int) -> torch.Tensor:
        return noise([seed], (1, 16, 16)).tanh()

    sampler = FunctionSampler(draw)
    for seed in range(3):
        sampler([seed])

    (record,) = caplog.records
    assert re.search(r"from about -0\.\d+ to 0\.\d+, .* its value_range, \[0, 1\], is cut off", record.getMessage())


@pytest.mark.parametrize("value_range", [(-1, 1), (-0.95, 0.95), (-5, 5)])
def test_values_within_their_range_or_resampled_a_little_beyond_are_not_told(value_range, caplog):
    FunctionSampler(lambda n, seed: noise([seed], (n, 1, 16, 16)).tanh(), value_range)([0])

    assert not caplog.records


def test_latents_of_a_vqvae_are_looked_up_in_its_code_book():
    autoencoder, latents = small_vqvae(), noise([0, 1], (4, 4, 4))
    with torch.no_grad():
        expected = autoencoder.decode_stage_2_outputs(latents)
        plain = autoencoder.decode(latents)
    torch.testing.assert_close(decode(autoencoder, latents, (-10, 10)) * 20 - 10, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(plain, expected)


def test_latents_are_not_clipped_even_where_the_schedule_says_so():
    clipping = DDPMScheduler(**SCHEDULE, clip_sample=True)
    networks = small_autoencoder(), small_diffusion()
    images = [LatentDiffusionSampler(*networks, s, (3, 8, 8))([0]) for s in (clipping, ddim_scheduler())]
    assert torch.equal(*images)


def test_flow_ends_at_the_image_that_its_velocity_points_to():
    image = torch.rand(1, 8, 8, generator=torch.Generator().manual_seed(1))

    class Velocity(nn.Linear):
        def forward(self, x, timesteps, context=None):
            return (image - x) / (timesteps / 1000)

    drawn = PixelDiffusionSampler(Velocity(1, 1), RFlowScheduler(), (1, 8, 8), n_steps=25)([0, 1])
    torch.testing.assert_close(drawn, image.expand_as(drawn), atol=1e-4, rtol=0)


def test_network_is_taken_out_of_its_distributed_wrapper():
    network = nn.Linear(1, 1)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(network)
    finally:
        torch.distributed.destroy_process_group()
    assert unwrap(wrapped) is network
    assert unwrap(network) is network


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
