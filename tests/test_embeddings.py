# SPDX-License-Identifier: Apache-2.0
"""Embeddings: ids stay with their vectors, however the images are read."""

from __future__ import annotations

import math
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from made_up_images import smooth_images, write_csv, write_folder, write_image
from PIL import Image

from monai_memorization.detector.embeddings import embed, embed_batch, shrink
from monai_memorization.errors import InputError
from monai_memorization.images.sets import read_image_set


@pytest.fixture
def images(tmp_path):
    """Eleven images of six patients, each of two images but the last."""
    folder = write_folder(smooth_images(11, (40, 36), seed=3), tmp_path / "images")
    return read_image_set(write_csv(folder, tmp_path / "list.csv", [f"p{i // 2}" for i in range(11)]), "validation")


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (4, 2), (100, 1)])
def test_embeddings_do_not_depend_on_batches_or_workers(encoder, images, batch_size, workers):
    expected = embed(encoder, images, batch_size=3, workers=0)

    embedded = embed(encoder, images, batch_size, workers)

    torch.testing.assert_close(embedded.vectors, expected.vectors, atol=1e-5, rtol=1e-5)
    assert torch.equal(embedded.thumbnails, expected.thumbnails)
    assert embedded.digests == expected.digests
    assert embedded.images == images


def test_each_vector_is_that_of_its_image(encoder, images):
    embedded = embed(encoder, images)

    assert len(embedded) == len(embedded.vectors) == len(embedded.thumbnails) == len(embedded.digests) == 11
    for vector, path in zip(embedded.vectors, embedded.images.paths, strict=True):
        alone = embed_batch(encoder, encoder.preparation(path)[None])[0]
        torch.testing.assert_close(vector, alone, atol=1e-5, rtol=1e-5)
    assert embedded.n_scaled == 11


def test_set_read_backwards_gives_the_vectors_backwards(encoder, images):
    forwards, backwards = embed(encoder, images), embed(encoder, images.subset(reversed(range(11))))

    torch.testing.assert_close(backwards.vectors, forwards.vectors.flip(0), atol=1e-5, rtol=1e-5)
    assert backwards.digests == forwards.digests[::-1]


def test_embedding_is_done_in_evaluation_mode_without_gradients(encoder, images):
    before = {name: value.clone() for name, value in encoder.state_dict().items()}

    vectors = embed(encoder.train(), images).vectors

    assert not vectors.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("allowed", ["by default", "for everything"])
def test_convolutions_on_a_gpu_may_not_round_while_embedding(encoder, allowed, fails, monkeypatch):
    class Seen(torch.nn.Module):
        def forward(self, images):
            seen.append(torch.backends.cudnn.conv.fp32_precision)
            return encoder(images[:, :0] if fails else images)

    if allowed == "for everything":
        monkeypatch.setattr(torch.backends, "fp32_precision", "tf32")
    seen = []
    with pytest.raises(RuntimeError) if fails else nullcontext():
        embed_batch(Seen(), torch.rand(2, 1, *encoder.preparation.image_size))
    assert seen == ["ieee"]
    assert torch.backends.cudnn.conv.fp32_precision == "tf32", "left as it was"
    assert torch.backends.cudnn.allow_tf32 is True


def test_equal_pictures_have_equal_digests_whatever_their_file(encoder, tmp_path):
    pictures = [(image.numpy() * 255).round().astype(np.uint8) for image in smooth_images(2)]
    for mode in ("L", "RGB", "RGBA"):
        Image.fromarray(pictures[0]).convert(mode).save(tmp_path / f"0_{mode}.png")
    np.save(tmp_path / "0_plain.npy", pictures[0])
    write_image(torch.from_numpy(pictures[0]), tmp_path / "0_volume.nii.gz")
    Image.fromarray(pictures[1]).save(tmp_path / "1.png")

    digests = embed(encoder, read_image_set(tmp_path, "training")).digests

    assert len(set(digests[:5])) == 1
    assert digests[5] != digests[0]


def test_image_that_cannot_be_read_takes_its_names_along(encoder, images):
    images.paths[4].write_bytes(b"broken")

    embedded = embed(encoder, images, batch_size=3, skip_unreadable=True)

    kept = [i for i in range(11) if i != 4]
    assert embedded.images == images.subset(kept)
    assert len(embedded.unreadable) == 1
    assert images.image_ids[4] in embedded.unreadable[0]
    alone = embed(encoder, images.subset(kept))
    torch.testing.assert_close(embedded.vectors, alone.vectors, atol=1e-5, rtol=1e-5)
    with pytest.raises(InputError, match=r"validation: .*image_004\.png: cannot be read"):
        embed(encoder, images)


def test_set_without_a_readable_image_is_refused(encoder, tmp_path):
    (tmp_path / "a.png").write_bytes(b"broken")

    with pytest.raises(InputError, match=r"synthetic: none of its 1 images can be read; .*a\.png"):
        embed(encoder, read_image_set(tmp_path, "synthetic"), skip_unreadable=True)


@pytest.mark.parametrize(("size", "cell"), [((64, 64), (4, 4)), ((48, 12), (3, 1)), ((24, 16, 8), (3, 2, 1))])
def test_thumbnail_averages_cells(size, cell):
    images = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(0))

    small = shrink(images)

    grid = [side // pixels for side, pixels in zip(size, cell, strict=True)]
    assert small.shape == (2, math.prod(grid))
    first = images[(1, 0, *(slice(pixels) for pixels in cell))].mean()
    last = images[(1, 0, *(slice(-pixels, None) for pixels in cell))].mean()
    torch.testing.assert_close(small[1, [0, -1]], torch.stack([first, last]))
