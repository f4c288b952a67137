# SPDX-License-Identifier: Apache-2.0
"""Bad input is found among the errors that wrap it, and other errors are left alone."""

from __future__ import annotations

import sys

import pytest

from monai_memorization.errors import InputError, bad_input, tell_bad_input


def wrapped(error: Exception) -> RuntimeError:
    """Wrap an error twice, as MONAI's runner does."""
    try:
        try:
            raise RuntimeError("Failed to instantiate component") from error
        except RuntimeError as inner:
            raise RuntimeError("Failed to evaluate") from inner
    except RuntimeError as outer:
        return outer


@pytest.fixture
def hook(monkeypatch):
    """What is called for an uncaught error, after a hook that says so."""
    monkeypatch.setattr(sys, "excepthook", lambda kind, error, trace: print(f"usual: {error}"))
    tell_bad_input()
    return sys.excepthook


def test_bad_input_is_found_where_it_is_wrapped():
    error = InputError("n: found 0; give at least 1")

    assert bad_input(wrapped(error)) is error is bad_input(error)
    assert bad_input(wrapped(ValueError("other"))) is None
    assert bad_input(None) is None


def test_bad_input_ends_in_one_line(hook, capsys):
    error = wrapped(InputError("two\nlines: found; cure"))

    hook(type(error), error, None)

    assert capsys.readouterr() == ("", "monai-memorization: two lines: found; cure\n")


def test_other_errors_are_told_as_they_were_and_then_by_their_cause(hook, capsys):
    error = wrapped(ValueError("a defect"))

    hook(type(error), error, None)

    out, err = capsys.readouterr()
    assert out == "usual: Failed to evaluate\n"
    assert err == "The cause, from within the traceback: ValueError: a defect\n"


def test_an_error_that_nothing_wraps_is_told_once(hook, capsys):
    hook(ValueError, ValueError("a defect"), None)

    assert capsys.readouterr() == ("usual: a defect\n", "")
