# SPDX-License-Identifier: Apache-2.0
"""Preparation: one picture is the same whatever its file, nothing is bent, and bad files are named."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from made_up_images import disc, smooth_images, write_folder, write_image
from PIL import Image
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid
from torch.utils.data import DataLoader

from monai_memorization.errors import InputError
from monai_memorization.images.preparation import (
    Preparation,
    PrepareImaged,
    choose_preparation,
    preparation_of,
    scale_intensities,
)
from monai_memorization.images.prepared import Notes, prepared_batches, prepared_images, read_prepared
from monai_memorization.images.reading import read_image
from monai_memorization.images.sets import read_image_set

SIZE = (24, 20)


@pytest.fixture(scope="module")
def picture() -> torch.Tensor:
    """A picture without symmetry, in [0, 1]."""
    return smooth_images(1, SIZE, seed=5)[0]


@pytest.fixture(scope="module")
def prepared(picture) -> torch.Tensor:
    """The picture as prepared from its exact values."""
    return scale_intensities(picture[None])


def write_dicom(pixels: np.ndarray, path: Path, photometric: str = "MONOCHROME2", **more: object) -> Path:
    """Write 16-bit pixels (rows, columns) or 8-bit (rows, columns, 3) as a secondary capture image."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = pydicom.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 1 if pixels.ndim == 2 else 3
    dataset.PhotometricInterpretation = photometric
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, 0
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    for name, value in more.items():
        setattr(dataset, name, value)
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return path


def bytes_of(picture: torch.Tensor, kind: type = np.uint8) -> np.ndarray:
    return (picture.numpy() * np.iinfo(kind).max).round().astype(kind)


def write_as(form: str, picture: torch.Tensor, folder: Path) -> Path:
    """Write the picture in one of the FORMS."""
    grey = Image.fromarray(bytes_of(picture))
    path = folder / f"picture.{'png' if form.startswith('png') else form.rpartition(' ')[0]}"
    if form == "png grey 16 bit":
        Image.fromarray(bytes_of(picture, np.uint16)).save(path)
    elif form == "png palette":
        grey.convert("P").save(path)
    elif form.startswith("png"):
        grey.convert(form.removeprefix("png ")).save(path)
    elif form.startswith("jpg"):
        grey.save(path, quality=100)
    elif form.startswith("npy"):
        arrays = {
            "float32": picture.numpy(),
            "float64": picture.double().numpy() * 1e4 - 500,
            "int16": (picture.numpy() * 4000 - 1024).round().astype(np.int16),
            "channel-first": picture.numpy()[None],
            "channel-last": picture.numpy()[..., None],
            "fortran": np.asfortranarray(picture.numpy()),
            "big-endian": picture.numpy().astype(">f4"),
        }
        np.save(path, arrays[form.rpartition(" ")[2]])
    elif form.startswith("nii"):
        array = picture.numpy().T.astype(np.float64)
        array = array if form.endswith("2D") else array[..., None]
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
    else:
        write_dicom(bytes_of(picture, np.uint16), path)
    return path


FORMS = [
    "png L",
    "png RGB",
    "png RGBA",
    "png LA",
    "png palette",
    "png grey 16 bit",
    "jpg best",
    "npy float32",
    "npy float64",
    "npy int16",
    "npy channel-first",
    "npy channel-last",
    "npy fortran",
    "npy big-endian",
    "nii 2D",
    "nii.gz 2D",
    "nii.gz one-slice",
    "dcm plain",
]


@pytest.mark.parametrize("form", FORMS)
def test_one_picture_is_prepared_alike_from_every_form(form, picture, prepared, tmp_path):
    image = Preparation(SIZE)(write_as(form, picture, tmp_path))

    assert image.shape == (1, *SIZE)
    assert image.dtype == torch.float32
    assert type(image) is torch.Tensor
    torch.testing.assert_close(image, prepared, atol=1e-2, rtol=0)


def test_suffix_in_capitals_is_read(picture, prepared, tmp_path):
    path = write_image(picture, tmp_path / "picture.png").rename(tmp_path / "PICTURE.PNG")

    torch.testing.assert_close(Preparation(SIZE)(path), prepared, atol=5e-3, rtol=0)


def test_monochrome1_dicom_is_inverted(picture, prepared, tmp_path):
    path = write_dicom(bytes_of(1 - picture, np.uint16), tmp_path / "film.dcm", "MONOCHROME1")

    torch.testing.assert_close(Preparation(SIZE)(path), prepared, atol=1e-3, rtol=0)


def test_dicom_slope_and_intercept_give_hounsfield_units(tmp_path):
    pixels = np.array([[0, 1000], [2000, 3000]], dtype=np.uint16)
    path = write_dicom(pixels, tmp_path / "ct.dcm", RescaleSlope=2, RescaleIntercept=-1024)

    assert read_image(path).tolist() == [[[-1024, 976], [2976, 4976]]]


def test_colour_dicom_has_three_channels(tmp_path):
    pixels = bytes_of(smooth_images(3, SIZE).movedim(0, -1))
    path = write_dicom(pixels, tmp_path / "colour.dcm", "RGB")

    assert torch.equal(read_image(path), torch.from_numpy(pixels).movedim(-1, 0).float())


def test_palette_of_a_dicom_is_looked_up(tmp_path):
    indices = np.arange(12, dtype=np.uint8).reshape(3, 4) % 4
    grey = np.array([10, 200, 50, 120], dtype=np.uint16)
    palette = {f"{colour}PaletteColorLookupTableDescriptor": [4, 0, 16] for colour in ("Red", "Green", "Blue")}
    palette |= {f"{colour}PaletteColorLookupTableData": grey.tobytes() for colour in ("Red", "Green", "Blue")}
    path = write_dicom(indices, tmp_path / "palette.dcm", "PALETTE COLOR", **palette)

    assert torch.equal(read_image(path), torch.from_numpy(grey[indices].astype(np.float32))[None])


def test_dicom_whose_slope_and_intercept_are_left_empty_is_read(tmp_path):
    pixels = np.array([[0, 1000], [2000, 3000]], dtype=np.uint16)
    path = write_dicom(pixels, tmp_path / "ct.dcm", RescaleSlope=None, RescaleIntercept=None)

    assert read_image(path).tolist() == [pixels.tolist()]


@pytest.mark.parametrize("orientation", ["LAS", "RPI", "PIR", "SAL", "IPL"])
def test_volume_in_another_orientation_is_prepared_alike(orientation, tmp_path):
    volume = smooth_images(1, (12, 10, 8), seed=3)[0]
    plain = nibabel.Nifti1Image(volume.numpy(), np.diag([1.0, 2.0, 3.0, 1.0]))
    codes = nibabel.orientations.axcodes2ornt(orientation)
    turned = plain.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(plain.affine), codes))
    assert nibabel.aff2axcodes(turned.affine) == tuple(orientation)
    nibabel.save(plain, tmp_path / "plain.nii.gz")
    nibabel.save(turned, tmp_path / "turned.nii.gz")

    preparation = Preparation((12, 10, 8))

    assert torch.equal(preparation(tmp_path / "plain.nii.gz"), preparation(tmp_path / "turned.nii.gz"))


def test_volume_with_channels_last_gets_them_first(tmp_path):
    volume = smooth_images(2, (6, 7, 8)).movedim(0, -1).numpy()
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "two.nii.gz")

    assert torch.equal(read_image(tmp_path / "two.nii.gz"), torch.from_numpy(volume).movedim(-1, 0))


def test_colour_picture_in_a_nifti_file_is_a_picture(tmp_path):
    colours = smooth_images(3, SIZE)
    # as MONAI writes one: columns, rows, one slice, channels
    nibabel.save(nibabel.Nifti1Image(colours.numpy().T[:, :, None], np.eye(4)), tmp_path / "colour.nii.gz")

    assert torch.equal(read_image(tmp_path / "colour.nii.gz"), colours)


@pytest.mark.parametrize("space", [(6, 7, 8), (6, 7), (6, 7, 1)])
@pytest.mark.parametrize("fields", ["RGB", "RGBA"])
def test_colours_stored_as_one_value_in_nifti_are_three_channels(fields, space, tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (len(fields), *space), dtype=np.uint8)
    volume = np.empty(colours.shape[1:], dtype=[(name, np.uint8) for name in fields])
    for name, values in zip(fields, colours, strict=True):
        volume[name] = values
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "colour.nii.gz")

    expected = torch.from_numpy(colours[:3]).float()
    if space != (6, 7, 8):  # a picture, in rows and columns
        expected = expected.reshape(3, 6, 7).mT
    assert torch.equal(read_image(tmp_path / "colour.nii.gz"), expected)


def test_a_series_of_coloured_volumes_is_refused(tmp_path):
    volumes = np.zeros((6, 7, 8, 2), dtype=[(name, np.uint8) for name in "RGB"])
    nibabel.save(nibabel.Nifti1Image(volumes, np.eye(4)), tmp_path / "series.nii.gz")
    with pytest.raises(InputError, match=r"series.nii.gz: is 6x7x8x2, a series of volumes"):
        read_image(tmp_path / "series.nii.gz")


@pytest.mark.parametrize("suffix", [".npy", ".nii.gz"])
def test_complex_values_are_refused_not_cut_down_to_their_real_part(suffix, tmp_path):
    array, path = np.random.default_rng(0).random((6, 7, 8)).astype(np.complex64), tmp_path / f"complex{suffix}"
    if suffix == ".npy":
        np.save(path, array)
    else:
        nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)

    with pytest.raises(InputError, match=r"complex\S+: cannot be read .*it holds complex values; give their magnitude"):
        read_image(path)


def test_intensities_go_from_the_percentiles_to_0_and_1():
    image = torch.arange(1001.0).view(1, 7, 143)

    scaled = scale_intensities(image)

    expected = ((torch.arange(1001.0) - 5) / 990).clamp(0, 1).view(1, 7, 143)
    torch.testing.assert_close(scaled, expected)


def test_few_extreme_values_do_not_flatten_the_rest(picture):
    spoiled = picture.clone()
    spoiled[0, 0] = 1e6

    scaled = scale_intensities(spoiled[None])

    torch.testing.assert_close(scaled[0, 1:], scale_intensities(picture[None])[0, 1:], atol=0.02, rtol=0)


def test_thin_object_on_an_empty_background_is_kept():
    image = torch.zeros(1, 32, 32)
    image[0, 5, 5] = 7

    assert scale_intensities(image).sum() == 1


@pytest.mark.parametrize(
    ("stored", "target"),
    [((60, 60), (20, 20)), ((60, 40), (24, 24)), ((40, 60), (24, 24)), ((20, 20), (40, 60)), ((90, 30), (30, 40))],
)
def test_circle_stays_a_circle_with_zeros_around(stored, target):
    radius = 0.4 * min(stored)
    image = Preparation(target).fit(disc(stored, radius)[None])

    factor = min(target[0] / stored[0], target[1] / stored[1])
    expected = disc(target, radius * factor)
    assert image.shape == (1, *target)
    assert (image[0] - expected).abs().mean() < 0.03  # the edge is blurred; without the aspect it would be 0.1
    height, width = ((image[0] > 0.5).any(axis).sum().item() for axis in (1, 0))
    assert abs(height - width) <= 1
    assert image[0, 0, 0] == image[0, -1, -1] == 0


def test_ball_stays_a_ball():
    image = Preparation((24, 24, 24)).fit(disc((40, 48, 32), 13)[None])

    assert (image[0] - disc((24, 24, 24), 6.5)).abs().mean() < 0.02


def test_image_of_the_right_size_is_not_touched():
    image = torch.rand(1, 20, 24, generator=torch.Generator().manual_seed(0))

    assert torch.equal(Preparation((20, 24)).fit(image), image)


def test_padded_image_lies_in_the_middle_unchanged():
    image = torch.rand(1, 10, 24, generator=torch.Generator().manual_seed(0))

    fitted = Preparation((20, 24)).fit(image)

    assert torch.equal(fitted[:, 5:15], image)
    assert fitted[:, :5].abs().sum() == fitted[:, 15:].abs().sum() == 0


def test_grey_image_among_colour_ones_gets_their_channels(picture, tmp_path):
    image = Preparation(SIZE, 3)(write_image(picture, tmp_path / "grey.png"))

    assert image.shape == (3, *SIZE)
    assert torch.equal(image[0], image[2])


def spoil(tmp_path: Path, what: str) -> Path:
    """Write one bad file."""
    path = tmp_path / "bad.npy"
    array = smooth_images(1, SIZE)[0].numpy()
    if what in ("nan", "inf", "constant", "empty", "one axis", "five axes", "words"):
        array = {
            "words": np.full(SIZE, "a"),
            "constant": np.full(SIZE, 3.5),
            "empty": np.zeros((0, 8)),
            "one axis": np.arange(9),
            "five axes": np.zeros((1, 2, 9, 9, 9)),
        }.get(what, array)
        if what in ("nan", "inf"):
            array[3, 4] = float(what)
        np.save(path, array)
    elif what == "pickled":
        np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    elif what == "zero bytes":
        path.touch()
    elif what == "folder":
        path = tmp_path / "bad.png"
        path.mkdir()
    elif what.startswith("truncated"):
        path = write_image(torch.from_numpy(array), tmp_path / f"bad{what.removeprefix('truncated ')}")
        path.write_bytes(path.read_bytes()[:-100])
    elif what == "text as NIfTI":
        path = tmp_path / "bad.nii.gz"
        path.write_text("not an image")
    elif what == "text as DICOM":
        path = tmp_path / "bad.dcm"
        path.write_text("not an image")
    elif what == "unknown suffix":
        path = tmp_path / "bad.xyz"
        path.touch()
    return path


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nan", "NaN or infinite"),
        ("inf", "NaN or infinite"),
        ("constant", r"all values are 3\.5"),
        ("empty", "holds no values"),
        ("one axis", "cannot be read .*has 1 dimensions"),
        ("five axes", "cannot be read .*has 5 dimensions"),
        ("words", "cannot be read .*could not convert"),
        ("pickled", "cannot be read .*allow_pickle"),
        ("zero bytes", "cannot be read"),
        ("folder", "a folder without the slices of a DICOM series"),
        ("missing", "cannot be read .*No such file"),
        ("truncated .png", "cannot be read"),
        ("truncated .npy", "cannot be read"),
        ("truncated .nii", "cannot be read"),
        ("truncated .nii.gz", "cannot be read"),
        ("text as NIfTI", "cannot be read"),
        ("text as DICOM", "cannot be read"),
        ("unknown suffix", r"unknown kind of image; known are \.nii\.gz, .*\.dcm"),
    ],
)
def test_bad_file_is_named_with_what_is_wrong(tmp_path, what, message):
    with pytest.raises(InputError, match=rf"bad\.\S+: .*{message}") as caught:
        Preparation(SIZE)(spoil(tmp_path, what))
    assert "\n" not in str(caught.value)


def test_reading_a_numpy_file_runs_no_code(tmp_path):
    class Attack:
        def __reduce__(self):
            return Path.touch, (tmp_path / "attacked",)

    with (tmp_path / "bad.npy").open("wb") as file:
        pickle.dump(Attack(), file)

    with pytest.raises(InputError, match=r"bad\.npy: cannot be read"):
        read_image(tmp_path / "bad.npy")
    assert not (tmp_path / "attacked").exists()


def test_volume_among_pictures_is_named(tmp_path):
    path = write_image(smooth_images(1, (8, 9, 10))[0], tmp_path / "volume.nii.gz")

    with pytest.raises(InputError, match=r"volume\.nii\.gz: is 8x9x10, a 3D image among 2D ones \(24x20\)"):
        Preparation(SIZE)(path)


def test_colour_among_grey_is_named(tmp_path):
    path = tmp_path / "colour.npy"
    np.save(path, smooth_images(3, SIZE).numpy())

    with pytest.raises(InputError, match=r"colour\.npy: has 3 channels where the training set has 1"):
        Preparation(SIZE)(path)


def test_size_of_a_set_is_its_median_scaled_to_the_longest_side(tmp_path):
    for i, size in enumerate([(60, 100), (80, 128), (100, 200)]):
        write_image(smooth_images(1, size, seed=i)[0], tmp_path / f"{i}.npy")
    images = read_image_set(tmp_path, "training")

    assert choose_preparation(images, longest_side=64) == Preparation((40, 64), 1)
    assert choose_preparation(images, longest_side=500) == Preparation((80, 128), 1)


def test_set_with_a_colour_image_has_three_channels(tmp_path):
    np.save(tmp_path / "colour.npy", smooth_images(3, SIZE).numpy())
    write_image(smooth_images(1, SIZE)[0], tmp_path / "grey.png")

    assert choose_preparation(read_image_set(tmp_path, "training")) == Preparation(SIZE, 3)


def test_set_of_pictures_and_volumes_is_refused(tmp_path):
    write_image(smooth_images(1, SIZE)[0], tmp_path / "a.png")
    write_image(smooth_images(1, (8, 8, 8))[0], tmp_path / "b.nii.gz")

    with pytest.raises(InputError, match="training: holds 2D and 3D images"):
        choose_preparation(read_image_set(tmp_path, "training"))


def test_set_without_one_readable_image_is_refused(tmp_path):
    (tmp_path / "a.png").touch()

    with pytest.raises(InputError, match=r"training: none of its images can be read.*a\.png"):
        choose_preparation(read_image_set(tmp_path, "training"))


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 0), (4, 2), (100, 1)])
def test_batches_do_not_depend_on_their_size_or_on_workers(tmp_path, batch_size, workers):
    images = read_image_set(write_folder(smooth_images(11, (30, 25)), tmp_path / "images"), "training")
    preparation = Preparation(SIZE)

    batches = list(prepared_batches(images, preparation, batch_size, workers))

    assert torch.cat([index for index, _ in batches]).tolist() == list(range(11))
    assert torch.equal(torch.cat([batch for _, batch in batches]), torch.stack([preparation(p) for p in images.paths]))


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_image_stops_or_is_left_out_and_counted(tmp_path, workers):
    folder = write_folder(smooth_images(6, SIZE), tmp_path / "images")
    write_image(smooth_images(1, (40, 40))[0], folder / "image_000.png")
    (folder / "image_003.png").write_bytes(b"broken")
    images, notes = read_image_set(folder, "synthetic"), Notes()

    with pytest.raises(InputError, match=r"synthetic: .*image_003\.png: cannot be read.*--skip-unreadable goes on"):
        list(prepared_batches(images, Preparation(SIZE), 2, workers))
    batches = list(prepared_batches(images, Preparation(SIZE), 2, workers, skip_unreadable=True, notes=notes))

    assert torch.cat([index for index, _ in batches]).tolist() == [0, 1, 2, 4, 5]
    assert list(notes.unreadable) == [3]
    assert "image_003.png" in notes.unreadable[3]
    assert notes.scaled == [0]


def test_data_set_in_memory_leaves_out_what_cannot_be_read(tmp_path):
    folder = write_folder(smooth_images(5, SIZE), tmp_path / "images")
    (folder / "image_001.png").write_bytes(b"broken")

    dataset = prepared_images(folder, SIZE, skip_unreadable=True)

    names = [name for name in read_image_set(folder, "training").image_ids if name != "image_001.png"]
    assert [item["image_id"] for item in dataset] == names
    for item in dataset:
        expected = Preparation(SIZE)(folder / item["image_id"])
        torch.testing.assert_close(item["image"], expected, atol=1e-3, rtol=0)  # kept as float16


def test_items_pass_through_the_ordinary_collate(tmp_path):
    dataset = prepared_images(write_folder(smooth_images(3, SIZE), tmp_path / "images"), SIZE)

    batch = next(iter(DataLoader(dataset, 3)))

    assert batch["image"].shape == (3, 1, *SIZE)
    assert batch["image_id"] == list(dataset.images.image_ids)


def test_dictionary_transform_puts_the_image_in_the_place_of_its_path(tmp_path):
    path = write_image(smooth_images(1, SIZE)[0], tmp_path / "a.png")

    item = PrepareImaged("image", [24, 20])({"image": str(path), "image_id": "a"})

    assert torch.equal(item["image"], Preparation(SIZE)(path))
    assert item["image_id"] == "a"


def test_reading_warns_of_nothing(picture, tmp_path):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for form in FORMS:
            read_image(write_as(form, picture, tmp_path))
    assert [str(warning.message) for warning in caught] == []


@pytest.mark.parametrize("name", ["cxr64", "hippocampus", "lung_ct"])
def test_real_images_fill_the_range(shared_data, name):
    images = read_image_set(shared_data / name / "val.csv", "validation").subset(range(12))
    preparation = choose_preparation(images)

    for path in images.paths:
        image = preparation(path)
        assert image.shape == (preparation.channels, *preparation.image_size)
        assert type(image) is torch.Tensor
        # scaling down averages thin bright structures away
        scaled = tuple(read_image(path).shape[1:]) != preparation.image_size
        assert (image.min().item(), image.max().item()) == pytest.approx((0, 1), abs=0.15 if scaled else 1e-5)
        assert 0.02 < image.mean() < 0.98


def test_images_of_another_kind_are_never_skipped(tmp_path):
    write_folder(smooth_images(2), tmp_path)
    colour = torch.stack([smooth_images(1, seed=seed)[0] for seed in range(3)])
    np.save(tmp_path / "colour.npy", colour.numpy())

    with pytest.raises(InputError, match=r"colour\.npy: has 3 channels where the training set has 1"):
        list(prepared_batches(read_image_set(tmp_path, "synthetic"), Preparation((32, 32)), skip_unreadable=True))


def test_reading_takes_no_random_number_from_a_training(tmp_path):
    images = read_image_set(write_folder(smooth_images(3, (16, 16)), tmp_path / "images"), "training")
    torch.manual_seed(0)
    state = torch.get_rng_state()
    read_prepared(images, Preparation((16, 16)))
    assert torch.equal(torch.get_rng_state(), state)


def test_volume_that_is_cut_off_is_prepared_as_what_a_generator_of_that_range_draws():
    """In Hounsfield units with the padding of a scanner and metal in it; drawn in [0, 1]."""
    real = smooth_images(1, (12, 14, 10))[0] * 4000 - 1500
    real[:2] = -3024
    low, high = -160, 240
    drawn = (real.clamp(low, high) - low) / (high - low)
    preparation = preparation_of((12, 14, 10), clip=(low, high))

    prepared = [preparation.prepare(image[None], Path("volume.nii.gz")) for image in (real, drawn)]

    assert torch.allclose(*prepared, atol=1e-5)
    as_it_is = Preparation((12, 14, 10)).prepare(real[None], Path("volume.nii.gz"))
    assert (as_it_is - prepared[0]).abs().max() > 0.3


def test_range_of_intensities_that_leaves_nothing_names_image_and_range(tmp_path):
    folder = write_folder(smooth_images(3), tmp_path / "images")
    images = read_image_set(folder, "training")

    message = r"clip: 300 to 2000 leaves nothing of .*image_000\.png, whose intensities go from 0 to 255"
    with pytest.raises(InputError, match=message):
        read_prepared(images, choose_preparation(images, clip=(300, 2000)))


@pytest.mark.parametrize("values", [(400, -1000), (3, 3), (1,), (0, 1, 2), (0, float("inf"))])
@pytest.mark.parametrize("name", ["window", "clip"])
def test_range_that_is_empty_or_no_range_is_named(name, values):
    with pytest.raises(InputError, match=rf"{name}: found \[{values[0]}.*\]; give the two intensities that"):
        preparation_of((8, 8, 8), **{name: values})
