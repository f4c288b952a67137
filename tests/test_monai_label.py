# SPDX-License-Identifier: Apache-2.0
"""What MONAI Label's monaibundle app reads of a bundle, read in the order in which its BundleInferTask reads it.

The app itself needs packages that do not import beside a CPU build of torch, so that its names are tested here instead;
docs/monai_label.md says what was tried with the app itself.
"""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path

import monai.bundle
import pytest
import torch
from made_up_images import smooth_images, write_folder
from monai.bundle import ConfigParser
from monai.transforms import Compose

import monai_memorization.serving
from monai_memorization.detector.encoder import ContrastiveEncoder, save_encoder

REPOSITORY = Path(__file__).parent.parent
BUNDLE = REPOSITORY / "bundles" / "memorization_audit"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """A bundle with the weights and the reference of a server, beside the images of both sets."""
    folder = tmp_path_factory.mktemp("server")
    for seed, role in enumerate(("training", "validation")):
        write_folder(smooth_images(24, (80, 64), seed), folder / role, role)
    torch.manual_seed(0)
    bundle = Path(shutil.copytree(BUNDLE, folder / BUNDLE.name))
    save_encoder(ContrastiveEncoder((64, 64)), bundle / "models" / "model.pt")
    monai.bundle.run(
        config_file=str(bundle / "configs" / "reference.json"),
        bundle_root=str(bundle),
        training=str(folder / "training"),
        validation=str(folder / "validation"),
        logging_file=False,
    )
    return bundle


@pytest.mark.parametrize(("role", "copied"), [("training", True), ("validation", False)])
def test_one_image_goes_through_the_audit_bundle_as_the_app_sends_it(bundle, role, copied):
    path = str(bundle.parent / role / f"{role}_007.png")
    parser = ConfigParser()
    parser.read_config(bundle / "configs" / "inference.json")
    parser.config.update({"bundle_root": str(bundle), "device": "cpu"})

    network = parser.get_parsed_content("network_def", instantiate=True)
    network.load_state_dict(torch.load(bundle / "models" / "model.pt", weights_only=True), strict=True)
    preprocessing = parser.get_parsed_content("preprocessing", instantiate=True)
    inferer = parser.get_parsed_content("inferer", instantiate=True)
    data = {"image": path, "image_path": path}
    for transform in preprocessing.transforms:
        data = transform(data)
    with torch.no_grad():
        data["pred"] = inferer(data["image"][None], network.eval())[0]
        assert torch.equal(data["pred"], network(data["image"][None])[0])
    postprocessing = parser.get_parsed_content("postprocessing", instantiate=True)
    assert isinstance(postprocessing, Compose)
    scored, map_of_it = postprocessing.transforms
    data = scored(data)
    # what the classification reads: the tensor behind the metadata, and one number to each label
    assert data["pred"].array.shape == (2,)
    data = map_of_it(data)

    assert data["result"]["copy_candidate"] is copied
    assert data["pred"].unique().tolist() == [int(copied)]
    # the app scales the map to the file where their last axes differ, and would take a channel for an axis
    assert data["pred"].shape == (64, 80)
    assert list(data["image_meta_dict"]["spatial_shape"]) == [64, 80]
    assert json.loads(json.dumps(data["result"])) == data["result"]


def test_metadata_name_the_keys_and_labels_of_the_app():
    metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text(encoding="utf-8"))
    (image, given), (pred, found) = (
        next(iter(metadata["network_data_format"][side].items())) for side in ("inputs", "outputs")
    )

    assert (image, pred) == ("image", "pred")
    assert len(given["spatial_shape"]) == 2
    assert found["channel_def"] == {"0": "background", "1": "copy_candidate"}
    assert metadata["description"]
    assert metadata["version"]


def test_app_of_ours_takes_from_the_package_what_exists():
    tree = ast.parse((REPOSITORY / "docs" / "monai_label" / "main.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    (ours,) = [node for node in imports if node.module.startswith("monai_memorization")]

    assert ours.module == "monai_memorization.serving"
    assert all(hasattr(monai_memorization.serving, alias.name) for alias in ours.names)
    assert "MyApp" in [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
