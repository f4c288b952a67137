# SPDX-License-Identifier: Apache-2.0
"""Reports as the audit makes them, in several states, from seeded made-up similarities."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np

from monai_memorization.statistics.power import FAMILIES

HOSTILE = """<script>document.title = "owned"</script>"><img src=x onerror="document.title='owned'">'&"""


def copies_found() -> dict[str, Any]:
    """Half of 1,000 synthetic images are copies, 300 validation patients."""
    return _report(n_training=256, n_validation=300, n_synthetic=1000, share_copied=0.5)


def no_copies_found() -> dict[str, Any]:
    """Nothing is copied, 400 validation patients."""
    return _report(n_training=1200, n_validation=400, n_synthetic=800, share_copied=0)


def few_patients() -> dict[str, Any]:
    """Twelve validation patients cannot support alpha = 0.05."""
    report = _report(n_training=64, n_validation=12, n_synthetic=200, share_copied=0.3)
    report["calibrated"] |= dict.fromkeys(("threshold", "copy_rate_at_power", "n_mem_total_bound"))
    report["calibrated"] |= dict.fromkeys(("alpha_attained", "flagged_rate", "copy_rate", "mem_rate"), 0.0)
    report["calibrated"] |= {
        "false_alarm_rate_ci": [0.0, 0.0],
        "copy_rate_ci": [0.0, 1.0],
        "expected_false_copies": 0.0,
    }
    report["calibrated"] |= {"n_copies": 0, "n_mem": 0, "n_mem_expected_false": 0.0, "n_mem_patients": 0}
    report["calibrated"] |= {"n_mem_patients_expected_false": 0.0, "mem_patients_rate": 0.0, "n_near_identical": 0}
    report["calibrated"]["fdr"] |= {"n_copies": 0, "n_mem": 0, "n_mem_expected_false": 0.0}
    report["power"] = [cell | {"recall": 0.0} for cell in report["power"]]
    report["power_summary"] = dict.fromkeys(report["power_summary"], 0.0)
    reasons = ["few_validation_patients", "low_power"]
    report["verdict"] = {"status": "inconclusive", "reasons": reasons, "noticeable_rate": 1.0}
    return report


def labels_on_reconstructions() -> dict[str, Any]:
    """Calibrated on reconstructions within two labels, one of which has too few patients."""
    report = _report(n_training=256, n_validation=300, n_synthetic=1000, share_copied=0)
    report["sets"]["reconstructed_validation"] = _set(298, 298)
    report["sets"]["reconstructed_training"] = _set(100, 90)
    report["power"].append(report["power"][-1] | {"family": "autoencoder", "strength": 1, "n": 100, "whole": True})
    report["calibrated"]["threshold"] = None
    ill = {"label": "ill", "n_images": 12, "n_patients": 12, "images_per_patient": [[1, 12]], "n_synthetic": 400}
    well = {"label": "well", "n_images": 286, "n_patients": 286, "images_per_patient": [[1, 286]], "n_synthetic": 600}
    strata = [ill | {"threshold": None}, well | {"threshold": 0.735}]
    report["calibrated"]["strata"] = [stratum | {"shares_patients": False} for stratum in strata]
    report["controls"] |= {"gap_auc": 0.93, "gap_auc_ci": [0.9, 0.96], "gap_reference": "reconstructed_validation"}
    report["verdict"] = {"status": "inconclusive", "reasons": ["few_validation_patients"], "noticeable_rate": 0.4}
    return report


def gap_not_measured() -> dict[str, Any]:
    """Eight synthetic images are too few to tell how they differ from validation images."""
    report = _report(n_training=256, n_validation=300, n_synthetic=8, share_copied=0)
    why = "the classifier needs 10 validation patients and synthetic images, found 300 and 8"
    report["controls"] |= {"gap_auc": None, "gap_auc_ci": None, "gap_reason": why}
    report["verdict"] = {"status": "inconclusive", "reasons": ["gap_not_measured"], "noticeable_rate": 0.4}
    return report


def released() -> dict[str, Any]:
    """A set that was filtered and then judged by another detector."""
    report = no_copies_found()
    report["fidelity"] = {
        "n_images": 150,
        "frechet_distance": 0.213,
        "frechet_distance_real": 0.141,
        "mean_similarity": 0.12,
        "mean_similarity_real": 0.08,
        "distribution_precision": 0.86,
        "distribution_precision_real": 0.9,
        "distribution_recall": 0.71,
        "distribution_recall_real": 0.91,
    }
    report["release"] = {
        "n_asked": 400,
        "n_drawn": 610,
        "n_passed": 412,
        "filter": {
            "alpha_attained": 0.049,
            "flagged_rate": 0.325,
            "copy_rate_at_power": 0.31,
            "n_near_identical": 3,
            "recall_seen": 0.95,
            "recall_unseen": 0.93,
            "n_planted": 256,
        },
        "residual_rate": 0.032,
        "residual_rate_ci": [0.012, 0.058],
        "judge": {
            "n_planted_passed": 410,
            "recall": 0.41,
            "copy_rate_at_power": 0.02,
            "copy_rate_at_power_ci": [0.0, 0.11],
            "noticeable_rate": 0.11,
        },
    }
    report["verdict"]["noticeable_rate"] = 0.11
    return report


def unknown_patients() -> dict[str, Any]:
    """An audit without patient ids, inconclusive for two reasons."""
    report = _report(n_training=256, n_validation=100, n_synthetic=400, share_copied=0)
    for role in ("training", "validation"):
        report["sets"][role] |= {"n_patients": None, "patients_known": False, "n_ignored": 2}
    unknown = dict.fromkeys(("shared_patients", "repeated_same_patient", "repeated_other_patient"))
    report["sets"]["leaks"] |= unknown | {"shared_images": 2, "repeated_in_training": 5}
    per_patient = ("n_mem_patients", "n_mem_patients_expected_false", "mem_patients_rate")
    report["calibrated"] |= dict.fromkeys(per_patient)
    report["power_summary"] |= {"seen": 0.91, "unseen": 0.62, "working_recall": 0.62}
    report["controls"] |= {"gap_auc": 0.97, "gap_auc_ci": [0.95, 0.98]}
    report["verdict"] = {
        "status": "inconclusive",
        "reasons": ["low_power", "synthetic_differs", "no_patient_ids"],
        "noticeable_rate": None,
    }
    return report


def all_null() -> dict[str, Any]:
    """Everything that may be null is, and what may be absent is absent."""
    report = copies_found()
    needed = ("alpha", "fdr", "strata")
    counted = {key: report["calibrated"][key] for key in needed} | {"n_near_identical": 3}
    report["calibrated"] = dict.fromkeys(report["calibrated"]) | counted
    report["calibrated"]["fdr"] = dict.fromkeys(counted["fdr"]) | {"q": 0.05}
    report["paper_protocol"] = dict.fromkeys(report["paper_protocol"])
    report["controls"] = dict.fromkeys(report["controls"])
    report["encoder"] = dict.fromkeys(report["encoder"])
    report["distributions"] = {"score": None, "p_values": None, "sorted_p_values": None, "accumulation": None}
    report["power"], report["power_summary"] = [], dict.fromkeys(report["power_summary"])
    report["provenance"] = dict.fromkeys(report["provenance"])
    del report["sets"]["leaks"]
    report["sets"]["training"] = {"n_images": 256, "n_patients": None}
    report["verdict"] = {"status": "copies_found", "reasons": ["near_identical"], "noticeable_rate": None}
    return report


def hostile() -> dict[str, Any]:
    """Every string that another program wrote tries to run a script."""
    report = copies_found()
    report["provenance"] |= {
        "versions": {HOSTILE: HOSTILE},
        "device": HOSTILE,
        "scheduler": HOSTILE,
        "created": HOSTILE,
    }
    report["provenance"] |= {"settings": {HOSTILE: [HOSTILE]}, "seconds": {HOSTILE: 1.0}, "encoder_sha256": HOSTILE}
    report["provenance"] |= {"image_list_sha256": {HOSTILE: HOSTILE}, "seed": HOSTILE}
    report["power"].append({"family": HOSTILE, "strength": HOSTILE, "n": 3, "recall": 0.5, "seen_in_training": False})
    report["verdict"]["reasons"] = [*report["verdict"]["reasons"], HOSTILE]
    report["calibrated"]["strata"][0]["label"] = report["controls"]["gap_reason"] = HOSTILE
    report["controls"]["gap_auc"] = None
    return report


EXAMPLES = {
    example.__name__: example
    for example in (
        copies_found,
        no_copies_found,
        few_patients,
        labels_on_reconstructions,
        gap_not_measured,
        released,
        unknown_patients,
        all_null,
        hostile,
    )
}


def _report(n_training: int, n_validation: int, n_synthetic: int, share_copied: float) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    validation = np.clip(generator.normal(0.62, 0.07, n_validation), -1, 1)
    honest = np.clip(generator.normal(0.62, 0.07, round(n_synthetic * (1 - share_copied))), -1, 1)
    copied = 1 - generator.beta(2, 20, n_synthetic - len(honest))
    synthetic = np.concatenate([honest, copied])
    p_values = (1 + (validation >= synthetic[:, None]).sum(1)) / (n_validation + 1)

    alpha, q = 0.05, 0.05
    k = math.floor(alpha * (n_validation + 1))
    attained = k / (n_validation + 1)
    n_copies = int((p_values <= alpha).sum())
    flagged = n_copies / n_synthetic
    copy_rate = max(0.0, (flagged - attained) / (1 - attained))
    half = 1.96 * math.sqrt(flagged * (1 - flagged) / n_synthetic + attained * (1 - attained) / n_validation)
    interval = [max(0.0, copy_rate - half), copy_rate + half]
    ordered = np.sort(p_values)
    below = np.flatnonzero(ordered <= q * (np.arange(n_synthetic) + 1) / n_synthetic)
    n_listed = int(below[-1]) + 1 if len(below) else 0
    false = attained * (1 - copy_rate) * n_synthetic
    n_mem = min(n_training, round(false * 0.9 + 0.4 * share_copied * n_training))
    tau = float(np.quantile(validation, 0.93))
    power = [
        {
            "family": family.name,
            "strength": strength,
            "n": 32,
            "recall": round(1 - 0.02 * level**2 * (1 if family.seen_in_training else 1.2), 2),
            "matched": 1.0,
            "seen_in_training": family.seen_in_training,
            "whole": family.whole,
        }
        for family in FAMILIES
        if 2 in family.dimensions
        for level, strength in enumerate(family.strengths)
    ]
    whole = [cell for cell in power if cell["whole"]]
    seen, unseen = (float(np.mean([c["recall"] for c in whole if c["seen_in_training"] is s])) for s in (True, False))
    edges = np.linspace(0.3, 1, 36)
    p_edges = np.linspace(0, 1, 21)
    drawn = np.linspace(0, n_synthetic, 21)[1:]
    reasons = [*(["fdr_list"] if n_listed else []), *(["excess"] if interval[0] > 0 else [])]
    return copy.deepcopy(
        {
            "schema_version": 1,
            "sets": {
                "training": _set(n_training, round(n_training * 0.9)),
                "validation": _set(n_validation, n_validation),
                "synthetic": _set(n_synthetic, None) | {"n_ignored": 0, "n_resized": n_synthetic},
                "leaks": {
                    "shared_images": 0,
                    "shared_patients": 0,
                    "repeated_in_training": 0,
                    "repeated_same_patient": 0,
                    "repeated_other_patient": 0,
                },
            },
            "paper_protocol": {
                "percentile": 95.0,
                "tau": tau,
                "n_mem": round(0.6 * n_training),
                "mem_rate": 0.6,
                "n_copies": int((synthetic > tau).sum()),
                "copy_rate": float((synthetic > tau).mean()),
                "mem_null_rate": 1 - 0.95 ** (n_synthetic / n_validation),
                "copy_null_rate": float((validation > tau).mean()),
                "mem_rate_matched": 0.31 if share_copied else 0.048,
            },
            "calibrated": {
                "alpha": alpha,
                "alpha_attained": attained,
                "false_alarm_rate_ci": [0.6 * attained, 1.5 * attained],
                "threshold": float(np.sort(validation)[-k]) if k else None,
                "n_copies": n_copies,
                "flagged_rate": flagged,
                "expected_false_copies": false,
                "copy_rate": copy_rate,
                "copy_rate_ci": interval,
                "copy_rate_at_power": copy_rate / 0.9,
                "strata": [
                    {
                        "label": None,
                        "n_images": n_validation,
                        "n_patients": n_validation,
                        "images_per_patient": [[1, n_validation]],
                        "n_synthetic": n_synthetic,
                        "shares_patients": False,
                        "threshold": float(np.sort(validation)[-k]) if k else None,
                    }
                ],
                "n_mem": n_mem,
                "n_mem_expected_false": false,
                "mem_rate": max(0.0, (n_mem - false) / n_training),
                "n_mem_patients": round(0.9 * n_mem),
                "n_mem_patients_expected_false": false,
                "mem_patients_rate": max(0.0, 0.9 * (n_mem - false) / n_training),
                "n_mem_total_bound": 0.6 * n_training if share_copied else None,
                "n_near_identical": 7 if share_copied else 0,
                "n_partial": 5 if share_copied else 0,
                "near_identical_threshold": 0.999,
                "fdr": {
                    "q": q,
                    "smallest_list": n_synthetic / (q * (n_validation + 1)),
                    "n_copies": n_listed,
                    "n_mem": round(0.35 * share_copied * n_training),
                    "n_mem_expected_false": q * (1 - copy_rate) * n_listed,
                },
            },
            "controls": {
                "gap_auc": 0.71,
                "gap_auc_ci": [0.66, 0.76],
                "gap_reason": None,
                "gap_reference": "validation",
                "nearest_in_training": 0.83 if share_copied else 0.5,
                "nearest_in_training_real": 0.49,
            },
            "power": power,
            "power_summary": {
                "seen": seen,
                "unseen": unseen,
                "working_recall": min(seen, unseen),
                "n_planted": 16,
                "partial": 0.4,
            },
            "encoder": {
                "image_size": [64, 64],
                "channels": 1,
                "spacing": None,
                "clip": None,
                "embedding_size": 128,
                "widths": [32, 64, 128, 256],
                "halvings": 3,
                "training_steps": 4000,
            },
            "distributions": {
                "score": {
                    "edges": edges.tolist(),
                    "validation": np.histogram(validation, edges)[0].tolist(),
                    "synthetic": np.histogram(synthetic, edges)[0].tolist(),
                },
                "p_values": {"edges": p_edges.tolist(), "synthetic": np.histogram(p_values, p_edges)[0].tolist()},
                "sorted_p_values": np.quantile(p_values, np.linspace(0, 1, min(500, n_synthetic))).tolist(),
                "accumulation": {
                    "n_drawn": drawn.tolist(),
                    "synthetic": (n_mem * (1 - np.exp(-3 * drawn / n_synthetic))).tolist(),
                    "validation": (attained * drawn[drawn <= n_validation]).tolist(),
                },
            },
            "verdict": {
                "status": "copies_found" if reasons else "no_copies_found",
                "reasons": reasons,
                "noticeable_rate": interval[1] / min(seen, unseen),
            },
            "provenance": {
                "versions": {"monai_memorization": "0.1.0", "monai": "1.6.1", "torch": "2.13.0"},
                "seed": 0,
                "device": "cpu",
                "created": "2026-03-02T10:15:00+00:00",
                "image_list_sha256": {"training": "ab" * 32, "validation": "cd" * 32, "synthetic": "ef" * 32},
                "encoder_sha256": "12" * 32,
                "seconds": {"train_encoder": 412.0, "embed": 21.4, "nearest_neighbors": 0.8, "power": 33.1},
                "settings": {"alpha": alpha, "q": q, "seed": 0, "device": "cpu", "skip_unreadable": False},
                "scheduler": None,
                "n_steps": None,
            },
        }
    )


def _set(n_images: int, n_patients: int | None) -> dict[str, Any]:
    known = {"n_images": n_images, "n_patients": n_patients, "patients_known": n_patients is not None}
    equal = None if n_patients is None else 0.9 * n_patients
    return known | {
        "n_patients_equal": equal,
        "n_unreadable": 0,
        "n_ignored": None,
        "n_resized": 0,
        "n_duplicates": 0,
    }
