# SPDX-License-Identifier: Apache-2.0
"""Numbers as people read them. Every function gives None for a value that is not known, and the page says why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TypeGuard, TypeVar

from jinja2 import Undefined

T = TypeVar("T")

NO_BREAK = "\N{NO-BREAK SPACE}"
MINUS = "\N{MINUS SIGN}"
NOT_KNOWN = "not known"


def count(value: float | None) -> str | None:
    """Write a count with thousands apart: 1,000; an expected count below ten keeps one decimal."""
    if not _known(value):
        return None
    tenths = round(value, 1)
    return f"{tenths:,.1f}" if abs(tenths) < 10 and tenths != int(tenths) else f"{value:,.0f}"


def percent(rate: float | None, limit: float | None = None) -> str | None:
    """Write a rate in [0, 1] as a percentage: two digits below 10 %, whole from there, never rounded to 0 or 100.

    Args:
        rate: The rate.
        limit: A rate that it is judged by; as many more digits are written as tell the two apart.
    """
    if not _known(rate):
        return None
    value = 100 * rate
    if 0 < value < 0.01:
        return f"below 0.01{NO_BREAK}%"
    if 99.9 < value < 100:
        return f"above 99.9{NO_BREAK}%"
    digits = 2 if abs(value) < 1 else 1 if abs(value) < 10 or 99 < value < 100 else 0
    if limit is not None:
        digits = _digits_apart(value, 100 * limit, digits)
    text = f"{value:.{digits}f}"
    return (text.rstrip("0").rstrip(".") if digits else text) + f"{NO_BREAK}%"


def percent_interval(ends: Sequence[float] | None) -> str | None:
    """Write an interval of rates: 57 to 65 %."""
    if not _all_known(ends):
        return None
    low, high = (percent(end) or "" for end in ends)
    return f"{low.removesuffix(NO_BREAK + '%')} to {high}"


def decimal(value: float | None, digits: int = 2, limit: float = 1.0) -> str | None:
    """Write an AUC; as many more digits as keep it from rounding to 1, or to a `limit` that it is judged by."""
    if not _known(value):
        return None
    digits = max(_digits_apart(value, end, digits) for end in (1.0, limit))
    return f"{value:.{digits}f}"


def correlation(value: float | None) -> str | None:
    """Write a similarity or score: 0.735, and near 1 as many digits as tell two apart, 0.99931."""
    if not _known(value):
        return None
    digits = 3
    while digits < 6 and 0 < 1 - value < 10 ** (1 - digits):
        digits += 1
    return f"{value:.{digits}f}"


def p_value(value: float | None) -> str | None:
    """Write a p-value with two significant digits."""
    return f"{value:.2g}" if _known(value) else None


def odds(p: float) -> str:
    """Say a p-value as a share of images: about 1 in 61."""
    return f"about 1 in {round(1 / p):,}" if p <= 0.1 else f"about {round(100 * p)} in 100"


def duration(seconds: float | None) -> str | None:
    """Write a time: 4.2 s, 3 min 20 s, 2 h 5 min."""
    if not _known(seconds):
        return None
    if seconds < 59.95:
        return f"{seconds:.1f}{NO_BREAK}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{NO_BREAK}min {rest}{NO_BREAK}s"
    return f"{minutes // 60}{NO_BREAK}h {minutes % 60}{NO_BREAK}min"


def decimal_interval(ends: Sequence[float] | None) -> str | None:
    """Write an interval of similarities or AUCs: 0.54 to 0.61."""
    if not _all_known(ends):
        return None
    return " to ".join(f"{end:.2f}" for end in ends)


def points_interval(ends: Sequence[float] | None) -> str | None:
    """Write an interval of differences of rates in percentage points, with their signs: −51 to −44 points."""
    if not _all_known(ends):
        return None
    return " to ".join(_points(end) for end in ends) + f"{NO_BREAK}points"


def _points(difference: float) -> str:
    value = 100 * difference
    text = f"{abs(value):.{2 if abs(value) < 1 else 1 if abs(value) < 10 else 0}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text if text == "0" else f"{'+' if value > 0 else MINUS}{text}"


def moment(created: str | None) -> str | None:
    """Write an ISO 8601 time for people, 2 March 2026, 10:15 UTC; another text stays as it is."""
    if not _known(created):
        return None
    try:
        time = datetime.fromisoformat(created.replace("Z", "+00:00"))
    except ValueError:
        return created
    return f"{time.day} {time:%B %Y, %H:%M} {time.tzname() or ''}".strip()


def size(image_size: Sequence[int] | None) -> str | None:
    """Write the size of an image: 64 × 64 pixels."""
    if not _known(image_size):
        return None
    unit = "pixels" if len(image_size) == 2 else "voxels"
    return f"{NO_BREAK}×{NO_BREAK}".join(str(length) for length in image_size) + f" {unit}"


def words(key: object) -> str:
    """Write a key as words: Elastic deformation."""
    text = str(key).replace("_", " ")
    return "JPEG" if text == "jpeg" else text[:1].upper() + text[1:]


def plain(value: object) -> str | None:
    """Write whatever stands in the report without a format of its own: settings, versions, strengths."""
    if not _known(value):
        return None
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {plain(part) or NOT_KNOWN}" for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(part) or NOT_KNOWN for part in value)
    return str(value)


def say(pattern: str, *parts: str | None) -> str | None:
    """Fill a pattern; None if a part is not known."""
    return pattern.format(*parts) if all(_known(part) for part in parts) else None


def _digits_apart(value: float, limit: float, digits: int) -> int:
    """Count the digits, from `digits` to six, that tell a value from a limit."""
    while digits < 6 and value != limit and round(value, digits) == round(limit, digits):
        digits += 1
    return digits


def _all_known(ends: Sequence[float] | None) -> TypeGuard[Sequence[float]]:
    return _known(ends) and all(map(_known, ends))


def _known(value: T | None) -> TypeGuard[T]:
    """Tell a value from null; a key that a template does not find counts as null, and so does NaN."""
    return not (value is None or isinstance(value, Undefined) or (isinstance(value, float) and math.isnan(value)))
