# SPDX-License-Identifier: Apache-2.0
"""Transforms of a bundle's data set, read as data: which entry holds the image, and between what values it is."""

from __future__ import annotations

import re
from typing import Any

from monai_memorization.bundle_configs import REFERENCE, class_name, follow

# what MONAI's trainers take from an item, the first before the second
TRAINED_ON = ("image", "reals")
SUM = re.compile(r"\$\s*@[\w#:]+(\s*\+\s*@[\w#:]+)*")
# such as $monai.utils.CommonKeys.IMAGE, whose value is its name in small letters
CONSTANT = re.compile(r"\$[\w.]*Keys\.([A-Z]+)")


def transform_steps(config: dict[str, Any], transform: Any, depth: int = 20) -> list[dict[str, Any]]:
    """Return the configs of the transforms within transforms, as far as they are written down and not disabled.

    Args:
        config: the training config.
        transform: config of a transform or a list of such, a reference to either, or a sum of references.
        depth: how far transforms within transforms are followed; those that hold themselves are the bundle's defect.

    Returns:
        The transforms, in their order.
    """
    transform = follow(config, transform)
    if isinstance(transform, str) and SUM.fullmatch(transform):
        transform = [f"@{key}" for key in REFERENCE.findall(transform)]
    if isinstance(transform, list):
        return [step for part in transform if depth for step in transform_steps(config, part, depth - 1)]
    if not isinstance(transform, dict) or str(transform.get("_disabled_")).lower() == "true":
        return []
    return transform_steps(config, transform["transforms"], depth) if "transforms" in transform else [transform]


def image_key(config: dict[str, Any], steps: list[dict[str, Any]]) -> str:
    """Return the entry of an item that holds the image: one that MONAI trains on, else the first loaded or named."""
    named = [name for step in steps for name in _named(config, step, "keys", "name", "names")]
    trained_on = [name for name in TRAINED_ON if name in named]
    return [*trained_on, *loaded_keys(config, steps), *named, "image"][0]


def loaded_keys(config: dict[str, Any], steps: list[dict[str, Any]]) -> list[str]:
    """Return the entries that are read from files."""
    loading = [step for step in steps if class_name(step).startswith("LoadImage")]
    return [name for step in loading for name in _named(config, step, "keys")]


def value_range(config: dict[str, Any], steps: list[dict[str, Any]], key: str) -> list[Any] | None:
    """Return between what values the images are scaled; None where no transform says so: MemorizationHandler will."""
    ends: list[Any] = [None]
    for step in steps:
        scale = re.fullmatch(r"(ScaleIntensity(Range(Percentiles)?)?)(d|D|Dict)", class_name(step))
        if scale and key in _named(config, step, "keys"):
            # only the first of them scales to [0, 1] unless told otherwise
            names, default = (("minv", "maxv"), (0, 1)) if scale[2] is None else (("b_min", "b_max"), (None, None))
            ends = [step.get(name, value) for name, value in zip(names, default, strict=True)]
    return None if None in ends else ends


def _named(config: dict[str, Any], step: dict[str, Any], *arguments: str) -> list[str]:
    """Return the entries that a transform names in these arguments."""
    listed = [(step.get(argument), follow(config, step.get(argument))) for argument in arguments]
    names = [name for given, found in listed for name in (found if isinstance(found, list) else [given])]
    return [_entry(config, name) for name in names if name]


def _entry(config: dict[str, Any], name: Any) -> str:
    """Return the name of an entry; a reference to what is computed as it is, since MONAI follows it."""
    written = follow(config, name)
    constant = CONSTANT.fullmatch(str(written))
    if constant:
        return constant[1].lower()
    return written if isinstance(written, str) and not written.startswith("$") else str(name)
