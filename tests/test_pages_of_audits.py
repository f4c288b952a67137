# SPDX-License-Identifier: Apache-2.0
"""The page reads what an audit writes: real audits, not examples, and no key that they lack."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from made_up_images import smooth_images, write_csv, write_folder
from report_examples import EXAMPLES

from monai_memorization.auditing import audit
from monai_memorization.reporting.pages import write_report_page

N = 40
# sections that only a release, and an audit that was asked for it, have
EXTRA = {"release", "fidelity"}
LABELS = ["ill"] * 10 + ["well"] * 30


class Watched(dict):
    """A report that writes down which of its keys were asked for in vain."""

    def __init__(self, content: Mapping[str, Any], missing: set[str], path: str = "") -> None:
        super().__init__({key: watch(value, missing, f"{path}{key}.") for key, value in content.items()})
        self.missing, self.path = missing, path

    def __missing__(self, key: str) -> Any:
        self.missing.add(f"{self.path}{key}")
        raise KeyError(key)

    def get(self, key: str, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default


def watch(value: Any, missing: set[str], path: str = "") -> Any:
    if isinstance(value, Mapping):
        return Watched(value, missing, path)
    return [watch(inner, missing, path) for inner in value] if isinstance(value, (list, tuple)) else value


def write_sets(folder: Path, n: int, copies: int, labels: list[str] | None = None) -> dict[str, Path]:
    """Three sets listed with patients, the first synthetic images copies of the first training images."""
    training, validation, synthetic = (smooth_images(n, seed=seed) for seed in (1, 2, 3))
    synthetic[:copies] = training[:copies]
    images = {"training": training, "validation": validation, "synthetic": synthetic}
    return {
        role: write_csv(
            write_folder(images[role], folder / role), folder / f"{role}.csv", [f"{role}{i}" for i in range(n)], labels
        )
        for role in images
    }


def copied(folder: Path) -> dict[str, Any]:
    """Half of the set is copied."""
    return write_sets(folder, N, copies=N // 2)


def labelled(folder: Path) -> dict[str, Any]:
    """Calibrated on reconstructions and within label, with too few patients of one."""
    reconstructed = write_folder(smooth_images(N, seed=4), folder / "reconstructed")
    return write_sets(folder, N, copies=0, labels=LABELS) | {
        "reconstructed_validation": reconstructed,
        "reconstructed_training": reconstructed,
    }


def tiny(folder: Path) -> dict[str, Any]:
    """Folders of six images: no patients, too few to measure the gap, nothing that can be flagged."""
    return {role: folder / role for role in write_sets(folder, 6, copies=0)}


@pytest.fixture(scope="module", params=[copied, labelled, tiny], ids=lambda given: given.__name__)
def report(request, encoder_file, tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp(request.param.__name__)
    return audit(**request.param(folder), output_dir=folder / "out", encoder=encoder_file)


def test_audits_differ_in_what_the_page_shows(report, request):
    status = report["verdict"]["status"]

    assert status == ("copies_found" if "copied" in request.node.name else "inconclusive")
    assert ("gap_not_measured" in report["verdict"]["reasons"]) == ("tiny" in request.node.name)


def test_every_key_that_the_page_reads_is_in_the_report(report, tmp_path):
    missing: set[str] = set()

    write_report_page(Watched(report, missing), tmp_path / "report.html")

    assert missing == {"release"}


def test_a_key_that_an_audit_lacks_would_be_noticed(report, tmp_path):
    missing: set[str] = set()
    lacking = copy.deepcopy(report)
    del lacking["sets"]["training"]["n_ignored"], lacking["power_summary"]["working_recall"]

    write_report_page(Watched(lacking, missing), tmp_path / "report.html")

    assert missing == {"release", "sets.training.n_ignored", "power_summary.working_recall"}


FREE = ("provenance.versions", "provenance.seconds", "provenance.settings", "provenance.image_list_sha256")


def paths(value: Any, path: str = "") -> Iterator[str]:
    """Paths of all keys; the items of a list share one."""
    for inner in value if isinstance(value, (list, tuple)) else ():
        yield from paths(inner, path)
    for key, inner in value.items() if isinstance(value, Mapping) else ():
        name = f"{path}.{key}".lstrip(".")
        yield name
        if name not in FREE:
            yield from paths(inner, name)


@pytest.mark.parametrize("name", sorted(EXAMPLES.keys() - {"all_null"}))
def test_examples_have_just_the_keys_of_a_real_report(name, report):
    example, real = (
        {
            path
            for path in paths(content)
            if not path.startswith("sets.reconstructed_") and path.split(".")[0] not in EXTRA
        }
        for content in (EXAMPLES[name](), report)
    )
    assert example == real


def test_page_of_an_audit_shows_no_value_of_the_program(report, tmp_path):
    write_report_page(report, tmp_path / "report.html")

    text = re.sub(r"<(style|svg)\b.*?</\1>|<[^>]*>", " ", (tmp_path / "report.html").read_text(), flags=re.DOTALL)
    assert not re.search(r"\b(None|nan|inf)\b|[Uu]ndefined|[{}]", text)
