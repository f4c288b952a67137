# SPDX-License-Identifier: Apache-2.0
"""The encoder: image to embedding, on a MONAI backbone; save and load."""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from monai.networks.blocks import Convolution
from torch import Tensor, nn

from monai_memorization.errors import InputError
from monai_memorization.files import write_bytes, write_text
from monai_memorization.images.preparation import Preparation, recorded_preparation
from monai_memorization.version import __version__

WIDTHS = (16, 32, 64, 128, 128)


class ContrastiveEncoder(nn.Module):
    """Convolutional network from a prepared image to its embedding.

    The last map is pooled over space, by mean and by maximum, so that an image that was shifted, cropped or turned a
    little keeps its embedding; a linear layer on the map itself learns that much more slowly.

    Args:
        image_size: spatial size of the images, two or three numbers.
        channels: number of channels of the images.
        embedding_size: length D of an embedding.
        widths: channels after each layer.
        halvings: number of layers, the first ones, that halve the sides; on too coarse a last map, shifts go unseen.
        spacing: voxel size of the set of volumes that it was trained on, as of ``Preparation``; None where not known.
        clip: intensities beyond which its images are cut off, as of ``Preparation``.
        training_steps: number of steps that it was trained for; None where that is not known.
        trained_on: hash of the images that it was trained on.

    Raises:
        InputError: if there are not two or three sides, or no layer, or a number is not above 0.
    """

    __jit_unused_properties__ = ("preparation",)  # leaves it out of torch.jit.script

    def __init__(
        self,
        image_size: Sequence[int],
        channels: int = 1,
        embedding_size: int = 128,
        widths: Sequence[int] = WIDTHS,
        halvings: int = 3,
        spacing: Sequence[float] | None = None,
        clip: Sequence[float] | None = None,
        training_steps: int | None = None,
        trained_on: str | None = None,
    ) -> None:
        super().__init__()
        self.training_steps = training_steps
        self.trained_on = trained_on
        sides, layers = [int(side) for side in image_size], [int(width) for width in widths]
        if len(sides) not in (2, 3) or not layers or min(*sides, *layers, channels, embedding_size) < 1:
            raise InputError(
                f"image_size: {sides}, channels: {channels}, embedding_size: {embedding_size}, widths: {layers}; "
                "an encoder has two or three sides and at least one layer, all numbers above 0"
            )
        # torch.jit.script warns of an annotated attribute
        self.settings = dict[str, Any](
            image_size=sides,
            channels=int(channels),
            embedding_size=int(embedding_size),
            widths=layers,
            halvings=int(halvings),
            spacing=None if spacing is None else [float(size) for size in spacing],
            clip=None if clip is None else [float(value) for value in clip],
        )
        inputs = [channels, *layers[:-1]]
        strides = [2 if i < halvings else 1 for i in range(len(layers))]
        self.layers = nn.Sequential(
            *(
                Convolution(len(sides), n_in, n_out, strides=stride, kernel_size=3, act="RELU", norm="BATCH")
                for n_in, n_out, stride in zip(inputs, layers, strides, strict=True)
            )
        )
        self.head = nn.Linear(2 * layers[-1], embedding_size)
        # pooling takes any size, so weights must say for which they are
        self.register_buffer("image_size", torch.tensor(sides))
        self.register_load_state_dict_pre_hook(_check_image_size)

    @property
    def preparation(self) -> Preparation:
        """How images are prepared for this encoder."""
        return recorded_preparation(self.settings)

    def forward(self, images: Tensor) -> Tensor:
        """Return the embeddings, (B, D), of images (B, C, *image_size) in [0, 1]."""
        features = self.layers(images * 2 - 1).flatten(2)
        return self.head(torch.cat([features.mean(dim=2), features.amax(dim=2)], dim=1))


def _check_image_size(
    encoder: nn.Module,
    state: dict[str, Tensor],
    prefix: str,
    local_metadata: object,
    strict: bool,
    missing: list[str],
    unexpected: list[str],
    errors: list[str],
) -> None:
    """Have torch refuse weights that were trained on images of another size; a hook with torch's signature."""
    own, theirs = encoder.get_buffer("image_size").tolist(), state.get(f"{prefix}image_size")
    if theirs is not None and theirs.tolist() != own:
        errors.append(f"image_size: the weights were trained on images of {theirs.tolist()}, not {own}")


def save_encoder(encoder: ContrastiveEncoder, path: str | Path) -> None:
    """Write the weights to ``path`` as a plain state dict, and what rebuilds the encoder to the JSON file beside it."""
    path = Path(path)
    weights = io.BytesIO()
    torch.save({name: value.detach().cpu() for name, value in encoder.state_dict().items()}, weights)
    write_bytes(path, weights.getvalue())
    training = {"training_steps": encoder.training_steps, "trained_on": encoder.trained_on}
    content = encoder.settings | training | {"version": __version__}
    write_text(path.with_suffix(".json"), json.dumps(content, indent=2) + "\n")


def load_encoder(path: str | Path) -> ContrastiveEncoder:
    """Read what :func:`save_encoder` wrote, ready for use (evaluation mode).

    Raises:
        InputError: if one of the two files is missing, damaged, or they do not belong together.
    """
    path = Path(path)
    settings_file, cure = path.with_suffix(".json"), "an encoder is a .pt file with a .json file of its name beside it"
    if path.is_dir():
        raise InputError(f"encoder: {path} is a folder; give the file of weights in it, such as {path / 'model.pt'}")
    if not path.is_file():
        raise InputError(f"encoder: {path} does not exist; {cure}")
    if not settings_file.is_file():
        raise InputError(f"encoder: {path} was given, but {settings_file} does not exist; {cure}")
    try:
        settings = json.loads(settings_file.read_text(encoding="utf-8"))
        if "widths" in settings and "halvings" not in settings:  # of a version in which all layers but the last halved
            settings["halvings"] = len(settings["widths"]) - 1
        encoder = ContrastiveEncoder(**{key: value for key, value in settings.items() if key != "version"})
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"encoder: {path} was given, but {settings_file} does not describe an encoder ({error}); {cure}"
        ) from None
    try:
        encoder.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (RuntimeError, TypeError, AttributeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"encoder: {path} holds no weights for the network of {settings_file.name} ({reason}); "
            "train one with `python -m monai.bundle run` on the audit bundle's train.json, or leave --encoder out"
        ) from None
    return encoder.eval()
