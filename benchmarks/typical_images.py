# SPDX-License-Identifier: Apache-2.0
"""Typical images must not be flagged: images that are near the average film, yet copied from no training patient.

Held-out images, one of each patient, are divided at random by patient into a validation set and a source. From the
source, which is in neither training nor validation set, typical images are made: averages, reconstructions, samples of
Gaussian mixtures fitted on it. They are audited as if they were synthetic, and the share flagged is held against the
level that the audit states; beside it stands how easily they are told from validation images, as in every audit.

Reconstructions are given as a folder, made from the held-out images with the bundle's reconstruct.json; where none is
given, they are left out.

    python benchmarks/typical_images.py --training T.csv --held-out H.csv [--reconstructed DIR] --encoder model.pt \
           --output OUT.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from torch import Tensor

from monai_memorization.detector.embeddings import Embeddings, embed, embed_batch
from monai_memorization.detector.encoder import ContrastiveEncoder, load_encoder
from monai_memorization.detector.scores import score_prepared
from monai_memorization.images.preparation import scale_intensities
from monai_memorization.images.prepared import read_prepared
from monai_memorization.images.roles import originals
from monai_memorization.images.sets import read_image_set
from monai_memorization.statistics.conformal import alpha_attained, copy_candidates
from monai_memorization.statistics.gap import gap_auc

ALPHA = 0.05
LATENT_SIZE = 64


def main() -> None:
    """Audit each kind of typical image on every division and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, required=True, help="images of other patients, one of each")
    parser.add_argument("--reconstructed", type=Path, help="the same through the autoencoder")
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=20, help="number of divisions")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    encoder = load_encoder(options.encoder)
    training = embed(encoder, read_image_set(options.training, "training"))
    films = _pixels(options.held_out, "held_out", encoder)
    pixels = films.pixels.float()
    reconstructions = None if options.reconstructed is None else _reconstructions(options.reconstructed, films, encoder)
    trials = [_divide(pixels, reconstructions, training, encoder, seed) for seed in range(options.seeds)]
    n_validation = len(films) // 2
    result = {
        "n_training": len(training),
        "n_validation": n_validation,
        "n_source": len(films) - n_validation,
        "divisions": options.seeds,
        "alpha": ALPHA,
        "alpha_attained": alpha_attained(ALPHA, n_validation),
        "sets": {name: _summarize([trial[name] for trial in trials]) for name in trials[0]},
    }
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def _reconstructions(folder: Path, films: Any, encoder: ContrastiveEncoder) -> Tensor:
    reconstructed = _pixels(folder, "reconstructed", encoder)
    order = originals(reconstructed.images, films.images)
    if sorted(order) != list(range(len(films))):
        raise SystemExit("--reconstructed: must hold each held-out image once, under its own name")
    pixels = torch.empty_like(films.pixels, dtype=torch.float32)
    pixels[order] = reconstructed.pixels.float()
    return pixels


def _divide(
    films: Tensor, reconstructions: Tensor | None, training: Embeddings, encoder: ContrastiveEncoder, seed: int
) -> dict[str, dict[str, float]]:
    """Flag typical images of one division, calibrated on validation images and on their reconstructions."""
    order = torch.randperm(len(films), generator=torch.Generator().manual_seed(seed))
    validation, source = order[: len(films) // 2], order[len(films) // 2 :]
    reference = _embed(encoder, films[validation])
    calibrated_on = {"flagged_share": films}
    if reconstructions is not None:
        calibrated_on["flagged_share_on_reconstructions"] = reconstructions
    levels = {name: score_prepared(encoder, images[validation], training)[0] for name, images in calibrated_on.items()}
    shares = {}
    for name, make in _kinds(films[source], None if reconstructions is None else reconstructions[source], seed).items():
        images = torch.stack([scale_intensities(image) for image in make()])
        score = score_prepared(encoder, images, training)[0]
        flagged = {
            key: copy_candidates(level, score, ALPHA, len(validation)).double().mean().item()
            for key, level in levels.items()
        }
        gap = gap_auc(reference, _embed(encoder, images), [str(i) for i in range(len(validation))], seed).auc
        shares[name] = flagged | {
            "median_score": score.median().item(),
            "gap_auc": float("nan") if gap is None else gap,
        }
    return shares


def _kinds(films: Tensor, reconstructions: Tensor | None, seed: int) -> dict[str, Callable[[], Tensor]]:
    rng = np.random.default_rng(seed)
    kinds: dict[str, Callable[[], Tensor]] = {"films as they are": lambda: films}
    for k in (2, 4, 16):
        kinds[f"averages of {k}"] = lambda k=k: torch.stack(
            [films[rng.choice(len(films), k, replace=False)].mean(0) for _ in films]
        )
    if reconstructions is not None:
        kinds["autoencoder reconstructions"] = lambda: reconstructions
    # as many components as films would give the films back
    size = min(LATENT_SIZE, len(films) // 2)
    latent = PCA(size, random_state=seed).fit(films.flatten(1).numpy())
    codes = latent.transform(films.flatten(1).numpy()).astype(np.float64)  # float32 leaves covariances indefinite
    kinds[f"PCA reconstructions, {size} components"] = lambda: _decode(latent, codes, films)
    for n, shape in ((1, "full"), (4, "full"), (16, "diag")):
        kinds[f"Gaussian mixture of {n}, {shape} covariance"] = lambda n=n, shape=shape: _decode(
            latent,
            GaussianMixture(n, covariance_type=shape, random_state=seed).fit(codes).sample(len(films))[0],
            films,
        )
    return kinds


def _decode(latent: PCA, codes: Any, films: Tensor) -> Tensor:
    return torch.from_numpy(latent.inverse_transform(codes)).float().view_as(films).clamp(0, 1)


def _embed(encoder: ContrastiveEncoder, images: Tensor) -> Tensor:
    return torch.cat([embed_batch(encoder, batch) for batch in images.split(64)])


def _pixels(source: Path, role: str, encoder: ContrastiveEncoder) -> Any:
    return read_prepared(read_image_set(source, role), encoder.preparation)


def _summarize(trials: list[dict[str, float]]) -> dict[str, float]:
    """Mean of every number over the divisions, and the standard error of the shares flagged."""
    table = {key: np.array([trial[key] for trial in trials]) for key in trials[0]}
    means = {key: float(values.mean()) for key, values in table.items()}
    errors = {
        f"{key}_standard_error": float(values.std(ddof=1) / len(values) ** 0.5)
        for key, values in table.items()
        if key.startswith("flagged")
    }
    return means | errors


if __name__ == "__main__":
    main()
