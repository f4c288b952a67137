# SPDX-License-Identifier: Apache-2.0
"""Write the config fragment that puts MemorizationHandler into the training of a bundle, without editing the bundle.

The configs of the bundle are read as data: nothing in them is executed here. MONAI executes them when a bundle runs.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from monai_memorization.bundle_configs import (
    INSTEAD,
    REFERENCE,
    class_name,
    find,
    follow,
    read_multi_gpu_overrides,
    read_training_config,
    training_dataset,
)
from monai_memorization.bundle_samplers import choose_sampler
from monai_memorization.bundle_transforms import image_key, loaded_keys, transform_steps, value_range
from monai_memorization.errors import InputError
from monai_memorization.files import write_text
from monai_memorization.images.export import CUTTING
from monai_memorization.images.sets import path_seen_from

# bad input is then told on one line, not under the traceback of MONAI's runner
MESSAGES = {"_requires_": "@memorization#messages"}
# what names classes of monai-generative in a config
_OLD = re.compile(r"\bgenerative\.(networks|inferers|losses|metrics|engines)\b|\bimport generative\b")


@dataclass
class Injection:
    """What was found in a bundle, and what was written.

    Args:
        family: "GAN", "latent diffusion" or "pixel-space diffusion".
        configs: the config files of the training, in their order.
        files: the fragments written.
        missing: what could not be found, and what to do about each.
    """

    family: str
    configs: list[str]
    files: list[Path] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def inject(bundle_dir: str | Path, output: str | Path, config_name: str | None = None) -> Injection:
    """Look at a bundle and write the override that watches its training.

    Where the bundle has a multi-GPU override that changes the list of handlers, a second file, ..._multi_gpu.yaml, is
    written beside ``output``: it puts the handler beside those that the override keeps on each rank.

    Args:
        bundle_dir: folder of a bundle, with its training config in ``configs``.
        output: YAML file to write.
        config_name: file of the training in ``configs``, such as train_stage2.yaml; None for train_diffusion or train.

    Returns:
        What was found.

    Raises:
        InputError: if the bundle has no training config, it does not parse, or is of no known family, or if ``output``
            is there already with other content.
    """
    output = Path(output)
    if output.suffix not in (".yaml", ".yml"):
        raise InputError(f"output: {output} is no YAML file; name one that ends in .yaml")
    folder = Path(bundle_dir) / "configs"
    names, config = read_training_config(folder, config_name)
    where = next((key for key in ("train#trainer", "trainer") if isinstance(find(config, key), dict)), None)
    if where is None:
        raise InputError(f"{folder / names[-1]}: has no trainer; looked for train#trainer and trainer. {INSTEAD}")
    missing: list[str] = []
    family, sampler = choose_sampler(config, where, folder / names[-1], missing)
    found = Injection(family, names, missing=missing)
    content: dict[str, Any] = {"memorization_validation": None, "copy_rate_limit": 0.1}
    content["memorization"] = _memorization(config, where, sampler, found)
    content["memorization_images"] = _images_run(content["memorization"])
    handlers = find(config, where).get("train_handlers")
    content |= _handlers_override(handlers, where)
    if _averages(config, handlers):
        found.missing.append(
            "averaged weights: the bundle has an EMAHandler, but the weights in training are checked and kept; to "
            "check those, give its ema_model as network of the sampler and in save_dict of the saver"
        )
    if _OLD.search(json.dumps(config, default=str)):
        found.missing.insert(
            0,
            "monai-generative: these configs name its classes, which MONAI has under other names; translate them first "
            "and give the bundle as translated: docs/monai_generative.md",
        )
    found.missing.insert(0, "memorization_validation: give images of patients that the generator is not trained on")
    # the command has to be given in the bundle's folder
    run_id, shown = _run_id(config, where), path_seen_from(Path(bundle_dir), output)
    texts = {output: _header(found, shown, run_id) + yaml.safe_dump(content, sort_keys=False, width=120)}
    overrides = read_multi_gpu_overrides(folder, names)
    key = f"{where}#train_handlers"
    for name, kept in [(name, given[key]) for name, given in overrides.items() if key in given][-1:]:
        second = output.with_name(f"{output.stem}_multi_gpu.yaml")
        first, later = ([f"configs/{name}" for name in listed] for listed in (names, overrides))
        # a list that the first file adds to may be none after the overrides
        names = [*first, shown, *later, path_seen_from(Path(bundle_dir), second)]
        text = (
            f"# The handler on every rank, beside those that {name} keeps:\n"
            "#   torchrun --standalone --nnodes=1 --nproc_per_node=2 -m monai.bundle run "
            f'{run_id}--config_file "[{_quoted(names)}]" --memorization_validation IMAGES\n'
        )
        texts[second] = text + yaml.safe_dump(_handlers_override(kept, where), sort_keys=False, width=120)
    for path, text in texts.items():
        if path.is_file() and path.read_bytes() != text.encode():
            raise InputError(f"output: {path} is there already and holds something else; remove it, or name another")
    for path, text in texts.items():
        write_text(path, text)
    found.files.extend(texts)
    return found


def _memorization(config: dict[str, Any], where: str, sampler: dict[str, Any], found: Injection) -> dict[str, Any]:
    """Return the section of the fragment: the images as the generator sees them, the sampler and the handler."""
    dataset, content = training_dataset(config, where)
    steps = transform_steps(config, content.get("transform"))
    fixed: dict[str, Any] = {
        "_target_": "monai_memorization.images.export.fixed_transforms",
        "transform": f"${dataset}.transform",
    }
    random = [class_name(step) for step in steps if class_name(step).startswith("Rand")]
    crops = [name for name in random if any(word in name for word in CUTTING)]
    if crops:
        fixed["crop"] = None
        found.missing.append(f"memorization#transforms#crop: give a fixed crop in the place of {', '.join(crops)}")
    training: dict[str, Any] | None = {
        "_target_": "monai.data.Dataset",
        "data": f"${dataset}.data",
        "transform": "@memorization#transforms",
    }
    key = image_key(config, steps)
    if (ends := value_range(config, steps, key)) is not None:
        sampler["value_range"] = ends
    loaded = loaded_keys(config, steps)
    if loaded and key not in loaded:
        found.missing.append(
            f"memorization#validation#data: {key} is made of {', '.join(loaded)}; give a list of items that name these "
            "files, and their patient_id"
        )
    if dataset is None or not steps:
        training = None
        found.missing.append(
            "memorization#training, memorization#transforms: give the images as the generator sees them, as data sets "
            "without random transforms, or as folders if they are not turned or cropped on the way"
        )
    listed = {"_target_": "monai_memorization.images.sets.data_list", "source": "@memorization_validation"}
    listed |= {"role": "validation", "key": key} | MESSAGES
    folder = "$str(@bundle_root) + '/memorization'" if "bundle_root" in config else "memorization"
    return {
        "messages": {"_target_": "monai_memorization.errors.tell_bad_input"},
        "transforms": fixed | MESSAGES if training else None,
        "training": training,
        "validation": {"_target_": "monai.data.Dataset", "data": listed, "transform": "@memorization#transforms"},
        "sampler": sampler | MESSAGES,
        "handlers": [
            {
                "_target_": "monai_memorization.handlers.MemorizationHandler",
                "training": "@memorization#training",
                "validation": "@memorization#validation",
                "sampler": "@memorization#sampler",
                "output_dir": folder,
                "interval": f"$max(1, @{where}#max_epochs // 10)",
                "copy_rate_limit": "@copy_rate_limit",
                "image_key": key,
                **MESSAGES,
            },
            {
                "_target_": "monai_memorization.handlers.WithinLimitSaver",
                "save_dir": folder,
                "save_dict": {"model": sampler.get("network", sampler.get("diffusion"))},
            },
        ],
    }


def _images_run(section: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the list that only writes the images as the generator sees them, for the audit of a trained model."""
    handler = section["handlers"][0]
    folder = handler["output_dir"]
    return [
        {
            "_target_": "monai_memorization.images.export.export_images",
            "dataset": f"@memorization#{role}",
            "folder": f"{folder} + '/{role}'" if folder.startswith("$") else f"{folder}/{role}",
            "role": role,
            "key": handler["image_key"],
            **MESSAGES,
        }
        for role in ("training", "validation")
        if section["training"]
    ]


def _handlers_override(handlers: Any, where: str) -> dict[str, Any]:
    """Return the override that puts our handlers beside those of the bundle."""
    key = f"{where}#train_handlers"
    if handlers is None or handlers == "$None":
        return {key: "@memorization#handlers"}
    ours = ["@memorization#handlers#0", "@memorization#handlers#1"]
    if isinstance(handlers, list):  # behind them, so that what refers to them by their numbers holds
        return {f"+{key}": ours}
    if isinstance(handlers, dict):  # a single one, written down where it is used: nothing to refer to
        return {key: [handlers, *ours]}
    # it may be a list, a single handler or None, another on each rank, or a bare tuple, which is one argument only
    # within parentheses of its own
    expression = str(handlers).lstrip("$").strip()
    return {key: f"$@memorization#handlers + list(filter(bool, monai.utils.ensure_tuple(({expression}))))"}


def _averages(config: dict[str, Any], handlers: Any) -> bool:
    """Return whether one of the handlers keeps averaged weights, as far as they are written down."""
    handlers = follow(config, handlers)
    if isinstance(handlers, str):
        named = [follow(config, f"@{name}") for name in REFERENCE.findall(handlers)]
        handlers = [step for found in named for step in (found if isinstance(found, list) else [found])]
    listed = handlers if isinstance(handlers, list) else [handlers]
    return any(class_name(follow(config, handler)) == "EMAHandler" for handler in listed)


def _run_id(config: dict[str, Any], where: str) -> str:
    """Return the key that runs the training: "run", or under another name the one that calls run() of the trainer."""
    lines = {key: value if isinstance(value, list) else [value] for key, value in config.items()}
    told = {key: " ".join(line for line in listed if isinstance(line, str)) for key, listed in lines.items()}
    calls = [key for key, text in told.items() if ".run()" in text]
    # before those of an evaluator
    calls.sort(key=lambda key: f"@{where}.run()" not in told[key].replace("::", "#"))
    return "" if "run" in config or not calls else f"{calls[0]} "


def _header(found: Injection, output: str, run_id: str) -> str:
    files = _quoted([*(f"configs/{name}" for name in found.configs), output])
    lines = [
        f"Watches the training of this bundle ({found.family}) for copies of training images. In the bundle's folder:",
        f'  python -m monai.bundle run {run_id}--config_file "[{files}]" --memorization_validation IMAGES',
        "It has to come after the files of the bundle. Above copy_rate_limit the training stops; 1 never stops it.",
        "With the run id memorization_images nothing is trained: the images are written as the generator sees them.",
        *(f"MISSING: {line}" for line in found.missing),
    ]
    return "".join(f"# {line}\n" for line in lines)


def _quoted(names: list[str]) -> str:
    return ",".join(f"'{name}'" for name in names)
