# SPDX-License-Identifier: Apache-2.0
"""Two reports held against each other: what may be compared, what changed, and how sure that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from monai_memorization.reporting.formats import NO_BREAK, count, percent, plain, points_interval, say, words
from monai_memorization.reporting.quantities import QUANTITIES, Entry, Report
from monai_memorization.reporting.wording import calibration_role, recall_group
from monai_memorization.statistics.difference import FlaggedSet, copy_rate_difference_ci
from monai_memorization.statistics.strata import recorded_strata


@dataclass(frozen=True)
class Row:
    """One quantity in both reports.

    Args:
        name: as people read it.
        term: word of the glossary that explains it.
        before: of the first report.
        after: of the second.
        explained: a line of its own in place of the glossary's.
        difference: what can be said about the change; None where the reports hold no error of the difference.
    """

    name: str
    term: str
    before: Entry
    after: Entry
    explained: str = ""
    difference: str | None = None


def same_threshold(before: Report, after: Report) -> bool:
    """Whether both audits had the same training and validation images, encoder and alpha, and so the same threshold."""
    role = calibration_role(before)
    told = ("label", "n_images", "n_patients", "images_per_patient")
    strata = [
        [[s.get(key) for key in told] for s in _strata(*reports)] for reports in ((before, after), (after, before))
    ]
    return (
        all(_same_images(before, after, role) for role in ("training", role))
        and role == calibration_role(after)
        and bool(_same_encoder(before, after))
        and before["calibrated"]["alpha"] == after["calibrated"]["alpha"]
        and strata[0] == strata[1]
    )


def copy_rate_change(before: Report, after: Report) -> tuple[float, float] | None:
    """Interval of the copy rate after less that before, where both audits share their threshold; else None.

    None too where a set is what a filter left: its flagged share says nothing of its copies, and its images may be
    among those of the other set.
    """
    if not same_threshold(before, after) or _same_images(before, after, "synthetic") is not False:
        return None
    if _were_filtered(before, after):
        return None
    first, second = _flagged(before, after), _flagged(after, before)
    if first is None or second is None:
        return None
    return copy_rate_difference_ci(first, second, before["calibrated"]["alpha"])


def headline(before: Report, after: Report) -> str:
    """Say in one or two sentences whether the copy rate changed, claiming no more than the reports hold."""
    if _same_images(before, after, "synthetic"):
        return (
            "Both audits looked at the same synthetic images: whatever differs comes from the audit, not from the "
            "generator."
        )
    if _were_filtered(before, after):
        return (
            "Whether the copy rate changed is not known, as a set is what a filter left: the copies in it are those "
            "that the filter overlooked."
        )
    if ends := copy_rate_change(before, after):
        low, high = (round(end, 4) for end in ends)  # an end that is written as 0 shows no change
        change = "fell" if high < 0 else "rose" if low > 0 else None
        start = f"The copy rate {change}" if change else "It is not shown that the copy rate changed"
        return f"{start}: the rate after less the rate before lies between {_between(ends)} (95{NO_BREAK}% interval)."
    apart = _apart(before["calibrated"]["copy_rate_ci"], after["calibrated"]["copy_rate_ci"])
    if apart is None:
        return "Whether the copy rate changed is not known, as one of the reports holds no interval of it."
    if not apart:
        return (
            "It is not shown that the copy rate changed: the intervals of the two copy rates overlap. The audits had "
            "no common threshold, so their difference has no interval."
        )
    return (
        "The copy rates differ: their intervals do not overlap. Equal rates would give such intervals in at most one "
        "of ten comparisons, however the audits depend on each other."
    )


def warnings(before: Report, after: Report) -> list[str]:
    """Say what differs between the audits besides the synthetic images, and what that does to the comparison."""
    found = [text for holds, text in _differences(before, after) if holds]
    unknown = [name for role, name in _SETS.items() if _same_images(before, after, role) is None]
    if _same_encoder(before, after) is None:
        unknown.append("encoder")
    if unknown:
        found.append(f"Whether both audits had the same {' and '.join(unknown)} is not known: a report lacks its hash.")
    return found


def tables(before: Report, after: Report) -> dict[str, list[Row]]:
    """Put every quantity of both reports side by side.

    Returns:
        Rows, by the caption of their table.
    """
    rates, gaps = ([r[section][key] for r in (before, after)] for section, key in _INTERVALS)
    overlap = None if _were_filtered(before, after) else _overlap(*rates)
    differences = {
        "Copy rate, overlooked copies not counted": say(
            f"{{}} (95{NO_BREAK}% interval)", points_interval(copy_rate_change(before, after))
        )
        or overlap,
        "Gap between synthetic and calibration images": _overlap(*gaps),
    }
    return {
        caption: [
            Row(q.name, q.term, q.cell(before), q.cell(after), q.explained, differences.get(q.name)) for q in quantities
        ]
        for caption, quantities in QUANTITIES.items()
    }


def recalls(before: Report, after: Report) -> list[Row]:
    """Put the recalls of both reports side by side: the mean over the strengths of each family, by group."""
    groups = {
        "seen": "Alterations that the encoder saw in training",
        "unseen": "Alterations that it never saw",
        "partial": "Partial copies, which the verdict leaves out",
    }
    rows = []
    for group, name in groups.items():
        cells = [_recalls_of(report, group) for report in (before, after)]
        first, second = (Entry(percent(report["power_summary"][group]), "mean") for report in (before, after))
        rows.append(Row(name, "recall", first, second))
        for family in dict.fromkeys(name for of_report in cells for name in of_report):
            first, second = (Entry(percent(of_report.get(family)), None) for of_report in cells)
            rows.append(Row(words(family), "", first, second))
    return rows


def _recalls_of(report: Report, group: str) -> dict[str, float | None]:
    recalls: dict[str, list[float]] = {}
    for cell in report["power"]:
        if recall_group(cell) == group and cell["recall"] is not None:
            recalls.setdefault(cell["family"], []).append(cell["recall"])
    return {family: sum(values) / len(values) for family, values in recalls.items()}


# words of the glossary that the page's sentences use besides those of its rows
TERMS = {"training set", "validation set", "synthetic set", "encoder", "alpha", "p-value", "planted copy"}
TERMS |= {"confidence interval", "honest image", "score", "similarity"}
_INTERVALS = (("calibrated", "copy_rate_ci"), ("controls", "gap_auc_ci"))
_SETS = {"training": "training set", "validation": "validation set"}


def _differences(before: Report, after: Report) -> list[tuple[bool, str]]:
    calibrated = [report["calibrated"] for report in (before, after)]
    alphas, levels = [c["alpha"] for c in calibrated], [c["fdr"]["q"] for c in calibrated]
    labels = [[stratum["label"] for stratum in c["strata"]] for c in calibrated]
    sizes = [report["sets"]["synthetic"]["n_images"] for report in (before, after)]
    roles = [calibration_role(report) for report in (before, after)]
    return [
        (
            _same_images(before, after, "training") is False,
            "The training sets differ: rates are shares of other images, and the encoders may see copies of one set "
            "better than of the other.",
        ),
        (
            _same_images(before, after, "validation") is False,
            "The validation sets differ: each brings a false-alarm rate of its own, so part of any change is chance.",
        ),
        (
            roles[0] != roles[1],
            "Only one of the audits was calibrated on reconstructions of the validation images: the thresholds mean "
            "different things.",
        ),
        (
            roles[0] == roles[1] != "validation" and _same_images(before, after, roles[0]) is not True,
            "Each audit was calibrated on reconstructions by its own autoencoder: the thresholds differ.",
        ),
        (
            _same_encoder(before, after) is False,
            "The encoders differ: scores, thresholds and recall are on different scales.",
        ),
        (
            alphas[0] != alphas[1],
            f"The audits used different levels alpha, {alphas[0]:g} and {alphas[1]:g}: numbers of copy candidates and "
            "of their matches cannot be compared.",
        ),
        (
            levels[0] != levels[1],
            f"The FDR lists were made at different levels q, {plain(levels[0])} and {plain(levels[1])}.",
        ),
        (labels[0] != labels[1], "p-values were taken within other labels."),
        (
            sizes[0] != sizes[1],
            f"The synthetic sets differ in size, {count(sizes[0])} and {count(sizes[1])} images: numbers of training "
            "images matched, and all counts of the paper protocol, grow with the size. Compare rates, or draw as many.",
        ),
    ]


def _same(before: object, after: object) -> bool | None:
    """Whether two hashes agree; None where one is not known."""
    return None if before is None or after is None else before == after


def _same_images(before: Report, after: Report, role: str) -> bool | None:
    return _same(*((report["provenance"]["image_list_sha256"] or {}).get(role) for report in (before, after)))


def _same_encoder(before: Report, after: Report) -> bool | None:
    return _same(*(report["provenance"]["encoder_sha256"] for report in (before, after)))


def _were_filtered(*reports: Report) -> bool:
    """Whether a set is what a filter left; that of a release is judged by a detector that did not filter it."""
    settings = [r["provenance"].get("settings") or {} for r in reports if "release" not in r]
    return any(given.get("filtered") for given in settings)


def _strata(report: Report, other: Report) -> list[dict[str, Any]]:
    """Return the strata of a report; what an older one does not tell is taken from the other, of the same images."""
    others = {s["label"]: s for s in other["calibrated"]["strata"]}
    return [others.get(s["label"], {}) | s for s in report["calibrated"]["strata"]]


def _flagged(report: Report, other: Report) -> FlaggedSet | None:
    n_copies = report["calibrated"]["n_copies"]
    strata = recorded_strata(_strata(report, other))
    return None if n_copies is None else FlaggedSet(n_copies, report["sets"]["synthetic"]["n_images"], strata)


def _apart(before: Sequence[float] | None, after: Sequence[float] | None) -> bool | None:
    if before is None or after is None:
        return None
    return before[1] < after[0] or after[1] < before[0]


def _overlap(before: Sequence[float] | None, after: Sequence[float] | None) -> str | None:
    apart = _apart(before, after)
    return None if apart is None else "intervals do not overlap" if apart else "intervals overlap"


def _between(ends: tuple[float, float]) -> str:
    return (points_interval(ends) or "").replace(" to ", " and ")
