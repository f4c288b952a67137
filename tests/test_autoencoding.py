# SPDX-License-Identifier: Apache-2.0
"""The training of the autoencoder: its loss term by term, its two players, its events."""

from __future__ import annotations

from contextlib import nullcontext
from copy import copy
from functools import partial

import pytest
import torch
from ignite.engine import Events
from made_up_images import smooth_images, write_folder, write_image
from monai.engines.utils import IterationEvents
from monai.networks.nets import PatchDiscriminator
from monai.transforms import SaveImaged
from small_generators import small_autoencoder
from torch.distributions import Normal
from torch.distributions import kl_divergence as reference_divergence
from torch.nn.functional import l1_loss
from torch.utils.data import DataLoader

from monai_memorization.errors import InputError
from monai_memorization.generation.autoencoding import (
    AutoencoderTrainer,
    ReconstructionInferer,
    kl_divergence,
    named_items,
)
from monai_memorization.generation.feature_loss import FeatureLoss
from monai_memorization.images.prepared import prepared_images
from monai_memorization.images.roles import originals
from monai_memorization.images.sets import read_image_set


def trainer(spatial_dims: int = 2, n: int = 8, batch_size: int = 4, **settings: object) -> AutoencoderTrainer:
    """A trainer on n made-up images."""
    torch.manual_seed(0)
    size = (16,) * spatial_dims
    autoencoder = small_autoencoder(spatial_dims)
    discriminator = PatchDiscriminator(spatial_dims, 4, 1, num_layers_d=1, norm="INSTANCE")
    return AutoencoderTrainer(
        **{
            "device": "cpu",
            "max_epochs": 1,
            "train_data_loader": DataLoader([{"image": image[None]} for image in smooth_images(n, size)], batch_size),
            "network": autoencoder,
            "optimizer": torch.optim.Adam(autoencoder.parameters(), 1e-3),
            "discriminator": discriminator,
            "discriminator_optimizer": torch.optim.Adam(discriminator.parameters(), 1e-3),
        }
        | settings
    )


def record(engine: AutoencoderTrainer, event: object = IterationEvents.LOSS_COMPLETED) -> list[dict]:
    """Collect the outputs of all iterations; after ``MODEL_COMPLETED`` they are lists, one item per image."""
    outputs: list[dict] = []
    engine.add_event_handler(event, lambda: outputs.append(copy(engine.state.output)))
    return outputs


def copy_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(network: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return any(not torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_divergence_is_that_of_torch():
    mu, sigma = torch.randn(5, 3, 4, 4), torch.rand(5, 3, 4, 4) + 0.1
    reference = reference_divergence(Normal(mu, sigma), Normal(0, 1)).sum() / 5
    assert kl_divergence(mu, sigma).item() == pytest.approx(reference.item(), rel=1e-5)


def test_standard_normal_has_no_divergence():
    assert kl_divergence(torch.zeros(2, 3), torch.ones(2, 3)) == 0


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_loss_is_the_weighted_sum_of_its_terms(spatial_dims):
    engine = trainer(spatial_dims, kl_weight=0.5, feature_weight=2, adversarial_weight=3, n=4)
    outputs = record(engine)
    engine.run()
    (output,) = outputs
    terms = output["l1"] + 0.5 * output["kl"] + 2 * output["feature"] + 3 * output["adversarial"]
    assert output["loss"].item() == pytest.approx(terms.item(), rel=1e-6)
    assert output["l1"].item() == pytest.approx(l1_loss(output["pred"], output["image"]).item(), rel=1e-6)
    assert output["feature"].item() == pytest.approx(FeatureLoss()(output["pred"], output["image"]).item(), rel=1e-6)


def test_adversary_rests_during_the_warm_up():
    engine = trainer(warmup_iterations=2, max_epochs=2)
    outputs = record(engine)
    discriminator = copy_of(engine.discriminator)
    states = []
    engine.add_event_handler(
        IterationEvents.MODEL_COMPLETED, lambda: states.append(changed(engine.discriminator, discriminator))
    )
    engine.run()
    assert ["adversarial" in output for output in outputs] == [False, False, True, True]
    assert states == [False, False, True, True]


def test_each_player_is_trained_by_its_own_loss():
    engine = trainer(n=4, adversarial_weight=0.0)
    before = copy_of(engine.discriminator)
    at_backward = []
    engine.add_event_handler(
        IterationEvents.BACKWARD_COMPLETED,
        lambda: at_backward.append([parameter.grad for parameter in engine.discriminator.parameters()]),
    )
    engine.run()
    assert set(at_backward[0]) == {None}
    assert changed(engine.discriminator, before)


def test_discriminator_learns_to_tell_real_from_reconstructed():
    engine = trainer(max_epochs=60, kl_weight=0, adversarial_weight=0)
    engine.optimizer.param_groups[0]["lr"] = 0
    outputs = record(engine, Events.ITERATION_COMPLETED)
    engine.run()
    losses = [output[0]["discriminator"] for output in outputs]
    first, last = sum(losses[:10]), sum(losses[-10:])
    assert last < 0.5 * first


@pytest.mark.parametrize("amp", [False, True])
def test_reconstruction_improves(amp):
    engine = trainer(max_epochs=40, warmup_iterations=80, amp=amp)
    outputs = record(engine)
    engine.run()
    assert outputs[-1]["l1"] < 0.5 * outputs[0]["l1"]
    assert outputs[-1]["loss"].dtype == torch.float32


def test_events_fire_in_the_order_of_the_host():
    engine = trainer(n=4)
    fired = []
    for event in IterationEvents:
        engine.add_event_handler(event, partial(lambda event, engine: fired.append(event), event))
    engine.run()
    assert fired == [
        IterationEvents.FORWARD_COMPLETED,
        IterationEvents.LOSS_COMPLETED,
        IterationEvents.BACKWARD_COMPLETED,
        IterationEvents.MODEL_COMPLETED,
    ]


def test_output_is_decollated_for_handlers_and_metrics():
    engine = trainer(n=4)
    engine.run()
    assert [output["pred"].shape for output in engine.state.output] == [(1, 16, 16)] * 4


@pytest.mark.parametrize("size", [(16, 16), (8, 8, 8)])
def test_reconstruction_has_no_noise(size):
    images = torch.rand(3, 1, *size)
    network = small_autoencoder(len(size)).train()
    inferer = ReconstructionInferer()
    reconstructed = inferer(images, network)
    assert torch.equal(reconstructed, inferer(images, network))
    assert reconstructed.shape == images.shape
    assert reconstructed.min() >= 0
    assert reconstructed.max() <= 1
    assert network.training


def test_items_carry_the_bare_name_of_their_image(tmp_path):
    write_folder(smooth_images(1), tmp_path / "images" / "a", "one")
    write_folder(smooth_images(1), tmp_path / "images" / "b", "two", ".npy")
    items = named_items(prepared_images(tmp_path / "images", (32, 32)))
    assert [item["pred_meta_dict"] for item in items] == [
        {"filename_or_obj": "one_000.png"},
        {"filename_or_obj": "two_000.png"},
    ]


def test_reconstructions_of_images_with_dots_in_their_names_are_found_again(tmp_path):
    for name, image in zip(("1.2.840.7.png", "1.2.840.8.npy"), smooth_images(2), strict=True):
        write_image(image, tmp_path / "images" / name)
    settings = {"output_postfix": "", "output_ext": ".png", "separate_folder": False, "resample": False, "scale": 255}
    save = SaveImaged("image", meta_keys="pred_meta_dict", output_dir=tmp_path / "out", print_log=False, **settings)

    for item in named_items(prepared_images(tmp_path / "images", (32, 32))):
        save(item)

    written, images = (read_image_set(tmp_path / folder, "validation") for folder in ("out", "images"))
    assert written.image_ids == ("1.2.840.7.png", "1.2.840.8.png")
    assert originals(written, images) == [0, 1]


def test_images_of_one_name_are_refused(tmp_path):
    for folder in ("a", "b"):
        write_folder(smooth_images(1), tmp_path / "images" / folder)
    with pytest.raises(InputError, match="validation: several images are named image_000"):
        named_items(prepared_images(tmp_path / "images", (32, 32), role="validation"))


@pytest.mark.parametrize(("warmup", "is_used"), [(3, True), (4, False)])
def test_images_too_small_for_the_discriminator_are_told_before_the_warm_up(warmup, is_used):
    deep = PatchDiscriminator(2, 4, 1, num_layers_d=4, norm="INSTANCE")
    settings = {"discriminator": deep, "discriminator_optimizer": torch.optim.Adam(deep.parameters())}
    training = trainer(**settings, max_epochs=2, warmup_iterations=warmup)  # two steps in each
    steps: list[int] = []
    training.add_event_handler(Events.ITERATION_COMPLETED, lambda engine: steps.append(engine.state.iteration))
    message = r"discriminator: images of 16x16 are too small for it \(.+\); give it fewer layers"

    with pytest.raises(InputError, match=message) if is_used else nullcontext():
        training.run()

    assert steps == ([] if is_used else [1, 2, 3, 4])
    assert deep.training
