# SPDX-License-Identifier: Apache-2.0
"""The filter: what it leaves out, what it writes, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from made_up_images import smooth_images, write_csv, write_folder
from test_auditing import N, with_patients, write_sets

from monai_memorization import InputError
from monai_memorization.auditing import audit
from monai_memorization.cli import main
from monai_memorization.filtering import filter_synthetic, was_filtered, write_data_list
from monai_memorization.images.sets import ImageSet, read_image_set


@pytest.fixture(scope="module")
def audited(encoder_file, tmp_path_factory) -> tuple[Path, Path]:
    """Folder of an audit, and the synthetic set; read only."""
    folder = tmp_path_factory.mktemp("audited")
    sets = with_patients(write_sets(folder), folder)
    audit(**sets, output_dir=folder / "out", encoder=encoder_file)
    return folder / "out", sets["synthetic"]


def suspects(audit_dir: Path, column: str) -> set[str]:
    pairs = pd.read_csv(audit_dir / "pairs.csv")
    identical = pd.read_csv(audit_dir / "near_identical.csv")
    return set(pairs["synthetic_id"][pairs[column]]) | set(identical["synthetic_id"])


def is_what_a_filter_left(source: Path) -> bool:
    return was_filtered(source, read_image_set(source, "synthetic"))


def refuses(output: Path, message: str, *arguments) -> None:
    before = set(output.parent.iterdir())
    with pytest.raises(InputError, match=message):
        filter_synthetic(*arguments, output)
    assert set(output.parent.iterdir()) == before, "something was written in spite of bad input"


@pytest.mark.parametrize(("suspicion", "column"), [("candidates", "copy_candidate"), ("fdr", "in_fdr_list")])
def test_what_is_left_is_everything_that_is_not_suspected(audited, tmp_path, suspicion, column):
    audit_dir, synthetic = audited
    expected = {path.name for path in synthetic.iterdir()} - suspects(audit_dir, column)

    done = filter_synthetic(audit_dir, synthetic, tmp_path / "clean", suspicion)

    left = read_image_set(done.data_list, "synthetic")
    assert {path.name for path in left.paths} == expected
    assert {path.name for path in (tmp_path / "clean" / "images").iterdir()} == expected
    assert (done.n_kept, done.n_dropped, done.n_unread) == (len(expected), N - len(expected), 0)
    for path in left.paths:
        assert path.read_bytes() == (synthetic / path.name).read_bytes()


def test_audit_of_what_a_filter_left_gives_no_clean_verdict(audited, encoder_file, tmp_path):
    audit_dir, synthetic = audited
    filter_synthetic(audit_dir, synthetic, tmp_path / "clean")
    sets = {role: synthetic.parent / role for role in ("training", "validation")}

    shutil.copy(tmp_path / "clean" / "synthetic.json", tmp_path / "moved.json")
    shutil.copytree(tmp_path / "clean" / "images", tmp_path / "clean" / "images" / "a" / "b")
    shutil.copytree(synthetic, tmp_path / "clean" / "later" / "images")  # another set, put there
    left = [str(path) for path in (tmp_path / "clean" / "images").glob("*.png")]
    for name in ("clean/all.csv", "elsewhere.csv"):
        (tmp_path / name).write_text("\n".join(["image", *left]))
    (tmp_path / "link").symlink_to(tmp_path / "clean" / "images")
    (tmp_path / "links").mkdir()
    for path in map(Path, left):
        (tmp_path / "links" / path.name).symlink_to(path)
    given = "clean", "clean/all.csv", "elsewhere.csv", "link", "links", "clean/images/*.png"
    for name in (*given, "clean/images/a/b", "clean/images/a/b/*.png"):
        assert is_what_a_filter_left(tmp_path / name), name
    assert was_filtered(tmp_path / "moved.json", read_image_set(synthetic, "synthetic"))
    for name in ("clean/later", "clean/later/images"):
        assert not is_what_a_filter_left(tmp_path / name), name
    assert not is_what_a_filter_left(synthetic)
    shutil.rmtree(tmp_path / "clean" / "images" / "a")
    for name in ("synthetic.json", "images", "images/*.png"):
        report = audit(**sets, synthetic=tmp_path / "clean" / name, output_dir=tmp_path / "out", encoder=encoder_file)
        assert report["verdict"]["status"] == "inconclusive"
        assert "filtered" in report["verdict"]["reasons"], name


def test_lists_differ_and_near_identical_images_are_on_neither(audited, tmp_path):
    audit_dir, synthetic = shutil.copytree(audited[0], tmp_path / "out"), audited[1]
    kept_name = pd.read_csv(audit_dir / "pairs.csv").query("not copy_candidate")["synthetic_id"].iloc[0]
    with (audit_dir / "near_identical.csv").open("a") as table:
        table.write(f"{kept_name},some_training,some_patient\n")

    filter_synthetic(audit_dir, synthetic, tmp_path / "clean")

    assert not (tmp_path / "clean" / "images" / kept_name).exists()


def test_a_listed_image_that_is_no_candidate_is_not_kept(audited, tmp_path):
    audit_dir, synthetic = shutil.copytree(audited[0], tmp_path / "out"), audited[1]
    pairs = pd.read_csv(audit_dir / "pairs.csv")
    row = pairs.index[~pairs["copy_candidate"] & ~pairs["in_fdr_list"]][0]
    pairs.loc[row, "in_fdr_list"] = True  # as with q above alpha
    pairs.to_csv(audit_dir / "pairs.csv", index=False)

    filter_synthetic(audit_dir, synthetic, tmp_path / "clean")

    assert not (tmp_path / "clean" / "images" / pairs.loc[row, "synthetic_id"]).exists()


def test_files_are_linked_and_copied_where_they_cannot_be(audited, tmp_path, monkeypatch):
    filter_synthetic(*audited, tmp_path / "linked")

    def no_links(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", no_links)
    filter_synthetic(*audited, tmp_path / "copied")

    linked, copied = (sorted((tmp_path / name / "images").iterdir()) for name in ("linked", "copied"))
    assert [path.name for path in linked] == [path.name for path in copied]
    assert all(path.samefile(audited[1] / path.name) for path in linked)
    assert not any(path.samefile(audited[1] / path.name) for path in copied)
    assert [path.read_bytes() for path in linked] == [path.read_bytes() for path in copied]


def test_labels_stay_with_their_images_and_folders_apart(encoder_file, tmp_path):
    sets = write_sets(tmp_path, n=40, copies=3)
    write_folder(smooth_images(5, seed=9), tmp_path / "more" / "synthetic", "image_synthetic")  # the same names
    listed = {}
    for role, folder in sets.items():
        names = [f"{role}{i}" for i in range(40)]
        listed[role] = write_csv(folder, tmp_path / f"{role}.csv", names, ["ill", "well"] * 20)
    extra = [f"more/synthetic/image_synthetic_{i:03}.png,extra{i},ill" for i in range(5)]
    with listed["synthetic"].open("a") as table:
        table.write("\n".join(extra) + "\n")
    audit(**listed, output_dir=tmp_path / "out", encoder=encoder_file)

    done = filter_synthetic(tmp_path / "out", listed["synthetic"], tmp_path / "clean")

    items = json.loads(done.data_list.read_text())["synthetic"]
    original = pd.read_csv(listed["synthetic"]).set_index("image")["label"]
    assert {item["label"] for item in items} == {"ill", "well"}
    assert any(item["image"].startswith("images/more/") for item in items)
    assert all(original[item["image"].removeprefix("images/")] == item["label"] for item in items)


def test_series_of_slices_is_kept_whole(tmp_path):
    for name in ("first", "second"):
        (tmp_path / "drawn" / name).mkdir(parents=True)
        for slice_ in ("0.dcm", "1.dcm"):
            (tmp_path / "drawn" / name / slice_).write_bytes(name.encode())
    paths = tuple(tmp_path / "drawn" / name for name in ("first", "second"))
    write_data_list(ImageSet("synthetic", ("a", "b"), paths, ("a", "b"), None, False), tmp_path / "clean")

    assert (tmp_path / "clean" / "images" / "second" / "1.dcm").read_bytes() == b"second"


def test_images_below_a_series_are_not_written_with_it(tmp_path):
    (tmp_path / "drawn" / "suspected").mkdir(parents=True)
    for path in (tmp_path / "drawn" / "0.dcm", tmp_path / "drawn" / "suspected" / "0.dcm"):
        path.write_bytes(b"slice")
    write_data_list(ImageSet("synthetic", (".",), (tmp_path / "drawn",), (".",), None, False), tmp_path / "clean")

    assert [path.name for path in (tmp_path / "clean" / "images" / "drawn").iterdir()] == ["0.dcm"]


def test_other_images_than_the_audited_are_refused(audited, tmp_path):
    audit_dir, synthetic = audited
    fewer = shutil.copytree(synthetic, tmp_path / "fewer")
    next(fewer.iterdir()).unlink()
    changed = shutil.copytree(synthetic, tmp_path / "changed")
    first, second, *_ = sorted(changed.iterdir())
    shutil.copy(first, second)

    message = rf"holds {N - 1} images, {N - 1} of the {N} that .* audited among them; give the set"
    refuses(tmp_path / "clean", message, audit_dir, fewer)
    refuses(tmp_path / "clean", r"not what they were when .* audited them; audit them again", audit_dir, changed)


def test_unfinished_audits_and_occupied_folders_are_refused(audited, tmp_path):
    audit_dir, synthetic = audited
    without = shutil.copytree(audit_dir, tmp_path / "without")
    (without / "pairs.csv").unlink()
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "other").write_text("")

    refuses(tmp_path / "clean", r"pairs\.csv: cannot be read.*give the folder of a finished audit", without, synthetic)
    refuses(tmp_path / "clean", r"report\.json: does not exist", tmp_path, synthetic)
    refuses(occupied, r"occupied: exists and is not empty; name a new folder", audit_dir, synthetic)


def test_unknown_list_is_refused(audited, tmp_path):
    with pytest.raises(InputError, match=r"list: found 'all'; give one of candidates, fdr"):
        filter_synthetic(*audited, tmp_path / "clean", "all")


def test_set_of_nothing_but_copies_is_refused(encoder_file, tmp_path):
    sets = with_patients(write_sets(tmp_path, copies=N), tmp_path)
    audit(**sets, output_dir=tmp_path / "out", encoder=encoder_file)

    refuses(tmp_path / "clean", rf"all {N} images are suspected.*copies_found", tmp_path / "out", sets["synthetic"])


def test_failure_half_way_leaves_nothing(audited, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copyfile", full)

    refuses(tmp_path / "clean", r"clean: cannot be written \(No space left on device\)", *audited)


def test_command_says_what_it_did(audited, tmp_path, capsys):
    audit_dir, synthetic = audited
    words = ["--synthetic", str(synthetic), "--output-dir", str(tmp_path / "clean"), "--list", "fdr"]

    assert main(["filter", str(audit_dir), *words]) == 0

    n_dropped = len(suspects(audit_dir, "in_fdr_list"))
    assert f"synthetic.json: {N - n_dropped} images kept, {n_dropped} left out" in capsys.readouterr().out
