# SPDX-License-Identifier: Apache-2.0
"""Weights: all of them or an error that names the file."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from monai.networks.nets import VQVAE, AutoencoderKL, DiffusionModelUNet
from small_generators import small_autoencoder, small_diffusion
from torch import nn

from monai_memorization.errors import InputError
from monai_memorization.generation.latents import LatentDiffusionUNet
from monai_memorization.generation.weights import core_state_dict, load_weights

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # it calls autocast as torch no longer likes it
    import generative.networks.nets as old_nets


def test_weights_come_back_as_they_were_saved(tmp_path):
    network = small_diffusion(seed=1)
    network.scale_factor.fill_(3)
    torch.save(network.state_dict(), tmp_path / "model.pt")
    loaded = load_weights(small_diffusion(seed=2).train(), tmp_path / "model.pt")
    assert not loaded.training
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.pt: no such file"):
        load_weights(small_autoencoder(), tmp_path / "none.pt")


@pytest.mark.parametrize("content", [b"", b"not weights"])
def test_broken_file_is_named(tmp_path, content):
    (tmp_path / "broken.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"broken\.pt: does not hold the weights of this AutoencoderKL"):
        load_weights(small_autoencoder(), tmp_path / "broken.pt")


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save(small_autoencoder().state_dict(), tmp_path / "autoencoder.pt")
    with pytest.raises(InputError, match=r"autoencoder\.pt: does not hold the weights of this LatentDiffusionUNet"):
        load_weights(small_diffusion(), tmp_path / "autoencoder.pt")


def test_file_that_would_run_code_is_refused(tmp_path):
    torch.save(small_autoencoder(), tmp_path / "pickled.pt")
    with pytest.raises(InputError, match="does not hold the weights"):
        load_weights(small_autoencoder(), tmp_path / "pickled.pt")


# --- weights of monai-generative ---

AUTOENCODER = {"num_res_blocks": (1, 1), "norm_num_groups": 2, "in_channels": 1, "out_channels": 1}
DIFFUSION = AUTOENCODER | {"attention_levels": (False, True), "num_head_channels": 8}
CONDITIONED = {"with_conditioning": True, "cross_attention_dim": 4, "transformer_num_layers": 2}
VECTORS = {
    "in_channels": 1,
    "out_channels": 1,
    "num_res_layers": 1,
    "num_res_channels": (8, 8),
    "downsample_parameters": ((2, 4, 1, 1),) * 2,
    "upsample_parameters": ((2, 4, 1, 1, 0),) * 2,
    "num_embeddings": 16,
    "embedding_dim": 4,
}


def nonzero(network: nn.Module) -> nn.Module:
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return network.eval()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def stored(network: nn.Module, path: Path) -> Path:
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("nonlocal_", [True, False])
@pytest.mark.parametrize("attention", [True, False])
def test_old_autoencoder_gives_what_it_gave(spatial_dims, nonlocal_, attention, tmp_path):
    settings = AUTOENCODER | {
        "attention_levels": (False, attention),
        "with_encoder_nonlocal_attn": nonlocal_,
        "with_decoder_nonlocal_attn": nonlocal_,
    }
    old = nonzero(old_nets.AutoencoderKL(spatial_dims, num_channels=(8, 8), **settings))
    core = AutoencoderKL(spatial_dims, channels=(8, 8), include_fc=False, **settings)
    image = torch.rand(2, 1, *[16] * spatial_dims)

    loaded = load_weights(core, stored(old, tmp_path / "old.pt"))

    with torch.no_grad():
        torch.testing.assert_close(loaded.reconstruct(image), old.reconstruct(image), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(loaded.encode(image), old.encode(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("resblock_updown", [False, True])
@pytest.mark.parametrize("conditioned", [False, True])
def test_old_diffusion_model_gives_what_it_gave(spatial_dims, conditioned, resblock_updown, tmp_path):
    settings = DIFFUSION | {"resblock_updown": resblock_updown} | (CONDITIONED if conditioned else {})
    old = nonzero(old_nets.DiffusionModelUNet(spatial_dims, num_channels=(8, 16), **settings))
    core = DiffusionModelUNet(spatial_dims, channels=(8, 16), include_fc=conditioned, **settings)
    image, steps = torch.rand(2, 1, *[8] * spatial_dims), torch.tensor([3, 900])
    context = torch.rand(2, 1, 4) if conditioned else None

    loaded = load_weights(core, stored(old, tmp_path / "old.pt"))

    with torch.no_grad():
        expected = old(image, steps, context=context)
        torch.testing.assert_close(loaded(image, steps, context=context), expected, rtol=1e-4, atol=1e-4)
    assert expected.abs().mean() > 0.1


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_old_vqvae_gives_what_it_gave(spatial_dims, tmp_path):
    old = nonzero(old_nets.VQVAE(spatial_dims, num_channels=(8, 8), **VECTORS))
    image = torch.rand(2, 1, *[16] * spatial_dims)

    loaded = load_weights(VQVAE(spatial_dims, channels=(8, 8), **VECTORS), stored(old, tmp_path / "old.pt"))

    with torch.no_grad():
        assert torch.equal(loaded(image)[0], old(image)[0])
        assert torch.equal(loaded.index_quantize(image), old.index_quantize(image))


@pytest.mark.parametrize("kind", ["autoencoder", "diffusion", "conditioned"])
def test_wrong_include_fc_that_monai_takes_without_a_word_is_refused(kind, tmp_path):
    further = CONDITIONED if kind == "conditioned" else {}
    if kind == "autoencoder":
        settings = AUTOENCODER | {"attention_levels": (False, True)}
        old = nonzero(old_nets.AutoencoderKL(2, num_channels=(8, 8), **settings))
        core = AutoencoderKL(2, channels=(8, 8), include_fc=True, **settings)
    else:
        old = nonzero(old_nets.DiffusionModelUNet(2, num_channels=(8, 16), **DIFFUSION, **further))
        core = DiffusionModelUNet(2, channels=(8, 16), include_fc=not further, **DIFFUSION, **further)
    core.load_old_state_dict(dict(old.state_dict()))  # raises nothing

    before = {name: value.clone() for name, value in core.state_dict().items()}
    with pytest.raises(InputError, match=rf"old\.pt: .*with{'' if further else 'out'} conditioning need .*include_fc="):
        load_weights(core, stored(old, tmp_path / "old.pt"))
    assert all(torch.equal(value, before[name]) for name, value in core.state_dict().items())


def test_renaming_changes_neither_the_weights_nor_the_network():
    old = nonzero(old_nets.DiffusionModelUNet(2, num_channels=(8, 16), **DIFFUSION)).state_dict()
    core = DiffusionModelUNet(2, channels=(8, 16), include_fc=False, **DIFFUSION)
    names, own = list(old), core.state_dict()

    core_state_dict(old, core)

    assert list(old) == names
    assert all(torch.equal(value, own[name]) for name, value in core.state_dict().items())


def test_old_weight_without_a_place_is_named(tmp_path):
    old = nonzero(old_nets.DiffusionModelUNet(2, num_channels=(8, 16), **DIFFUSION))
    torch.save(old.state_dict() | {"class_embedding.weight": torch.zeros(2, 32)}, tmp_path / "old.pt")

    with pytest.raises(InputError, match=r"old\.pt: does not hold .*class_embedding"):
        load_weights(DiffusionModelUNet(2, channels=(8, 16), include_fc=False, **DIFFUSION), tmp_path / "old.pt")


def test_old_weights_serve_the_bundles_once_the_scale_factor_is_given(tmp_path):
    old = nonzero(old_nets.DiffusionModelUNet(2, num_channels=(8, 16), **DIFFUSION))
    path = stored(old, tmp_path / "old.pt")
    core = LatentDiffusionUNet(2, channels=(8, 16), include_fc=False, **DIFFUSION)

    with pytest.raises(InputError, match=r"old\.pt: holds no scale factor of the latents; give as scale_factor"):
        load_weights(core, path)
    assert load_weights(core, path, scale_factor=0.3).scale_factor.item() == pytest.approx(0.3)
