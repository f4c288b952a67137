# SPDX-License-Identifier: Apache-2.0
"""What is measured on a GPU runs on the CPU at tiny size, and its search and embeddings are those of the CPU."""

from __future__ import annotations

import json

import pytest
from scripts import REPOSITORY, load_script


def test_every_part_is_measured(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    monkeypatch.setattr("sys.argv", ["gpu.py", "--tiny", "--output", str(tmp_path / "gpu.json")])

    load_script("benchmarks/gpu.py").main()

    result = json.loads((tmp_path / "gpu.json").read_text())
    assert json.loads(capsys.readouterr().out) == result
    parts = ["ceilings", "search", "registration", "encoder", "latent_diffusion", "compiled"]
    assert list(result) == ["commit", "machine", *parts]
    for k in (1, 5):
        compared = result["search"][f"top_{k}_of_1000_in_700"]
        assert compared["same_index_as_cpu"] is True
        assert compared["largest_difference_from_cpu"] == pytest.approx(0, abs=1e-5)
    assert all(
        part["largest_difference_from_cpu"] < 1e-4 for name, part in result["registration"].items() if "x" in name
    )
    assert result["encoder"]["16x16"]["largest_difference_from_cpu"] == pytest.approx(0, abs=1e-4)
    rates = result["latent_diffusion"]["16x16"]["diffusion_steps_per_s"]
    assert {"float32", "amp", "amp_channels_last"} == set(rates)
    assert all(rate["median"] > 0 for rate in rates.values())
