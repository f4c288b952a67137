# SPDX-License-Identifier: Apache-2.0
"""Writing files whole or not at all."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from monai_memorization.errors import InputError


def write_text(path: Path, text: str) -> None:
    """Write a text file, as UTF-8 with the line ends it has; see :func:`write_bytes`."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    The content goes to a temporary name in the same folder (made if missing), which then replaces `path`.

    Args:
        path: File to write.
        content: Its whole content.

    Raises:
        InputError: The file cannot be written: disk full, folder read-only, a folder of that name.
    """
    unfinished = path.with_name(_unfinished(path.name))
    try:
        with _one_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with unfinished.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # or a crash of the machine may leave the new name with nothing in it
            unfinished.replace(path)
    finally:
        _remove(unfinished)


@contextmanager
def written_together(folder: Path) -> Iterator[Path]:
    """Give the block a folder to write files into, which take their places in ``folder`` once all of them are there.

    So a full disk leaves the files of one run, all old or all new.

    Args:
        folder: where the files belong; made if missing.

    Yields:
        A temporary folder in it.

    Raises:
        InputError: if a file cannot take its place, as for :func:`write_bytes`.
    """
    for left in folder.glob(".*.unfinished"):
        if not _is_at_work(left):
            _remove(left)
    unfinished = folder / _unfinished("")
    try:
        with _one_error(folder):
            unfinished.mkdir(parents=True)
        yield unfinished
        with _one_error(folder):
            for file in sorted(unfinished.iterdir()):
                file.replace(folder / file.name)
    finally:
        _remove(unfinished)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Make a folder whole or not at all: yields a temporary one, which takes its place at the end.

    An empty folder that is there stays the very folder and takes the content: it may be where a disk is mounted, or
    where the user is.

    Args:
        folder: a path where nothing is, or an empty folder.

    Yields:
        The folder to write in.

    Raises:
        InputError: if something is there, or it cannot be written.
    """
    check_writable(folder)
    if folder.is_dir():
        if any(folder.iterdir()):
            raise InputError(f"{folder}: exists and is not empty; name a new folder")
        with _one_error(folder), written_together(folder) as unfinished:
            yield unfinished
        return
    unfinished = folder.with_name(_unfinished(folder.name))
    try:
        with _one_error(folder):
            unfinished.mkdir(parents=True)
            yield unfinished
            unfinished.replace(folder)
    finally:
        _remove(unfinished)


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written in, without making it.

    Raises:
        InputError: naming the folder and what stands in its way.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        problem = "cannot be written in" if existing.is_dir() else "is a file"
        raise InputError(f"{folder}: cannot be written ({existing} {problem}); choose another folder")


def _unfinished(name: str) -> str:
    """Name what is being written: after the process, and at random, since containers may share the numbers of those."""
    return f".{name}.{os.getpid()}.{secrets.token_hex(4)}.unfinished"


def _is_at_work(unfinished: Path) -> bool:
    """Say whether the process that writes it still runs; one that was killed leaves it behind."""
    if os.name != "posix":  # elsewhere the question would end that process
        return False
    try:
        os.kill(int(unfinished.name.split(".")[-3]), 0)
    except PermissionError:  # of another user
        return True
    except (ValueError, OSError):
        return False
    return True


@contextmanager
def _one_error(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path}: cannot be written ({reason}); free the disk or choose another folder") from error


def _remove(path: Path) -> None:
    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError:
        # the error on its way to the caller says more than this one would
        return
