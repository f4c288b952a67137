# SPDX-License-Identifier: Apache-2.0
"""The gate: does a report meet a policy? For pipelines that must not hand out a synthetic set that does not."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from monai_memorization.errors import InputError
from monai_memorization.reporting.formats import NO_BREAK, count, decimal, percent
from monai_memorization.reporting.quantities import look_up
from monai_memorization.reporting.reading import read_report
from monai_memorization.reporting.sentences import VERDICTS
from monai_memorization.reporting.wording import calibration_role, fewest_patients, is_labelled

Result = Literal["pass", "fail", "unknown", "off"]
EXIT_STATUS = {"pass": 0, "fail": 1, "inconclusive": 3}


@dataclass(frozen=True)
class Clause:
    """One clause of a policy, applied to a report.

    Args:
        name: its key in the policy.
        required: what the policy asks for, in words.
        found: what the report says, in words.
        result: `pass`; `fail`, where the report shows that the set breaks the clause; `unknown`, where it cannot tell;
            `off`, where the policy does not ask.
    """

    name: str
    required: str
    found: str
    result: Result

    def __str__(self) -> str:
        """One line for a terminal."""
        return f"{self.result:<8} {self.name}: required {self.required}; found {self.found}".replace(NO_BREAK, " ")


@dataclass(frozen=True)
class Decision:
    """What the gate says.

    Args:
        clauses: all clauses, in the order of the default policy.
    """

    clauses: tuple[Clause, ...]

    @property
    def status(self) -> Literal["pass", "fail", "inconclusive"]:
        """`fail` for a clause that fails, else `inconclusive` for one that is unknown or if none looks, else `pass`."""
        results = {clause.result for clause in self.clauses}
        if "fail" in results:
            return "fail"
        return "pass" if results in ({"pass"}, {"pass", "off"}) else "inconclusive"

    @property
    def decided_by(self) -> tuple[str, ...]:
        """Names of the clauses that decided: those that fail, or those that are unknown, or all that were asked."""
        decisive = {"fail": "fail", "inconclusive": "unknown", "pass": "pass"}[self.status]
        return tuple(clause.name for clause in self.clauses if clause.result == decisive)

    def __str__(self) -> str:
        """One line per clause; the last says the decision and what decided it."""
        named = ", ".join(self.decided_by) or "nothing, as no clause looks at such a report"
        because = "every clause that was asked" if self.status == "pass" else named
        return "\n".join([*map(str, self.clauses), f"{self.status}: decided by {because}"])


def gate(report: str | Path, policy: str | Path | None = None) -> Decision:
    """Hold a report against a policy.

    Args:
        report: report.json or its folder.
        policy: YAML file; None for the default policy (`default_policy`).

    Returns:
        The decision, with every clause.

    Raises:
        InputError: for a report or a policy that cannot be read or is not one.
    """
    return apply_policy(read_report(report), read_policy(policy))


def apply_policy(report: Mapping[str, Any], policy: Mapping[str, Any]) -> Decision:
    """Hold the content of a report against a policy.

    Args:
        report: as `read_report` returns it.
        policy: as `read_policy` returns it.

    Returns:
        The decision, with every clause.
    """
    clauses = []
    for name, (_, find) in _CLAUSES.items():
        limit = policy[name]
        clauses.append(
            Clause(name, "nothing", "not looked at", "off") if limit is None else Clause(name, *find(report, limit))
        )
    return Decision(tuple(clauses))


def default_policy() -> str:
    """Return the text of the default policy, a YAML file that explains itself."""
    return resources.files("monai_memorization").joinpath("policy.yaml").read_text(encoding="utf-8")


def read_policy(path: str | Path | None = None) -> dict[str, Any]:
    """Read a policy; a clause that it leaves out keeps its default.

    Args:
        path: YAML file; None for the default policy.

    Returns:
        What is asked, by the name of the clause; None for a clause that is off.

    Raises:
        InputError: a file that cannot be read, an unknown or repeated clause, a limit that no report could be held to.
    """
    if path is None:
        return dict(yaml.safe_load(default_policy()))
    try:
        text = Path(path).read_text(encoding="utf-8")
        tree, content = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a policy file (YAML)") from error
    except (yaml.YAMLError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: is no YAML ({reason}); start from `gate --print-policy`") from None
    if not isinstance(content, dict) or not content:
        raise InputError(f"{path}: holds no clauses, such as max_copy_rate: 0.1; start from `gate --print-policy`")
    written = [key.value for key, _ in tree.value] if isinstance(tree, yaml.MappingNode) else []
    if repeated := [name for name in written if written.count(name) > 1]:
        raise InputError(f"{path}: {repeated[0]} is there more than once; keep one")
    return _complete(content, str(path))


def _complete(content: Mapping[Any, Any], source: str) -> dict[str, Any]:
    """Check every clause that is given and add the defaults of the others."""
    for name, limit in content.items():
        if name not in _CLAUSES:
            near = difflib.get_close_matches(str(name), _CLAUSES, n=1)
            meant = f"did you mean {near[0]}?" if near else f"known are {', '.join(_CLAUSES)}"
            raise InputError(f"{source}: unknown clause {name}; {meant}")
        if limit is not None and not _CLAUSES[name].kind.accepts(limit):
            raise InputError(f"{source}: {name}: found {limit!r}; give {_CLAUSES[name].kind.wanted}, or null for off")
    limits = read_policy() | dict(content)
    if all(limit is None for limit in limits.values()):
        raise InputError(f"{source}: switches every clause off, so that any report would pass; ask for something")
    return limits


class _Kind(NamedTuple):
    """Which limits a clause takes: whether one is accepted, what is wanted, and how limits and values are written."""

    accepts: Callable[[Any], bool]
    wanted: str
    limit: Callable[[Any], str] = str
    value: Callable[[Any, Any], str | None] = lambda value, _: count(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_RATE = _Kind(
    lambda value: _is_number(value) and 0 <= value <= 1,
    "a share from 0 to 1, such as 0.05 for 5 %",
    lambda limit: f"{100 * limit:.6g} %",
    percent,
)
_AUC = _Kind(
    lambda value: _is_number(value) and 0.5 <= value <= 1,
    "an AUC from 0.5 to 1",
    lambda limit: f"{limit:.6g}",
    lambda value, limit: decimal(value, limit=limit),
)
_COUNT = _Kind(lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= 0, "a whole number")
_VERDICTS = _Kind(
    lambda value: isinstance(value, list) and len(value) > 0 and all(status in VERDICTS for status in value),
    f"a list of verdicts, of {', '.join(VERDICTS)}",
)


class _Found(NamedTuple):
    """What a report says on a clause: the requirement and the finding in words, and whether it is met."""

    required: str
    found: str
    result: Result


class _Rule(NamedTuple):
    """A clause: which limits it takes, and how a report is held against one."""

    kind: _Kind
    find: Callable[[Mapping[str, Any], Any], _Found]


def _most(kind: _Kind, place: str, otherwise: Result) -> _Rule:
    """Ask that the value at a place of the report, `section.key`, is at most the limit."""
    return _Rule(kind, lambda report, limit: _bound(kind, look_up(report, place), limit, otherwise, least=False))


def _least(kind: _Kind, place: str, otherwise: Result) -> _Rule:
    """Ask that the value at a place of the report is at least the limit."""
    return _Rule(kind, lambda report, limit: _bound(kind, look_up(report, place), limit, otherwise, least=True))


def _bound(kind: _Kind, value: Any, limit: Any, otherwise: Result, *, least: bool) -> _Found:
    required = f"at {'least' if least else 'most'} {kind.limit(limit)}"
    if value is None:
        return _Found(required, "not known", "unknown")
    met = value >= limit if least else value <= limit
    return _Found(required, kind.value(value, limit) or "", "pass" if met else otherwise)


def _noticeable_rate(report: Mapping[str, Any], limit: float) -> _Found:
    clean = report["verdict"]["status"] == "no_copies_found"
    found = _bound(_RATE, look_up(report, "verdict.noticeable_rate"), limit, "unknown", least=False)
    return found if clean else found._replace(found="not stated: with a clean verdict only", result="unknown")


def _verdicts(report: Mapping[str, Any], accepted: list[str]) -> _Found:
    status = report["verdict"]["status"]
    missed: Result = "unknown" if status == "inconclusive" else "fail"
    found = ", ".join([status, *report["verdict"]["reasons"]])
    return _Found(" or ".join(accepted), found, "pass" if status in accepted else missed)


def _copy_rate(report: Mapping[str, Any], limit: float) -> _Found:
    return _interval(f"95 % interval at most {_RATE.limit(limit)}", report["calibrated"]["copy_rate_ci"], limit)


def _interval(required: str, ends: Sequence[float] | None, limit: float) -> _Found:
    if ends is None:
        return _Found(required, "not known", "unknown")
    result: Result = "pass" if ends[1] <= limit else "fail" if ends[0] > limit else "unknown"
    return _Found(required, " to ".join(percent(end, limit) or "" for end in ends), result)


def _residual_rate(report: Mapping[str, Any], limit: float) -> _Found:
    required = f"95 % interval at most {_RATE.limit(limit)}"
    if "release" not in report:
        return _Found(required, "not the report of a release", "off")
    return _interval(required, report["release"]["residual_rate_ci"], limit)


def _fdr_list(report: Mapping[str, Any], limit: int) -> _Found:
    fdr, n_synthetic = report["calibrated"]["fdr"], report["sets"]["synthetic"]["n_images"]
    found = _bound(_COUNT, fdr["n_copies"], limit, "fail", least=False)
    if fdr["n_copies"] == 0 and (fdr["smallest_list"] is None or fdr["smallest_list"] > n_synthetic):
        return found._replace(found="0, as so few validation patients allow no list", result="unknown")
    return found


def _validation_patients(report: Mapping[str, Any], limit: int) -> _Found:
    stratum, known = fewest_patients(report), report["sets"][calibration_role(report)]["n_patients"] is not None
    found = _bound(_COUNT, stratum["n_patients"] if known else None, limit, "unknown", least=True)
    label = f" of label {stratum['label']}" if known and is_labelled(report) else ""
    return found._replace(found=found.found + label)


_CLAUSES = {
    "verdicts": _Rule(_VERDICTS, _verdicts),
    "max_copy_rate": _Rule(_RATE, _copy_rate),
    "max_residual_rate": _Rule(_RATE, _residual_rate),
    "max_noticeable_rate": _Rule(_RATE, _noticeable_rate),
    "max_fdr_list": _Rule(_COUNT, _fdr_list),
    "max_near_identical": _most(_COUNT, "calibrated.n_near_identical", "fail"),
    "min_recall": _least(_RATE, "power_summary.working_recall", "unknown"),
    "min_validation_patients": _Rule(_COUNT, _validation_patients),
    "min_training_patients": _least(_COUNT, "sets.training.n_patients", "fail"),
    "max_gap_auc": _most(_AUC, "controls.gap_auc", "unknown"),
    "max_unreadable": _most(_COUNT, "sets.synthetic.n_unreadable", "unknown"),
    "max_shared_images": _most(_COUNT, "sets.leaks.shared_images", "fail"),
    "max_shared_patients": _most(_COUNT, "sets.leaks.shared_patients", "fail"),
}
