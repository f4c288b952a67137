# SPDX-License-Identifier: Apache-2.0
"""Turn a tested script into an executed notebook of the same name.

    python tools/make_notebook.py docs/tutorials/known_copies.py

In the script `# %%` begins a cell of code, `# %% [markdown]` one of text. What cells print stands below them.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from pathlib import Path
from typing import Any


def cells_of(script: Path) -> list[tuple[str, str]]:
    """Return the cells of a script: their kind, "code" or "markdown", and their content."""
    parts = re.split(r"^# %%(.*)\n", script.read_text(encoding="utf-8"), flags=re.M)[1:]
    cells = []
    for mark, body in zip(parts[::2], parts[1::2], strict=True):
        is_text = mark.strip() == "[markdown]"
        content = re.sub(r"^# ?", "", body, flags=re.M) if is_text else body
        cells.append(("markdown" if is_text else "code", content.strip()))
    return cells


def make_notebook(script: Path) -> Path:
    """Run the cells of a script in order and write the notebook beside it."""
    space: dict[str, Any] = {"__name__": "__main__"}
    cells: list[dict[str, Any]] = []
    for number, (kind, content) in enumerate(cells_of(script)):
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": content.splitlines(keepends=True)}
        if kind == "code":
            with contextlib.redirect_stdout(io.StringIO()) as printed:
                exec(compile(content, str(script), "exec"), space)
            output = {"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(keepends=True)}
            cell |= {"execution_count": None, "outputs": [output] if printed.getvalue() else []}
        cells.append(cell)
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    notebook = {"cells": cells, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    path = script.with_suffix(".ipynb")
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(make_notebook(Path(name)))
