# SPDX-License-Identifier: Apache-2.0
"""What caching latents is worth is measured on the bundle as it runs."""

from __future__ import annotations

import json

import pytest
import torch
from scripts import REPOSITORY, load_script

from monai_memorization.detector.views import Views


@pytest.fixture
def training_rates(monkeypatch):
    monkeypatch.syspath_prepend(REPOSITORY / "benchmarks")
    return load_script("benchmarks/training_rates.py")


@pytest.mark.usefixtures("unchanged_process")
def test_ceiling_is_that_of_a_training_that_encodes_in_every_step(training_rates, training_folder, tmp_path):
    given = {name: str(training_folder) for name in ("films", "volumes")}
    arguments = [part for name, value in given.items() for part in (f"--{name}", value)]

    training_rates.main([*arguments, "--output", str(tmp_path / "rates.json"), "--tiny"])

    rates = json.loads((tmp_path / "rates.json").read_text())
    result, stage = rates["latents"]["tiny"], rates["autoencoder"]["tiny"]
    step, encoding, bundle = (result["seconds"][name] for name in ("bare_step", "encoding", "bundle_step"))
    assert result["ceiling"] == pytest.approx((step + encoding) / step, rel=1e-2)
    assert result["share_of_ceiling"] == pytest.approx(step / bundle, rel=1e-2)
    assert stage["ratio"] == pytest.approx(stage["bundle"] / stage["plain_loop"], rel=1e-2)


@pytest.mark.parametrize("size", [(16, 16), (8, 12, 8)])
def test_dictionary_transforms_alter_each_image_on_its_own(training_rates, size):
    transform = training_rates.dictionary_transforms(Views(), size)
    transform.set_random_state(0)
    image = torch.rand(1, *size, generator=torch.Generator().manual_seed(0))
    first, second = (transform({"image": image})["image"] for _ in range(2))
    assert first.shape == image.shape
    assert not torch.equal(first, second)
    assert 0 <= first.min() <= first.max() <= 1
