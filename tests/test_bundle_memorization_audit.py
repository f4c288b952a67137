# SPDX-License-Identifier: Apache-2.0
"""The audit bundle: every config through MONAI's own runner, and the host's own checks."""

from __future__ import annotations

import csv
import importlib
import inspect
import json
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import monai.bundle
import pytest
import torch
from made_up_images import smooth_images, write_folder

from monai_memorization.auditing import audit
from monai_memorization.detector.contrastive import N_STEPS, ContrastiveTrainer
from monai_memorization.detector.embeddings import embed
from monai_memorization.detector.encoder import ContrastiveEncoder, load_encoder, save_encoder
from monai_memorization.images.sets import read_image_set

pytestmark = pytest.mark.usefixtures("unchanged_process")

BUNDLE = Path(__file__).parent.parent / "bundles" / "memorization_audit"
SHORT = {"max_epochs": 1, "epoch_length": 3, "logging_file": False}


@pytest.fixture
def bundle(tmp_path) -> Path:
    """A copy of the bundle, to write into."""
    return Path(shutil.copytree(BUNDLE, tmp_path / "bundles" / BUNDLE.name))


def config(bundle: Path, name: str) -> str:
    return str(bundle / "configs" / f"{name}.json")


def run(bundle: Path, name: str, **overrides: object) -> None:
    overrides = {"logging_file": False} | {key: _plain(value) for key, value in overrides.items()}
    monai.bundle.run(config_file=config(bundle, name), bundle_root=str(bundle), **overrides)


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def place_weights(bundle: Path, **settings: object) -> ContrastiveEncoder:
    encoder = ContrastiveEncoder(**{"image_size": (64, 64)} | settings).eval()
    save_encoder(encoder, bundle / "models" / "model.pt")
    return encoder


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    others = second.state_dict()
    return all(torch.equal(value, others[name]) for name, value in first.state_dict().items())


def read_embeddings(path: Path) -> dict[str, torch.Tensor]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row[0]: torch.tensor([float(value) for value in row[1:]]) for row in csv.reader(file)}


@pytest.mark.filterwarnings("ignore:No hash value provided")  # the schema's hash at its address is another
def test_metadata_follow_the_schema_of_monai(bundle, shared_data):
    schema = bundle / "eval" / "schema.json"
    schema.parent.mkdir()
    shutil.copy(shared_data / "bundle_meta_schema_20240725.json", schema)

    monai.bundle.verify_metadata(meta_file=str(bundle / "configs" / "metadata.json"), filepath=str(schema))


@pytest.mark.parametrize(("name", "workflow_type"), [("train", "train"), ("inference", "infer")])
def test_config_has_the_properties_that_monai_asks_for(bundle, training_folder, name, workflow_type):
    workflow = monai.bundle.ConfigWorkflow(
        config_file=config(bundle, name),
        workflow_type=workflow_type,
        logging_file=False,
        bundle_root=str(bundle),
        dataset_dir=str(training_folder),
    )
    workflow.initialize()

    assert workflow.check_properties() == []
    assert isinstance(workflow.network_def, ContrastiveEncoder)


@pytest.mark.parametrize("workflow_type", ["inference", "train"])
def test_bundle_load_returns_the_encoder_with_its_weights(bundle, workflow_type):
    encoder = place_weights(bundle)

    loaded = monai.bundle.load(bundle.name, bundle_dir=str(bundle.parent), workflow_type=workflow_type, device="cpu")

    assert isinstance(loaded, ContrastiveEncoder)
    assert same_weights(loaded, encoder)


def test_bundle_load_of_another_image_size_needs_to_be_told(bundle):
    encoder = place_weights(bundle, image_size=(12, 16, 20))

    loaded = monai.bundle.load(
        bundle.name,
        bundle_dir=str(bundle.parent),
        workflow_type="inference",
        device="cpu",
        net_override={"image_size": [12, 16, 20]},
    )

    assert same_weights(loaded, encoder)


@pytest.mark.parametrize("name", ["train", "inference"])
def test_network_fits_the_metadata(bundle, name):
    monai.bundle.verify_net_in_out(
        net_id="network_def",
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=config(bundle, name),
        device="cpu",
    )


@pytest.mark.filterwarnings("ignore:`torch.jit.(save|load)` is deprecated:DeprecationWarning")  # as MONAI exports
def test_network_can_be_exported(bundle):
    encoder = place_weights(bundle)

    monai.bundle.ckpt_export(
        net_id="network_def",
        filepath=str(bundle / "models" / "model.ts"),
        ckpt_file=str(bundle / "models" / "model.pt"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        config_file=config(bundle, "inference"),
    )

    images = smooth_images(2, (64, 64))[:, None]
    exported = torch.jit.load(bundle / "models" / "model.ts").eval()
    torch.testing.assert_close(exported(images), encoder(images))


@pytest.mark.parametrize(
    ("size", "suffix", "overrides"),
    [
        ((64, 64), ".png", {}),
        ((30, 40), ".png", {"image_size": [32, 32], "embedding_size": 16, "batch_size": 4}),
        ((12, 16, 10), ".nii.gz", {"image_size": [12, 16, 10]}),
    ],
)
def test_train_config_trains_an_encoder_that_loads(bundle, tmp_path, size, suffix, overrides):
    folder = write_folder(smooth_images(6, size), tmp_path / "images", suffix=suffix)

    run(bundle, "train", training=folder, **SHORT, **overrides)

    encoder = load_encoder(bundle / "models" / "model.pt")
    torch.manual_seed(0)
    assert encoder.settings["image_size"] == overrides.get("image_size", [64, 64])
    assert encoder.settings["embedding_size"] == overrides.get("embedding_size", 128)
    assert encoder.training_steps == 3
    untrained = ContrastiveEncoder(**encoder.settings)
    counted = next(value for name, value in encoder.state_dict().items() if name.endswith("num_batches_tracked"))
    assert counted == 3
    assert not same_weights(encoder, untrained)


def test_train_config_tells_the_loss_every_hundred_steps(bundle, tmp_path, caplog):
    folder = write_folder(smooth_images(4, (16, 16)), tmp_path / "images")
    size = {"image_size": [16, 16], "max_epochs": 4, "epoch_length": 50}

    run(bundle, "train", training=folder, **size)

    lines = [record.getMessage() for record in caplog.records if "train_loss" in record.getMessage()]
    assert [line.partition(" --")[0] for line in lines] == ["Epoch: 2/4, Iter: 50/50", "Epoch: 4/4, Iter: 50/50"]


def test_train_config_repeats_with_its_seed(bundle, tmp_path):
    folder = write_folder(smooth_images(6), tmp_path / "images")

    encoders = []
    for seed, name in ((0, "a"), (0, "b"), (1, "c")):
        run(bundle, "train", training=folder, image_size=[32, 32], seed=seed, output_dir=tmp_path / name, **SHORT)
        encoders.append(load_encoder(tmp_path / name / "model.pt"))

    assert same_weights(encoders[0], encoders[1])
    assert not same_weights(encoders[0], encoders[2])


def test_train_config_trains_as_the_audit_does():
    written = json.loads((BUNDLE / "configs" / "train.json").read_text())
    trainer, network = (inspect.signature(kind).parameters for kind in (ContrastiveTrainer, ContrastiveEncoder))

    assert written["max_epochs"] * written["epoch_length"] == N_STEPS
    for key in ("batch_size", "learning_rate", "seed"):
        assert written[key] == trainer[key].default, key
    assert written["embedding_size"] == network["embedding_size"].default


@pytest.mark.parametrize(("size", "suffix"), [((64, 64), ".png"), ((12, 16, 10), ".nii.gz")])
def test_inference_config_writes_the_embedding_of_each_image(bundle, tmp_path, size, suffix):
    encoder = place_weights(bundle, image_size=size, embedding_size=12)
    folder = write_folder(smooth_images(5, size), tmp_path / "images", suffix=suffix)

    run(
        bundle,
        "inference",
        images=folder,
        output_dir=tmp_path / "out",
        image_size=list(size),
        embedding_size=12,
        batch_size=2,
    )

    written = read_embeddings(tmp_path / "out" / "embeddings.csv")
    expected = embed(encoder, read_image_set(folder, "images"))
    assert list(written) == list(expected.images.image_ids)
    torch.testing.assert_close(torch.stack([*written.values()]), expected.vectors, atol=1e-5, rtol=1e-4)


def test_inference_config_refuses_an_encoder_of_another_size(bundle, tmp_path):
    place_weights(bundle, image_size=(32, 32))
    folder = write_folder(smooth_images(2), tmp_path / "images")

    with pytest.raises(RuntimeError) as caught:
        run(bundle, "inference", images=folder, output_dir=tmp_path / "out")
    assert "trained on images of [32, 32], not [64, 64]" in str(caught.value.__cause__)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("size", "suffix"), [((32, 32), ".png"), ((12, 16, 10), ".nii.gz")])
def test_evaluate_config_is_the_audit(bundle, tmp_path, size, suffix):
    place_weights(bundle, image_size=size)
    training = smooth_images(24, size, seed=1)
    sets = {
        "training": write_folder(training, tmp_path / "training", "t", suffix),
        "validation": write_folder(smooth_images(24, size, seed=2), tmp_path / "validation", "v", suffix),
        "synthetic": write_folder(training[:5], tmp_path / "synthetic", "s", suffix),
    }
    encoder = bundle / "models" / "model.pt"

    run(bundle, "evaluate", **sets, encoder=encoder, output_dir=tmp_path / "out", alpha=0.1, gallery=True, n_plants=2)
    audit(**sets, encoder=encoder, output_dir=tmp_path / "direct", alpha=0.1, gallery=True, n_plants=2)

    for name in ("pairs.csv", "memorized.csv", "near_identical.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "direct" / name).read_bytes()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["calibrated"]["alpha"] == 0.1
    assert {cell["n"] for cell in report["power"]} == {2}
    assert report["calibrated"]["n_near_identical"] == 5
    assert (tmp_path / "out" / "gallery.html").is_file()


@pytest.mark.parametrize("name", ["train", "inference", "evaluate", "reference"])
def test_config_imports_no_bare_module(name):
    # MONAI imports the package and then asks it for the name, which a module has only once something imported it
    for statement in json.loads((BUNDLE / "configs" / f"{name}.json").read_text())["imports"]:
        package, imported = re.fullmatch(r"\$from ([\w.]+) import (\w+)", statement).groups()
        assert not inspect.ismodule(getattr(importlib.import_module(package), imported)), statement


def test_audit_runs_from_the_command_line_of_monai(bundle, encoder_file, tmp_path):
    training = smooth_images(24, seed=1)
    sets = {
        "training": write_folder(training, tmp_path / "training", "t"),
        "validation": write_folder(smooth_images(24, seed=2), tmp_path / "validation", "v"),
        "synthetic": write_folder(training[:5], tmp_path / "synthetic", "s"),
    }
    options = {**sets, "encoder": encoder_file, "output_dir": tmp_path / "out", "bundle_root": bundle, "n_plants": 1}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]

    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config(bundle, "evaluate"), *words]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "out" / "report.json").read_text())["verdict"]["status"] == "copies_found"


def test_bad_input_is_the_last_line_of_monais_runner(bundle, tmp_path):
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config(bundle, "train")]
    result = subprocess.run([*command, "--training", "nowhere"], capture_output=True, text=True, cwd=tmp_path)

    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("monai-memorization: training: nowhere does not exist; give")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("path", sorted((BUNDLE / "configs").glob("*.json")), ids=lambda path: path.stem)
def test_every_config_tells_bad_input_plainly(path):
    written = json.loads(path.read_text())

    assert path.stem == "metadata" or written["initialize"][0] == "$tell_bad_input()"


def test_readme_names_only_configs_and_options_that_exist():
    readme = (BUNDLE / "docs" / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    commands = re.findall(r"^\s+python -m monai\.bundle run (.*)$", readme, re.M)

    assert {re.search(r"configs/(\w+)\.json", command)[1] for command in commands} == {
        "train",
        "evaluate",
        "inference",
        "reference",
    }
    for command in commands:
        written = json.loads((BUNDLE / "configs" / re.search(r"\w+\.json", command)[0]).read_text())
        options = set(re.findall(r"--(\w+)", command)) - {"config_file"}
        assert options <= set(written), command


@pytest.mark.parametrize("name", ["train", "inference", "evaluate", "reference"])
def test_config_says_what_it_is_for_and_builds_nothing_when_it_is_read(name):
    written = json.loads((BUNDLE / "configs" / f"{name}.json").read_text())

    assert len(written["_desc_"]) > 50
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parser = monai.bundle.ConfigParser(written)
        assert parser.get("run")
