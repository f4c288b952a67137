# SPDX-License-Identifier: Apache-2.0
"""Hostile input: refused in one line or harmless, and nothing of a patient in what may be handed out."""

from __future__ import annotations

import ast
import base64
import contextlib
import csv
import gzip
import io
import json
import os
import pickle
import re
import struct
import warnings
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from made_up_images import smooth_images, write_folder, write_image, write_series
from monai.bundle import ConfigWorkflow, load
from PIL import Image
from pydicom.uid import JPEG2000, MPEG2MPML, DeflatedExplicitVRLittleEndian
from small_generators import small_autoencoder

from monai_memorization.auditing import audit
from monai_memorization.bundle_configs import read_config
from monai_memorization.errors import InputError, UnreadableError
from monai_memorization.filtering import write_data_list
from monai_memorization.gating import read_policy
from monai_memorization.generation.autoencoding import named_items
from monai_memorization.generation.weights import load_weights
from monai_memorization.images.preparation import Preparation
from monai_memorization.images.prepared import prepared_images
from monai_memorization.images.reading import read_image
from monai_memorization.images.sets import read_image_set

BUNDLES = Path(__file__).parent.parent / "bundles"
PACKAGE = Path(__file__).parent.parent / "monai_memorization"
SIZE = (32, 32)


class Attack:
    """Touches a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


# --- weights that carry code ---


@pytest.fixture
def trace(tmp_path) -> Path:
    """The file that an attack would leave behind."""
    return tmp_path / "attacked"


@pytest.mark.parametrize("writer", [torch.save, lambda thing, path: path.write_bytes(pickle.dumps(thing, protocol=2))])
def test_code_in_the_weights_of_a_generator_does_not_run(writer, tmp_path, trace):
    writer({"encoder.blocks.0.conv.weight": Attack(trace)}, tmp_path / "model.pt")

    with pytest.raises(InputError, match=r"model\.pt: does not hold the weights"):
        load_weights(small_autoencoder(), tmp_path / "model.pt")
    assert not trace.exists()


def test_code_in_the_weights_of_the_audit_bundle_does_not_run_in_monai(tmp_path, trace, unchanged_process):
    torch.save({"head.weight": Attack(trace)}, tmp_path / "model.pt")
    folder = write_folder(smooth_images(2, SIZE), tmp_path / "images")
    workflow = ConfigWorkflow(
        str(BUNDLES / "memorization_audit" / "configs" / "inference.json"),
        workflow_type="inference",
        bundle_root=str(BUNDLES / "memorization_audit"),
        encoder_weights=str(tmp_path / "model.pt"),
        images=str(folder),
        image_size=list(SIZE),
        output_dir=str(tmp_path / "out"),
        device="$torch.device('cpu')",
    )
    workflow.initialize()

    with pytest.raises(RuntimeError, match="Failed to evaluate") as caught:
        workflow.run()
    assert isinstance(caught.value.__cause__, pickle.UnpicklingError)
    assert not trace.exists()


def test_code_in_the_weights_of_a_downloaded_bundle_does_not_run(tmp_path, trace):
    bundle = tmp_path / "memorization_audit"
    (bundle / "models").mkdir(parents=True)
    (bundle / "configs").mkdir()
    source = BUNDLES / "memorization_audit" / "configs"
    for name in ("inference.json", "metadata.json"):
        (bundle / "configs" / name).write_bytes((source / name).read_bytes())
    torch.save({"head.weight": Attack(trace)}, bundle / "models" / "model.pt")

    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        load("memorization_audit", bundle_dir=str(tmp_path), source="monaihosting", workflow_type="inference")
    assert not trace.exists()


def test_nothing_is_unpickled_anywhere():
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")]
    calls = [ast.unparse(node) for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Call)]
    safe = {"torch.load(": "weights_only=True", "np.load(": "allow_pickle=False"}

    loads = [call for call in calls if re.match(r"(torch|np|pickle|yaml)\.(unsafe_|full_)?loads?\(", call)]
    assert len(loads) >= 4
    assert [call for call in loads if safe.get(call.partition("(")[0] + "(", "never") not in call] == []


# --- images that would fill the memory ---


def bomb(path: Path) -> Path:
    """Write a small file that claims, and where it is compressed really holds, far more than any memory."""
    sides = (8192, 8192, 4096)
    if path.name.endswith(".nii.gz"):
        header = nibabel.Nifti1Header()
        header.set_data_dtype(np.uint8)
        header.set_data_shape(sides)
        with gzip.open(path, "wb", compresslevel=1) as file:
            file.write(header.binaryblock + b"\0" * 4 + b"\0" * 2**22)
    elif path.suffix == ".png":
        row = zlib.compress(b"\0" * 10_000)
        chunks = [(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)), (b"IDAT", row), (b"IEND", b"")]
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + b"".join(struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks)
        )
    elif path.suffix == ".npy":
        with path.open("wb") as file:
            np.lib.format.write_array_header_1_0(
                file, {"descr": "<f8", "fortran_order": False, "shape": (2**20, 2**20, 2**12)}
            )
    else:
        dataset = one_slice(path)
        dataset.Rows = dataset.Columns = 65_535
        dataset.file_meta.TransferSyntaxUID = JPEG2000
        dataset.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + b"\0" * 100])
        dataset["PixelData"].is_undefined_length = True
        dataset.save_as(path)
    assert path.stat().st_size < 10**6
    return path


def one_slice(path: Path) -> pydicom.FileDataset:
    folder = write_series((smooth_images(1, (8, 9, 1))[0].numpy() * 100).astype(int), np.eye(4), path.parent / "slices")
    return pydicom.dcmread(next(folder.iterdir()))


@pytest.mark.parametrize("suffix", [".nii.gz", ".png", ".npy", ".dcm"])
def test_small_file_that_claims_more_than_the_memory_is_refused_before_it_is_read(suffix, tmp_path):
    path = bomb(tmp_path / f"bomb{suffix}")

    with pytest.raises(UnreadableError, match=rf"bomb{suffix}: cannot be read"):
        read_image(path)


def test_dicom_of_every_foreign_transfer_syntax_is_read_or_refused_in_one_line(tmp_path):
    odd = {"unknown": "1.2.3.4", "film": MPEG2MPML, "wavelets": JPEG2000, "empty": ""}
    for name, syntax in odd.items():
        dataset = one_slice(tmp_path / f"{name}.dcm")
        dataset.save_as(tmp_path / f"{name}.dcm")
        content = (tmp_path / f"{name}.dcm").read_bytes()
        old = dataset.file_meta.TransferSyntaxUID.encode()
        (tmp_path / f"{name}.dcm").write_bytes(content.replace(old, syntax.encode().ljust(len(old), b"\0"), 1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(UnreadableError, match=rf"{name}\.dcm: cannot be read") as caught:
                read_image(tmp_path / f"{name}.dcm")
        assert "\n" not in str(caught.value)
    deflated = one_slice(tmp_path / "deflated.dcm")
    plain = read_image(Path(deflated.filename))
    deflated.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    deflated.save_as(tmp_path / "deflated.dcm")
    assert torch.equal(read_image(tmp_path / "deflated.dcm"), plain)


# --- folders and lists ---


def test_pipe_in_a_folder_is_no_image_and_nothing_waits_for_it(tmp_path):
    write_folder(smooth_images(2, SIZE), tmp_path / "images")
    for name in ("pipe", "pipe.png"):
        os.mkfifo(tmp_path / "images" / name)

    images = read_image_set(tmp_path / "images", "training")

    assert (len(images), images.n_ignored) == (2, 2)
    with pytest.raises(InputError, match=r"pipe\.png: unknown kind"):
        read_image(tmp_path / "images" / "pipe.png")


def test_link_to_itself_is_one_clear_error(tmp_path):
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    (tmp_path / "list.csv").write_text("image\nloop.png\n")

    with pytest.raises(UnreadableError, match=r"loop\.png: cannot be read"):
        prepared_images(tmp_path, SIZE)
    with pytest.raises(InputError, match=r"1 image of .*list\.csv missing \(loop\.png\)"):
        read_image_set(tmp_path / "list.csv", "training")


def test_name_that_climbs_out_of_its_folder_cannot_choose_where_we_write(tmp_path):
    """A list may name images anywhere, as it must; what is written under such a name stays in the output folder."""
    names = ["../../outside.png", "deep/../../escape.png", str(tmp_path / "a" / "b" / "absolute.png")]
    (tmp_path / "a" / "b" / "deep").mkdir(parents=True)
    for name, image in zip(names, smooth_images(3, SIZE), strict=True):
        write_image(image, tmp_path / "a" / "b" / name)
    (tmp_path / "a" / "b" / "list.csv").write_text("image\n" + "\n".join(names))

    items = named_items(prepared_images(tmp_path / "a" / "b" / "list.csv", SIZE))
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    write_data_list(read_image_set(tmp_path / "a" / "b" / "list.csv", "synthetic"), tmp_path / "out" / "clean")

    assert [item["pred_meta_dict"]["filename_or_obj"] for item in items] == [
        "outside.png",
        "escape.png",
        "absolute.png",
    ]
    written = {path for path in tmp_path.rglob("*") if path.is_file()} - before
    assert len(written) == 4
    assert all(path.is_relative_to(tmp_path / "out" / "clean") for path in written)
    assert len(read_image_set(tmp_path / "out" / "clean" / "synthetic.json", "synthetic")) == 3


# --- configs and policies, which are read as data ---


LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghi", "bcdefghij", strict=True)
)
HOSTILE = {
    "tag.yaml": "!!python/object/apply:pathlib.Path.touch [{trace}]",
    "nested_tag.yaml": "train: {x: !!python/object/new:pathlib.Path [{trace}]}",
    "deep.yaml": "[" * 5000,
    "deep.json": "[" * 100_000,
    "bytes.yaml": "\0\1",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("reader", [read_config, read_policy])
def test_hostile_config_or_policy_is_refused_in_one_line_and_does_nothing(name, reader, tmp_path, trace):
    (tmp_path / name).write_text(HOSTILE[name].replace("{trace}", str(trace)), encoding="utf-8")

    with pytest.raises(InputError, match=re.escape(name)) as caught:
        reader(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert not trace.exists()


def test_config_that_grows_when_it_is_written_out_is_read_without_growing(tmp_path):
    (tmp_path / "laughs.yaml").write_text(LAUGHS, encoding="utf-8")
    assert len(read_config(tmp_path / "laughs.yaml")) == 10


# --- what may be handed out, and what may not ---


SCRIPT = "<script>alert(1)<,script>\"'&.png"
CANARY = "zq9canary"


@pytest.fixture(scope="module")
def canaries(tmp_path_factory, encoder_file) -> tuple[Path, Path]:
    """An audit that finds copies, with a planted word in every name, and hostile names; its output and the folder."""
    folder = tmp_path_factory.mktemp(f"{CANARY}_folder")
    images = smooth_images(24, SIZE, seed=11)
    sets = {"training": images[:8], "validation": images[8:16], "synthetic": torch.cat([images[:4], images[16:20]])}
    given = {}
    for role, pixels in sets.items():
        names = [f"{CANARY}_{role}_{i}.png" for i in range(len(pixels) - 1)] + [f"{CANARY}_{SCRIPT}"]
        for name, image in zip(names, pixels, strict=True):
            write_image(image, folder / role / name)
        with (folder / f"{role}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["image", "patient_id", "label"])
            for i, name in enumerate(names):
                writer.writerow([f"{role}/{name}", f"{CANARY}_<b>patient</b>_{role}_{i}", "all"])
        given[role] = folder / f"{role}.csv"
    output = folder / "out"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so few images leave a scikit-learn fold nearly empty
        audit(**given, output_dir=output, encoder=encoder_file, gallery=True)
    return output, folder


@pytest.mark.parametrize("name", ["report.json", "report.html"])
def test_no_planted_name_path_or_pixel_reaches_what_may_be_handed_out(name, canaries):
    output, folder = canaries
    text = (output / name).read_text(encoding="utf-8")

    for word in (
        CANARY,
        "<b>patient",
        "alert(1)",
        folder.name,
        str(folder),
        Path.home().name + "/",
        os.uname().nodename,
    ):
        assert word not in text, word
    # an image by whichever way: a picture, its bytes, or a run of its values
    assert "data:image" not in text
    assert "<image" not in text
    prepared = Preparation(SIZE)
    for path in sorted((folder / "training").iterdir()):
        pixels = prepared(path)
        raw = (pixels * 255).round().to(torch.uint8).numpy().tobytes()
        for run in (raw[100:112], pixels.numpy().tobytes()[400:412]):
            assert base64.b64encode(run).decode() not in text
            assert run.hex() not in text
        assert ", ".join(str(value) for value in raw[100:112]) not in text


def test_canaries_are_where_they_belong(canaries):
    """What the search above would find, were it there."""
    output, _ = canaries
    for name in ("pairs.csv", "near_identical.csv", "gallery.html"):
        assert CANARY in (output / name).read_text(encoding="utf-8"), name
    assert "data:image/png" in (output / "gallery.html").read_text(encoding="utf-8")


def test_html_in_the_name_of_a_file_or_patient_is_text_in_the_gallery(canaries):
    text = (canaries[0] / "gallery.html").read_text(encoding="utf-8")

    assert "&lt;b&gt;patient&lt;/b&gt;" in text
    assert "<b>patient" not in text
    assert "<script>alert" not in text


def test_hostile_names_come_back_from_the_tables_as_they_were(canaries):
    output, folder = canaries
    with (output / "pairs.csv").open(newline="", encoding="utf-8") as file:
        pairs = list(csv.DictReader(file))

    assert f"synthetic/{CANARY}_{SCRIPT}" in {pair["synthetic_id"] for pair in pairs}
    assert {pair["training_id"] for pair in pairs} <= {
        f"training/{path.name}" for path in (folder / "training").iterdir()
    }


# --- any bytes at all ---


def seeds() -> dict[str, bytes]:
    """One good small file of each kind."""
    image = smooth_images(1, (9, 10))[0]
    contents = {}
    for suffix in (".png", ".jpg"):
        buffer = io.BytesIO()
        Image.fromarray((image.numpy() * 255).astype(np.uint8)).save(buffer, {".png": "PNG", ".jpg": "JPEG"}[suffix])
        contents[suffix] = buffer.getvalue()
    buffer = io.BytesIO()
    np.save(buffer, image.numpy())
    contents[".npy"] = buffer.getvalue()
    volume = nibabel.Nifti1Image(smooth_images(1, (5, 6, 7))[0].numpy(), np.diag([1.0, 2.0, 3.0, 1.0]))
    contents[".nii"] = volume.to_bytes()
    contents[".nii.gz"] = gzip.compress(volume.to_bytes())
    return contents


SEEDS = seeds()
ANYTHING = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def dicom(tmp_path_factory) -> bytes:
    return Path(one_slice(tmp_path_factory.mktemp("dicom") / "x.dcm").filename).read_bytes()


CHANGES = st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=12)


def changed(content: bytes, changes: list[tuple[int, int]], length: float) -> bytes:
    """Overwrite single bytes, most of them in the header, and cut the end off."""
    spoilt = bytearray(content)
    for place, value in changes:
        spoilt[place % min(len(spoilt), 400)] = value
    return bytes(spoilt[: max(1, round(length * len(spoilt)))])


def read_or_refuse(path: Path) -> None:
    message = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries may warn of odd headers; here a warning would hide a crash
        try:
            image = read_image(path)
        except InputError as error:
            message = str(error)
    if message is None:
        assert torch.isfinite(image).all()
    else:
        assert str(path) in message
        assert "\n" not in message


@pytest.mark.parametrize("suffix", [*SEEDS, ".dcm"])
@ANYTHING
@given(changes=CHANGES, length=st.sampled_from([1.0, 1.0, 1.0, 0.9, 0.3]))
def test_damaged_image_is_read_or_refused_in_one_line(suffix, dicom, tmp_path, changes, length):
    path = tmp_path / f"fuzzed{suffix}"
    path.write_bytes(changed(SEEDS.get(suffix, dicom), changes, length))
    read_or_refuse(path)


@pytest.mark.parametrize("suffix", [*SEEDS, ".dcm", ""])
@ANYTHING
@given(content=st.binary(max_size=600))
def test_arbitrary_bytes_are_read_or_refused_in_one_line(suffix, tmp_path, content):
    path = tmp_path / f"fuzzed{suffix}"
    path.write_bytes((b"\0" * 128 + b"DICM" if suffix == "" else b"") + content)
    read_or_refuse(path)


VALUES = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["a.png", "a\0b"])
)
ENTRIES = st.dictionaries(st.sampled_from(["image", "patient_id", "label", "training", "x"]), VALUES, max_size=4)
LISTS = st.recursive(
    VALUES | ENTRIES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["training", "x"]), inner, max_size=3),
    max_leaves=12,
)


def list_or_refuse(path: Path) -> None:
    with contextlib.suppress(InputError):
        images = read_image_set(path, "training")
        assert len(images) == len(set(images.image_ids)) > 0


@settings(ANYTHING, max_examples=150)
@given(content=LISTS)
@example([{"image": "a\0b"}])
@example([{"image": "a" * 300}])
@example([{"image": "a.png", "patient_id": float("nan")}])
def test_any_data_list_is_read_or_refused(tmp_path, content):
    write_image(smooth_images(1, (4, 4))[0], tmp_path / "a.png")
    (tmp_path / "list.json").write_text(json.dumps(content), encoding="utf-8")
    list_or_refuse(tmp_path / "list.json")


@settings(ANYTHING, max_examples=150)
@given(content=st.binary(max_size=60) | st.text("image,patient_id\n\r\"';\t=a.png\0", max_size=60).map(str.encode))
@example(b"image\na\0b\n")
@example(b"image\n" + b"a" * 300)
@example(b"image,image\na.png,a.png\n")
def test_any_csv_is_read_or_refused(tmp_path, content):
    write_image(smooth_images(1, (4, 4))[0], tmp_path / "a.png")
    (tmp_path / "list.csv").write_bytes(content)
    list_or_refuse(tmp_path / "list.csv")
