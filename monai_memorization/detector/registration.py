# SPDX-License-Identifier: Apache-2.0
"""Register pairs of images and correlate what they show: exact where the encoder is only tolerant.

An image is reduced to its fine structure, (C, *sides), a few thousand values that brightness, contrast and smooth
fields hardly change. Of a pair, a grid of flips, rotations, zooms and shifts is tried on a coarse scale; an affine map
is refined from the best of them, at half the sides and then at the whole, since fine detail leads to a match only from
nearby. The agreement of the pair is the correlation where both are seen.
"""

from __future__ import annotations

import math
from itertools import combinations, product

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_memorization.detector.degradations import blur

SIDES = {2: 32, 3: 24}
COARSE_SIDES = {2: 16, 3: 8}
# bounds of the structure that is kept, standard deviations of a blur as shares of the shorter side
FINE, SMOOTH = 0.01, 0.05
LEAST_SMOOTH = 1.2  # voxels; what is finer than this alone does not survive a shift by half a voxel
FLOOR = 0.05  # contrast below which structure is taken for noise
ANGLES = (-14.0, -7.0, 7.0, 14.0)
ZOOMS = (1.0, 1.12, 1.25)
LARGEST_SHIFT = 0.2
N_REFINEMENTS = 3  # on each scale
LEAST_OVERLAP = 0.4
BORDER = 0.05  # of the shorter side; blurs reach so far, and what lies outside is not known
FLAT = 0.05  # mean square of structure below which a query shows nothing, as where it is overexposed


def fine_structure(images: Tensor) -> Tensor:
    """Return what of images (B, C, *spatial) in [0, 1] is finer than a smooth background, over its local contrast.

    Returns:
        (B, C, *sides), each side at most ``SIDES``.
    """
    d = images.dim() - 2
    smooth = max(SMOOTH, LEAST_SMOOTH / min(images.shape[2:]))
    sharp = blur(images, FINE)
    structure = sharp - blur(sharp, smooth)
    contrast = blur(structure.square(), smooth).clamp_min(0).sqrt()
    return _shrink(structure / (contrast + FLOOR), SIDES[d])


@torch.no_grad()
def agreement(query: Tensor, candidates: Tensor) -> Tensor:
    """Return how well each query agrees with each of its candidates after registration.

    Args:
        query: fine structure, (B, C, *sides).
        candidates: fine structure of k images for each query, (B, k, C, *sides).

    Returns:
        Correlations in [-1, 1], (B, k).
    """
    maps = _best_of_grid(query, candidates)
    halved = _halve(candidates.flatten(0, 1)).unflatten(0, candidates.shape[:2])
    _, maps = _refine(_halve(query), halved, maps)
    return _refine(query, candidates, maps)[0]


def _best_of_grid(query: Tensor, candidates: Tensor) -> Tensor:
    """Return the affine map of the largest correlation over the grid and all shifts, (B, k, d, d + 1)."""
    n, k = candidates.shape[:2]
    d = query.dim() - 2
    query = _shrink(query, COARSE_SIDES[d])
    candidates = _unit(_shrink(candidates.flatten(0, 1), COARSE_SIDES[d]))
    sides = query.shape[2:]
    turns, flips = _turns(d, sides).to(query), list(product((False, True), repeat=d))
    # query(v) = candidate(flip turn v + t)  <=>  query(inverse turn, flip u) = candidate(u + t)
    inverse = F.pad(torch.linalg.inv(turns), (0, 1))
    turned = _unit(_warp(query.repeat_interleave(len(turns), dim=0), inverse.repeat(n, 1, 1)))
    seen = torch.stack([turned.flip([2 + axis for axis in range(d) if flip[axis]]) for flip in flips], dim=1)
    shifts, shifted = _shift_all(candidates, math.floor(LARGEST_SHIFT * min(sides)))
    values = torch.bmm(seen.reshape(n, len(turns) * len(flips), -1), shifted.reshape(n, k * len(shifts), -1).mT)
    best = values.unflatten(2, (k, len(shifts))).transpose(1, 2).flatten(2).argmax(dim=2)
    signs = 1.0 - 2.0 * torch.tensor(flips).flip(1).to(turns)
    linear = (turns[:, None] * signs[None, :, :, None]).flatten(0, 1)[best // len(shifts)]
    offset = (2 * shifts / torch.tensor(sides).to(shifts)).flip(1)[best % len(shifts)]
    return torch.cat([linear, offset[..., None]], dim=3)


def _shift_all(images: Tensor, largest: int) -> tuple[Tensor, Tensor]:
    """Return shifts by up to ``largest`` voxels, (S, d), and images(u + shift), 0 outside, (B, S, C, *sides)."""
    d, sides = images.dim() - 2, images.shape[2:]
    windows = F.pad(images, [largest] * (2 * d))
    for axis, side in enumerate(sides):
        windows = windows.unfold(2 + axis, side, 1)  # puts the window last, and in its place the shift
    shifts = torch.cartesian_prod(*[torch.arange(-largest, largest + 1)] * d).view(-1, d).to(images)
    return shifts, windows.movedim(1, 1 + d).flatten(1, d)


def _refine(query: Tensor, candidates: Tensor, maps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the best correlation met by Gauss-Newton steps from the given maps, (B, k), and its map.

    Inverse compositional (Baker and Matthews 2004, "Lucas-Kanade 20 years on"): the derivative is that of the query, so
    that it and its normal equations are taken once, for all its candidates.
    """
    n, k, d = maps.shape[:3]
    query = query / query.flatten(1).std(dim=1).clamp_min(1e-6).view(-1, *[1] * (d + 1))
    jacobian = _jacobian(query)
    normal = jacobian @ jacobian.mT
    damping = 0.01 * normal.diagonal(dim1=1, dim2=2) + 1e-3
    factor = torch.linalg.cholesky(normal + torch.diag_embed(damping))
    candidates = candidates.flatten(0, 1)
    marked = torch.cat([candidates, _inner(candidates)], dim=1)
    shown = _shown(query).flatten(2)[:, None]
    values = query.flatten(2)[:, None]
    least = LEAST_OVERLAP * shown.mean(dim=(2, 3))
    best, best_maps = query.new_full((n, k), -1.0), maps
    for step in range(N_REFINEMENTS + 1):
        warped = _warp(marked, maps.flatten(0, 1)).view(n, k, -1, values.shape[3])  # (B, k, C + 1, voxels)
        inside = (warped[:, :, -1:] > 0.99) * shown
        first, second = _centred(values, inside), _centred(warped[:, :, :-1], inside)
        norms = first.flatten(2).norm(dim=2), second.flatten(2).norm(dim=2).clamp_min(1e-6)
        value = (first * second).sum(dim=(2, 3)) / (norms[0] * norms[1]).clamp_min(1e-6)
        better = (inside.mean(dim=(2, 3)) > least) & (value > best)
        best, best_maps = value.where(better, best), maps.where(better[..., None, None], best_maps)
        if step == N_REFINEMENTS:
            break
        residual = ((norms[0] / norms[1])[..., None, None] * second - first).flatten(2)
        update = torch.cholesky_solve(jacobian @ residual.mT, factor).mT.unflatten(2, (d, d + 1))
        maps = maps @ torch.linalg.inv(_square(torch.eye(d, d + 1).to(query) + update))
    return best, best_maps


def _inner(images: Tensor) -> Tensor:
    """Mark what is away from the border, (B, 1, *sides)."""
    width = round(BORDER * min(images.shape[2:]))
    inner = torch.ones_like(images[:, :1])
    for axis in range(2, images.dim()):
        inner.narrow(axis, 0, width).zero_()
        inner.narrow(axis, images.shape[axis] - width, width).zero_()
    return inner


def _shown(images: Tensor) -> Tensor:
    """Mark where there is any structure, (B, 1, *sides)."""
    return (blur(images.square().mean(dim=1, keepdim=True), SMOOTH) > FLAT).to(images)


def _jacobian(images: Tensor) -> Tensor:
    """Derivative of the values with respect to the entries of an affine map, (B, d (d + 1), C * prod(sides))."""
    d, sides = images.dim() - 2, images.shape[2:]
    points = _points(images)  # (d + 1, prod(sides))
    slopes = torch.gradient(images, dim=list(range(2, d + 2)))
    # maps count axes from the last to the first, from -1 to 1
    rows = [slopes[axis].flatten(2)[:, None] * (sides[axis] / 2 * points[:, None]) for axis in reversed(range(d))]
    return torch.cat(rows, dim=1).flatten(2)


def _turns(d: int, sides: torch.Size) -> Tensor:
    """Rotations and zooms that are tried, (P, d, d), axes from the last to the first, in coordinates from -1 to 1."""
    sizes = torch.tensor(sides, dtype=torch.float32)
    turns = [torch.eye(d)]
    for (i, j), degrees in product(combinations(range(d), 2), ANGLES):
        turn, angle = torch.eye(d), math.radians(degrees)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        turns.append(turn * sizes[None, :] / sizes[:, None])
    return torch.stack([turn.flip(0, 1) / zoom for turn, zoom in product(turns, ZOOMS)])


def _shrink(images: Tensor, side: int) -> Tensor:
    return F.interpolate(images, size=[min(side, size) for size in images.shape[2:]], mode="area")


def _halve(images: Tensor) -> Tensor:
    return F.interpolate(images, size=[min(side, max(4, side // 2)) for side in images.shape[2:]], mode="area")


def _warp(images: Tensor, maps: Tensor) -> Tensor:
    """Return the images seen through affine maps, (B, d, d + 1), 0 outside."""
    # as affine_grid, but in one product of matrices instead of B small ones
    grid = (maps.flatten(0, 1) @ _points(images)).view(len(images), -1, *images.shape[2:]).movedim(1, -1)
    return F.grid_sample(images, grid, align_corners=False)


def _points(images: Tensor) -> Tensor:
    """Return where voxels lie from -1 to 1, last axis first, and a row of 1, (d + 1, prod(sides))."""
    places = [(2 * torch.arange(side).to(images) + 1) / side - 1 for side in images.shape[2:]]
    axes = [axis.flatten() for axis in reversed(torch.meshgrid(*places, indexing="ij"))]
    return torch.stack([*axes, torch.ones_like(axes[0])])


def _square(maps: Tensor) -> Tensor:
    """Add the last row of an affine map, (..., d + 1, d + 1)."""
    last = F.pad(torch.zeros_like(maps[..., :1, :-1]), (0, 1), value=1.0)
    return torch.cat([maps, last], dim=-2)


def _unit(images: Tensor) -> Tensor:
    centred = images - images.flatten(1).mean(dim=1).view(-1, *[1] * (images.dim() - 1))
    return centred / centred.flatten(1).norm(dim=1).clamp_min(1e-6).view(-1, *[1] * (images.dim() - 1))


def _centred(values: Tensor, inside: Tensor) -> Tensor:
    """Subtract the mean of values (B, k, C, voxels) over what is inside, (B, k, 1, voxels), and set the rest to 0."""
    count = inside.sum(dim=(2, 3), keepdim=True).clamp_min(1) * values.shape[2]
    mean = (values * inside).sum(dim=(2, 3), keepdim=True) / count
    return (values - mean) * inside
