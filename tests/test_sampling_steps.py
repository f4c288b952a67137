# SPDX-License-Identifier: Apache-2.0
"""Samplers are held against each other: each draws as it should, and its images are audited."""

from __future__ import annotations

import json

import pytest
import torch
from monai.bundle import ConfigParser
from monai.networks.schedulers import DDPMScheduler
from scripts import REPOSITORY, load_script
from small_generators import SMALL

from monai_memorization.generation.latents import decode
from monai_memorization.generation.sampling import noise

CONFIG = REPOSITORY / "bundles" / "latent_diffusion_2d" / "configs" / "inference.json"
N_STEPS = 12


@pytest.fixture
def sampling_steps(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return load_script("benchmarks/sampling_steps.py")


@pytest.fixture
def model():
    """Untrained networks of the bundle, with a config that names them."""
    parser = ConfigParser()
    parser.read_config(str(CONFIG))
    parser.update(SMALL)
    torch.manual_seed(0)
    networks = {name: parser.get_parsed_content(f"{name}_def").eval() for name in ("autoencoder", "network")}
    networks["network"].scale_factor.fill_(0.5)
    return networks


@torch.no_grad()
def test_ddpm_goes_back_through_every_step_as_defined(sampling_steps, model):
    schedule = {"num_train_timesteps": N_STEPS, "beta_start": 0.01, "beta_end": 0.2, "clip_sample": False}
    shape, seeds = (model["autoencoder"].latent_channels, 16, 16), range(4, 6)
    sampler = sampling_steps.DDPMSampler(model["autoencoder"], model["network"], DDPMScheduler(**schedule), shape)

    drawn = sampler(seeds)

    # Ho et al. 2020, algorithm 2, with the smaller of the two variances of its section 3.2
    betas = torch.linspace(0.01, 0.2, N_STEPS)
    kept = torch.cumprod(1 - betas, 0)
    latents = noise(seeds, shape)
    torch.manual_seed(4)
    for t in reversed(range(N_STEPS)):
        predicted = model["network"](latents, torch.full((2,), t))
        latents = (latents - betas[t] / (1 - kept[t]).sqrt() * predicted) / (1 - betas[t]).sqrt()
        if t > 0:
            variance = (1 - kept[t - 1]) / (1 - kept[t]) * betas[t]
            latents = latents + variance.sqrt() * torch.randn(latents.shape)
    torch.testing.assert_close(drawn, decode(model["autoencoder"], latents / 0.5), atol=1e-4, rtol=0)


def test_every_sampler_is_timed_and_audited(
    sampling_steps, model, training_folder, validation_folder, encoder_file, tmp_path
):
    for name, network in model.items():
        torch.save(network.state_dict(), tmp_path / f"{name}.pt")
    weights = {"autoencoder_weights": "autoencoder.pt", "diffusion_weights": "network.pt"}
    small = SMALL | {key: str(tmp_path / name) for key, name in weights.items()}
    (tmp_path / "small.json").write_text(json.dumps(small | {"scheduler#num_train_timesteps": N_STEPS}))
    sets = ["--training", training_folder, "--validation", validation_folder, "--encoder", encoder_file]
    options = [CONFIG, tmp_path / "small.json", *sets, "--n", 6]
    options += ["--solver-steps", 2, "--ddim-steps", 3, "--output", tmp_path / "out.json"]

    sampling_steps.main([str(option) for option in options])

    found = json.loads((tmp_path / "out.json").read_text())["sets"]
    assert list(found) == ["solver 2 steps", "DDIM 3 steps", "DDPM"]
    for row in found.values():
        assert row["images_per_cpu_second"] > 0
        assert 0 <= row["n_copies"] <= 6
        assert 0 <= row["paper_n_copies"] <= 6
