# SPDX-License-Identifier: Apache-2.0
"""Draw images into a folder: from a sampler, or as the inference config of a bundle does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from monai.bundle import ConfigWorkflow
from monai.data import MetaTensor
from monai.transforms import SaveImage
from torch import Tensor

from monai_memorization.bundle_configs import read_config
from monai_memorization.errors import InputError, bad_input
from monai_memorization.generation.sampling import Sampler
from monai_memorization.images.sets import read_image_set


class Draw(Protocol):
    """Anything that writes images into a folder."""

    def __call__(self, seeds: range, folder: Path) -> None:
        """Write one image per seed into ``folder``, beside what is there."""


class SamplerDraw:
    """Draw from a sampler, and write pictures as PNG and volumes as NIfTI, named after their seeds.

    Args:
        sampler: see :mod:`monai_memorization.generation.sampling`.
        batch_size: images drawn at a time.
        affine: where the voxels of volumes lie, (4, 4); None for unit voxels.
    """

    def __init__(self, sampler: Sampler, batch_size: int = 16, affine: Any = None) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.affine = np.eye(4) if affine is None else np.asarray(affine)

    def __call__(self, seeds: range, folder: Path) -> None:
        """Write one image per seed.

        Raises:
            InputError: if the sampler does not return one finite image per seed.
        """
        for start in range(0, len(seeds), self.batch_size):
            batch = seeds[start : start + self.batch_size]
            with torch.no_grad():
                images = torch.as_tensor(self.sampler(batch)).float().cpu()
            if len(images) != len(batch) or images.dim() not in (4, 5) or not torch.isfinite(images).all():
                raise InputError(
                    f"sampler: for {len(batch)} seeds from {batch[0]} on it returned {tuple(images.shape)}, or values "
                    "that are not finite; (n, C, *spatial) in [0, 1] is needed"
                )
            if images.dim() == 4 and images.shape[1] not in (1, 3):  # PNG reads two back as one, four as three
                raise InputError(
                    f"sampler: returned pictures of {images.shape[1]} channels, but 1 or 3 are written; write them "
                    "yourself, as NumPy, and audit the folder"
                )
            for seed, image in zip(batch, images, strict=True):
                self._save(image, f"{seed:06}", folder)

    def _save(self, image: Tensor, name: str, folder: Path) -> None:
        picture = image.dim() == 3
        save = SaveImage(
            output_dir=folder,
            output_postfix="",
            output_ext=".png" if picture else ".nii.gz",
            resample=False,
            scale=255 if picture else None,
            separate_folder=False,
            print_log=False,
        )
        # MONAI writes pictures transposed
        pixels = image.transpose(-1, -2) if picture else image
        save(MetaTensor(pixels.clamp(0, 1), meta={"filename_or_obj": name, "affine": self.affine}))


class BundleDraw:
    """Draw as the inference config of a bundle does, through MONAI's own runner.

    The config has to say by keys how many images are drawn, from which seed on, and where to: image number i of a run
    from seed s must be that of seed s + i, under a name of its own. Configs are code: MONAI executes them.

    Args:
        configs: JSON or YAML files, later ones laid over earlier ones.
        overrides: further keys, such as ``model_dir``.
        n_images_key: key of the number of images.
        first_seed_key: key of the first seed.
        output_dir_key: key of the folder.

    Raises:
        InputError: if a file cannot be read, or none has one of the keys or ``run``.
    """

    def __init__(
        self,
        configs: Sequence[str | Path],
        overrides: Mapping[str, Any] | None = None,
        n_images_key: str = "n_images",
        first_seed_key: str = "first_seed",
        output_dir_key: str = "output_dir",
    ) -> None:
        self.configs = [Path(path) for path in configs]
        self.overrides = dict(overrides or {})
        self.keys = (n_images_key, first_seed_key, output_dir_key)
        known: dict[str, Any] = {}
        for path in self.configs:
            known |= read_config(path)
        for key in self.keys:
            if key not in known:
                raise InputError(
                    f"{self.configs[0]}: has no key {key!r}, so it cannot be told how many images to draw, from which "
                    "seed on, and where to; lay a file over it that has this key and hands it on, as in "
                    "docs/copies_found.md, or call release() in Python with a sampler"
                )
        if "run" not in known:
            raise InputError(
                f"{self.configs[0]}: has no key 'run', which MONAI runs; lay a file over it that has under 'run' the "
                "list of what draws"
            )
        if known.get("bundle_root") == "." and "bundle_root" not in self.overrides:
            self.overrides["bundle_root"] = str(self.configs[0].absolute().parent.parent)

    def __call__(self, seeds: range, folder: Path) -> None:
        """Run the config once for these seeds.

        Raises:
            InputError: if it fails over bad input, or does not write one more image per seed.
        """
        folder.mkdir(parents=True, exist_ok=True)
        before = _n_images(folder)
        asked = dict(zip(self.keys, (len(seeds), seeds.start, str(folder)), strict=True))
        try:
            workflow = ConfigWorkflow(
                [str(path) for path in self.configs],
                logging_file=False,
                workflow_type="inference",
                **self.overrides | asked,
            )
            workflow.initialize()
            workflow.run()
            workflow.finalize()
        except Exception as error:
            if (cause := bad_input(error)) is not None:
                raise cause from None
            raise
        if (written := _n_images(folder) - before) != len(seeds):
            raise InputError(
                f"{self.configs[0]}: wrote {written} new images for {len(seeds)} seeds from {seeds.start} on; "
                f"{self.keys[0]} has to be their number, {self.keys[1]} the first seed, and names must differ"
            )


def _n_images(folder: Path) -> int:
    shown = any(not path.name.startswith(".") for path in folder.iterdir())
    return len(read_image_set(folder, "synthetic")) if shown else 0
