# SPDX-License-Identifier: Apache-2.0
"""The generator bundles, 2D and 3D: every config through MONAI's own runner, and the host's own checks."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import monai.bundle
import nibabel
import numpy as np
import pytest
import torch
import yaml
from made_up_images import smooth_images, write_folder
from small_generators import SMALL

from monai_memorization.errors import InputError
from monai_memorization.generation.latents import LatentDiffusionUNet
from monai_memorization.images.prepared import prepared_images
from monai_memorization.images.reading import read_image

pytestmark = pytest.mark.usefixtures("unchanged_process")

TRAINING = ("train_autoencoder", "train_diffusion")
CONFIGS = (*TRAINING, "inference", "reconstruct")
BUNDLES = Path(__file__).parent.parent / "bundles"
SMALL_ATTENTION = {"diffusion_channels": [64, 64, 64], "diffusion_attention": [False, False, False]}
STEPS = {"autoencoder_steps": 3, "diffusion_steps": 3, "autoencoder_batch_size": 16, "diffusion_batch_size": 16}
# fewer steps than MONAI's scheduler strides over exactly: enough to see that images are drawn
DRAWING = {"denoising_steps": 4, "batch_size": 3}


@dataclass(frozen=True)
class Bundle:
    """One of the bundles, and how the tests make it small."""

    name: str
    image_size: tuple[int, ...]
    suffix: str
    training_folder: Path

    @property
    def folder(self) -> Path:
        return BUNDLES / self.name

    @property
    def small(self) -> dict:
        return SMALL | {"image_size": list(self.image_size)}

    def config(self, name: str) -> str:
        return str(self.folder / "configs" / name)

    def written(self, name: str) -> dict:
        return json.loads(Path(self.config(f"{name}.json")).read_text(encoding="utf-8"))

    def presets(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "configs" / "data").iterdir())

    def run(self, name: str, *fragments: str, **overrides: object) -> None:
        options = {"logging_file": False} | self.small | STEPS | DRAWING
        options |= {key: str(value) if isinstance(value, Path) else value for key, value in overrides.items()}
        monai.bundle.run(config_file=[self.config(f"{name}.json"), *map(self.config, fragments)], **options)

    def train(self, output_dir: Path, **overrides: object) -> Path:
        for name in TRAINING:
            self.run(name, training=self.training_folder, output_dir=output_dir, **overrides)
        return output_dir


@pytest.fixture(scope="module", params=["2d", "3d"])
def bundle(request, training_folder, tmp_path_factory) -> Bundle:
    if request.param == "2d":
        return Bundle("latent_diffusion_2d", (32, 32), ".png", training_folder)
    volumes = write_folder(smooth_images(40, (24, 16, 16), seed=1), tmp_path_factory.mktemp("volumes"), "train", ".nii")
    return Bundle("latent_diffusion_3d", (24, 16, 16), ".nii.gz", volumes)


@pytest.fixture(scope="module")
def models(bundle, tmp_path_factory) -> Path:
    """Weights of both networks after three steps, and of the diffusion model after two."""
    return bundle.train(tmp_path_factory.mktemp("models"), save_interval=2)


def same_weights(first: Path, second: Path) -> bool:
    one, other = (torch.load(path, weights_only=True) for path in (first, second))
    assert one.keys() == other.keys()
    return all(torch.equal(value, other[name]) for name, value in one.items())


def pictures(folder: Path) -> dict[str, torch.Tensor]:
    """Images by name, in [0, 1]: pictures have 8 bits, volumes are stored as they are."""
    files = {path.name.split(".")[0]: path for path in sorted(folder.glob("[!.]*"))}
    return {name: read_image(path) / (255 if path.suffix == ".png" else 1) for name, path in files.items()}


def test_training_and_sampling_leave_the_files_they_promise(bundle, models, tmp_path):
    weights = {"autoencoder.pt", "model.pt", "autoencoder_iteration=2.pt", "diffusion_iteration=2.pt"}
    assert {path.name for path in models.iterdir()} == weights

    bundle.run("inference", model_dir=models, output_dir=tmp_path, n_images=4, first_seed=8)
    images = {f"{seed:06}{bundle.suffix}" for seed in (8, 9, 10, 11)}
    assert {path.name for path in tmp_path.iterdir()} == images | {".drawn_by"}


def test_scale_factor_of_the_training_latents_is_among_the_weights(bundle, models):
    parser = monai.bundle.ConfigParser(bundle.written("train_diffusion"))
    parser.update(bundle.small | {"training": str(bundle.training_folder), "output_dir": str(models)})
    latents = parser.get_parsed_content("train#dataset").latents
    for name in ("model.pt", "diffusion_iteration=2.pt"):
        scale_factor = torch.load(models / name, weights_only=True)["scale_factor"]
        assert (latents * scale_factor).std().item() == pytest.approx(1, rel=1e-4)


def test_sampling_applies_the_scale_factor(bundle, models, tmp_path):
    weights = torch.load(models / "model.pt", weights_only=True)
    for name, factor in (("one", 1.0), ("two", 100.0)):
        torch.save(weights | {"scale_factor": weights["scale_factor"] * factor}, tmp_path / f"{name}.pt")
        drawn = {"diffusion_weights": tmp_path / f"{name}.pt", "output_dir": tmp_path / name}
        bundle.run("inference", model_dir=models, n_images=2, **drawn)
    one, two = pictures(tmp_path / "one"), pictures(tmp_path / "two")
    # with a hundredth of the latent, all images are nearly that of the zero latent
    assert (one["000000"] - one["000001"]).abs().mean() > 3 * (two["000000"] - two["000001"]).abs().mean()


@pytest.mark.parametrize("batch_size", [1, 7])
def test_images_do_not_depend_on_the_batch_they_are_drawn_in(bundle, models, tmp_path, batch_size):
    bundle.run("inference", model_dir=models, output_dir=tmp_path / "a", n_images=7, batch_size=3)
    bundle.run("inference", model_dir=models, output_dir=tmp_path / "b", n_images=7, batch_size=batch_size)
    first, second = pictures(tmp_path / "a"), pictures(tmp_path / "b")
    assert first.keys() == second.keys()
    for name, image in first.items():
        # one grey level, since 1e-4 can still cross the border between two
        torch.testing.assert_close(image, second[name], atol=1.01 / 255, rtol=0)


def test_early_and_late_weights_draw_different_images(bundle, models, tmp_path):
    early = models / "diffusion_iteration=2.pt"
    bundle.run("inference", model_dir=models, diffusion_weights=early, output_dir=tmp_path / "early", n_images=1)
    bundle.run("inference", model_dir=models, output_dir=tmp_path / "late", n_images=1)
    assert not torch.equal(pictures(tmp_path / "early")["000000"], pictures(tmp_path / "late")["000000"])


def test_reconstructions_are_those_of_the_autoencoder_under_the_names_of_the_images(bundle, models, tmp_path):
    bundle.run("reconstruct", validation=bundle.training_folder, model_dir=models, output_dir=tmp_path)
    reconstructed = pictures(tmp_path)
    images = prepared_images(bundle.training_folder, bundle.image_size)
    assert list(reconstructed) == [path.stem for path in sorted(bundle.training_folder.iterdir())]

    parser = monai.bundle.ConfigParser(bundle.written("reconstruct"))
    parser.update(bundle.small | {"model_dir": str(models)})
    network = parser.get_parsed_content("network")
    for index in (0, len(images) - 1):
        with torch.no_grad():
            expected = network.reconstruct(images[index]["image"][None]).clamp(0, 1)[0]
        # an untrained autoencoder hardly varies, but a picture written transposed would be another
        assert (expected - expected.transpose(-1, -2)).abs().max() > 2 / 255
        torch.testing.assert_close(reconstructed[f"train_{index:03}"], expected, atol=1.01 / 255, rtol=0)


@pytest.mark.parametrize(("name", "title"), [("inference", "draw batches"), ("reconstruct", "reconstruct batches")])
def test_bar_shows_itself_on_a_terminal_only(bundle, models, tmp_path, monkeypatch, capsys, name, title):
    settings = {"inference": {"n_images": 4}, "reconstruct": {"validation": bundle.training_folder}}[name]
    for on_terminal in (False, True):
        monkeypatch.setattr("sys.stderr.isatty", lambda on_terminal=on_terminal: on_terminal)
        bundle.run(name, model_dir=models, output_dir=tmp_path / str(on_terminal), **settings)
        assert (title in capsys.readouterr().err) is on_terminal


def test_sampling_goes_on_where_it_was_stopped(bundle, models, tmp_path):
    draw = partial(bundle.run, "inference", model_dir=models, output_dir=tmp_path, n_images=7)
    draw()
    files = [tmp_path / f"{seed:06}{bundle.suffix}" for seed in range(7)]
    contents = [read_image(file) for file in files]
    files[4].unlink()
    files[5].write_bytes(files[5].read_bytes()[: files[5].stat().st_size // 2])
    before = [file.stat().st_mtime_ns for file in files if file.exists()]

    draw()
    after = [file.stat().st_mtime_ns for file in files]
    draw()

    assert all(torch.equal(read_image(file), content) for file, content in zip(files, contents, strict=True))
    assert (after[:3], after[6]) == (before[:3], before[-1])
    assert after[3] > before[3]
    assert [file.stat().st_mtime_ns for file in files] == after


@pytest.mark.parametrize("seed", [0, 1])
def test_training_repeats_with_its_seed(bundle, models, tmp_path, seed):
    bundle.train(tmp_path, seed=seed)
    for name in ("autoencoder.pt", "model.pt"):
        assert same_weights(tmp_path / name, models / name) is (seed == 0)


@pytest.mark.parametrize("name", TRAINING)
def test_augmentation_reaches_the_training(bundle, models, tmp_path, name):
    shutil.copy(models / "autoencoder.pt", tmp_path)
    flip = "$monai.transforms.RandFlip(prob=0.5, spatial_axis=1)"
    bundle.run(name, training=bundle.training_folder, output_dir=tmp_path, augmentation=flip)
    produced = "autoencoder.pt" if name == "train_autoencoder" else "model.pt"
    assert not same_weights(tmp_path / produced, models / produced)


def test_missing_autoencoder_is_named(bundle, tmp_path):
    with pytest.raises(RuntimeError) as caught:
        bundle.run("train_diffusion", training=bundle.training_folder, output_dir=tmp_path)
    cause = caught.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert isinstance(cause, InputError)
    assert "autoencoder.pt: no such file" in str(cause)


def test_every_data_preset_says_where_the_training_images_are(bundle, tmp_path):
    lines = [f"{path},{path.stem}" for path in sorted(bundle.training_folder.iterdir())]
    (tmp_path / "training.csv").write_text("\n".join(["image,patient_id", *lines]))
    presets = bundle.presets()
    assert "folder.yaml" in presets
    for preset in presets:
        dataset_dir = bundle.training_folder if preset == "folder.yaml" else tmp_path
        output_dir = tmp_path / preset
        options = {"dataset_dir": dataset_dir, "output_dir": output_dir, "autoencoder_steps": 1}
        bundle.run("train_autoencoder", f"data/{preset}", **options)
        assert (output_dir / "autoencoder.pt").is_file()


def test_networks_fit_the_size_of_every_data_preset(bundle):
    for preset in bundle.presets():
        parser = monai.bundle.ConfigParser(bundle.written("train_autoencoder"))
        parser.read_config([bundle.config("train_autoencoder.json"), bundle.config(f"data/{preset}")])
        image_size = parser["image_size"]
        with torch.device("meta"):
            discriminator = parser.get_parsed_content("discriminator_def")
            logits = discriminator(torch.empty(1, 1, *image_size))[-1]
        assert logits.numel() > 0
        halvings = len(parser["autoencoder_channels"]) + len(bundle.written("inference")["diffusion_channels"]) - 2
        assert all(side % 2**halvings == 0 for side in image_size), preset


# pictures have no voxel size and no window
@pytest.mark.parametrize("bundle", ["3d"], indirect=True)
def test_volumes_are_written_with_the_voxel_size_that_was_given(bundle, models, tmp_path):
    bundle.run("inference", model_dir=models, output_dir=tmp_path, n_images=1, spacing=[0.7, 0.7, 3.0])
    affine = nibabel.load(tmp_path / "000000.nii.gz").affine
    np.testing.assert_allclose(affine, np.diag([0.7, 0.7, 3.0, 1.0]), rtol=1e-6)


@pytest.mark.parametrize("bundle", ["3d"], indirect=True)
def test_window_reaches_the_training(bundle, models, tmp_path):
    bundle.run("train_autoencoder", training=bundle.training_folder, output_dir=tmp_path, window=[0.2, 0.6])
    assert not same_weights(tmp_path / "autoencoder.pt", models / "autoencoder.pt")


def test_quick_recipe_runs_from_end_to_end(bundle, tmp_path):
    short = {"logging_file": False, "autoencoder_steps": 2, "adversarial_warmup": 1, "diffusion_steps": 1}
    models, images, few = tmp_path / "models", tmp_path / "images", tmp_path / "few"
    few.mkdir()
    for path in sorted(bundle.training_folder.iterdir())[:8]:
        shutil.copy(path, few)
    for name in TRAINING:
        files = [bundle.config(f"{name}.json"), bundle.config("quick.yaml")]
        monai.bundle.run(config_file=files, training=str(few), output_dir=str(models), **short)
    short = {"logging_file": False, "n_images": 2, "denoising_steps": 2, "validation": str(few)}
    for name in ("inference", "reconstruct"):
        files = [bundle.config(f"{name}.json"), bundle.config("quick.yaml")]
        monai.bundle.run(config_file=files, model_dir=str(models), output_dir=str(images), **short)
    drawn = pictures(images)
    assert len(drawn) == 2 + 8
    quick = yaml.safe_load(Path(bundle.config("quick.yaml")).read_text(encoding="utf-8"))
    assert {tuple(image.shape) for image in drawn.values()} == {(1, *quick["image_size"])}


@pytest.mark.parametrize("name", ["inference", "reconstruct"])
def test_config_runs_in_a_fresh_process(bundle, models, tmp_path, name):
    options = bundle.small | DRAWING | {"model_dir": models, "output_dir": tmp_path / "images", "n_images": 2}
    options["validation"] = bundle.training_folder
    words = [str(word) for key, value in options.items() for word in (f"--{key}", value)]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", bundle.config(f"{name}.json"), *words]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    n_reconstructed = len(list(bundle.training_folder.iterdir()))
    assert len(pictures(tmp_path / "images")) == (2 if name == "inference" else n_reconstructed)


@pytest.mark.filterwarnings("ignore:No hash value provided")  # the schema's hash at its address is another
def test_metadata_follow_the_schema_of_monai(bundle, shared_data):
    schema = shared_data / "bundle_meta_schema_20240725.json"
    monai.bundle.verify_metadata(meta_file=bundle.config("metadata.json"), filepath=str(schema))


@pytest.mark.parametrize(
    ("name", "workflow_type"),
    [("train_autoencoder", "train"), ("train_diffusion", "train"), ("inference", "infer"), ("reconstruct", "infer")],
)
def test_config_has_the_properties_that_monai_asks_for(bundle, models, name, workflow_type):
    workflow = monai.bundle.ConfigWorkflow(
        config_file=bundle.config(f"{name}.json"),
        workflow_type=workflow_type,
        logging_file=False,
        training=str(bundle.training_folder),
        validation=str(bundle.training_folder),
        output_dir=str(models),
        model_dir=str(models),
        **bundle.small,
    )
    workflow.initialize()

    assert workflow.check_properties() == []
    assert isinstance(workflow.network_def, torch.nn.Module)


def test_bundle_load_returns_the_diffusion_model_with_its_weights(bundle, tmp_path):
    copied = Path(shutil.copytree(bundle.folder, tmp_path / bundle.name))
    small = {key: value for key, value in bundle.small.items() if key.startswith("diffusion")}
    parser = monai.bundle.ConfigParser(bundle.written("inference"))
    parser.update(small)
    network = parser.get_parsed_content("network_def")
    network.scale_factor.fill_(0.7)
    (copied / "models").mkdir()
    torch.save(network.state_dict(), copied / "models" / "model.pt")
    changed = bundle.written("inference") | small
    (copied / "configs" / "inference.json").write_text(json.dumps(changed))

    loaded = monai.bundle.load(bundle.name, bundle_dir=str(tmp_path), workflow_type="inference", device="cpu")

    assert isinstance(loaded, LatentDiffusionUNet)
    for name, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name


def test_network_fits_the_metadata(bundle):
    monai.bundle.verify_net_in_out(
        net_id="network_def",
        meta_file=bundle.config("metadata.json"),
        config_file=bundle.config("inference.json"),
        device="cpu",
        extra_forward_args={"timesteps": torch.zeros(1)},
        # the network of the recipe for volumes takes a GPU
        **({} if len(bundle.image_size) == 2 else SMALL_ATTENTION),
    )


def test_configs_agree_on_what_they_share(bundle):
    configs = {name: bundle.written(name) for name in CONFIGS}
    own = {"network_def", "network", "optimizer", "output_dir", "dataset", "inferer", "handlers", "scheduler"}
    own |= {"autoencoder_weights", "initialize", "autoencoder"}
    for key in set().union(*configs.values()) - {"_desc_", "imports", "run", "train"}:
        values = {name: content[key] for name, content in configs.items() if key in content}
        if key not in own:
            assert len({json.dumps(value) for value in values.values()}) == 1, (key, values)
    assert configs["train_diffusion"]["network_def"] == configs["inference"]["network_def"]
    # the solver draws, and the layout of what decodes differs
    for key, differs in (("scheduler", "_target_"), ("autoencoder", "network")):
        same = [{**configs[name][key], differs: None} for name in ("train_diffusion", "inference")]
        assert same[0] == same[1], key
    assert configs["inference"]["scheduler"]["clip_sample"] is False


def test_configs_of_both_bundles_have_one_form():
    """What differs are the numbers of the recipe, and what only pictures or only volumes have."""
    only_volumes = {"spacing", "window", "affine"}
    for name in CONFIGS:
        pictures, volumes = (
            json.loads((BUNDLES / f"latent_diffusion_{d}" / "configs" / f"{name}.json").read_text())
            for d in ("2d", "3d")
        )
        assert set(volumes) - set(pictures) <= only_volumes
        assert set(pictures) <= set(volumes)
        differing = {key for key, value in pictures.items() if value != volumes[key]}
        flat = {key for key in differing if not isinstance(pictures[key], dict)}
        layout = {"autoencoder", "network"}
        assert differing - flat - {"_desc_"} <= {"train", "images", "dataset", "seeds", "postprocessing"} | layout
        trains = [{k: v for k, v in c.get("train", {}).items() if k != "images"} for c in (pictures, volumes)]
        assert trains[0] == trains[1]


def test_quick_recipe_changes_only_what_exists(bundle):
    quick = yaml.safe_load((bundle.folder / "configs" / "quick.yaml").read_text(encoding="utf-8"))
    assert set(quick) <= set().union(*(bundle.written(name) for name in CONFIGS))


@pytest.mark.parametrize("name", CONFIGS)
def test_config_says_what_it_is_for_and_imports_no_bare_module(bundle, name):
    assert len(bundle.written(name)["_desc_"]) > 50
    # MONAI imports the package and then asks it for the name, which a module has only once something imported it
    for statement in bundle.written(name).get("imports", []):
        package, imported = re.fullmatch(r"\$from ([\w.]+) import (\w+)", statement).groups()
        assert not inspect.ismodule(getattr(importlib.import_module(package), imported)), statement


def test_readme_names_only_configs_and_options_that_exist(bundle):
    readme = (bundle.folder / "docs" / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^\s+python -m monai\.bundle run (.*)$", readme, re.M)
    named = [re.search(r"configs/(\w+)\.json", command)[1] for command in commands]

    assert set(named) == set(CONFIGS)
    for name, command in zip(named, commands, strict=True):
        assert set(re.findall(r"--(\w+)", command)) - {"config_file"} <= set(bundle.written(name)), command
