# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest

from monai_memorization.errors import InputError
from monai_memorization.files import write_text


def test_text_is_written_as_given(tmp_path: Path):
    write_text(tmp_path / "new" / "page.html", "a\r\nµ ≥ 0\n")

    assert (tmp_path / "new" / "page.html").read_bytes() == "a\r\nµ ≥ 0\n".encode()


def test_old_content_is_replaced_and_nothing_else_is_left(tmp_path: Path):
    path = tmp_path / "report.json"
    path.write_text("old, and longer than the new")

    write_text(path, "new")

    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_failure_half_way_keeps_the_old_file(tmp_path: Path):
    path = tmp_path / "report.json"
    path.write_text("old")

    with pytest.raises(UnicodeEncodeError):
        write_text(path, "x" * 100_000 + "\ud800")

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_is_one_clear_error(tmp_path: Path):
    path = tmp_path / "report.json"
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"report\.json: cannot be written \(File too large\)"):
            write_text(path, "x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)

    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_file_in_the_place_of_the_folder_is_one_clear_error(tmp_path: Path):
    (tmp_path / "out").write_text("a file")

    with pytest.raises(InputError, match=r"out/report\.json: cannot be written"):
        write_text(tmp_path / "out" / "report.json", "text")


def test_folder_in_the_place_of_the_file_is_one_clear_error(tmp_path: Path):
    (tmp_path / "report.json").mkdir()

    with pytest.raises(InputError, match=r"report\.json: cannot be written \(Is a directory\)"):
        write_text(tmp_path / "report.json", "text")

    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
