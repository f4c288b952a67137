# SPDX-License-Identifier: Apache-2.0
"""The bundles in the Model Zoo: its check passes, and so do the unit tests that we bring, run as the zoo runs them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import monai.bundle
import pytest
import torch
from scripts import load_script

from monai_memorization.detector.encoder import ContrastiveEncoder, save_encoder

pytestmark = pytest.mark.usefixtures("unchanged_process")

REPOSITORY = Path(__file__).parent.parent
BUNDLES = ("memorization_audit", "latent_diffusion_2d", "latent_diffusion_3d")
# their network takes time steps beside an image, and MONAI's diffusion network cannot be scripted; docs/release.md
EXCLUDED = BUNDLES[1:]


@pytest.fixture(scope="module")
def zoo(tmp_path_factory) -> Path:
    """A folder laid out as the Model Zoo, with our bundles, stand-ins for their weights, and our unit tests."""
    prepare = load_script("tools/prepare_bundle.py").prepare
    folder = tmp_path_factory.mktemp("zoo")
    weights = folder / "weights"
    for name in BUNDLES:
        save_encoder(ContrastiveEncoder((64, 64)), weights / "model.pt")
        prepare(name, weights, "https://host", folder / "out")
    shutil.copytree(folder / "out" / "model_zoo", folder / "models")
    shutil.copytree(REPOSITORY / "tools" / "model_zoo", folder / "ci" / "unit_tests")
    (folder / "models" / "model_info.json").write_text("{}")
    return folder


@pytest.mark.filterwarnings("ignore:No hash value provided")  # the schema's hash at its address is another
@pytest.mark.filterwarnings("ignore:`torch.jit.(save|load)` is deprecated:DeprecationWarning")  # as MONAI exports
@pytest.mark.parametrize("name", BUNDLES)
def test_bundle_passes_the_steps_of_the_check(zoo, name, shared_data):
    """The steps of ci/verify_bundle.py -m full in their order."""
    bundle = zoo / "models" / name
    configs = {"meta_file": str(bundle / "configs" / "metadata.json")}
    configs |= {"config_file": str(bundle / "configs" / "inference.json"), "bundle_root": str(bundle)}

    for file in ("configs/metadata.json", "LICENSE", "models/model.pt", "configs/inference.json"):
        assert (bundle / file).is_file()
    assert all(path.stat().st_size <= 25 * 2**20 for path in bundle.rglob("*") if path.is_file())
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    assert metadata["version"] in metadata["changelog"]
    schema = str(shared_data / "bundle_meta_schema_20240725.json")
    monai.bundle.verify_metadata(meta_file=configs["meta_file"], filepath=schema)

    # properties are checked for apps that the metadata name, of which there is none; the unit tests check them
    assert "supported_apps" not in metadata

    if name not in EXCLUDED:
        monai.bundle.verify_net_in_out(net_id="network_def", device="cpu", **configs)
        monai.bundle.ckpt_export(
            net_id="network_def",
            filepath=str(bundle / "models" / "verify_model.ts"),
            ckpt_file=str(bundle / "models" / "model.pt"),
            **configs,
        )
        assert isinstance(torch.jit.load(bundle / "models" / "verify_model.ts"), torch.jit.ScriptModule)


@pytest.mark.parametrize("name", BUNDLES)
def test_unit_test_runs_at_the_root_of_the_zoo(zoo, name):
    command = [sys.executable, "-W", "ignore", str(Path("ci") / "unit_tests" / f"test_{name}.py")]
    before = sorted((zoo / "models" / name).rglob("*"))

    result = subprocess.run(command, cwd=zoo, capture_output=True, text=True)

    assert result.returncode == 0, result.stderr
    assert "Ran 1 test" in result.stderr
    assert sorted((zoo / "models" / name).rglob("*")) == before, "a unit test leaves nothing in the bundle"


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLES)
def test_check_of_the_zoo_itself_passes(zoo, name, shared_data, tmp_path):
    checkout = os.environ.get("MONAI_MODEL_ZOO")
    if not checkout:
        pytest.skip("MONAI_MODEL_ZOO does not name a checkout of the Model Zoo")
    shutil.copytree(Path(checkout) / "ci", tmp_path / "ci")
    shutil.copytree(zoo / "models", tmp_path / "models")
    (tmp_path / "models" / name / "eval").mkdir()
    schema = shared_data / "bundle_meta_schema_20240725.json"
    shutil.copy(schema, tmp_path / "models" / name / "eval" / "schema.json")
    with (tmp_path / "ci" / "bundle_custom_data.py").open("a") as file:
        file.write(f"exclude_verify_shape_list += {EXCLUDED}\nexclude_verify_torchscript_list += {EXCLUDED}\n")

    command = [sys.executable, "-W", "ignore", "ci/verify_bundle.py", "-b", name, "-m", "full"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)

    assert result.returncode == 0, result.stdout + result.stderr
