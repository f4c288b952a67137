# SPDX-License-Identifier: Apache-2.0
"""What is kept of embeddings: used again for the same images and encoder, and for nothing else."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

import pytest
import torch
from made_up_images import smooth_images, write_folder, write_image

from monai_memorization.detector import embeddings as module
from monai_memorization.detector.embeddings import embed
from monai_memorization.detector.encoder import ContrastiveEncoder
from monai_memorization.detector.shards import hash_settings, hash_weights, read_shard
from monai_memorization.errors import InputError
from monai_memorization.images.prepared import prepared_batches
from monai_memorization.images.sets import read_image_set

N = 37
BATCH = 2  # shards of 16 images: 16, 16 and 5


@pytest.fixture
def folder(tmp_path):
    return write_folder(smooth_images(N, (36, 32), seed=3), tmp_path / "images")


@pytest.fixture
def read(monkeypatch):
    """Names of the images that are read, in the order of reading."""
    names = []

    def listening(images, *arguments):
        names.extend(images.image_ids)
        return prepared_batches(images, *arguments)

    monkeypatch.setattr(module, "prepared_batches", listening)
    return names


def keep(encoder, folder, tmp_path, **settings):
    return embed(encoder, read_image_set(folder, "training"), BATCH, cache_dir=str(tmp_path / "kept"), **settings)


def same(first, second) -> bool:
    tensors = ("vectors", "thumbnails", "structure")
    return (
        all(torch.equal(getattr(first, name), getattr(second, name)) for name in tensors)
        and first.digests == second.digests
        and first.n_scaled == second.n_scaled
        and first.images.image_ids == second.images.image_ids
    )


def test_second_time_nothing_is_read_and_all_is_the_same(encoder, folder, tmp_path, read):
    plain = embed(encoder, read_image_set(folder, "training"), BATCH)
    first = keep(encoder, folder, tmp_path)
    read.clear()

    second = keep(encoder, folder, tmp_path)

    assert read == []
    assert same(plain, first)
    assert same(first, second)
    assert second.n_scaled == N


def test_moved_files_and_another_role_are_known_again(encoder, folder, tmp_path, read):
    first = keep(encoder, folder, tmp_path)
    read.clear()
    moved = shutil.copytree(folder, tmp_path / "elsewhere")

    assert same(first, keep(encoder, moved, tmp_path))
    assert read == []


def test_changed_image_is_read_again_though_its_time_is_the_same(encoder, folder, tmp_path, read):
    keep(encoder, folder, tmp_path)
    read.clear()
    path = folder / "image_020.png"
    stat = path.stat()
    write_image(smooth_images(1, (36, 32), seed=9)[0], path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    again = keep(encoder, folder, tmp_path)

    assert read == [f"image_{i:03}.png" for i in range(16, 32)]
    assert same(again, embed(encoder, read_image_set(folder, "training"), BATCH))


def test_images_added_at_the_end_leave_the_others_known(encoder, folder, tmp_path, read):
    keep(encoder, folder, tmp_path)
    read.clear()
    write_image(smooth_images(1, (36, 32), seed=9)[0], folder / "image_900.png")

    again = keep(encoder, folder, tmp_path)

    assert read == [f"image_{i:03}.png" for i in range(32, N)] + ["image_900.png"]
    assert same(again, embed(encoder, read_image_set(folder, "training"), BATCH))


def test_other_weights_are_never_served_what_was_kept(encoder, folder, tmp_path, read):
    keep(encoder, folder, tmp_path)
    read.clear()
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0] += 1e-3

    again = keep(encoder, folder, tmp_path)

    assert len(read) == N
    assert same(again, embed(encoder, read_image_set(folder, "training"), BATCH))


def test_hash_of_settings_follows_preparation_batch_and_device(encoder):
    class Other(ContrastiveEncoder):
        @property
        def preparation(self):
            return replace(super().preparation, window=(0.0, 1.0))

    other = Other(**encoder.settings)
    other.load_state_dict(encoder.state_dict())
    cases = [(encoder, 64, "cpu"), (encoder, 32, "cpu"), (encoder, 64, "cuda"), (other, 64, "cpu")]

    assert len({hash_settings(*case) for case in cases}) == len(cases)
    assert hash_settings(encoder, 64, torch.device("cpu")) == hash_settings(encoder, 64, "cpu")


def test_hash_of_weights_follows_every_weight():
    encoder = ContrastiveEncoder((8, 8), widths=(2,), embedding_size=3)
    before = hash_weights(encoder)

    assert hash_weights(encoder) == before
    with torch.no_grad():
        next(encoder.parameters()).view(-1)[0] += 1e-3
    assert hash_weights(encoder) != before


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a shard"])
def test_damaged_shard_is_computed_again(encoder, folder, tmp_path, read, content):
    first = keep(encoder, folder, tmp_path)
    read.clear()
    for path in (tmp_path / "kept").iterdir():
        path.write_bytes(content)
        assert read_shard(path) is None

    assert same(first, keep(encoder, folder, tmp_path))
    assert len(read) == N
    assert all(read_shard(path) is not None for path in (tmp_path / "kept").iterdir())


def test_truncated_shard_is_computed_again(encoder, folder, tmp_path, read):
    first = keep(encoder, folder, tmp_path)
    read.clear()
    for path in (tmp_path / "kept").iterdir():
        path.write_bytes(path.read_bytes()[:-100])

    assert same(first, keep(encoder, folder, tmp_path))
    assert len(read) == N


def test_what_cannot_be_read_is_said_each_time(encoder, folder, tmp_path, read):
    (folder / "image_020.png").write_bytes(b"broken")

    first = keep(encoder, folder, tmp_path, skip_unreadable=True)
    read.clear()
    second = keep(encoder, folder, tmp_path, skip_unreadable=True)

    assert read == [f"image_{i:03}.png" for i in range(16, 32)]
    assert same(first, second)
    assert first.unreadable == second.unreadable
    assert len(second) == N - 1
    with pytest.raises(InputError, match=r"image_020\.png: cannot be read"):
        keep(encoder, folder, tmp_path)


def test_embedding_that_was_stopped_keeps_what_it_had(encoder, folder, tmp_path, read):
    (folder / "image_020.png").write_bytes(b"broken")
    with pytest.raises(InputError, match="cannot be read"):
        keep(encoder, folder, tmp_path)
    write_image(smooth_images(1, (36, 32), seed=9)[0], folder / "image_020.png")
    read.clear()

    again = keep(encoder, folder, tmp_path)

    assert read == [f"image_{i:03}.png" for i in range(16, N)]
    assert same(again, embed(encoder, read_image_set(folder, "training"), BATCH))
