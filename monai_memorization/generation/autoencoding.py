# SPDX-License-Identifier: Apache-2.0
"""Train the autoencoder of a latent diffusion model, and pass images through it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from ignite.engine import Engine
from monai.engines import Trainer
from monai.engines.utils import IterationEvents, default_prepare_batch
from monai.inferers import Inferer, SimpleInferer
from monai.losses import PatchAdversarialLoss
from monai.networks.utils import eval_mode
from monai.utils import CommonKeys
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from monai_memorization.errors import InputError
from monai_memorization.generation.feature_loss import FeatureLoss
from monai_memorization.generation.latents import decode, encode, unwrap
from monai_memorization.images.prepared import PreparedImages
from monai_memorization.images.roles import bare_name


def kl_divergence(mu: Tensor, sigma: Tensor) -> Tensor:
    """Return KL(N(mu, sigma^2) || N(0, 1)), summed over the latent and averaged over the batch.

    Kingma and Welling 2014, "Auto-encoding variational Bayes", appendix B:
    1/2 sum(mu^2 + sigma^2 - log sigma^2 - 1).

    Args:
        mu: means, (B, C, *latent).
        sigma: standard deviations, same shape, positive.
    """
    return 0.5 * (mu.square() + sigma.square() - 2 * sigma.log() - 1).sum() / len(mu)


class AutoencoderTrainer(Trainer):
    """Train an AutoencoderKL against a patch discriminator.

    Loss of the autoencoder: L1 + kl_weight KL + feature_weight features + adversarial_weight adversarial, after Rombach
    et al. 2022, "High-resolution image synthesis with latent diffusion models", appendix G. The last term, and the
    training of the discriminator, begin after the warm-up.

    Each iteration fires MONAI's ``IterationEvents`` in the order of its ``SupervisedTrainer`` and leaves in
    ``state.output`` the keys ``image``, ``pred`` (reconstruction), ``loss`` and the unweighted terms ``l1``, ``kl``,
    ``feature``, and after the warm-up ``adversarial`` and ``discriminator``.

    Args:
        device: where to train.
        max_epochs: number of passes over the data.
        train_data_loader: batches of ``{"image": (B, C, *spatial) in [0, 1]}``.
        network: an ``AutoencoderKL``: image -> (reconstruction, mu, sigma).
        optimizer: of the autoencoder.
        discriminator: a ``PatchDiscriminator``: image -> list of features, logits last.
        discriminator_optimizer: of the discriminator.
        feature_loss: (reconstruction, image) -> scalar; None for FeatureLoss.
        inferer: (image, network) -> what the network returns; None for MONAI's ``SimpleInferer``.
        kl_weight: small, so that latents stay near unit scale without losing detail.
        feature_weight: of the feature loss.
        adversarial_weight: of the adversarial loss.
        warmup_iterations: iterations without adversary.
        amp: mixed precision, in half precision on a GPU and in bfloat16 elsewhere.
        train_handlers: Ignite or MONAI handlers.
        epoch_length: iterations in an epoch; None for the length of the loader.
        prepare_batch: MONAI's convention: (batch, device, non_blocking) -> (image, ...).
        postprocessing: MONAI transform of the decollated output.
        key_train_metric: Ignite metric by name.
        additional_metrics: further Ignite metrics by name.
    """

    def __init__(
        self,
        device: str | torch.device,
        max_epochs: int,
        train_data_loader: Iterable[Any],
        network: nn.Module,
        optimizer: Optimizer,
        discriminator: nn.Module,
        discriminator_optimizer: Optimizer,
        feature_loss: nn.Module | None = None,
        inferer: Callable[..., Any] | None = None,
        kl_weight: float = 1e-6,
        feature_weight: float = 1.0,
        adversarial_weight: float = 0.01,
        warmup_iterations: int = 0,
        amp: bool = False,
        train_handlers: Sequence[Any] | None = None,
        epoch_length: int | None = None,
        prepare_batch: Callable[..., Any] = default_prepare_batch,
        postprocessing: Callable[..., Any] | None = None,
        key_train_metric: dict[str, Any] | None = None,
        additional_metrics: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            device=torch.device(device),
            max_epochs=max_epochs,
            data_loader=train_data_loader,
            epoch_length=epoch_length,
            prepare_batch=prepare_batch,
            postprocessing=postprocessing,
            key_metric=key_train_metric,
            additional_metrics=additional_metrics,
            handlers=train_handlers,
        )
        self.network = network
        self.optimizer = optimizer
        self.discriminator = discriminator
        self.discriminator_optimizer = discriminator_optimizer
        self.feature_loss = FeatureLoss() if feature_loss is None else feature_loss
        self.inferer = SimpleInferer() if inferer is None else inferer
        self.kl_weight = kl_weight
        self.feature_weight = feature_weight
        self.adversarial_weight = adversarial_weight
        self.warmup_iterations = warmup_iterations
        self.adversarial_loss = PatchAdversarialLoss(criterion="least_squares")
        self._mixed_precision = partial(torch.autocast, torch.device(device).type, enabled=amp)
        # bfloat16, the type on CPUs, has the range of float32 and needs no scaling
        self.grad_scaler = torch.amp.GradScaler(enabled=amp and torch.device(device).type == "cuda")

    def _iteration(self, engine: Engine, batchdata: dict[str, Any]) -> dict[str, Any]:
        image = self.prepare_batch(batchdata, self.state.device, self.non_blocking, **self.to_kwargs)[0]
        self.state.output = {CommonKeys.IMAGE: image}
        adversarial = self.state.iteration > self.warmup_iterations
        if self.state.iteration == 1 and self.warmup_iterations < self.state.max_epochs * self.state.epoch_length:
            self._check_discriminator(image)
        self._train_autoencoder(image, adversarial)
        if adversarial:
            self._train_discriminator(image, self.state.output[CommonKeys.PRED].detach())
        self.grad_scaler.update()
        self.fire_event(IterationEvents.MODEL_COMPLETED)
        return self.state.output

    def _check_discriminator(self, image: Tensor) -> None:
        """Refuse images that are too small for the discriminator before the warm-up, not after it."""
        discriminator = unwrap(self.discriminator)
        try:
            with eval_mode(discriminator):
                discriminator(image[:1])
        except (RuntimeError, ValueError) as error:
            size, reason = "x".join(map(str, image.shape[2:])), str(error).splitlines()[0]
            raise InputError(
                f"discriminator: images of {size} are too small for it ({reason}); give it fewer layers"
            ) from None

    def _train_autoencoder(self, image: Tensor, adversarial: bool) -> None:
        output = self.state.output
        self.network.train()
        self.discriminator.requires_grad_(False)
        self.optimizer.zero_grad()
        with self._mixed_precision():
            reconstruction, mu, sigma = self.inferer(image, self.network)
            output[CommonKeys.PRED] = reconstruction
            self.fire_event(IterationEvents.FORWARD_COMPLETED)
            output["l1"] = F.l1_loss(reconstruction.float(), image)
            output["kl"] = kl_divergence(mu.float(), sigma.float())
            output["feature"] = self.feature_loss(reconstruction, image)
            loss = output["l1"] + self.kl_weight * output["kl"] + self.feature_weight * output["feature"]
            if adversarial:
                # without DistributedDataParallel, which would wait for gradients of the discriminator
                judge = unwrap(self.discriminator)
                output["adversarial"] = self._judge(judge, reconstruction, is_real=True, for_discriminator=False)
                loss = loss + self.adversarial_weight * output["adversarial"]
        output[CommonKeys.LOSS] = loss
        self.fire_event(IterationEvents.LOSS_COMPLETED)
        self.grad_scaler.scale(loss).backward()
        self.fire_event(IterationEvents.BACKWARD_COMPLETED)
        self.grad_scaler.step(self.optimizer)

    def _train_discriminator(self, image: Tensor, reconstruction: Tensor) -> None:
        self.discriminator.train()
        self.discriminator.requires_grad_(True)
        self.discriminator_optimizer.zero_grad()
        with self._mixed_precision():
            real = self._judge(self.discriminator, image, is_real=True, for_discriminator=True)
            reconstructed = self._judge(self.discriminator, reconstruction, is_real=False, for_discriminator=True)
            loss = (real + reconstructed) / 2
        self.state.output["discriminator"] = loss
        self.grad_scaler.scale(loss).backward()
        self.grad_scaler.step(self.discriminator_optimizer)

    def _judge(self, discriminator: nn.Module, image: Tensor, is_real: bool, for_discriminator: bool) -> Tensor:
        logits = discriminator(image.contiguous())[-1].float()
        return self.adversarial_loss(logits, target_is_real=is_real, for_discriminator=for_discriminator)


class ReconstructionInferer(Inferer):
    """Pass images through an autoencoder, without noise in the latent: (B, C, *spatial) -> the same, in [0, 1]."""

    def __call__(self, inputs: Tensor, network: nn.Module) -> Tensor:  # type: ignore[override]
        """Return the reconstructions of ``inputs`` by ``network``, an ``AutoencoderKL``."""
        return decode(network, encode(network, inputs))


def named_items(images: PreparedImages, affine: Any = None) -> list[dict[str, Any]]:
    """Return the items of a set with what MONAI's ``SaveImaged`` needs to write ``pred`` under the image's own name.

    The audit knows a reconstruction by the name of the image that it was made from, its folder and suffix left out.

    Args:
        images: the set to reconstruct.
        affine: where the voxels of a written volume lie, (4, 4); None for pictures.

    Raises:
        InputError: if two images would be written under one name.
    """
    names = Counter(bare_name(image_id) for image_id in images.images.image_ids)
    repeated = [name for name, n in names.items() if n > 1]
    if repeated:
        raise InputError(
            f"{images.images.role}: several images are named {repeated[0]}, in different folders or with different "
            "suffixes; give them different names, so that their reconstructions do not overwrite each other"
        )
    meta = {} if affine is None else {"affine": affine}
    items = [images[index] for index in range(len(images))]
    # with a suffix, which MONAI takes off: in its place it would take what comes behind a dot in the name
    files = [f"{bare_name(str(item['image_id']))}.png" for item in items]
    return [
        item | {"pred_meta_dict": meta | {"filename_or_obj": file}} for item, file in zip(items, files, strict=True)
    ]
