# SPDX-License-Identifier: Apache-2.0
"""Fixtures that several test files share."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from made_up_images import smooth_images, write_folder
from monai.utils import set_determinism

from monai_memorization.detector import encoder_training
from monai_memorization.detector.encoder import ContrastiveEncoder, load_encoder, save_encoder
from monai_memorization.detector.encoder_training import train_encoder
from monai_memorization.images.prepared import prepared_images


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of the real data sets, which are not part of the repository."""
    folder = os.environ.get("MONAI_MEMORIZATION_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MONAI_MEMORIZATION_DATA does not name the folder of the real data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def training_folder(tmp_path_factory) -> Path:
    """Forty different 32x32 images, as PNG; read only."""
    return write_folder(smooth_images(40, seed=1), tmp_path_factory.mktemp("forty") / "training", "train")


@pytest.fixture(scope="session")
def validation_folder(tmp_path_factory) -> Path:
    """Forty other images, as PNG; read only."""
    return write_folder(smooth_images(40, seed=2), tmp_path_factory.mktemp("validation") / "images", "val")


@pytest.fixture(scope="session")
def encoder_file(training_folder, tmp_path_factory) -> Path:
    """Weights of a small encoder, trained for some steps on the forty images."""
    encoder = train_encoder(prepared_images(training_folder, (32, 32)), n_steps=100, batch_size=40)
    path = tmp_path_factory.mktemp("encoder") / "model.pt"
    save_encoder(encoder, path)
    return path


@pytest.fixture
def encoder(encoder_file) -> ContrastiveEncoder:
    """The small encoder, a fresh copy for each test."""
    return load_encoder(encoder_file)


@pytest.fixture
def unchanged_process() -> Iterator[None]:
    """Undo what the configs of a bundle and its logging.conf set for the whole process."""
    handlers, level, hook = logging.root.handlers[:], logging.root.level, sys.excepthook
    yield
    logging.root.handlers, logging.root.level, sys.excepthook = handlers, level, hook
    set_determinism(None)


@pytest.fixture
def few_steps(monkeypatch):
    """Train encoders for three steps in place of minutes."""
    monkeypatch.setattr(encoder_training, "train_encoder", partial(train_encoder, n_steps=3))
