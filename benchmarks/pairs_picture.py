# SPDX-License-Identifier: Apache-2.0
r"""A picture of synthetic images above their matches, for each of some audits: patient images, so mind their licence.

    python benchmarks/pairs_picture.py --audits late=AUDIT_LATE,LATE early=AUDIT_EARLY,EARLY --output pairs.png

AUDIT is a folder that `monai-memorization audit` wrote, the other the folder of its synthetic images. Of the 250 most
similar pairs, or of all of a smaller audit, twelve are shown, evenly spaced by rank, with their scores. Volumes are
shown by their middle slice.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from monai_memorization.images.preparation import Preparation, choose_preparation
from monai_memorization.images.sets import read_image_set

N_RANKED, N_SHOWN = 250, 12


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audits", nargs="+", required=True, metavar="NAME=AUDIT,SYNTHETIC")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    audits = dict(audit.split("=", 1) for audit in options.audits)
    figure = Figure(figsize=(N_SHOWN, 2.3 * len(audits)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2 * len(audits), N_SHOWN)
    for line, (name, folders) in enumerate(audits.items()):
        audit, synthetic = map(Path, folders.split(","))
        preparation = choose_preparation(read_image_set(synthetic, "synthetic"))
        for column, (image, match, score) in enumerate(chosen_pairs(audit / "pairs.csv")):
            upper, lower = axes[2 * line, column], axes[2 * line + 1, column]
            upper.imshow(middle(preparation, synthetic / image), cmap="gray", vmin=0, vmax=1)
            lower.imshow(middle(preparation, Path(match)), cmap="gray", vmin=0, vmax=1)
            lower.set_xlabel(f"{score:.2f}")
        axes[2 * line, 0].set_ylabel(f"{name}\nsynthetic")
        axes[2 * line + 1, 0].set_ylabel(f"{name}\ntraining")
    for one in axes.flat:
        one.set(xticks=[], yticks=[])
        one.spines[:].set_visible(False)
    figure.savefig(options.output, dpi=100)


def chosen_pairs(path: Path) -> list[tuple[str, str, float]]:
    """Synthetic image, training image and score of pairs evenly spaced among the most similar ones."""
    with path.open(encoding="utf-8", newline="") as file:
        pairs = [(row["synthetic_id"], row["training_id"], float(row["score"])) for row in csv.DictReader(file)]
    pairs = sorted(pairs, key=lambda pair: -pair[2])[:N_RANKED]
    return pairs[:: max(1, len(pairs) // N_SHOWN)][:N_SHOWN]


def middle(preparation: Preparation, path: Path) -> Tensor:
    """The image in [0, 1], or the middle slice of a volume, seen from its end."""
    values = preparation(path)[0].float()
    return values if values.dim() == 2 else values[..., values.shape[-1] // 2].mT.flip(0)


if __name__ == "__main__":
    main()
