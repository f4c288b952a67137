# SPDX-License-Identifier: Apache-2.0
"""The encoder: saved and loaded bit for bit, and nothing else is loaded in its place."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from made_up_images import smooth_images

from monai_memorization.detector.encoder import ContrastiveEncoder, load_encoder, save_encoder
from monai_memorization.errors import InputError
from monai_memorization.images.preparation import Preparation


@pytest.fixture
def copied_file(encoder_file, tmp_path) -> Path:
    """The small encoder's two files, to be spoilt."""
    for suffix in (".pt", ".json"):
        shutil.copy(encoder_file.with_suffix(suffix), tmp_path)
    return tmp_path / encoder_file.name


def edit(path: Path, **changes: object) -> None:
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | changes))


@pytest.mark.parametrize(("size", "channels"), [((32, 32), 1), ((20, 33), 3), ((16, 17, 18), 1), ((9, 24, 5), 2)])
def test_any_size_in_2d_and_3d_becomes_a_vector(size, channels):
    encoder = ContrastiveEncoder(size, channels, embedding_size=12).eval()

    vectors = encoder(torch.rand(3, channels, *size, generator=torch.Generator().manual_seed(0)))

    assert vectors.shape == (3, 12)
    assert vectors.isfinite().all()
    assert encoder.preparation == Preparation(size, channels)


@pytest.mark.parametrize("size", [(32, 32), (12, 14, 16)])
def test_loaded_encoder_is_the_saved_one_bit_for_bit(tmp_path, size):
    encoder = ContrastiveEncoder(size, 2, embedding_size=9, widths=(4, 8), training_steps=7, trained_on="hash").eval()
    images = torch.rand(3, 2, *size, generator=torch.Generator().manual_seed(0))

    save_encoder(encoder, tmp_path / "model.pt")
    loaded = load_encoder(tmp_path / "model.pt")

    assert torch.equal(loaded(images), encoder(images))
    assert loaded.settings == encoder.settings
    assert (loaded.training_steps, loaded.trained_on) == (7, "hash")
    assert not loaded.training
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.json", "model.pt"]


def test_encoder_of_a_version_that_halved_after_all_layers_but_the_last_is_the_same_network(tmp_path):
    encoder = ContrastiveEncoder((32, 32), widths=(4, 8, 8), halvings=2).eval()
    save_encoder(encoder, tmp_path / "model.pt")
    text = json.loads((tmp_path / "model.json").read_text())
    del text["halvings"]
    (tmp_path / "model.json").write_text(json.dumps(text))

    images = torch.rand(3, 1, 32, 32, generator=torch.Generator().manual_seed(0))

    assert torch.equal(load_encoder(tmp_path / "model.pt")(images), encoder(images))


def test_weights_are_a_plain_state_dict(encoder_file):
    weights = torch.load(encoder_file, weights_only=True)

    assert type(weights).__name__ in ("dict", "OrderedDict")
    assert all(type(value) is torch.Tensor for value in weights.values())


def test_text_beside_the_weights_rebuilds_the_encoder(encoder_file):
    settings = json.loads(encoder_file.with_suffix(".json").read_text())

    assert settings.pop("version")
    ContrastiveEncoder(**settings).load_state_dict(torch.load(encoder_file, weights_only=True))


@pytest.mark.parametrize("size", [(32, 32), (12, 14, 16)])
def test_encoder_can_be_scripted(size):
    encoder = ContrastiveEncoder(size).eval()
    images = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(torch.jit.script(encoder)(images), encoder(images))


def test_brightness_of_batch_mates_does_not_matter(encoder):
    images = smooth_images(6)[:, None]

    together = encoder(images)

    torch.testing.assert_close(together[2:3], encoder(images[2:3]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("missing", [".pt", ".json"])
def test_missing_file_is_named(copied_file, missing):
    copied_file.with_suffix(missing).unlink()

    with pytest.raises(InputError, match=rf"encoder: .*model\{missing} does not exist; an encoder is a \.pt file with"):
        load_encoder(copied_file)


def test_file_that_was_given_is_named_where_it_is_no_encoder(tmp_path):
    (tmp_path / "list.csv").write_text("image\n")
    message = r"encoder: .*list\.csv was given, but .*list\.json does not (exist|describe an encoder .*); an encoder is"

    with pytest.raises(InputError, match=message):
        load_encoder(tmp_path / "list.csv")
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(InputError, match=message):
        load_encoder(tmp_path / "list.csv")


def test_folder_of_an_encoder_is_told_from_the_encoder(copied_file):
    message = r"encoder: (.*) is a folder; give the file of weights in it, such as \1/model\.pt"

    with pytest.raises(InputError, match=message):
        load_encoder(copied_file.parent)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no json", "Expecting value"),
        (b"\xff\xfe", "decode"),
        (b"[]", "items"),
        (b"{}", "image_size"),
        (b'{"image_size": [32], "channels": 1}', "image_size"),
        (b'{"image_size": "32x32"}', "invalid literal.*'x'"),
        (b'{"image_size": [32, 32], "widths": []}', "widths"),
        (b'{"image_size": [32, 32], "colour": 1}', "colour"),
        (b'{"image_size": [32, -32]}', "image_size"),
    ],
)
def test_text_that_describes_no_encoder_is_named(copied_file, content, message):
    copied_file.with_suffix(".json").write_bytes(content)

    with pytest.raises(InputError, match=rf"encoder: .*model\.json does not describe an encoder \(.*({message})"):
        load_encoder(copied_file)


@pytest.mark.parametrize(
    "change", [{"embedding_size": 17}, {"widths": [4, 8]}, {"channels": 3}, {"image_size": [64, 64]}]
)
def test_weights_of_another_network_are_refused(copied_file, change):
    edit(copied_file.with_suffix(".json"), **change)

    with pytest.raises(InputError, match=r"encoder: .*model\.pt holds no weights for the network of model\.json"):
        load_encoder(copied_file)


def spoilt(path: Path, how: str) -> None:
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-500])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("not weights")
    elif how == "list":
        torch.save([torch.zeros(3)], path)
    elif how == "nested":
        torch.save({"state_dict": torch.load(path, weights_only=True)}, path)
    else:
        torch.save(ContrastiveEncoder((32, 32)), path)


@pytest.mark.parametrize("how", ["truncated", "empty", "text", "list", "nested", "whole module"])
def test_file_that_holds_no_weights_is_named(copied_file, how):
    spoilt(copied_file, how)

    with pytest.raises(InputError, match=r"encoder: .*model\.pt holds no weights .* leave --encoder out") as caught:
        load_encoder(copied_file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("writer", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing, protocol=2))])
def test_weights_that_carry_code_are_refused_and_it_does_not_run(copied_file, tmp_path, writer):
    class Attack:
        def __reduce__(self):
            return Path.touch, (tmp_path / "attacked",)

    writer({"network.weight": Attack()}, copied_file)

    with pytest.raises(InputError, match=r"encoder: .*model\.pt holds no weights"):
        load_encoder(copied_file)
    assert not (tmp_path / "attacked").exists()
