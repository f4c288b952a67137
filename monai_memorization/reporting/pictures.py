# SPDX-License-Identifier: Apache-2.0
"""Pictures of images: a tensor of two or three spatial dimensions in, PNG data URIs out."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

# a difference of this much or more has full colour: smaller ones would not be seen at full scale
DIFFERENCE_RANGE = 0.5
# a gallery of hundreds of volumes must still open: so many slices across each axis, no side of them longer than this
N_SLICES = 9
LONGEST_SIDE = 48


def planes(image: Tensor) -> list[Tensor]:
    """Cut an image into the flat pictures that show it.

    Args:
        image: (C, H, W) or (C, X, Y, Z). Three channels are colours; of any other number each is shown by itself.

    Returns:
        Stacks of pictures, (n, 1 or 3, height, width): of a flat image itself, n = 1; of a volume the slices across
        each axis, at most ``N_SLICES``, the middle one in their middle.
    """
    stacks = [image[None]] if image.ndim == 3 else [_slices(image, axis) for axis in (1, 2, 3)]
    if image.shape[0] in (1, 3):
        return stacks
    return [stack[:, [channel]] for stack in stacks for channel in range(image.shape[0])]


def _slices(volume: Tensor, axis: int) -> Tensor:
    side = volume.shape[axis]
    step, half = max(1, math.ceil(side / N_SLICES)), side // 2
    shown = list(range(half % step, side, step))
    # canonical axes run to the right, to the front and up, pictures run down: the last of two axes becomes the height
    return volume.movedim(axis, 0)[shown].transpose(2, 3).flip(2)


def frames(part: Sequence[tuple[float, float]]) -> list[dict[str, float]]:
    """Return where a part of an image lies in its pictures, one frame for each stack of :func:`planes`.

    Args:
        part: where it begins and ends along each axis, as shares of the side.

    Returns:
        left, top, width and height, in percent.
    """
    if len(part) == 2:
        rows, columns = part
        return [_frame(columns, rows)]
    across = [[part[axis] for axis in range(3) if axis != cut] for cut in range(3)]
    return [_frame(first, (1 - last[1], 1 - last[0])) for first, last in across]


def _frame(columns: tuple[float, float], rows: tuple[float, float]) -> dict[str, float]:
    (left, right), (top, bottom) = columns, rows
    return {"left": 100 * left, "top": 100 * top, "width": 100 * (right - left), "height": 100 * (bottom - top)}


def strip(stack: Tensor) -> Tensor:
    """Lay a stack of pictures, (n, C, H, W), one under the other: (C, n H, W)."""
    return stack.movedim(0, 1).flatten(1, 2)


def picture(plane: Tensor) -> str:
    """Encode a picture (1 or 3, H, W) with values in [0, 1] as a PNG data URI."""
    values = plane.detach().cpu().float().nan_to_num().clamp(0, 1)
    return _data_uri((255 * values).round().to(torch.uint8))


def difference_picture(synthetic: Tensor, training: Tensor) -> str:
    """Encode how two pictures (1 or 3, H, W) differ: red where the synthetic one is brighter, blue where it is darker.

    White is no difference; `DIFFERENCE_RANGE` has full colour. Colours count by the mean over the channels.
    """
    difference = (synthetic.float() - training.float()).mean(0).nan_to_num() / DIFFERENCE_RANGE
    brighter, darker = difference.clamp(0, 1), (-difference).clamp(0, 1)
    return picture(torch.stack([1 - darker, 1 - brighter - darker, 1 - brighter]))


def _data_uri(values: Tensor) -> str:
    """Encode bytes (1 or 3, H, W)."""
    pixels = values[0] if values.shape[0] == 1 else values.permute(1, 2, 0)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
