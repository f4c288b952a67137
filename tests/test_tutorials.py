# SPDX-License-Identifier: Apache-2.0
"""Tutorials: each notebook is its script, executed; what the script finds is what was planted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from scripts import load_script

REPOSITORY = Path(__file__).parent.parent
SCRIPTS = sorted((REPOSITORY / "docs" / "tutorials").glob("*.py"))


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_script("tools/make_notebook.py")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_notebook_is_its_script(script, tool):
    notebook = json.loads(script.with_suffix(".ipynb").read_text(encoding="utf-8"))

    assert [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]] == tool.cells_of(script)
    assert any(cell.get("outputs") for cell in notebook["cells"])
    assert "/tmp/" not in json.dumps([cell.get("outputs") for cell in notebook["cells"]])


def test_what_a_cell_prints_stands_below_it(tool, tmp_path):
    (tmp_path / "small.py").write_text(
        "# %% [markdown]\n# # Title\n\n# %%\nx = 2\n\n# %%\nprint(x + 1)\n", encoding="utf-8"
    )

    cells = json.loads(tool.make_notebook(tmp_path / "small.py").read_text(encoding="utf-8"))["cells"]

    assert [cell["cell_type"] for cell in cells] == ["markdown", "code", "code"]
    assert cells[0]["source"] == ["# Title"]
    assert (cells[1]["outputs"], cells[2]["outputs"][0]["text"]) == ([], ["3\n"])


@pytest.mark.slow
def test_tutorial_finds_the_copies_that_it_planted(tool, tmp_path):
    text = run(tool, "known_copies", tmp_path)

    assert "verdict: copies_found" in text
    assert "25 copies are on it" in text


@pytest.mark.slow
def test_tutorial_on_filters_leaves_hard_copies_that_its_own_audit_overlooks(tool, tmp_path):
    text = run(tool, "copies_left", tmp_path)

    assert "gate: fail" in text
    assert "copies left: 0 easy" in text
    assert "verdict: inconclusive (filtered), copy candidates: 0" in text
    assert "low_power" in text


def run(tool: ModuleType, name: str, folder: Path) -> str:
    """Return the notebook of a tutorial that was executed anew."""
    script = Path(shutil.copy(REPOSITORY / "docs" / "tutorials" / f"{name}.py", folder))
    return tool.make_notebook(script).read_text(encoding="utf-8")
