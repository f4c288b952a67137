# SPDX-License-Identifier: Apache-2.0
"""The release loop on generators that copy known images, and what it refuses."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
from made_up_images import smooth_images, write_csv, write_folder

from monai_memorization import InputError
from monai_memorization.auditing import audit
from monai_memorization.detector import degradations
from monai_memorization.detector.encoder import load_encoder, save_encoder
from monai_memorization.detector.encoder_training import train_encoder
from monai_memorization.gating import default_policy
from monai_memorization.generation.draws import SamplerDraw
from monai_memorization.images.prepared import prepared_images
from monai_memorization.images.sets import read_image_set
from monai_memorization.judging import Detector, describe_residual, planted_that_pass
from monai_memorization.releasing import release
from monai_memorization.reporting.reading import read_report
from monai_memorization.statistics.power import AUTOENCODER

# made-up images and encoders of seconds: only what is asked of every release is asked here
POLICY = "verdicts: null\nmin_recall: null\nmax_noticeable_rate: null\nmax_copy_rate: 0.5\nmax_residual_rate: 0.5\n"


class CopyingSampler:
    """Draws a copy of a training image, a little altered, for a share of the seeds, and a new image for the others."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.training = smooth_images(40, seed=1)
        self.drawn: list[int] = []

    def is_copy(self, seed: int) -> bool:
        return float(torch.rand((), generator=torch.Generator().manual_seed(seed))) < self.share

    def __call__(self, seeds):
        self.drawn += seeds
        return torch.stack([self.image(seed) for seed in seeds])

    def image(self, seed: int):
        if not self.is_copy(seed):
            return smooth_images(1, seed=1000 + seed)
        copied = self.training[seed % 40][None, None]
        return degradations.rescale(degradations.turn(copied, 4 * (seed % 3)))[0]


@pytest.fixture(scope="module")
def real(training_folder, tmp_path_factory) -> dict[str, Path]:
    """Forty training images and 240 validation patients."""
    folder = tmp_path_factory.mktemp("real")
    images = write_folder(smooth_images(240, seed=2), folder / "validation", "val")
    validation = write_csv(images, folder / "validation.csv", [f"patient-{i}" for i in range(240)])
    training = folder / "training.csv"
    names = sorted(training_folder.iterdir())
    table = {"image": names, "patient_id": [f"other-{i}" for i in range(40)]}
    pd.DataFrame(table).to_csv(training, index=False)
    return {"training": training, "validation": validation}


@pytest.fixture(scope="module")
def judge_file(training_folder, tmp_path_factory) -> Path:
    """Weights of an encoder of another seed and backbone than ``encoder_file``."""
    images = prepared_images(training_folder, (32, 32))
    path = tmp_path_factory.mktemp("judge") / "model.pt"
    save_encoder(train_encoder(images, n_steps=100, seed=1, widths=(24, 48, 96), batch_size=40), path)
    return path


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("policy") / "policy.yaml"
    path.write_text(POLICY)
    return path


@pytest.fixture(scope="module")
def detectors(encoder_file, judge_file) -> dict[str, Path]:
    return {"encoder": encoder_file, "judge": judge_file}


@pytest.fixture(scope="module", autouse=True)
def few_plants() -> Iterator[None]:
    """The power tests, which take most of a release's time, with ten training images of the forty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("monai_memorization.releasing.N_PLANTS", 10)
        yield


@pytest.fixture(scope="module")
def released(real, detectors, policy, tmp_path_factory):
    """A release of 60 images of a generator that copies two fifths of the time; its folder and sampler."""
    sampler, folder = CopyingSampler(0.4), tmp_path_factory.mktemp("released")
    done = release(SamplerDraw(sampler), 60, **real, output_dir=folder / "clean", policy=policy, **detectors)
    return done, folder, sampler


def test_released_images_passed_the_filter_and_are_as_many_as_asked(released):
    done, folder, sampler = released
    assert done.written, str(done.decision)

    left = read_image_set(folder / "clean" / "synthetic.json", "synthetic")
    pairs = pd.read_csv(folder / "clean_work" / "filter" / "pairs.csv").set_index("synthetic_id")
    assert len(left) == 60 <= done.n_passed
    assert not pairs.loc[[path.name for path in left.paths], "copy_candidate"].any()
    assert sampler.drawn == [0, *range(done.n_drawn)]  # the first to see that it can be drawn
    assert done.n_drawn == len(pairs)
    assert sum(~pairs["copy_candidate"]) == done.n_passed


def test_interval_of_the_residual_holds_the_copies_that_are_left(released):
    done, folder, sampler = released

    left = read_image_set(folder / "clean" / "synthetic.json", "synthetic")
    n_copies = sum(sampler.is_copy(int(path.name[:6])) for path in left.paths)
    low, high = done.report["release"]["residual_rate_ci"]
    assert low <= n_copies / 60 <= high


def test_what_leaves_names_nobody_and_what_stays_is_elsewhere(released):
    done, folder, _ = released

    names = {path.name for path in (folder / "clean").iterdir()}
    assert names == {"images", "synthetic.json", "report.json", "report.html"}
    for name in names - {"images"}:
        text = (folder / "clean" / name).read_text(encoding="utf-8")
        assert not re.search(r"patient-\d|other-\d|train_0|val_0", text), name
        assert str(folder) not in text
    written = read_report(folder / "clean")
    assert written["release"]["n_asked"] == 60
    assert json.loads(json.dumps(done.report)) == written


def test_filter_and_judge_share_no_validation_patient_and_no_encoder(released):
    done, folder, _ = released

    work = folder / "clean_work"
    sides = [pd.read_csv(work / f"{name}_validation" / "validation.csv") for name in ("filter", "judge")]
    patients = [set(side["patient_id"]) for side in sides]
    assert len(patients[0]) == 120
    assert 100 <= len(patients[1]) <= 120
    assert patients[0].isdisjoint(patients[1])
    filtered = read_report(work / "filter")
    assert filtered["provenance"]["encoder_sha256"] != done.report["provenance"]["encoder_sha256"]
    assert done.report["sets"]["validation"]["n_patients"] == len(patients[1])


def test_pairs_can_be_looked_at_afterwards(released, real, detectors, tmp_path):
    done, folder, _ = released
    judge = folder / "clean_work" / "judge"

    # the command of docs/copies_found.md
    report = audit(
        real["training"],
        folder / "clean_work" / "judge_validation" / "validation.csv",
        folder / "clean_work" / "passed" / "synthetic.json",
        tmp_path / "pairs",
        encoder=detectors["judge"],  # which a release that trains one keeps in clean_work/judge/encoder
        cache_dir=judge,
        gallery=True,
        n_plants=10,
    )

    assert report["calibrated"] == done.report["calibrated"]
    assert report["verdict"]["status"] == "copies_found" or "filtered" in report["verdict"]["reasons"]
    assert (tmp_path / "pairs" / "gallery.html").is_file()


def test_gate_stops_it_and_changes_no_number(released, real, detectors, tmp_path, caplog):
    strict = tmp_path / "policy.yaml"
    strict.write_text("min_validation_patients: 1000\n")

    done = release(
        SamplerDraw(CopyingSampler(0.4)), 60, **real, output_dir=tmp_path / "clean", policy=strict, **detectors
    )

    assert "validation: 120 patients, half of those given, will judge, where the policy's min" in caplog.messages[0]
    assert "min_validation_patients is 1000: the gate cannot let the images pass; name more than 2000" in caplog.text
    assert done.decision.status != "pass"
    assert not done.written
    assert {path.name for path in (tmp_path / "clean").iterdir()} == {"report.json", "report.html"}
    for key in ("release", "calibrated", "power"):
        assert done.report[key] == released[0].report[key], key


def test_it_gives_up_at_the_limit(real, detectors, policy, tmp_path):
    sampler = CopyingSampler(1.0)

    done = release(
        SamplerDraw(sampler), 20, **real, output_dir=tmp_path / "clean", policy=policy, limit=50, **detectors
    )

    assert done.decision is None
    assert not done.written
    assert done.n_drawn == 50
    assert sampler.drawn == [0, *range(50)]
    assert done.n_passed < 20
    assert not (tmp_path / "clean").exists()


def test_planted_copies_that_pass_are_those_that_the_filter_overlooks(released, real, detectors):
    work, training = released[1] / "clean_work", read_image_set(real["training"], "training")
    filtering, judging = (
        Detector(detectors[name], training, read_report(work / folder), "cpu", False)
        for name, folder in (("encoder", "filter"), ("judge", "judge"))
    )

    n_passed, n_found, n_images = planted_that_pass(filtering, judging, seed=0, n_plants=10)

    whole = [cell for cell in read_report(work / "filter")["power"] if cell["whole"]]
    assert n_passed == sum(round(cell["n"] * (1 - cell["recall"])) for cell in whole)
    assert 0 <= n_found <= n_passed
    # as many as would tell as much with equally many copies each: at most those of which a copy passed
    assert 0 < n_images <= min(10, n_passed)
    # a judge that is the filter finds nothing of what passed
    assert planted_that_pass(filtering, filtering, seed=0, n_plants=10)[1:] == (0, n_images)


def test_encoders_are_trained_where_none_is_given(real, policy, tmp_path, few_steps):
    release(SamplerDraw(CopyingSampler(0.0)), 5, **real, output_dir=tmp_path / "clean", policy=policy, limit=20)

    widths = [load_encoder(tmp_path / "clean_work" / n / "encoder" / "model.pt").settings for n in ("filter", "judge")]
    assert widths[0]["widths"] != widths[1]["widths"]


def test_generator_that_cannot_draw_is_told_before_an_encoder_is_trained(real, tmp_path, caplog):
    """Neither are patients known, which is told first."""
    unknown = real["validation"].parent / "validation"

    with pytest.raises(InputError, match=r"sampler: for 1 seeds from 0 on it returned \(8, 8\)"):
        release(
            SamplerDraw(lambda seeds: torch.zeros(8, 8)), 5, real["training"], unknown, output_dir=tmp_path / "clean"
        )

    assert [message.split(",")[0] for message in caplog.messages] == ["validation: unknown patients will judge"]
    assert {path.name for path in (tmp_path / "clean_work").iterdir()} == {"drawn", "release.work", "trial"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n": 0}, r"n: found 0 with a limit of 0; give at least 1"),
        ({"limit": 5}, r"n: found 20 with a limit of 5"),
        ({"policy": "nowhere.yaml"}, r"nowhere\.yaml: cannot be read"),
        ({"validation": "nowhere"}, r"validation: nowhere does not exist"),
        ({"encoder": None, "judge": "nowhere.pt"}, r"nowhere\.pt does not exist"),
        ({"alpha": 1.0}, r"alpha: found 1\.0, but must lie between 0 and 1"),
        ({"q": 0.0}, r"q: found 0\.0, but must lie between 0 and 1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_drawn(real, detectors, tmp_path, options, message):
    sampler = CopyingSampler(0.1)
    arguments = {"n": 20, **real, **detectors, "output_dir": tmp_path / "clean"} | options

    with pytest.raises(InputError, match=message):
        release(SamplerDraw(sampler), **arguments)
    assert sampler.drawn == []
    assert not (tmp_path / "clean").exists()


def test_release_in_several_processes_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="WORLD_SIZE: found several processes, but a release runs in one"):
        release(None, 1, training="t", validation="v", output_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_encoder_for_both_is_refused(real, encoder_file, tmp_path):
    with pytest.raises(InputError, match=r"judge: is the encoder that filters.*give another one"):
        release(
            SamplerDraw(CopyingSampler(0.1)),
            20,
            **real,
            output_dir=tmp_path / "clean",
            encoder=encoder_file,
            judge=encoder_file,
        )


def test_list_that_reaches_beyond_what_is_left_out_is_refused(real, tmp_path):
    with pytest.raises(InputError, match=r"q: found 0\.1, above alpha 0\.05, .*give a q of at most that"):
        release(SamplerDraw(CopyingSampler(0.1)), 20, **real, output_dir=tmp_path / "clean", q=0.1)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "message"), [("clean", "name a new folder"), ("clean_work", "name a new one")])
def test_occupied_folders_are_refused(real, detectors, tmp_path, name, message):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.tex").write_text("")

    with pytest.raises(InputError, match=message):
        release(SamplerDraw(CopyingSampler(0.1)), 20, **real, output_dir=tmp_path / "clean", **detectors)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_default_policy_asks_for_a_small_residual():
    assert "max_residual_rate: 0.1" in default_policy()


@pytest.mark.parametrize("name", ["clean", "clean/work"])
def test_work_folder_within_what_is_handed_out_is_refused(real, detectors, tmp_path, name):
    folders = {"output_dir": tmp_path / "clean", "work_dir": tmp_path / name}
    with pytest.raises(InputError, match=r"work_dir: .* is to be handed out; name a folder outside of it"):
        release(SamplerDraw(CopyingSampler(0.1)), 20, **real, **folders, **detectors)
    assert not (tmp_path / "clean").exists()


def test_reconstructions_that_are_overlooked_widen_the_interval(released):
    report = read_report(released[1] / "clean_work" / "filter")
    cells = [cell for cell in report["power"] if cell["family"] != AUTOENCODER]
    calibrated = report["calibrated"] | {"n_copies": 60}
    report |= {"power": cells, "calibrated": calibrated, "sets": report["sets"] | {"synthetic": {"n_images": 200}}}
    without = describe_residual(report, 100, seed=0)
    overlooked = {"family": AUTOENCODER, "strength": 1, "n": 128, "recall": 0.5}

    summary = report["power_summary"] | {"working_recall": 0.5}
    found = describe_residual(report | {"power": [*cells, overlooked], "power_summary": summary}, 100, seed=0)

    low, high = found["residual_rate_ci"]
    assert low <= found["residual_rate"] <= high
    assert high > without["residual_rate_ci"][1]
    assert found["filter"]["n_planted"] == without["filter"]["n_planted"]


def test_judge_of_another_image_size_sees_the_same_copies(released, real, detectors, tmp_path):
    training = read_image_set(real["training"], "training")
    small = train_encoder(prepared_images(real["training"], (20, 20)), n_steps=20, batch_size=40)
    save_encoder(small, tmp_path / "small.pt")
    work = released[1] / "clean_work"
    filtering = Detector(detectors["encoder"], training, read_report(work / "filter"), "cpu", False)
    judging = Detector(tmp_path / "small.pt", training, read_report(work / "judge"), "cpu", False)

    n_passed, n_found, _ = planted_that_pass(filtering, judging, seed=0, n_plants=10)

    assert 0 <= n_found <= n_passed
