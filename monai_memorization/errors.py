# SPDX-License-Identifier: Apache-2.0
"""The exceptions for what a user can put right."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input from the user.

    The message names the file or the argument, what was found there and the cure. The command line prints it on one
    line and exits with 2; every other exception is a defect of the program and keeps its traceback.
    """


class UnreadableError(InputError):
    """An image file that is damaged or empty of content; `--skip-unreadable` leaves such images out, and no others."""
