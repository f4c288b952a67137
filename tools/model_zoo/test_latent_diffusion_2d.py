# SPDX-License-Identifier: Apache-2.0
"""Unit test of the bundle in the form of the Model Zoo: lies in its ci/unit_tests and runs at its root."""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigWorkflow

BUNDLE = Path("models") / "latent_diffusion_2d"
N_IMAGES = 16
SIZE = (32, 32)
SMALL = {
    "image_size": list(SIZE),
    "autoencoder_channels": [16, 16],
    "autoencoder_res_blocks": 1,
    "autoencoder_attention": False,
    "autoencoder_norm_groups": 4,
    "discriminator_layers": 1,
    "diffusion_channels": [16, 16],
    "diffusion_attention": [False, False],
    "diffusion_norm_groups": 4,
    "diffusion_head_channels": 8,
    "autoencoder_steps": 3,
    "diffusion_steps": 3,
    "autoencoder_batch_size": 4,
    "diffusion_batch_size": 4,
    "denoising_steps": 4,
}


class TestLatentDiffusion2D(unittest.TestCase):
    """Train both stages for some steps, draw, reconstruct."""

    def setUp(self) -> None:
        """Write a training set of noise."""
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.folder = Path(directory.name)
        self.training = self.folder / "training"
        self.training.mkdir()
        for i, image in enumerate(np.random.default_rng(0).random((N_IMAGES, *SIZE), dtype=np.float32)):
            np.save(self.training / f"{i:03}.npy", image)

    def check(self, name: str, workflow_type: str, **overrides: Any) -> None:
        """Run a config as the Model Zoo does: initialize, check the properties, run, finalize."""
        configs = BUNDLE / "configs"
        workflow = ConfigWorkflow(
            workflow_type=workflow_type,
            config_file=str(configs / f"{name}.json"),
            meta_file=str(configs / "metadata.json"),
            logging_file=str(configs / "logging.conf"),
            bundle_root=str(BUNDLE),
            **SMALL,
            **overrides,
        )
        workflow.initialize()
        self.assertEqual(workflow.check_properties(), [])
        workflow.run()
        workflow.finalize()

    def test_train_draw_and_reconstruct(self) -> None:
        """What each config promises to write is there."""
        training, models = str(self.training), str(self.folder / "models")
        drawn, reconstructed = self.folder / "drawn", self.folder / "reconstructed"

        self.check("train_autoencoder", "train", training=training, output_dir=models)
        self.check("train_diffusion", "train", training=training, output_dir=models, model_dir=models)
        self.check("inference", "infer", model_dir=models, output_dir=str(drawn), n_images=3, batch_size=2)
        self.check("reconstruct", "infer", validation=training, model_dir=models, output_dir=str(reconstructed))

        self.assertEqual(sorted(path.name for path in drawn.glob("0*")), [f"{i:06}.png" for i in range(3)])
        self.assertEqual(len(list(reconstructed.glob("0*"))), N_IMAGES)


if __name__ == "__main__":
    unittest.main()
