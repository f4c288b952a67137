# SPDX-License-Identifier: Apache-2.0
"""Figure and table of a study, from the JSON of its runs.

    python benchmarks/study_figures.py OUT --output docs/figures/study_cxr64.svg

OUT is what study.py was given. Writes the SVG, in which each run is a point with its 95 % interval, and Markdown
tables beside it, with means over the seeds that have run. What has not run is in neither.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
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
FIDELITY_HEADS = ("cell", "training, min", "Fréchet distance", "precision", "recall", "MS-SSIM")


def main(arguments: list[str] | None = None) -> None:
    """Draw what has run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="folder that study.py wrote its JSON to")
    parser.add_argument("--output", type=Path, required=True, help="SVG; the tables, .md, are beside it")
    options = parser.parse_args(arguments)
    cells = read_cells(options.study)
    if not cells:
        parser.error(f"{options.study}: holds no <cell>_<seed>.json; run study.py first")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_svg(options.output, (12, 1.4 + 0.4 * len(cells)), partial(draw, cells=cells))
    write_text(options.output.with_suffix(".md"), tables(cells))


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


def tables(cells: dict[str, list[Row]]) -> str:
    """Write what was counted in all synthetic images, in as many as training images, and the fidelity."""
    equal = {cell: [row | row["equal_sizes"] for row in rows] for cell, rows in cells.items()}
    heads = ["cell", "seeds", "n_T", "n_S"]
    heads += [f"{label} ({title})" for label in ("copies", "memorized") for title, _, _ in PROTOCOLS.values()]
    parts = [
        "Means over seeds; in parentheses the lowest and highest end of their 95 % intervals; for the paper protocol "
        "also what it counts where nothing is copied.\n",
        markdown([*heads, "verdicts"], [counts_of(cell, rows) for cell, rows in cells.items()]),
        "The same with as many synthetic as training images.\n",
        markdown([*heads, "verdicts"], [counts_of(cell, rows) for cell, rows in equal.items()]),
        "Fidelity; in parentheses other real images in the place of the synthetic ones.\n",
        markdown(FIDELITY_HEADS, [fidelity_of(cell, rows) for cell, rows in cells.items()]),
    ]
    return "\n".join(parts)


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Spell a table in Markdown."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def counts_of(cell: str, rows: list[Row]) -> list[str]:
    """Spell the shares of a cell by both protocols."""
    sets, verdicts = rows[0]["sets"], Counter(row["verdict"]["status"].replace("_", " ") for row in rows)
    parts = [cell.replace("_", " "), ", ".join(str(row["seed"]) for row in rows)]
    parts += [str(sets[role]["n_images"]) for role in ("training", "synthetic")]
    parts += [share(rows, protocol, name) for name in SHARES for protocol in PROTOCOLS]
    return [*parts, ", ".join(f"{n} {status}" for status, n in verdicts.items())]


def share(rows: Sequence[Row], protocol: str, name: str) -> str:
    """Spell a share of several runs in percent, with the reach of their intervals."""
    found = [row[protocol] for row in rows]
    low, high = zip(*(one[f"{name}_ci"] for one in found), strict=True)
    reach = f"{100 * min(low):.1f} to {100 * max(high):.1f}"
    if protocol == "paper_protocol":
        reach += f"; chance {100 * mean(one[name.replace('_rate', '_null_rate')] for one in found):.1f}"
    return f"{100 * mean(one[name] for one in found):.1f} % ({reach})"


def fidelity_of(cell: str, rows: list[Row]) -> list[str]:
    """Spell how like real images those of a cell are, and how long it was trained."""
    parts = [cell.replace("_", " "), f"{mean(row['training_seconds'] / 60 for row in rows):.1f}"]
    for name in ("frechet_distance", "distribution_precision", "distribution_recall", "ms_ssim"):
        own, real = (mean(row["fidelity"][key] for row in rows) for key in (name, f"{name}_real"))
        parts.append(f"{own:.3f} ({real:.3f})")
    return parts


def mean(values: Iterable[float]) -> float:
    """Return the mean."""
    listed = list(values)
    return sum(listed) / len(listed)


if __name__ == "__main__":
    main()
