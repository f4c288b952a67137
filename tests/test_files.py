# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest

from monai_memorization.errors import InputError
from monai_memorization.files import new_folder, write_text, written_together


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


@pytest.fixture
def full_disk():
    """No file may be longer than 1,000 bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_full_disk_is_one_clear_error(tmp_path: Path, full_disk):
    path = tmp_path / "report.json"
    path.write_text("old")

    with pytest.raises(InputError, match=r"report\.json: cannot be written \(File too large\)"):
        write_text(path, "x" * 10_000)

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


def test_files_written_together_take_their_places_together(tmp_path: Path):
    (tmp_path / "report.json").write_text("old")

    with written_together(tmp_path) as folder:
        write_text(folder / "report.json", "new")
        write_text(folder / "pairs.csv", "new")
        assert (tmp_path / "report.json").read_text() == "old"
        assert not (tmp_path / "pairs.csv").exists()

    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"report.json": "new", "pairs.csv": "new"}


def test_disk_that_fills_between_two_files_leaves_the_old_ones(tmp_path: Path, full_disk):
    for name in ("pairs.csv", "report.json"):
        (tmp_path / name).write_text("old")

    def write() -> None:
        with written_together(tmp_path) as folder:
            write_text(folder / "pairs.csv", "new")
            write_text(folder / "report.json", "x" * 10_000)

    with pytest.raises(InputError, match="cannot be written"):
        write()

    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"report.json": "old", "pairs.csv": "old"}


def test_what_a_killed_run_left_unfinished_is_removed(tmp_path: Path):
    (tmp_path / ".77.unfinished").mkdir()
    (tmp_path / ".77.unfinished" / "pairs.csv").write_text("killed")

    with written_together(tmp_path) as folder:
        write_text(folder / "pairs.csv", "new")

    assert [path.name for path in tmp_path.iterdir()] == ["pairs.csv"]


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path):
    with written_together(tmp_path) as first:
        (first / "pairs.csv").write_text("first")
        with written_together(tmp_path) as second:
            (second / "pairs.csv").write_text("second")
        assert (tmp_path / "pairs.csv").read_text() == "second"
    assert (tmp_path / "pairs.csv").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.csv"]


def test_file_in_the_place_of_the_folder_of_many_is_one_clear_error(tmp_path: Path):
    (tmp_path / "out").write_text("a file")

    with pytest.raises(InputError, match=r"out: cannot be written"), written_together(tmp_path / "out"):
        pass


@pytest.mark.parametrize("name", [".", "given", "new"])
def test_new_folder_is_made_whole(tmp_path: Path, monkeypatch, name: str):
    monkeypatch.chdir(tmp_path)
    Path("given").mkdir()
    if name == ".":
        monkeypatch.chdir("given")
    before = Path(name).stat().st_ino if Path(name).exists() else None

    with new_folder(Path(name)) as folder:
        (folder / "images").mkdir()
        write_text(folder / "images" / "0.txt", "image")
        write_text(folder / "list.csv", "list")
        assert not Path(name, "list.csv").exists()

    assert sorted(str(path.relative_to(name)) for path in Path(name).rglob("*")) == [
        "images",
        "images/0.txt",
        "list.csv",
    ]
    # one that was given may be where a disk is mounted, which nothing can replace
    assert before is None or Path(name).stat().st_ino == before


@pytest.mark.parametrize("name", ["given", "new"])
def test_failure_leaves_nothing_in_the_place_of_a_new_folder(tmp_path: Path, name: str):
    (tmp_path / "given").mkdir()

    def fill_disk() -> None:
        with new_folder(tmp_path / name) as folder:
            write_text(folder / "list.csv", "list")
            raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=rf"{name}: cannot be written \(No space left"):
        fill_disk()

    assert [path.name for path in tmp_path.rglob("*")] == ["given"]
