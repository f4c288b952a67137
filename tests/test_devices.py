# SPDX-License-Identifier: Apache-2.0
"""Another device than the CPU: everything is where it has to be, and the same is found."""

from __future__ import annotations

import pytest
import torch
from made_up_images import smooth_images, write_folder
from second_device import NAME, second_device

from monai_memorization.auditing import audit
from monai_memorization.detector import neighbors, similarity
from monai_memorization.detector.neighbors import count_above, nearest, nearest_in_subsets
from monai_memorization.detector.registration import fine_structure
from monai_memorization.detector.scores import copy_scores
from monai_memorization.detector.views import Views

SEARCHES = {
    "nearest": lambda query, reference: nearest(query, reference, 3),
    "count_above": lambda query, reference: (count_above(query, reference, 0.3),),
    "nearest_in_subsets": lambda query, reference: (
        nearest_in_subsets(query, reference, torch.arange(20, device=query.device).view(4, 5)),
    ),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_search_runs_where_its_tensors_are(name):
    query, reference = torch.randn(2, 300, 16, generator=torch.Generator().manual_seed(0))
    expected = SEARCHES[name](query, reference)
    with second_device():
        found = SEARCHES[name](query.to(NAME), reference.to(NAME))
        assert all(part.device.type == NAME for part in found)
        found = [part.cpu() for part in found]
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("together", [True, False], ids=["looks together", "strip by strip"])
@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("spread", [1.0, 1e-3, 0.0], ids=["far apart", "close", "equal"])
def test_search_of_many_strips_is_exact(spread, k, precision, together, monkeypatch):
    if together:
        for module in (neighbors, similarity):  # so that several lots of looks are needed
            monkeypatch.setattr(module, "MAX_ELEMENTS", 10 * 128 * 16)
    else:
        monkeypatch.setattr(neighbors, "_LOOKED_AT", 0)
    generator = torch.Generator().manual_seed(k)
    query = torch.randn(40, 16, generator=generator)
    reference = query[:1] + spread * torch.randn(700, 16, generator=generator)
    reference[-1] = query[1]  # in the last strip, which is shorter than the others
    expected = nearest(query, reference, k)
    torch.set_float32_matmul_precision(precision)
    try:
        with second_device() as n_calls:
            blocks = {"query_block": 16, "reference_block": 256}
            found = [part.cpu() for part in nearest(query.to(NAME), reference.to(NAME), k, **blocks)]
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert (n_calls["bmm"] > 1) is together


def test_views_are_drawn_where_the_images_are():
    with second_device() as n_calls:
        Views()(smooth_images(4)[:, None].to(NAME))
    assert n_calls["randn"] == 1, "the noise is most of what is drawn"


def test_tensors_of_two_devices_cannot_be_mixed_unnoticed():
    with second_device(), pytest.raises(RuntimeError, match="two devices"):
        nearest(torch.eye(8).to(NAME), torch.eye(8))


@pytest.mark.parametrize("size", [(32, 32), (12, 16, 10)], ids=["2D", "3D"])
def test_scores_are_computed_on_the_device_that_is_named(size):
    training, others = smooth_images(40, size, seed=0)[:, None], smooth_images(20, size, seed=1)[:, None]
    images = torch.cat([training[:5].flip(-1), others])
    described = [part for s in (images, training) for part in (s.flatten(1)[:, :64], fine_structure(s).half())]
    patients = [f"{i // 2}" for i in range(40)]
    expected = copy_scores(*described, patients)
    with second_device() as n_calls:
        found = copy_scores(*described, patients, device=NAME)
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    assert n_calls["mm"] > 0, "no search on the device"
    assert n_calls[f"grid_sampler_{len(size)}d"] > 0, "no registration on the device"


def test_audit_on_another_device_finds_the_same(training_folder, validation_folder, encoder_file, tmp_path):
    copies = smooth_images(8, seed=1).flip(-1)
    synthetic = write_folder(torch.cat([copies, smooth_images(8, seed=3)]), tmp_path / "synthetic", "drawn")
    given = {"training": training_folder, "validation": validation_folder, "synthetic": synthetic}
    given |= {"encoder": encoder_file, "n_plants": 1}
    audit(**given, output_dir=tmp_path / "cpu", device="cpu")
    with second_device() as n_calls:
        report = audit(**given, output_dir=tmp_path / NAME, device=NAME)
    assert report["provenance"]["device"] == NAME
    assert n_calls["convolution"] > 0, "no embedding on the device"
    assert n_calls["mm"] > 0, "no search on the device"
    for table in ("pairs.csv", "memorized.csv"):
        assert (tmp_path / NAME / table).read_text() == (tmp_path / "cpu" / table).read_text()
