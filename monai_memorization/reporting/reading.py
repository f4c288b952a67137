# SPDX-License-Identifier: Apache-2.0
"""Reading report.json back: all of it as the audit writes it, or one clear error."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError, best_match

from monai_memorization.errors import InputError

_CURE = "give the report.json that `monai-memorization audit` of this version wrote"


def read_report(path: str | Path) -> dict[str, Any]:
    """Read a report and check that it has every key with a value of its kind, null where not known.

    Args:
        path: report.json, or the folder that holds it.

    Returns:
        The dict that the audit wrote.

    Raises:
        InputError: no such file, truncated, not a report, or one of another schema version.
    """
    file = Path(path)
    file = file / "report.json" if file.is_dir() else file
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{file}: does not exist; {_CURE}, or the folder it is in") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read ({error}); {_CURE}") from error
    try:
        report = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: is no whole JSON document ({error}); {_CURE}") from None
    if not isinstance(report, dict) or "schema_version" not in report:
        raise InputError(f"{file}: is no report of an audit (it has no schema_version); {_CURE}")
    known = report_schema()["properties"]["schema_version"]["const"]
    if report["schema_version"] != known:
        raise InputError(
            f"{file}: has schema_version {report['schema_version']!r}, this version reads {known}; audit again"
        )
    if problem := best_match(Draft202012Validator(report_schema()).iter_errors(report)):
        raise InputError(f"{file}: {_say(problem)}; {_CURE}")
    return report


@cache
def report_schema() -> dict[str, Any]:
    """Return the JSON Schema of report.json."""
    text = resources.files(__package__).joinpath("templates", "report_schema.yaml").read_text(encoding="utf-8")
    schema: dict[str, Any] = yaml.safe_load(text)
    return schema


def _say(problem: ValidationError) -> str:
    place = ".".join(str(step) for step in problem.absolute_path)
    if problem.validator == "required":
        missing = [key for key in problem.validator_value if key not in problem.instance]
        return f"lacks {'.'.join(filter(None, (place, missing[0])))}"
    found = json.dumps(problem.instance)
    return f"{place} is {found if len(found) < 60 else found[:57] + '...'}, which no audit writes"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
