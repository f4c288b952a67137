# SPDX-License-Identifier: Apache-2.0
"""The benchmark of layouts and precisions runs every way on every part."""

from __future__ import annotations

import json

import pytest
import torch
from scripts import REPOSITORY, load_script


@pytest.mark.usefixtures("unchanged_process")
def test_each_part_is_timed_in_each_way(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    precision = load_script("benchmarks/precision.py")
    monkeypatch.setattr(torch, "compile", lambda network: network)  # compiling takes minutes

    precision.main(["--output", str(tmp_path / "precision.json"), "--tiny"])

    parts = json.loads((tmp_path / "precision.json").read_text())["seconds"]
    assert {part for name in parts for part in parts[name]} == {
        "training step",
        "embedding",
        "autoencoder step",
        "decoding",
        "diffusion step",
    }
    ways = {*precision.WAYS, "compiled"}
    assert all(times.keys() == ways and min(times.values()) > 0 for name in parts for times in parts[name].values())
