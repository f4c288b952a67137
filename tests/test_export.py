# SPDX-License-Identifier: Apache-2.0
"""Images of a MONAI data set, written as the generator sees them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from made_up_images import smooth_images, write_folder
from monai.data import CacheDataset, Dataset, MetaTensor
from monai.transforms import (
    CenterSpatialCropd,
    Compose,
    EnsureChannelFirstd,
    EnsureTyped,
    Lambdad,
    LoadImaged,
    OneOf,
    Orientationd,
    Rand2DElasticd,
    RandAffine,
    RandAffined,
    RandFlipd,
    RandRotate,
    RandSpatialCropd,
    RandZoomd,
    Resized,
    ScaleIntensityd,
    Spacingd,
    SplitDimd,
)

from monai_memorization.errors import InputError
from monai_memorization.images.export import export_images, fixed_transforms
from monai_memorization.images.sets import data_list, read_image_set

# MONAI's LoadImage makes every reader it knows, and this one says that a library of NVIDIA is missing
pytestmark = pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning")


def load(reader: str) -> list:
    """What bundles begin with; without a reader MONAI warns of those that are not installed."""
    return [LoadImaged("reals", reader=reader), EnsureChannelFirstd("reals"), ScaleIntensityd("reals")]


@pytest.mark.parametrize("kind", [Dataset, CacheDataset])
def test_images_are_written_as_the_transforms_leave_them(tmp_path, kind):
    folder = write_folder(smooth_images(4), tmp_path / "pictures")
    dataset = kind([{"reals": str(path)} for path in sorted(folder.iterdir())], Compose(load("PILReader")))

    images = read_image_set(export_images(dataset, tmp_path / "out" / "training", "training", "reals"), "training")

    assert not images.has_patients
    for index, path in enumerate(images.paths):
        np.testing.assert_array_equal(np.load(path), dataset[index]["reals"].numpy())


def test_slices_of_a_volume_are_images_of_one_patient(tmp_path):
    folder = write_folder(smooth_images(3, (8, 9, 5)), tmp_path / "volumes", suffix=".nii.gz")
    slices = SplitDimd("reals", dim=3, keepdim=False, list_output=True)
    dataset = Dataset(
        [{"reals": str(path)} for path in sorted(folder.iterdir())], Compose([*load("NibabelReader"), slices])
    )

    images = read_image_set(export_images(dataset, tmp_path / "training", "training", "reals"), "training")

    assert (len(images), images.n_patients) == (15, 3)
    assert np.load(images.paths[7]).shape == (1, 8, 9)
    assert len(set(images.patient_ids[:5])) == 1


def test_listed_volumes_pass_through_orientation_and_spacing(tmp_path):
    folder = write_folder(smooth_images(2, (8, 9, 5)), tmp_path / "volumes", suffix=".nii.gz")
    steps = [LoadImaged("image", reader="NibabelReader"), EnsureChannelFirstd("image")]
    steps += [Orientationd("image", axcodes="RAS", labels=None), Spacingd("image", pixdim=(2, 2, 2))]
    dataset = Dataset(data_list(folder, "validation"), Compose(steps))

    table = export_images(dataset, tmp_path / "validation", "validation")

    assert np.load(tmp_path / "validation" / "000000.npy").shape == (1, 4, 5, 3)
    assert pd.read_csv(table)["source"].tolist() == ["image_000.nii.gz", "image_001.nii.gz"]


def test_empty_slices_are_left_out_and_said(tmp_path, caplog):
    volume = torch.cat([torch.zeros(1, 8, 9, 2), smooth_images(1, (8, 9, 3))], dim=3)
    dataset = Dataset([{"image": volume}], SplitDimd("image", dim=3, keepdim=False, list_output=True))

    images = read_image_set(export_images(dataset, tmp_path / "training", "training"), "training")

    assert [np.load(path).tolist() for path in images.paths] == [volume[..., i].tolist() for i in (2, 3, 4)]
    assert "training: 2 constant images of the data set are left out" in caplog.text


def test_untouched_images_are_not_written_again(tmp_path):
    items = [{"image": image[None], "patient_id": i} for i, image in enumerate(smooth_images(3))]
    first = read_image_set(export_images(items, tmp_path / "training", "training"), "training")
    times = [path.stat().st_mtime_ns for path in first.paths]
    items[1]["image"] = items[1]["image"].flip(1)

    second = read_image_set(export_images(items, tmp_path / "training", "training"), "training")

    assert second == first
    assert second.patient_ids == ("0", "1", "2")
    changed = [path.stat().st_mtime_ns != time for path, time in zip(second.paths, times, strict=True)]
    assert changed == [False, True, False]


def test_random_transforms_are_left_out_and_not_touched():
    flip, crop = RandFlipd("image", prob=0.5), RandSpatialCropd("image", (4, 4))
    training = Compose([ScaleIntensityd("image"), Compose([flip]), crop]).set_random_state(3)
    expected = [flip.R.get_state()[1].tolist(), crop.R.get_state()[1].tolist()]
    center = CenterSpatialCropd("image", (4, 4))

    fixed = fixed_transforms(training, center)

    assert [type(step) for step in fixed.transforms] == [ScaleIntensityd, CenterSpatialCropd]
    assert fixed.transforms[1] is center
    assert [step.R.get_state()[1].tolist() for step in (flip, crop)] == expected
    assert fixed_transforms(flip).transforms == ()
    with pytest.raises(InputError, match=r"transforms: RandSpatialCropd cuts at random .*; give a fixed crop"):
        fixed_transforms(training)


def test_a_kind_of_compose_is_opened_and_a_choice_of_crops_is_one():
    class Preparing(Compose):
        pass

    scale, flip = ScaleIntensityd("image"), RandFlipd("image", prob=0.5)
    assert [type(step) for step in fixed_transforms(Preparing([scale, flip])).transforms] == [ScaleIntensityd]
    with pytest.raises(InputError, match=r"transforms: OneOf cuts at random"):
        fixed_transforms(Compose([scale, OneOf([Compose([flip, RandSpatialCropd("image", (4, 4))]), flip])]))


@pytest.mark.parametrize("size", [(16, 16), (8, 8), (8, 7), (20, 16)])
def test_of_a_random_map_its_size_is_left(size):
    images = {"image": torch.rand(1, 16, 16), "other": torch.rand(1, 16, 16)}
    for keys, mode in (("image", "bilinear"), (("image", "other"), ("bilinear", "nearest"))):
        given = {"spatial_size": size, "mode": mode, "padding_mode": "zeros"}
        fixed = fixed_transforms(Compose([RandAffined(keys, prob=0.5, rotate_range=0.1, **given)]))(images)
        expected = RandAffined(keys, prob=0, **given)(images)
        assert all(torch.equal(fixed[key], expected[key]) for key in images)
    alone = fixed_transforms(RandAffine(prob=0.5, spatial_size=size))(images["image"])
    assert torch.equal(alone, RandAffine(prob=0, spatial_size=size)(images["image"]))


def test_random_map_that_keeps_the_size_leaves_nothing_and_a_choice_of_one_that_does_not_is_a_crop():
    assert fixed_transforms(Compose([RandAffined("image", prob=0.5, rotate_range=0.1)])).transforms == ()
    with pytest.raises(InputError, match="transforms: OneOf cuts at random"):
        fixed_transforms(OneOf([RandAffined("image", prob=0.5, spatial_size=(8, 8)), RandFlipd("image")]))


@pytest.mark.parametrize(
    "step",
    [
        Rand2DElasticd("image", spacing=(4, 4), magnitude_range=(0, 1), spatial_size=(8, 8)),
        RandZoomd("image", keep_size=False),
        RandRotate(keep_size=False),
    ],
)
def test_other_random_maps_that_change_the_size_are_crops(step):
    with pytest.raises(InputError, match=f"transforms: {type(step).__name__} cuts at random"):
        fixed_transforms(step)


def test_crop_that_takes_no_place_is_told(caplog):
    fixed_transforms(Compose([RandFlipd("image")]), CenterSpatialCropd("image", (4, 4)))
    assert "crop is given, but none of them cuts at random" in caplog.text


def test_transforms_that_wait_go_on_waiting():
    spaced = Spacingd("image", pixdim=(1.3, 1.3), align_corners=True)
    sized = {"spatial_size": (8, 8), "padding_mode": "zeros"}  # half a pixel off the middle of 13
    image = {"image": MetaTensor(smooth_images(1, (16, 16)), affine=torch.eye(4))}
    for lazy in (True, False):
        fixed = fixed_transforms(Compose([spaced, RandAffined("image", prob=1, rotate_range=0.2, **sized)], lazy=lazy))
        expected = Compose([spaced, RandAffined("image", prob=0, **sized)], lazy=lazy)
        assert torch.allclose(fixed(image)["image"], expected(image)["image"], atol=1e-6)


def test_item_that_the_transforms_do_not_take_is_named(tmp_path):
    dataset = Dataset([{"image": torch.rand(1, 8, 8)}, {"image": torch.rand(1, 8, 8, 8), "source": "a.nii"}])
    dataset.transform = Compose([Resized("image", (4, 4))])
    with pytest.raises(
        InputError, match=r"validation: item 1 of the data set \(a.nii\) cannot be read: ValueError: len\(.*; its"
    ) as raised:
        export_images(dataset, tmp_path / "validation", "validation")
    failure = raised.value.__cause__  # MONAI's, which names the transform, above that of torch
    assert isinstance(failure, RuntimeError)
    assert isinstance(failure.__cause__, ValueError)


def test_what_transforms_do_to_a_label_is_left_out_where_there_is_none():
    training = Compose([Lambdad("label", lambda label: label + 1), EnsureTyped(["image", "label"])])

    fixed = fixed_transforms(training)

    assert int(fixed({"image": torch.ones(1, 2), "label": 1})["label"]) == 2
    assert fixed({"image": torch.ones(1, 2)}).keys() == {"image"}
    with pytest.raises(RuntimeError, match=r"applying transform .*Lambdad"):
        training({"image": torch.ones(1, 2)})


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (Dataset([{"image": 1}], Compose([RandFlipd("image")])), r"training: the transforms .* random \(RandFlipd\)"),
        (Dataset([{"image": 1}], RandFlipd("image")), r"training: the transforms .* random \(RandFlipd\)"),
        (Dataset([{"scan": 1, "age": 3}]), r"an item of the data set has no 'image' but \['age', 'scan'\]; name"),
        (Dataset([3]), "has no 'image' but int"),
        (Dataset([]), "training: the data set is empty"),
    ],
)
def test_data_set_that_cannot_be_written_is_refused(tmp_path, dataset, message):
    with pytest.raises(InputError, match=message):
        export_images(dataset, tmp_path / "training", "training")
    assert not (tmp_path / "training.csv").exists()


def test_file_that_was_cut_off_is_written_again(tmp_path):
    dataset = [{"image": image[None]} for image in smooth_images(3)]
    table = export_images(dataset, tmp_path / "images", "training")
    whole = (tmp_path / "images" / "000001.npy").read_bytes()
    for length in (0, 60, len(whole) // 2):
        (tmp_path / "images" / "000001.npy").write_bytes(whole[:length])
        assert export_images(dataset, tmp_path / "images", "training") == table
        assert (tmp_path / "images" / "000001.npy").read_bytes() == whole


def test_folders_whose_names_have_dots_get_lists_of_their_own(tmp_path):
    tables = [
        export_images([{"image": image[None]}], tmp_path / name, "training")
        for name, image in zip(("run_1.0", "run_1.5"), smooth_images(2), strict=True)
    ]

    assert [table.name for table in tables] == ["run_1.0.csv", "run_1.5.csv"]
    assert [len(read_image_set(table, "training")) for table in tables] == [1, 1]


def test_image_of_more_channels_than_can_be_read_is_refused(tmp_path):
    with pytest.raises(InputError, match="has 5 channels, at most 4 are read"):
        export_images([{"image": torch.rand(5, 8, 8)}], tmp_path / "images", "training")
