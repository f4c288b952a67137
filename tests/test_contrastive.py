# SPDX-License-Identifier: Apache-2.0
"""Training of the encoder: the loss of the paper, repeatable, and it learns what it is for."""

from __future__ import annotations

import json
import logging
import math
from dataclasses import replace
from functools import partial

import nibabel
import numpy as np
import pytest
import torch
from made_up_images import smooth_images, write_folder, write_image

from monai_memorization.detector import degradations, encoder_training
from monai_memorization.detector.contrastive import nt_xent
from monai_memorization.detector.embeddings import embed_batch
from monai_memorization.detector.encoder import ContrastiveEncoder, load_encoder, save_encoder
from monai_memorization.detector.encoder_training import obtain_encoder, share_told_apart, train_encoder
from monai_memorization.detector.neighbors import nearest
from monai_memorization.detector.views import Views
from monai_memorization.errors import InputError
from monai_memorization.images.preparation import choose_preparation
from monai_memorization.images.prepared import PreparedImages, prepared_images, read_prepared
from monai_memorization.images.sets import read_image_set


def reference_nt_xent(first, second, temperature):
    """Equation 1 of the SimCLR paper, pair by pair, with Pearson correlation as the similarity."""
    views = [*first.double().numpy(), *second.double().numpy()]
    n = len(views)

    def similarity(i, j):
        return np.corrcoef(views[i], views[j])[0, 1]

    total = 0.0
    for i in range(n):
        j = (i + n // 2) % n
        below = 0.0
        for k in range(n):
            if k != i:
                below += math.exp((similarity(i, k) - similarity(i, j)) / temperature)
        total += math.log(below)
    return total / n


@pytest.fixture(scope="module")
def training(training_folder) -> PreparedImages:
    return prepared_images(training_folder, (32, 32))


@pytest.fixture
def images(tmp_path):
    """Six files, to be changed."""
    return read_image_set(write_folder(smooth_images(6, (16, 16)), tmp_path / "images"), "training")


@pytest.fixture
def few_steps(monkeypatch):
    """Train for three steps in place of minutes."""
    monkeypatch.setattr(encoder_training, "train_encoder", partial(train_encoder, n_steps=3))


def weights(encoder) -> torch.Tensor:
    return torch.cat([value.flatten().double() for value in encoder.state_dict().values()])


@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.5, 2])
@pytest.mark.parametrize(("n", "size"), [(2, 3), (3, 8), (7, 16)])
def test_loss_is_the_equation_of_the_paper(n, size, temperature):
    generator = torch.Generator().manual_seed(n * size)
    first = torch.randn(n, size, generator=generator)
    second = first + 0.5 * torch.randn(n, size, generator=generator)

    loss = nt_xent(first, second, temperature).item()

    assert loss == pytest.approx(reference_nt_xent(first, second, temperature), rel=1e-4, abs=1e-5)
    assert nt_xent(second, first, temperature).item() == pytest.approx(loss, rel=1e-5)


def test_loss_by_hand():
    # each view has one equal to it and two that are its opposite: log(1 + 2 exp(-2 / t))
    first = torch.tensor([[1.0, 2, 3], [3, 2, 1]])

    assert nt_xent(first, 5 * first + 1, 0.5).item() == pytest.approx(math.log(1 + 2 * math.exp(-4)), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_loss_and_gradient_are_finite_at_a_tiny_temperature(dtype):
    first = torch.randn(16, 8, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()

    loss = nt_xent(first, first.detach().flip(0), 0.005)
    loss.backward()

    assert loss.isfinite()
    assert first.grad.isfinite().all()


def test_loss_is_lowest_where_the_views_agree():
    first = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))

    assert nt_xent(first, first, 0.1) < nt_xent(first, first.roll(1, 0), 0.1)


def test_training_lowers_the_loss(encoder, training):
    originals = training.pixels.float()
    with torch.random.fork_rng():
        torch.manual_seed(9)
        views, untrained = Views()(originals), ContrastiveEncoder((32, 32)).eval()

    losses = [nt_xent(embed_batch(n, originals), embed_batch(n, views), 0.1).item() for n in (untrained, encoder)]

    assert losses[1] < 0.5 * losses[0]


@pytest.mark.parametrize("degrees", [-8, 8])
def test_turned_and_mirrored_copies_are_nearest_to_their_original(encoder, training, degrees):
    originals = training.pixels.float()
    copies = degradations.rescale(degradations.gamma(degradations.mirror(degradations.turn(originals, degrees)), 1.3))
    untrained = ContrastiveEncoder((32, 32)).eval()

    def share_found(network):
        found = nearest(embed_batch(network, copies), embed_batch(network, originals))[1][:, 0]
        return (found == torch.arange(len(originals))).float().mean().item()

    assert share_found(encoder) >= 0.9
    assert share_found(untrained) < 0.5


def test_same_seed_gives_the_same_weights_and_another_seed_others(training):
    first, again, other = (train_encoder(training, n_steps=3, seed=seed) for seed in (1, 1, 2))

    assert torch.equal(weights(first), weights(again))
    assert not torch.equal(weights(first), weights(other))


def test_training_leaves_the_global_random_state_alone(training):
    torch.manual_seed(5)
    before = torch.get_rng_state()

    first = train_encoder(training, n_steps=2, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(weights(train_encoder(training, n_steps=2, seed=1)), weights(first))


def test_trained_encoder_says_how_it_was_trained(training):
    encoder = train_encoder(training, n_steps=2)

    assert encoder.training_steps == 2
    assert encoder.preparation.image_size == (32, 32)
    assert not encoder.training


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_images_are_refused(training, n):
    few = PreparedImages(training.images.subset(range(n)), training.pixels[:n], training.preparation)

    with pytest.raises(InputError, match=rf"training: {n} images?; an encoder learns to tell at least two apart"):
        train_encoder(few, n_steps=1)


def test_two_images_are_enough(training):
    two = PreparedImages(training.images.subset(range(2)), training.pixels[:2], training.preparation)

    assert weights(train_encoder(two, n_steps=2)).isfinite().all()


def test_volumes_whose_last_map_is_two_deep_are_trained_on_without_nan(tmp_path):
    folder = write_folder(smooth_images(8, (12, 16, 16)), tmp_path / "volumes", suffix=".nii.gz")

    for _ in range(3):  # where it fails, it does not always
        assert weights(train_encoder(prepared_images(folder, (12, 16, 16)), n_steps=10)).isfinite().all()


def test_volumes_of_two_voxel_sizes_are_audited_as_they_were_trained_on(tmp_path):
    volumes = smooth_images(6, (12, 12, 12)).numpy()
    for i, volume in enumerate(volumes):
        step = 2 if i < 2 else 1  # the same body, every second slice
        path = tmp_path / f"{i}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(volume[..., ::step], np.diag([1.5, 1.5, 1.5 * step, 1.0])), path)
    images = read_image_set(tmp_path, "training")
    trained_on = read_prepared(images, choose_preparation(images))

    encoder = train_encoder(trained_on, n_steps=2)
    save_encoder(encoder, tmp_path / "encoder" / "model.pt")

    for own in (encoder, load_encoder(tmp_path / "encoder" / "model.pt")):
        assert torch.equal(read_prepared(images, own.preparation).pixels, trained_on.pixels)
    blind = replace(encoder.preparation, spacing=None)
    assert not torch.equal(read_prepared(images, blind).pixels[:2], trained_on.pixels[:2])


def test_an_encoder_embeds_after_its_training_as_when_it_is_loaded_to_the_bit(training, tmp_path):
    encoder = train_encoder(training, n_steps=2)
    save_encoder(encoder, tmp_path / "model.pt")

    loaded = load_encoder(tmp_path / "model.pt")

    assert torch.equal(embed_batch(encoder, training.pixels.float()), embed_batch(loaded, training.pixels.float()))
    assert all(weights.is_contiguous() for weights in encoder.state_dict().values())


def test_volumes_are_trained_on_too(tmp_path):
    folder = write_folder(smooth_images(4, (10, 12, 14)), tmp_path / "volumes", suffix=".nii.gz")

    encoder = train_encoder(prepared_images(folder, (10, 12, 14)), n_steps=2)

    assert encoder(torch.zeros(1, 1, 10, 12, 14)).shape == (1, 128)


def test_kept_encoder_is_used_again(images, tmp_path, few_steps, caplog):
    caplog.set_level(logging.INFO)
    first = obtain_encoder(None, images, tmp_path / "kept")
    assert "training one on the 6 training images" in caplog.text

    caplog.clear()
    again = obtain_encoder(None, images.subset(range(6)[::-1]), tmp_path / "kept")  # a list in another order

    assert "an earlier run" in caplog.text
    assert "training one" not in caplog.text
    assert torch.equal(weights(first), weights(again))
    assert first.preparation.image_size == (16, 16)


@pytest.mark.parametrize("change", ["one image less", "another content", "another seed", "another range"])
def test_kept_encoder_is_trained_anew_for_another_training_set(images, tmp_path, few_steps, change):
    first = obtain_encoder(None, images, tmp_path / "kept")
    seed = 1 if change == "another seed" else 0
    if change == "one image less":
        images = images.subset(range(5))
    elif change == "another content":
        write_image(smooth_images(1, (16, 16), seed=77)[0], images.paths[3])

    clip = (64, 192) if change == "another range" else None
    again = obtain_encoder(None, images, tmp_path / "kept", seed, clip=clip)

    assert again.trained_on != first.trained_on
    assert not torch.equal(weights(first), weights(again))
    kept = load_encoder(tmp_path / "kept" / "model.pt")
    assert (kept.trained_on, kept.preparation.clip) == (again.trained_on, clip)


def test_encoder_that_was_kept_in_part_is_trained_anew(images, tmp_path, few_steps):
    obtain_encoder(None, images, tmp_path / "kept")
    (tmp_path / "kept" / "model.json").unlink()  # is written last

    obtain_encoder(None, images, tmp_path / "kept")

    assert load_encoder(tmp_path / "kept" / "model.pt").training_steps == 3


def test_given_encoder_is_taken_whatever_it_was_trained_on(encoder_file, images, tmp_path):
    encoder = obtain_encoder(encoder_file, images, tmp_path / "kept")

    assert torch.equal(weights(encoder), weights(load_encoder(encoder_file)))
    assert not (tmp_path / "kept").exists()


def test_given_encoder_of_another_dimension_is_named(images, tmp_path):
    save_encoder(ContrastiveEncoder((8, 8, 8)), tmp_path / "model.pt")

    with pytest.raises(InputError, match=r"encoder: .*model\.pt is for 3D images, the training set is 2D; train one"):
        obtain_encoder(tmp_path / "model.pt", images, tmp_path)


@pytest.mark.parametrize("clip", [(-1000, 400), None])
def test_given_encoder_of_another_range_is_named(images, tmp_path, clip):
    save_encoder(ContrastiveEncoder((16, 16), clip=clip), tmp_path / "model.pt")

    with pytest.raises(InputError, match=r"clip: found \[0, 128\], but .*model\.pt is of images cut off at"):
        obtain_encoder(tmp_path / "model.pt", images, tmp_path, clip=(0, 128))
    for agreed in (clip, None):
        assert obtain_encoder(tmp_path / "model.pt", images, tmp_path, clip=agreed).preparation.clip == clip


def test_unreadable_training_image_stops_or_is_left_out(images, tmp_path, few_steps):
    images.paths[2].write_bytes(b"broken")

    with pytest.raises(InputError, match=r"training: .*image_002\.png: cannot be read"):
        obtain_encoder(None, images, tmp_path / "kept")
    assert not (tmp_path / "kept").exists()
    assert obtain_encoder(None, images, tmp_path / "kept", skip_unreadable=True).training_steps == 3


def test_long_training_says_how_long_it_will_take(training, caplog):
    caplog.set_level(logging.INFO)

    train_encoder(training, n_steps=12)

    assert "training the encoder takes about" in caplog.text


def test_encoder_of_another_version_is_trained_anew(training_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(encoder_training, "train_encoder", partial(train_encoder, n_steps=2))
    images = read_image_set(training_folder, "training")
    obtain_encoder(None, images, tmp_path)
    text = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(text | {"widths": [8, 8]}))

    assert obtain_encoder(None, images, tmp_path).settings["widths"] != [8, 8]


def test_trained_encoder_tells_its_images_apart_and_an_untrained_one_less(encoder, training):
    torch.manual_seed(0)

    assert share_told_apart(encoder, training.pixels) > 0.9
    collapsed = ContrastiveEncoder((32, 32)).eval()
    torch.nn.init.zeros_(collapsed.head.weight)
    assert share_told_apart(collapsed, training.pixels) < 0.1


def test_encoder_that_collapsed_is_told(training, caplog):
    with caplog.at_level(logging.WARNING):
        train_encoder(training, n_steps=20, learning_rate=1e5)

    assert "collapsed or learned too little: of slightly changed training images it finds" in caplog.text
