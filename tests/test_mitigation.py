# SPDX-License-Identifier: Apache-2.0
"""The levers against memorization: each override file runs through MONAI's runner and does what it says."""

from __future__ import annotations

import shutil
from pathlib import Path

import monai.bundle
import pytest
import torch
import yaml
from made_up_images import smooth_images, write_csv, write_folder
from monai.bundle import ConfigWorkflow
from small_generators import SMALL, small_diffusion

from monai_memorization import InputError
from monai_memorization.detector.encoder import load_encoder
from monai_memorization.detector.leaks import distinct_images
from monai_memorization.images.division import cap_patients
from monai_memorization.images.sets import read_image_set

pytestmark = pytest.mark.usefixtures("unchanged_process")

BUNDLES = Path(__file__).parent.parent / "bundles"
SIZES = {"2d": (32, 32), "3d": (16, 16, 16)}
LEVERS = {"augmentation", "deduplicated", "capped_patients", "smaller_network", "regularization", "early_stopping"}


class Given:
    """A bundle, its training images, of which two to a patient, and an autoencoder after a step."""

    def __init__(self, dimensions: str, folder: Path) -> None:
        size = SIZES[dimensions]
        suffix = ".png" if dimensions == "2d" else ".nii.gz"
        images = write_folder(smooth_images(20, size, seed=1), folder / "images", "train", suffix)
        self.training = write_csv(images, folder / "training.csv", [f"patient-{i // 2}" for i in range(20)])
        self.configs = BUNDLES / f"latent_diffusion_{dimensions}" / "configs"
        self.models = folder / "models"
        self.small = SMALL | {"image_size": list(size), "latent_channels": 3, "logging_file": False}
        self.run("train_autoencoder", autoencoder_steps=1, output_dir=self.models)

    def workflow(self, name: str, *levers: str, **overrides: object) -> ConfigWorkflow:
        files = [str(self.configs / f"{name}.json"), *(str(self.configs / "mitigation" / f"{x}.yaml") for x in levers)]
        options = self.small | {"training": self.training, "autoencoder_weights": self.models / "autoencoder.pt"}
        options |= {"diffusion_batch_size": 10, "diffusion_steps": 4} | overrides
        kind = "train" if name.startswith("train") else "inference"
        options = {key: str(value) if isinstance(value, Path) else value for key, value in options.items()}
        return ConfigWorkflow(files, workflow_type=kind, **options)

    def run(self, name: str, *levers: str, **overrides: object) -> ConfigWorkflow:
        workflow = self.workflow(name, *levers, **overrides)
        workflow.initialize()
        workflow.run()
        workflow.finalize()
        return workflow


@pytest.fixture(scope="module", params=["2d", "3d"])
def bundle(request, tmp_path_factory) -> Given:
    return Given(request.param, tmp_path_factory.mktemp(request.param))


def part(workflow: ConfigWorkflow, key: str):
    return workflow.parser.get_parsed_content(key)


def test_each_lever_has_a_file_that_says_how_to_use_it(bundle):
    files = sorted((bundle.configs / "mitigation").iterdir())

    assert {path.stem for path in files} == LEVERS
    for path in files:
        assert f"'configs/mitigation/{path.name}'" in path.read_text(encoding="utf-8"), path


def test_augmented_latents_are_encoded_anew_in_each_epoch(bundle, tmp_path):
    workflow = bundle.workflow("train_diffusion", "augmentation", output_dir=tmp_path)
    workflow.initialize()
    before = part(workflow, "train#dataset").latents.clone()
    workflow.run()
    plain = bundle.workflow("train_diffusion", output_dir=tmp_path)

    after = part(workflow, "train#dataset").latents
    assert (tmp_path / "model.pt").is_file()
    assert part(workflow, "train#trainer").state.epoch == 2
    assert ((after - before).flatten(1).abs().amax(1) > 1e-6).sum() > 10
    assert not torch.allclose(part(plain, "train#dataset").latents, before)


def test_augmented_images_stay_images(bundle):
    augment = part(bundle.workflow("train_autoencoder", "augmentation"), "augmentation")
    image = smooth_images(1, bundle.small["image_size"], seed=3)

    changed = [torch.as_tensor(augment(image)) for _ in range(20)]

    assert all(one.shape == image.shape and one.min() >= 0 and one.max() <= 1 for one in changed)
    assert sum(not torch.equal(one, image) for one in changed) > 15
    # a turn by 5 degrees and a tenth of intensity leave the picture what it is, mirrored or not
    flat = [torch.stack([one.flatten(), image.flatten()]).corrcoef()[0, 1] for one in changed]
    mirrored = [torch.stack([one.flip(1 if image.dim() == 4 else 2).flatten(), image.flatten()]) for one in changed]
    assert all(max(a, b.corrcoef()[0, 1]) > 0.8 for a, b in zip(flat, mirrored, strict=True))


def test_augmentation_trains_the_autoencoder(bundle, tmp_path):
    bundle.run("train_autoencoder", "augmentation", autoencoder_steps=1, output_dir=tmp_path)

    assert (tmp_path / "autoencoder.pt").is_file()


@pytest.mark.parametrize("name", ["train_autoencoder", "train_diffusion"])
def test_repeated_images_are_left_out(bundle, tmp_path, name):
    images = shutil.copytree(bundle.training.parent / "images", tmp_path / "images")
    for path in sorted(images.iterdir())[:3]:
        shutil.copy(path, path.with_name(f"again_{path.name}"))

    options = {"training": images, "output_dir": tmp_path, "autoencoder_steps": 1, "diffusion_steps": 1}
    workflow = bundle.run(name, "deduplicated", **options)

    assert len(read_image_set(images, "training")) == 23
    assert len(part(workflow, "train#images")) == 20


@pytest.mark.parametrize("name", ["train_autoencoder", "train_diffusion"])
def test_patients_are_capped(bundle, tmp_path, name):
    workflow = bundle.run(name, "capped_patients", output_dir=tmp_path, autoencoder_steps=1, diffusion_steps=1)

    patients = part(workflow, "train#images").images.patient_ids
    assert len(patients) == len(set(patients)) == 10


def test_smaller_network_trains_and_draws(bundle, tmp_path):
    widths = {"diffusion_channels": [64, 64], "diffusion_norm_groups": 8}
    workflow = bundle.run("train_diffusion", "smaller_network", output_dir=tmp_path, diffusion_steps=1, **widths)
    drawing = {"model_dir": bundle.models, "diffusion_weights": tmp_path / "model.pt", "n_images": 2}
    bundle.run("inference", "smaller_network", output_dir=tmp_path / "out", denoising_steps=2, **drawing, **widths)

    plain = part(bundle.workflow("train_diffusion", output_dir=tmp_path, **widths), "network_def")
    numbers = [sum(p.numel() for p in n.parameters()) for n in (part(workflow, "network_def"), plain)]
    assert numbers[0] < 0.5 * numbers[1]
    assert len(list((tmp_path / "out").glob("[0-9]*"))) == 2


def test_smaller_network_has_a_share_of_the_weights_of_the_default_recipe(bundle):
    numbers = []
    for levers in ((), ("smaller_network",)):
        parser = monai.bundle.ConfigParser()
        files = [
            bundle.configs / "train_diffusion.json",
            *(bundle.configs / "mitigation" / f"{x}.yaml" for x in levers),
        ]
        parser.read_config([str(path) for path in files])
        with torch.device("meta"):
            numbers.append(sum(p.numel() for p in parser.get_parsed_content("network_def").parameters()))
    assert 0.1 < numbers[1] / numbers[0] < 0.25


def test_regularization_reaches_optimizer_and_network(bundle, tmp_path):
    workflow = bundle.run("train_diffusion", "regularization", output_dir=tmp_path, diffusion_steps=1)

    assert part(workflow, "optimizer").param_groups[0]["weight_decay"] == 0.1
    network = part(workflow, "network")
    shape = (1, 3, *(side // 2 for side in bundle.small["image_size"]))
    # MONAI starts the last layer at 0
    torch.nn.init.normal_(network.out[-1].conv.weight)
    inputs = torch.randn(shape), torch.zeros(1)
    with torch.no_grad():
        trained, drawn = ([network.train(mode)(*inputs) for _ in range(2)] for mode in (True, False))
    assert not torch.equal(*trained)
    assert torch.equal(*drawn)


def test_dropout_leaves_weights_and_drawing_as_they_are():
    plain, dropping = small_diffusion(), small_diffusion(dropout=0.5)

    assert plain.state_dict().keys() == dropping.state_dict().keys()
    inputs = torch.randn(2, 3, 8, 8), torch.zeros(2)
    with torch.no_grad():
        torch.testing.assert_close(plain(*inputs), dropping(*inputs))


def test_training_is_watched(bundle, few_steps, tmp_path):
    size = tuple(bundle.small["image_size"])
    suffix = ".png" if len(size) == 2 else ".nii.gz"
    validation = write_folder(smooth_images(40, size, seed=2), tmp_path / "validation", "val", suffix)
    watch = {"validation": validation, "memorization#handlers#0#n_images": 4, "memorization#sampler#n_steps": 2}

    window = {"window": (0.2, 0.8)} if len(size) == 3 else {}

    bundle.run("train_diffusion", "early_stopping", output_dir=tmp_path / "out", **watch, **window)

    assert (tmp_path / "out" / "model_within_limit.pt").is_file()
    assert (tmp_path / "out" / "memorization" / "monitoring.csv").is_file()
    encoder = load_encoder(tmp_path / "out" / "memorization" / "encoder" / "model.pt")
    assert encoder.preparation.clip == window.get("window")  # cut off where the generator's volumes are


def test_early_stopping_is_the_fragment_of_the_audit_bundle(bundle):
    fragment = BUNDLES / "memorization_audit" / "configs" / "fragments" / "latent_diffusion.yaml"
    own = bundle.configs / "mitigation" / "early_stopping.yaml"

    assert yaml.safe_load(own.read_text()) == yaml.safe_load(fragment.read_text())


def test_of_repeated_images_the_first_is_kept(tmp_path):
    folder = write_folder(smooth_images(6, seed=4), tmp_path / "images")
    shutil.copy(folder / "image_002.png", folder / "image_900.png")

    assert distinct_images(folder).image_ids == tuple(f"image_{i:03}.png" for i in range(6))


def test_cap_keeps_that_many_of_each_patient_whatever_the_seed(tmp_path):
    folder = write_folder(smooth_images(12), tmp_path / "images")
    listed = write_csv(folder, tmp_path / "images.csv", ["a"] * 7 + ["b"] * 3 + ["c"] * 2)

    chosen = [cap_patients(listed, 3, seed) for seed in range(5)]

    assert all(sorted(images.patient_ids) == ["a"] * 3 + ["b"] * 3 + ["c"] * 2 for images in chosen)
    assert len({images.image_ids for images in chosen}) > 1
    assert cap_patients(listed, 3, 1) == chosen[1]


@pytest.mark.parametrize(("n", "message"), [(0, "n: found 0 images per patient"), (1, "names no patients")])
def test_cap_without_patients_or_number_is_refused(tmp_path, n, message):
    folder = write_folder(smooth_images(3), tmp_path / "images")

    with pytest.raises(InputError, match=message):
        cap_patients(folder, n)
