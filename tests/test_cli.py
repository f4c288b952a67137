# SPDX-License-Identifier: Apache-2.0
"""The command line: exit statuses, one line for what is wrong, and the same names as everywhere else."""

from __future__ import annotations

import argparse
import inspect
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from made_up_images import smooth_images, write_csv, write_folder

from monai_memorization import __version__
from monai_memorization.auditing import audit
from monai_memorization.cli import main, parser
from monai_memorization.images.sets import read_image_set

EVALUATE = Path(__file__).parent.parent / "bundles" / "memorization_audit" / "configs" / "evaluate.json"
COMMANDS = ("demo", "split", "audit", "filter", "release", "gate", "compare", "inject")


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Thirty images of ten patients."""
    folder = tmp_path_factory.mktemp("images")
    write_folder(smooth_images(30), folder / "images")
    return write_csv(folder / "images", folder / "images.csv", [f"patient-{i // 3}" for i in range(30)])


def subparser(command: str) -> argparse.ArgumentParser:
    (commands,) = [action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return commands.choices[command]


def defaults_of_command(command: str) -> dict[str, object]:
    actions = [action for action in subparser(command)._actions if action.dest != "help"]
    return {action.dest: action.default for action in actions}


def fails(capsys, *arguments: object) -> str:
    """Run a command that must fail, and return what it prints: one line."""
    try:
        status = main([str(argument) for argument in arguments])
    except SystemExit as exit_:  # of the parser
        status = exit_.code
    output = capsys.readouterr()
    assert status == 2
    assert output.out == ""
    assert output.err.count("\n") == 1
    return output.err


def test_split_writes_two_sets_that_share_no_patient(images, tmp_path, capsys):
    assert main(["split", str(images), "--output-dir", str(tmp_path / "sets"), "--share", "0.3", "--seed", "1"]) == 0

    training, validation = (read_image_set(tmp_path / "sets" / f"{r}.csv", r) for r in ("training", "validation"))
    assert set(training.patient_ids) & set(validation.patient_ids) == set()
    assert (training.n_patients, validation.n_patients) == (7, 3)
    assert len(training) + len(validation) == 30
    assert capsys.readouterr().out.splitlines() == [
        f"{tmp_path / 'sets' / 'training.csv'}: 21 images of 7 patients",
        f"{tmp_path / 'sets' / 'validation.csv'}: 9 images of 3 patients",
        "validation: 3 patients, but alpha 0.05 needs at least 19: an audit cannot flag any image. Give a larger "
        "--share, or more patients.",
    ]


@pytest.mark.parametrize(("n_validation", "told"), [(18, True), (19, False)])
def test_split_says_where_an_audit_needs_more_patients(tmp_path, capsys, n_validation, told):
    write_folder(smooth_images(40, (4, 4)), tmp_path / "images")
    write_csv(tmp_path / "images", tmp_path / "images.csv", [f"patient-{i}" for i in range(40)])

    main(["split", str(tmp_path / "images.csv"), "--output-dir", str(tmp_path), "--share", str(n_validation / 40)])

    assert ("alpha 0.05 needs at least 19" in capsys.readouterr().out) == told


def test_split_may_be_repeated(images, tmp_path):
    command = ["split", str(images), "--output-dir", str(tmp_path)]

    assert [main(command), main(command)] == [0, 0]
    assert {path.name for path in tmp_path.iterdir()} == {"training.csv", "validation.csv"}


@pytest.mark.parametrize("name", ["training.csv", "validation.csv"])
def test_split_does_not_replace_another_division(images, tmp_path, capsys, name):
    main(["split", str(images), "--output-dir", str(tmp_path), "--seed", "1"])
    other = {"training.csv": "validation.csv", "validation.csv": "training.csv"}[name]
    (tmp_path / other).unlink()
    before = (tmp_path / name).read_text()
    capsys.readouterr()

    message = fails(capsys, "split", images, "--output-dir", tmp_path, "--seed", "2")

    assert message.startswith(f"monai-memorization: output_dir: {tmp_path / name} exists with other content")
    assert message.endswith("name another folder, or remove it\n")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: before}


def test_split_does_not_replace_a_folder(images, tmp_path, capsys):
    (tmp_path / "validation.csv").mkdir()

    assert "validation.csv exists with other content" in fails(capsys, "split", images, "--output-dir", tmp_path)
    assert not (tmp_path / "training.csv").exists()


@pytest.mark.parametrize(("options", "level"), [(["--verbose"], logging.DEBUG), ([], logging.INFO)])
def test_verbose_shows_more_messages(images, tmp_path, options, level):
    assert main([*options, "split", str(images), "--output-dir", str(tmp_path)]) == 0

    assert logging.getLogger("monai_memorization.auditing").getEffectiveLevel() == level


def test_split_of_a_folder_says_that_patients_are_unknown(images, tmp_path, capsys):
    assert main(["split", str(images.parent / "images"), "--output-dir", str(tmp_path)]) == 0

    assert "Patients are not known" in capsys.readouterr().out


def test_split_does_not_replace_the_list_that_it_divides(images, tmp_path, capsys):
    own = tmp_path / "training.csv"
    own.write_text(images.read_text().replace("images/", f"{images.parent}/images/"))
    before = own.read_text()

    message = fails(capsys, "split", own, "--output-dir", tmp_path)

    assert message.startswith(f"monai-memorization: output_dir: {own} itself would be replaced")
    assert own.read_text() == before
    assert not (tmp_path / "validation.csv").exists()


def test_override_that_is_no_yaml_is_told(tmp_path, capsys):
    sets = ["--training", "t", "--validation", "v", "--n", "1", "--output-dir", tmp_path / "out"]
    with pytest.raises(SystemExit, match="2"):
        main([str(word) for word in ["release", "inference.json", *sets, "--set", "a=[1"]])
    assert "found 'a=[1', whose value is not YAML; give KEY=VALUE" in capsys.readouterr().err


def test_split_that_is_refused_writes_nothing(images, tmp_path, capsys):
    message = fails(capsys, "split", images, "--output-dir", tmp_path / "sets", "--share", 1.5)

    assert message.startswith("monai-memorization: share: 1.5 of 10 patients")
    assert not (tmp_path / "sets").exists()


def test_audit_prints_the_verdict_and_where_the_report_lies(encoder_file, tmp_path, capsys):
    training = smooth_images(30, seed=1)
    folders = {
        "training": write_folder(training, tmp_path / "a", "a"),
        "validation": write_folder(smooth_images(30, seed=2), tmp_path / "b", "b"),
        "synthetic": write_folder(training[:8], tmp_path / "c", "c"),
    }
    options = [word for role, folder in folders.items() for word in (f"--{role}", str(folder))]

    status = main(["audit", *options, "--output-dir", str(tmp_path / "out"), "--encoder", str(encoder_file)])

    printed = capsys.readouterr().out
    assert status == 0
    assert "8 of 8 synthetic images" in printed
    assert f"Report: {tmp_path / 'out' / 'report.html'}" in printed
    assert json.loads((tmp_path / "out" / "report.json").read_text())["verdict"]["status"] == "copies_found"


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (
            "monai_memorization.auditing.audit",
            ["audit", "--training", "t", "--synthetic", "s"],
            "monai-memorization: stopped; the same command goes on where it stopped\n",
        ),
        ("monai_memorization.images.sets.read_image_set", ["split", "images"], "monai-memorization: stopped\n"),
    ],
)
def test_ctrl_c_is_one_line(capsys, monkeypatch, tmp_path, function, arguments, message):
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(function, interrupted)

    assert main([*arguments, "--output-dir", str(tmp_path / "out")]) == 130
    assert capsys.readouterr() == ("", message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["split", "nowhere", "--output-dir", "out"], r"^monai-memorization: images: nowhere does not exist"),
        (["audit", "--training", "nowhere", "--synthetic", "x", "--output-dir", "out"], r"validation: none given"),
        (
            ["audit", "--training", "nowhere", "--validation", "y", "--synthetic", "x", "--output-dir", "out"],
            r"^monai-memorization: training: nowhere does not exist",
        ),
        (["audit", "--synthetic", "x", "--output-dir", "out"], r"required: --training.*--help shows the options"),
        (["audit", "--alpha", "five"], r"argument --alpha: invalid float value: 'five'"),
        (["audit", "--colour", "x"], r"required|--colour"),
        (["split", "x", "--output-dir", "out", "--colour"], r"unrecognized arguments: --colour"),
        (["frobnicate"], r"invalid choice: 'frobnicate'"),
        ([], r"required: COMMAND"),
    ],
)
def test_bad_usage_is_one_line_that_names_it(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)

    assert re.search(message, fails(capsys, *arguments))
    assert list(tmp_path.iterdir()) == []


def test_message_on_a_file_with_a_line_break_in_its_name_is_one_line(capsys, tmp_path):
    assert "no image in" in fails(capsys, "split", _folder(tmp_path / "two\nlines"), "--output-dir", tmp_path / "out")


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_option(command, capsys):
    with pytest.raises(SystemExit) as exit_:
        main([command, "--help"])

    assert exit_.value.code == 0
    text = capsys.readouterr().out
    for action in subparser(command)._actions:
        assert action.help
        assert (action.option_strings or [action.dest])[-1] in text


def test_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])

    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert all(re.search(rf"^ +{command} ", text, re.M) for command in COMMANDS)


def test_command_config_and_function_have_the_same_names_and_defaults():
    parameters = inspect.signature(audit).parameters
    config = json.loads(EVALUATE.read_text(encoding="utf-8"))
    options = defaults_of_command("audit")
    keys = {key: config[key] for key in config if key not in ("_desc_", "imports", "bundle_root", "initialize", "run")}
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}

    assert list(options) == list(keys) == list(parameters)
    assert {name: options[name] for name in defaults} == defaults
    assert {name: keys[name] for name in defaults} == defaults
    (call,) = config["run"]
    assert re.findall(r"(\w+)=@(\w+)", call) == [(name, name) for name in parameters]


def test_installed_command_runs(images, tmp_path):
    command = Path(sys.executable).with_name("monai-memorization")
    assert command.is_file(), "install the package: pip install --editable ."

    arguments = ["split", images, "--output-dir", tmp_path, "--share", "0"]
    result = subprocess.run([command, *arguments], capture_output=True, text=True)

    assert result.returncode == 2
    assert result.stderr.startswith("monai-memorization: share: 0.0 of 10 patients")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "unloaded"),
    [(["--help"], {"torch", "monai"}), (["frobnicate"], {"torch", "monai"}), (["gate", "nowhere"], {"monai"})],
)
def test_what_needs_neither_images_nor_networks_does_not_wait_for_them(arguments, unloaded):
    code = (
        "import contextlib, sys; from monai_memorization.cli import main\n"
        f"with contextlib.suppress(SystemExit): main({arguments!r})\n"
        f"print(sorted({unloaded!r} & set(sys.modules)))"
    )

    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert result.stdout.splitlines()[-1] == "[]", result.stderr


def test_version_is_printed(capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["--version"])

    assert exit_.value.code == 0
    assert capsys.readouterr().out.strip() == __version__
