# SPDX-License-Identifier: Apache-2.0
"""Two reports compared: no more is claimed than they hold, and the page says what stands in the way."""

from __future__ import annotations

import copy
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import report_examples
from report_examples import EXAMPLES, HOSTILE, all_null, copies_found, no_copies_found
from test_pages import Page

from monai_memorization.cli import main
from monai_memorization.reporting.comparison import (
    copy_rate_change,
    headline,
    recalls,
    same_threshold,
    tables,
    warnings,
)
from monai_memorization.reporting.formats import NO_BREAK
from monai_memorization.reporting.pages import write_comparison_page
from monai_memorization.reporting.quantities import QUANTITIES


def improved(share_copied: float = 0.1) -> dict[str, Any]:
    """Another synthetic set against the very same training and validation images and encoder as `copies_found`."""
    report = report_examples._report(256, 300, 1000, share_copied)
    report["provenance"]["image_list_sha256"]["synthetic"] = "99" * 32
    return report


def other(role: str) -> dict[str, Any]:
    report = improved()
    report["provenance"]["image_list_sha256"][role] = "00" * 32
    return report


def said(text: str) -> str:
    return text.replace(NO_BREAK, " ")


def page_of(before: dict[str, Any], after: dict[str, Any], folder: Path) -> str:
    write_comparison_page(before, after, folder / "compare.html")
    return (folder / "compare.html").read_text(encoding="utf-8")


def test_same_yardstick_gives_an_interval_of_the_difference():
    low, high = copy_rate_change(copies_found(), improved())

    assert -0.5 < low < -0.4 < high < -0.3
    assert re.fullmatch(
        r"The copy rate fell: the rate after less the rate before lies between −4\d and −3\d points "
        r"\(95 % interval\)\.",
        said(headline(copies_found(), improved())),
    )
    assert said(headline(improved(), copies_found())).startswith("The copy rate rose")
    assert warnings(copies_found(), improved()) == []


@pytest.mark.parametrize("older", [0, 1])
def test_what_an_older_report_does_not_tell_of_the_patients_is_taken_from_the_other(older):
    reports = [copies_found(), improved()]
    for report in reports:
        labels = report["calibrated"]["strata"][0] | {"n_images": 300, "n_patients": 110, "shares_patients": True}
        labels["images_per_patient"] = [[1, 100], [20, 10]]
        labels["n_synthetic"] //= 2
        report["calibrated"]["strata"] = [labels | {"label": label} for label in ("ill", "well")]
    told = copy_rate_change(*reports)
    for stratum in reports[older]["calibrated"]["strata"]:
        del stratum["images_per_patient"], stratum["shares_patients"]
    assert -1 < told[0] < told[1] < 0
    assert copy_rate_change(*reports) == told
    for report in reports:
        for stratum in report["calibrated"]["strata"]:
            stratum.pop("images_per_patient", None)
    even = copy_rate_change(*reports)
    assert told[0] < even[0] < even[1] < told[1]


def test_difference_that_chance_explains_is_not_called_one():
    after = improved(0.5)
    after["calibrated"]["n_copies"] = copies_found()["calibrated"]["n_copies"] + 5

    assert headline(copies_found(), after).startswith("It is not shown that the copy rate changed")


@pytest.mark.parametrize(
    ("after", "warning"),
    [
        (other("training"), "The training sets differ"),
        (other("validation"), "The validation sets differ"),
        (improved() | {"provenance": improved()["provenance"] | {"encoder_sha256": "00"}}, "The encoders differ"),
        (improved() | {"calibrated": improved()["calibrated"] | {"alpha": 0.01}}, r"different levels alpha, 0\.05 and"),
    ],
)
def test_other_yardsticks_give_no_interval_and_a_warning(after, warning):
    assert not same_threshold(copies_found(), after)
    assert copy_rate_change(copies_found(), after) is None
    assert [text for text in warnings(copies_found(), after) if re.search(warning, text)]
    assert "their intervals do not overlap" in headline(copies_found(), after)
    (row,) = [
        r
        for r in tables(copies_found(), after)["Synthetic images"]
        if r.name == "Copy rate, overlooked copies not counted"
    ]
    assert row.difference == "intervals do not overlap"


def test_a_set_that_a_filter_left_is_not_compared():
    """Half of the copies were seen and taken out: the rest is flagged as seldom as honest images are, or less."""
    before, after = copies_found(), improved(0)
    after["provenance"]["settings"]["filtered"] = True
    after["calibrated"] |= {"n_copies": 0, "copy_rate": 0.0, "copy_rate_ci": [0.0, 0.004]}
    for pair in ((before, after), (after, before)):
        assert copy_rate_change(*pair) is None
        assert "is not known, as a set is what a filter left" in headline(*pair)
        row = next(r for r in tables(*pair)["Synthetic images"] if r.name.startswith("Copy rate, overlooked"))
        assert row.difference is None
    after["release"] = {}  # judged by a detector that did not filter
    change = copy_rate_change(before, after)
    assert change is not None
    assert change[0] < change[1] < 0


def test_overlapping_intervals_show_no_change():
    before, after = copies_found(), other("validation")
    after["calibrated"]["copy_rate_ci"] = before["calibrated"]["copy_rate_ci"]

    assert headline(before, after).startswith("It is not shown that the copy rate changed: the intervals")


def test_the_same_synthetic_images_are_no_change_of_the_generator():
    assert headline(copies_found(), copies_found()).startswith("Both audits looked at the same synthetic images")
    assert copy_rate_change(copies_found(), copies_found()) is None


def test_further_differences_are_warned_of():
    before, after = copies_found(), improved()
    after["calibrated"]["fdr"]["q"] = 0.1
    after["sets"]["synthetic"]["n_images"] = 500
    after["sets"]["reconstructed_validation"] = after["sets"]["validation"]
    text = " ".join(warnings(before, after))

    assert "different levels q, 0.05 and 0.1" in text
    assert "differ in size, 1,000 and 500 images" in text
    assert "Only one of the audits was calibrated on reconstructions" in text
    before["sets"]["reconstructed_validation"] = before["sets"]["validation"]
    assert "reconstructions by its own autoencoder" not in text
    for report, digest in ((before, "1"), (after, "2")):
        report["provenance"]["image_list_sha256"]["reconstructed_validation"] = digest
    assert "reconstructions by its own autoencoder" in " ".join(warnings(before, after))


def test_what_is_not_known_is_said_and_gives_no_interval():
    assert (
        "had the same training set and validation set and encoder is not known" in warnings(all_null(), improved())[0]
    )
    assert copy_rate_change(all_null(), improved()) is None
    assert "not known" in headline(all_null(), improved())


def test_recalls_are_means_over_strengths():
    before, after = copies_found(), improved()
    for report, values in ((before, (1.0, 0.5)), (after, (0.2, 0.2))):
        report["power"] = [
            {"family": "jpeg", "strength": s, "n": 9, "recall": r, "seen_in_training": False, "whole": True}
            for s, r in zip((95, 10), values, strict=True)
        ]
    rows = {row.name: (said(row.before.value), said(row.after.value)) for row in recalls(before, after) if not row.term}

    assert rows == {"JPEG": ("75 %", "20 %")}


def test_numbers_stand_in_the_column_of_their_report(tmp_path):
    text = said(Page(page_of(copies_found(), improved(), tmp_path)).text)
    counts = [r["calibrated"]["n_copies"] for r in (copies_found(), improved())]

    assert re.search(rf"{counts[0]} of 1,000 \(\d+ %\) 50 would be by chance {counts[1]} of 1,000 ", text)


@pytest.mark.parametrize(("before", "after"), list(itertools.pairwise([*sorted(EXAMPLES), *sorted(EXAMPLES)[::-1]])))
def test_any_two_reports_make_a_whole_page(before, after, tmp_path):
    content = page_of(EXAMPLES[before](), EXAMPLES[after](), tmp_path)
    page = Page(content)

    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert {source for source in page.sources if not source.startswith(("#", "data:"))} == set()
    assert "default-src 'none'" in content
    assert not re.search(r"\bNone\b|\bnan\b|[Uu]ndefined|[{}]", page.text)
    assert "not a privacy guarantee" in page.text
    assert HOSTILE not in content


def test_every_quantity_is_explained_where_it_stands(tmp_path):
    page = Page(page_of(copies_found(), no_copies_found(), tmp_path))

    for quantities in QUANTITIES.values():
        for quantity in quantities:
            assert f"#term-{quantity.term.replace(' ', '-')}" in page.links


def test_reports_are_not_changed(tmp_path):
    before, after = copies_found(), improved()
    kept = copy.deepcopy((before, after))

    page_of(before, after, tmp_path)

    assert (before, after) == kept


def test_command_takes_a_folder_or_a_file_and_names_the_page(tmp_path, capsys):
    for name, report in (("a", copies_found()), ("b", improved())):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps(report), encoding="utf-8")

    arguments = [str(tmp_path / "a"), str(tmp_path / "b" / "report.json"), "--output-dir", str(tmp_path / "out")]
    assert main(["compare", *arguments]) == 0

    assert capsys.readouterr().out.strip() == f"Comparison: {tmp_path / 'out' / 'compare.html'}"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["compare.html"]


def test_report_that_is_missing_is_named_and_nothing_is_written(tmp_path, capsys):
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--output-dir", str(tmp_path / "out")]) == 2

    assert "a: does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
