# SPDX-License-Identifier: Apache-2.0
"""The exceptions for what a user can put right."""

from __future__ import annotations

from collections.abc import Sequence


class InputError(ValueError):
    """Bad input from the user.

    The message names the file or the argument, what was found there and the cure. The command line prints it on one
    line and exits with 2; every other exception is a defect of the program and keeps its traceback.
    """


class UnreadableError(InputError):
    """An image file that is damaged or empty of content; `--skip-unreadable` leaves such images out, and no others."""


def counted(names: Sequence[str], noun: str) -> str:
    """Say how many there are: "3 images"."""
    return f"{len(names)} {noun}{'s' if len(names) > 1 else ''}"


def some(names: Sequence[str], n: int = 3) -> str:
    """Spell out the first n."""
    return ", ".join(map(str, names[:n])) + (", ..." if len(names) > n else "")
