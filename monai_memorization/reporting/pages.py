# SPDX-License-Identifier: Apache-2.0
"""The pages: report.html and compare.html, which may be handed out, and gallery.html, which stays inside."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from torch import Tensor

from monai_memorization.files import write_text
from monai_memorization.reporting import comparison, figures, limits, pictures, reasons, sentences, wording
from monai_memorization.reporting.templating import LINKED, environment
from monai_memorization.statistics.conformal import n_patients_needed
from monai_memorization.statistics.verdict import GAP_ALLOWED, RECALL_NEEDED


def write_report_page(report: Mapping[str, Any], path: Path) -> None:
    """Write report.html: one file that says everything in `report` and nothing else, readable without a network.

    Args:
        report: The dict of `report.json` (design.md section 5). What is null or missing reads "not measured".
        path: File to write.

    Raises:
        InputError: The file cannot be written.
    """
    codes = report["verdict"].get("reasons") or []
    power = report.get("power") or []
    recalls = _recalls(power, report.get("power_summary") or {})
    role = wording.calibration_role(report)
    reconstructed = role == "reconstructed_validation"
    page = environment().get_template("report.html.j2")
    html = page.render(
        report=report,
        label=sentences.verdict_label(report),
        sentence=sentences.verdict_sentence(report),
        deciding=[reasons.reason(report, code) for code in codes if code != "no_patient_ids"],
        caveats=[reasons.reason(report, code) for code in codes if code == "no_patient_ids"] + limits.mistakes(report),
        limits=limits.limits(report),
        by_chance=sentences.false_alarms_expected(report),
        near_identical_by_chance=sentences.near_identical_by_chance(report),
        calibration=report["sets"][role],
        reconstructed=reconstructed,
        labelled=wording.is_labelled(report),
        weakest=wording.fewest_patients(report),
        patients_needed=n_patients_needed(report["calibrated"]["alpha"]),
        recall_needed=RECALL_NEEDED,
        gap_allowed=GAP_ALLOWED,
        figures=_figures(report, "reconstructed" if reconstructed else "validation"),
        recalls=recalls,
        n_planted=_n_planted(power),
        n_levels=max((len(cells) for group in recalls for cells in group["families"].values()), default=0),
    )
    write_text(path, html)


def write_comparison_page(before: Mapping[str, Any], after: Mapping[str, Any], path: Path) -> None:
    """Write compare.html: two reports side by side, with what can be said of the difference.

    Args:
        before: The dict of one `report.json`, as `read_report` returns it.
        after: That of the other.
        path: File to write.

    Raises:
        InputError: The file cannot be written.
    """
    tables, recalls = comparison.tables(before, after), comparison.recalls(before, after)
    html = (
        environment()
        .get_template("compare.html.j2")
        .render(
            audits={
                name: {
                    "report": report,
                    "label": sentences.verdict_label(report),
                    "sentence": sentences.verdict_sentence(report),
                }
                for name, report in (("Before", before), ("After", after))
            },
            headline=comparison.headline(before, after),
            has_interval=comparison.copy_rate_change(before, after) is not None,
            warnings=comparison.warnings(before, after),
            tables=tables,
            recalls=recalls,
            words=comparison.TERMS.union(LINKED.values())
            | {row.term for rows in (*tables.values(), recalls) for row in rows if row.term},
            figure=_two_histograms(before, after),
            same_threshold=comparison.same_threshold(before, after),
            has_threshold=any(report["calibrated"]["threshold"] is not None for report in (before, after)),
        )
    )
    write_text(path, html)


def _two_histograms(before: Mapping[str, Any], after: Mapping[str, Any]) -> Markup | None:
    first, second = _scores(before), _scores(after)
    if first is None or second is None:
        return None
    reconstructed = all(wording.calibration_role(report) != "validation" for report in (before, after))
    calibration = "reconstructed" if reconstructed else "validation"
    same = comparison.same_threshold(before, after)
    return Markup(figures.two_score_histograms(first, second, same, calibration))


def _scores(report: Mapping[str, Any]) -> figures.ScoreHistogram | None:
    bins = (report.get("distributions") or {}).get("score")
    if not bins:
        return None
    threshold = report["calibrated"]["threshold"]
    return figures.ScoreHistogram(bins["edges"], bins["validation"], bins["synthetic"], threshold)


@dataclass(frozen=True)
class GalleryPair:
    """A synthetic image and the training image nearest or near-identical to it, with their pixels.

    Args:
        synthetic_id: Id of the synthetic image.
        training_id: Id of the training image.
        training_patient_id: Patient of the training image.
        score: Of the synthetic image, in [0, 1].
        p_value: Conformal p-value of the synthetic image.
        copy_candidate: Whether the p-value is at most alpha.
        in_fdr_list: Whether the synthetic image is on the FDR list.
        near_identical: Whether the two agree pixel by pixel.
        synthetic: (C, *spatial) in [0, 1], two or three spatial dimensions.
        training: The same shape and range.
        part: Where the part that matches begins and ends along each axis, as shares of the side; None for the whole.
    """

    synthetic_id: str
    training_id: str
    training_patient_id: str
    score: float
    p_value: float
    copy_candidate: bool
    in_fdr_list: bool
    near_identical: bool
    synthetic: Tensor
    training: Tensor
    part: Sequence[tuple[float, float]] | None = None


def write_gallery_page(pairs: Sequence[GalleryPair], path: Path) -> None:
    """Write gallery.html: pairs side by side, to be confirmed or rejected by a person. It contains patient data.

    Args:
        pairs: The pairs to look at, in any order; shown most similar first.
        path: File to write.

    Raises:
        InputError: The file cannot be written.
    """
    script = environment().get_template("gallery.js").render()
    ordered = sorted(pairs, key=lambda pair: (-pair.score, pair.synthetic_id, pair.training_id))
    html = (
        environment()
        .get_template("gallery.html.j2")
        .render(
            cards=[{"pair": pair, "planes": _planes(pair)} for pair in ordered],
            content_hash=_content_hash(ordered),
            difference_range=pictures.DIFFERENCE_RANGE,
            script=Markup(script),
            script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )
    )
    write_text(path, html)


def _planes(pair: GalleryPair) -> list[dict[str, Any]]:
    both = list(zip(pictures.planes(pair.synthetic), pictures.planes(pair.training), strict=True))
    frames = [] if pair.part is None else pictures.frames(pair.part)
    return [
        {
            "height": synthetic.shape[2],
            "width": synthetic.shape[3],
            "n_slices": len(synthetic),
            "synthetic": pictures.picture(pictures.strip(synthetic)),
            "training": pictures.picture(pictures.strip(training)),
            "difference": pictures.difference_picture(pictures.strip(synthetic), pictures.strip(training)),
            "frame": frames[i * len(frames) // len(both)] if frames else None,
        }
        for i, (synthetic, training) in enumerate(both)
    ]


def _content_hash(pairs: Sequence[GalleryPair]) -> str:
    """Tell one gallery from another, so that the decisions a browser keeps are never shown with other pairs."""
    content = [(pair.synthetic_id, pair.training_id, f"{pair.score:.6f}", f"{pair.p_value:.6f}") for pair in pairs]
    return hashlib.sha256(repr(content).encode()).hexdigest()


def _figures(report: Mapping[str, Any], calibration: str) -> dict[str, Markup]:
    """Draw what the report has numbers for; the SVG comes from matplotlib and numbers only, hence safe."""
    distributions, calibrated = report.get("distributions") or {}, report["calibrated"]
    svg = {}
    if score := distributions.get("score"):
        svg["score"] = figures.score_histogram(
            score["edges"],
            score["validation"],
            score["synthetic"],
            calibrated.get("threshold"),
            calibration,
        )
    if p_values := distributions.get("p_values"):
        svg["p_values"] = figures.p_value_histogram(p_values["edges"], p_values["synthetic"], calibrated.get("alpha"))
    if sorted_p_values := distributions.get("sorted_p_values"):
        q = (calibrated.get("fdr") or {}).get("q")
        svg["sorted_p_values"] = figures.sorted_p_values(sorted_p_values, q)
    if curve := distributions.get("accumulation"):
        svg["accumulation"] = figures.accumulation_curve(
            curve["n_drawn"], curve["synthetic"], curve["validation"], calibration
        )
    return {name: Markup(element) for name, element in svg.items()}


def _recalls(power: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Arrange the recalls in groups, each with the mean that the report gives and the cells of its families."""
    groups: dict[str, dict[str, list[Mapping[str, Any]]]] = {"seen": {}, "unseen": {}, "partial": {}}
    for cell in power:
        groups[wording.recall_group(cell)].setdefault(cell["family"], []).append(cell)
    return [{"name": name, "mean": summary.get(name), "families": cells} for name, cells in groups.items() if cells]


def _n_planted(power: Sequence[Mapping[str, Any]]) -> str | None:
    """Say how many copies were planted in each cell of the recall table: 25, or 20 to 25."""
    numbers = sorted({cell["n"] for cell in power if cell.get("n") is not None})
    return " to ".join(f"{n:,}" for n in dict.fromkeys([numbers[0], numbers[-1]])) if numbers else None
