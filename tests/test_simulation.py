# SPDX-License-Identifier: Apache-2.0
"""The stored simulation study: what it had to show holds, and the documentation says what it says."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from scripts import load_script

REPOSITORY = Path(__file__).parent.parent
STORED = REPOSITORY / "docs" / "data" / "simulation.json"
FIGURES = REPOSITORY / "docs" / "figures"


simulation, simulation_figures = (load_script(f"benchmarks/{name}.py") for name in ("simulation", "simulation_figures"))


@pytest.fixture(scope="module")
def study() -> dict[str, Any]:
    return json.loads(STORED.read_text(encoding="utf-8"))


def test_study_is_whole(study):
    assert [entry["cell"] for entry in study["cells"]] == [vars(cell) for cell in simulation.all_cells()]
    assert study["n_replicates"] >= 1000


def test_errors_stay_where_they_are_with_the_registered_score():
    stored = STORED.with_name("simulation_registered.json")
    entries = json.loads(stored.read_text(encoding="utf-8"))["cells"]

    assert [entry["cell"] for entry in entries] == [vars(cell) for cell in simulation.registered_cells()]
    assert stored.with_suffix(".md").read_text() == simulation.tables(entries)
    for entry in entries:
        values = entry["mean_and_se"]
        level, error = values["attained"][0], values["false_alarm_rate"][1]
        assert values["false_alarm_rate"][0] <= level + 3 * error
        assert values["false_discovery_proportion"][0] <= simulation.Q + 3 * values["false_discovery_proportion"][1]
        assert values["copy_rate_covered"][0] >= simulation_figures.COVERAGE_NEEDED


def test_everything_that_had_to_hold_holds(study):
    table = simulation_figures.claims(study["cells"])

    assert table.count("| yes |") == len(simulation_figures.INTERVALS) + 4
    assert "| no |" not in table


def test_a_cell_that_misses_the_line_is_told(study):
    entries = json.loads(json.dumps(study["cells"]))
    entries[0]["mean_and_se"]["copy_rate_covered"] = [0.92, 0.009]
    entries[1]["mean_and_se"]["false_alarm_rate"] = [0.06, 0.001]

    assert simulation_figures.claims(entries).count("| no |") == 2


def test_documentation_shows_the_stored_numbers(study):
    table = simulation_figures.claims(study["cells"])
    method = (REPOSITORY / "docs" / "method.md").read_text(encoding="utf-8")

    assert (FIGURES / "claims.md").read_text(encoding="utf-8") == table, "run benchmarks/simulation_figures.py"
    assert table in method
    assert (REPOSITORY / "docs" / "data" / "simulation.md").read_text() == simulation.tables(study["cells"])
    shown = set(re.findall(r"\(figures/(\w+)\.svg\)", method))
    assert shown == set(simulation_figures.FIGURES) == {path.stem for path in FIGURES.glob("simulation_*.svg")}


@pytest.mark.parametrize("name", simulation.STUDIES)
def test_each_study_runs_and_repeats_itself(name):
    cell = next(cell for cell in simulation.all_cells() + simulation.registered_cells() if cell.study == name)
    first, second = (simulation.run_cell(cell, 2, seed=1)["mean_and_se"] for _ in range(2))

    assert first == second
    assert all(mean == mean for mean, _ in first.values())
