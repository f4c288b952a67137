# SPDX-License-Identifier: Apache-2.0
"""Train the encoder: a view of an image is like the image, and unlike all other images."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from monai.inferers import SimpleInferer
from monai.utils import CommonKeys
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from monai_memorization.detector.checkpoint import Stateful, TrainingCheckpoint
from monai_memorization.detector.order import BatchOrder
from monai_memorization.detector.parallel import gathered, parallel
from monai_memorization.detector.views import Views
from monai_memorization.errors import InputError
from monai_memorization.ranks import Ranks, current_ranks

logger = logging.getLogger(__name__)

N_STEPS = 3000
RAMP = 0.6


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy (Chen et al. 2020, "SimCLR", equation 1) on Pearson correlations.

    The paper trains with cosine and audits with correlation; here both are correlation. MONAI's ContrastiveLoss is not
    used: it takes ``exp`` without subtracting the maximum (NaN at temperatures up to 0.011) and memory (2B)^2 D.

    Args:
        first: embeddings of one view of each image, (B, D).
        second: embeddings of another view of the same images, (B, D).
        temperature: above 0; smaller weighs the hardest negatives more.

    Returns:
        The mean loss, a scalar.
    """
    both = torch.cat([first, second]).float()
    both = F.normalize(both - both.mean(dim=1, keepdim=True), dim=1)
    logits = (both @ both.T / temperature).fill_diagonal_(-math.inf)
    n = len(first)
    partner = (torch.arange(2 * n, device=logits.device) + n) % (2 * n)
    return F.cross_entropy(logits, partner)


def computes_in_bfloat16() -> bool:
    """Say whether the CPU has instructions for bfloat16, without which it takes ten times as long as float32."""
    return torch.backends.cpu.get_cpu_capability() == "AVX512"


class MixedPrecisionInferer(SimpleInferer):
    """Call the network on 2D images in bfloat16 where the CPU has the instructions; it more than halves the time.

    MONAI's own ``amp`` is for GPUs alone. Not on volumes: the gradients of torch 2.13's bfloat16 convolutions of maps
    of depth 2 are at times NaN (they read memory that was not written), and 16 slices come to such a map.
    """

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Return what the network makes of the inputs."""
        flat = inputs.dim() == 4
        fast = flat and inputs.device.type == "cpu" and computes_in_bfloat16()
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=fast):
            return super().__call__(inputs, network, *args, **kwargs)


class ContrastiveTrainer(SupervisedTrainer):
    """MONAI's trainer, given each image and a view of it, and the contrastive loss.

    A degraded view is set against the image as it is, not against a second view as in SimCLR: the audit compares what a
    generator made with training images as they are. Views are made for the whole batch on the device; their strength
    grows over the first ``RAMP`` of the steps, as strong views alone teach little at first. The learning rate rises
    over the first twentieth of the steps and falls to 0 along a cosine.

    Several ranks divide each batch among themselves, but compare every image with the whole batch, and draw the same
    views: the training is that of one process, but for rounding.

    Args:
        device: where to train.
        max_epochs: number of epochs.
        dataset: items with an ``image``, (C, *image_size) in [0, 1]; at least two.
        network: the encoder.
        epoch_length: steps in an epoch, whatever the size of the data set, so that small sets are trained as long.
        batch_size: images in a batch of all ranks together, rounded down to a multiple of their number; all of a
            smaller set.
        learning_rate: largest, of AdamW.
        weight_decay: of AdamW.
        temperature: of :func:`nt_xent`.
        views: the random degradations.
        seed: of the order of the images.
        inferer: how the network is called, as in MONAI; None for :class:`MixedPrecisionInferer`.
        train_handlers: as in MONAI.
        ranks: that divide the work; None for those that go through the same lines.

    Raises:
        InputError: if there are fewer than two images, so that nothing can be told apart, or fewer than ranks.
    """

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        dataset: Dataset[Any],
        network: nn.Module,
        epoch_length: int = 100,
        batch_size: int = 128,
        learning_rate: float = 3e-3,
        weight_decay: float = 1e-4,
        temperature: float = 0.1,
        views: Views | None = None,
        seed: int = 0,
        inferer: Any = None,
        train_handlers: Sequence[Any] | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self._ranks = ranks = current_ranks() if ranks is None else ranks
        n_images = len(dataset)  # type: ignore[arg-type]
        if n_images < 2:
            raise InputError(f"training: {n_images} image; an encoder learns to tell at least two apart")
        batch_size = min(batch_size, n_images) // ranks.n * ranks.n
        if batch_size == 0:
            raise InputError(f"batch_size: too few of {n_images} images for {ranks.n} processes; start fewer")
        self._order = BatchOrder(n_images, batch_size, seed, drop_last=True)
        # a generator of its own, lest the loader take from the random numbers of the views
        loader = DataLoader(dataset, batch_sampler=self._order, generator=torch.Generator())
        optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=weight_decay)
        n_steps = max_epochs * epoch_length
        if dataset[0][CommonKeys.IMAGE].ndim == 3:  # of images: convolutions of volumes gain nothing by it
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warm_cosine(step, n_steps))
        self._parts: dict[str, Stateful] = {"network": network, "optimizer": optimizer, "scheduler": scheduler}
        self._views = views or Views()
        self._ramp = RAMP * n_steps
        self._temperature = temperature
        super().__init__(
            device=device,
            max_epochs=max_epochs,
            train_data_loader=loader,
            network=parallel(network.to(device), ranks),
            optimizer=optimizer,
            loss_function=self._loss,
            epoch_length=epoch_length,
            prepare_batch=self._image_and_view,
            inferer=inferer or MixedPrecisionInferer(),
            train_handlers=train_handlers,
            decollate=False,
        )
        self.add_event_handler(Events.ITERATION_COMPLETED, lambda: scheduler.step())
        self._parts["trainer"] = self

    def keep(self, checkpoint: TrainingCheckpoint) -> None:
        """Go on from a checkpoint, if it holds the state of this training, and keep the state there from now on."""
        if checkpoint.restore(self._parts):
            self._order.n_done = self.state.iteration
            logger.info("going on with the training that was stopped after %d steps", self.state.iteration)
        self.add_event_handler(Events.ITERATION_COMPLETED, lambda: checkpoint.save(self._parts))

    def _image_and_view(
        self, batch: dict[str, Any], device: str | torch.device, non_blocking: bool, **_: Any
    ) -> tuple[Tensor, None]:
        images = torch.as_tensor(batch[CommonKeys.IMAGE]).to(device, non_blocking=non_blocking)
        extent = min(1.0, 0.1 + self.state.iteration / self._ramp)
        # views of the whole batch, so that they are those of one process
        views, own = self._views.scaled(extent)(images), self._ranks.rows(len(images))
        return torch.cat([images[own], views[own]]), None

    def _loss(self, embeddings: Tensor, _: None) -> Tensor:
        first, second = (gathered(part, self._ranks) for part in embeddings.chunk(2))
        return nt_xent(first, second, self._temperature)


def _warm_cosine(step: int, n_steps: int) -> float:
    warm = max(1, n_steps // 20)
    return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / n_steps)))
