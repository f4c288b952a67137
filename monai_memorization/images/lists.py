# SPDX-License-Identifier: Apache-2.0
"""Lists of images: the columns of a CSV or a MONAI data list that say which images there are, and whose."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from monai_memorization.errors import InputError

KEYS = ("image", "patient_id", "label")


def read_columns(source: Path, role: str) -> dict[str, tuple[str, ...]]:
    """Read those of ``KEYS`` that a list of images has.

    Args:
        source: a CSV, or a MONAI data list (JSON) that is read at its section ``role`` or at its only one.
        role: name of the argument, for the messages.

    Returns:
        One value per image and key, ``image`` always among them.

    Raises:
        InputError: if the file cannot be read, lists nothing, lacks a value, or has a column whose name is nearly one
            of these, such as ``PatientID``.
    """
    readers = {".csv": _csv_rows, ".json": _data_list_rows}
    if source.suffix.lower() not in readers:
        raise InputError(f"{role}: {source} is neither a folder, a CSV nor a MONAI data list (JSON)")
    rows = readers[source.suffix.lower()](source, role)
    entries = [row if isinstance(row, Mapping) else {"image": row} for row in rows]
    if not entries:
        raise InputError(f"{role}: {source} lists no image")
    _refuse_near_misses(entries, source, role)
    there = [key for key in KEYS if key == "image" or any(key in entry for entry in entries)]
    return {key: tuple(_value(entry, key, source, role) for entry in entries) for key in there}


def _csv_rows(source: Path, role: str) -> list[dict[str, Any]]:
    cure = "save it as UTF-8, comma separated"
    try:
        table = pd.read_csv(source, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:  # pandas raises a ValueError for what does not parse or decode
        raise InputError(f"{role}: {source} cannot be read as CSV ({error}); {cure}") from None
    names = [str(name).strip() for name in table.columns]
    if "image" not in names and any(mark in name for name in names for mark in ";\t"):
        raise InputError(f"{role}: {source} has the columns {names}, which are not separated by commas; {cure}")
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes the first values of the rows for their names
        raise InputError(
            f"{role}: {source} has more values in its first row than columns in its header; name every column, and put "
            "quotes around a value with a comma"
        )
    return [dict(zip(names, row, strict=True)) for row in table.itertuples(index=False, name=None)]


def _data_list_rows(source: Path, role: str) -> list[Any]:
    try:
        content = json.loads(source.read_text(encoding="utf-8-sig"))
    except (ValueError, OSError, RecursionError) as error:
        raise InputError(f"{role}: {source} cannot be read as JSON ({error})") from None
    if isinstance(content, dict):
        lists = {key: value for key, value in content.items() if isinstance(value, list)}
        if role not in lists and len(lists) != 1:
            raise InputError(f"{role}: {source} has no section {role!r}; its lists are {sorted(lists)}")
        content = lists[role] if role in lists else next(iter(lists.values()))
    if not isinstance(content, list):
        raise InputError(f"{role}: {source} holds no list of images")
    return content


def _refuse_near_misses(entries: Sequence[Mapping[str, Any]], source: Path, role: str) -> None:
    """Refuse a name that is nearly one of ``KEYS``: without patients, those in two sets would go unseen."""
    meant = {_bare(key): key for key in KEYS}
    for name in sorted({key for entry in entries for key in entry} - set(KEYS)):
        if _bare(name) in meant:
            raise InputError(
                f"{role}: {source} has {name!r}, which is not read; call it {meant[_bare(name)]!r} if that is meant, "
                "or give it another name"
            )


def _bare(key: str) -> str:
    return re.sub(r"[-_\s]", "", key).lower()


def _value(entry: Mapping[str, Any], key: str, source: Path, role: str) -> str:
    value = entry.get(key)
    if value is None or str(value).strip() == "" or (isinstance(value, float) and math.isnan(value)):
        raise InputError(f"{role}: an entry of {source} has no {key!r}; it has {dict(entry)}; every entry needs one")
    if not isinstance(value, str | int):
        raise InputError(
            f"{role}: an entry of {source} has {value!r} as {key!r}, which is neither text nor a whole number"
        )
    return str(value).replace("\\", "/") if key == "image" else str(value).strip()
