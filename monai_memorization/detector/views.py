# SPDX-License-Identifier: Apache-2.0
"""Views: random chains of degradations, made for a whole batch on its device, from which the encoder learns."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from monai_memorization.detector import degradations

PADDINGS = ("zeros", "border", "reflection")


@dataclass(frozen=True)
class Views:
    """Random degradations of a batch; each image gets its own, from none to the largest.

    Elastic deformation, resampling, JPEG, quantization, sharpening and partial copies are left out on purpose: the
    power test uses them as families that the encoder has never seen.

    Args:
        angle: largest rotation, degrees, in each plane.
        shift: largest shift, share of the shorter side.
        zoom: largest magnification; the smallest is ``zoom ** -0.25``.
        flip_rate: probability of mirroring each axis.
        gamma: exponents lie in [1 / gamma, gamma].
        gain: contrast and brightness are multiplied by a factor in [1 / gain, gain].
        bias: largest strength of the bias field.
        blur: largest standard deviation, share of the shorter side.
        noise: largest standard deviation.
    """

    angle: float = 20.0
    shift: float = 0.1
    zoom: float = 1.6
    flip_rate: float = 0.5
    gamma: float = 2.0
    gain: float = 2.0
    bias: float = 0.5
    blur: float = 0.04
    noise: float = 0.2

    def __call__(self, images: Tensor) -> Tensor:
        """Return one view of each image, (B, C, *spatial) in [0, 1], drawn from torch's global random state."""
        images = self._geometry(images)
        images = self._intensity(images)
        images = degradations.blur(images, self.blur * _mostly_small(images))
        images = degradations.noise(images, self.noise * _mostly_small(images))
        return degradations.rescale(images)

    def scaled(self, extent: float) -> Views:
        """Return views whose largest strengths are ``extent`` times these, in (0, 1]; flips stay as they are."""
        return replace(
            self,
            angle=self.angle * extent,
            shift=self.shift * extent,
            zoom=self.zoom**extent,
            gamma=self.gamma**extent,
            gain=self.gain**extent,
            bias=self.bias * extent,
            blur=self.blur * extent,
            noise=self.noise * extent,
        )

    def _geometry(self, images: Tensor) -> Tensor:
        n, d = len(images), images.dim() - 2
        extent = torch.rand(n, 1, device=images.device).sqrt()  # how far this image may go in all of it
        angles = self.angle * extent * _signed(images, d * (d - 1) // 2)
        shifts = self.shift * extent * _signed(images, d)
        exponent = torch.rand(n, device=images.device) * 1.25 - 0.25
        zooms = self.zoom ** (extent[:, 0] * exponent)
        flips = torch.rand(n, d, device=images.device) < self.flip_rate
        padding = PADDINGS[int(torch.randint(len(PADDINGS), ()))]
        return degradations.affine(images, angles, shifts, zooms, flips, padding)

    def _intensity(self, images: Tensor) -> Tensor:
        extent = torch.rand(len(images), device=images.device)
        images = degradations.gamma(images, self.gamma ** (extent * _signed(images)))
        images = degradations.contrast(images, self.gain ** (extent * _signed(images)))
        images = degradations.brightness(images, self.gain ** (extent * _signed(images)))
        return degradations.bias_field(images, self.bias * extent)


def _signed(images: Tensor, *columns: int) -> Tensor:
    return torch.rand(len(images), *columns, device=images.device) * 2 - 1


def _mostly_small(images: Tensor) -> Tensor:
    """Draw from [0, 1], a half of it below 1/8: strong blur and noise are rare, none is common."""
    return torch.rand(len(images), device=images.device) ** 3
