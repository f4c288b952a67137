# SPDX-License-Identifier: Apache-2.0
"""What MONAI Label's monaibundle app reads of a bundle, read in the order in which its BundleInferTask reads it.

The app itself needs packages that do not import beside a CPU build of torch, so that its names are tested here instead.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from made_up_images import smooth_images, write_image
from monai.bundle import ConfigParser
from monai.transforms import Compose

from monai_memorization.detector.encoder import ContrastiveEncoder

BUNDLE = Path(__file__).parent.parent / "bundles" / "memorization_audit"


def test_one_image_goes_through_the_audit_bundle_as_the_app_sends_it(tmp_path):
    encoder = ContrastiveEncoder((64, 64)).eval()
    torch.save(encoder.state_dict(), tmp_path / "model.pt")
    path = write_image(smooth_images(1, (80, 64))[0], tmp_path / "image.png")
    parser = ConfigParser()
    parser.read_config(BUNDLE / "configs" / "inference.json")
    parser.config.update({"bundle_root": str(BUNDLE), "device": "cpu"})

    network = parser.get_parsed_content("network_def", instantiate=True)
    network.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True), strict=True)
    preprocessing = parser.get_parsed_content("preprocessing", instantiate=True)
    inferer = parser.get_parsed_content("inferer", instantiate=True)
    data = Compose(list(preprocessing.transforms))({"image": str(path)})
    with torch.no_grad():
        vector = inferer(data["image"][None], network.eval())[0]
        expected = encoder(data["image"][None])[0]

    assert parser.get_parsed_content("postprocessing", instantiate=True) is None
    assert torch.equal(vector, expected)


def test_metadata_name_the_keys_and_labels_of_the_app():
    metadata = json.loads((BUNDLE / "configs" / "metadata.json").read_text(encoding="utf-8"))
    (image, given), (pred, found) = (
        next(iter(metadata["network_data_format"][side].items())) for side in ("inputs", "outputs")
    )

    assert (image, pred) == ("image", "pred")
    assert len(given["spatial_shape"]) == 2
    assert all(key.isdigit() and isinstance(label, str) for key, label in found["channel_def"].items())
    assert metadata["description"]
    assert metadata["version"]
