# SPDX-License-Identifier: Apache-2.0
r"""False alarms and planted copies on real images, with an encoder that was trained on the training set.

False alarms: held-out images are divided at random by patient into a validation set and a set that is audited as if it
were synthetic, 200 times, and the flagged share is held against the level that the audit states. Planted copies: 100
training images, each changed by two of six random degradations, among untouched held-out images, 400 of them or half of
a smaller set. Families: the recall of the power test, with all held-out images as the validation set. Same patients:
other images of the training patients, which are no copies, in such divisions. Images and volumes alike.

    python benchmarks/detection_on_real_images.py \
        --training T.csv --held-out V.csv W.csv --encoder model.pt [--same-patients U.csv] --output OUT.json
"""

from __future__ import annotations

import argparse
import json
import random
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy.stats import betabinom
from torch import Tensor

from monai_memorization.detector import degradations
from monai_memorization.detector.embeddings import Embeddings, embed
from monai_memorization.detector.encoder import ContrastiveEncoder, load_encoder
from monai_memorization.detector.neighbors import nearest
from monai_memorization.detector.scores import score_embedded, score_prepared
from monai_memorization.images.prepared import read_prepared
from monai_memorization.images.sets import ImageSet, read_image_set
from monai_memorization.statistics.conformal import alpha_attained, attained_rank, copy_candidates, threshold
from monai_memorization.statistics.paper_protocol import calibrate_tau, mem_null_rate
from monai_memorization.statistics.power import choose_plants, measure_power, summarize_power

N_DIVISIONS = 200
ALPHA = 0.05
N_PLANTED, N_UNTOUCHED = 100, 400
N_COPIED = 256  # training images of which copies of every family are planted


def main() -> None:
    """Measure both and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training", type=Path, required=True)
    parser.add_argument("--held-out", type=Path, nargs="+", required=True, help="image sets of other patients")
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument(
        "--same-patients", type=Path, help="images of training patients that are not in the training set"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    encoder = load_encoder(options.encoder)
    training = embed(encoder, read_image_set(options.training, "training"))
    held_out = [embed(encoder, read_image_set(source, f"held_out_{i}")) for i, source in enumerate(options.held_out)]
    rng = random.Random(options.seed)
    result = {
        "seed": options.seed,
        "n_training": len(training),
        "n_held_out": sum(map(len, held_out)),
        "false_alarms": _false_alarms(training, held_out, rng),
        "planted_copies": _planted_copies(encoder, training, held_out, rng, options.seed),
        "families": _families(encoder, training, held_out, options.seed),
    }
    if options.same_patients is not None:
        others = embed(encoder, read_image_set(options.same_patients, "same_patients"))
        result["same_patients"] = _same_patients(training, held_out, others, rng)
    options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def _false_alarms(training: Embeddings, held_out: list[Embeddings], rng: random.Random) -> list[dict[str, Any]]:
    """One film of each patient, so that the audited images are independent, and three sizes of validation set."""
    images = _first_of_patient(held_out)
    vectors = torch.cat([e.vectors for e in held_out])[images]
    similarity = _scores(held_out, training)[images]
    n = len(images)
    sizes = {"n_S = n_V": (n // 2, n // 2), "n_S = 4 n_V": (n // 5, 4 * (n // 5)), "60 patients": (60, n - 60)}
    sizes = {name: size for name, size in sizes.items() if min(size) >= 20}
    return [_cell(name, similarity, vectors, training.vectors, *size, rng) for name, size in sizes.items()]


def _cell(
    name: str, similarity: Tensor, vectors: Tensor, training: Tensor, n_v: int, n_s: int, rng: random.Random
) -> dict[str, Any]:
    shares, inside, paper_copies, paper_mem = [], 0, [], []
    rank = attained_rank(ALPHA, n_v)
    low, high = betabinom.ppf([0.025, 0.975], n_s, rank, n_v + 1 - rank)
    for _ in range(N_DIVISIONS):
        order = torch.tensor(rng.sample(range(len(similarity)), len(similarity)))
        validation, synthetic = order[:n_v], order[n_v : n_v + n_s]
        flagged = int(copy_candidates(similarity[validation], similarity[synthetic], ALPHA, n_v).sum())
        shares.append(flagged / n_s)
        inside += low <= flagged <= high
        tau = calibrate_tau(nearest(training, vectors[validation])[0][:, 0])
        paper_copies.append((similarity[synthetic].double() > tau).double().mean().item())
        paper_mem.append((nearest(training, vectors[synthetic])[0][:, 0].double() > tau).double().mean().item())
    mean, error = _mean_and_error(shares)
    attained = alpha_attained(ALPHA, n_v)
    return {
        "sizes": name,
        "n_validation": n_v,
        "n_synthetic": n_s,
        "divisions": N_DIVISIONS,
        "alpha_attained": attained,
        "flagged_share": mean,
        "standard_error": error,
        "excess_in_standard_errors": (mean - attained) / error,
        "share_of_divisions_in_interval": inside / N_DIVISIONS,
        "paper_copy_rate": _mean_and_error(paper_copies)[0],
        "paper_mem_rate": _mean_and_error(paper_mem)[0],
        "paper_mem_null_rate": mem_null_rate(n_v, n_s),
    }


def _same_patients(
    training: Embeddings, held_out: list[Embeddings], others: Embeddings, rng: random.Random
) -> dict[str, Any]:
    """Flag other images of the training patients beside held-out ones, by one half of these."""
    images = _first_of_patient(held_out)
    similarity, of_others = _scores(held_out, training)[images], _scores([others], training)
    half, shares, shares_held_out = len(images) // 2, [], []
    for _ in range(N_DIVISIONS):
        order = torch.tensor(rng.sample(range(len(similarity)), len(similarity)))
        level = threshold(similarity[order[:half]], ALPHA, half)
        shares.append((of_others.double() > level).double().mean().item())
        shares_held_out.append((similarity[order[half:]].double() > level).double().mean().item())
    (mean, error), (held_out_mean, held_out_error) = map(_mean_and_error, (shares, shares_held_out))
    return {
        "n_images": len(others),
        "n_patients": others.images.n_patients,
        "divisions": N_DIVISIONS,
        "flagged_share": mean,
        "standard_error_over_divisions": error,
        "flagged_share_of_held_out": held_out_mean,
        "standard_error_of_held_out": held_out_error,
        "ratio": mean / held_out_mean,
    }


def _planted_copies(
    encoder: ContrastiveEncoder, training: Embeddings, held_out: list[Embeddings], rng: random.Random, seed: int
) -> dict[str, Any]:
    """Audit 100 changed training images among 400 held-out ones; the validation set is the rest, by patient."""
    images = _first_of_patient(held_out)
    rng.shuffle(images)
    scores = _scores(held_out, training)
    n_untouched, n_planted = min(N_UNTOUCHED, len(images) // 2), min(N_PLANTED, len(training))
    untouched, validation = images[:n_untouched], images[n_untouched:]
    chosen = rng.sample(range(len(training)), n_planted)
    originals = _pixels(training.images.subset(chosen), encoder)
    torch.manual_seed(seed)
    copies = torch.cat([_change(original[None], rng) for original in originals])
    planted, match, _ = score_prepared(encoder, degradations.rescale(copies), training)
    similarity, reference = torch.cat([planted, scores[untouched]]), scores[validation]
    right = match == torch.tensor(chosen)
    result: dict[str, Any] = {
        "n_planted": n_planted,
        "n_untouched": n_untouched,
        "n_validation": len(validation),
        "right_training_image_nearest": int(right.sum()),
    }
    for alpha in (0.05, 0.01):
        flagged = copy_candidates(reference, similarity, alpha, len(validation))
        result[f"found_with_right_image_at_{alpha}"] = int((flagged[:n_planted] & right).sum())
        result[f"untouched_flagged_at_{alpha}"] = int(flagged[n_planted:].sum())
    return result


def _families(
    encoder: ContrastiveEncoder, training: Embeddings, held_out: list[Embeddings], seed: int
) -> dict[str, Any]:
    """Recall of each family at alpha, all held-out images being the validation set."""
    images = _first_of_patient(held_out)
    similarity = _scores(held_out, training)[images]
    level = threshold(similarity, ALPHA, len(images))
    index = choose_plants(len(training), seed, N_COPIED)
    pixels = _pixels(training.images.subset(index.tolist()), encoder)
    score = partial(score_prepared, encoder, training=training)
    hosts = torch.cat([_pixels(embeddings.images, encoder) for embeddings in held_out])[images]
    recalls = measure_power(score, pixels, index, torch.full((len(index),), level), seed=seed, hosts=hosts)
    return {"summary": asdict(summarize_power(recalls)), "cells": [asdict(recall) for recall in recalls]}


def _change(image: Tensor, rng: random.Random) -> Tensor:
    shorter = min(image.shape[2:])
    changes = {
        "rotation": lambda x: degradations.turn(x, rng.uniform(-10, 10)),
        "crop": lambda x: degradations.crop(x, 0.9),
        "shift": lambda x: degradations.shift(x, rng.choice((-0.05, 0.05))),
        "gamma": lambda x: degradations.gamma(x, rng.uniform(0.7, 1.4)),
        "blur": lambda x: degradations.blur(x, 1.5 / shorter),
        "noise": lambda x: degradations.noise(x, 0.05),
    }
    for name in rng.sample(sorted(changes), 2):
        image = changes[name](image)
    return image


def _first_of_patient(sets: list[Embeddings]) -> list[int]:
    patients = [patient for embeddings in sets for patient in embeddings.images.patient_ids]
    first: dict[str, int] = {}
    for i, patient in enumerate(patients):
        first.setdefault(patient, i)
    return list(first.values())


def _scores(sets: list[Embeddings], training: Embeddings) -> Tensor:
    return torch.cat([score_embedded(images, training)[0] for images in sets])


def _pixels(images: ImageSet, encoder: ContrastiveEncoder) -> Tensor:
    return read_prepared(replace(images, role="training"), encoder.preparation).pixels.float()


def _mean_and_error(values: list[float]) -> tuple[float, float]:
    tensor = torch.tensor(values, dtype=torch.float64)
    return tensor.mean().item(), (tensor.std() / len(values) ** 0.5).item()


if __name__ == "__main__":
    main()
