# SPDX-License-Identifier: Apache-2.0
"""Hashes of contents: equal for equal files, whatever their names and times."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from monai_memorization.images.contents import hash_content, hash_contents


def test_hash_follows_the_bytes_alone(tmp_path: Path):
    for name, content in (("a.png", b"one"), ("b.png", b"one"), ("c.png", b"two")):
        (tmp_path / name).write_bytes(content)
    os.utime(tmp_path / "b.png", ns=(0, 0))

    first, second, third = hash_contents([tmp_path / name for name in ("a.png", "b.png", "c.png")])

    assert first == second != third


def test_change_that_keeps_size_and_time_is_seen(tmp_path: Path):
    path = tmp_path / "a.png"
    path.write_bytes(b"one")
    before, stat = hash_content(path), path.stat()

    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))

    assert hash_content(path) != before


def test_suffix_counts_as_it_says_how_to_read(tmp_path: Path):
    for name in ("a.png", "a.npy"):
        (tmp_path / name).write_bytes(b"one")
    assert hash_content(tmp_path / "a.png") != hash_content(tmp_path / "a.npy")


@pytest.mark.parametrize("change", ["content", "name", "more", "fewer"])
def test_hash_of_a_series_follows_each_of_its_files(tmp_path: Path, change: str):
    for name in ("1.dcm", "2.dcm"):
        (tmp_path / name).write_bytes(name.encode())
    before = hash_content(tmp_path)
    assert hash_content(tmp_path) == before

    if change == "content":
        (tmp_path / "2.dcm").write_bytes(b"3.dcm")
    elif change == "name":
        (tmp_path / "2.dcm").rename(tmp_path / "3.dcm")
    elif change == "more":
        (tmp_path / "3.dcm").write_bytes(b"")
    else:
        (tmp_path / "2.dcm").unlink()

    assert hash_content(tmp_path) != before


def test_hidden_and_lost_files_of_a_series_do_not_count(tmp_path: Path):
    (tmp_path / "1.dcm").write_bytes(b"one")
    before = hash_content(tmp_path)
    (tmp_path / ".DS_Store").write_bytes(b"of a file browser")
    (tmp_path / "2.dcm").symlink_to(tmp_path / "nowhere")
    assert hash_content(tmp_path) == before


def test_file_that_cannot_be_opened_has_a_hash_of_its_own(tmp_path: Path):
    missing, other = (hash_contents([tmp_path / f"{name}.png"]) for name in ("missing", "other"))
    assert missing == hash_contents([tmp_path / "missing.png"])
    assert missing != other
