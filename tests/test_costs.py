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
    each, rates = {"hash": 1e-3, "read and embed": 0.01, "register": 2e-3}, dict.fromkeys(costs.OPERATIONS, 1e12)
    alone = costs.hours(10**6, each, rates, 1, 1)
    assert alone["read and embed"] == pytest.approx(2e6 * 0.01 / 3600, rel=0.01)
    assert alone["search"] == pytest.approx(3 * 2 * 128 * 1e12 / 1e12 / 3600, rel=0.01)
    assert alone["windows"] == pytest.approx(9 * 2 * 256 / 3600, rel=0.01)
    assert alone["near-identical"] == pytest.approx(2 * 4 * 2 * 256 / 3600, rel=0.01)  # S in T, and T in itself
    divided = costs.hours(10**6, each, rates, 8, 128)
    assert divided["search"] == pytest.approx(alone["search"] / 8, rel=0.01)
    assert divided["register"] == pytest.approx(alone["register"] / 128, rel=0.01)


def test_benchmark_measures_each_step(costs, tmp_path):
    costs.main(["--output", str(tmp_path / "costs.json"), "--gpu-tflops", "20", "--tiny"])
    result = json.loads((tmp_path / "costs.json").read_text())
    steps = {"hash", "read and embed", "register", *costs.OPERATIONS}
    assert {row.keys() == steps for row in result["hours"].values()} == {True}
    assert set(result["hours"]) == {f"{n} {kind}" for n in (1, 8, 64) for kind in ("cores", "GPUs")}
    assert all(value > 0 for row in result["predicted over measured"].values() for value in row.values())
