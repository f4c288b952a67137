# SPDX-License-Identifier: Apache-2.0
"""The exceptions for what a user can put right."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType


class InputError(ValueError):
    """Bad input from the user.

    The message names the file or the argument, what was found there and the cure. The command line prints it on one
    line and exits with 2; every other exception is a defect of the program and keeps its traceback.
    """


class UnreadableError(InputError):
    """An image file that is damaged or empty of content; `--skip-unreadable` leaves such images out, and no others."""


def bad_input(error: BaseException | None) -> InputError | None:
    """Return the bad input that MONAI wrapped into errors of its own, or None."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__
    return error


def root_cause(error: BaseException) -> BaseException:
    """Return what an error was raised from in the first place, itself where from nothing."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def tell_bad_input() -> None:
    """Let bad input end the process with its message alone, for configs, and other errors with their cause.

    MONAI's runner wraps both into errors of its own, and in their traceback of 80 lines they would not be found.
    """
    usual = sys.excepthook

    def tell(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if (cause := bad_input(error)) is None:
            usual(kind, error, trace)
            if (root := root_cause(error)) is not error:
                print(f"The cause, from within the traceback: {type(root).__name__}: {root}", file=sys.stderr)
        else:
            print(one_line(cause), file=sys.stderr)

    sys.excepthook = tell


def one_line(error: InputError) -> str:
    """Write a message as the last line on a terminal."""
    return f"monai-memorization: {' '.join(str(error).split())}"


def counted(names: Sequence[str], noun: str) -> str:
    """Say how many there are: "3 images"."""
    return f"{len(names)} {noun}{'s' if len(names) > 1 else ''}"


def some(names: Sequence[str], n: int = 3) -> str:
    """Spell out the first n."""
    return ", ".join(map(str, names[:n])) + (", ..." if len(names) > n else "")
