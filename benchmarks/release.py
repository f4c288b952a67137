# SPDX-License-Identifier: Apache-2.0
"""Release on real images: does the interval of the residual copy rate hold what is left of a known number of copies?

    python benchmarks/release.py --training T.csv --held-out V.csv W.csv --encoder model.pt --judge judge.pt --output O

Held-out images, one of each patient, are divided at random into the filter's validation set, the judge's, and honest
synthetic images. Among these are put copies of training images, each altered in one of the ways of the power test that
concern the whole image, drawn at random. The copies and the planted ones that give the recall are altered with
different random numbers and are, as in a release, of the same training images. Everything is scored once; the draws
are made of the scores.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from monai_memorization.detector.embeddings import embed
from monai_memorization.detector.encoder import ContrastiveEncoder, load_encoder
from monai_memorization.detector.scores import score_embedded, score_prepared
from monai_memorization.images.prepared import read_prepared
from monai_memorization.images.sets import ImageSet, read_image_set
from monai_memorization.statistics.conformal import alpha_attained, copy_candidates, threshold
from monai_memorization.statistics.power import plant
from monai_memorization.statistics.rates import copy_rate_at_power
from monai_memorization.statistics.residual import rate_at_power_interval, residual_interval, residual_rate
from monai_memorization.statistics.strata import stratify

ALPHA = 0.05
N_COPIED = 256


def main() -> None:
    """Run all draws and write one JSON with a row for each."""
    options = parse_options()
    torch.set_num_threads(1)
    training = read_image_set(options.training, "training")
    held_out = first_of_each_patient([read_image_set(path, "held_out") for path in options.held_out])
    encoders = [load_encoder(path) for path in (options.encoder, options.judge)]
    honest, copies, planted, seen = scores(encoders, training, held_out)
    rows = []
    for share in options.shares:
        for draw in range(options.draws):
            rows.append(one_draw(honest, copies, planted, seen, share, options.n_drawn, draw))
        mine = rows[-options.draws :]
        print(f"share {share}: residual interval holds the truth in {sum(r['held'] for r in mine)} of {len(mine)}")
    options.output.write_text(json.dumps(rows, indent=1) + "\n")


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--training", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, nargs="+", required=True)
    parser.add_argument("--encoder", type=Path, required=True, help="weights of the encoder that filters")
    parser.add_argument("--judge", type=Path, required=True, help="weights of the encoder that judges")
    parser.add_argument("--n-drawn", type=int, default=600, help="images in a draw")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.05, 0.2, 0.5], help="shares of copies")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def first_of_each_patient(sets: list[ImageSet]) -> list[ImageSet]:
    """Keep one image of each patient, so that the images are independent."""
    return [
        images.subset({patient: i for i, patient in reversed(list(enumerate(images.patient_ids)))}.values())
        for images in sets
    ]


def scores(
    encoders: list[ContrastiveEncoder], training: ImageSet, held_out: list[ImageSet]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the scores of images by both encoders.

    Returns:
        Of honest images (2, n), of copies (2, cells, m), of planted copies (2, cells, m), and which cells' families the
        encoders have seen, bool (cells,).
    """
    pixels = read_prepared(training, encoders[0].preparation).pixels[:N_COPIED].float()
    known = [embed(encoder, training) for encoder in encoders]
    honest = torch.stack(
        [
            torch.cat([score_embedded(embed(encoder, images), own)[0] for images in held_out])
            for encoder, own in zip(encoders, known, strict=True)
        ]
    )
    altered, seen = [], []
    for seed in (1, 0):
        cells = []
        for family, _, copies in plant(pixels, seed=seed):
            if family.whole:
                pairs = zip(encoders, known, strict=True)
                cells.append(torch.stack([score_prepared(encoder, copies, own)[0] for encoder, own in pairs]))
                seen.append(family.seen_in_training)
        altered.append(torch.stack(cells, dim=1))
    return honest, altered[0], altered[1], torch.tensor(seen[: len(seen) // 2])


def one_draw(
    honest: Tensor, copies: Tensor, planted: Tensor, seen: Tensor, share: float, n_drawn: int, seed: int
) -> dict[str, object]:
    """Filter one set with a known number of copies, and compare what is left with what would be reported."""
    generator = torch.Generator().manual_seed(seed)
    n_copies = round(share * n_drawn)
    order = torch.randperm(honest.shape[1], generator=generator)
    n_validation = (honest.shape[1] - (n_drawn - n_copies)) // 2
    first, second, synthetic = order.split([n_validation, n_validation, honest.shape[1] - 2 * n_validation])
    chosen = copies.flatten(1)
    chosen = chosen[:, torch.randint(chosen.shape[1], (n_copies,), generator=generator)]
    drawn = torch.cat([chosen, honest[:, synthetic[: n_drawn - n_copies]]], dim=1)
    flagged = copy_candidates(honest[0, first], drawn[0], ALPHA)
    found = planted[0] > threshold(honest[0, first], ALPHA)
    recalls = [float(found[cells].double().mean()) for cells in (seen, ~seen)]
    n_flagged, n_left = int(flagged.sum()), int((~flagged).sum())
    strata = stratify([str(i) for i in range(n_validation)], n_drawn)
    groups = [(recall, planted.shape[2]) for recall in recalls]
    low, high = residual_interval(n_flagged, n_drawn, n_left, ALPHA, strata, groups)
    truth = int((~flagged[:n_copies]).sum()) / n_left
    row = {"share": share, "seed": seed, "n_left": n_left, "truth": truth, "interval": [low, high]}
    row["rate"] = residual_rate(n_flagged, n_drawn, alpha_attained(ALPHA, n_validation), min(recalls))
    row |= {"recalls": recalls, "held": low <= truth <= high}
    return row | judged(
        honest[:, second], drawn[:, ~flagged], planted, ~found, float(threshold(honest[0, first], ALPHA))
    )


def judged(validation: Tensor, left: Tensor, planted: Tensor, passed: Tensor, level: float) -> dict[str, object]:
    """Say what the judge makes of the images that are left."""
    calibration = validation[1, validation[0] <= level]
    n_flagged = int(copy_candidates(calibration, left[1], ALPHA).sum())
    recall = float((planted[1][passed] > threshold(calibration, ALPHA)).double().mean()) if passed.any() else None
    strata = stratify([str(i) for i in range(len(calibration))], left.shape[1])
    n_images = int(passed.any(0).sum())
    return {
        "judge_flagged_rate": n_flagged / left.shape[1],
        "judge_recall": recall,
        "judge_rate": copy_rate_at_power(n_flagged, left.shape[1], alpha_attained(ALPHA, len(calibration)), recall),
        "judge_interval": rate_at_power_interval(n_flagged, left.shape[1], ALPHA, strata, (recall or 0.0, n_images)),
    }


if __name__ == "__main__":
    main()
