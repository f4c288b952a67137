# SPDX-License-Identifier: Apache-2.0
"""Figures of the report as SVG text: plain numbers in, one `<svg>` element out."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from monai_memorization.reporting.formats import correlation

# Okabe and Ito's blue and vermilion: told apart by colour-blind readers, and in grey by filling against line
VALIDATION = "#0072b2"
SYNTHETIC = "#c04f00"
BEFORE = "#00795c"
INK = "#1c2733"
QUIET = "#5b6875"

_STYLE = {
    "svg.fonttype": "none",
    "font.size": 12,
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.fontsize": 11,
    "legend.frameon": False,
    "text.color": INK,
    "xtick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.color": QUIET,
    "ytick.labelcolor": INK,
}


def score_histogram(
    edges: Sequence[float],
    validation: Sequence[float],
    synthetic: Sequence[float],
    threshold: float | None = None,
    calibration: str = "validation",
) -> str:
    """Draw how similar each image is to its nearest training image, validation and synthetic set in one frame.

    Args:
        edges: The n + 1 edges of the bins, scores.
        validation: n counts of validation images.
        synthetic: n counts of synthetic images.
        threshold: Score above which an image is a copy candidate; None where there is none.
        calibration: What the validation images are called in the legend.

    Returns:
        One `<svg>` element, the same text for the same numbers.
    """

    def draw(axes: Axes) -> None:
        axes.stairs(_shares(validation), edges, fill=True, color=VALIDATION, alpha=0.3)
        axes.stairs(_shares(validation), edges, color=VALIDATION, linewidth=1, label=f"{calibration} → training")
        axes.stairs(_shares(synthetic), edges, color=SYNTHETIC, linewidth=2, label="synthetic → training")
        if threshold is not None:
            axes.axvline(
                threshold, color=INK, linewidth=1.5, linestyle="--", label=f"threshold {correlation(threshold)}"
            )
        axes.set(xlabel="score (0: like everybody, 1: the same picture)", ylabel="share of the set")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(FuncFormatter(_percent))

    return _svg(draw, f"Histogram of the scores, for {calibration} and for synthetic images.")


@dataclass(frozen=True)
class ScoreHistogram:
    """Scores of one audit, counted in bins.

    Args:
        edges: The n + 1 edges of the bins, scores.
        validation: n counts of validation images.
        synthetic: n counts of synthetic images.
        threshold: Score above which an image is a copy candidate; None where there is none.
    """

    edges: Sequence[float]
    validation: Sequence[float]
    synthetic: Sequence[float]
    threshold: float | None = None


def two_score_histograms(
    before: ScoreHistogram, after: ScoreHistogram, same_threshold: bool, calibration: str = "validation"
) -> str:
    """Draw the scores of two audits in one frame.

    Bins of two audits differ in width, so each bar shows the share of its set per 0.01 of the score.

    Args:
        before: First audit.
        after: Second audit.
        same_threshold: Whether both used the same validation images and encoder; these are then drawn once.
        calibration: What the validation images are called in the legend.

    Returns:
        One `<svg>` element, the same text for the same numbers.
    """
    audits = [("after", after, "-", SYNTHETIC)] if same_threshold else []
    audits = audits or [("before", before, ":", BEFORE), ("after", after, "--", SYNTHETIC)]

    def draw(axes: Axes) -> None:
        for name, audit, style, _ in audits:
            which = "" if same_threshold else f" {name}"
            heights = _densities(audit.validation, audit.edges)
            axes.stairs(heights, audit.edges, fill=True, color=VALIDATION, alpha=0.25)
            axes.stairs(heights, audit.edges, color=VALIDATION, linestyle=style, label=f"{calibration}{which}")
        axes.stairs(_densities(before.synthetic, before.edges), before.edges, color=BEFORE, label="synthetic before")
        axes.stairs(
            _densities(after.synthetic, after.edges), after.edges, color=SYNTHETIC, linewidth=2, label="synthetic after"
        )
        for name, audit, _, color in audits:
            if audit.threshold is not None:
                which, color = ("", INK) if same_threshold else (f" {name}", color)
                label = f"threshold{which} {correlation(audit.threshold)}"
                axes.axvline(audit.threshold, color=color, linewidth=1.5, linestyle="--", label=label)
        axes.set(xlabel="score (0: like everybody, 1: the same picture)", ylabel="share of the set per 0.01")
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.yaxis.set_major_formatter(FuncFormatter(_percent))

    return _svg(draw, "Histograms of the scores, before and after, in one frame.")


def p_value_histogram(edges: Sequence[float], synthetic: Sequence[float], alpha: float | None = None) -> str:
    """Draw the p-values of the synthetic images against the flat line that an honest generator would give.

    Args:
        edges: The n + 1 edges of the bins, in [0, 1].
        synthetic: n counts of synthetic images.
        alpha: Level at or below which an image is a copy candidate.

    Returns:
        One `<svg>` element, the same text for the same numbers.
    """

    def draw(axes: Axes) -> None:
        axes.stairs(_shares(synthetic), edges, fill=True, color=SYNTHETIC, alpha=0.3)
        axes.stairs(_shares(synthetic), edges, color=SYNTHETIC, linewidth=1.5, label="synthetic images")
        widths = np.diff(edges) / (edges[-1] - edges[0])
        axes.stairs(widths, edges, color=VALIDATION, linewidth=1.5, baseline=None, label="if nothing were copied")
        if alpha is not None:
            axes.axvline(alpha, color=INK, linewidth=1.5, linestyle="--", label=f"α = {alpha:g}")
        axes.set(xlabel="p-value", ylabel="share of the set", xlim=(edges[0], edges[-1]))
        axes.yaxis.set_major_formatter(FuncFormatter(_percent))

    return _svg(draw, "Histogram of the p-values of the synthetic images, with the flat line expected without copying.")


def sorted_p_values(p_values: Sequence[float], q: float | None = None) -> str:
    """Draw sorted p-values against their rank, with the line of Benjamini and Hochberg under which the FDR list lies.

    Both axes are logarithmic: an honest generator then gives the diagonal, and the line is parallel to it.

    Args:
        p_values: Quantiles of the p-values, ascending, in (0, 1].
        q: False discovery rate of the list.

    Returns:
        One `<svg>` element, the same text for the same numbers.
    """
    share = (np.arange(len(p_values)) + 1) / len(p_values)
    ends = np.array([share[0], 1])

    def draw(axes: Axes) -> None:
        axes.plot(share, p_values, color=SYNTHETIC, linewidth=2, label="synthetic images")
        axes.plot(ends, ends, color=VALIDATION, linewidth=1.5, label="if nothing were copied")
        if q is not None:
            axes.plot(ends, q * ends, color=INK, linewidth=1.5, linestyle="--", label=f"FDR line, q = {q:g}")
        axes.set(xscale="log", yscale="log", xlabel="rank, as a share of the set", ylabel="p-value")
        # the line goes on below the least p-value, where nothing can reach it
        axes.set(xlim=(share[0], 1.1), ylim=(p_values[0] / 2, 1.2))
        axes.xaxis.set_major_formatter(FuncFormatter(_percent))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())

    return _svg(
        draw, "Sorted p-values of the synthetic images against their rank, with the line below which the list lies."
    )


def accumulation_curve(
    n_drawn: Sequence[float],
    synthetic: Sequence[float],
    validation: Sequence[float],
    calibration: str = "validation",
) -> str:
    """Draw how many training images have been matched after n images, synthetic and validation.

    Args:
        n_drawn: Numbers of images drawn, ascending.
        synthetic: Training images matched by a copy candidate among so many synthetic images.
        validation: The same of validation images; shorter where there are fewer of them.
        calibration: What the validation images are called in the legend.

    Returns:
        One `<svg>` element, the same text for the same numbers.
    """

    def draw(axes: Axes) -> None:
        axes.plot(n_drawn[: len(validation)], validation, color=VALIDATION, linewidth=2, label=f"{calibration} images")
        axes.plot(n_drawn[: len(synthetic)], synthetic, color=SYNTHETIC, linewidth=2, label="synthetic images")
        axes.set(xlabel="images drawn", ylabel="training images matched", xlim=(0, None))
        axes.set(ylim=(0, max(1, *axes.get_ylim())))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(6, integer=True))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))

    return _svg(draw, "Training images matched by copy candidates against the number of images drawn.")


def _percent(share: float, _: int | None = None) -> str:
    """Label a tick, with as many digits as its place has: 5%, 7.5%."""
    return f"{100 * share:g}%"


def _shares(counts: Sequence[float]) -> NDArray[np.float64]:
    return np.asarray(counts, dtype=np.float64) / (sum(counts) or 1)


def _densities(counts: Sequence[float], edges: Sequence[float]) -> NDArray[np.float64]:
    """Share of the set per 0.01 of the score."""
    return 0.01 * _shares(counts) / np.diff(edges)


def _svg(draw: Callable[[Axes], None], label: str) -> str:
    """Run `draw` on empty axes; `label` is read out to those who cannot see the figure."""
    with matplotlib.style.context(["default", _STYLE, {"svg.hashsalt": label}]):
        # 360 units wide: text of 12 units stays readable on a phone, where one unit is a little less than a pixel
        figure = Figure(figsize=(5, 3.7), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        figure.legend(loc="outside upper left", ncols=2, borderaxespad=0.2, handlelength=1.4)
        text = io.StringIO()
        FigureCanvasSVG(figure).print_svg(text, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inline(text.getvalue()).replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _inline(document: str) -> str:
    """Cut a document down to its `<svg>` element, free to fill the page, with no id that a second figure repeats."""
    element = document[document.index("<svg") :]
    element = re.sub(r'<g id="[^"]*">', "<g>", element)
    return re.sub(r' (?:width|height)="[^"]*pt"', "", element, count=2)
