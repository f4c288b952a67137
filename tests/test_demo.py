# SPDX-License-Identifier: Apache-2.0
"""The demo: the whole flow, in small; what it writes, says and refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

from monai_memorization import demo
from monai_memorization.auditing import audit
from monai_memorization.cli import main
from monai_memorization.demo import VOLUMES, DemoSettings, run_demo
from monai_memorization.errors import InputError

TINY = DemoSettings(
    n_training=24,
    n_validation=40,
    n_synthetic=12,
    image_size=(32, 32),
    autoencoder_steps=6,
    early_steps=2,
    late_steps=6,
    encoder_steps=10,
)


def read_reports(folder: Path) -> dict[str, dict]:
    return {m: json.loads((folder / m / "report.json").read_text(encoding="utf-8")) for m in ("early", "late")}


@pytest.fixture(scope="module")
def few_plants() -> Iterator[None]:
    """The power test, which takes most of these audits' time, with one training image."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "audit", partial(audit, n_plants=1))
        yield


@pytest.fixture(scope="module")
def printed_and_folder(few_plants, tmp_path_factory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("demo")
    with redirect_stdout(StringIO()) as printed:
        run_demo(folder, TINY)
    return printed.getvalue(), folder


@pytest.fixture
def tiny(printed_and_folder) -> Path:
    return printed_and_folder[1]


def test_both_audits_are_of_the_asked_sets(tiny):
    for report in read_reports(tiny).values():
        sizes = {role: report["sets"][role]["n_images"] for role in ("training", "validation", "synthetic")}
        assert sizes == {"training": 24, "validation": 40, "synthetic": 12}


def test_both_audits_use_one_encoder(tiny):
    early, late = read_reports(tiny).values()
    # tau depends on encoder, training and validation set alone
    assert early["paper_protocol"]["tau"] == late["paper_protocol"]["tau"]
    assert not list(tiny.glob("*/encoder"))


def test_both_audits_are_of_the_same_model_at_different_moments(tiny):
    files = [sorted((tiny / moment / "synthetic").glob("[!.]*")) for moment in ("early", "late")]
    assert [file.name for file in files[0]] == [file.name for file in files[1]]
    assert all(first.read_bytes() != second.read_bytes() for first, second in zip(*files, strict=True))


def test_report_gallery_and_pairs_lie_where_the_demo_says(tiny):
    for moment in ("early", "late"):
        assert (tiny / moment / "report.html").is_file()
        assert (tiny / moment / "gallery.html").is_file()
        assert len(pd.read_csv(tiny / moment / "pairs.csv")) == 12


def test_output_has_the_time_of_each_stage_and_a_closing_table(printed_and_folder):
    printed, folder = printed_and_folder
    stages = re.findall(r"^([a-z].*) \.\.\.\n  [\d.]+\s(?:s|min)", printed, re.M)
    assert len(stages) == 9
    reports = read_reports(folder)
    table = {line[:58].strip(): re.split(r"\s{2,}", line[58:].strip()) for line in printed.splitlines()}
    assert table["FDR list"] == [str(report["calibrated"]["fdr"]["n_copies"]) for report in reports.values()]
    n_mem = [f"{report['paper_protocol']['n_mem']} of 24" for report in reports.values()]
    assert table["N_mem, training images memorized (paper protocol)"] == n_mem
    assert {"tau", "N_copies, synthetic images that are copies (same)", "verdict"} <= set(table)
    assert str(folder / "late" / "report.html") in printed


def test_second_run_replaces_the_first_and_gives_the_same_report(tiny):
    first = read_reports(tiny)
    (tiny / "late" / "synthetic" / "000099.png").write_bytes((tiny / "late" / "synthetic" / "000001.png").read_bytes())
    (tiny / "mine.txt").write_text("mine")
    run_demo(tiny, TINY)
    second = read_reports(tiny)
    for moment in first:
        assert second[moment]["calibrated"] == first[moment]["calibrated"]
    assert (tiny / "mine.txt").read_text() == "mine"


def test_folder_with_foreign_content_is_refused_and_left_alone(tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.pt").write_text("mine")
    with pytest.raises(InputError, match=rf"output_dir: {re.escape(str(tmp_path))} exists and is not .*Name a new"):
        run_demo(tmp_path, TINY)
    assert [path.name for path in tmp_path.rglob("*")] == ["models", "mine.pt"]


def test_file_in_place_of_the_folder_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(InputError, match="exists and is not the folder of an earlier demo"):
        run_demo(file, TINY)
    assert file.read_text() == "mine"


def test_volumes_go_the_same_way(few_plants, tmp_path):
    settings = replace(TINY, image_size=(16, 16, 16), n_training=8, n_validation=24, n_synthetic=3, autoencoder_steps=2)
    run_demo(tmp_path, settings)
    for report in read_reports(tmp_path).values():
        assert report["encoder"]["image_size"] == [16, 16, 16]
        assert report["sets"]["synthetic"]["n_images"] == 3
    assert {path.name for path in (tmp_path / "late" / "synthetic").glob("[!.]*")} == {
        f"00000{i}.nii.gz" for i in range(3)
    }


def test_command_runs_the_demo_of_volumes(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(demo, "run_demo", lambda *arguments: asked.append(arguments))
    assert main(["demo", "--3d", "--output-dir", str(tmp_path)]) == 0
    assert main(["demo", "--output-dir", str(tmp_path)]) == 0
    assert asked == [(tmp_path, VOLUMES), (tmp_path, None)]


@pytest.mark.slow
@pytest.mark.parametrize("settings", [DemoSettings(), VOLUMES], ids=["2d", "3d"])
def test_memorization_grows_from_early_to_late(settings, tmp_path):
    run_demo(tmp_path, settings)
    early, late = read_reports(tmp_path).values()
    assert late["verdict"]["status"] == "copies_found"
    assert late["calibrated"]["copy_rate_ci"][0] > early["calibrated"]["copy_rate_ci"][1]
    assert late["paper_protocol"]["n_mem"] > 2 * early["paper_protocol"]["n_mem"]
