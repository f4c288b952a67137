# SPDX-License-Identifier: Apache-2.0
"""The perceptual term of the autoencoder's loss, without a pretrained network."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


class FeatureLoss(nn.Module):
    """Compare images band by band of a Laplacian pyramid, each detail relative to the local contrast of the original.

    An L1 loss alone blurs: where the position of a fine detail is uncertain its best answer is the median, no detail at
    all, and a faint rib weighs little beside a bright spine. Two terms per band b counter that, a = blur(|b|) being the
    local amplitude of the original and a' that of the reconstruction:

    - mean |b - b'| / (a + floor), the normalised Laplacian pyramid distance of Laparra et al. 2016, "Perceptual image
      quality assessment using a normalized Laplacian pyramid": faint structure counts like strong structure;
    - mean |a - a'| / (a + floor): a detail may be slightly displaced but may not fade.

    It is made of blurs alone, so it needs no weights and works alike in 2D and 3D, in any number of channels.

    Args:
        levels: number of bands, each at half the resolution of the one before; fewer where the image is too small.
        floor: amplitude below which contrast counts as noise, in units of the intensities, which span [0, 1].
    """

    def __init__(self, levels: int = 4, floor: float = 0.02) -> None:
        super().__init__()
        self.levels = levels
        self.floor = floor

    def forward(self, reconstruction: Tensor, image: Tensor) -> Tensor:
        """Return the mean loss over the bands, a scalar.

        Args:
            reconstruction: (B, C, *spatial).
            image: the original, of the same shape, in [0, 1].
        """
        # ratios of small numbers: not in half precision
        with torch.autocast(image.device.type, enabled=False):
            bands = zip(
                laplacian_bands(reconstruction.float(), self.levels),
                laplacian_bands(image.float(), self.levels),
                strict=True,
            )
            return torch.stack([self._compare(band, original) for band, original in bands]).mean()

    def _compare(self, band: Tensor, original: Tensor) -> Tensor:
        amplitude = blur(original.abs())
        difference = (band - original).abs() + (blur(band.abs()) - amplitude).abs()
        return (difference / (amplitude + self.floor)).mean()


def laplacian_bands(images: Tensor, levels: int) -> list[Tensor]:
    """Split images into bands of detail, finest first; the coarse rest is left out.

    Args:
        images: (B, C, *spatial).
        levels: number of bands wanted; no band is made of images with a side below 4.

    Returns:
        Band k, (B, C, *ceil(spatial / 2^k)).
    """
    bands = []
    for _ in range(levels):
        coarse = blur(images)
        bands.append(images - coarse)
        every_second = (...,) + (slice(None, None, 2),) * (images.dim() - 2)
        images = coarse[every_second]
        if min(images.shape[2:]) < 4:
            break
    return bands


def blur(images: Tensor) -> Tensor:
    """Blur images, (B, C, *spatial), with the 5-tap binomial filter along each axis; edges are repeated."""
    spatial_dims = images.dim() - 2
    channels = images.shape[1]
    convolve = (F.conv1d, F.conv2d, F.conv3d)[spatial_dims - 1]
    for axis in range(spatial_dims):
        shape = [1] * spatial_dims
        shape[axis] = len(_BINOMIAL)
        kernel = images.new_tensor(_BINOMIAL).view(1, 1, *shape).expand(channels, 1, *shape)
        padding = [0] * (2 * spatial_dims)
        edge = 2 * (spatial_dims - 1 - axis)  # F.pad counts axes from the last one
        padding[edge : edge + 2] = [2, 2]
        images = convolve(F.pad(images, padding, mode="replicate"), kernel, groups=channels)
    return images
