# SPDX-License-Identifier: Apache-2.0
"""Heat map and table of detectors, from the JSON of detection.py.

    python benchmarks/detection_figures.py OUT.json --output docs/figures/detection_cxr64.svg

Writes the SVG, recall at alpha 0.05 of each detector and family, and a Markdown table beside it: means over the seeds
that have run, the detector of the largest mean recall first. Families of whole copies count with their three lower
strengths, partial copies with each strength.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from simulation_figures import write_svg
from study_figures import markdown, mean

from monai_memorization.files import write_text

Row = dict[str, Any]
HEADS = ("detector", "seeds", "recall at 0.05", "at 0.01", "AUROC", "right image nearest", "lowest family")
HEADS += ("holdout flagged at 0.05, 0.01", "same patient, other image", "ms")


def main(arguments: list[str] | None = None) -> None:
    """Draw what has run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="JSON that detection.py wrote")
    parser.add_argument("--output", type=Path, required=True, help="SVG; the table, .md, is beside it")
    options = parser.parse_args(arguments)
    detectors = read_detectors(options.results)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_svg(options.output, (12, 1.6 + 0.36 * len(detectors)), partial(draw, detectors=detectors))
    rows = [line(name, rows) for name, rows in detectors.items()]
    write_text(options.output.with_suffix(".md"), markdown(HEADS, rows))


def read_detectors(path: Path) -> dict[str, list[Row]]:
    """Read the runs of each detector, one per seed, the best detector first."""
    runs = json.loads(path.read_text(encoding="utf-8"))["runs"]
    detectors: dict[str, list[Row]] = {}
    for run in runs:
        detectors.setdefault(run["detector"], []).append(run)
    return dict(sorted(detectors.items(), key=lambda item: -mean(row["summary"]["recall"][0] for row in item[1])))


def recalls(rows: Sequence[Row]) -> dict[str, float]:
    """Return the mean recall at alpha 0.05 of each family, then of each kind of partial copy."""
    found = [
        row["summary"]["by_family"] | {name: value[0] for name, value in row["summary"]["partial"].items()}
        for row in rows
    ]
    return {name: mean(one[name] for one in found) for name in found[0]}


def draw(figure: Figure, detectors: dict[str, list[Row]]) -> None:
    """Draw one row for each detector, one column for each family."""
    axes = figure.subplots()
    values = [list(recalls(rows).values()) for rows in detectors.values()]
    axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    for y, row in enumerate(values):
        for x, value in enumerate(row):
            axes.text(
                x, y, f"{value:.2f}", ha="center", va="center", fontsize=8, color="black" if value > 0.6 else "white"
            )
    families = [name.replace("_", " ") for name in recalls(next(iter(detectors.values())))]
    axes.set_xticks(range(len(families)), families, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(detectors)), [name.replace("_", " ") for name in detectors])
    axes.set_title("recall of planted copies at alpha 0.05", fontsize=10)


def line(name: str, rows: Sequence[Row]) -> list[str]:
    """Spell what was measured of a detector."""
    summaries = [row["summary"] for row in rows]
    width = max(summary["half_width_95"][0] for summary in summaries)
    families = {key: mean(one["by_family"][key] for one in summaries) for key in summaries[0]["by_family"]}
    lowest = min(families, key=lambda key: families[key])
    flagged = partial(_flagged, rows)
    return [
        name.replace("_", " "),
        ", ".join(str(row["seed"]) for row in rows),
        f"{mean(one['recall'][0] for one in summaries):.3f} ({width:.3f})",
        f"{mean(one['recall'][1] for one in summaries):.3f}",
        f"{mean(one['auroc'] for one in summaries):.3f}",
        f"{mean(one['matched'] for one in summaries):.3f}",
        f"{lowest.replace('_', ' ')} {families[lowest]:.2f}",
        f"{flagged('holdout', 0)}, {flagged('holdout', 1)}",
        flagged("same_patient", 0),
        f"{mean(row['milliseconds_per_image'] for row in rows):.1f}",
    ]


def _flagged(rows: Sequence[Row], role: str, level: int) -> str:
    found = [row["false_alarms"][role]["flagged"][level] for row in rows if role in row["false_alarms"]]
    return f"{100 * mean(found):.1f} %" if found else ""


if __name__ == "__main__":
    main()
