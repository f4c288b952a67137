# SPDX-License-Identifier: Apache-2.0
"""The benchmark of layouts and precisions runs every way on every part."""

from __future__ import annotations

import json

import pytest
import torch
from scripts import REPOSITORY, load_script


@pytest.mark.usefixtures("unchanged_process")
@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
def test_each_part_is_timed_in_each_way(capability, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    precision = load_script("benchmarks/precision.py")
    monkeypatch.setattr(torch, "compile", lambda network: network)  # compiling takes minutes
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)

    precision.main(["--output", str(tmp_path / "precision.json"), "--tiny"])

    parts = json.loads((tmp_path / "precision.json").read_text())["seconds"]
    assert {part for name in parts for part in parts[name]} == {
        "training step",
        "embedding",
        "autoencoder step",
        "decoding",
        "diffusion step",
    }
    ways, half = {*precision.WAYS, "compiled"}, {way for way, (_, half) in precision.WAYS.items() if half}
    for times in (times for part in parts.values() for times in part.values()):
        assert times.keys() == ways
        assert {way for way, seconds in times.items() if seconds is None} == (half if capability == "AVX2" else set())
        assert all(seconds is None or seconds > 0 for seconds in times.values())
