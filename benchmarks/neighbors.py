# SPDX-License-Identifier: Apache-2.0
"""The exact search against the machine's matrix product, faiss and scipy: time in one run, memory, cost model.

In every round each way is taken once, so that a change of the machine's speed meets all of them; ratios are within
the round, and their median and range over the rounds are written down. With one thread it is the time on the processor
that counts, which other processes disturb less. faiss-cpu is compared where it is installed; nothing else needs it.

    python benchmarks/neighbors.py --output neighbors.json --sizes 10000 30000 100000 --rounds 5 --threads 1
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import multiprocessing
import re
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from overhead import commit, machine
from torch import Tensor

from monai_memorization.detector.neighbors import nearest

DIMENSIONS = 128
TILES = ((512, 512), (2048, 512), (2048, 2048))


def main() -> None:
    """Measure size by size; the JSON is written anew after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 30_000, 100_000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--scipy", type=int, default=0, metavar="N", help="compare with scipy at this size too")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {
        "commit": commit(),
        "machine": machine(),
        "rounds": options.rounds,
    }
    for n in options.sizes:
        result[f"{n}"] = _compare(n, options.rounds, options.threads) | {
            "extra_memory_mb": {f"top_{k}": _peak_mb(_search, n, k) for k in (1, 5)}
        }
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    if options.scipy:
        result["scipy"] = _compare_with_scipy(options.scipy, options.rounds)
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def _vectors(n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, reference = (torch.randn(n, DIMENSIONS, generator=generator) for _ in range(2))
    # rows of unit norm and mean 0, so that the inner product of faiss is the correlation too
    return tuple(torch.nn.functional.normalize(v - v.mean(dim=1, keepdim=True)) for v in (query, reference))  # type: ignore[return-value]


def _compare(n: int, rounds: int, threads: int) -> dict[str, Any]:
    query, reference = _vectors(n)
    ways: dict[str, Callable[[], Any]] = {
        **{f"product_{q}x{r}": partial(_product, query, reference, q, r) for q, r in TILES},
        "plain_loop_with_max": partial(_plain, query, reference),
        "nearest": partial(nearest, query, reference),
        "nearest_5": partial(nearest, query, reference, 5),
    }
    if importlib.util.find_spec("faiss"):
        faiss = importlib.import_module("faiss")
        faiss.omp_set_num_threads(threads)
        index = faiss.IndexFlatIP(DIMENSIONS)
        index.add(reference.numpy())
        ways |= {f"faiss_{k}": partial(index.search, query.numpy(), k) for k in (1, 5)}
        found = index.search(query.numpy(), 1)[1][:, 0]
        agreement = (torch.from_numpy(found) == nearest(query, reference)[1][:, 0]).double().mean().item()
    clock = time.process_time if threads == 1 else time.perf_counter
    seconds = [{name: _time(way, clock) for name, way in ways.items()} for _ in range(rounds)]
    # the machine's rate is that of the tile that suits it best
    best = [min(value for name, value in row.items() if name.startswith("product")) for row in seconds]
    result = {
        "sgemm_gflops": _spread([2e-9 * n * n * DIMENSIONS / value for value in best]),
        "seconds": {name: _spread([row[name] for row in seconds]) for name in ways},
        "share_of_sgemm": {
            name: _spread([value / row[name] for value, row in zip(best, seconds, strict=True)])
            for name in ways
            if not name.startswith("product")
        },
    }
    if "faiss_1" in ways:
        pairs = {"nearest": "faiss_1", "nearest_5": "faiss_5", "plain_loop_with_max": "faiss_1"}
        result["time_over_faiss"] = {
            name: _spread([row[name] / row[other] for row in seconds]) for name, other in pairs.items()
        }
        result["same_index_as_faiss"] = agreement
    return result


def _compare_with_scipy(n: int, rounds: int) -> dict[str, Any]:
    """Against the paper's way: all distances at once, then sorted."""
    query, reference = _vectors(n)
    ratios = []
    for _ in range(rounds):
        ours = _time(partial(nearest, query, reference), time.process_time)
        ratios.append(_time(partial(_cdist, query, reference), time.process_time) / ours)
    memory = {"scipy": _peak_mb(_search_with_scipy, n, 1), "nearest": _peak_mb(_search, n, 1)}
    return {"n": n, "time_over_nearest": _spread(ratios), "extra_memory_mb": memory}


def _cdist(query: Tensor, reference: Tensor) -> Any:
    from scipy.spatial.distance import cdist

    return cdist(query.numpy(), reference.numpy(), "correlation").argsort(axis=1)[:, 0]


def _product(query: Tensor, reference: Tensor, query_block: int, reference_block: int) -> None:
    memory = torch.empty(query_block, reference_block)
    for rows in query.split(query_block):
        for columns in reference.split(reference_block):
            torch.mm(rows, columns.T, out=memory[: len(rows), : len(columns)])


def _plain(query: Tensor, reference: Tensor) -> None:
    for rows in query.split(2048):
        best = torch.full((len(rows),), -2.0)
        index = torch.zeros(len(rows), dtype=torch.int64)
        for start in range(0, len(reference), 2048):
            value, column = (rows @ reference[start : start + 2048].T).max(dim=1)
            better = value > best
            best[better], index[better] = value[better], column[better] + start


def _search(n: int, k: int) -> None:
    nearest(*_vectors(n), k)


def _search_with_scipy(n: int, _: int) -> None:
    _cdist(*_vectors(n))


def _peak_mb(function: Callable[[int, int], None], n: int, k: int) -> float:
    """Return the memory that a search takes beyond its input, measured in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return round(pool.apply(_measure_peak, (function, n, k)), 1)


def _measure_peak(function: Callable[[int, int], None], n: int, k: int) -> float:
    torch.set_num_threads(1)
    function(64, k)  # what is loaded at the first call
    vectors = _vectors(n)  # as much as the search makes anew
    before = _peak_rss()
    del vectors
    function(n, k)
    return (_peak_rss() - before) / 1024


def _peak_rss() -> int:
    """Return the most memory in use since the last call, kB; Linux alone can forget what came before."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    Path("/proc/self/clear_refs").write_text("5")
    return int(found[1]) if found else 0


def _time(function: Callable[[], Any], clock: Callable[[], float]) -> float:
    start = clock()
    function()
    return clock() - start


def _spread(values: list[float]) -> dict[str, float]:
    rounded = [float(f"{value:.4g}") for value in (statistics.median(values), min(values), max(values))]
    return dict(zip(("median", "least", "most"), rounded, strict=True))


if __name__ == "__main__":
    main()
