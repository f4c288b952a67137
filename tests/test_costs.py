# SPDX-License-Identifier: Apache-2.0
"""The cost model counts what it says, and its benchmark runs."""

from __future__ import annotations

import json

import pytest
from scripts import REPOSITORY, load_script


@pytest.fixture
def costs(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return load_script("benchmarks/costs.py")


def test_hours_are_operations_over_rates_and_seconds_of_images(costs):
    each, of_pairs = (
        {"hash": 1e-3, "read and embed": 0.01, "register": 2e-3},
        dict.fromkeys(costs.OPERATIONS, costs.Cost(1e-12, 0.0)),
    )
    alone = costs.hours(10**6, each, of_pairs, 1, 1)
    assert alone["read and embed"] == pytest.approx(2e6 * 0.01 / 3600, rel=0.01)
    assert alone["search"] == pytest.approx(3 * 2 * 128 * 1e12 / 1e12 / 3600, rel=0.01)
    assert alone["windows"] == pytest.approx(9 * 2 * 256 / 3600, rel=0.01)
    assert alone["near-identical"] == pytest.approx(2 * 4 * 2 * 256 / 3600, rel=0.01)  # S in T, and T in itself
    divided = costs.hours(10**6, each, of_pairs, 8, 128)
    assert divided["search"] == pytest.approx(alone["search"] / 8, rel=0.01)
    assert divided["register"] == pytest.approx(alone["register"] / 128, rel=0.01)


def test_fit_finds_what_an_operation_and_an_image_take(costs, monkeypatch):
    true = {step: costs.Cost(2e-11 * (i + 1), 1e-4 * i) for i, step in enumerate(costs.OPERATIONS)}
    monkeypatch.setattr(costs, "seconds_of_pairs", lambda size: {step: cost(step, size) for step, cost in true.items()})

    found = costs.fit(costs.FITTED)

    for step, cost in true.items():
        assert found[step].of_operation == pytest.approx(cost.of_operation, rel=1e-6)
        assert found[step].of_image == pytest.approx(cost.of_image, rel=1e-6, abs=1e-12)
    size = costs.Size(1000, 3000, 64)
    assert found["search"]("search", size) == pytest.approx(2 * 64 * 3e6 * 2e-11, rel=1e-6)


def test_benchmark_measures_each_step(costs, tmp_path):
    costs.main(["--output", str(tmp_path / "costs.json"), "--gpu-tflops", "20", "--tiny"])
    result = json.loads((tmp_path / "costs.json").read_text())
    steps = {"hash", "read and embed", "register", *costs.OPERATIONS}
    assert {row.keys() == steps for row in result["hours"].values()} == {True}
    assert set(result["hours"]) == {f"{n} {kind}" for n in (1, 8, 64) for kind in ("cores", "GPUs")}
    assert all(value > 0 for row in result["predicted over measured"].values() for value in row.values())
