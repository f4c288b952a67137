# SPDX-License-Identifier: Apache-2.0
"""The audit is timed against the paper's way, which counts the same."""

from __future__ import annotations

import json

import pytest
from scripts import REPOSITORY, load_script


def test_both_ways_count_the_same_and_their_times_are_held_against_each_other(
    training_folder, validation_folder, encoder_file, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    audit_time = load_script("benchmarks/audit_time.py")
    sets = ["--training", training_folder, "--validation", validation_folder, "--synthetic", training_folder]
    options = [*sets, "--encoder", encoder_file, "--rounds", 1, "--output", tmp_path / "times.json"]

    audit_time.main([str(option) for option in options])

    result = json.loads((tmp_path / "times.json").read_text())
    # every image is a copy of itself
    assert result["counts"] == {"n_mem": result["n_images"]["training"], "n_copies": result["n_images"]["synthetic"]}
    seconds = result["rounds"][0]
    faster = seconds["papers_way"]["wall"] / seconds["whole_audit"]["wall"]
    assert result["times_faster"]["whole_audit, wall"] == pytest.approx(faster)
    stages = result["seconds_of_stages"][0]
    assert stages.pop("of embedding").keys() == {"read", "network"}
    assert sum(stages.values()) <= seconds["whole_audit"]["wall"]
