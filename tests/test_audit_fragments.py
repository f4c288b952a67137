# SPDX-License-Identifier: Apache-2.0
"""Fragments that audit what a foreign bundle draws or has written: like is compared with like."""

from __future__ import annotations

import json
from pathlib import Path

import foreign_bundles
import monai.bundle
import nibabel
import numpy as np
import pandas as pd
import pytest
import torch
from made_up_images import smooth_images
from monai.data import MetaTensor
from monai.networks.nets import DiffusionModelUNet, Generator
from monai.transforms import Orientationd, SaveImage
from PIL import Image

from monai_memorization.auditing import audit
from monai_memorization.detector.encoder import save_encoder
from monai_memorization.detector.encoder_training import train_encoder
from monai_memorization.images.export import export_images
from monai_memorization.images.preparation import choose_preparation
from monai_memorization.images.prepared import read_prepared
from monai_memorization.images.sets import read_image_set
from monai_memorization.injection import inject

pytestmark = [
    pytest.mark.usefixtures("unchanged_process", "few_steps"),
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*:UserWarning:monai.transforms.io"),
]

CONFIGS = Path(__file__).parent.parent / "bundles" / "memorization_audit" / "configs"
FRAGMENTS = CONFIGS / "fragments"
CT_AFFINE = np.diag([-1.5, -1.5, 2.0, 1.0])


def run(run_id: str, *files: Path, **overrides: object) -> None:
    monai.bundle.run(run_id=run_id, config_file=[str(path) for path in files], logging_file=False, **overrides)


def weights(network: torch.nn.Module, bundle: Path) -> torch.nn.Module:
    """Save the weights of a network in a bundle."""
    (bundle / "models").mkdir()
    torch.save(network.state_dict(), bundle / "models" / "model.pt")
    return network.eval()


def small_unet() -> DiffusionModelUNet:
    settings = {key: value for key, value in foreign_bundles.NETWORK.items() if key != "_target_"}
    return DiffusionModelUNet(**settings, in_channels=1, out_channels=1)


def small_generator() -> Generator:
    return Generator(6, [4, 8, 8], [4, 1], [2, 2])


# the latent diffusion bundle loads nothing: its weights are those that the seed of the test gives
FAMILIES = {
    "latent_diffusion": (foreign_bundles.latent_diffusion, "run", "inference.json", torch.nn.Identity),
    "pixel_diffusion": (foreign_bundles.pixel_diffusion, "testing", "inference.yaml", small_unet),
    "gan": (foreign_bundles.gan, "inferring", "inference.json", small_generator),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_bundle_draws_with_its_own_sampler_and_audits_in_one_command(
    family, training_folder, validation_folder, tmp_path, capsys
):
    build, run_id, inference, network = FAMILIES[family]
    bundle = build(tmp_path / "bundle", training_folder)
    torch.manual_seed(0)
    generator = weights(network(), bundle)
    found = inject(bundle, tmp_path / "watch.yaml")
    configs = [bundle / "configs" / name for name in (*found.configs, inference)]
    # a model that was not watched: its images, as it sees them, are written without training anything
    run("memorization_images", *configs[:-1], *found.files[:1], memorization_validation=str(validation_folder))
    assert not (bundle / "memorization" / "monitoring.csv").exists()

    torch.manual_seed(0)
    run(run_id, configs[-1], FRAGMENTS / f"audit_{family}.yaml", n_images=4)

    output = bundle / "memorization" / "audit"
    report = json.loads((output / "report.json").read_text())
    assert report["sets"]["training"]["n_images"] == report["sets"]["validation"]["n_images"] == 40
    assert [path.name for path in sorted((output / "synthetic").iterdir())] == [f"{seed:06}.png" for seed in range(4)]
    assert report["verdict"]["status"] in capsys.readouterr().out.replace(" ", "_").lower()
    if family == "gan":
        torch.manual_seed(3)
        expected = torch.sigmoid(generator(torch.rand(1, 6)))[0, 0].detach().numpy()
        found = np.asarray(Image.open(output / "synthetic" / "000003.png")) / 255
        np.testing.assert_allclose(found, expected, atol=0.01)


def near_identical(report_folder: Path) -> set[tuple[str, str]]:
    table = pd.read_csv(report_folder / "near_identical.csv")
    return set(zip(table["synthetic_id"], table["training_id"], strict=True))


def as_seen(images: torch.Tensor, folder: Path, role: str) -> Path:
    """Write images as a watched training does, (n, *spatial)."""
    return export_images([{"image": image[None]} for image in images], folder / role, role)


@pytest.mark.parametrize("turned", [False, True])
def test_pictures_that_a_bundle_wrote_are_compared_as_the_generator_drew_them(tmp_path, turned):
    training, validation = smooth_images(40, (32, 24), seed=1), smooth_images(40, (32, 24), seed=2)
    drawn = smooth_images(4, (32, 24), seed=3)
    drawn[2] = training[7]  # a copy
    for i, image in enumerate(drawn):
        if turned:  # transposed, both axes reversed, divided by the maximum, three channels: as the axial slices bundle
            array = image.numpy().T[::-1, ::-1] * 0.8
            array = (255 * np.stack([array / array.max()] * 3, axis=-1)).astype(np.uint8)
            (tmp_path / "drawn").mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / "drawn" / f"synimg_{i}.png")
        else:
            save = {"output_postfix": "trans", "output_ext": ".png", "separate_folder": False, "print_log": False}
            picture = MetaTensor(image[None], meta={"filename_or_obj": f"{i}"})
            SaveImage(tmp_path / "drawn", scale=255, resample=False, **save)(picture)

    run(
        "run",
        CONFIGS / "evaluate.json",
        FRAGMENTS / "written_pictures.yaml",
        pictures=str(tmp_path / "drawn"),
        turned=turned,
        training=str(as_seen(training, tmp_path, "training")),
        validation=str(as_seen(validation, tmp_path, "validation")),
        output_dir=str(tmp_path / "audit"),
        n_plants=1,
    )

    assert near_identical(tmp_path / "audit") == {("synthetic/000002.npy", "training/000007.npy")}
    names = pd.read_csv(tmp_path / "audit" / "synthetic.csv")["source"]
    assert names[2] == ("synimg_2.png" if turned else "2_trans.png")


def audit_with_small_encoder(training: Path, validation: Path, synthetic: Path, tmp_path: Path) -> Path:
    images = read_image_set(training, "training")
    prepared = read_prepared(images, choose_preparation(images))
    save_encoder(train_encoder(prepared, n_steps=3), tmp_path / "encoder" / "model.pt")
    encoder = tmp_path / "encoder" / "model.pt"
    audit(training, validation, synthetic, tmp_path / "audit", encoder=encoder, n_plants=1)
    return tmp_path / "audit"


def test_volume_with_an_identity_affine_is_found_among_oriented_ones(tmp_path):
    """As the 3D BraTS bundle writes: the tensor as it is, without orientation or voxel size."""
    volumes = smooth_images(64, (12, 14, 10))
    flipped = np.diag([-1.1, -1.1, 1.1, 1.0])
    steps = Orientationd("image", axcodes="RAS", labels=None)
    seen = [steps({"image": MetaTensor(volume[None], affine=torch.as_tensor(flipped))}) for volume in volumes]
    sets = {"training": seen[:20], "validation": seen[20:60]}
    tables = {role: export_images(items, tmp_path / role, role) for role, items in sets.items()}
    save = SaveImage(tmp_path / "drawn", output_postfix="sample", print_log=False)
    for i, item in enumerate([*seen[60:], seen[5]]):
        save(torch.as_tensor(item["image"]).clone(), meta_data={"filename_or_obj": f"{i}"})

    report = audit_with_small_encoder(tables["training"], tables["validation"], tmp_path / "drawn", tmp_path)

    assert near_identical(report) == {("4/4_sample.nii.gz", "training/000005.npy")}


def hounsfield(n: int) -> torch.Tensor:
    return (smooth_images(n, (12, 14, 10)) * 2000 - 1000).round()


def write_ct(volumes: torch.Tensor, folder: Path) -> Path:
    """Write volumes as 00.nii.gz, 01.nii.gz, ... with the affine of a scanner."""
    folder.mkdir()
    for i, volume in enumerate(volumes):
        nibabel.save(nibabel.Nifti1Image(volume.numpy().astype(np.int16), CT_AFFINE), folder / f"{i:02}.nii.gz")
    return folder


def test_images_beside_masks_are_audited_alone(tmp_path):
    """As MAISI writes: Hounsfield units with an affine, and a mask beside each."""
    volumes = hounsfield(64)
    training = write_ct(volumes[:20], tmp_path / "training")
    validation = write_ct(volumes[20:60], tmp_path / "validation")
    for name, index in (("a", 60), ("b", 3), ("c", 62)):
        image = MetaTensor(volumes[index][None], affine=CT_AFFINE, meta={"filename_or_obj": "sample.nii.gz"})
        for kind, values in (("image", image), ("label", (image > 0).float())):
            save = {"output_postfix": f"{name}_{kind}", "separate_folder": False, "print_log": False}
            SaveImage(tmp_path / "drawn", **save)(values)

    report = audit_with_small_encoder(training, validation, tmp_path / "drawn" / "*_image.nii.gz", tmp_path)

    assert near_identical(report) == {("sample_b_image.nii.gz", "03.nii.gz")}
    assert json.loads((report / "report.json").read_text())["sets"]["synthetic"]["n_images"] == 3


def test_bundle_that_draws_masks_too_is_audited_in_one_command(tmp_path, capsys):
    volumes = hounsfield(60) * 1.5  # to 1500, beyond what the bundle draws
    volumes[:, :2] = -3024  # the padding of a scanner
    training = write_ct(volumes[:20], tmp_path / "training")
    validation = write_ct(volumes[20:], tmp_path / "validation")
    bundle = foreign_bundles.images_and_masks(tmp_path / "bundle", training)
    sets = {"memorization#training": str(training), "memorization#validation": str(validation)}

    run("run", bundle / "configs" / "inference.json", FRAGMENTS / "audit_maisi.yaml", num_output_samples=4, **sets)

    masks = sorted(path.name for path in (bundle / "output").glob("*_label.nii.gz"))
    assert masks == [f"sample_{i}_label.nii.gz" for i in range(4)]
    report = json.loads((bundle / "memorization" / "audit" / "report.json").read_text())
    assert [report["sets"][role]["n_images"] for role in ("training", "validation", "synthetic")] == [20, 40, 4]
    copies = {(f"sample_{i}_image.nii.gz", f"{i:02}.nii.gz") for i in (0, 2)}
    assert near_identical(bundle / "memorization" / "audit") == copies
    assert report["verdict"]["status"] in capsys.readouterr().out.replace(" ", "_").lower()
    assert (bundle / "memorization" / "encoder" / "model.pt").exists()


def test_missing_volumes_are_told_before_any_is_drawn(tmp_path):
    training = write_ct(hounsfield(1), tmp_path / "training")
    bundle = foreign_bundles.images_and_masks(tmp_path / "bundle", training)
    configs = bundle / "configs" / "inference.json", FRAGMENTS / "audit_maisi.yaml"

    with pytest.raises(RuntimeError) as error:  # MONAI's, from ours
        run("run", *configs, **{"memorization#training": str(training)})

    assert str(error.value.__cause__).startswith("validation: none given")
    assert not (bundle / "output").exists()
