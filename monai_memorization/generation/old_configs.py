# SPDX-License-Identifier: Apache-2.0
"""Translate configs written for monai-generative 0.2.3 to the classes that MONAI took over from it."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import yaml
from monai.utils import optional_import

from monai_memorization.bundle_configs import read_config
from monai_memorization.errors import InputError
from monai_memorization.files import write_text

# where MONAI has the classes of each package; monai-generative allows longer paths to some, such as that of a module
_PACKAGES = ("networks.nets", "networks.blocks", "networks.schedulers", "inferers", "losses", "metrics", "engines")
_ARGUMENTS = {"num_channels": "channels", "use_checkpointing": "use_checkpoint", "beta_schedule": "schedule"}
# names of versions before 0.2
_SCHEDULES = {"linear": "linear_beta", "scaled_linear": "scaled_linear_beta", "sigmoid": "sigmoid_beta"}
_LOADS = re.compile(r"\$\s*(@\w+)\.load_state_dict\(torch\.load\((@\w+)(?:,[^()]*)?\)\)")


def translate_config(path: str | Path, output: str | Path) -> Path:
    """Write a config of a monai-generative bundle as one that MONAI's own classes run.

    Targets, argument names and names of noise schedules become MONAI's, networks get the `include_fc` that their old
    weights need, and where a config fills a network by `load_state_dict(torch.load(...))`, `load_weights` does so
    instead. Nothing in the config is executed. The bundle's own `scripts` are not looked at.

    Args:
        path: JSON or YAML config; not changed.
        output: config to write; JSON or YAML by its suffix.

    Returns:
        `output`.

    Raises:
        InputError: if the config does not parse, or names a class or an argument that MONAI does not have.
    """
    path, output = Path(path), Path(output)
    try:
        config = core_config(read_config(path))
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None
    if output.suffix == ".json":
        write_text(output, json.dumps(config, indent=4) + "\n")
    else:
        write_text(output, yaml.safe_dump(config, sort_keys=False, width=120))
    return output


def core_config(config: Any) -> Any:
    """Return what :func:`translate_config` writes, for content already read; the content is not changed.

    Raises:
        ValueError: if it names a class or an argument that MONAI does not have.
    """
    if isinstance(config, list):
        return [core_config(item) for item in config if item != "$import generative"]
    if isinstance(config, str):
        if match := _LOADS.fullmatch(config.strip()):
            target = "monai_memorization.generation.weights.load_weights"
            return {"_target_": target, "network": match[1], "path": match[2]}
        return re.sub(rf"\bgenerative\.({'|'.join(map(re.escape, _PACKAGES))})\b", r"monai.\1", config)
    if not isinstance(config, dict):
        return config
    if not str(config.get("_target_", "")).startswith("generative."):
        return {key: core_config(value) for key, value in config.items()}
    return _component(config)


def _component(config: dict[str, Any]) -> dict[str, Any]:
    """Translate what names a class of monai-generative."""
    target = config["_target_"]
    package = next((name for name in _PACKAGES if target.startswith(f"generative.{name}.")), None)
    name = target.rpartition(".")[2]
    found, exists = optional_import(f"monai.{package}", name=name)
    if package is None or not exists:
        raise ValueError(f"{target} is not in MONAI; write what it does by hand")
    new = {_ARGUMENTS.get(key, key): core_config(value) for key, value in config.items()}
    new["_target_"] = f"monai.{package}.{name}"
    if "schedule" in new:
        new["schedule"] = _SCHEDULES.get(new["schedule"], new["schedule"])
    if "AutoencoderKL" in name:
        new["include_fc"] = False
    elif "DiffusionModelUNet" in name or name == "ControlNet":
        new["include_fc"] = new.get("with_conditioning", False)
    signature = inspect.signature(found).parameters
    unknown = sorted(key for key in new if not key.startswith("_") and key not in signature)
    if unknown and not any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.values()):
        raise ValueError(f"{target} is given {', '.join(unknown)}, which MONAI's {name} does not take")
    return new
