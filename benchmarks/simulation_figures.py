# SPDX-License-Identifier: Apache-2.0
"""Figures and claims of the simulation study, from its stored numbers.

    python benchmarks/simulation_figures.py --input docs/data/simulation.json --output-dir docs/figures

Writes five SVG files, the same for the same numbers, and `claims.md`: what the study was to show, the worst of its
cells and whether it holds. Bars are two standard errors either side.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

Entry = dict[str, Any]

SETTINGS = {
    (100, 1, 0.0): ("100 patients, one image", "#0072b2", "o"),
    (100, 3, 0.5): ("100 patients, three images", "#c04f00", "s"),
    (58, 3, 0.9): ("58 patients, three alike", "#00795c", "^"),
    (400, 1, 0.0): ("400 patients, one image", "#8a4a7d", "D"),
}
COVERAGE_NEEDED = 0.93


def main() -> None:
    """Draw the figures and write the claims."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, required=True, help="JSON that simulation.py wrote")
    parser.add_argument("--output-dir", type=Path, required=True)
    arguments = parser.parse_args()
    entries = json.loads(arguments.input.read_text())["cells"]
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    for name, (draw, size) in FIGURES.items():
        write_svg(arguments.output_dir / f"{name}.svg", size, partial(draw, entries=entries))
    (arguments.output_dir / "claims.md").write_text(claims(entries), encoding="utf-8")


def write_svg(path: Path, size: tuple[float, float], draw: Callable[[Figure], None]) -> None:
    """Draw a figure as SVG, the same file for the same numbers."""
    style = {"svg.fonttype": "none", "svg.hashsalt": path.stem, "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.style.context(["default", style]):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        FigureCanvasSVG(figure).print_svg(path, metadata={"Date": None})


def draw_false_alarms(figure: Figure, entries: list[Entry]) -> None:
    """Nothing copied: what both protocols flag as the synthetic set grows."""
    calibrated, paper = figure.subplots(1, 2)
    honest = [e for e in entries if e["cell"]["study"] == "audit" and e["cell"]["copy_share"] == 0]
    for setting, (label, color, marker) in SETTINGS.items():
        cells = sorted((e for e in honest if setting_of(e) == setting), key=lambda e: e["cell"]["ratio"])
        for axes, name in ((calibrated, "false_alarm_rate"), (paper, "paper_mem_rate")):
            errorbar(axes, [e["cell"]["ratio"] for e in cells], cells, name, label, color, marker)
        level = cells[0]["mean_and_se"]["attained"][0]
        calibrated.axhline(level, color=color, linewidth=1, linestyle=":")
    ratios = np.geomspace(0.1, 50, 100)
    paper.plot(ratios, 1 - 0.95**ratios, color="black", linewidth=1, linestyle="--", label="1 − 0.95^(n_S/n_V)")
    calibrated.set(title="Calibrated: honest images flagged", xscale="log", ylim=(0, 0.08), xlabel="n_S / n_V")
    paper.set(title="Paper: training images above τ", xscale="log", ylim=(0, 1), xlabel="n_S / n_V")
    for axes in (calibrated, paper):
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    paper.legend(frameon=False, fontsize=8)


def draw_copy_rate(figure: Figure, entries: list[Entry]) -> None:
    """Planted copies: estimates less truth, copies all seen and only some seen."""
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, noise, title in ((left, 0.2, "All copies seen"), (right, 0.7, "73 % of the copies seen")):
        cells = [e for e in entries if is_planted(e) and setting_of(e) == (100, 1, 0.0)]
        cells = [e for e in cells if e["cell"]["copy_noise"] == noise and e["cell"]["ratio"] == 5]
        shares = [e["cell"]["copy_share"] for e in cells]
        for name, label, color, marker in (
            ("copy_rate_error", "copy_rate", "#0072b2", "o"),
            ("copy_rate_at_power_error", "copy_rate_at_power", "#00795c", "s"),
        ):
            errorbar(axes, shares, cells, name, label, color, marker)
        paper = [e["mean_and_se"]["paper_copy_rate"][0] - share for e, share in zip(cells, shares, strict=True)]
        axes.plot(shares, paper, color="#c04f00", marker="^", label="paper's N_copies / n_S")
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set(title=title, xlabel="planted share of copies")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(PercentFormatter(1, decimals=0))
    left.set_ylabel("estimate less truth")
    right.legend(frameon=False, fontsize=8)


def draw_coverage(figure: Figure, entries: list[Entry]) -> None:
    """Coverage of every interval in every cell."""
    axes = figure.subplots()
    rows = [(label, list(values_of(entries, name))) for name, label in INTERVALS.items()]
    for i, (_, values) in enumerate(rows):
        spread = np.linspace(-0.25, 0.25, len(values)) if len(values) > 1 else [0]
        axes.plot([value for value, _ in values], i + np.asarray(spread), ".", color="#0072b2")
    axes.axvline(0.95, color="black", linewidth=1)
    axes.axvline(COVERAGE_NEEDED, color="#c04f00", linewidth=1, linestyle="--")
    axes.set(xlabel="share of intervals that hold the truth; dashed: the line of 93 %", xlim=(0.92, 1.002))
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def draw_discoveries(figure: Figure, entries: list[Entry]) -> None:
    """False discoveries of the FDR list and of the paper protocol, and the share of copies listed."""
    false, listed = figure.subplots(1, 2)
    for setting, (label, color, marker) in list(SETTINGS.items())[:2]:
        cells = [e for e in entries if is_planted(e) and setting_of(e) == setting]
        cells = [e for e in cells if e["cell"]["ratio"] == 5 and e["cell"]["copy_noise"] == 0.2]
        shares = [e["cell"]["copy_share"] for e in cells]
        errorbar(false, shares, cells, "false_discovery_proportion", f"FDR list, {label}", color, marker)
        errorbar(false, shares, cells, "paper_false_discovery_proportion", f"paper, {label}", color, marker, "--")
        errorbar(listed, shares, cells, "recall_of_fdr_list", label, color, marker)
    false.axhline(0.05, color="black", linewidth=0.8, linestyle=":")
    false.set(title="False share of what is called a copy", xlabel="planted share of copies", ylim=(0, 1))
    listed.set(title="Copies that are on the FDR list", xlabel="planted share of copies")
    for axes in (false, listed):
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.legend(frameon=False, fontsize=8)


def draw_wrong_verdicts(figure: Figure, entries: list[Entry]) -> None:
    """Nothing copied, thresholds known: how often the interval in use, and the bootstrap given up, exceed 0."""
    axes = figure.subplots()
    cells = [e for e in entries if e["cell"]["study"] == "similarity" and e["cell"]["copy_share"] == 0]
    cells = [e for e in cells if e["cell"]["images_per_patient"] == 1]
    patients = [e["cell"]["n_patients"] for e in cells]
    errorbar(axes, patients, cells, "excess", "interval in use", "#0072b2", "o")
    errorbar(axes, patients, cells, "bootstrap_excess", "bootstrap that was given up", "#c04f00", "s")
    axes.axhline(0.05, color="black", linewidth=0.8, linestyle=":")
    axes.set(xscale="log", ylim=(0, None), xlabel="validation patients, one image each")
    apart = [n for n in patients if n != 58]  # whose label would lie on that of 60
    axes.set_xticks(apart, [f"{n}" for n in apart])
    axes.set_xticks([], minor=True)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_title("Honest sets called copies by the lower end of copy_rate_ci", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


FIGURES: dict[str, tuple[Callable[[Figure, list[Entry]], None], tuple[float, float]]] = {
    "simulation_false_alarms": (draw_false_alarms, (9, 3.6)),
    "simulation_copy_rate": (draw_copy_rate, (9, 3.6)),
    "simulation_discoveries": (draw_discoveries, (9, 3.6)),
    "simulation_coverage": (draw_coverage, (7, 2.8)),
    "simulation_wrong_verdicts": (draw_wrong_verdicts, (5.5, 3.4)),
}

INTERVALS = {
    "false_alarm_rate_covered": "false_alarm_rate_ci",
    "copy_rate_covered": "copy_rate_ci",
    "share_at_most_noticeable": "noticeable_rate",
    "difference_covered": "difference of copy rates",
    "gap_auc_covered": "gap_auc_ci",
    "count_in_beta_binomial": "beta-binomial count",
}


def claims(entries: list[Entry]) -> str:
    """Say what had to hold, what the worst cell gave, and whether it holds."""
    audits = [e for e in entries if "attained" in e["mean_and_se"]]
    excess = max(distance(e, "false_alarm_rate", e["mean_and_se"]["attained"][0]) for e in audits)
    fdr = max(values_of(entries, "false_discovery_proportion"))
    beyond = max(distance(e, "false_discovery_proportion", 0.05) for e in entries if is_planted(e))
    wrong = max(v for v in values_of([e for e in audits if not e["cell"]["copy_share"]], "excess"))
    paper = [e for e in entries if e["cell"]["study"] == "audit" and setting_of(e) == (100, 1, 0.0)]
    ends = [mean_at(paper, "paper_mem_rate", ratio) for ratio in (1, 50)]
    rows = [
        (
            "mean false-alarm rate at most the attained level plus three standard errors",
            f"{excess:.1f} standard errors above",
            excess <= 3,
        ),
        (
            "realised FDR at most q = 5 % plus three standard errors",
            f"{fdr[0]:.1%} ({fdr[1]:.1%})",
            beyond <= 3,
        ),
        ("honest set called copies by copy_rate_ci, at most 5 %", f"{wrong[0]:.1%} ({wrong[1]:.1%})", wrong[0] <= 0.05),
    ]
    for name, label in INTERVALS.items():
        value, error = min(values_of(entries, name))
        rows.append((f"coverage of {label} at least 93 %", f"{value:.1%} ({error:.1%})", value >= COVERAGE_NEEDED))
    near = abs(ends[0] - 0.05) < 0.01 and abs(ends[1] - 0.92) < 0.01
    found = f"{ends[0]:.1%} to {ends[1]:.1%}"
    rows.append(("paper protocol, nothing copied: 5 % of T at n_S = n_V, 92 % at 50 n_V", found, near))
    lines = ["| what had to hold, in every cell | worst cell (standard error) | holds |", "|---|---|---|"]
    lines += [f"| {claim} | {found} | {'yes' if holds else 'no'} |" for claim, found, holds in rows]
    return "\n".join(lines) + "\n"


def setting_of(entry: Entry) -> tuple[int, int, float]:
    """Patients, images per patient and their correlation."""
    cell = entry["cell"]
    return cell["n_patients"], cell["images_per_patient"], cell["correlation"]


def is_planted(entry: Entry) -> bool:
    """Whether the cell has a whole audit with planted copies."""
    return entry["cell"]["study"] == "audit" and entry["cell"]["copy_share"] > 0


def values_of(entries: Iterable[Entry], name: str) -> Iterable[tuple[float, float]]:
    """Mean and standard error of a quantity in every cell that has it."""
    return [tuple(e["mean_and_se"][name]) for e in entries if name in e["mean_and_se"]]


def distance(entry: Entry, name: str, limit: float) -> float:
    """How far a mean lies above a limit, in standard errors; 0 at or below it."""
    mean, error = entry["mean_and_se"][name]
    return max(0.0, mean - limit) / error if error else 0.0


def mean_at(entries: Iterable[Entry], name: str, ratio: float) -> float:
    """Mean of a quantity where nothing is copied at a ratio n_S / n_V."""
    (value,) = [
        e["mean_and_se"][name][0] for e in entries if e["cell"]["ratio"] == ratio and e["cell"]["copy_share"] == 0
    ]
    return value


def errorbar(
    axes: Axes, x: list[float], cells: list[Entry], name: str, label: str, color: str, marker: str, line: str = "-"
) -> None:
    """Draw means with two standard errors either side."""
    means, errors = zip(*values_of(cells, name), strict=True)
    axes.errorbar(
        x, means, 2 * np.asarray(errors), label=label, color=color, marker=marker, markersize=4, linewidth=1.2,
        linestyle=line,
    )  # fmt: skip


if __name__ == "__main__":
    main()
