# SPDX-License-Identifier: Apache-2.0
"""The gate: how clauses are decided and combined, and the policies and reports that it refuses."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from made_up_images import smooth_images, write_csv, write_folder
from report_examples import EXAMPLES, copies_found, few_patients, labels_on_reconstructions, no_copies_found

from monai_memorization import InputError, gate
from monai_memorization.auditing import audit
from monai_memorization.cli import main
from monai_memorization.gating import EXIT_STATUS, Clause, Decision, apply_policy, default_policy, read_policy

OFF = dict.fromkeys(read_policy())


def clean() -> dict[str, Any]:
    """An audit that meets the default policy with something to spare."""
    report = no_copies_found()
    report["calibrated"] |= {"copy_rate_ci": [0.0, 0.02]}
    report["verdict"]["noticeable_rate"] = 0.03
    return report


def stored(report: dict[str, Any], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(json.dumps(report), encoding="utf-8")
    return folder / "report.json"


def result(report: dict[str, Any], **clause: Any) -> str:
    (found,) = [c for c in apply_policy(report, OFF | clause).clauses if c.result != "off"]
    return found.result


def put(report: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    *path, key = place.split(".")
    holder = report
    for step in path:
        holder = holder[step]
    holder[key] = value
    return report


def test_clean_report_passes_the_default_policy():
    decision = apply_policy(clean(), read_policy())

    assert decision.status == "pass"
    assert "max_gap_auc" not in decision.decided_by


def test_each_clause_decides_alone():
    """Everything else being met, each clause of the default policy can stop a set, and is named for it."""
    breaking = {
        "verdicts": [("verdict.status", "copies_found", "fail"), ("verdict.status", "inconclusive", "inconclusive")],
        "max_copy_rate": [
            ("calibrated.copy_rate_ci", [0.11, 0.2], "fail"),
            ("calibrated.copy_rate_ci", [0.0, 0.11], "inconclusive"),
        ],
        "max_residual_rate": [
            ("release", {"residual_rate_ci": [0.11, 0.2]}, "fail"),
            ("release", {"residual_rate_ci": [0.01, 0.11]}, "inconclusive"),
        ],
        "max_noticeable_rate": [("verdict.noticeable_rate", 0.16, "inconclusive")],
        "max_fdr_list": [("calibrated.fdr.n_copies", 1, "fail")],
        "max_near_identical": [("calibrated.n_near_identical", 1, "fail")],
        "min_recall": [("power_summary.working_recall", 0.799, "inconclusive")],
        "min_validation_patients": [("sets.validation.n_patients", None, "inconclusive")],
        "max_unreadable": [("sets.synthetic.n_unreadable", 1, "inconclusive")],
        "max_shared_images": [("sets.leaks.shared_images", 1, "fail")],
        "max_shared_patients": [("sets.leaks.shared_patients", 1, "fail")],
    }
    assert set(breaking) == {name for name, limit in read_policy().items() if limit is not None}
    for name, cases in breaking.items():
        for place, value, status in cases:
            decision = apply_policy(put(clean(), place, value), read_policy())
            # what would have been noticed is stated with a clean verdict only
            also = ("max_noticeable_rate",) if value == "inconclusive" else ()
            assert (decision.status, decision.decided_by) == (status, (name, *also)), place


@pytest.mark.parametrize(
    ("clause", "place", "at", "beyond", "expected"),
    [
        ({"max_noticeable_rate": 0.05}, "verdict.noticeable_rate", 0.05, 0.0501, "unknown"),
        ({"max_fdr_list": 3}, "calibrated.fdr.n_copies", 3, 4, "fail"),
        ({"max_near_identical": 0}, "calibrated.n_near_identical", 0, 1, "fail"),
        ({"min_recall": 0.9}, "power_summary.working_recall", 0.9, 0.8999, "unknown"),
        ({"min_training_patients": 500}, "sets.training.n_patients", 500, 499, "fail"),
        ({"max_gap_auc": 0.8}, "controls.gap_auc", 0.8, 0.8001, "unknown"),
        ({"max_unreadable": 5}, "sets.synthetic.n_unreadable", 5, 6, "unknown"),
        ({"max_shared_images": 2}, "sets.leaks.shared_images", 2, 3, "fail"),
        ({"max_shared_patients": 0}, "sets.leaks.shared_patients", 0, 1, "fail"),
    ],
)
def test_limit_itself_is_met_and_what_is_not_known_never_passes(clause, place, at, beyond, expected):
    assert result(put(clean(), place, at), **clause) == "pass"
    assert result(put(clean(), place, beyond), **clause) == expected
    assert result(put(clean(), place, None), **clause) == "unknown"


@pytest.mark.parametrize(
    ("ends", "expected"),
    [([0, 0.1], "pass"), ([0.1, 0.2], "unknown"), ([0, 0.1001], "unknown"), ([0.1001, 0.3], "fail"), (None, "unknown")],
)
def test_interval_fails_only_where_all_of_it_lies_beyond_the_limit(ends, expected):
    assert result(put(clean(), "calibrated.copy_rate_ci", ends), max_copy_rate=0.1) == expected


def test_empty_list_that_could_not_have_named_anything_is_unknown():
    report = few_patients()
    assert report["calibrated"]["fdr"]["smallest_list"] > report["sets"]["synthetic"]["n_images"]

    assert result(report, max_fdr_list=0) == "unknown"


def test_label_with_the_fewest_patients_counts():
    assert result(labels_on_reconstructions(), min_validation_patients=12) == "pass"
    decision = apply_policy(labels_on_reconstructions(), OFF | {"min_validation_patients": 13})
    assert "found 12 of label ill" in str(decision)
    assert decision.status == "inconclusive"


def test_a_policy_of_what_only_a_release_has_decides_nothing_of_an_audit():
    decision = apply_policy(clean(), OFF | {"max_residual_rate": 0.1})
    assert decision.status == "inconclusive"
    assert "no clause looks at such a report" in str(decision)


RESULTS = ("pass", "fail", "unknown", "off")


@given(st.lists(st.sampled_from(RESULTS), min_size=1))
def test_a_failure_outweighs_the_unknown_which_outweighs_a_pass(results):
    decision = Decision(tuple(Clause(str(i), "", "", found) for i, found in enumerate(results)))

    looked = set(results) - {"off"}
    expected = "fail" if "fail" in looked else "inconclusive" if "unknown" in looked or not looked else "pass"
    assert decision.status == expected
    assert {results[int(name)] for name in decision.decided_by} <= {{"inconclusive": "unknown"}.get(expected, expected)}


def leaves(value: Any, path: str = "") -> Iterator[str]:
    for key, inner in value.items():
        yield from leaves(inner, f"{path}{key}.") if isinstance(inner, dict) else [f"{path}{key}"]


JUDGED = {
    "verdict.noticeable_rate",
    "calibrated.copy_rate_ci",
    "calibrated.fdr.n_copies",
    "calibrated.fdr.smallest_list",
    "calibrated.n_near_identical",
    "power_summary.working_recall",
    "sets.training.n_patients",
    "sets.validation.n_patients",
    "sets.synthetic.n_unreadable",
    "sets.leaks.shared_images",
    "sets.leaks.shared_patients",
    "controls.gap_auc",
}
NEVER_NULL = {"verdict.status", "verdict.reasons", "calibrated.alpha", "calibrated.strata"}
NEVER_NULL |= {f"sets.{role}.n_images" for role in ("training", "validation", "synthetic")}


def test_no_null_anywhere_turns_into_a_pass(tmp_path):
    """With a null in any place that a clause looks at, the gate no longer passes; elsewhere it does not matter."""
    policy = read_policy() | {"max_gap_auc": 0.9, "min_training_patients": 100}
    report = put(clean(), "calibrated.fdr.n_copies", 0)
    assert apply_policy(report, policy).status == "pass"
    stopped, refused = set(), set()
    for place in leaves({key: value for key, value in clean().items() if isinstance(value, dict)}):
        stored_report = stored(put(clean(), place, None), tmp_path)
        try:
            status = gate(stored_report, stored_policy(policy, tmp_path)).status
        except InputError:
            refused.add(place)
            continue
        if status != "pass":
            assert status == "inconclusive"
            stopped.add(place)
    assert stopped == JUDGED
    assert refused == NEVER_NULL


def stored_policy(policy: dict[str, Any], folder: Path) -> Path:
    (folder / "policy.yaml").write_text(yaml.safe_dump(policy), encoding="utf-8")
    return folder / "policy.yaml"


def run(capsys, *arguments: object) -> tuple[int, list[str], str]:
    status = main(["gate", *map(str, arguments)])
    output = capsys.readouterr()
    return status, output.out.splitlines(), output.err


def test_command_prints_a_line_per_clause_and_the_decision_last(tmp_path, capsys):
    status, lines, _ = run(capsys, stored(clean(), tmp_path))

    assert status == 0
    assert len(lines) == len(read_policy()) + 1
    assert lines[0] == "pass     verdicts: required no_copies_found; found no_copies_found"
    assert lines[1] == "pass     max_copy_rate: required 95 % interval at most 10 %; found 0 % to 2 %"
    assert "off      max_gap_auc: required nothing; found not looked at" in lines
    assert lines[-1] == "pass: decided by every clause that was asked"


@pytest.mark.parametrize(
    ("name", "status"), [("copies_found", 1), ("few_patients", 3), ("unknown_patients", 3), ("gap_not_measured", 3)]
)
def test_exit_status_is_the_decision(name, status, tmp_path, capsys):
    report = put(EXAMPLES[name](), "sets.leaks.shared_images", 0)  # which alone would fail it
    exit_status, lines, _ = run(capsys, stored(report, tmp_path))

    assert exit_status == status
    assert EXIT_STATUS[lines[-1].split(":")[0]] == status
    decided = re.search(r"decided by (.*)", lines[-1])[1].split(", ")
    marked = "fail" if status == 1 else "unknown"
    assert decided == [line.split()[1].rstrip(":") for line in lines[:-1] if line.startswith(marked)]


def test_value_does_not_read_like_the_limit_that_it_misses(tmp_path, capsys):
    _, lines, _ = run(capsys, stored(put(clean(), "power_summary.working_recall", 0.7996), tmp_path))

    assert "unknown  min_recall: required at least 80 %; found 79.96 %" in lines


def test_gate_takes_the_folder_of_a_real_audit(encoder_file, tmp_path, capsys):
    sets = {}
    for seed, role in enumerate(("training", "validation", "synthetic"), start=1):
        folder = write_folder(smooth_images(30, seed=seed), tmp_path / role)
        sets[role] = write_csv(folder, tmp_path / f"{role}.csv", [f"{role}{i}" for i in range(30)])
    audit(**sets, output_dir=tmp_path / "out", encoder=encoder_file)

    status, lines, _ = run(capsys, tmp_path / "out")

    assert status == 3
    assert "unknown  min_validation_patients: required at least 100; found 30" in lines


def test_clauses_left_out_keep_their_defaults(tmp_path):
    (tmp_path / "own.yaml").write_text("max_copy_rate: 0.5\nmin_recall: null\n", encoding="utf-8")

    policy = read_policy(tmp_path / "own.yaml")

    assert policy == read_policy() | {"max_copy_rate": 0.5, "min_recall": None}


def test_printed_policy_is_the_default_and_needs_no_report(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["gate", "--print-policy"])

    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    assert printed == default_policy()
    (tmp_path / "copied.yaml").write_text(printed, encoding="utf-8")
    assert read_policy(tmp_path / "copied.yaml") == read_policy()


def test_default_policy_explains_every_clause():
    for name in read_policy():
        assert re.search(rf"^#.*\n(max_shared_images: 0\n)?{name}:", default_policy(), re.M), name


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_copyrate: 0.1", r"unknown clause max_copyrate; did you mean max_copy_rate\?"),
        ("colour: red", r"unknown clause colour; known are verdicts, max_copy_rate"),
        ("max_copy_rate: 5", r"max_copy_rate: found 5; give a share from 0 to 1, such as 0.05 for 5 %, or null"),
        ("max_copy_rate: .nan", r"max_copy_rate: found nan; give a share"),
        ("max_copy_rate: true", r"max_copy_rate: found True; give a share"),
        ("max_copy_rate: '0.1'", r"max_copy_rate: found '0.1'; give a share"),
        ("max_fdr_list: 1.5", r"max_fdr_list: found 1.5; give a whole number"),
        ("max_fdr_list: -1", r"max_fdr_list: found -1; give a whole number"),
        ("max_gap_auc: 0.2", r"max_gap_auc: found 0.2; give an AUC from 0.5 to 1"),
        ("verdicts: no_copies_found", r"verdicts: found 'no_copies_found'; give a list of verdicts"),
        ("verdicts: [clean]", r"verdicts: found \['clean'\]; give a list of verdicts, of copies_found"),
        ("verdicts: []", r"verdicts: found \[\]; give a list"),
        ("max_copy_rate: 0.01\nmax_copy_rate: 0.5", r"max_copy_rate is there more than once; keep one"),
        ("", r"holds no clauses"),
        ("[1, 2]", r"holds no clauses"),
        ("max_copy_rate: [", r"is no YAML"),
        ("!!python/object/apply:os.system ['true']", r"is no YAML"),
        ("\n".join(f"{name}: null" for name in OFF), r"switches every clause off"),
    ],
)
def test_bad_policy_is_one_line_and_exit_2(text, message, tmp_path, capsys):
    (tmp_path / "own.yaml").write_text(text, encoding="utf-8")

    status, lines, error = run(capsys, stored(clean(), tmp_path), "--policy", tmp_path / "own.yaml")

    assert status == 2
    assert lines == []
    assert error.count("\n") == 1
    assert re.search(rf"^monai-memorization: .*own\.yaml: {message}", error)


def test_policy_that_is_missing_is_named(tmp_path, capsys):
    status, _, error = run(capsys, stored(clean(), tmp_path), "--policy", tmp_path / "none.yaml")

    assert status == 2
    assert "none.yaml: cannot be read" in error


def test_a_crash_is_never_a_pass(tmp_path, monkeypatch):
    monkeypatch.setattr("monai_memorization.gating.apply_policy", lambda *_: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["monai-memorization", "gate", str(stored(clean(), tmp_path))])

    with pytest.raises(ZeroDivisionError):  # which Python turns into exit status 1
        main()


def test_noticeable_rate_of_an_audit_that_found_copies_is_not_stated():
    report = copies_found()
    report["verdict"]["noticeable_rate"] = 0.01

    (found,) = [
        clause for clause in apply_policy(report, read_policy()).clauses if clause.name == "max_noticeable_rate"
    ]

    assert (found.result, found.found) == ("unknown", "not stated: with a clean verdict only")
