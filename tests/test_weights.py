# SPDX-License-Identifier: Apache-2.0
"""Weights: all of them or an error that names the file."""

from __future__ import annotations

import pytest
import torch
from small_generators import small_autoencoder, small_diffusion

from monai_memorization.errors import InputError
from monai_memorization.generation.weights import load_weights


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
