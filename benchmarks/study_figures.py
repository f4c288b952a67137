# SPDX-License-Identifier: Apache-2.0
"""Figure and table of a study, from the JSON of its runs.

    python benchmarks/study_figures.py OUT --output docs/figures/study_cxr64.svg

OUT is what study.py was given. Writes the SVG, in which each run is a point with its 95 % interval, and a Markdown
table beside it, with means over the seeds that have run. What has not run is in neither.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from simulation_figures import write_svg

from monai_memorization.files import write_text

Row = dict[str, Any]
PROTOCOLS = {"calibrated": ("calibrated", "#c04f00", "o"), "paper_protocol": ("paper", "#0072b2", "s")}
SHARES = {"copy_rate": "copies, of the synthetic images", "mem_rate": "memorized, of the training images"}
FIDELITY = {"frechet_distance": "Fréchet distance", "ms_ssim": "MS-SSIM of pairs"}
HEADS = (
    *("cell", "seeds", "n_T", "training, min", "copies", "paper", "memorized", "paper", "copies, n_S = n_T", "paper"),
    *(
        "memorized, n_S = n_T",
        "paper",
        "Fréchet distance (real)",
        "precision (real)",
        "recall (real)",
        "MS-SSIM (real)",
    ),
    "verdicts",
)


def main(arguments: list[str] | None = None) -> None:
    """Draw what has run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder that study.py wrote its JSON to")
    parser.add_argument("--output", type=Path, required=True, help="SVG; the table is beside it")
    options = parser.parse_args(arguments)
    cells = read_cells(options.study)
    if not cells:
        parser.error(f"{options.study}: holds no <cell>_<seed>.json; run study.py first")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_svg(options.output, (12, 1.4 + 0.4 * len(cells)), partial(draw, cells=cells))
    write_text(options.output.with_suffix(".md"), table(cells))


def read_cells(folder: Path) -> dict[str, list[Row]]:
    """Read the runs of each cell, the cells in the order in which they first ran."""
    rows = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("*_*.json")]
    cells: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row["provenance"]["created"]):
        cells.setdefault(row["cell"], []).append(row)
    return cells


def draw(figure: Figure, cells: dict[str, list[Row]]) -> None:
    """Draw copies and memorized images of both protocols, and beside them how like real images the set is."""
    panels = figure.subplots(1, 4, sharey=True, width_ratios=(1.3, 1.3, 1, 1))
    names = {name: label for group in (SHARES, FIDELITY) for name, label in group.items()}
    for axes, (name, label) in zip(panels, names.items(), strict=True):
        for place, rows in enumerate(cells.values()):
            for i, row in enumerate(rows):
                y = place + 0.2 * (i - (len(rows) - 1) / 2)
                if name in SHARES:
                    draw_shares(axes, row, name, y)
                else:
                    axes.plot(row["fidelity"][name], y, "o", color="0.2", ms=4)
                    axes.plot(row["fidelity"][f"{name}_real"], y, "|", color="#00795c", ms=7)
        axes.set_xlabel(label)
        axes.grid(axis="x", color="0.9")
    for axes in panels[:2]:
        axes.set_xlim(-0.02, 1.02)
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    panels[0].set_yticks(range(len(cells)), [name.replace("_", " ") for name in cells])
    panels[0].set_ylim(len(cells) - 0.5, -0.5)
    handles = [axes_line(panels[0], color, marker) for _, color, marker in PROTOCOLS.values()]
    handles += [axes_line(panels[0], "0.2", "o"), axes_line(panels[0], "#00795c", "|")]
    labels = [*(f"{label}, 95 % interval" for label, _, _ in PROTOCOLS.values()), "synthetic", "other real images"]
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=9)


def draw_shares(axes: Axes, row: Row, name: str, y: float) -> None:
    """Draw a share by both protocols with its interval."""
    for shift, (protocol, (_, color, marker)) in zip((-0.04, 0.04), PROTOCOLS.items(), strict=True):
        axes.plot(row[protocol][f"{name}_ci"], [y + shift] * 2, color=color, lw=1)
        axes.plot(row[protocol][name], y + shift, marker, color=color, ms=4)


def axes_line(axes: Axes, color: str, marker: str) -> Any:
    """Return a handle for the legend."""
    return axes.plot([], [], marker, color=color, ms=5)[0]


def table(cells: dict[str, list[Row]]) -> str:
    """Write means over the seeds; in parentheses the lowest and highest end of their intervals, or real images."""
    lines = ["| " + " | ".join(HEADS) + " |", "|" + "---|" * len(HEADS)]
    for cell, rows in cells.items():
        parts = [cell.replace("_", " "), ", ".join(str(row["seed"]) for row in rows)]
        parts.append(f"{rows[0]['sets']['training']['n_images']}")
        parts.append(f"{mean(row['training_seconds'] / 60 for row in rows):.1f}")
        for group in (rows, [row["equal_sizes"] for row in rows]):
            parts += [share(group, protocol, name) for name in SHARES for protocol in PROTOCOLS]
        for name in ("frechet_distance", "distribution_precision", "distribution_recall", "ms_ssim"):
            values = [mean(row["fidelity"][key] for row in rows) for key in (name, f"{name}_real")]
            parts.append(f"{values[0]:.3f} ({values[1]:.3f})")
        parts.append(", ".join(row["verdict"]["status"].replace("_", " ") for row in rows))
        lines.append("| " + " | ".join(parts) + " |")
    return "\n".join(lines) + "\n"


def share(rows: Sequence[Row], protocol: str, name: str) -> str:
    """Spell a share of several runs in percent, with the reach of their intervals."""
    low, high = zip(*(row[protocol][f"{name}_ci"] for row in rows), strict=True)
    return f"{mean(row[protocol][name] for row in rows):.1%} ({min(low):.1%} to {max(high):.1%})".replace("%", " %")


def mean(values: Iterable[float]) -> float:
    """Return the mean."""
    listed = list(values)
    return sum(listed) / len(listed)


if __name__ == "__main__":
    main()
