# SPDX-License-Identifier: Apache-2.0
"""An audit against the paper's way with the same network: one image at a time, and full matrices that are sorted.

The paper's way gives tau, N_mem and N_copies and nothing else. It is held against the same three numbers by the
package, which have to be equal, and against the whole audit: registration, windows, power test, leak check, report.
The stages of the audit are those it times itself, embedding is divided into its parts, and the rest writes the results.
Time on the wall is that of a user, and says something on an idle machine only; CPU time includes the processes that
read images.

    python benchmarks/audit_time.py --training T.csv --validation V.csv --synthetic S.csv --encoder model.pt \
        --output OUT.json [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch
from overhead import commit, machine, timed
from scipy.spatial.distance import cdist
from torch import Tensor

from monai_memorization.auditing import audit
from monai_memorization.detector.embeddings import embed, embed_batch
from monai_memorization.detector.encoder import ContrastiveEncoder, load_encoder
from monai_memorization.files import write_text
from monai_memorization.images.prepared import prepared_batches
from monai_memorization.images.sets import ImageSet, read_image_set
from monai_memorization.statistics.paper_protocol import measure_paper_protocol

ROLES = ("training", "validation", "synthetic")
Counts = dict[str, float]


def main(arguments: list[str] | None = None) -> None:
    """Measure, and write one JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for role in ROLES:
        parser.add_argument(f"--{role}", type=Path, required=True)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3, help="each way is taken once in each")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    encoder = load_encoder(options.encoder)
    sets = {role: read_image_set(getattr(options, role), role) for role in ROLES}
    rounds, stages = [], []
    for _ in range(options.rounds):
        seconds: dict[str, dict[str, float]] = {}
        with timed() as seconds["papers_way"]:
            paper = papers_way(encoder, sets)
        with timed() as seconds["same_counts"]:
            same = same_counts(encoder, sets)
        if paper != same:
            raise SystemExit(f"the paper's way counts {paper}, the package {same}")
        with tempfile.TemporaryDirectory() as folder:
            given = [getattr(options, role) for role in ROLES]
            with timed() as seconds["whole_audit"]:
                report = audit(*given, folder, encoder=options.encoder)
        stages.append(report["provenance"]["seconds"] | {"of embedding": parts_of_embedding(encoder, sets)})
        rounds.append(seconds)
    result = {"commit": commit(), "machine": machine(), "threads": torch.get_num_threads()}
    result |= {"n_images": {role: len(images) for role, images in sets.items()}, "counts": paper, "rounds": rounds}
    result["seconds_of_stages"] = stages
    result["times_faster"] = {
        f"{way}, {clock}": statistics.median(row["papers_way"][clock] / row[way][clock] for row in rounds)
        for way in ("same_counts", "whole_audit")
        for clock in ("wall", "cpu")
    }
    write_text(options.output, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["times_faster"], indent=1))


def papers_way(encoder: ContrastiveEncoder, sets: dict[str, ImageSet]) -> Counts:
    """Embed image by image, compute all distances, sort each row, and count above the threshold."""
    vectors = {role: torch.cat([_embed_one(encoder, path) for path in images.paths]) for role, images in sets.items()}
    to_validation, to_synthetic = (_nearest(vectors["training"], vectors[role]) for role in ROLES[1:])
    tau = torch.quantile(to_validation, 0.95)
    to_training = _nearest(vectors["synthetic"], vectors["training"])
    return {"n_mem": int((to_synthetic > tau).sum()), "n_copies": int((to_training > tau).sum())}


def _embed_one(encoder: ContrastiveEncoder, path: Path) -> Tensor:
    return embed_batch(encoder, encoder.preparation(path)[None])


def _nearest(query: Tensor, reference: Tensor) -> Tensor:
    distances = cdist(query.numpy(), reference.numpy(), "correlation")
    order = distances.argsort(axis=1)
    return 1 - torch.from_numpy(distances).gather(1, torch.from_numpy(order[:, :1]))[:, 0]


def same_counts(encoder: ContrastiveEncoder, sets: dict[str, ImageSet]) -> Counts:
    """Return the same numbers by the package."""
    protocol = measure_paper_protocol(*(embed(encoder, images).vectors for images in sets.values()))
    return {"n_mem": protocol.n_mem, "n_copies": protocol.n_copies}


def parts_of_embedding(encoder: ContrastiveEncoder, sets: dict[str, ImageSet]) -> dict[str, float]:
    """Return the CPU seconds of reading all images in one process, and of the network."""
    with timed() as read:
        batches = [
            batch for images in sets.values() for _, batch in prepared_batches(images, encoder.preparation, workers=0)
        ]
    with timed() as network:
        for batch in batches:
            embed_batch(encoder, batch)
    return {"read": read["cpu"], "network": network["cpu"]}


if __name__ == "__main__":
    main()
