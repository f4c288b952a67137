# SPDX-License-Identifier: Apache-2.0
"""Unit test of the bundle in the form of the Model Zoo: lies in its ci/unit_tests and runs at its root."""

from __future__ import annotations

import csv
import json
import tempfile
import unittest
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigWorkflow
from PIL import Image

BUNDLE = Path("models") / "memorization_audit"
N_IMAGES = 24
SIZE = (64, 64)


class TestMemorizationAudit(unittest.TestCase):
    """Train an encoder for some steps, embed with it, audit with it."""

    def setUp(self) -> None:
        """Write three sets of blocks of noise; two synthetic images are training images."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.folder = Path(directory.name)
        generator = np.random.default_rng(0)
        blocks = {
            role: generator.integers(0, 255, (N_IMAGES, 8, 8)) for role in ("training", "validation", "synthetic")
        }
        blocks["synthetic"][:2] = blocks["training"][:2]
        for role, images in blocks.items():
            (self.folder / role).mkdir()
            for i, image in enumerate(images):
                picture = Image.fromarray(image.astype(np.uint8)).resize(SIZE)
                picture.save(self.folder / role / f"{i:03}.png")

    def check(self, name: str, workflow_type: str | None, **overrides: Any) -> None:
        """Run a config as the Model Zoo does: initialize, check the properties, run, finalize."""
        configs = BUNDLE / "configs"
        workflow = ConfigWorkflow(
            workflow_type=workflow_type,
            config_file=str(configs / f"{name}.json"),
            meta_file=str(configs / "metadata.json"),
            logging_file=str(configs / "logging.conf"),
            bundle_root=str(BUNDLE),
            **overrides,
        )
        workflow.initialize()
        if workflow_type is not None:
            self.assertEqual(workflow.check_properties(), [])
        workflow.run()
        workflow.finalize()

    def test_train_embed_and_audit(self) -> None:
        """What each config promises to write is there."""
        training, validation, synthetic = (str(self.folder / role) for role in ("training", "validation", "synthetic"))
        models, output = self.folder / "models", self.folder / "output"
        encoder = str(models / "model.pt")

        self.check("train", "train", training=training, output_dir=str(models), max_epochs=1, epoch_length=3)
        self.check("inference", "infer", images=synthetic, encoder_weights=encoder, output_dir=str(output))
        self.check(
            "evaluate",
            None,
            training=training,
            validation=validation,
            synthetic=synthetic,
            encoder=encoder,
            output_dir=str(output),
            n_plants=4,
        )

        with (output / "embeddings.csv").open(newline="", encoding="utf-8") as file:
            self.assertEqual(len(list(csv.reader(file))), N_IMAGES)
        report = json.loads((output / "report.json").read_text(encoding="utf-8"))
        self.assertEqual(report["calibrated"]["n_near_identical"], 2)
        self.assertEqual(report["verdict"]["status"], "copies_found")


if __name__ == "__main__":
    unittest.main()
