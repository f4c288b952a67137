# SPDX-License-Identifier: Apache-2.0
"""The two pages: report.html, which may be handed out, and gallery.html, which stays inside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, PackageLoader
from markupsafe import Markup
from torch import Tensor

from monai_memorization.files import write_text
from monai_memorization.reporting import figures, pictures, wording
from monai_memorization.reporting.glossary import read_glossary


def write_report_page(report: Mapping[str, Any], path: Path) -> None:
    """Write report.html: one file that says everything in `report` and nothing else, readable without a network.

    Args:
        report: The dict of `report.json` (design.md section 5). What is null or missing reads "not measured".
        path: File to write.

    Raises:
        InputError: The file cannot be written.
    """
    reasons = report["verdict"].get("reasons") or []
    recalls = _recalls(report.get("power") or [], report.get("power_summary") or {})
    page = _environment().get_template("report.html.j2")
    html = page.render(
        report=report,
        label=wording.verdict_label(report),
        sentence=wording.verdict_sentence(report),
        deciding=[wording.reason(report, code) for code in reasons if code != "no_patient_ids"],
        caveats=[wording.reason(report, code) for code in reasons if code == "no_patient_ids"],
        limits=wording.limits(report),
        by_chance=wording.false_alarms_expected(report),
        n_patients=wording.validation_patients(report),
        figures=_figures(report),
        recalls=recalls,
        n_levels=max((len(cells) for group in recalls for _, cells in group["families"]), default=0),
    )
    write_text(path, html)


def _figures(report: Mapping[str, Any]) -> dict[str, Markup]:
    """Draw what the report has numbers for; the SVG comes from matplotlib and numbers only, hence safe."""
    distributions, calibrated = report.get("distributions") or {}, report["calibrated"]
    svg = {}
    if similarity := distributions.get("similarity"):
        tau = (report.get("paper_protocol") or {}).get("tau")
        svg["similarity"] = figures.similarity_histogram(
            similarity["edges"], similarity["validation"], similarity["synthetic"], calibrated.get("threshold"), tau
        )
    if p_values := distributions.get("p_values"):
        svg["p_values"] = figures.p_value_histogram(p_values["edges"], p_values["synthetic"], calibrated.get("alpha"))
    if sorted_p_values := distributions.get("sorted_p_values"):
        q = (calibrated.get("fdr") or {}).get("q")
        svg["sorted_p_values"] = figures.sorted_p_values(sorted_p_values, q)
    if curve := distributions.get("accumulation"):
        svg["accumulation"] = figures.accumulation_curve(curve["n_drawn"], curve["synthetic"], curve["validation"])
    return {name: Markup(element) for name, element in svg.items()}


def _recalls(power: Iterable[Mapping[str, Any]], summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Arrange the recalls in two groups, seen and unseen in training, each a list of families with their strengths."""
    power = list(power)
    groups = []
    for name, key, seen in (("Seen by the encoder in training", "seen", True), ("Never seen", "unseen", False)):
        cells = [cell for cell in power if bool(cell.get("seen_in_training")) is seen]
        families: dict[str, list[Mapping[str, Any]]] = {}
        for cell in cells:
            families.setdefault(str(cell["family"]), []).append(cell)
        if cells:
            groups.append({"name": name, "mean": summary.get(key), "families": list(families.items())})
    return groups


def _entries(mapping: Any) -> Iterable[tuple[Any, Any]]:
    return mapping.items() if isinstance(mapping, Mapping) else ()


def _tint(recall: Any) -> str:
    """Shade a cell by its recall, white at 0."""
    return f"rgb(0 114 178 / {0.45 * recall:.2f})" if isinstance(recall, (int, float)) else "none"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("monai_memorization.reporting"),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"glossary": read_glossary(), "say": wording.say}
    for function in (
        wording.count,
        wording.percent,
        wording.percent_interval,
        wording.decimal,
        wording.decimal_interval,
        wording.duration,
        wording.plain,
        wording.words,
        wording.size,
        _entries,
        _tint,
    ):
        environment.filters[function.__name__.lstrip("_")] = function
    return environment
