# SPDX-License-Identifier: Apache-2.0
"""Two processes find what one finds, and fail with one message."""

from __future__ import annotations

import json
import shutil
from itertools import chain

import pytest
import ranks_at_work
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up_images import smooth_images, write_folder
from two_processes import TESTS, torchrun

from monai_memorization.auditing import audit
from monai_memorization.detector.embeddings import embed
from monai_memorization.detector.encoder import load_encoder
from monai_memorization.images.sets import read_image_set
from monai_memorization.ranks import ALONE, Ranks

SCRIPT = TESTS / "ranks_at_work.py"


@given(st.integers(1, 9), st.integers(0, 300), st.integers(1, 70))
def test_ranks_divide_rows_without_gap_or_overlap(n_ranks, n, block):
    parts = [list(range(n))[Ranks(n_ranks, rank).rows(n, block)] for rank in range(n_ranks)]
    assert [*chain.from_iterable(parts)] == list(range(n))
    starts = [part[0] for part in parts if part]
    assert all(start % block == 0 for start in starts)
    n_blocks = [-(-len(part) // block) for part in parts]
    assert max(n_blocks) - min(n_blocks) <= 1


def test_one_process_talks_to_itself():
    assert ALONE.gather(5) == [5]
    assert ALONE.share(5) == 5
    assert ALONE.rows(7) == slice(0, 7)


def test_two_processes_train_the_encoder_as_one_does(tmp_path):
    folder = write_folder(smooth_images(10, (16, 16)), tmp_path / "training")

    result = torchrun(SCRIPT, "train", folder=tmp_path)

    assert result.returncode == 0, result.stderr[-3000:]
    expected, losses = ranks_at_work.gradients(ALONE), ranks_at_work.losses(folder)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)
        assert found["seeds"] == [rank, 2]
        assert found["gradients"].keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found["gradients"][name], value, atol=1e-5, rtol=1e-5, msg=name)
        assert found["losses"] == pytest.approx(losses, abs=1e-5)


def test_two_processes_embed_and_audit_as_one_does_and_fail_with_one_message(encoder_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    training = smooth_images(200, seed=1)
    sets = {"validation": smooth_images(70, seed=2), "synthetic": torch.cat([training[:20], smooth_images(60, seed=3)])}
    for role, images in (sets | {"training": training, "broken": training[:150]}).items():
        write_folder(images, tmp_path / role, role)
    for suffix in (".pt", ".json"):
        shutil.copy(encoder_file.with_suffix(suffix), tmp_path / f"model{suffix}")
    write_folder(training[:40], tmp_path / "holed", "image")
    (tmp_path / "holed" / "image_017.png").write_bytes(b"broken")
    (tmp_path / "broken" / "broken_140.png").write_bytes(b"broken")
    expected = embed(load_encoder(encoder_file), read_image_set("holed", "training"), 2, skip_unreadable=True)
    alone = audit("training", "validation", "synthetic", "alone", encoder=encoder_file)

    result = torchrun(SCRIPT, "audits", folder=tmp_path)

    for rank in (0, 1):
        found = torch.load(tmp_path / f"embedded{rank}.pt", weights_only=True)
        assert torch.equal(found["vectors"], expected.vectors)
        assert found["digests"] == expected.digests
        assert found["names"] == expected.images.image_ids
        assert found["unreadable"] == expected.unreadable
        assert len(expected.unreadable) == 1
    for name in ("pairs.csv", "memorized.csv", "near_identical.csv", "leaks.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    for key in ("verdict", "calibrated", "paper_protocol", "controls", "power"):
        assert report[key] == json.loads(json.dumps(alone[key])), key
    assert report["calibrated"]["n_near_identical"] == 20
    assert (tmp_path / "out" / "gallery.html").is_file()
    assert result.stdout.count("Report: out/report.html") == 1
    assert result.stderr.count("broken_140.png: cannot be read") == 1
    assert (tmp_path / "failed_on_rank_0").exists()
    assert not list((tmp_path / "failed").glob("*.*"))
    assert result.returncode == 0, result.stderr[-3000:]
