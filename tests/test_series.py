# SPDX-License-Identifier: Apache-2.0
"""DICOM series: slices become the volume they were, and folders that are no volume are named."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from made_up_images import smooth_images, write_series
from pydicom import Dataset
from pydicom.uid import generate_uid

from monai_memorization.detector.encoder import ContrastiveEncoder
from monai_memorization.errors import InputError
from monai_memorization.images.preparation import Preparation
from monai_memorization.images.reading import read_image, read_with_spacing
from monai_memorization.images.series import series_folders
from monai_memorization.images.sets import read_image_set

SIZE = (20, 24, 12)
AXIAL = np.array([[-0.9, 0, 0, 10], [0, -0.9, 0, 20], [0, 0, 2.5, -30], [0, 0, 0, 1]], dtype=float)
SAGITTAL = np.array([[0, 0, 2.5, -10], [-0.9, 0, 0, 20], [0, -0.9, 0, 30], [0, 0, 0, 1]], dtype=float)
OBLIQUE = AXIAL.copy()
OBLIQUE[:3, :3] = np.array([[1, 0, 0], [0, np.cos(0.3), -np.sin(0.3)], [0, np.sin(0.3), np.cos(0.3)]]) @ AXIAL[:3, :3]


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    """A volume without symmetry, whole numbers."""
    return (smooth_images(1, SIZE, seed=3)[0].numpy() * 2000).round()


def write_nifti(values: np.ndarray, affine: np.ndarray, path):
    nibabel.save(nibabel.Nifti1Image(values, affine), path)
    return path


def write_frames(volume: np.ndarray, affine: np.ndarray, folder) -> Path:
    """Write a volume as one file of frames, as an enhanced MR image, from the slices of a series."""
    slices = [pydicom.dcmread(path) for path in sorted(write_series(volume, affine, folder / "slices").iterdir())]

    def group(name: str, source: Dataset, *keys: str) -> tuple[str, list[Dataset]]:
        part = Dataset()
        for key in keys:
            setattr(part, key, source[key].value)
        return f"{name}Sequence", [part]

    frames, shared = [Dataset() for _ in slices], Dataset()
    for frame, slice_ in zip(frames, slices, strict=True):
        setattr(frame, *group("PlanePosition", slice_, "ImagePositionPatient"))
        setattr(frame, *group("PixelValueTransformation", slice_, "RescaleSlope", "RescaleIntercept"))
    setattr(shared, *group("PlaneOrientation", slices[0], "ImageOrientationPatient"))
    setattr(shared, *group("PixelMeasures", slices[0], "PixelSpacing"))
    whole = slices[0]
    for key in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "RescaleSlope", "RescaleIntercept"):
        del whole[key]
    whole.NumberOfFrames, whole.PixelData = len(slices), b"".join(slice_.PixelData for slice_ in slices)
    whole.PerFrameFunctionalGroupsSequence, whole.SharedFunctionalGroupsSequence = frames, [shared]
    whole.save_as(folder / "frames.dcm")
    return folder / "frames.dcm"


@pytest.mark.parametrize("affine", [AXIAL, SAGITTAL, OBLIQUE], ids=["axial", "sagittal", "oblique"])
def test_series_is_the_volume_it_was_written_from(volume, affine, tmp_path):
    image, spacing = read_with_spacing(write_series(volume, affine, tmp_path / "series"))

    nifti, expected = read_with_spacing(write_nifti(volume * 2 - 1024, affine, tmp_path / "same.nii.gz"))
    assert torch.equal(image, nifti)
    assert spacing == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("affine", [AXIAL, SAGITTAL], ids=["axial", "sagittal"])
def test_frames_of_one_file_are_the_volume_that_slices_are(volume, affine, tmp_path):
    image, spacing = read_with_spacing(write_frames(volume, affine, tmp_path))

    expected, expected_spacing = read_with_spacing(tmp_path / "slices")
    assert torch.equal(image, expected)
    assert spacing == expected_spacing


def test_file_of_one_placed_frame_is_a_picture_of_its_rescaled_values(volume, tmp_path):
    image, spacing = read_with_spacing(write_frames(volume[..., :1], AXIAL, tmp_path))

    (slice_,) = (tmp_path / "slices").iterdir()
    assert torch.equal(image, read_image(slice_))
    assert spacing is None


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"PhotometricInterpretation": "RGB", "SamplesPerPixel": 3}, r"colours \(RGB\)"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, r"colours \(PALETTE COLOR\)"),
        ({"NumberOfFrames": 3}, "3 frames"),
    ],
    ids=["rgb", "palette", "frames"],
)
def test_file_of_a_series_that_is_no_slice_of_grey_values_is_named(change, found, volume, tmp_path):
    folder = write_series(volume, AXIAL, tmp_path / "fused", "1.2.3")
    path = max(folder.iterdir())
    dataset = pydicom.dcmread(path)
    for name, value in change.items():
        setattr(dataset, name, value)
    dataset.save_as(path)

    with pytest.raises(InputError, match=rf"{path.name}: holds {found}, and slices of a volume are one frame of grey"):
        read_image(folder)


def test_frames_of_which_nobody_says_where_they_lie_stay_as_they_are(volume, tmp_path):
    dataset = pydicom.dcmread(write_frames(volume, AXIAL, tmp_path))
    del dataset.PerFrameFunctionalGroupsSequence
    dataset.save_as(tmp_path / "cine.dcm")

    image, spacing = read_with_spacing(tmp_path / "cine.dcm")

    assert image.shape == (1, SIZE[2], SIZE[1], SIZE[0])
    assert spacing is None


def test_one_volume_embeds_alike_from_every_kind_of_file(volume, tmp_path):
    turned = nibabel.Nifti1Image(volume, AXIAL)
    codes = nibabel.orientations.axcodes2ornt("SPR")
    turned = turned.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(AXIAL), codes))
    nibabel.save(turned, tmp_path / "turned.nii.gz")
    files = [
        write_nifti(volume.astype(np.int16), AXIAL, tmp_path / "plain.nii"),
        write_nifti(volume.astype(np.float64) * 1e5 - 17, AXIAL, tmp_path / "float64.nii.gz"),
        tmp_path / "turned.nii.gz",
        write_series(volume, AXIAL, tmp_path / "series"),
    ]
    torch.manual_seed(0)
    encoder = ContrastiveEncoder((16, 20, 24), spacing=(0.9, 0.9, 2.5)).eval()

    with torch.no_grad():
        vectors = encoder(torch.stack([encoder.preparation(path) for path in files]))

    assert torch.corrcoef(vectors).min() > 0.999


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 4.0), (3.0, 1.0, 1.0)])
def test_voxels_are_made_equal_so_that_a_ball_stays_a_ball(spacing, tmp_path):
    sides = [round(48 / size) for size in spacing]
    axes = [(np.arange(n) - (n - 1) / 2) * size for n, size in zip(sides, spacing, strict=True)]
    ball = (sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij")) < 18**2).astype(np.float32)
    path = write_nifti(ball, np.diag([*spacing, 1.0]), tmp_path / "ball.nii.gz")

    image = Preparation((24, 24, 24), spacing=(1.0, 1.0, 1.0))(path)[0]

    extents = [int((image > 0.5).any(dim=[i for i in range(3) if i != axis]).sum()) for axis in range(3)]
    assert max(extents) - min(extents) <= 2
    assert extents[1] in (17, 18, 19)


def test_volume_that_states_no_voxel_size_has_that_of_the_set(volume, tmp_path):
    np.save(tmp_path / "volume.npy", volume)
    files = [write_nifti(volume, np.eye(4), tmp_path / "identity.nii.gz"), tmp_path / "volume.npy"]
    broken = nibabel.Nifti1Image(volume[::-1], None)  # NIfTI without an affine runs to the left
    broken.header["pixdim"][1:4] = 0
    nibabel.save(broken, tmp_path / "missing.nii.gz")
    preparation = Preparation(SIZE, spacing=(0.9, 0.9, 2.5))

    expected = preparation(write_nifti(volume, np.diag([0.9, 0.9, 2.5, 1]), tmp_path / "stated.nii.gz"))

    for path in (*files, tmp_path / "missing.nii.gz"):
        assert read_with_spacing(path)[1] is None
        assert torch.equal(preparation(path), expected)


def test_folders_of_slices_are_the_images_of_a_set(volume, tmp_path):
    for name in ("a", "b/c"):
        write_series(volume, AXIAL, tmp_path / name)
    write_nifti(volume, AXIAL, tmp_path / "d.nii.gz")

    assert read_image_set(tmp_path, "training").image_ids == ("a", "b/c", "d.nii.gz")
    assert read_image_set(tmp_path / "a", "training").image_ids == (".",)


@pytest.mark.parametrize("name", ["000_report.dcm", "zzz_report.dcm"])
def test_file_among_slices_that_is_none_does_not_make_pictures_of_them(name, volume, tmp_path, caplog):
    folder = write_series(volume, AXIAL, tmp_path / "scans" / "first")
    report = pydicom.dcmread(min(folder.iterdir()))
    del report.ImagePositionPatient
    report.save_as(folder / name)

    files = sorted(folder.iterdir())

    assert series_folders(files) == series_folders(files[::-1]) == {folder}
    with caplog.at_level("WARNING"):
        images = read_image_set(tmp_path / "scans", "training")
    assert (images.image_ids, images.n_ignored) == (("first",), 1)
    assert "training: 1 DICOM files of" in caplog.text
    assert name in caplog.text
    assert read_image(folder).shape == (1, *SIZE)


def test_pattern_that_picks_slices_is_refused(volume, tmp_path):
    write_series(volume, AXIAL, tmp_path / "first")

    with pytest.raises(InputError, match=r"training: \S*\.dcm picks files, but those of \S*first are slices"):
        read_image_set(tmp_path / "*0*.dcm", "training")


def test_damaged_header_is_told_with_its_file(volume, tmp_path):
    folder = write_series(volume, AXIAL, tmp_path / "first")
    damaged = max(folder.iterdir())
    damaged.write_bytes(b"\0" * 128 + b"DICM\2\0\0\0UL\4\0\1\0")  # cut off within the first number

    with pytest.raises(InputError, match=rf"{damaged.name}: its DICOM header cannot be read \(.*; mend or remove"):
        read_image_set(tmp_path, "training")


def test_single_slices_of_many_patients_are_pictures(volume, tmp_path):
    for i in range(3):
        write_series(volume[:, :, i : i + 1], AXIAL, tmp_path / "slices", f"1.2.{i}")

    images = read_image_set(tmp_path / "slices", "training")

    assert len(images) == 3
    assert read_image(images.paths[0]).shape == (1, 24, 20)


def test_folder_with_two_series_names_both_and_asks_which(volume, tmp_path):
    uids = generate_uid(), generate_uid()
    for uid in uids:
        write_series(volume, AXIAL, tmp_path / "two", uid)
    path = read_image_set(tmp_path, "training").paths[0]

    with pytest.raises(InputError, match=r"two: holds 2 DICOM series.*Which one is meant\? Put each") as caught:
        read_image(path)
    assert all(uid in str(caught.value) for uid in uids)


def test_missing_slice_is_told(volume, tmp_path):
    folder = write_series(volume, AXIAL, tmp_path / "gap")
    next(p for p in folder.iterdir() if pydicom.dcmread(p).InstanceNumber == 5).unlink()

    with pytest.raises(InputError, match=r"gap: its 11 slices are 2\.5 to 5 mm apart; slices are missing"):
        read_image(folder)


def test_slices_of_different_size_are_told(volume, tmp_path):
    folder = write_series(volume, AXIAL, tmp_path / "odd", "1.2.3")
    path = min(folder.iterdir())
    dataset = pydicom.dcmread(path)
    dataset.PixelSpacing = [3, 3]
    dataset.save_as(path)

    with pytest.raises(InputError, match="odd: its slices differ in size or direction"):
        read_image(folder)


def test_folder_of_slices_may_be_named_like_a_file(volume, tmp_path):
    assert read_image(write_series(volume, AXIAL, tmp_path / "scan.dcm")).shape == (1, *SIZE)


def test_folder_without_slices_is_no_image(tmp_path):
    (tmp_path / "empty").mkdir()

    with pytest.raises(InputError, match="empty: a folder without the slices of a DICOM series"):
        read_image(tmp_path / "empty")


@pytest.mark.parametrize("suffix", [".npy", ".nii.gz"])
def test_series_of_volumes_is_refused(suffix, tmp_path):
    array, path = np.random.default_rng(0).random((8, 9, 10, 30)), tmp_path / f"bold{suffix}"
    if suffix == ".npy":
        np.save(path, array)
    else:
        write_nifti(array, np.eye(4), path)

    with pytest.raises(InputError, match=r"bold\S+: is 8x9x10x30, a series of volumes; give one volume per file"):
        read_image(path)


@pytest.mark.parametrize("shape", [(1, 9, 10), (8, 1, 10), (8, 9, 1), (8, 9, 1, 1)])
def test_volume_of_one_slice_is_a_picture_among_volumes(shape, tmp_path):
    path = write_nifti(np.random.default_rng(0).random(shape), np.eye(4), tmp_path / "slice.nii.gz")

    with pytest.raises(InputError, match=r"slice\.nii\.gz: is \d+x\d+, a 2D image among 3D ones"):
        Preparation((8, 9, 10))(path)


def test_sequences_are_scaled_one_by_one(tmp_path):
    channels = smooth_images(4, (8, 9, 10), seed=1).numpy() * np.array([1, 1e4, 50, 3])[:, None, None, None]
    path = write_nifti(np.moveaxis(channels, 0, -1), np.diag([1, 1, 2.0, 1]), tmp_path / "brats.nii.gz")

    image = Preparation((8, 9, 10), 4, (1.0, 1.0, 2.0))(path)

    assert image.shape == (4, 8, 9, 10)
    assert image.flatten(1).amax(1).tolist() == [1, 1, 1, 1]
    assert image.flatten(1).amin(1).tolist() == [0, 0, 0, 0]


def test_inverted_series_is_turned_as_a_whole(volume, tmp_path):
    folder = write_series(volume, AXIAL, tmp_path / "series")
    image = read_image(folder)
    for path in folder.iterdir():
        dataset = pydicom.dcmread(path)
        dataset.PhotometricInterpretation = "MONOCHROME1"
        dataset.save_as(path)

    assert torch.equal(read_image(folder), image.max() - image)
