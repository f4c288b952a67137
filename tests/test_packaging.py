# SPDX-License-Identifier: Apache-2.0
"""What is installed: every package, every config and template, every dependency with its reason."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import monai_memorization

REPOSITORY = Path(__file__).parent.parent
VERSION = monai_memorization.__version__


def setup_cfg() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(REPOSITORY / "setup.cfg", encoding="utf-8")
    return parser


def requirement_blocks() -> dict[str, list[str]]:
    """Lines, comments included, under install_requires and each extra."""
    blocks: dict[str, list[str]] = {}
    section = block = ""
    for line in (REPOSITORY / "setup.cfg").read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        if match := re.match(r"(\w+) =$", line):
            block = match[1]
        elif line.startswith("    ") and (block == "install_requires" or section == "options.extras_require"):
            blocks.setdefault(block, []).append(line.strip())
    return blocks


def requirements() -> list[Requirement]:
    return [Requirement(line) for lines in requirement_blocks().values() for line in lines if not line.startswith("#")]


def build(source: Path, folder: Path, form: str) -> Path:
    """Build an sdist or a wheel by the declared backend, without network or isolation."""
    code = f"import sys; from setuptools import build_meta; print(build_meta.build_{form}(sys.argv[1]))"
    result = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=source, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder / result.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """A copy of the tree, with weights where the bundles write them."""
    source = tmp_path_factory.mktemp("wheel") / "source"
    source.mkdir()
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("monai_memorization", "bundles"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for weights in (source / "bundles").glob("*/configs"):
        (weights.parent / "models").mkdir(exist_ok=True)
        (weights.parent / "models" / "model.pt").write_bytes(b"made of patients")
    return source


@pytest.fixture(scope="module")
def wheel(source) -> zipfile.ZipFile:
    return zipfile.ZipFile(build(source, source.parent, "wheel"))


def test_wheel_holds_every_module_and_the_typing_marker(wheel):
    expected = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "monai_memorization").rglob("*.py")}
    expected.add("monai_memorization/py.typed")
    assert expected - set(wheel.namelist()) == set()


def test_wheel_holds_the_templates_of_the_report(wheel):
    templates = list((REPOSITORY / "monai_memorization" / "reporting" / "templates").iterdir())
    assert templates
    assert {path.relative_to(REPOSITORY).as_posix() for path in templates} - set(wheel.namelist()) == set()


@pytest.mark.parametrize("bundle", ["latent_diffusion_2d", "latent_diffusion_3d", "memorization_audit"])
def test_wheel_holds_the_bundle(wheel, bundle):
    folder = REPOSITORY / "bundles" / bundle
    files = [folder / "LICENSE", *(path for part in ("configs", "docs") for path in (folder / part).rglob("*.*"))]
    assert folder / "configs" / "metadata.json" in files
    expected = {f"monai_memorization/{path.relative_to(REPOSITORY).as_posix()}" for path in files}
    assert expected - set(wheel.namelist()) == set()


def test_wheel_holds_nothing_else(wheel):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"monai_memorization", f"monai_memorization-{VERSION}.dist-info"}
    assert not [name for name in wheel.namelist() if "/tests/" in name or name.endswith(".pyc")]


def test_wheel_leaves_out_weights_trained_in_the_bundles(wheel):
    assert not [name for name in wheel.namelist() if "/models/" in name or name.endswith(".pt")]


def test_wheel_carries_the_licence_and_the_version(wheel):
    info = f"monai_memorization-{VERSION}.dist-info"
    assert wheel.read(f"{info}/licenses/LICENSE") == (REPOSITORY / "LICENSE").read_bytes()
    assert f"\nVersion: {VERSION}\n" in wheel.read(f"{info}/METADATA").decode()


def test_every_package_is_listed():
    listed = set(setup_cfg()["options"]["packages"].split())
    found = {
        ".".join(path.parent.relative_to(REPOSITORY).parts)
        for path in (REPOSITORY / "monai_memorization").rglob("__init__.py")
    }
    assert listed == found | {"monai_memorization.bundles"}


def test_every_requirement_has_its_reason_above_it():
    blocks = requirement_blocks()
    assert set(blocks) == {"install_requires", "demo", "generative", "docs", "test", "dev"}
    bare = [
        line
        for lines in blocks.values()
        for above, line in zip(["", *lines], lines, strict=False)
        if not line.startswith("#") and not above.startswith("#")
    ]
    assert bare == []


def test_constraints_pin_every_requirement_inside_its_bounds():
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.lower().replace("_", "-").split("==") for line in lines if "==" in line and line[0] != "#")
    for requirement in requirements():
        version = pinned.get(requirement.name.lower())
        assert version is not None, f"constraints.txt does not pin {requirement.name}"
        assert requirement.specifier.contains(version), f"constraints.txt: {requirement} against {version}"


def test_version_is_written_in_one_place():
    assert setup_cfg()["metadata"]["version"] == "attr: monai_memorization.version.__version__"
    modules = [*(REPOSITORY / "monai_memorization").rglob("*.py"), *REPOSITORY.glob("*.toml"), REPOSITORY / "setup.cfg"]
    quoted = re.compile(rf"""["'= ]{re.escape(VERSION)}["'\n]""")
    assert [path.name for path in modules if quoted.search(path.read_text(encoding="utf-8"))] == ["version.py"]


def test_citation_has_the_version_and_licence():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (VERSION, setup_cfg()["metadata"]["license"])
    assert {"cff-version", "message", "title", "authors", "references"} <= set(citation)


def test_licence_of_every_requirement_is_listed():
    page = (REPOSITORY / "docs" / "licences.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| ([\w-]+) \| [^|]+ \| ([^|]+) \|$", page, re.M)[1:])
    assert set(listed) == {requirement.name for requirement in requirements()}
    assert not [name for name, licence in listed.items() if "GPL" in licence]


def test_wheel_of_the_sdist_is_the_wheel(source, wheel, tmp_path):
    with tarfile.open(build(source, source.parent, "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    again = build(next(tmp_path.iterdir()), tmp_path, "wheel")
    with zipfile.ZipFile(again) as other:
        assert {name: other.read(name) for name in other.namelist() if "dist-info" not in name} == {
            name: wheel.read(name) for name in wheel.namelist() if "dist-info" not in name
        }


def test_changelog_knows_the_version():
    assert re.search(rf"^## \[{re.escape(VERSION)}\]", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("bundle", ["latent_diffusion_2d", "latent_diffusion_3d", "memorization_audit"])
def test_bundle_asks_for_this_version(bundle):
    metadata = json.loads((REPOSITORY / "bundles" / bundle / "configs" / "metadata.json").read_text(encoding="utf-8"))
    assert metadata["required_packages_version"]["monai-memorization"] == VERSION
