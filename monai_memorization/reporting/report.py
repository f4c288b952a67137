# SPDX-License-Identifier: Apache-2.0
"""Records of an audit: report.json, which may be handed out, and the tables of pairs, which stay inside."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from monai_memorization.detector.embeddings import Embeddings
from monai_memorization.detector.encoder import ContrastiveEncoder
from monai_memorization.detector.leaks import Leak
from monai_memorization.detector.near_identical import CORRELATION
from monai_memorization.detector.shards import hash_weights
from monai_memorization.detector.similarity import paired
from monai_memorization.errors import InputError
from monai_memorization.files import write_text
from monai_memorization.findings import Findings
from monai_memorization.statistics.strata import Flags

SCHEMA_VERSION = 1
N_BINS = 40
N_QUANTILES = 500
PACKAGES = ("monai-memorization", "monai", "torch", "pytorch-ignite", "numpy", "scipy", "scikit-learn")


def compose_report(
    findings: Findings,
    leaks: Sequence[Leak],
    embedded: Mapping[str, Embeddings],
    encoder: ContrastiveEncoder,
    settings: Mapping[str, Any],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Put together report.json (design: section 5): numbers only, no ids, no paths, no pixels.

    Args:
        findings: of the audit.
        leaks: of the audit.
        embedded: the sets, by role.
        encoder: the detector.
        settings: of the audit.
        seconds: time of each stage.

    Returns:
        A dict of plain values; what is not known is None.
    """
    calibrated = asdict(findings.calibrated) | {"near_identical_threshold": CORRELATION, "strata": findings.strata}
    calibrated["n_partial"] = int((findings.flags.copy_candidate & (findings.window >= 0)).sum())
    if not embedded["training"].images.has_patients:
        calibrated |= {"n_mem_patients": None, "n_mem_patients_expected_false": None, "mem_patients_rate": None}
    return {
        "schema_version": SCHEMA_VERSION,
        "verdict": asdict(findings.verdict),
        "sets": {role: describe_set(embeddings) for role, embeddings in embedded.items()}
        | {"leaks": describe_leaks(leaks, embedded["training"], embedded["validation"])},
        "calibrated": calibrated,
        "paper_protocol": asdict(findings.paper),
        "controls": findings.controls,
        "power": [asdict(cell) for cell in findings.recalls],
        "power_summary": asdict(findings.power),
        "encoder": encoder.settings | {"training_steps": encoder.training_steps},
        "distributions": describe_distributions(findings.validation_score, findings.score, findings.flags.p_value)
        | {"accumulation": findings.accumulation},
        "provenance": describe_run(embedded, encoder, settings, seconds),
    }


def write_tables(findings: Findings, embedded: Mapping[str, Embeddings], folder: Path) -> None:
    """Write pairs.csv, memorized.csv and near_identical.csv, which name images and stay inside."""
    synthetic, training = embedded["synthetic"], embedded["training"]
    match, flags = findings.match, findings.flags
    similarity = paired(synthetic.vectors, training.vectors[match])
    write_pairs(synthetic, training, similarity, findings.score, match, flags, folder / "pairs.csv")
    write_memorized(training, similarity, match, flags.in_fdr_list, folder / "memorized.csv")
    write_near_identical(synthetic, training, findings.identical, folder / "near_identical.csv")


def describe_set(embeddings: Embeddings) -> dict[str, Any]:
    """Count a set for `sets` of the report; patients that are not known are null."""
    images = embeddings.images
    return {
        "n_images": len(images),
        "n_patients": images.n_patients if images.has_patients else None,
        "n_patients_equal": images.n_patients_equal if images.has_patients else None,
        "patients_known": images.has_patients,
        "n_unreadable": len(embeddings.unreadable),
        "n_ignored": images.n_ignored,
        "n_resized": embeddings.n_scaled,
        "n_duplicates": len(images) - len(set(embeddings.digests)),
    }


def describe_leaks(leaks: Sequence[Leak], training: Embeddings, validation: Embeddings) -> dict[str, Any]:
    """Count leaks for `sets.leaks` of the report; null where patients are not known."""
    repeated = [leak for leak in leaks if leak.kind == "repeated_in_training"]
    same_patient = sum(leak.patient_id == leak.other_patient_id for leak in repeated)
    known = training.images.has_patients
    return {
        "shared_images": len(leaks) - len(repeated),
        # an audit of sets that share patients is refused, so what is written down is that they were looked for
        "shared_patients": 0 if known and validation.images.has_patients else None,
        "repeated_in_training": len(repeated),
        "repeated_same_patient": same_patient if known else None,
        "repeated_other_patient": len(repeated) - same_patient if known else None,
    }


def describe_distributions(validation: Tensor, synthetic: Tensor, p_value: Tensor) -> dict[str, Any]:
    """Bin scores and p-values for the figures of the report, so that the page needs nothing but the report.

    Args:
        validation: a(v), (n_V,).
        synthetic: a(s), (n_S,).
        p_value: p(s), (n_S,).

    Returns:
        `score`, `p_values` and `sorted_p_values`.
    """
    both = torch.cat([validation, synthetic]).double()
    edges = torch.linspace(float(both.min()) - 1e-6, max(1.0, float(both.max())), N_BINS + 1, dtype=torch.float64)
    p_edges = torch.linspace(0, 1, 21, dtype=torch.float64)
    quantiles = torch.linspace(0, 1, min(N_QUANTILES, len(p_value)), dtype=torch.float64)
    return {
        "score": {
            "edges": edges.tolist(),
            "validation": _counts(validation, edges),
            "synthetic": _counts(synthetic, edges),
        },
        "p_values": {"edges": p_edges.tolist(), "synthetic": _counts(p_value, p_edges)},
        "sorted_p_values": torch.quantile(p_value.double(), quantiles).tolist(),
    }


def describe_run(
    sets: Mapping[str, Embeddings],
    encoder: ContrastiveEncoder,
    settings: Mapping[str, Any],
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Write down what would be needed to repeat the audit; names of files are hashed, not told."""
    return {
        "versions": {name: version(name) for name in PACKAGES}
        | {"python": platform.python_version(), "system": f"{platform.system()} {platform.machine()}"},
        "seed": settings.get("seed"),
        "device": settings.get("device"),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "image_list_sha256": {
            role: hash_images(embeddings.images.image_ids, embeddings.digests) for role, embeddings in sets.items()
        },
        "encoder_sha256": hash_weights(encoder),
        "scheduler": None,
        "n_steps": None,
        "settings": dict(settings),
        "seconds": {stage: round(time, 2) for stage, time in seconds.items()},
    }


def hash_images(image_ids: Sequence[str], digests: Sequence[str]) -> str:
    """Hash the ids and the contents of a set, in its order."""
    lines = (f"{name}\t{digest}" for name, digest in zip(image_ids, digests, strict=True))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder with files that an audit would replace and that are not of one.

    Raises:
        InputError: naming the file.
    """
    record = folder / "report.json"
    # leaks.csv is left by a watched training too, which has no report
    names = ("report.html", "report.json", "gallery.html", "pairs.csv", "memorized.csv", "near_identical.csv")
    try:
        found = json.loads(record.read_bytes()) if record.exists() else None
    except (ValueError, OSError):
        found = None
    # one of another version of the package is replaced, unlike what read_report takes
    there = [folder / name for name in names if (folder / name).exists()]
    if there and not (isinstance(found, dict) and "schema_version" in found):
        raise InputError(f"{there[0]}: is not of an audit, and is kept; choose another folder")


def write_report(report: Mapping[str, Any], path: Path) -> None:
    """Write report.json."""
    write_text(path, json.dumps(report, indent=2, allow_nan=False) + "\n")


def write_pairs(
    synthetic: Embeddings,
    training: Embeddings,
    similarity: Tensor,
    score: Tensor,
    match: Tensor,
    flags: Flags,
    path: Path,
) -> None:
    """Write pairs.csv: each synthetic image, its nearest training image and what the audit says of the pair.

    Args:
        synthetic: n_S images.
        training: n_T images.
        similarity: of each synthetic image to its match, (n_S,).
        score: of each synthetic image, (n_S,).
        match: position of that image, int64 (n_S,).
        flags: of the calibrated protocol.
        path: file to write.
    """
    matches = match.tolist()
    table = pd.DataFrame(
        {
            "synthetic_id": synthetic.images.image_ids,
            "training_id": [training.images.image_ids[i] for i in matches],
            "training_patient_id": [training.images.patient_ids[i] for i in matches],
            "similarity": similarity.double().numpy(),
            "p_value": flags.p_value.numpy(),
            "copy_candidate": flags.copy_candidate.numpy(),
            "in_fdr_list": flags.in_fdr_list.numpy(),
            "score": score.double().numpy(),
        }
    )
    write_text(path, table.sort_values("synthetic_id").to_csv(index=False, float_format="%.6f"))


def write_memorized(training: Embeddings, similarity: Tensor, match: Tensor, in_fdr_list: Tensor, path: Path) -> None:
    """Write memorized.csv: the training images that listed copies match, most often matched first.

    Args:
        training: n_T images.
        similarity: of each synthetic image to its match, (n_S,).
        match: position of the match, int64 (n_S,).
        in_fdr_list: which synthetic images are listed, bool (n_S,).
        path: file to write.
    """
    columns = ["training_id", "training_patient_id", "n_listed", "best_similarity"]
    listed = pd.DataFrame({"match": match[in_fdr_list].numpy(), "similarity": similarity[in_fdr_list].double().numpy()})
    groups = listed.groupby("match")["similarity"].agg(["size", "max"])
    names = [(training.images.image_ids[i], training.images.patient_ids[i]) for i in groups.index]
    rows = [(*name, *group) for name, group in zip(names, groups.itertuples(index=False), strict=True)]
    table = pd.DataFrame(rows, columns=columns).sort_values(["n_listed", "training_id"], ascending=[False, True])
    write_text(path, table.to_csv(index=False, float_format="%.6f"))


def write_near_identical(synthetic: Embeddings, training: Embeddings, found: Tensor, path: Path) -> None:
    """Write near_identical.csv: the pairs that agree pixel by pixel; ``found`` holds a training position or -1."""
    rows: Sequence[tuple[str, str, str]] = [
        (synthetic.images.image_ids[i], training.images.image_ids[match], training.images.patient_ids[match])
        for i, match in enumerate(found.tolist())
        if match >= 0
    ]
    table = pd.DataFrame(rows, columns=["synthetic_id", "training_id", "training_patient_id"])
    write_text(path, table.to_csv(index=False))


def write_leaks(leaks: Sequence[Leak], path: Path) -> None:
    """Write leaks.csv: the real images that are one picture, named in pairs."""
    table = pd.DataFrame(map(asdict, leaks), columns=[field.name for field in fields(Leak)])
    write_text(path, table.to_csv(index=False, float_format="%.6f"))


def _counts(values: Tensor, edges: Tensor) -> list[int]:
    histogram = torch.histogram(values.double(), bins=edges)
    return histogram.hist.long().tolist()
