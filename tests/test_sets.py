# SPDX-License-Identifier: Apache-2.0
"""Image sets: the same set in three forms, every bad input named, and splits that keep patients whole."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_up_images import smooth_images, write_folder, write_image

from monai_memorization.errors import InputError
from monai_memorization.images.division import check_disjoint, split
from monai_memorization.images.sets import SUFFIXES, ImageSet, data_list, read_image_set, write_image_set

NAMES = ("images/a.png", "images/b.png", "images/deep/c.nii.gz")
ROWS = [
    {"image": name, "patient_id": patient, "label": label}
    for name, patient, label in zip(NAMES, ("007", "8", "8"), ("normal", "ill", "ill"), strict=True)
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files of ROWS; nothing reads what is in them here."""
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"not read")
    return tmp_path


def write_csv(folder: Path, text: str, name: str = "list.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def write_json(folder: Path, content: object) -> Path:
    path = folder / "list.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def as_csv(rows: list[dict[str, str]]) -> str:
    return "\n".join([",".join(rows[0]), *(",".join(row.values()) for row in rows)])


def made_up_set(patients: list[str]) -> ImageSet:
    names = tuple(f"{i}.png" for i in range(len(patients)))
    return ImageSet("training", names, tuple(Path(name) for name in names), tuple(patients), None, True)


def test_csv_and_data_list_give_the_same_set(folder):
    from_csv = read_image_set(write_csv(folder, as_csv(ROWS)), "training")
    from_list = read_image_set(write_json(folder, {"training": ROWS}), "training")

    assert from_csv == from_list
    assert from_csv.image_ids == NAMES
    assert from_csv.paths == tuple(folder / name for name in NAMES)
    assert from_csv.patient_ids == ("007", "8", "8")
    assert from_csv.labels == ("normal", "ill", "ill")
    assert from_csv.has_patients
    assert (len(from_csv), from_csv.n_patients) == (3, 2)


def test_masks_that_a_data_list_names_as_labels_are_no_classes(folder, caplog):
    rows = [row | {"label": f"masks/patient_{i}.nii.gz"} for i, row in enumerate(ROWS)]

    assert read_image_set(write_json(folder, {"training": rows}), "training").labels is None
    assert "names files such as masks/patient_0.nii.gz" in caplog.text


def test_folder_is_searched_through_and_every_image_is_its_own_patient(folder):
    images = read_image_set(folder, "synthetic")

    assert images.image_ids == NAMES
    assert images.patient_ids == NAMES
    assert images.paths == tuple(folder / name for name in NAMES)
    assert (images.role, images.labels, images.has_patients) == ("synthetic", None, False)


def test_folder_skips_hidden_and_other_files_and_keeps_all_known_suffixes(tmp_path):
    for name in [*(f"x{suffix.upper()}" for suffix in SUFFIXES), ".hidden.png", "notes.txt", "list.csv"]:
        (tmp_path / name).touch()

    assert set(read_image_set(tmp_path, "training").image_ids) == {f"x{suffix.upper()}" for suffix in SUFFIXES}


@pytest.mark.parametrize("pattern", ["", "*.png"])
def test_link_to_a_folder_is_named(folder, pattern):
    (folder / "images" / "more").symlink_to(folder, target_is_directory=True)

    with pytest.raises(InputError, match=r"^training: .*images/more is a link to a folder, .* images in a CSV"):
        read_image_set(folder / pattern, "training")


def test_set_may_be_given_by_a_link(folder, tmp_path_factory):
    link = tmp_path_factory.mktemp("links") / "images"
    link.symlink_to(folder, target_is_directory=True)
    (folder / ".hidden").symlink_to(folder, target_is_directory=True)

    assert read_image_set(link, "training").image_ids == NAMES


def test_link_to_an_image_is_an_image(folder, tmp_path_factory):
    links = tmp_path_factory.mktemp("links")
    (links / "a.png").symlink_to(folder / NAMES[0])

    assert read_image_set(links, "training").image_ids == ("a.png",)


def test_data_list_is_read_at_the_section_of_the_role(folder):
    path = write_json(folder, {"training": ROWS[:1], "validation": ROWS[1:], "name": "a data set"})

    assert read_image_set(path, "training").image_ids == NAMES[:1]
    assert read_image_set(path, "validation").image_ids == NAMES[1:]


@pytest.mark.parametrize("content", [{"cohort": ROWS}, ROWS, [row["image"] for row in ROWS], {"x": list(NAMES)}])
def test_data_list_with_one_section_is_read_there(folder, content):
    assert read_image_set(write_json(folder, content), "synthetic").image_ids == NAMES


def test_pattern_chooses_among_the_images_of_a_folder(tmp_path):
    for name in ("sub/s1_image.nii.gz", "sub/s1_label.nii.gz", "s2_image.nii.gz", "s2_image.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    images = read_image_set(tmp_path / "*_image.nii.gz", "synthetic")

    assert images.image_ids == ("s2_image.nii.gz", "sub/s1_image.nii.gz")
    assert images.n_ignored == 0
    with pytest.raises(InputError, match=r"synthetic: no image in .*; looked for .* among \*_mask.nii.gz in it"):
        read_image_set(tmp_path / "*_mask.nii.gz", "synthetic")


def test_data_list_for_configs_holds_paths_and_ids(folder):
    assert data_list(folder, "images") == [{"image": str(folder / name), "source": name} for name in NAMES]


def test_data_list_for_configs_says_that_nothing_is_given():
    with pytest.raises(InputError, match="validation: no images are given; give a folder of images, a CSV or"):
        data_list(None, "validation")


def test_data_list_for_configs_holds_patients_where_they_are_known(folder):
    items = data_list(write_csv(folder, as_csv(ROWS)), "images", key="scan")

    assert items == [
        {"scan": str(folder / row["image"]), "source": row["image"], "patient_id": row["patient_id"]} for row in ROWS
    ]


def test_names_of_windows_get_forward_slashes(folder):
    assert read_image_set(write_csv(folder, "image\nimages\\a.png\n"), "training").image_ids == ("images/a.png",)


def test_patient_called_na_is_a_patient(folder):
    images = read_image_set(write_csv(folder, "image,patient_id\nimages/a.png,NA\nimages/b.png,nan\n"), "training")

    assert images.patient_ids == ("NA", "nan")


def test_csv_with_a_byte_order_mark_is_read(folder):
    path = folder / "list.csv"
    path.write_bytes(b"\xef\xbb\xbf" + as_csv(ROWS).encode())

    assert read_image_set(path, "training").image_ids == NAMES


def test_spaces_around_names_and_patients_do_not_hide_them(folder):
    images = read_image_set(write_csv(folder, "image, patient_id\nimages/a.png, 7\nimages/b.png,7 \n"), "training")

    assert images.patient_ids == ("7", "7")
    assert images.has_patients


def test_folder_that_cannot_be_searched_is_named(folder, monkeypatch):
    scandir = os.scandir

    def refuse_deep(path):  # the superuser, who runs many a test, may search everything
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse_deep)

    with pytest.raises(InputError, match=r"images/deep: cannot be searched \(Permission denied\)"):
        read_image_set(folder, "training")


def test_absolute_path_in_a_csv_is_taken_as_it_is(folder, tmp_path_factory):
    elsewhere = write_csv(tmp_path_factory.mktemp("elsewhere"), f"image\n{folder / NAMES[0]}\n")

    assert read_image_set(elsewhere, "training").paths == (folder / NAMES[0],)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image\nimages/a.png\nimages/a.png\n", r"list\.csv lists 1 image more than once \(images/a\.png\)"),
        ("image\nimages/a.png\nimages\\a.png\n", r"more than once \(images/a\.png\)"),
        ("image\nimages/gone.png\n", r"1 image of .*list\.csv missing \(images/gone\.png\)"),
        ("image\n1.png\n2.png\n3.png\n4.png\n", r"4 images of .* missing \(1\.png, 2\.png, 3\.png, \.\.\.\)"),
        ("image,patient_id\nimages/a.png,7\nimages/b.png, \n", r"list\.csv has no 'patient_id'.*images/b\.png"),
        ("image,label\nimages/a.png,\n", r"list\.csv has no 'label'.*images/a\.png"),
        ("image,label\nimages/a.png,ill\nimages/b.png\n", r"list\.csv has no 'label'.*images/b\.png"),
        ("picture\nimages/a.png\n", r"list\.csv has no 'image'; it has .*picture"),
        ("image\n", r"list\.csv lists no image"),
        ("", r"list\.csv cannot be read as CSV \(No columns"),
        ("image,patient_id\nimages/a.png,1\nimages/b.png,2,3,4\n", r"list\.csv cannot be read as CSV .*line 3"),
        ("image,patient_id\nimages/a.png,Doe, Jane\n", r"list\.csv has more values in its first row than columns"),
        ("image,patient_id\nimages/a.png,7,\nimages/b.png,8\n", r"first row .*; name every column, and put quotes"),
        ("image;patient_id\nimages/a.png;7\n", r"list\.csv has the columns \['image;patient_id'\], .* comma separated"),
        ("image;patient_id\nimages/a.png;Doe, Jane\n", r"which are not separated by commas; .* comma separated"),
        ("image\tpatient_id\nimages/a.png\t7\n", r"which are not separated by commas; .* comma separated"),
    ],
)
def test_bad_csv_is_named_with_what_is_wrong(folder, text, message):
    with pytest.raises(InputError, match=f"^validation: .*{message}"):
        read_image_set(write_csv(folder, text), "validation")


@pytest.mark.parametrize(
    ("column", "meant"),
    [
        ("PatientID", "patient_id"),
        ("Patient Id", "patient_id"),
        ("patient-id", "patient_id"),
        ("patientid", "patient_id"),
        ("LABEL", "label"),
        ("Image", "image"),
    ],
)
def test_column_that_is_nearly_one_that_is_read_is_named(folder, column, meant):
    message = rf"^training: .* has '{column}', which is not read; call it '{meant}' if that is meant, or"

    with pytest.raises(InputError, match=message):
        read_image_set(write_csv(folder, f"image,{column}\nimages/a.png,7\n"), "training")
    with pytest.raises(InputError, match=message):
        read_image_set(write_json(folder, [{"image": NAMES[0]}, {"image": NAMES[1], column: "7"}]), "training")


def test_other_columns_are_left_alone(folder):
    text = "image,patient,image_id,label_2,age\nimages/a.png,7,8,9,10\n"

    assert not read_image_set(write_csv(folder, text), "training").has_patients


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_csv_of_another_encoding_is_named(folder, encoding):
    path = folder / "list.csv"
    path.write_bytes("image,patient_id\nimages/a.png,Müller\n".encode(encoding))

    with pytest.raises(InputError, match=r"training: .*list\.csv cannot be read as CSV .*save it as UTF-8"):
        read_image_set(path, "training")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": ROWS, "b": ROWS}, r"list\.json has no section 'training'; its lists are \['a', 'b'\]"),
        ({"name": "x"}, r"list\.json has no section 'training'; its lists are \[\]"),
        ({"training": []}, r"list\.json lists no image"),
        (7, r"list\.json holds no list"),
        ([{"label": "x"}], r"an entry of .*list\.json has no 'image'; it has \{'label': 'x'\}"),
        ([None], r"an entry of .*list\.json has no 'image'"),
        ([{"image": None}], r"list\.json has no 'image'"),
        ([{"image": ["images/a.png"]}], r"list\.json has \['images/a\.png'\] as 'image', which is neither text"),
        ([{"image": NAMES[0], "label": 1.0}], r"list\.json has 1\.0 as 'label', which is neither text nor a whole"),
        ([ROWS[0], {"image": NAMES[1]}], r"list\.json has no 'patient_id'; it has .*images/b\.png"),
    ],
)
def test_bad_data_list_is_named_with_what_is_wrong(folder, content, message):
    with pytest.raises(InputError, match=f"^training: .*{message}"):
        read_image_set(write_json(folder, content), "training")


@pytest.mark.parametrize("content", [b"{'training': []}", b"\xff\xfe{", b"[" * 100_000])
def test_file_that_is_no_json_is_named(folder, content):
    path = folder / "list.json"
    path.write_bytes(content)

    with pytest.raises(InputError, match=r"training: .*list\.json cannot be read as JSON"):
        read_image_set(path, "training")


def test_empty_folder_is_named_with_what_was_looked_for(tmp_path):
    with pytest.raises(InputError, match=rf"synthetic: no image in {re.escape(str(tmp_path))}; looked for \.nii\.gz"):
        read_image_set(tmp_path, "synthetic")


def test_missing_source_is_named(tmp_path):
    with pytest.raises(InputError, match=r"synthetic: .*nowhere does not exist; give a folder"):
        read_image_set(tmp_path / "nowhere", "synthetic")


def test_source_of_another_kind_is_named(folder):
    with pytest.raises(InputError, match=r"training: .*list\.xlsx is neither a folder, a CSV nor"):
        read_image_set(write_csv(folder, "", "list.xlsx"), "training")


def test_shared_patients_are_named():
    with pytest.raises(InputError, match=r"validation: 2 patients also in the training set \(b, c\)"):
        check_disjoint(made_up_set(["a", "b", "c"]), made_up_set(["c", "d", "b"]))


@pytest.mark.parametrize(("training", "validation"), [("007", "7"), ("7", "7.0"), ("00", "0")])
def test_patient_whose_number_is_written_otherwise_is_named(training, validation):
    message = rf"validation: 1 patient also in the training set if numbers are compared \({validation} and {training}\)"

    with pytest.raises(InputError, match=message):
        check_disjoint(made_up_set(["a", training, "70"]), made_up_set(["b", validation, "700"]))


def test_names_that_only_begin_like_numbers_are_different_patients():
    check_disjoint(made_up_set(["7", "p07", "7.5", "1e1", ""]), made_up_set(["70", "p7", "7.50", "10", "-7"]))


def test_sets_without_patients_share_none(folder):
    images = read_image_set(folder, "training")

    check_disjoint(images, images)


def test_subset_keeps_what_belongs_together(folder):
    images = read_image_set(write_csv(folder, as_csv(ROWS)), "training").subset([2, 0])

    assert images.image_ids == (NAMES[2], NAMES[0])
    assert images.paths == (folder / NAMES[2], folder / NAMES[0])
    assert images.patient_ids == ("8", "007")
    assert images.labels == ("ill", "normal")


@settings(max_examples=100, deadline=None)
@given(
    patients=st.lists(st.sampled_from("abcdefghijkl"), min_size=2, max_size=40),
    share=st.floats(0.05, 0.95),
    seed=st.integers(0, 2**20),
)
def test_split_keeps_patients_whole_and_loses_nothing(patients, share, seed):
    images = made_up_set(patients)
    n_validation = round(share * images.n_patients)
    assume(0 < n_validation < images.n_patients)

    training, validation = split(images, share, seed)

    check_disjoint(training, validation)
    assert validation.n_patients == n_validation
    assert sorted(training.image_ids + validation.image_ids) == sorted(images.image_ids)
    assert (training.role, validation.role) == ("training", "validation")
    assert split(images, share, seed) == (training, validation)


def test_split_refuses_one_patient_written_in_two_ways():
    names = tuple(f"{i}.png" for i in range(40))
    patients = tuple(f"{i // 2:03}" if i % 2 else str(i // 2) for i in range(40))
    images = ImageSet("training", names, tuple(map(Path, names)), patients, None, True)
    with pytest.raises(InputError, match="also in the training set if numbers are compared"):
        split(images)


def test_split_does_not_depend_on_the_order_of_the_images():
    images = made_up_set(list("aabbccddeeff"))
    reversed_images = images.subset(reversed(range(len(images))))

    assert set(split(images, 0.5, 3)[1].image_ids) == set(split(reversed_images, 0.5, 3)[1].image_ids)


def test_other_seed_gives_another_split():
    images = made_up_set([str(i) for i in range(50)])

    assert len({split(images, 0.2, seed)[1].patient_ids for seed in range(10)}) == 10


@pytest.mark.parametrize("share", [0, 1, -0.2, 1.5, 0.1, float("nan")])
def test_share_that_leaves_one_side_empty_is_refused(share):
    with pytest.raises(InputError, match=rf"share: {share} of 4 patients"):
        split(made_up_set(list("abcd")), share)


@pytest.mark.parametrize("target", ["list.csv", "sub/folder/list.csv", "../elsewhere/list.csv"])
def test_written_set_is_read_back(folder, target):
    images = read_image_set(write_csv(folder, as_csv(ROWS)), "training")
    path = folder / target

    write_image_set(images, path)
    again = read_image_set(path, "training")

    assert [file.resolve() for file in again.paths] == [file.resolve() for file in images.paths]
    assert (again.patient_ids, again.labels, again.has_patients) == (images.patient_ids, images.labels, True)


def test_links_to_images_keep_their_names_in_a_written_set(folder, tmp_path_factory):
    links = tmp_path_factory.mktemp("links")
    for name in ("first.png", "second.png"):  # as DataLad links equal files to one content
        (links / name).symlink_to(folder / NAMES[0])

    write_image_set(read_image_set(links, "training"), links / "list.csv")

    assert read_image_set(links / "list.csv", "training").image_ids == ("first.png", "second.png")


def test_written_set_without_patients_stays_without(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("out") / "list.csv"

    write_image_set(read_image_set(folder, "training"), path)

    assert path.read_text().splitlines()[0] == "image"
    assert not read_image_set(path, "training").has_patients


def test_awkward_names_survive_writing_and_reading(tmp_path):
    names = ['a,b "c".png', "ä ö.png", "#1.png", " space.png"]
    for name in names:
        (tmp_path / name).touch()

    write_image_set(read_image_set(tmp_path, "training"), tmp_path / "list.csv")

    assert sorted(read_image_set(tmp_path / "list.csv", "training").image_ids) == sorted(names)


def test_dicom_without_a_suffix_is_found_and_other_files_are_counted(tmp_path):
    for name in ("IM0001", "1.2.840.113"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "scan.tif").write_bytes(b"II*")

    images = read_image_set(tmp_path, "synthetic")

    assert images.image_ids == ("1.2.840.113", "IM0001")
    assert images.n_ignored == 2


def test_index_of_a_dicom_archive_is_no_image(tmp_path):
    for name in ("DICOMDIR", "IM0001"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")

    assert read_image_set(tmp_path, "training").image_ids == ("IM0001",)


def test_name_that_no_table_can_hold_is_named(tmp_path):
    (tmp_path / os.fsdecode(b"M\xfcller.png")).touch()

    with pytest.raises(InputError, match=r"training: the name b'M\\xfcller\.png' is not in UTF-8; rename that file"):
        read_image_set(tmp_path, "training")


@pytest.mark.parametrize("masks", ["labels/final", "labelsTr", "Masks"])
def test_files_where_masks_lie_are_said(tmp_path, caplog, masks):
    for name in ("a.png", "b.png", f"{masks}/a.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert len(read_image_set(tmp_path, "training")) == 3
    assert f"training: 1 files of {tmp_path} lie in a folder such as {tmp_path / masks}" in caplog.text
    caplog.clear()
    read_image_set(tmp_path / masks, "training")
    assert not caplog.text


def test_files_of_unknown_kind_are_said(tmp_path, caplog):
    write_image(smooth_images(1)[0], tmp_path / "a.png")
    (tmp_path / "scan.tif").write_bytes(b"II*")

    read_image_set(tmp_path, "synthetic")

    assert "synthetic: 1 files" in caplog.text
    assert "scan.tif" in caplog.text


def test_hidden_folders_hold_no_images_of_the_set(tmp_path):
    write_folder(smooth_images(2, (16, 16)), tmp_path / "images")
    write_folder(smooth_images(1, (16, 16)), tmp_path / "images" / ".ipynb_checkpoints", "copy")
    assert len(read_image_set(tmp_path / "images", "training")) == 2
