# SPDX-License-Identifier: Apache-2.0
"""What a generator may do to a training image while copying it: batch and strength in, batch out, 2D and 3D.

Every function takes images (B, C, *spatial) in [0, 1] and returns the same shape and range. A strength is one number or
one per image, (B,); lengths are shares of the shorter side, so that they mean the same for 36 and for 512 pixels.
"""

from __future__ import annotations

import io
import math
from itertools import combinations
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from monai_memorization.images.preparation import PERCENTILES

Strength = float | Tensor


def affine(
    images: Tensor,
    angles: Tensor | None = None,
    shifts: Tensor | None = None,
    zooms: Tensor | None = None,
    flips: Tensor | None = None,
    padding: str = "zeros",
) -> Tensor:
    """Flip, rotate, zoom and shift, with one interpolation for all of it.

    Args:
        images: (B, C, *spatial), d spatial dimensions.
        angles: degrees, (B, d (d - 1) / 2), one for each plane in the order (0, 1), (0, 2), (1, 2).
        shifts: shares of the shorter side, (B, d).
        zooms: magnification, (B,) or (B, d); above 1 crops.
        flips: whether to mirror each axis, (B, d), bool.
        padding: what lies outside, "zeros", "border" or "reflection".

    Returns:
        The images as seen through the map, (B, C, *spatial).
    """
    n, d = len(images), images.dim() - 2
    sizes = torch.tensor(images.shape[2:], dtype=images.dtype, device=images.device)
    matrix = torch.eye(d, dtype=images.dtype, device=images.device).repeat(n, 1, 1)
    if angles is not None:
        for plane, (i, j) in enumerate(combinations(range(d), 2)):
            matrix = _rotation(angles[:, plane], i, j, d) @ matrix
    if zooms is not None:
        matrix = matrix / (zooms if zooms.dim() == 2 else zooms[:, None])[:, None, :]
    if flips is not None:
        matrix = matrix * (1 - 2 * flips.to(matrix.dtype))[:, None, :]
    # from voxels to the coordinates of affine_grid, where each axis runs from -1 to 1
    matrix = matrix * sizes[None, None, :] / sizes[None, :, None]
    offset = torch.zeros(n, d, 1, dtype=images.dtype, device=images.device)
    if shifts is not None:
        offset = (-2 * shifts * sizes.min() / sizes)[:, :, None]
    # affine_grid counts axes from the last to the first
    theta = torch.cat([matrix.flip(1, 2), offset.flip(1)], dim=2)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode=padding, align_corners=False)


def mirror(images: Tensor, axis: int = -1) -> Tensor:
    """Mirror along one spatial axis; exact, without interpolation."""
    return images.flip(axis if axis < 0 else axis + 2)


def turn(images: Tensor, degrees: Strength, plane: int = 0) -> Tensor:
    """Rotate by ``degrees``, clockwise where the first axis runs down, in a plane numbered as in :func:`affine`."""
    d = images.dim() - 2
    angles = torch.zeros(len(images), d * (d - 1) // 2, dtype=images.dtype, device=images.device)
    angles[:, plane] = _per_image(images, degrees)
    return affine(images, angles=angles)


def shift(images: Tensor, share: Strength) -> Tensor:
    """Move along every axis by a ``share`` of the shorter side."""
    return affine(images, shifts=_per_image(images, share)[:, None].repeat(1, images.dim() - 2))


def crop(images: Tensor, share: Strength) -> Tensor:
    """Cut out the middle, ``share`` of each side, and scale it to the full size."""
    return affine(images, zooms=1 / _per_image(images, share))


def gamma(images: Tensor, exponent: Strength) -> Tensor:
    """Raise intensities to ``exponent``; above 1 darkens."""
    return images.clamp_min(1e-6) ** _spread(images, exponent)


def contrast(images: Tensor, factor: Strength) -> Tensor:
    """Multiply the distance of intensities from their mean by ``factor``, cut to [0, 1]."""
    mean = images.flatten(1).mean(1).view(-1, *[1] * (images.dim() - 1))
    return (mean + (images - mean) * _spread(images, factor)).clamp(0, 1)


def brightness(images: Tensor, factor: Strength) -> Tensor:
    """Multiply intensities by ``factor``, cut to [0, 1]."""
    return (images * _spread(images, factor)).clamp(0, 1)


def bias_field(images: Tensor, strength: Strength, generator: torch.Generator | None = None) -> Tensor:
    """Multiply by a smooth random field between 1 - ``strength`` and 1 + ``strength``, as an MR coil does."""
    coarse = torch.rand(len(images), 1, *[3] * (images.dim() - 2), **_drawn_by(generator, images)) * 2 - 1
    field = _resize(coarse.to(images), images.shape[2:])
    return (images * (1 + _spread(images, strength) * field)).clamp(0, 1)


def blur(images: Tensor, share: Strength) -> Tensor:
    """Blur by a Gaussian whose standard deviation is ``share`` of the shorter side."""
    sigmas = _per_image(images, share) * min(images.shape[2:])
    radius = max(1, math.ceil(3 * float(sigmas.max())))
    taps = torch.arange(-radius, radius + 1, dtype=images.dtype, device=images.device)
    kernels = torch.exp(-0.5 * (taps / sigmas.clamp_min(1e-3)[:, None]) ** 2)
    kernels = kernels / kernels.sum(1, keepdim=True)
    for axis in range(2, images.dim()):
        images = _convolve(images, kernels, axis)
    return images


def noise(images: Tensor, deviation: Strength, generator: torch.Generator | None = None) -> Tensor:
    """Add white Gaussian noise of the given standard ``deviation``, cut to [0, 1]."""
    white = torch.randn(images.shape, **_drawn_by(generator, images)).to(images)
    return (images + _spread(images, deviation) * white).clamp(0, 1)


def coarsen(images: Tensor, share: float) -> Tensor:
    """Sample down to cells whose side is ``share`` of the shorter side, at least to one cell fewer, and up again."""
    cell = max(1.0, share * min(images.shape[2:]))
    # where cells would be smaller than voxels nothing was lost
    small = [min(side - 1, max(2, round(side / cell))) for side in images.shape[2:]]
    return _resize(F.interpolate(images, size=small, mode="area"), images.shape[2:])


def elastic(images: Tensor, share: Strength, generator: torch.Generator | None = None) -> Tensor:
    """Deform by a smooth random field whose largest displacement is about ``share`` of the shorter side."""
    d = images.dim() - 2
    coarse = torch.rand(len(images), d, *[5] * d, **_drawn_by(generator, images)) * 2 - 1
    field = _resize(coarse.to(images), images.shape[2:]) * _spread(images, share)
    sizes = torch.tensor(images.shape[2:], dtype=images.dtype, device=images.device)
    field = field * (2 * sizes.min() / sizes).view(1, d, *[1] * d)
    identity = F.affine_grid(torch.eye(d, d + 1).to(images).expand(len(images), -1, -1), list(images.shape), False)
    return F.grid_sample(images, identity + field.movedim(1, -1).flip(-1), padding_mode="border", align_corners=False)


def jpeg(images: Tensor, quality: float) -> Tensor:
    """Compress pictures, (B, C, H, W), as JPEG of the given ``quality`` in [1, 95], each channel by itself."""
    pressed = torch.stack([_press(channel, round(quality)) for channel in images.flatten(0, 1)])
    return pressed.to(images).view(images.shape)


def quantize(images: Tensor, levels: float) -> Tensor:
    """Round intensities to so many ``levels``."""
    return (images * (levels - 1)).round() / (levels - 1)


def sharpen(images: Tensor, amount: Strength) -> Tensor:
    """Add ``amount`` times what a blur by 2 % of the shorter side takes away, cut to [0, 1]."""
    return (images + _spread(images, amount) * (images - blur(images, 0.02))).clamp(0, 1)


def blend(images: Tensor, others: Tensor, share: Strength) -> Tensor:
    """Mix ``share`` of each image with the rest of another one, (B, C, *spatial)."""
    weight = _spread(images, share)
    return weight * images + (1 - weight) * others


def splice(images: Tensor, others: Tensor, share: float) -> Tensor:
    """Keep a corner box with ``share`` of the area or volume of each image, and take the rest from another one.

    One half is the first half along the last axis, as a half of the body; smaller shares halve further axes in turn.
    """
    result = others.clone()
    box = [slice(None)] * images.dim()
    axis = images.dim() - 1
    while share < 0.75 and axis > 1:
        box[axis] = slice(0, images.shape[axis] // 2)
        share *= 2
        axis -= 1
    result[tuple(box)] = images[tuple(box)]
    return result


def rescale(images: Tensor) -> Tensor:
    """Bring intensities to [0, 1] by each image's own percentiles, as the preparation does when it reads a file.

    Percentiles are taken from about a thousand values of an image, of each channel of a volume.
    """
    if images.dim() == 5 and images.shape[1] > 1:
        return rescale(images.flatten(0, 1)[:, None]).view(images.shape)
    flat = images.flatten(1)
    step = max(1, flat.shape[1] // 1024) | 1  # odd, lest it hit a few columns only where sides are powers of two
    values = flat[:, ::step].sort(dim=1).values
    low, high = (values[:, round(share / 100 * (values.shape[1] - 1))] for share in PERCENTILES)
    if (thin := high <= low).any():  # a thin object on an empty background
        low, high = torch.where(thin, flat.amin(1), low), torch.where(thin, flat.amax(1), high)
    span = (high - low).clamp_min(1e-3)
    return ((images - _spread(images, low)) / _spread(images, span)).clamp(0, 1)


def _drawn_by(generator: torch.Generator | None, images: Tensor) -> dict[str, Any]:
    """Say where random numbers are drawn: on the device of the generator, or where the images are."""
    return {"generator": generator, "device": images.device if generator is None else generator.device}


def _per_image(images: Tensor, strength: Strength) -> Tensor:
    return torch.as_tensor(strength, dtype=images.dtype, device=images.device).expand(len(images))


def _spread(images: Tensor, strength: Strength) -> Tensor:
    return _per_image(images, strength).view(-1, *[1] * (images.dim() - 1))


def _rotation(degrees: Tensor, i: int, j: int, d: int) -> Tensor:
    cos, sin = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    matrix = torch.eye(d, dtype=degrees.dtype, device=degrees.device).repeat(len(degrees), 1, 1)
    matrix[:, i, i], matrix[:, j, j], matrix[:, i, j], matrix[:, j, i] = cos, cos, -sin, sin
    return matrix


def _resize(images: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(
        images, size=list(size), mode="bilinear" if len(size) == 2 else "trilinear", align_corners=False
    )


def _convolve(images: Tensor, kernels: Tensor, axis: int) -> Tensor:
    """Convolve along one axis with one kernel per image, (B, taps), edges repeated.

    As a product with one matrix per image: on the sides that are compared it is several times faster than a grouped
    convolution.
    """
    n, taps = kernels.shape
    side = images.shape[axis]
    places = torch.arange(side, device=images.device)[:, None] + torch.arange(taps, device=images.device) - taps // 2
    matrix = images.new_zeros(n, side, side)
    matrix.scatter_add_(2, places.clamp(0, side - 1).expand(n, -1, -1), kernels[:, None].expand(-1, side, -1))
    moved = images.movedim(axis, -1)
    return (moved.reshape(n, -1, side) @ matrix.mT).reshape(moved.shape).movedim(-1, axis)


def _press(picture: Tensor, quality: int) -> Tensor:
    buffer = io.BytesIO()
    Image.fromarray((picture.cpu().numpy() * 255).round().astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return torch.from_numpy(np.asarray(Image.open(buffer)).copy()) / 255
