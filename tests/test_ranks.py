# SPDX-License-Identifier: Apache-2.0
"""Two processes find what one finds, and fail with one message."""

from __future__ import annotations

import csv
import json
import shutil
from itertools import chain

import monai.bundle
import pytest
import ranks_at_work
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up_images import smooth_images, write_folder
from small_generators import SMALL
from two_processes import TESTS, torchrun

from monai_memorization.auditing import audit
from monai_memorization.detector.embeddings import embed
from monai_memorization.detector.encoder import load_encoder
from monai_memorization.images.reading import read_image
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

    assert result.returncode == 0, result.stderr
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
    assert result.returncode == 0, result.stderr


def test_shipped_configs_train_draw_and_embed_in_two_processes(tmp_path):
    write_folder(smooth_images(12), tmp_path / "training")
    options = SMALL | {"training": "training", "output_dir": "models", "model_dir": "models", "log_interval": 1}
    options |= {"autoencoder_steps": 8, "diffusion_steps": 8, "autoencoder_batch_size": 3, "diffusion_batch_size": 3}
    options |= {"checkpoint_interval": 0, "save_interval": 1, "denoising_steps": 4, "batch_size": 2, "n_images": 5}
    record = {"_target_": "training_records.LossRecorder", "folder": "."}
    (tmp_path / "record.json").write_text(json.dumps({"+train#handlers": [record]}))
    (tmp_path / "options.json").write_text(json.dumps(options))

    result = torchrun(SCRIPT, "bundles", folder=tmp_path)

    assert result.returncode == 0, result.stderr
    first, second = (
        [json.loads(line) for line in (tmp_path / f"losses{rank}.txt").read_text().splitlines()] for rank in (0, 1)
    )
    # eight steps of one process are four of two, each with other images and random numbers
    assert [line["step"] for line in first] == [line["step"] for line in second] == [1, 2, 3, 4] * 2
    for ours, theirs in zip(first, second, strict=True):
        assert ours["first"] != theirs["first"]
        assert ours["loss"] != theirs["loss"]
    weights = [torch.load(tmp_path / f"weights{rank}.pt", weights_only=True) for rank in (0, 1)]
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name
    files = {f"{seed:06}.png" for seed in range(5)}
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == files | {".drawn_by"}
    names = {path.name for path in (tmp_path / "models").iterdir()}
    assert names == {"autoencoder.pt", "model.pt"} | {
        f"{kind}_iteration={step}.pt" for kind in ("autoencoder", "diffusion") for step in (1, 2, 3, 4)
    }
    # one process draws the same images from those weights
    bundle = TESTS.parent / "bundles" / "latent_diffusion_2d" / "configs" / "inference.json"
    alone = {key: str(tmp_path / "models") for key in ("output_dir", "model_dir")} | {
        "output_dir": str(tmp_path / "alone")
    }
    monai.bundle.run(config_file=str(bundle), logging_file=False, **options | alone)
    for name in files:
        one, two = (read_image(tmp_path / folder / name) for folder in ("alone", "drawn"))
        torch.testing.assert_close(one, two, atol=1.01, rtol=0)

    with (tmp_path / "embedded" / "embeddings.csv").open(newline="") as file:
        embedded = {row[0]: torch.tensor([float(value) for value in row[1:]]) for row in csv.reader(file)}
    expected = embed(load_encoder(tmp_path / "encoder" / "model.pt"), read_image_set(tmp_path / "training", "images"))
    assert sorted(embedded) == sorted(expected.images.image_ids)
    for name, vector in zip(expected.images.image_ids, expected.vectors, strict=True):
        torch.testing.assert_close(embedded[name], vector, atol=1e-5, rtol=1e-4)
