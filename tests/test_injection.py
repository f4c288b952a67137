# SPDX-License-Identifier: Apache-2.0
"""Fragments for foreign bundles: what is recognised, what is said to be missing, and that they run unedited."""

from __future__ import annotations

import json
import logging
import re
import sys
from pathlib import Path

import foreign_bundles
import monai.bundle
import pandas as pd
import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from two_processes import torchrun

from monai_memorization.errors import InputError
from monai_memorization.injection import inject

pytestmark = [
    pytest.mark.usefixtures("unchanged_process"),
    # MONAI's LoadImage makes every reader it knows, and this one says that a library of NVIDIA is missing
    pytest.mark.filterwarnings("ignore:NvImgCodecPydicomReader:UserWarning"),
]

BUNDLES = {
    "latent diffusion": foreign_bundles.latent_diffusion,
    "pixel-space diffusion": foreign_bundles.pixel_diffusion,
    "GAN": foreign_bundles.gan,
}
TESTS = Path(__file__).parent


def options(family: str, validation: Path, encoder_file: Path) -> dict[str, object]:
    """What a user adds to the command, and what keeps the test short."""
    handler = "memorization#handlers#0"
    given = {"memorization_validation": str(validation), f"{handler}#encoder": str(encoder_file)}
    given |= {f"{handler}#n_images": 6, f"{handler}#batch_size": 3}
    return given | ({"memorization#sampler#image_shape": [1, 32, 32]} if family == "pixel-space diffusion" else {})


def run(caplog, bundle: Path, names: list[str], *fragments: Path, **overrides: object) -> list[str]:
    """Train a bundle in this process, and return what its own StatsHandler tells."""
    caplog.clear()
    logging.getLogger("foreign").handlers = [caplog.handler]
    files = [str(bundle / "configs" / name) for name in names]
    run_id = "run" if names[-1].startswith("train_diffusion") else "training"
    monai.bundle.run(run_id=run_id, config_file=[*files, *map(str, fragments)], logging_file=False, **overrides)
    return [record.getMessage() for record in caplog.records if record.name == "foreign"]


@pytest.mark.parametrize("family", BUNDLES)
def test_bundle_is_watched_by_override_alone_and_trains_as_without(
    family, training_folder, validation_folder, encoder_file, tmp_path, caplog
):
    bundle = BUNDLES[family](tmp_path / "bundle", training_folder)
    before = {path: path.read_bytes() for path in (bundle / "configs").iterdir()}
    found = inject(bundle, tmp_path / "fragment.yaml")
    assert found.family == family

    alone = run(caplog, bundle, found.configs)
    watched = run(caplog, bundle, found.configs, found.files[0], **options(family, validation_folder, encoder_file))

    losses = [line for line in watched if "Metrics --" not in line]
    assert losses == [line for line in alone if "Metrics --" not in line]
    assert len(losses) == 6
    metrics = [line for line in watched if "Metrics --" in line]
    assert [re.findall(r"Epoch\[(\d)\].*copy_rate: 0 ", line) for line in metrics] == [["1"], ["2"], ["3"]]
    assert (bundle / "memorization" / "model_within_limit.pt").is_file()
    assert len(pd.read_csv(bundle / "memorization" / "monitoring.csv")) == 20
    assert len(pd.read_csv(bundle / "memorization" / "training.csv")) == 40
    assert {path: path.read_bytes() for path in (bundle / "configs").iterdir()} == before


def test_two_processes_draw_their_parts_and_stop_together(training_folder, validation_folder, encoder_file, tmp_path):
    bundle = foreign_bundles.latent_diffusion(tmp_path / "bundle", training_folder)
    found = inject(bundle, tmp_path / "fragment.yaml")
    assert [path.name for path in found.files] == ["fragment.yaml", "fragment_multi_gpu.yaml"]
    (told,) = re.findall(r"run --config_file \"\[(.*)\]\"", found.files[1].read_text())
    first, override = [f"configs/{name}" for name in found.configs], "configs/multi_gpu_train_diffusion.json"
    assert told == ",".join(
        f"'{name}'" for name in (*first, "../fragment.yaml", override, "../fragment_multi_gpu.yaml")
    )
    sampler = yaml.safe_load(found.files[0].read_text())["memorization"]["sampler"]
    last = tmp_path / "last.yaml"
    record = {"_target_": "foreign_bundles.MetricsRecorder", "folder": str(tmp_path)}
    copying = {"_target_": "foreign_bundles.CopyingSampler", "sampler": sampler}
    last.write_text(yaml.safe_dump({"+memorization#handlers": [record], "memorization#sampler": copying}))
    files = [str((bundle / name).resolve()) for name in re.findall("'(.*?)'", told)] + [str(last)]
    words = ["run", "--config_file", str(files), "--logging_file", "False", "--train#trainer#max_epochs", "2"]
    for key, value in options("latent diffusion", validation_folder, encoder_file).items():
        words += [f"--{key}", str(value)]

    result = torchrun("-m", "monai.bundle", *words, folder=tmp_path)

    assert result.returncode == 0, result.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    # of the seeds 1,000,000 to 1,000,005 rank 0 draws the even ones, all copies, and rank 1 none
    (metrics,) = first
    assert metrics["epoch"] == 1
    assert metrics["n_copies"] == 3
    assert metrics["n_mem"] == 3
    assert metrics["last_epoch_within_limit"] == 0


def written(tmp_path: Path, **configs: object) -> Path:
    """Write a bundle with these files in configs."""
    for name, content in configs.items():
        foreign_bundles.write(tmp_path / "bundle", f"{name}.json", content)
    return tmp_path / "bundle"


LOADER = {"train_data_loader": {"_target_": "DataLoader", "dataset": "@data"}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"device": "cpu"}, r"train.json: has no trainer; looked for train#trainer and trainer. Draw images"),
        (
            {
                "device": "cpu",
                "trainer": {"_target_": "SupervisedTrainer", "inferer": "@x"},
                "x": {"_target_": "a.Slide"},
            },
            r"of no known family; its trainer is SupervisedTrainer with inferer Slide, known are .*add_the_check",
        ),
        (
            {"device": "cpu", "train": {"trainer": {"_target_": "scripts.trainer.ControlNetTrainer"}}},
            r"its trainer is ControlNetTrainer with inferer none",
        ),
        ([1], r"train.json: holds no config, but a list"),
    ],
)
def test_bundle_of_no_known_family_is_refused_with_a_way_out(tmp_path, config, message):
    with pytest.raises(InputError, match=message):
        inject(written(tmp_path, train=config), tmp_path / "out.yaml")
    assert not (tmp_path / "out.yaml").exists()


def test_folder_without_training_config_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere: is no folder; give the folder of a bundle"):
        inject(tmp_path / "nowhere", tmp_path / "out.yaml")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty/configs: no training config; looked for train_diffusion, train with"):
        inject(tmp_path / "empty", tmp_path / "out.yaml")


@pytest.mark.parametrize(
    ("name", "text"), [("train.json", "{'a': 1}"), ("train.yaml", "a: [1"), ("train.yaml", "a: \t1")]
)
def test_config_that_does_not_parse_is_named(tmp_path, name, text):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / name).write_text(text)
    with pytest.raises(InputError, match=f"{name}: does not parse"):
        inject(tmp_path, tmp_path / "out.yaml")


def test_folder_of_the_configs_is_told_from_that_of_the_bundle(tmp_path):
    bundle = foreign_bundles.gan(tmp_path / "gan", tmp_path)
    with pytest.raises(InputError, match=r"configs: holds the configs themselves; give the bundle's folder"):
        inject(bundle / "configs", tmp_path / "watch.yaml")


def test_configs_of_monai_generative_are_told(tmp_path):
    bundle = foreign_bundles.gan(tmp_path / "gan", tmp_path)
    assert not any("monai-generative" in line for line in inject(bundle, tmp_path / "watch.yaml").missing)

    (path,) = (bundle / "configs").glob("train.*")
    path.write_text(path.read_text().replace('"Generator"', '"generative.networks.nets.Generator"'))
    assert "generative.networks" in path.read_text()
    told = inject(bundle, tmp_path / "old.yaml").missing
    assert any(line.startswith("monai-generative: ") and "docs/monai_generative.md" in line for line in told)


def test_output_has_to_be_yaml(tmp_path):
    with pytest.raises(InputError, match=r"output: .*out.json is no YAML file"):
        inject(tmp_path, tmp_path / "out.json")


def test_our_own_bundle_has_a_fragment_already(tmp_path):
    with pytest.raises(InputError, match=r"fragments/latent_diffusion.yaml"):
        inject(TESTS.parent / "bundles" / "latent_diffusion_2d", tmp_path / "out.yaml")


HANDLER = {"_target_": "StatsHandler", "name": "theirs"}


@pytest.mark.parametrize(
    ("handlers", "expected"),
    [
        (None, ["ours", "ours"]),
        ("$None", ["ours", "ours"]),
        ("@handlers", ["ours", "ours", "theirs", "theirs"]),
        ("@handlers#0", ["ours", "ours", "theirs"]),
        ("$list(filter(bool, @handlers))", ["ours", "ours", "theirs", "theirs"]),
        ("$@handlers[: 1 if @told else None]", ["ours", "ours", "theirs"]),
        ("$@handlers if not @told else None", ["ours", "ours"]),
        ("$@handlers or []", ["ours", "ours", "theirs", "theirs"]),
        ("$(@handlers#0,)", ["ours", "ours", "theirs"]),
        ("$@handlers#0, @handlers#1", ["ours", "ours", "theirs", "theirs"]),
        ([HANDLER], ["theirs", "ours", "ours"]),
        ([], ["ours", "ours"]),
        (HANDLER, ["theirs", "ours", "ours"]),
    ],
)
@pytest.mark.parametrize("within", ["the training", "the override for several GPUs", "a list that is overridden"])
def test_handlers_of_the_bundle_stay_beside_ours(tmp_path, handlers, expected, within):
    trainer = {"_target_": "GanTrainer", "g_network": "@g"} | LOADER
    override = {"device": "cpu"}
    if within == "the training":
        trainer["train_handlers"] = handlers
    else:
        trainer["train_handlers"] = "@handlers" if within.startswith("the override") else [HANDLER, HANDLER]
        override["trainer#train_handlers"] = handlers
    config = {"trainer": trainer, "device": "cpu", "told": True, "handlers": [HANDLER, HANDLER]}
    bundle = written(tmp_path, train=config, multi_gpu_train=override)
    files = inject(bundle, tmp_path / "out.yaml").files
    (told,) = re.findall(r"--config_file \"\[(.*)\]\"", files[-1].read_text())

    parser = ConfigParser()
    parser.read_config([str((bundle / name).resolve()) for name in re.findall("'(.*?)'", told)])
    parser["memorization"] = {"handlers": [HANDLER | {"name": "ours"}, HANDLER | {"name": "ours"}]}
    merged = parser.get_parsed_content("trainer#train_handlers")

    assert [handler.name for handler in merged] == expected


def test_changes_of_single_handlers_hold_where_the_trainer_lists_them(tmp_path):
    trainer = {"_target_": "GanTrainer", "g_network": "@g", "train_handlers": [HANDLER]} | LOADER
    bundle = written(
        tmp_path, train={"trainer": trainer, "device": "cpu"}, quick={"trainer#train_handlers#0#name": "x"}
    )
    (file,) = inject(bundle, tmp_path / "out.yaml").files
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / name) for name in ("train.json", "quick.json")] + [str(file)])
    assert parser["trainer#train_handlers#0#name"] == "x"


def test_overrides_for_several_gpus_are_those_of_the_files_of_the_training(tmp_path):
    key = "trainer#train_handlers"
    train = {"device": "cpu", "trainer": {"_target_": "GanTrainer", "train_handlers": "@handlers"} | LOADER}
    bundle = written(tmp_path, train=train, multi_gpu_train_other={key: "$@handlers[:3]"})
    second = inject(bundle, tmp_path / "out.yaml").files[-1]
    assert "@handlers[:3]" in second.read_text()  # for want of one that has the training's name
    assert "'configs/multi_gpu_train_other.json'" in second.read_text()

    written(tmp_path, multi_gpu_train={key.replace("#", "::"): "$@handlers[:1]"})
    second = inject(bundle, tmp_path / "other.yaml").files[-1]
    assert "@handlers[:1]" in yaml.safe_load(second.read_text())[key]
    assert "multi_gpu_train_other" not in second.read_text()


def test_relative_references_lead_where_they_led(tmp_path):
    trainer = {"_target_": "GanTrainer", "g_network": "@##network", "latent_shape": "@::size", "size": 5} | LOADER
    handler = {"_target_": "ignite.handlers.EMAHandler", "model": "@###network"}
    trainer |= {"train_handlers": "@##handlers", "train_data_loader": "@##loader"}
    network = {"_target_": "Generator"}
    loader = {"dataset": {"transform": [{"_target_": "LoadImaged", "keys": "@######entry"}]}}
    train = {"trainer": trainer, "network": network, "handlers": [handler], "loader": loader}
    bundle = written(tmp_path, train={"device": "cpu", "entry": "scan", "train": train})
    written(tmp_path, multi_gpu_train={"train#trainer#train_handlers": "$@##handlers[:-1]"})
    found = inject(bundle, tmp_path / "out.yaml")

    parser = ConfigParser()
    parser.read_config([str(bundle / "configs" / "train.json"), *map(str, found.files)])
    parser.resolve_macro_and_relative_ids()

    memorization = parser["memorization"]
    assert memorization["sampler"]["network"] == "@train::network"
    assert memorization["handlers"][1]["save_dict"] == {"model": "@train::network"}
    assert memorization["sampler"]["latent_shape"] == "@train::trainer::size"
    assert memorization["transforms"]["transform"] == "$@train::loader::dataset.transform"
    assert memorization["handlers"][0]["image_key"] == "scan"
    assert "@train::handlers[:-1]" in parser["train#trainer#train_handlers"]
    assert any("EMAHandler" in line for line in found.missing)


def test_reference_to_above_the_config_is_named(tmp_path):
    bundle = written(tmp_path, train={"device": "@##x", "trainer": {"_target_": "GanTrainer"}})
    with pytest.raises(InputError, match=r"train.json: device refers to @##x, above the config; mend the bundle"):
        inject(bundle, tmp_path / "out.yaml")


def test_what_could_not_be_found_is_said_in_the_report_and_in_the_file(tmp_path):
    crop = {"_target_": "RandSpatialCropSamplesd", "keys": ["scan"]}
    config = {
        "device": "cpu",
        "data": {"transform": {"_target_": "Compose", "transforms": [crop]}},
        "trainer": {
            "_target_": "SupervisedTrainer",
            "inferer": {"_target_": "generative.inferers.LatentDiffusionInferer", "scheduler": "@s"},
            "network": "@n",
            **LOADER,
        },
    }
    found = inject(written(tmp_path, train=config), tmp_path / "out.yaml")
    text = found.files[0].read_text()
    for name in ("memorization_validation", "sampler#latent_shape", "sampler#autoencoder", "transforms#crop"):
        assert sum(name in line for line in found.missing) == 1
    assert "RandSpatialCropSamplesd" in " ".join(found.missing)
    assert all(f"# MISSING: {line}" in text for line in found.missing)
    assert yaml.safe_load(text)["memorization"]["handlers"][0]["image_key"] == "scan"

    del config["data"]
    found = inject(written(tmp_path, train=config), tmp_path / "other.yaml")
    assert any(line.startswith("memorization#training, memorization#transforms: give") for line in found.missing)


def test_what_is_made_within_the_trainer_is_not_made_again(
    training_folder, validation_folder, encoder_file, tmp_path, caplog
):
    bundle = foreign_bundles.pixel_diffusion(tmp_path / "bundle", training_folder)
    config = yaml.safe_load((bundle / "configs" / "train.yaml").read_text())
    config["bundle_root"] = f"$__import__('pathlib').Path({str(bundle)!r})"
    trainer = config["trainer"]
    trainer["network"] = "$@network_def.to(@device)"
    trainer["inferer"] = config.pop("inferer") | {"scheduler": config.pop("scheduler")}
    trainer["train_data_loader"] = config.pop("train_loader") | {"dataset": config.pop("train_ds")}
    trainer["optimizer"]["params"] = "$@trainer#network.parameters()"
    config["network_def"] = {"_target_": "foreign_bundles.CopyOf", "network": config["network_def"]}
    saver = {"_target_": "CheckpointSaver", "save_dir": str(tmp_path), "save_dict": {"network": "@trainer#network"}}
    config["handlers"].append(saver | {"save_final": True, "final_filename": "final.pt"})
    del config["network"]
    foreign_bundles.write(bundle, "train.yaml", config)
    found = inject(bundle, tmp_path / "fragment.yaml")

    run(caplog, bundle, ["train.yaml"], found.files[0], **options(found.family, validation_folder, encoder_file))

    kept = torch.load(bundle / "memorization" / "model_within_limit.pt", weights_only=True)
    trained = torch.load(tmp_path / "final.pt", weights_only=True)
    assert all(torch.equal(kept[name], value) for name, value in trained.items())


def test_list_that_runs_the_trainer_is_named_whatever_else_runs(tmp_path):
    trainer = {"_target_": "GanTrainer", "g_network": "@g"} | LOADER
    for how in ("$@train::trainer.run()", ["$print(1)", "$@train#trainer.run()"]):
        config = {"device": "cpu", "evaluating": ["$@evaluator.run()"], "go": how, "train": {"trainer": trainer}}
        (file,) = inject(written(tmp_path, train=config), tmp_path / "out.yaml").files
        assert "monai.bundle run go --config_file" in file.read_text()


def test_config_of_another_name_is_taken_where_it_is_named(tmp_path):
    bundle = written(tmp_path, train_stage2={"device": "cpu", "trainer": {"_target_": "GanTrainer"} | LOADER})
    with pytest.raises(InputError, match=r"no training config; looked for .*as --config if it is .* train_stage2.json"):
        inject(bundle, tmp_path / "out.yaml")
    with pytest.raises(InputError, match=r"looked for train_stage3.json; name .* train_stage2.json"):
        inject(bundle, tmp_path / "out.yaml", "train_stage3.json")
    for name in ("train_stage2.json", "configs/train_stage2.json"):
        (file,) = inject(bundle, tmp_path / "out.yaml", name).files
        assert "['configs/train_stage2.json','../out.yaml']" in file.read_text()
    with pytest.raises(InputError, match=r"config: .*elsewhere/train_stage2.json does not lie in .*configs; give"):
        inject(bundle, tmp_path / "out.yaml", str(tmp_path / "elsewhere" / "train_stage2.json"))


@pytest.mark.parametrize(
    "handlers",
    ["@handlers", "$@handlers[:1]", "$[@ema, None]", [HANDLER, "@ema"], {"_target_": "EMAHandler"}, "@ema", [], None],
)
def test_averaged_weights_are_told(tmp_path, handlers):
    ema = {"_target_": "ignite.handlers.EMAHandler", "model": "@g"}
    trainer = {"_target_": "GanTrainer", "g_network": "@g", "train_handlers": handlers} | LOADER
    config = {"device": "cpu", "ema": ema, "handlers": ["@ema", {"_target_": "StatsHandler"}], "trainer": trainer}
    found = inject(written(tmp_path, train=config), tmp_path / "out.yaml")
    assert sum("EMAHandler" in line for line in found.missing) == bool(handlers)


def test_a_file_that_is_there_is_not_lost(tmp_path):
    bundle = written(tmp_path, train={"device": "cpu", "trainer": {"_target_": "GanTrainer"} | LOADER})
    (file,) = inject(bundle, tmp_path / "out.yaml").files
    text = file.read_text()
    assert inject(bundle, file).files == [file]  # the same again
    for edited in (file, bundle / "configs" / "train.yaml"):
        edited.write_text(f"{text}copy_rate_limit: 0.2\n")
        with pytest.raises(InputError, match=rf"output: .*{edited.name} is there already and holds something else"):
            inject(bundle, edited)
        assert edited.read_text() == f"{text}copy_rate_limit: 0.2\n"


def test_command_names_the_fragment_as_it_is_called_in_the_folder_of_the_bundle(tmp_path):
    bundle = written(tmp_path, train={"device": "cpu", "trainer": {"_target_": "GanTrainer"} | LOADER})
    for output, name in ((bundle / "watch.yaml", "watch.yaml"), (tmp_path / "a" / "w.yaml", "../a/w.yaml")):
        output.parent.mkdir(exist_ok=True)
        assert f"['configs/train.json','{name}']" in inject(bundle, output).files[0].read_text()


def conditional(load: dict[str, object], **network: object) -> dict[str, object]:
    label = {"_target_": "Lambdad", "keys": "label", "func": "$lambda label: torch.full((1, 2), float(label))"}
    return {
        "device": "cpu",
        "names": ["scan", "mask"],
        "data": {"transform": {"_target_": "Compose", "transforms": [label, load]}},
        "network_def": {"_target_": "DiffusionModelUNet"} | network,
        "trainer": {
            "_target_": "SupervisedTrainer",
            "inferer": {"_target_": "DiffusionInferer", "scheduler": "@s"},
            "network": "$@network_def.to(@device)",
            **LOADER,
        },
    }


@pytest.mark.parametrize("keys", ["scan", ["scan"], "@names"])
def test_image_is_what_is_loaded(tmp_path, keys):
    config = conditional({"_target_": "monai.transforms.LoadImaged", "keys": keys})
    (file,) = inject(written(tmp_path, train=config), tmp_path / "out.yaml").files
    section = yaml.safe_load(file.read_text())["memorization"]
    assert section["handlers"][0]["image_key"] == section["validation"]["data"]["key"] == "scan"


@pytest.mark.parametrize(
    ("steps", "key", "told"),
    [
        ([{"_target_": "LoadImaged", "keys": ["mask", "image"]}], "image", None),
        ([{"_target_": "LoadImaged", "keys": ["@of_mask", "@of_image"]}], "image", None),
        ([{"_target_": "LoadImaged", "keys": ["latents", "reals"]}], "reals", None),
        ([{"_target_": "LoadImaged", "keys": "reals"}, {"_target_": "Flipd", "keys": "image"}], "image", "reals"),
        (
            [
                {"_target_": "LoadImaged", "keys": ["t1", "t2"]},
                {"_target_": "ConcatItemsd", "keys": ["t1", "t2"], "name": "image"},
            ],
            "image",
            "t1, t2",
        ),
        ([{"_target_": "LoadImaged", "keys": "t1"}, {"_target_": "CopyItemsd", "names": ["image"]}], "image", "t1"),
        ([{"_target_": "scripts.Readd", "keys": ["seed", "image"]}], "image", None),
        ([{"_target_": "scripts.Readd", "keys": "@computed"}], "@computed", None),
    ],
)
def test_image_is_what_the_trainer_takes_even_if_other_entries_are_loaded_first(tmp_path, steps, key, told):
    config = conditional({}) | {"of_image": "$monai.utils.CommonKeys.IMAGE", "of_mask": "mask", "computed": "$f()"}
    config["data"]["transform"]["transforms"] = steps
    found = inject(written(tmp_path, train=config), tmp_path / "out.yaml")
    section = yaml.safe_load(found.files[0].read_text())["memorization"]
    assert section["handlers"][0]["image_key"] == section["validation"]["data"]["key"] == key
    lines = [line for line in found.missing if line.startswith("memorization#validation#data")]
    assert [f"{key} is made of {told}; give" in line for line in lines] == ([True] if told else [])


@pytest.mark.parametrize(
    "transform",
    [
        {"_target_": "Compose", "transforms": ["@load", "@crop"]},
        {"_target_": "Compose", "transforms": ["@steps#0", {"_target_": "Compose", "transforms": ["@crop"]}]},
        {"_target_": "Compose", "transforms": "$@steps + @more"},
        ["@load", "@crop"],
        "@steps",
    ],
)
def test_transforms_are_found_wherever_they_are_written(tmp_path, transform):
    config = conditional({}) | {
        "load": {"_target_": "LoadImaged", "keys": "scan"},
        "crop": {"_target_": "RandSpatialCropd", "keys": "scan"},
        "steps": ["@load", {"_target_": "OneOf", "transforms": ["@crop"]}],
        "more": [{"_target_": "RandZoomd", "keys": "scan"}],
        "data": {"transform": transform},
    }
    found = inject(written(tmp_path, train=config), tmp_path / "out.yaml")
    section = yaml.safe_load(found.files[0].read_text())["memorization"]
    assert section["training"]["data"] == "$@data.data"
    assert section["handlers"][0]["image_key"] == "scan"
    assert any("crop in the place of RandSpatialCropd" in line for line in found.missing)


def test_transforms_that_hold_themselves_are_no_endless_search(tmp_path):
    config = conditional({}) | {"more": [{"_target_": "LoadImaged", "keys": "scan"}], "steps": "$@steps + @more"}
    config["data"] = {"transform": "@steps"}
    found = inject(written(tmp_path, train=config), tmp_path / "out.yaml")
    assert yaml.safe_load(found.files[0].read_text())["memorization"]["handlers"][0]["image_key"] == "scan"


@pytest.mark.parametrize("disabled", [True, "true"])
def test_disabled_transforms_are_left_out(tmp_path, disabled):
    config = conditional({"_target_": "LoadImaged", "keys": "scan"})
    crop = {"_target_": "RandSpatialCropd", "keys": "image", "_disabled_": disabled}
    config["data"]["transform"]["transforms"].append(crop)
    found = inject(written(tmp_path, train=config), tmp_path / "out.yaml")
    section = yaml.safe_load(found.files[0].read_text())["memorization"]
    assert "crop" not in section["transforms"]
    assert section["handlers"][0]["image_key"] == "scan"


def test_network_of_another_name_is_asked_for(tmp_path):
    config = conditional({"_target_": "LoadImaged", "keys": "scan"})
    config["trainer"]["unet"] = config["trainer"].pop("network")
    found = inject(written(tmp_path, train=config), tmp_path / "out.yaml")
    asked = "memorization#sampler#network, memorization#handlers#1#save_dict#model: refer"
    assert sum(line.startswith(asked) for line in found.missing) == 1


def test_padded_latents_are_told(tmp_path):
    config = conditional({"_target_": "LoadImaged", "keys": "scan"})
    for number, shape in enumerate((None, [8, 8])):
        padded = {"ldm_latent_shape": shape, "autoencoder_latent_shape": shape}
        config["trainer"]["inferer"] = {"_target_": "LatentDiffusionInferer", "scheduler": "@s"} | padded
        found = inject(written(tmp_path, train=config), tmp_path / f"out{number}.yaml")
        assert sum("the inferer pads latents" in line for line in found.missing) == number


def test_conditions_are_asked_for_where_the_model_takes_them(tmp_path):
    config = conditional({"_target_": "LoadImaged", "keys": "scan"})
    prepare = {"_target_": "DiffusionPrepareBatch", "condition_name": "label"}
    by_network = conditional({"_target_": "LoadImaged", "keys": "scan"}, with_conditioning=True)
    by_batch = config | {"trainer": config["trainer"] | {"prepare_batch": prepare}}
    for number, (content, asked) in enumerate(((config, 0), (by_network, 1), (by_batch, 1))):
        found = inject(written(tmp_path, train=content), tmp_path / f"out{number}.yaml")
        assert sum(line.startswith("memorization#sampler#conditions: give") for line in found.missing) == asked


def test_classes_are_told_where_the_network_takes_them(tmp_path):
    for number, n_classes in enumerate((None, "@n_classes")):
        config = conditional({"_target_": "LoadImaged", "keys": "scan"}, num_class_embeds=n_classes)
        found = inject(written(tmp_path, train=config | {"n_classes": 6}), tmp_path / f"out{number}.yaml")
        assert sum("the network takes a class (num_class_embeds)" in line for line in found.missing) == number
        assert not any("conditions" in line for line in found.missing)


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ({"_target_": "ScaleIntensityd"}, [0, 1]),
        ({"_target_": "ScaleIntensityd", "minv": -1.0, "maxv": "@most"}, [-1.0, "@most"]),
        ({"_target_": "monai.transforms.ScaleIntensityRangeDict", "a_min": 0, "b_min": -1, "b_max": 2}, [-1, 2]),
        ({"_target_": "ScaleIntensityRangePercentilesd", "lower": 0, "b_min": 0, "b_max": None}, None),
        ({"_target_": "ScaleIntensityd", "minv": None, "maxv": None, "factor": 2}, None),
        ({"_target_": "ScaleIntensityd", "minv": -1.0, "keys": "label"}, None),
        ({"_target_": "NormalizeIntensityd"}, None),
    ],
)
def test_range_of_the_images_is_that_of_the_last_transform_that_scales_them(tmp_path, scale, expected):
    config = conditional({"_target_": "LoadImaged", "keys": ["scan"]})
    config["data"]["transform"]["transforms"].append({"keys": "@names"} | scale)
    (file,) = inject(written(tmp_path, train=config), tmp_path / "out.yaml").files
    assert yaml.safe_load(file.read_text())["memorization"]["sampler"].get("value_range") == expected


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ("memorization_validation", "validation: no images are given; give a folder"),
        ("memorization#sampler#image_shape", "sampler: no image_shape is given; give channels and sides"),
    ],
)
def test_what_is_left_out_is_told_on_one_line(
    training_folder, validation_folder, encoder_file, tmp_path, caplog, capsys, monkeypatch, left_out, message
):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    bundle = foreign_bundles.pixel_diffusion(tmp_path / "bundle", training_folder)
    found = inject(bundle, tmp_path / "fragment.yaml")
    given = options(found.family, validation_folder, encoder_file)
    with pytest.raises(RuntimeError) as raised:
        run(caplog, bundle, found.configs, found.files[0], **given | {left_out: None})
    sys.excepthook(raised.type, raised.value, raised.tb)
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"monai-memorization: {message}")


def test_nothing_of_a_bundle_is_executed(tmp_path):
    canary = tmp_path / "executed"
    code = f"$__import__('pathlib').Path({str(canary)!r}).touch()"
    trainer = {"_target_": "GanTrainer", "g_network": code, "latent_shape": code, "train_handlers": code} | LOADER
    inject(written(tmp_path, train={"imports": [code], "trainer": trainer, "device": code}), tmp_path / "out.yaml")
    assert not canary.exists()


def test_example_of_the_readme_watches_a_bundle(
    training_folder, validation_folder, tmp_path, monkeypatch, caplog, few_steps
):
    readme = (TESTS.parent / "README.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```yaml\n(.*?)```", readme, re.S)
    assert len(text.splitlines()) <= 22
    (command,) = re.findall(r"python -m monai.bundle run training --config_file \"(.*?)\" --validation IMAGES", readme)
    assert command == "['configs/train.yaml','watch.yaml']"
    bundle = foreign_bundles.pixel_diffusion(tmp_path / "bundle", training_folder)
    (bundle / "watch.yaml").write_text(text)
    monkeypatch.chdir(bundle)

    run(caplog, bundle, ["train.yaml"], bundle / "watch.yaml", validation=str(validation_folder))

    assert len(pd.read_csv(bundle / "memorization" / "monitoring.csv")) == 20
    assert any("copy_rate" in record.getMessage() for record in caplog.records if record.name == "foreign")
