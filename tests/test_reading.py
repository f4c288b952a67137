# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from report_examples import EXAMPLES, all_null, copies_found

from monai_memorization.errors import InputError
from monai_memorization.reporting.reading import read_report, report_schema
from monai_memorization.reporting.report import SCHEMA_VERSION, write_report


def refused(text: str | bytes, folder: Path) -> str:
    (folder / "report.json").write_bytes(text.encode() if isinstance(text, str) else text)
    with pytest.raises(InputError) as raised:
        read_report(folder / "report.json")
    message = str(raised.value)
    assert message.startswith(f"{folder / 'report.json'}: ")
    assert "audit" in message  # the cure
    return message


@pytest.mark.parametrize("name", sorted(EXAMPLES.keys() - {"all_null"}))
def test_report_comes_back_as_it_was_written(name, tmp_path):
    write_report(EXAMPLES[name](), tmp_path / "report.json")

    assert read_report(tmp_path) == read_report(tmp_path / "report.json") == json.loads(json.dumps(EXAMPLES[name]()))


def test_report_in_which_everything_is_null_that_may_be_is_read(tmp_path):
    report = all_null()
    report["sets"]["leaks"] = {"shared_images": None, "shared_patients": None}
    write_report(report, tmp_path / "report.json")

    assert read_report(tmp_path)["calibrated"]["copy_rate_ci"] is None


def test_schema_is_one_and_speaks_of_this_version():
    Draft202012Validator.check_schema(report_schema())
    assert report_schema()["properties"]["schema_version"]["const"] == SCHEMA_VERSION


def test_schema_has_every_fixed_key_of_the_design():
    """Each section of the schema lists its keys as always there; the example has them all, so none is made up."""
    schema, report = report_schema()["properties"], copies_found()
    for section in ("verdict", "calibrated", "paper_protocol", "controls", "power_summary", "provenance"):
        assert set(schema[section]["required"]) <= set(report[section])
    assert set(schema["paper_protocol"]["required"]) == set(report["paper_protocol"])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_truncated_report_is_refused(share, tmp_path):
    text = json.dumps(copies_found())

    assert "is no whole JSON document" in refused(text[: int(share * len(text))], tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no whole JSON document"),
        ("[1, 2]", "is no report of an audit"),
        ('{"name": "a foreign file"}', "is no report of an audit"),
        ('{"schema_version": 0}', r"has schema_version 0, this version reads 1"),
        ('{"schema_version": "1"}', r"has schema_version '1', this version reads 1"),
        ('{"schema_version": 1}', r"lacks verdict"),
        (b"\x93NUMPY\xff\xfe", "cannot be read"),
        ("[" * 100_000, "is no whole JSON document"),
    ],
)
def test_foreign_file_is_refused_in_one_sentence(text, message, tmp_path):
    assert re.search(message, refused(text, tmp_path))


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("calibrated", "copy_rate_ci", [0.1], r"calibrated\.copy_rate_ci is \[0\.1\], which no audit writes"),
        ("calibrated", "copy_rate_ci", ["low", 0.1], r"calibrated\.copy_rate_ci\.0 is \"low\""),
        ("calibrated", "copy_rate", 63, r"calibrated\.copy_rate is 63"),
        ("calibrated", "n_copies", "many", r"calibrated\.n_copies is \"many\""),
        ("calibrated", "strata", [], r"calibrated\.strata is \[\]"),
        ("verdict", "status", "safe", r"verdict\.status is \"safe\""),
        ("power_summary", "working_recall", float("nan"), r"NaN is no JSON number"),
    ],
)
def test_value_that_no_audit_writes_is_refused(section, key, value, message, tmp_path):
    report = copies_found()
    report[section][key] = value

    assert re.search(message, refused(json.dumps(report), tmp_path))


def test_missing_key_is_named(tmp_path):
    report = copies_found()
    del report["calibrated"]["fdr"]["n_copies"]

    assert "lacks calibrated.fdr.n_copies" in refused(json.dumps(report), tmp_path)


def test_missing_file_and_folder_without_a_report_are_named(tmp_path):
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InputError, match=r"does not exist; give the report\.json"):
            read_report(path)
