# SPDX-License-Identifier: Apache-2.0
"""The sampler that draws as a bundle's training needs it, as config, found by the trainer and inferer of the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from monai_memorization.bundle_configs import (
    INSTEAD,
    REFERENCE,
    class_name,
    find,
    follow,
    place,
    referred,
    training_dataset,
)
from monai_memorization.errors import InputError

FRAGMENT = Path("memorization_audit", "configs", "fragments", "latent_diffusion.yaml")
_MODULE = "monai_memorization.generation.sampling"


def choose_sampler(config: dict[str, Any], where: str, path: Path, missing: list[str]) -> tuple[str, dict[str, Any]]:
    """Recognise the family of a generator, and return the config of its sampler.

    Args:
        config: the training config.
        where: key of the trainer.
        path: of the config, for messages.
        missing: what could not be found, and what to do about each, is added here.

    Returns:
        Family, "GAN", "latent diffusion" or "pixel-space diffusion", and the sampler.

    Raises:
        InputError: if it is of no known family, or if our bundles' fragment is the one for it.
    """
    trainer, inferer = find(config, where), find(config, place(config, f"{where}#inferer"))
    if class_name(trainer) == "GanTrainer":
        return "GAN", _of_gan(config, where, missing)
    if class_name(inferer) == "LatentDiffusionInferer":
        return "latent diffusion", _of_latent_diffusion(config, where, missing)
    if class_name(training_dataset(config, where)[1]) == "LatentDataset":
        raise InputError(f"{path}: this bundle has a fragment of its own; lay {FRAGMENT} over it")
    if class_name(inferer) == "DiffusionInferer":
        return "pixel-space diffusion", _of_pixel_diffusion(config, where, missing)
    raise InputError(
        f"{path}: of no known family; its trainer is {class_name(trainer) or 'unnamed'} with inferer "
        f"{class_name(inferer) or 'none'}, known are GanTrainer, LatentDiffusionInferer and DiffusionInferer. {INSTEAD}"
    )


def _of_gan(config: dict[str, Any], where: str, missing: list[str]) -> dict[str, Any]:
    return {
        "_target_": f"{_MODULE}.GeneratorSampler",
        "network": _network(config, f"{where}#g_network", "network", missing),
        "latent_shape": referred(config, f"{where}#latent_shape") or 64,
    }


def _of_latent_diffusion(config: dict[str, Any], where: str, missing: list[str]) -> dict[str, Any]:
    inferer_key = place(config, f"{where}#inferer")
    latent_shape = _named(config, f"{where}#latent_shape", "latent_shape")
    if latent_shape is None:
        missing.append("memorization#sampler#latent_shape: give channels and sides of a latent")
    autoencoder = _named(config, f"{where}#autoencoder_model", "autoencoder")
    if autoencoder is None:
        missing.append("memorization#sampler#autoencoder: refer to the autoencoder")
    if follow(config, find(config, inferer_key).get("ldm_latent_shape")) is not None:
        missing.append(
            "memorization#sampler: the inferer pads latents to ldm_latent_shape and cuts them to "
            "autoencoder_latent_shape, which this sampler does not; give a FunctionSampler that calls the inferer, "
            "with noise of the padded shape as latent_shape: docs/add_the_check.md, Latents that are padded"
        )
    return {
        "_target_": f"{_MODULE}.LatentDiffusionSampler",
        "autoencoder": autoencoder,
        "diffusion": _network(config, f"{where}#network", "diffusion", missing),
        "latent_shape": latent_shape,
        "scale_factor": referred(config, f"{inferer_key}#scale_factor") or 1.0,
        **_of_diffusion(config, where, missing),
    }


def _of_pixel_diffusion(config: dict[str, Any], where: str, missing: list[str]) -> dict[str, Any]:
    missing.append("memorization#sampler#image_shape: give channels and sides of an image")
    return {
        "_target_": f"{_MODULE}.PixelDiffusionSampler",
        "network": _network(config, f"{where}#network", "network", missing),
        "image_shape": None,
        **_of_diffusion(config, where, missing),
    }


def _network(config: dict[str, Any], key: str, name: str, missing: list[str]) -> Any:
    """Return a reference to the network that is trained; None where it is not found."""
    network = referred(config, key)
    if network is None:
        saved = "memorization#handlers#1#save_dict#model"
        missing.append(f"memorization#sampler#{name}, {saved}: refer to the network that is trained")
    return network


def _named(config: dict[str, Any], key: str, name: str) -> Any:
    """Return what is written at a key of the trainer, else a reference to a part of the bundle by this name."""
    return referred(config, key) or (f"@{name}" if name in config else None)


def _of_diffusion(config: dict[str, Any], where: str, missing: list[str]) -> dict[str, Any]:
    """Return what the samplers of diffusion models share; conditions only for a conditional model."""
    schedule = {"scheduler": referred(config, f"{place(config, f'{where}#inferer')}#scheduler"), "n_steps": 20}
    trainer = find(config, where)
    prepare, network = (follow(config, trainer.get(name)) for name in ("prepare_batch", "network"))
    made_of = [find(config, name) for name in REFERENCE.findall(network)] if isinstance(network, str) else []
    parts = [part for part in (network, *made_of) if isinstance(part, dict)]
    if any(follow(config, part.get("num_class_embeds")) is not None for part in parts):
        missing.append(
            "memorization#sampler: the network takes a class (num_class_embeds), which this sampler does not give it; "
            "give a FunctionSampler that does: docs/add_the_check.md, Conditional models"
        )
    conditional = isinstance(prepare, dict) and prepare.get("condition_name")
    if not conditional and all(follow(config, part.get("with_conditioning")) is not True for part in parts):
        return schedule
    missing.append("memorization#sampler#conditions: give the conditions of the training images, (m, ...)")
    return schedule | {"conditions": None}
