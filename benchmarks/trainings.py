# SPDX-License-Identifier: Apache-2.0
"""Choose the training set of a study, and run configs of a bundle on it."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

from monai_memorization.errors import InputError
from monai_memorization.images.division import cap_patients
from monai_memorization.images.sets import ImageSet


def choose_training(images: ImageSet, n: int, seed: int) -> ImageSet:
    """Choose the images of n patients, one of each, so that a smaller set is part of a larger one of the same seed.

    Raises:
        InputError: if there are fewer patients.
    """
    if images.has_patients:
        images = cap_patients(images, 1, seed)
    if len(images) < n:
        raise InputError(f"training: {len(images)} patients, but {n} are asked for; give more, or ask for fewer")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images.subset(sorted(order[:n].tolist()))


def run_bundle(name: str, settings: Mapping[str, Any], **overrides: Any) -> float:
    """Run a config of the bundle through MONAI's runner, and return how long it took, in seconds."""
    start = time.perf_counter()
    workflow = bundle_workflow(name, settings, **overrides)
    logging.disable(logging.WARNING)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    logging.disable(logging.NOTSET)
    return time.perf_counter() - start


def bundle_workflow(name: str, settings: Mapping[str, Any], **overrides: Any) -> ConfigWorkflow:
    """Read a config of the bundle, with the recipes, levers and common keys of the settings laid over it."""
    configs = files("monai_memorization.bundles") / settings["bundle"] / "configs"
    levers = [f"mitigation/{lever}.yaml" for lever in levers_of(name, settings)]
    paths = [str(configs / one) for one in (f"{name}.json", *settings.get("recipe", []), *levers)]
    kind = "train" if name.startswith("train") else "inference"
    logging.disable(logging.WARNING)
    keys = settings.get("common", {}) | overrides
    workflow = ConfigWorkflow(paths, logging_file=False, workflow_type=kind, **keys)
    logging.disable(logging.NOTSET)
    return workflow


def levers_of(name: str, settings: Mapping[str, Any]) -> list[str]:
    """Return the levers that concern a config: of the network only, to the inference, and none to reconstructions."""
    levers = settings.get("levers", [])
    if name == "train_autoencoder":
        return [lever for lever in levers if lever not in ("smaller_network", "regularization")]
    return [lever for lever in levers if name == "train_diffusion" or (lever, name) == ("smaller_network", "inference")]
