# SPDX-License-Identifier: Apache-2.0
"""The cost of watching a training is measured as it is stated."""

from __future__ import annotations

import json

import pytest
from scripts import REPOSITORY, load_script


@pytest.mark.usefixtures("unchanged_process")
def test_watched_run_is_timed_part_by_part_and_ends_with_the_same_weights(
    training_folder, validation_folder, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    overhead = load_script("benchmarks/overhead.py")
    sets = ["--training", str(training_folder), "--validation", str(validation_folder), "--n-training", "40"]

    overhead.main([*sets, "--output", str(tmp_path / "overhead.json"), "--tiny"])

    result = json.loads((tmp_path / "overhead.json").read_text())
    assert result["same_weights"]
    seconds, share = result["seconds"], result["share_of_run"]["wall"]
    assert len(seconds["checks"]) == 2
    checks = sum(check["wall"] for check in seconds["checks"])
    assert share["checks"] == pytest.approx(checks / seconds["alone"]["wall"], abs=1e-3)
    assert checks + seconds["start"]["wall"] < seconds["watched"]["wall"]
    assert share["checks"] < share["start_and_checks"] < share["with_encoder_training"]
