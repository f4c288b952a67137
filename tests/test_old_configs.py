# SPDX-License-Identifier: Apache-2.0
"""Configs of monai-generative bundles, in the form that its model zoo has them, run on MONAI's own classes."""

from __future__ import annotations

import json
import warnings
from copy import deepcopy
from pathlib import Path

import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from monai.inferers import LatentDiffusionInferer
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler

from monai_memorization.errors import InputError
from monai_memorization.generation.old_configs import core_config, translate_config

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # it calls autocast as torch no longer likes it
    import generative.networks.nets as old_nets

SHARED = {"spatial_dims": 2, "in_channels": 3, "out_channels": 3, "num_res_blocks": 1, "norm_num_groups": 2}
AUTOENCODER = SHARED | {
    "_target_": "generative.networks.nets.AutoencoderKL",
    "in_channels": 1,
    "out_channels": 1,
    "num_channels": [8, 8],
    "attention_levels": [False, True],
    "latent_channels": 3,
}
DIFFUSION = SHARED | {
    "_target_": "generative.networks.nets.diffusion_model_unet.DiffusionModelUNet",
    "num_channels": [8, 16],
    "attention_levels": [False, True],
    "num_head_channels": 8,
    "with_conditioning": True,
    "cross_attention_dim": 4,
}
# the form of a bundle of the GenerativeModels model zoo
OLD = {
    "imports": ["$import torch", "$import generative"],
    "model_dir": "models",
    "autoencoder_def": AUTOENCODER,
    "load_autoencoder_path": "$@model_dir + '/autoencoder.pth'",
    "load_autoencoder": "$@autoencoder_def.load_state_dict(torch.load(@load_autoencoder_path))",
    "diffusion_def": DIFFUSION,
    "load_diffusion_path": "$@model_dir + '/diffusion_model.pth'",
    "load_diffusion": "$@diffusion_def.load_state_dict(torch.load(@load_diffusion_path, map_location='cpu'))",
    "scheduler": {
        "_target_": "generative.networks.schedulers.DDIMScheduler",
        "_requires_": ["@load_diffusion", "@load_autoencoder"],
        "num_train_timesteps": 1000,
        "beta_start": 0.0015,
        "beta_end": 0.0205,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
    },
    "inferer": {"_target_": "generative.inferers.LatentDiffusionInferer", "scheduler": "@scheduler"},
    "loss": {"_target_": "generative.losses.adversarial_loss.PatchAdversarialLoss", "criterion": "least_squares"},
    "sample": "$generative.inferers.DiffusionInferer(@scheduler)",
}


def settings(config: dict, *leave_out: str) -> dict:
    return {key: value for key, value in config.items() if key not in ("_target_", *leave_out)}


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_translated_config_runs_on_the_old_weights(suffix, tmp_path):
    torch.manual_seed(0)
    old = {
        "autoencoder": old_nets.AutoencoderKL(**settings(AUTOENCODER)).eval(),
        "diffusion_model": old_nets.DiffusionModelUNet(**settings(DIFFUSION)).eval(),
    }
    for name, network in old.items():
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        torch.save(network.state_dict(), tmp_path / f"{name}.pth")
    (tmp_path / "old.json").write_text(json.dumps(OLD | {"model_dir": str(tmp_path)}), encoding="utf-8")

    parser = ConfigParser()
    parser.read_config(translate_config(tmp_path / "old.json", tmp_path / f"new{suffix}"))
    scheduler, inferer = parser.get_parsed_content("scheduler"), parser.get_parsed_content("inferer")
    autoencoder, diffusion = (parser.get_parsed_content(f"{name}_def") for name in ("autoencoder", "diffusion"))

    assert (type(autoencoder), type(diffusion)) == (AutoencoderKL, DiffusionModelUNet)
    assert (type(scheduler), type(inferer)) == (DDIMScheduler, LatentDiffusionInferer)
    image, context = torch.rand(1, 1, 16, 16), torch.rand(1, 1, 4)
    latent, steps = torch.rand(1, 3, 8, 8), torch.tensor([9])
    with torch.no_grad():
        expected = old["autoencoder"].reconstruct(image)
        torch.testing.assert_close(autoencoder.reconstruct(image), expected, rtol=1e-4, atol=1e-4)
        expected = old["diffusion_model"](latent, steps, context=context)
        torch.testing.assert_close(diffusion(latent, steps, context=context), expected, rtol=1e-4, atol=1e-4)


def test_nothing_of_the_old_package_is_left_and_the_rest_is_as_it_was(tmp_path):
    before = deepcopy(OLD)
    new = core_config(OLD)

    assert before == OLD
    assert "generative." not in json.dumps(new).replace("monai_memorization", "")
    assert new["imports"] == ["$import torch"]
    assert new["loss"] == {"_target_": "monai.losses.PatchAdversarialLoss", "criterion": "least_squares"}
    assert new["scheduler"]["schedule"] == "scaled_linear_beta"
    assert new["sample"] == "$monai.inferers.DiffusionInferer(@scheduler)"
    assert core_config(new) == new


@pytest.mark.parametrize(("given", "include_fc"), [({}, False), ({"with_conditioning": "@cond"}, "@cond")])
def test_include_fc_is_what_the_old_weights_need(given, include_fc):
    assert (
        core_config(settings(DIFFUSION, "with_conditioning") | {"_target_": DIFFUSION["_target_"]} | given)[
            "include_fc"
        ]
        == include_fc
    )
    assert core_config(AUTOENCODER)["include_fc"] is False


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_target_": "generative.networks.nets.Unheard"}, r"generative\.networks\.nets\.Unheard is not in MONAI"),
        ({"_target_": "generative.utils.Ordering"}, r"generative\.utils\.Ordering is not in MONAI"),
        (AUTOENCODER | {"depth": 3}, r"is given depth, which MONAI's AutoencoderKL does not take"),
    ],
)
def test_what_monai_lacks_is_named_and_nothing_is_written(config, message, tmp_path):
    (tmp_path / "old.yaml").write_text(yaml.safe_dump({"part": [config]}), encoding="utf-8")

    with pytest.raises(InputError, match=rf"old\.yaml: .*{message}"):
        translate_config(tmp_path / "old.yaml", tmp_path / "new.yaml")
    assert not Path(tmp_path / "new.yaml").exists()
