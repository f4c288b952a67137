# SPDX-License-Identifier: Apache-2.0
"""The audit from end to end on made-up images with planted copies, and what it refuses."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from made_up_images import smooth_images, write_csv, write_folder, write_image

from monai_memorization.auditing import audit, choose_device
from monai_memorization.detector.encoder import ContrastiveEncoder, save_encoder
from monai_memorization.errors import InputError
from monai_memorization.images.reading import read_image
from monai_memorization.images.sets import read_image_set
from monai_memorization.reporting.reasons import reason

N = 60
COPIES = 25
CANARY = "kanarienvogel"
KEYS = {
    "": "schema_version,sets,paper_protocol,calibrated,controls,power,verdict,provenance",
    "sets.training": "n_images,n_patients",
    "sets.validation": "n_images,n_patients",
    "sets.synthetic": "n_images,n_patients",
    "paper_protocol": (
        "percentile,tau,n_mem,mem_rate,n_copies,copy_rate,mem_null_rate,copy_null_rate,mem_rate_matched"
    ),
    "calibrated": (
        "alpha,alpha_attained,false_alarm_rate_ci,threshold,n_copies,flagged_rate,expected_false_copies,copy_rate,"
        "copy_rate_ci,copy_rate_at_power,n_mem,n_mem_expected_false,mem_rate,n_mem_patients,n_mem_total_bound,"
        "n_near_identical,fdr"
    ),
    "calibrated.fdr": "q,smallest_list,n_copies,n_mem,n_mem_expected_false",
    "controls": "gap_auc,gap_auc_ci,nearest_in_training,nearest_in_training_real",
    "verdict": "status,reasons",
    "provenance": "versions,seed,device,image_list_sha256,encoder_sha256,scheduler,n_steps",
}
CELL = {"family", "strength", "n", "recall", "seen_in_training"}
quick_audit = partial(audit, n_plants=1)  # where the claim is not about power, of which a test takes seconds
COLUMNS = "synthetic_id,training_id,training_patient_id,similarity,p_value,copy_candidate,in_fdr_list,score"


def write_sets(folder: Path, size=(32, 32), suffix=".png", n=N, copies=COPIES, name="image") -> dict[str, Path]:
    """Training, validation and synthetic images; the first synthetic ones are the first training images."""
    training, validation = (smooth_images(n, size, seed=seed) for seed in (1, 2))
    synthetic = torch.cat([training[:copies], smooth_images(n, size, seed=3)[copies:]])
    sets = {"training": training, "validation": validation, "synthetic": synthetic}
    return {role: write_folder(images, folder / role, f"{name}_{role}", suffix) for role, images in sets.items()}


def with_patients(sets: dict[str, Path], folder: Path, name: str = "") -> dict[str, Path]:
    """The same sets as CSVs: two training images to a patient, a validation image each."""
    listed = dict(sets)
    for role, share in (("training", 2), ("validation", 1)):
        patients = [f"{name}{role}-{i // share}" for i in range(len(list(sets[role].iterdir())))]
        listed[role] = write_csv(sets[role], folder / f"{role}.csv", patients)
    return listed


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, Path]:
    """Sets with patients, and names that must not reach what may be handed out; read only."""
    folder = tmp_path_factory.mktemp(f"{CANARY}-folder")
    return with_patients(write_sets(folder, name=f"{CANARY}-image"), folder, f"{CANARY}-patient-")


@pytest.fixture(scope="module")
def audited(given, encoder_file, tmp_path_factory):
    """Report and folder of one audit with everything that it writes."""
    output = tmp_path_factory.mktemp("audited") / "out"
    return audit(**given, output_dir=output, encoder=encoder_file, gallery=True), output


def read_table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def part(report, path: str):
    for key in filter(None, path.split(".")):
        report = report[key]
    return report


def check_keys(report) -> None:
    for path, keys in KEYS.items():
        assert set(keys.split(",")) <= set(part(report, path)), path
    assert report["power"]
    assert all(set(cell) >= CELL for cell in report["power"])


def refuses(output: Path, message: str, **arguments):
    with pytest.raises(InputError, match=message):
        audit(output_dir=output, **arguments)
    written = {path.name for path in output.iterdir()} if output.exists() else set()
    assert written <= {"embeddings"}, "something was written in spite of bad input, not only kept for the next run"


def test_planted_copies_are_candidates_and_listed_with_their_original(audited):
    _, output = audited
    pairs = read_table(output / "pairs.csv")

    for i, pair in enumerate(pairs[:COPIES]):
        assert pair["synthetic_id"].endswith(f"_synthetic_{i:03}.png")
        assert pair["training_id"].endswith(f"_training_{i:03}.png")
        assert pair["training_patient_id"].endswith(f"training-{i // 2}")
        assert (pair["similarity"], pair["score"], pair["p_value"]) == ("1.000000", "1.000000", f"{1 / (N + 1):.6f}")
        assert (pair["copy_candidate"], pair["in_fdr_list"]) == ("True", "True")
    assert sum(pair["copy_candidate"] == "True" for pair in pairs[COPIES:]) <= 0.2 * (N - COPIES)


def test_verdict_is_copies_found_and_says_why(audited):
    report, _ = audited

    assert report["verdict"]["status"] == "copies_found"
    assert set(report["verdict"]["reasons"]) == {"fdr_list", "excess", "near_identical"}
    assert report["calibrated"]["n_near_identical"] == COPIES
    assert report["calibrated"]["copy_rate_ci"][0] <= COPIES / N <= report["calibrated"]["copy_rate_ci"][1]


def test_report_has_every_key_of_the_design(audited):
    written = json.loads((audited[1] / "report.json").read_text())

    check_keys(written)


def test_returned_report_is_the_written_one(audited):
    report, output = audited

    assert json.loads(json.dumps(report)) == json.loads((output / "report.json").read_text())


def test_pairs_have_the_columns_order_and_decimals_of_the_design(audited, given):
    text = (audited[1] / "pairs.csv").read_text()
    pairs = read_table(audited[1] / "pairs.csv")
    ids = [pair["synthetic_id"] for pair in pairs]

    assert text.splitlines()[0] == COLUMNS
    assert ids == sorted(read_image_set(given["synthetic"], "synthetic").image_ids)
    assert all(re.fullmatch(r"-?\d\.\d{6}", pair[key]) for pair in pairs for key in ("similarity", "score", "p_value"))


def test_report_agrees_with_the_tables(audited):
    report, output = audited
    pairs, memorized = read_table(output / "pairs.csv"), read_table(output / "memorized.csv")
    calibrated = report["calibrated"]
    candidates = [pair for pair in pairs if pair["copy_candidate"] == "True"]
    listed = [pair for pair in pairs if pair["in_fdr_list"] == "True"]

    assert calibrated["n_copies"] == len(candidates)
    assert calibrated["flagged_rate"] == pytest.approx(len(candidates) / N)
    assert calibrated["n_mem"] == len({pair["training_id"] for pair in candidates})
    assert calibrated["n_mem_patients"] == len({pair["training_patient_id"] for pair in candidates})
    assert all((float(pair["p_value"]) <= 0.05) == (pair in candidates) for pair in pairs)
    assert all((float(pair["score"]) > calibrated["threshold"]) == (pair in candidates) for pair in pairs)
    assert calibrated["fdr"]["n_copies"] == len(listed) == sum(int(row["n_listed"]) for row in memorized)
    assert calibrated["fdr"]["n_mem"] == len(memorized)
    assert calibrated["n_near_identical"] == len(read_table(output / "near_identical.csv"))
    for row in memorized:
        best = max(float(pair["similarity"]) for pair in listed if pair["training_id"] == row["training_id"])
        assert float(row["best_similarity"]) == pytest.approx(best, abs=2e-6)


def test_sets_are_counted(audited, given):
    sets = audited[0]["sets"]

    assert {role: (sets[role]["n_images"], sets[role]["n_patients"]) for role in given} == {
        "training": (N, N // 2),
        "validation": (N, N),
        "synthetic": (N, None),
    }


def test_report_may_be_handed_out_and_the_tables_may_not(audited, given):
    _, output = audited

    for name in ("report.json", "report.html"):
        text = (output / name).read_text(encoding="utf-8").lower()
        assert CANARY not in text, f"{name} tells names"
        assert str(output).lower() not in text
        assert "/home/" not in text
    assert "data:image/png" not in (output / "report.html").read_text()
    for name in ("pairs.csv", "gallery.html"):
        assert CANARY in (output / name).read_text(encoding="utf-8")


def test_fidelity_is_measured_where_it_is_asked_for(audited, given, encoder_file, tmp_path):
    report = audit(**given, output_dir=tmp_path / "out", encoder=encoder_file, fidelity=True, n_plants=2)

    assert audited[0]["fidelity"] is None
    assert report["fidelity"]["n_images"] == N // 2
    assert report["fidelity"]["frechet_distance"] > 0
    assert {cell["n"] for cell in report["power"]} == {2}
    assert "How like the real images the set is" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_just_the_files_of_the_design_are_written(audited):
    assert {path.name for path in audited[1].iterdir()} == {
        "report.json",
        "report.html",
        "pairs.csv",
        "memorized.csv",
        "near_identical.csv",
        "leaks.csv",
        "gallery.html",
        "embeddings",
    }
    assert {path.suffix for path in (audited[1] / "embeddings").iterdir()} == {".pt"}


def test_without_asking_no_picture_is_written(given, encoder_file, tmp_path):
    quick_audit(**given, output_dir=tmp_path / "out", encoder=encoder_file)

    assert not (tmp_path / "out" / "gallery.html").exists()


def test_second_run_gives_the_same(audited, given, encoder_file, tmp_path):
    report, output = audited

    again = audit(**given, output_dir=tmp_path / "out", encoder=encoder_file)

    for name in ("pairs.csv", "memorized.csv", "near_identical.csv", "leaks.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (output / name).read_bytes()
    for key in set(report) - {"provenance"}:
        assert again[key] == report[key], key
    for key in ("image_list_sha256", "encoder_sha256", "versions", "seed"):
        assert again["provenance"][key] == report["provenance"][key]


def test_order_of_the_synthetic_images_does_not_matter(audited, given, encoder_file, tmp_path):
    names = sorted(path.name for path in given["synthetic"].iterdir())[::-1]
    listing = given["synthetic"].parent / "backwards.csv"
    listing.write_text("\n".join(["image", *(f"synthetic/{name}" for name in names)]))
    try:
        quick_audit(**given | {"synthetic": listing}, output_dir=tmp_path / "out", encoder=encoder_file)
    finally:
        listing.unlink()

    backwards = (tmp_path / "out" / "pairs.csv").read_text().replace("synthetic/", "")
    assert backwards == (audited[1] / "pairs.csv").read_text()


def test_honest_synthetic_images_are_not_called_copies(given, encoder_file, tmp_path):
    honest = write_folder(smooth_images(N, seed=11), tmp_path / "honest")

    report = quick_audit(**given | {"synthetic": honest}, output_dir=tmp_path / "out", encoder=encoder_file)

    assert report["verdict"]["status"] != "copies_found"
    assert report["calibrated"]["fdr"]["n_copies"] == report["calibrated"]["n_near_identical"] == 0
    assert read_table(tmp_path / "out" / "memorized.csv") == []
    low, high = report["calibrated"]["false_alarm_rate_ci"]
    assert low < report["calibrated"]["alpha_attained"] < high


def test_training_set_audited_against_itself_is_copied_throughout(given, encoder_file, tmp_path):
    report = quick_audit(**given | {"synthetic": given["training"]}, output_dir=tmp_path / "out", encoder=encoder_file)

    assert report["calibrated"]["flagged_rate"] == 1
    assert report["calibrated"]["n_mem"] == report["calibrated"]["n_near_identical"] == N
    assert report["paper_protocol"]["mem_rate"] == report["paper_protocol"]["copy_rate"] == 1
    assert report["paper_protocol"]["tau"] < 1


def test_one_more_copy_is_one_more_near_identical_pair(given, encoder_file, tmp_path):
    synthetic = shutil.copytree(given["synthetic"], tmp_path / "synthetic")
    copied = read_image_set(given["training"], "training").paths[COPIES]
    shutil.copy(copied, synthetic / "another.png")

    report = quick_audit(**given | {"synthetic": synthetic}, output_dir=tmp_path / "out", encoder=encoder_file)

    assert report["calibrated"]["n_near_identical"] == COPIES + 1
    (pair,) = [p for p in read_table(tmp_path / "out" / "pairs.csv") if p["synthetic_id"] == "another.png"]
    assert pair["training_id"].endswith(copied.name)
    assert pair["in_fdr_list"] == "True"


def test_too_few_validation_patients_leave_it_inconclusive(encoder_file, tmp_path):
    sets = with_patients(write_sets(tmp_path, n=12, copies=0), tmp_path)

    report = quick_audit(**sets, output_dir=tmp_path / "out", encoder=encoder_file)

    assert report["verdict"]["status"] == "inconclusive"
    assert "few_validation_patients" in report["verdict"]["reasons"]
    assert report["calibrated"]["n_copies"] == 0
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    check_keys(written)
    assert written["calibrated"]["threshold"] is None


def test_copies_are_found_whatever_the_number_of_validation_patients(encoder_file, tmp_path):
    sets = with_patients(write_sets(tmp_path, n=12, copies=4), tmp_path)

    report = quick_audit(**sets, output_dir=tmp_path / "out", encoder=encoder_file)

    assert report["verdict"]["status"] == "copies_found"
    assert list(report["verdict"]["reasons"]) == ["near_identical"]


def test_unknown_patients_are_told(encoder_file, tmp_path, caplog):
    sets = write_sets(tmp_path, n=24, copies=3)

    report = quick_audit(**sets, output_dir=tmp_path / "out", encoder=encoder_file)

    assert "no_patient_ids" in report["verdict"]["reasons"]
    assert report["sets"]["validation"]["n_patients"] is None
    assert report["calibrated"]["n_mem_patients"] is None
    assert reason(report, "no_patient_ids").text in caplog.text
    assert "Give the training set and the validation set with a patient_id column (CSV)." in caplog.text


def test_known_patients_need_no_word(given, encoder_file, tmp_path, caplog):
    quick_audit(**given, output_dir=tmp_path / "out", encoder=encoder_file)

    assert "are not known" not in caplog.text


def test_labels_are_compared_within(encoder_file, tmp_path):
    sets = write_sets(tmp_path, n=48, copies=6)
    for role, folder in sets.items():
        labels = ["ill" if i % 2 else "well" for i in range(48)]
        sets[role] = write_csv(folder, tmp_path / f"{role}.csv", [f"{role}{i}" for i in range(48)], labels)

    report = quick_audit(**sets, output_dir=tmp_path / "out", encoder=encoder_file)

    pairs = read_table(tmp_path / "out" / "pairs.csv")
    assert {pair["p_value"] for pair in pairs[:6]} == {f"{1 / 25:.6f}"}  # 24 validation patients of each label
    assert report["calibrated"]["n_copies"] >= 6


def test_label_that_no_training_image_has_is_refused(tmp_path):
    sets = write_sets(tmp_path, n=48)
    for role, folder in sets.items():
        labels = ["ill" if i % 2 else "Well" if role == "training" else "well" for i in range(48)]
        sets[role] = write_csv(folder, tmp_path / f"{role}.csv", [f"{role}{i}" for i in range(48)], labels)

    refuses(tmp_path / "out", "label: found 24 synthetic images labelled 'well' but no training image", **sets)


def test_volumes_are_audited_alike(tmp_path, few_steps):
    sets = write_sets(tmp_path, (12, 14, 10), ".nii.gz", n=24, copies=6)

    report = quick_audit(**sets, output_dir=tmp_path / "out", gallery=True)

    assert report["encoder"]["image_size"] == [12, 14, 10]
    assert report["calibrated"]["n_near_identical"] == 6
    pairs = read_table(tmp_path / "out" / "pairs.csv")
    assert all(pair["training_id"] == pair["synthetic_id"].replace("synthetic", "training") for pair in pairs[:6])
    assert {("flip", axis) for axis in (0, 1, 2)} <= {(cell["family"], cell["strength"]) for cell in report["power"]}
    assert (tmp_path / "out" / "gallery.html").stat().st_size > 10_000


def test_encoder_is_trained_kept_and_used_again(given, tmp_path, few_steps):
    first = quick_audit(**given, output_dir=tmp_path / "out")
    weights = (tmp_path / "out" / "encoder" / "model.pt").read_bytes()
    second = quick_audit(**given, output_dir=tmp_path / "out")

    assert (tmp_path / "out" / "encoder" / "model.pt").read_bytes() == weights
    assert first["provenance"]["encoder_sha256"] == second["provenance"]["encoder_sha256"]
    assert first["encoder"]["training_steps"] == 3


def test_reconstructed_validation_is_what_the_audit_is_calibrated_on(given, encoder_file, audited, tmp_path):
    validation = read_image_set(given["validation"], "validation")
    for path, image in zip(validation.paths, smooth_images(N, seed=21), strict=True):
        write_image(image, tmp_path / "reconstructed" / f"{path.stem}.npy")

    report = quick_audit(
        **given,
        output_dir=tmp_path / "out",
        encoder=encoder_file,
        reconstructed_validation=tmp_path / "reconstructed",
    )

    assert report["calibrated"]["threshold"] != audited[0]["calibrated"]["threshold"]
    assert report["paper_protocol"]["tau"] == audited[0]["paper_protocol"]["tau"]
    assert report["sets"]["reconstructed_validation"]["n_patients"] == N
    controls, plain = report["controls"], audited[0]["controls"]
    assert controls["nearest_in_training_real"] == plain["nearest_in_training_real"]
    assert (plain["gap_reference"], controls["gap_reference"]) == ("validation", "reconstructed_validation")


def test_reconstructed_training_images_are_planted_as_copies(given, encoder_file, audited, tmp_path):
    training = read_image_set(given["training"], "training")
    for path in training.paths[10:30]:
        write_image(torch.as_tensor(read_image(path)[0]) / 255, tmp_path / "same" / f"{path.stem}.npy")
    for path, stranger in zip(training.paths[10:30], smooth_images(20, seed=31), strict=True):
        write_image(stranger, tmp_path / "strangers" / path.name)

    def planted(folder):
        report = audit(
            **given, output_dir=tmp_path / "out", encoder=encoder_file, reconstructed_training=tmp_path / folder
        )
        assert report["sets"]["reconstructed_training"]["n_patients"] == 10
        assert report["power"][:-1] == audited[0]["power"]
        assert report["calibrated"]["threshold"] == audited[0]["calibrated"]["threshold"]
        return report["power"][-1], report["power_summary"]["unseen"]

    found, better = planted("same")
    overlooked, worse = planted("strangers")

    assert found == {
        "family": "autoencoder",
        "strength": 1,
        "n": 20,
        "recall": 1.0,
        "matched": 1.0,
        "seen_in_training": False,
        "whole": True,
    }
    assert overlooked["recall"] <= 0.2
    assert worse < better


def test_reconstruction_of_no_training_image_is_named(given, encoder_file, tmp_path):
    refuses(
        tmp_path / "out",
        r"reconstructed_training: reconstructions of no training image: 2, such as stranger_000; .*under its own name",
        **given,
        encoder=encoder_file,
        reconstructed_training=write_folder(smooth_images(2), tmp_path / "strange", "stranger"),
    )


def test_mirrored_copies_are_in_the_gallery_beside_their_originals(given, encoder_file, tmp_path, monkeypatch):
    monkeypatch.setattr("monai_memorization.auditing.N_GALLERY_PAIRS", 1)
    training = read_image_set(given["training"], "training")
    for path in training.paths[:6]:
        mirrored = torch.as_tensor(read_image(path)[0]).flip(1) / 255
        write_image(mirrored, tmp_path / "mirrored" / f"mirror-of-{path.name}")

    quick_audit(
        **given | {"synthetic": tmp_path / "mirrored"}, output_dir=tmp_path / "out", encoder=encoder_file, gallery=True
    )

    page = (tmp_path / "out" / "gallery.html").read_text(encoding="utf-8")
    assert "6 pairs to look at" in page
    for name in training.image_ids[:6]:
        assert name in page


def test_gallery_of_an_earlier_audit_does_not_stay(given, encoder_file, tmp_path):
    for gallery in (True, False):
        quick_audit(**given, output_dir=tmp_path, encoder=encoder_file, gallery=gallery)
        assert (tmp_path / "gallery.html").exists() == gallery


def test_output_that_cannot_be_written_is_refused_before_an_encoder_is_trained(given, tmp_path, monkeypatch):
    monkeypatch.setattr("monai_memorization.auditing.obtain_encoder", None)
    (tmp_path / "file").write_text("")

    with pytest.raises(InputError, match=r"out: cannot be written \(.*file is a file\)"):
        quick_audit(**given, output_dir=tmp_path / "file" / "out")


@pytest.mark.parametrize("seed", [-1, 2**63])
def test_seed_that_no_generator_takes_is_refused(given, tmp_path, seed):
    refuses(tmp_path / "out", rf"seed: found {seed}, but must lie between 0 and", **given, seed=seed)


@pytest.mark.parametrize("role", ["training", "validation"])
def test_images_given_as_their_own_reconstructions_are_refused(given, encoder_file, tmp_path, role):
    message = rf"reconstructed_{role}: {N} of its {N} images are those of the {role} set unchanged, such as "
    with pytest.raises(InputError, match=message):
        quick_audit(**given, output_dir=tmp_path, encoder=encoder_file, **{f"reconstructed_{role}": given[role]})
    assert not (tmp_path / "report.json").exists()


def test_reconstruction_of_no_validation_image_is_named(given, encoder_file, tmp_path):
    folder = write_folder(smooth_images(2), tmp_path / "strange", "stranger")

    refuses(
        tmp_path / "out",
        r"reconstructed_validation: reconstructions of no validation image: 2, such as stranger_000",
        **given,
        encoder=encoder_file,
        reconstructed_validation=folder,
    )


def test_reconstructions_of_a_part_are_refused(given, encoder_file, tmp_path):
    validation = read_image_set(given["validation"], "validation")
    for path in validation.paths[1:]:
        write_image(smooth_images(1)[0], tmp_path / "part" / path.name)

    refuses(
        tmp_path / "out",
        rf"reconstructed_validation: validation images without a reconstruction: 1, such as {validation.paths[0].stem}",
        **given,
        encoder=encoder_file,
        reconstructed_validation=tmp_path / "part",
    )


def test_unreadable_images_stop_the_audit_or_are_counted(given, encoder_file, tmp_path):
    synthetic = shutil.copytree(given["synthetic"], tmp_path / "synthetic")
    (synthetic / "broken.png").write_bytes(b"broken")
    arguments = given | {"synthetic": synthetic, "encoder": encoder_file}

    with pytest.raises(InputError, match=r"synthetic: .*broken\.png: cannot be read .*--skip-unreadable"):
        quick_audit(**arguments, output_dir=tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["embeddings"]
    report = quick_audit(**arguments, output_dir=tmp_path / "out", skip_unreadable=True)

    assert report["sets"]["synthetic"]["n_unreadable"] == 1
    assert len(read_table(tmp_path / "out" / "pairs.csv")) == N


def test_images_of_another_size_are_scaled_and_counted(given, encoder_file, tmp_path):
    folder = write_folder(smooth_images(30, (64, 64), seed=5), tmp_path / "large")

    report = quick_audit(**given | {"synthetic": folder}, output_dir=tmp_path / "out", encoder=encoder_file)

    assert report["sets"]["synthetic"]["n_resized"] == 30
    assert report["sets"]["training"]["n_resized"] == 0


def test_validation_patient_in_the_training_set_is_named(given, encoder_file, tmp_path):
    text = given["validation"].read_text().replace(f"{CANARY}-patient-validation-7\n", f"{CANARY}-patient-training-7\n")
    shutil.copytree(given["validation"].parent / "validation", tmp_path / "validation")
    (tmp_path / "validation.csv").write_text(text)

    refuses(
        tmp_path / "out",
        rf"validation: 1 patient also in the training set \({CANARY}-patient-training-7\)",
        **given | {"validation": tmp_path / "validation.csv", "encoder": encoder_file},
    )


def test_image_in_both_sets_is_named_whatever_its_file(given, encoder_file, tmp_path):
    validation = shutil.copytree(given["validation"].parent / "validation", tmp_path / "validation")
    image = smooth_images(N, seed=1)[4]  # as the fifth training image was written
    write_image((image * 255).round(), validation / "leaked.npy")

    message = rf"1 of its images .* training set too, leaked\.npy as training/{CANARY}-image_training_004\.png"
    with pytest.raises(InputError, match=rf"{message}.* {tmp_path}/out/refused_leaks\.csv names all"):
        quick_audit(**given | {"validation": validation}, output_dir=tmp_path / "out", encoder=encoder_file)

    assert {path.name for path in (tmp_path / "out").iterdir()} == {"refused_leaks.csv", "embeddings"}
    (leak,) = read_table(tmp_path / "out" / "refused_leaks.csv")
    assert (leak["kind"], leak["image_id"]) == ("identical_in_validation", "leaked.npy")


def test_refused_audit_leaves_what_an_earlier_one_wrote(given, encoder_file, tmp_path):
    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file()}

    arguments = {"output_dir": tmp_path / "out", "encoder": encoder_file}
    quick_audit(**given, **arguments)
    earlier = contents()
    both = shutil.copytree(given["training"].parent / "training", tmp_path / "both")

    with pytest.raises(InputError, match=f"{N} of its images are in the training set too"):
        quick_audit(**given | {"validation": both}, **arguments)
    refused = contents()
    quick_audit(**given, **arguments)

    assert refused.keys() - earlier.keys() == {"refused_leaks.csv"}
    assert {name: refused[name] for name in earlier} == earlier
    assert contents().keys() == earlier.keys()


@pytest.mark.parametrize("role", ["validation", "reconstructed_validation"])
def test_synthetic_set_that_holds_validation_images_is_refused(given, encoder_file, tmp_path, role):
    sets = write_sets(tmp_path)
    reconstructed = write_folder(smooth_images(N, seed=8), tmp_path / "reconstructed", "image_validation")
    real = {"validation": sets["validation"], "reconstructed_validation": reconstructed}[role]
    shutil.copy(real / "image_validation_004.png", sets["synthetic"] / "other.png")

    with pytest.raises(InputError, match=rf"synthetic: 1 of its images are in the {role} set too, other.png as image_"):
        quick_audit(**sets, output_dir=tmp_path / "out", encoder=encoder_file, reconstructed_validation=reconstructed)
    assert not (tmp_path / "out" / "report.json").exists()


@pytest.mark.parametrize("role", ["validation", "synthetic"])
def test_image_that_cannot_be_read_is_named_before_an_encoder_is_trained(tmp_path, monkeypatch, role):
    sets = write_sets(tmp_path)
    (sets[role] / "broken.png").write_text("no picture")
    monkeypatch.setattr("monai_memorization.auditing.obtain_encoder", lambda *_: pytest.fail("was trained"))

    with pytest.raises(InputError, match=rf"{role}: .*broken\.png: cannot be read"):
        quick_audit(**sets, output_dir=tmp_path / "out")


def test_encoder_of_another_training_set_is_told(tmp_path, few_steps):
    sets = write_sets(tmp_path, copies=0)
    quick_audit(**sets, output_dir=tmp_path / "first")
    encoder = tmp_path / "first" / "encoder" / "model.pt"
    others = sets | {"training": sets["validation"], "validation": sets["training"]}

    own = quick_audit(**with_patients(sets, tmp_path), output_dir=tmp_path / "own", encoder=encoder)
    foreign = quick_audit(**others, output_dir=tmp_path / "foreign", encoder=encoder)

    assert not own["provenance"]["settings"]["encoder_of_other_images"]
    assert foreign["provenance"]["settings"]["encoder_of_other_images"]
    pages = [(tmp_path / name / "report.html").read_text() for name in ("own", "foreign")]
    assert ["encoder was trained on other images" in page for page in pages] == [False, True]


@pytest.mark.parametrize("record", [None, "no JSON", "5", '{"of": "another tool"}'])
def test_report_of_another_tool_is_kept(given, encoder_file, tmp_path, record):
    (tmp_path / "report.html").write_text("of another tool")
    if record is not None:
        (tmp_path / "report.json").write_text(record)

    with pytest.raises(InputError, match=r"report\.html: is not of an audit, and is kept; choose another folder"):
        quick_audit(**given, output_dir=tmp_path, encoder=encoder_file)
    assert (tmp_path / "report.html").read_text() == "of another tool"


def test_what_the_report_will_say_is_told_at_once(encoder_file, tmp_path, caplog):
    sets = write_sets(tmp_path, n=12, copies=2)
    patients = [f"patient-{i}" for i in range(12)]
    sets["validation"] = write_csv(sets["validation"], tmp_path / "validation.csv", patients, ["a"] * 12)

    quick_audit(**sets, output_dir=tmp_path / "out", encoder=encoder_file)

    assert "validation: 12 patients, but alpha 0.05 needs at least 19: this audit cannot flag any image" in caplog.text
    assert "labels: the synthetic set has none" in caplog.text
    assert "Patients of the training set are not known: patients in both sets could not be looked for" in caplog.text


def test_leaks_that_do_not_stop_the_audit_are_counted_and_named_inside(given, encoder_file, tmp_path):
    folder = with_patients(write_sets(tmp_path), tmp_path)
    training = smooth_images(N, seed=1)
    write_image(training[10], tmp_path / "training" / "image_training_011.png")  # of the same patient
    write_image(training[20], tmp_path / "training" / "image_training_031.png")  # of another
    write_image(0.7 * training[5].flip(0), tmp_path / "validation" / "image_validation_007.png")

    report = quick_audit(**folder, output_dir=tmp_path / "out", encoder=encoder_file)

    assert report["sets"]["leaks"] == {
        "shared_images": 1,
        "shared_patients": 0,
        "repeated_in_training": 2,
        "repeated_same_patient": 1,
        "repeated_other_patient": 1,
    }
    names = ("kind", "image_id", "patient_id", "other_image_id", "other_patient_id")
    assert [tuple(row[name] for name in names) for row in read_table(tmp_path / "out" / "leaks.csv")] == [
        (
            "near_identical_in_validation",
            "validation/image_validation_007.png",
            "validation-7",
            "training/image_training_005.png",
            "training-2",
        ),
        (
            "repeated_in_training",
            "training/image_training_011.png",
            "training-5",
            "training/image_training_010.png",
            "training-5",
        ),
        (
            "repeated_in_training",
            "training/image_training_031.png",
            "training-15",
            "training/image_training_020.png",
            "training-10",
        ),
    ]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "Training images that repeat another one" in page
    assert "image_training_011" not in page

    quick_audit(**given, output_dir=tmp_path / "out", encoder=encoder_file)
    assert (tmp_path / "out" / "leaks.csv").read_text() == (
        "kind,image_id,patient_id,other_image_id,other_patient_id,similarity\n"
    )


def test_missing_validation_set_is_told_with_what_to_do(given, encoder_file, tmp_path):
    refuses(
        tmp_path / "out",
        r"validation: none given; .*monai-memorization split",
        **given | {"validation": None, "encoder": encoder_file},
    )


@pytest.mark.parametrize("role", ["training", "synthetic"])
def test_missing_set_is_named(given, tmp_path, role):
    refuses(tmp_path / "out", rf"{role}: none given; give a folder of images", **given | {role: None})


@pytest.mark.parametrize("name", ["alpha", "q"])
@pytest.mark.parametrize("level", [0, 1, -0.1, 5, float("nan")])
def test_level_outside_0_to_1_is_refused(given, tmp_path, name, level):
    refuses(tmp_path / "out", rf"{name}\b.*{level}", **given, **{name: level})


@pytest.mark.parametrize("device", ["gpu", "cuda:99", ""])
def test_device_that_is_not_there_is_named(given, tmp_path, device):
    message = rf"device: '{device}' cannot be used here .*; give cpu, cuda or auto"

    refuses(tmp_path / "out", message, **given, device=device)


def test_device_is_chosen():
    assert choose_device("cpu") == "cpu"
    assert choose_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


def test_encoder_of_another_dimension_is_refused(given, tmp_path):
    save_encoder(ContrastiveEncoder((8, 8, 8)), tmp_path / "model.pt")

    refuses(tmp_path / "out", r"encoder: .*model\.pt is for 3D images", **given, encoder=tmp_path / "model.pt")


@pytest.mark.parametrize("role", ["training", "validation", "synthetic"])
def test_empty_folder_is_named_by_its_argument(given, encoder_file, tmp_path, role):
    (tmp_path / "empty").mkdir()

    refuses(
        tmp_path / "out",
        rf"{role}: no image in .*empty",
        **given | {role: tmp_path / "empty", "encoder": encoder_file},
    )


def test_volume_among_synthetic_pictures_is_named(given, encoder_file, tmp_path):
    synthetic = write_folder(smooth_images(3, (8, 8, 8)), tmp_path / "volumes", suffix=".nii.gz")

    refuses(
        tmp_path / "out",
        r"synthetic: .*image_000\.nii\.gz: is 8x8x8, a 3D image among 2D ones",
        **given | {"synthetic": synthetic, "encoder": encoder_file},
    )


def test_output_in_the_place_of_a_file_is_refused(given, encoder_file, tmp_path):
    (tmp_path / "out").write_text("a file")

    with pytest.raises(InputError, match=r"out.*cannot be written"):
        quick_audit(**given, output_dir=tmp_path / "out", encoder=encoder_file)
    assert (tmp_path / "out").read_text() == "a file"


def test_a_single_synthetic_image_is_audited(given, encoder_file, tmp_path):
    one = write_folder(smooth_images(N, seed=1)[:1], tmp_path / "one")

    report = quick_audit(**given | {"synthetic": one}, output_dir=tmp_path / "out", encoder=encoder_file)

    assert report["calibrated"]["n_near_identical"] == 1
    assert report["verdict"]["status"] == "copies_found"


def test_inputs_are_not_touched(given, encoder_file, tmp_path):
    def state():
        root = given["synthetic"].parent
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return [(path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]

    before = state()
    quick_audit(**given, output_dir=tmp_path / "out", encoder=encoder_file)

    assert state() == before


@pytest.mark.parametrize("name", ["gallery.html", "pairs.csv"])
def test_foreign_files_are_kept(given, encoder_file, tmp_path, name):
    (tmp_path / name).write_text("mine")
    with pytest.raises(InputError, match=f"{name}: is not of an audit, and is kept; choose another folder"):
        quick_audit(**given, output_dir=tmp_path, encoder=encoder_file)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"
