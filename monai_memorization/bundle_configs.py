# SPDX-License-Identifier: Apache-2.0
"""Configs of a bundle, read as data: nothing in them is executed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from monai_memorization.errors import InputError

TRAINING_CONFIGS = ("train_diffusion", "train")
EARLIER_CONFIGS = ("train_autoencoder", "common")
SUFFIXES = (".json", ".yaml", ".yml")
# such as @train#inferer; the group is the key that it leads to
REFERENCE = re.compile(r"@([\w#:]+)")
INSTEAD = (
    "Draw images with the bundle's own inference and audit the folder with `monai-memorization audit`, which runs no "
    "config, or write a fragment by hand: docs/add_the_check.md"
)


def read_training_config(folder: Path, name: str | None = None) -> tuple[list[str], dict[str, Any]]:
    """Return the names of the files of the training, and their content with later files laid over earlier ones.

    Args:
        folder: of the configs.
        name: of the file of the training, configs/ before it or not; None for one of the usual names.

    Raises:
        InputError: if it is not there, lies elsewhere, or does not parse.
    """
    if not folder.parent.is_dir():
        raise InputError(f"{folder.parent}: is no folder; give the folder of a bundle, which holds configs")
    if name and Path(name).parent not in (Path(), Path("configs")) and Path(name).parent.resolve() != folder.resolve():
        raise InputError(f"config: {name} does not lie in {folder}; give a file of this folder by its name")
    names = [Path(name).name] if name else [f"{stem}{suffix}" for stem in TRAINING_CONFIGS for suffix in SUFFIXES]
    main = next((folder / name for name in names if (folder / name).is_file()), None)
    within = folder.parent.resolve().name == "configs" and any((folder.parent / name).is_file() for name in names)
    if main is None and within:
        raise InputError(f"{folder.parent}: holds the configs themselves; give the bundle's folder, the one above it")
    if main is None:
        looked_for = name or f"{', '.join(TRAINING_CONFIGS)} with {', '.join(SUFFIXES)}"
        there = [path.name for path in sorted(folder.glob("*")) if path.suffix in SUFFIXES]
        others = f"; name the config of the training as --config if it is among {', '.join(there)}" if there else ""
        raise InputError(f"{folder}: no training config; looked for {looked_for}{others}. {INSTEAD}")
    config, names = _read_absolute(main), [main.name]
    for earlier in (main.with_name(f"{stem}{main.suffix}") for stem in EARLIER_CONFIGS):
        # a second stage, or a training that shares a file with the inference, has no device of its own
        if "device" not in config and earlier.is_file():
            config, names = _read_absolute(earlier) | config, [earlier.name, *names]
    return names, config


def read_multi_gpu_overrides(folder: Path, names: list[str]) -> dict[str, dict[str, Any]]:
    """Return the multi-GPU overrides of a training by their names, in the order of its stages.

    Args:
        folder: of the configs.
        names: of the files of the training, in their order.

    Returns:
        Their content, with # in the keys also where they have ::.

    Raises:
        InputError: if one does not parse.
    """
    named = [folder / f"multi_gpu_{Path(name).stem}{suffix}" for name in names for suffix in SUFFIXES]
    paths = [path for path in named if path.is_file()]
    if not paths:  # one for all trainings, or named otherwise
        paths = [path for path in sorted(folder.glob("multi_gpu_train*")) if path.suffix in SUFFIXES]
    return {
        path.name: {str(key).replace("::", "#"): value for key, value in _read_absolute(path).items()} for path in paths
    }


def read_config(path: Path) -> dict[str, Any]:
    """Return the content of a JSON or YAML file.

    Raises:
        InputError: if it cannot be read, does not parse, or is no config.
    """
    try:
        text = path.read_text(encoding="utf-8")
        config = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give a config of a bundle, JSON or YAML"
        ) from None
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"{path}: does not parse ({' '.join(str(error).split())[:200]}); mend the bundle") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: holds no config, but a {type(config).__name__}")
    return config


def _read_absolute(path: Path) -> dict[str, Any]:
    """Return the content of a config, with relative references such as @##network resolved as MONAI does."""
    config = read_config(path)
    parts: list[tuple[str, Any]] = [("", config)]
    seen: set[int] = set()  # YAML may name one part at many places, or within itself
    while parts:
        above, part = parts.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        for name, value in part.items() if isinstance(part, dict) else enumerate(part):
            key = f"{above}#{name}" if above else str(name)
            if isinstance(value, dict | list):
                parts.append((key, value))
            elif isinstance(value, str) and re.search("@(#|::)", value):
                try:
                    part[name] = ConfigParser.resolve_relative_ids(key.replace("#", "::"), value)
                except ValueError:
                    raise InputError(f"{path}: {key} refers to {value}, above the config; mend the bundle") from None
    return config


def find(config: dict[str, Any], key: str) -> Any:
    """Return what a key such as train#trainer or handlers#0 names, None where nothing."""
    found: Any = config
    for part in re.split("#|::", key):
        if isinstance(found, list) and part.isdecimal() and int(part) < len(found):
            found = found[int(part)]
        else:
            found = found.get(part) if isinstance(found, dict) else None
    return found


def follow(config: dict[str, Any], value: Any) -> Any:
    """Return what a plain reference such as @train#inferer leads to, and everything else as it is."""
    for _ in range(10):  # references in a circle are the bundle's defect
        if not _is_reference(value):
            break
        value = find(config, value[1:])
    return value


def place(config: dict[str, Any], key: str) -> str:
    """Return the key at which that is written what a key names, be it through plain references."""
    for _ in range(10):
        if not _is_reference(value := find(config, key)):
            break
        key = value[1:]
    return key


def referred(config: dict[str, Any], key: str) -> Any:
    """Return what is written at a key, but a reference to it where it makes an object: written twice, it makes two."""
    value = find(config, key)
    makes = isinstance(value, dict) or (isinstance(value, str) and value.startswith(("$", "%")))
    return f"@{key}" if makes else value


def training_dataset(config: dict[str, Any], where: str) -> tuple[str | None, dict[str, Any]]:
    """Return a reference to the training's data set and its config; None and nothing where it is no config."""
    key = place(config, place(config, f"{where}#train_data_loader") + "#dataset")
    content = find(config, key)
    return (f"@{key}", content) if isinstance(content, dict) else (None, {})


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and REFERENCE.fullmatch(value) is not None


def class_name(value: Any) -> str:
    """Return the class that a config names, without its modules."""
    return str(value.get("_target_", "")).rpartition(".")[2] if isinstance(value, dict) else ""
