# SPDX-License-Identifier: Apache-2.0
"""Names: none that MONAI has, none that hides a module, none that pulls in what we promise to do without."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc import locate
from types import ModuleType

import monai
import pytest
import yaml

import monai_memorization

PACKAGE = Path(monai_memorization.__file__).parent
REPOSITORY = PACKAGE.parent
# torchvision from a package index does not import beside a CPU build of torch, lpips downloads weights, and
# monai-generative breaks under MONAI 1.6
UNWANTED = ("torchvision", "lpips", "generative")


def walk_package() -> Iterator[ModuleType]:
    yield monai_memorization
    for module in pkgutil.walk_packages(monai_memorization.__path__, "monai_memorization."):
        yield importlib.import_module(module.name)


def module_files() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *(REPOSITORY / "bundles").rglob("*.py")])


def top_level_names(path: Path) -> set[str]:
    definitions = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name for node in body if isinstance(node, definitions) and not node.name.startswith("_")}


def imported_packages(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def targets(config: object) -> Iterator[str]:
    if isinstance(config, dict):
        if "_target_" in config:
            yield config["_target_"]
        config = list(config.values())
    if isinstance(config, list):
        for item in config:
            yield from targets(item)


def bundle_configs() -> list[Path]:
    folder = REPOSITORY / "bundles"
    files = [path for ending in ("json", "yaml") for path in folder.glob(f"*/configs/**/*.{ending}")]
    return sorted(files)


def test_no_public_name_is_one_of_monai():
    ours = {name: path for path in module_files() for name in top_level_names(path)}
    theirs = set().union(*(top_level_names(path) for path in Path(monai.__file__).parent.rglob("*.py")))
    assert {"ContrastiveLoss", "DiffusionModelUNet"} <= theirs
    assert {name: str(path) for name, path in ours.items() if name in theirs} == {}


def test_no_exported_name_hides_a_module():
    modules = list(walk_package())
    module_names = {module.__name__.rpartition(".")[2] for module in modules}
    exported = {name for module in modules for name in getattr(module, "__all__", [])}
    assert "__version__" in exported
    assert exported & module_names == set()


def test_every_exported_name_exists():
    for module in walk_package():
        for name in getattr(module, "__all__", []):
            assert hasattr(module, name), f"{module.__name__}.__all__ lists {name}"


def test_no_module_mentions_an_unwanted_package():
    assert {str(path): found for path in module_files() if (found := imported_packages(path) & set(UNWANTED))} == {}


def test_importing_the_package_pulls_in_no_unwanted_package():
    code = f"import sys, monai_memorization; print([name for name in {UNWANTED} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("path", module_files(), ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_module_opens_with_licence_and_docstring(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")
    assert ast.get_docstring(ast.parse(text))


@pytest.mark.parametrize("path", bundle_configs(), ids=lambda path: str(path.relative_to(REPOSITORY / "bundles")))
def test_every_target_of_a_bundle_is_a_full_dotted_path_that_imports(path):
    text = path.read_text(encoding="utf-8")
    config = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    for target in targets(config):
        assert "." in target, f"{target} could be resolved to a class of another package"
        assert callable(locate(target, forceload=False)), f"{target} does not exist"
