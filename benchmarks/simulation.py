# SPDX-License-Identifier: Apache-2.0
r"""Simulation study of both protocols on Gaussian embeddings: error rates, estimates and coverage of every interval.

    python benchmarks/simulation.py --output docs/data/simulation.json --table docs/data/simulation.md
    python benchmarks/simulation.py --registered --output docs/data/simulation_registered.json \
        --table docs/data/simulation_registered.md

With --registered the audits of the study are repeated with the score of the package: small Gaussian pictures beside the
embeddings, registered with those of the nearest training images.

Every replicate draws new training, validation and synthetic sets. The JSON is written after each cell, and a run that
finds cells of the same sources, seed and number of replicates there goes on after them. Single thread.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import scipy
import torch
from scipy.stats import betabinom, norm
from torch import Generator, Tensor

from monai_memorization.detector.neighbors import nearest
from monai_memorization.detector.scores import copy_scores
from monai_memorization.statistics.conformal import alpha_attained, largest_count, threshold
from monai_memorization.statistics.counts import measure_calibrated
from monai_memorization.statistics.difference import FlaggedSet, copy_rate_difference_ci
from monai_memorization.statistics.false_alarms import false_alarm_rate_interval
from monai_memorization.statistics.gap import gap_auc
from monai_memorization.statistics.paper_protocol import measure_paper_protocol
from monai_memorization.statistics.rates import copy_rate_interval, mean_alpha_attained
from monai_memorization.statistics.residual import noticeable_rate
from monai_memorization.statistics.strata import flag, stratify

ALPHA, Q = 0.05, 0.05
N_TRAINING, SIZE = 200, 16
SIDE = 8  # of the pictures that are registered
# copies are made of the first half of the training set only
N_MEMORIZED = N_TRAINING // 2
N_BOOTSTRAP = 1000
# what the numbers depend on; `git rev-parse COMMIT:PATH` shows whether a commit has the same
SOURCES = (
    "benchmarks/simulation.py",
    "monai_memorization/statistics",
    *(f"monai_memorization/detector/{name}.py" for name in ("similarity", "neighbors")),
)
SOURCES_REGISTERED = (*SOURCES, *(f"monai_memorization/detector/{name}.py" for name in ("scores", "registration")))


@dataclass(frozen=True)
class Cell:
    """One setting.

    `correlation` is that of a patient's images, `copy_noise` what is added to a copied embedding, `copy_share_after`
    the share in the second of two synthetic sets, `shift` how far the synthetic embeddings are moved along one axis.
    """

    study: str
    n_patients: int
    images_per_patient: int = 1
    correlation: float = 0.0
    ratio: float = 1.0
    copy_share: float = 0.0
    copy_noise: float = 0.2
    copy_share_after: float = 0.0
    shift: float = 0.0

    @property
    def n_validation(self) -> int:
        """Validation images."""
        return self.n_patients * self.images_per_patient

    @property
    def n_synthetic(self) -> int:
        """Synthetic images."""
        return round(self.ratio * self.n_validation)

    @property
    def patients(self) -> list[str]:
        """Patient of each validation image."""
        return [str(i // self.images_per_patient) for i in range(self.n_validation)]


def all_cells() -> list[Cell]:
    """The grid of the study."""
    one, several, alike = (100, 1, 0.0), (100, 3, 0.5), (58, 3, 0.9)
    shares = (0.05, 0.15, 0.3, 0.45)
    honest = [Cell("audit", *s, ratio=r) for s in (one, several) for r in (0.5, 1, 2, 5, 10, 20)]
    # the sizes of the paper, 904 against 226, and 10,000 against 200
    honest += [Cell("audit", *one, ratio=4), Cell("audit", *one, ratio=50)]
    honest += [Cell("audit", *alike, ratio=1), Cell("audit", *alike, ratio=20)]
    sizes = [(one, r) for r in (0.5, 1, 5, 20)] + [(several, r) for r in (1, 5)]
    planted = [Cell("audit", *s, ratio=r, copy_share=c) for s, r in sizes for c in shares]
    weak = [Cell("audit", *one, ratio=5, copy_share=c, copy_noise=0.7) for c in shares]
    patients = [(p, *s) for p in (20, 40, 58, 60, 100, 200, 400) for s in ((1, 0.0), (3, 0.5), (3, 0.9))]
    # three images of a patient at the sizes where they matter most
    patients = [p for p in patients if p[1] == 1 or p[0] in (20, 58, 100)]
    similarity = [Cell("similarity", *p, ratio=20, copy_share=c) for p in patients for c in (0.0, 0.15)]
    sets = ((60, 1, 0.0, 1), (60, 1, 0.0, 5), (60, 3, 0.7, 1))
    gap = [Cell("gap", *s, shift=d) for d in (0.0, 1.0, 2.0) for s in sets]
    before_after = ((0.0, 0.0), (0.0, 0.05), (0.15, 0.15), (0.15, 0.05), (0.45, 0.15))
    difference = [
        Cell("difference", *s, ratio=r, copy_share=c, copy_share_after=d)
        for s, r in (((40, 1, 0.0), 5), (several, 2))
        for c, d in before_after
    ]
    # small sets against many patients, where an FDR list can be short
    fdr = [Cell("audit", 400, ratio=r, copy_share=c) for r, c in ((0.1, 0.0), (0.5, 0.0), (0.5, 0.05), (0.5, 0.15))]
    labels = [
        Cell("labels", p, *s, ratio=5, copy_share=c)
        for p, s in ((40, ()), (120, ()), (40, (3, 0.5)))
        for c in (0, 0.15)
    ]
    return honest + planted + weak + fdr + similarity + difference + labels + gap


def registered_cells() -> list[Cell]:
    """The audits that are repeated with a second stage."""
    one, several, alike = (100, 1, 0.0), (100, 3, 0.5), (58, 3, 0.9)
    honest = [
        (one, 0.5, 0.0, 0.2),
        (one, 1, 0.0, 0.2),
        (one, 5, 0.0, 0.2),
        (several, 1, 0.0, 0.2),
        (alike, 1, 0.0, 0.2),
    ]
    planted = [(one, 1, share, 0.2) for share in (0.05, 0.15, 0.3, 0.45)] + [(several, 1, 0.15, 0.2)]
    weak = [(one, 1, share, 0.7) for share in (0.15, 0.45)]
    return [
        Cell("registered", *s, ratio=r, copy_share=c, copy_noise=noise) for s, r, c, noise in honest + planted + weak
    ]


def draw_validation(cell: Cell, size: int, generator: Generator) -> Tensor:
    """Standard normal values whose correlation is that of the cell within a patient, (n_V, size)."""
    of_patient = torch.randn(cell.n_patients, 1, size, generator=generator)
    of_image = torch.randn(cell.n_patients, cell.images_per_patient, size, generator=generator)
    return (cell.correlation**0.5 * of_patient + (1 - cell.correlation) ** 0.5 * of_image).reshape(-1, size)


def score(queries: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """Scores and matches: by embedding alone, or by the score of the package where values go on with a picture."""
    if queries.shape[1] == SIZE:
        similarity, match = nearest(queries, training)
        return similarity[:, 0], match[:, 0]
    pictures = [values[:, SIZE:].view(-1, 1, SIDE, SIDE) for values in (queries, training)]
    patients = [str(i) for i in range(len(training))]
    return copy_scores(queries[:, :SIZE], pictures[0], training[:, :SIZE], pictures[1], patients)[:2]


def audit(cell: Cell, generator: Generator) -> dict[str, float]:
    """Draw three sets, plant copies, apply both protocols, and compare with what was planted."""
    size = SIZE + (SIDE**2 if cell.study == "registered" else 0)
    training = torch.randn(N_TRAINING, size, generator=generator)
    validation = draw_validation(cell, size, generator)
    synthetic = torch.randn(cell.n_synthetic, size, generator=generator)
    n_copies = round(cell.copy_share * cell.n_synthetic)
    source = torch.randint(N_MEMORIZED, (n_copies,), generator=generator)
    synthetic[:n_copies] = training[source] + cell.copy_noise * torch.randn(n_copies, size, generator=generator)
    plants = training + cell.copy_noise * torch.randn(N_TRAINING, size, generator=generator)

    queries = torch.cat([validation, synthetic, plants])
    similarity, match = score(queries, training)
    of_validation, of_synthetic, of_plants = similarity.split([cell.n_validation, cell.n_synthetic, N_TRAINING])
    match = match[cell.n_validation : -N_TRAINING]
    strata = stratify(cell.patients, cell.n_synthetic)
    flags = flag(of_validation, of_synthetic, strata, alpha=ALPHA, q=Q)
    level = threshold(of_validation, ALPHA, cell.n_patients)
    recall = share_of(of_plants.double() > level)
    patients = [str(i) for i in range(N_TRAINING)]
    found = measure_calibrated(flags, of_validation, match, patients, strata, alpha=ALPHA, q=Q, recall=recall)
    paper = measure_paper_protocol(*(values[:, :SIZE] for values in (training, validation, synthetic)))
    of_honest = nearest(synthetic[n_copies:, :SIZE], training[:, :SIZE])[0].double()
    paper_false = int((of_honest > paper.tau).sum()) / max(1, paper.n_copies)

    noticeable = noticeable_rate(found.n_copies, cell.n_synthetic, ALPHA, strata, (recall, N_TRAINING))
    share, memorized = n_copies / cell.n_synthetic, len(source.unique())
    honest, rank = flags.copy_candidate[n_copies:], found.alpha_attained * (cell.n_patients + 1)
    low, high = betabinom.interval(0.95, len(honest), rank, cell.n_patients + 1 - rank)
    caught = flags.copy_candidate[:n_copies]
    # what copy_rate estimates: unseen copies do not count, and chance flags copies too
    seen = (int(caught.sum()) - found.alpha_attained * n_copies) / cell.n_synthetic / (1 - found.alpha_attained)
    row = {
        "false_alarm_rate": share_of(honest),
        "attained": found.alpha_attained,
        "count_in_beta_binomial": float(low <= int(honest.sum()) <= high),
        "fdr_list_not_empty": float(found.fdr.n_copies > 0),
        "false_discovery_proportion": int(flags.in_fdr_list[n_copies:].sum()) / max(1, found.fdr.n_copies),
        "excess": float(found.copy_rate_ci[0] > 0),
        "copy_rate_error": found.copy_rate - share,
        "copy_rate_covered": float(found.copy_rate_ci[0] <= max(0.0, seen) <= found.copy_rate_ci[1]),
        "copy_rate_width": found.copy_rate_ci[1] - found.copy_rate_ci[0],
        "share_at_most_noticeable": float(share <= noticeable),
        "copy_rate_at_power_error": (found.copy_rate_at_power if found.copy_rate_at_power is not None else 0) - share,
        "mem_rate_error": found.mem_rate - memorized / N_TRAINING,
        "n_mem_share": found.n_mem / N_TRAINING,
        "paper_mem_rate": paper.mem_rate,
        "paper_mem_null_rate": paper.mem_null_rate,
        "paper_mem_rate_matched": paper.mem_rate_matched,
        "paper_copy_rate": paper.copy_rate,
        "paper_copy_null_rate": paper.copy_null_rate,
        "paper_false_discovery_proportion": paper_false,
    }
    if n_copies > 0:
        row |= {
            "recall": share_of(caught),
            "recall_of_fdr_list": share_of(flags.in_fdr_list[:n_copies]),
            "right_match": share_of((match[:n_copies] == source)[caught]) if caught.any() else 1.0,
            "total_bound_given": float(found.n_mem_total_bound is not None),
        }
        if found.n_mem_total_bound is not None:
            row["total_bound_over_truth"] = found.n_mem_total_bound / N_MEMORIZED
            row["total_bound_holds"] = float(found.n_mem_total_bound <= N_MEMORIZED)
    return row


def audit_similarities(cell: Cell, generator: Generator) -> dict[str, float]:
    """Similarities drawn directly, so that the false-alarm rate of each threshold is known exactly; both intervals."""
    validation = draw_validation(cell, 1, generator)[:, 0].double()
    synthetic = torch.randn(cell.n_synthetic, generator=generator).double()
    n_copies = round(cell.copy_share * cell.n_synthetic)
    synthetic[:n_copies] = 100.0
    strata = stratify(cell.patients, cell.n_synthetic)
    level = threshold(validation, ALPHA, cell.n_patients)
    false_alarms, share = float(norm.sf(level)), n_copies / cell.n_synthetic
    attained = alpha_attained(ALPHA, cell.n_patients, cell.n_validation)
    alarm_low, alarm_high = false_alarm_rate_interval(ALPHA, strata)
    low, high = copy_rate_interval(int((synthetic > level).sum()), cell.n_synthetic, ALPHA, strata)
    boot_low, boot_high = bootstrap(cell, validation, synthetic, generator)
    return {
        "false_alarm_rate": false_alarms,
        "attained": attained,
        "attained_by_floor": alpha_attained(ALPHA, cell.n_patients),
        "false_alarm_rate_covered": float(alarm_low <= false_alarms <= alarm_high),
        "excess": float(low > 0),
        "copy_rate_covered": float(low <= share <= high),
        "copy_rate_width": high - low,
        "bootstrap_excess": float(boot_low > 0),
        "bootstrap_covered": float(boot_low <= share <= boot_high),
        "bootstrap_width": boot_high - boot_low,
    }


def audit_labels(cell: Cell, generator: Generator) -> dict[str, float]:
    """Two labels, b with half the patients of a and similarities higher by one, p-values within label and without."""
    half = Cell(cell.study, cell.n_patients // 2, cell.images_per_patient, cell.correlation)
    validation = torch.cat([draw_validation(c, 1, generator)[:, 0].double() + (c is half) for c in (cell, half)])
    patients = [f"a{p}" for p in cell.patients] + [f"b{p}" for p in half.patients]
    of_validation = ["a"] * cell.n_validation + ["b"] * half.n_validation
    of_synthetic = ["a", "b"] * (cell.n_synthetic // 2)
    n_synthetic = len(of_synthetic)
    synthetic = torch.randn(n_synthetic, generator=generator).double() + (torch.arange(n_synthetic) % 2)
    n_copies = round(cell.copy_share * n_synthetic)
    synthetic[:n_copies] = 100.0
    strata = stratify(patients, n_synthetic, of_validation, of_synthetic)
    levels = [threshold(validation[s.validation], ALPHA, s.n_patients) for s in strata]
    by_label = [float(norm.sf(level - shift)) for shift, level in enumerate(levels)]
    pooled = threshold(validation, ALPHA, sum(s.n_patients for s in strata))
    alarm_low, alarm_high = false_alarm_rate_interval(ALPHA, strata)
    flags = flag(validation, synthetic, strata, alpha=ALPHA, q=Q)
    low, high = copy_rate_interval(int(flags.copy_candidate.sum()), n_synthetic, ALPHA, strata)
    return {
        "false_alarm_rate": sum(by_label) / 2,
        "attained": mean_alpha_attained(ALPHA, strata),
        "false_alarm_rate_covered": float(alarm_low <= sum(by_label) / 2 <= alarm_high),
        "excess": float(low > 0),
        "copy_rate_covered": float(low <= n_copies / n_synthetic <= high),
        "pooled_false_alarm_rate_a": float(norm.sf(pooled)),
        "pooled_false_alarm_rate_b": float(norm.sf(pooled - 1)),
    }


def bootstrap(cell: Cell, validation: Tensor, synthetic: Tensor, generator: Generator) -> tuple[float, float]:
    """The interval that was given up: patients and images resampled together, threshold anew in each draw."""
    patients, n = cell.n_patients, cell.n_validation
    ordered, order = validation.sort(descending=True)
    drawn = torch.randint(patients, (N_BOOTSTRAP, patients), generator=generator)
    weight = torch.zeros(N_BOOTSTRAP, patients, dtype=torch.int64).scatter_add_(1, drawn, torch.ones_like(drawn))
    above = weight[:, order // cell.images_per_patient].cumsum(dim=1)
    position = (above <= largest_count(ALPHA, n, patients)).sum(dim=1)
    flagged = len(synthetic) - torch.searchsorted(synthetic.sort().values, ordered, right=True)
    chance = flagged[position].double() / len(synthetic)
    rate = torch.binomial(torch.full_like(chance, len(synthetic)), chance, generator=generator) / len(synthetic)
    attained = alpha_attained(ALPHA, patients)
    rates = ((rate - attained) / (1 - attained)).clamp(min=0)
    low, high = rates.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high


def audit_difference(cell: Cell, generator: Generator) -> dict[str, float]:
    """Two synthetic sets against the same validation set: the interval of the difference of their copy rates."""
    validation = draw_validation(cell, 1, generator)[:, 0].double()
    level, n = threshold(validation, ALPHA, cell.n_patients), cell.n_synthetic
    strata = stratify(cell.patients, n)
    shares = [round(share * n) / n for share in (cell.copy_share, cell.copy_share_after)]
    flagged = []
    for share in shares:
        synthetic = torch.randn(n, generator=generator).double()
        synthetic[: round(share * n)] = 100.0
        flagged.append(int((synthetic > level).sum()))
    low, high = copy_rate_difference_ci(*(FlaggedSet(x, n, strata) for x in flagged), ALPHA) or (math.nan, math.nan)
    first, second = (copy_rate_interval(x, n, ALPHA, strata) for x in flagged)
    return {
        "difference_covered": float(low <= shares[1] - shares[0] <= high),
        "difference_width": high - low,
        "change_claimed": float(low > 0 or high < 0),
        "wrong_sign": float((low > 0 and shares[1] <= shares[0]) or (high < 0 and shares[1] >= shares[0])),
        "intervals_apart": float(first[0] > second[1] or second[0] > first[1]),
    }


def audit_gap(cell: Cell, generator: Generator) -> dict[str, float]:
    """Gap between two sets: the AUC is 0.5 without a shift, and otherwise what the classifier reaches on average."""
    validation = draw_validation(cell, SIZE, generator)
    synthetic = torch.randn(cell.n_synthetic, SIZE, generator=generator)
    synthetic[:, 0] += cell.shift
    gap = gap_auc(validation, synthetic, cell.patients, seed=int(torch.randint(2**31, (1,), generator=generator)))
    low, high = gap.ci or (math.nan, math.nan)
    return {"gap_auc": gap.auc or math.nan, "gap_auc_low": low, "gap_auc_high": high}


def cover_gap(cell: Cell, rows: list[dict[str, float]]) -> None:
    """Add whether each interval holds the AUC that this classifier has on average at these sizes."""
    truth = sum(row["gap_auc"] for row in rows) / len(rows) if cell.shift else 0.5
    for row in rows:
        row["gap_auc_covered"] = float(row["gap_auc_low"] <= truth <= row["gap_auc_high"])
        row["gap_auc_width"] = row["gap_auc_high"] - row["gap_auc_low"]


STUDIES: dict[str, Callable[[Cell, Generator], dict[str, float]]] = {
    "audit": audit,
    "registered": audit,
    "similarity": audit_similarities,
    "difference": audit_difference,
    "labels": audit_labels,
    "gap": audit_gap,
}


def share_of(mask: Tensor) -> float:
    """Share of true entries."""
    return float(mask.double().mean())


def run_cell(cell: Cell, n_replicates: int, seed: int) -> dict[str, object]:
    """Mean and standard error of every quantity over the replicates that have it."""
    start, rows = time.perf_counter(), []
    for replicate in range(n_replicates):
        generator = Generator().manual_seed(seed * 1_000_003 + replicate)
        rows.append(STUDIES[cell.study](cell, generator))
    if cell.study == "gap":
        cover_gap(cell, rows)
    summary: dict[str, tuple[float, float]] = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = torch.tensor([row[name] for row in rows if name in row], dtype=torch.float64)
        error = float(values.std()) / len(values) ** 0.5 if len(values) > 1 else math.nan
        summary[name] = round(float(values.mean()), 6), round(error, 6)
    return {"cell": asdict(cell), "seconds": round(time.perf_counter() - start, 1), "mean_and_se": summary}


def describe_run(sources: Sequence[str], n_replicates: int, seed: int) -> dict[str, object]:
    """What identifies a run."""
    command = ["git", "rev-parse", *(f"HEAD:{path}" for path in sources)]
    folder = Path(__file__).parent.parent
    hashes = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder).stdout.split()
    return {
        "sources": dict(zip(sources, hashes, strict=True)),
        "seed": seed,
        "n_replicates": n_replicates,
        "alpha": ALPHA,
        "q": Q,
    }


def hardware() -> dict[str, object]:
    """Machine and versions."""
    cpu = [
        line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line
    ]
    versions = {"python": platform.python_version(), "torch": torch.__version__, "scipy": scipy.__version__}
    return {"cpu": cpu[0] if cpu else platform.processor(), "threads": torch.get_num_threads(), **versions}


def main() -> None:
    """Run all cells that are missing, write the JSON, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--table", type=Path, help="write the tables there as well")
    parser.add_argument("--registered", action="store_true", help="repeat the audits with a second stage")
    parser.add_argument("--replicates", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cells, sources = (registered_cells(), SOURCES_REGISTERED) if arguments.registered else (all_cells(), SOURCES)
    run = describe_run(sources, arguments.replicates, arguments.seed)
    known = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    done = known.get("cells", []) if {key: known.get(key) for key in run} == run else []
    finished = [entry["cell"] for entry in done]
    for number, cell in enumerate(cells):
        if asdict(cell) in finished:
            continue
        done.append(run_cell(cell, arguments.replicates, arguments.seed * 1000 + number))
        result = {**run, "hardware": hardware(), "seconds": sum(e["seconds"] for e in done), "cells": done}
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        partial = arguments.output.with_suffix(".partial")
        partial.write_text(json.dumps(result, indent=None, separators=(",", ":")))
        partial.replace(arguments.output)
        print(f"{done[-1]['seconds']:6.1f} s  {cell}", flush=True)
    text = tables(done)
    print(text)
    if arguments.table is not None:
        arguments.table.write_text(text, encoding="utf-8")


AUDITS = ("audit", "registered")
TABLES: dict[str, tuple[Callable[[dict], bool], list[str]]] = {
    "Nothing copied, paper protocol": (
        lambda c: c["study"] in AUDITS and c["copy_share"] == 0,
        ["paper_mem_rate", "paper_mem_null_rate", "paper_mem_rate_matched", "paper_copy_rate", "paper_copy_null_rate"],
    ),
    "Nothing copied, calibrated protocol": (
        lambda c: c["study"] in AUDITS and c["copy_share"] == 0,
        [
            "false_alarm_rate",
            "attained",
            "count_in_beta_binomial",
            "fdr_list_not_empty",
            "excess",
            "copy_rate_error",
            "copy_rate_covered",
            "n_mem_share",
            "mem_rate_error",
        ],
    ),
    "Planted copies: errors": (
        lambda c: c["study"] in AUDITS and c["copy_share"] > 0,
        [
            "recall",
            "right_match",
            "recall_of_fdr_list",
            "false_discovery_proportion",
            "paper_false_discovery_proportion",
            "excess",
            "copy_rate_covered",
            "copy_rate_width",
            "share_at_most_noticeable",
        ],
    ),
    "Planted copies: estimates less truth": (
        lambda c: c["study"] in AUDITS and c["copy_share"] > 0,
        [
            "copy_rate_error",
            "copy_rate_at_power_error",
            "mem_rate_error",
            "total_bound_given",
            "total_bound_over_truth",
            "total_bound_holds",
            "paper_copy_rate",
            "paper_mem_rate",
        ],
    ),
    "Known false-alarm rate: intervals, and the bootstrap that was given up": (
        lambda c: c["study"] == "similarity",
        [
            "false_alarm_rate",
            "attained",
            "attained_by_floor",
            "false_alarm_rate_covered",
            "excess",
            "bootstrap_excess",
            "copy_rate_covered",
            "bootstrap_covered",
            "copy_rate_width",
            "bootstrap_width",
        ],
    ),
    "p-values within label": (
        lambda c: c["study"] == "labels",
        [
            "false_alarm_rate",
            "attained",
            "false_alarm_rate_covered",
            "excess",
            "copy_rate_covered",
            "pooled_false_alarm_rate_a",
            "pooled_false_alarm_rate_b",
        ],
    ),
    "Two synthetic sets, one validation set": (
        lambda c: c["study"] == "difference",
        ["difference_covered", "difference_width", "change_claimed", "wrong_sign", "intervals_apart"],
    ),
    "Gap": (lambda c: c["study"] == "gap", ["gap_auc", "gap_auc_covered", "gap_auc_width"]),
}


def tables(entries: list[dict]) -> str:
    """Markdown tables, mean with its standard error in units of the last digit."""
    lines = []
    shown = {title: table for title, table in TABLES.items() if any(table[0](e["cell"]) for e in entries)}
    for title, (belongs, names) in shown.items():
        lines += [
            f"### {title}",
            "",
            "| patients x images (corr.) | n_S/n_V | copies (noise) | " + " | ".join(names) + " |",
        ]
        lines.append("|---" * (3 + len(names)) + "|")
        for entry in entries:
            cell, values = entry["cell"], entry["mean_and_se"]
            if belongs(cell):
                sets = f"{cell['n_patients']} x {cell['images_per_patient']} ({cell['correlation']:g})"
                copies = f"{cell['copy_share']:.0%} ({cell['copy_noise']:g})" if cell["copy_share"] else "0"
                if cell["study"] == "difference":
                    copies = f"{cell['copy_share']:.0%} → {cell['copy_share_after']:.0%}"
                if cell["study"] == "gap":
                    copies = f"0, moved by {cell['shift']:g}"
                row = [f"{values[n][0]:.4f} ({1e4 * values[n][1]:.0f})" if n in values else "" for n in names]
                lines.append(f"| {sets} | {cell['ratio']:g} | {copies} | " + " | ".join(row) + " |")
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
