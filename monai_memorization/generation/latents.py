# SPDX-License-Identifier: Apache-2.0
"""Encode the training images once, and train the diffusion model on the cached latents."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, zip_longest
from typing import Any

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.networks.nets import DiffusionModelUNet
from monai.networks.nets.diffusion_model_unet import DiffusionUNetResnetBlock
from monai.networks.utils import eval_mode
from monai.utils import convert_to_tensor
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from monai_memorization.detector.checkpoint import RandomStates
from monai_memorization.ranks import ALONE, Ranks


class LatentDiffusionUNet(DiffusionModelUNet):
    """MONAI's DiffusionModelUNet with the scale of the latents that it was trained on among its weights.

    Latents are multiplied by ``scale_factor`` = 1 / their standard deviation before noise is added (Rombach et al.
    2022, appendix G), and what is sampled must be divided by it before decoding. A model file without that number is
    incomplete, hence a buffer: it is saved, loaded, copied and averaged with the weights.

    The arguments are those of ``DiffusionModelUNet``, and

    Args:
        dropout: rate of the dropout before the second convolution of each residual block, in training (Ho et al. 2020,
            "Denoising diffusion probabilistic models", appendix B); MONAI's network has none there.
    """

    scale_factor: Tensor

    def __init__(self, *args: Any, dropout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("scale_factor", torch.ones(()))
        self.dropout = dropout
        for block in self.modules():
            if dropout > 0 and isinstance(block, DiffusionUNetResnetBlock):
                # a hook and no module: the names of the weights stay as they are
                block.conv2.register_forward_pre_hook(partial(_drop, dropout))


def _drop(rate: float, module: nn.Module, inputs: tuple[Tensor]) -> Tensor:
    return F.dropout(inputs[0], rate, module.training)


class LatentDataset(Dataset[dict[str, Any]]):
    """The latents of a set of images, encoded once and kept in memory.

    Item i is ``{"image": (C, *latent), "image_id": str}``: the mean that the encoder gives, without the noise of the
    autoencoder (its deviation is tiny at the usual KL weight), times ``scale_factor``.

    Args:
        images: items are ``{"image": (C, *spatial) in [0, 1], "image_id": str}``.
        autoencoder: a trained ``AutoencoderKL``.
        batch_size: images encoded at a time.
        augmentation: random MONAI or other transform of one image, (C, *spatial) to the same; None for none.
        ranks: each encodes its part of the batches, and all get the whole.
    """

    def __init__(
        self,
        images: Dataset[Any],
        autoencoder: nn.Module,
        batch_size: int = 16,
        augmentation: Callable[[Tensor], Tensor] | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.images = images
        self.ranks = ranks
        self._randoms = RandomStates(augmentation)
        self.autoencoder = autoencoder
        self.batch_size = batch_size
        self.augmentation = augmentation
        self.encode()
        # of the first encoding: the network is trained on this scale from then on
        self.scale_factor = 1 / self.latents.std()

    def encode(self) -> None:
        """Encode all images, each with a new random augmentation where there is one."""
        self._encoded_from = self._randoms.state_dict() if self.augmentation is not None else {}
        own = [(encode(self.autoencoder, images).cpu(), ids) for images, ids in self._batches()]
        batches = [batch for batch in chain.from_iterable(zip_longest(*self.ranks.gather(own))) if batch is not None]
        self.latents = torch.cat([latents for latents, _ in batches])
        self.image_ids = tuple(chain.from_iterable(ids for _, ids in batches))

    def state_dict(self) -> dict[str, Any]:
        """Return what the latents of now can be made from: the random states before they were encoded."""
        return {"scale_factor": self.scale_factor, "encoded_from": self.ranks.gather(self._encoded_from)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Make the latents of that state again, where they are augmented."""
        self.scale_factor = state["scale_factor"]
        if self.augmentation is not None:
            self._randoms.load_state_dict(state["encoded_from"][self.ranks.rank])
            self.encode()

    def _batches(self) -> Iterator[tuple[Tensor, Sequence[str]]]:
        device = next(self.autoencoder.parameters()).device
        n_images = len(self.images)  # type: ignore[arg-type]
        batches = [batch.tolist() for batch in torch.arange(n_images).split(self.batch_size)]
        own = batches[self.ranks.rank :: self.ranks.n]
        # a generator of its own, lest the loader take from the random numbers of the training
        for batch in DataLoader(self.images, batch_sampler=own, generator=torch.Generator()):
            images = batch["image"]
            if self.augmentation is not None:
                changed = (convert_to_tensor(self.augmentation(image), track_meta=False) for image in images)
                images = torch.stack([*changed])
            yield images.to(device), batch["image_id"]

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.latents[index] * self.scale_factor, "image_id": self.image_ids[index]}


class LatentRefreshHandler:
    """Encode the images of a LatentDataset anew after each epoch, where they are augmented.

    The data loader must not hold copies of the data set in persistent worker processes.

    Args:
        latents: the data set that the engine trains on.
    """

    def __init__(self, latents: LatentDataset) -> None:
        self.latents = latents

    def attach(self, engine: Engine) -> None:
        """Attach to the end of each epoch, unless nothing would change."""
        if self.latents.augmentation is not None:
            engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Encode with new random augmentations."""
        self.latents.encode()


def unwrap(network: nn.Module) -> nn.Module:
    """Return the network within DistributedDataParallel, which would talk to the other processes at each call."""
    return network.module if isinstance(network, nn.parallel.DistributedDataParallel) else network


def encode(autoencoder: nn.Module, images: Tensor) -> Tensor:
    """Return the mean latents, (B, C, *latent), unscaled, of images (B, C, *spatial) in [0, 1]."""
    with eval_mode(autoencoder):
        return autoencoder.encode(images)[0]  # type: ignore[operator]


def decode(autoencoder: nn.Module, latents: Tensor, value_range: Sequence[float] = (0.0, 1.0)) -> Tensor:
    """Return the images, (B, C, *spatial) in [0, 1], of unscaled latents (B, C, *latent).

    Args:
        autoencoder: that decodes them; a VQVAE looks them up in its code book first.
        latents: of the images.
        value_range: of the images that it was trained on.
    """
    # as MONAI's inferer of latent diffusion does; networks of others may have no more than decode
    way: Any = getattr(autoencoder, "decode_stage_2_outputs", None) or autoencoder.decode
    with eval_mode(autoencoder):
        return to_unit_range(way(latents), value_range)


def to_unit_range(images: Tensor, value_range: Sequence[float]) -> Tensor:
    """Bring images from between the two values to [0, 1]; what lies beyond is cut off."""
    low, high = value_range
    return ((images - low) / (high - low)).clamp(0, 1)


def beyond(ends: Sequence[float], value_range: Sequence[float]) -> bool:
    """Tell whether intensities between these ends, low and high, reach beyond the values given for them.

    By more than resampling goes, a twentieth of their distance.
    """
    low, high = map(float, value_range)
    slack = 0.05 * (high - low)
    return bool(ends[0] < low - slack or ends[1] > high + slack)
