# SPDX-License-Identifier: Apache-2.0
"""Latents: encoded once, the same as encoding each time, scaled to unit deviation and back."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine
from small_generators import small_autoencoder, small_diffusion
from torch.utils.data import DataLoader

from monai_memorization.generation.latents import LatentDataset, LatentRefreshHandler, decode, encode
from monai_memorization.images.prepared import prepared_images


@pytest.fixture(scope="module")
def images(training_folder):
    return prepared_images(training_folder, (32, 32))


def test_cached_latents_equal_encoding_each_time(images):
    autoencoder = small_autoencoder()
    latents = LatentDataset(images, autoencoder, batch_size=7)
    for index in (0, 7, 39):
        alone = encode(autoencoder, images[index]["image"][None])[0]
        torch.testing.assert_close(latents[index]["image"], alone * latents.scale_factor, atol=1e-5, rtol=1e-5)
        assert latents[index]["image_id"] == images[index]["image_id"]


def test_scaled_latents_have_unit_deviation(images):
    latents = LatentDataset(images, small_autoencoder())
    everything = torch.stack([latents[i]["image"] for i in range(len(latents))])
    assert everything.shape == (40, 3, 16, 16)
    assert everything.std().item() == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize("size", [(16, 16), (8, 8, 8)])
def test_scaling_and_unscaling_loses_nothing(size):
    autoencoder = small_autoencoder(len(size))
    images = torch.rand(3, 1, *size)
    scale_factor = 1 / encode(autoencoder, images).std()
    scaled = encode(autoencoder, images) * scale_factor
    with torch.no_grad():
        expected = autoencoder.reconstruct(images).clamp(0, 1)
    torch.testing.assert_close(decode(autoencoder, scaled / scale_factor), expected, atol=1e-5, rtol=1e-5)


def test_scale_factor_is_saved_with_the_weights():
    network, other = small_diffusion(), small_diffusion()
    network.scale_factor.fill_(0.25)
    other.load_state_dict(network.state_dict())
    assert other.scale_factor == 0.25


def test_encoding_leaves_the_autoencoder_as_it_was(images):
    autoencoder = small_autoencoder().train()
    LatentDataset(images, autoencoder)
    assert autoencoder.training
    assert all(parameter.grad is None for parameter in autoencoder.parameters())


@pytest.mark.parametrize("augmented", [True, False])
def test_augmented_images_are_encoded_anew_each_epoch(images, augmented):
    seen = []
    latents = LatentDataset(images, small_autoencoder(), augmentation=noisy if augmented else None)
    engine = Engine(lambda engine, batch: seen.append(batch["image"].clone()))
    LatentRefreshHandler(latents).attach(engine)
    engine.run(DataLoader(latents, batch_size=len(latents)), max_epochs=3)
    assert len(seen) == 3
    assert torch.equal(seen[0], seen[1]) is not augmented
    assert torch.equal(seen[1], seen[2]) is not augmented


def test_augmentation_does_not_change_the_scale_in_training(images):
    latents = LatentDataset(images, small_autoencoder(), augmentation=noisy)
    before = latents.scale_factor
    latents.encode()
    assert latents.scale_factor == before


def noisy(image: torch.Tensor) -> torch.Tensor:
    return image + 0.3 * torch.randn_like(image)
