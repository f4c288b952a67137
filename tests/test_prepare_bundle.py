# SPDX-License-Identifier: Apache-2.0
"""Bundles as they are handed out: downloaded from a zip, from the Model Zoo's folder, from that for Hugging Face."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import monai.bundle
import pytest
import torch
import yaml
from monai.apps.utils import HashCheckError
from scripts import load_script

from monai_memorization.detector.encoder import ContrastiveEncoder, save_encoder

REPOSITORY = Path(__file__).parent.parent
NAME = "memorization_audit"
SETTINGS = {"image_size": (64, 64), "embedding_size": 128}


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    return load_script("tools/prepare_bundle.py")


@pytest.fixture
def models(tmp_path) -> Path:
    torch.manual_seed(3)
    save_encoder(ContrastiveEncoder(**SETTINGS), tmp_path / "models" / "model.pt")
    return tmp_path / "models"


@pytest.fixture
def out(tool, models, tmp_path, monkeypatch) -> Path:
    """The three forms, with weights that count as large, hosted in the folder `host`."""
    monkeypatch.setattr(tool, "LARGEST", 100_000)
    host = tmp_path / "host" / f"{NAME}_v0.1.0"
    shutil.copytree(models, host)
    tool.prepare(NAME, models, host.parent.as_uri(), tmp_path / "out")
    return tmp_path / "out"


def weights(models: Path) -> dict[str, torch.Tensor]:
    return torch.load(models / "model.pt", weights_only=True)


def check_loads(bundle_dir: Path, models: Path) -> None:
    loaded = monai.bundle.load(NAME, bundle_dir=str(bundle_dir), workflow_type="inference", device="cpu")
    assert isinstance(loaded, ContrastiveEncoder)
    assert all(torch.equal(value, weights(models)[name]) for name, value in loaded.state_dict().items())


@pytest.mark.filterwarnings("ignore:No hash value provided")  # MONAI's download from an address takes none
def test_bundle_comes_back_from_its_zip_by_the_download_of_monai(out, models, tmp_path):
    (tmp_path / "new").mkdir()
    monai.bundle.download(
        NAME, bundle_dir=str(tmp_path / "new"), url=(out / f"{NAME}_v0.1.0.zip").as_uri(), progress=False
    )

    check_loads(tmp_path / "new", models)
    source = REPOSITORY / "bundles" / NAME
    given = [path for part in ("LICENSE", "configs", "docs") for path in [source / part, *(source / part).rglob("*")]]
    for path in (path for path in given if path.is_file()):
        assert (tmp_path / "new" / NAME / path.relative_to(source)).read_bytes() == path.read_bytes()


def test_large_files_of_the_model_zoo_come_back_by_the_download_of_monai(out, models):
    folder = out / "model_zoo" / NAME
    assert not (folder / "models" / "model.pt").exists()
    (entry,) = yaml.safe_load((folder / "large_files.yml").read_text())["large_files"]
    assert entry["path"] == "models/model.pt"

    monai.bundle.download_large_files(bundle_path=str(folder))

    check_loads(folder.parent, models)


def test_changed_weights_are_not_taken(out, tmp_path):
    (tmp_path / "host" / f"{NAME}_v0.1.0" / "model.pt").write_bytes(b"others")
    with pytest.raises(HashCheckError):
        monai.bundle.download_large_files(bundle_path=str(out / "model_zoo" / NAME))


def test_folder_for_hugging_face_is_whole_with_its_card(out, models):
    folder = out / "hugging_face" / NAME
    front, _, text = (folder / "README.md").read_text(encoding="utf-8").removeprefix("---\n").partition("---\n")

    assert yaml.safe_load(front) == {"tags": ["monai", "medical"], "library_name": "monai", "license": "apache-2.0"}
    assert text == (folder / "docs" / "README.md").read_text(encoding="utf-8")
    assert json.loads((folder / "metadata.json").read_text())["version"] == "0.1.0"
    assert (folder / "LICENSE").is_file()
    check_loads(folder.parent, models)


def test_small_weights_stay_in_the_model_zoo(tool, models, tmp_path):
    tool.prepare(NAME, models, "https://host", tmp_path / "out")

    assert (tmp_path / "out" / "model_zoo" / NAME / "models" / "model.pt").is_file()
    assert not (tmp_path / "out" / "model_zoo" / NAME / "large_files.yml").exists()


def test_bundle_without_weights_is_told(tool, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no model\.pt; train the bundle first"):
        tool.prepare(NAME, tmp_path, "https://host", tmp_path / "out")


def test_bundle_goes_out_without_weights_where_none_are_given(tool, tmp_path):
    tool.prepare("latent_diffusion_2d", None, "", tmp_path)
    shutil.unpack_archive(tmp_path / "latent_diffusion_2d_v0.1.0.zip", tmp_path / "new")

    folder = tmp_path / "new" / "latent_diffusion_2d"
    assert (folder / "configs" / "quick.yaml").is_file()
    assert list((folder / "models").iterdir()) == []


def test_command_runs(models, tmp_path):
    command = [sys.executable, REPOSITORY / "tools" / "prepare_bundle.py", NAME, "--models", models]
    subprocess.run([*command, "--url", "https://host", "--output-dir", tmp_path / "out"], check=True)
    assert (tmp_path / "out" / f"{NAME}_v0.1.0.zip").is_file()
