# SPDX-License-Identifier: Apache-2.0
"""The quantities of a report, each with what stands beside it: its interval, or what it would be by chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from monai_memorization.reporting.formats import (
    correlation,
    count,
    decimal,
    decimal_interval,
    percent,
    percent_interval,
    say,
)
from monai_memorization.reporting.sentences import false_alarms_expected, near_identical_by_chance

Report = Mapping[str, Any]


class Entry(NamedTuple):
    """A value of one report, and its interval or what it would be by chance."""

    value: str | None
    beside: str | None


class Quantity(NamedTuple):
    """One quantity: its name, the word of the glossary that explains it, and how it is read from a report.

    `explained` stands in place of the glossary's line where several quantities share a word.
    """

    name: str
    term: str
    cell: Callable[[Report], Entry]
    explained: str = ""


def look_up(report: Report, place: str) -> Any:
    """Return the value at a place of a report, `section.key`."""
    value: Any = report
    for key in place.split("."):
        value = value[key]
    return value


def _share(part: str, rate: str, whole: str) -> Callable[[Report], str | None]:
    """Write `12 of 1,000 (1.2 %)` from three places of a report, each `section.key`."""

    def written(report: Report) -> str | None:
        rates = say(" ({})", percent(look_up(report, rate))) if rate else ""
        return say("{} of {}{}", count(look_up(report, part)), count(look_up(report, whole)), rates)

    return written


_N_TRAINING, _N_SYNTHETIC = "sets.training.n_images", "sets.synthetic.n_images"
_CANDIDATES = _share("calibrated.n_copies", "calibrated.flagged_rate", _N_SYNTHETIC)
_LISTED = _share("calibrated.fdr.n_copies", "", _N_SYNTHETIC)
_MATCHED = _share("calibrated.n_mem", "", _N_TRAINING)
_N_MEM = _share("paper_protocol.n_mem", "paper_protocol.mem_rate", _N_TRAINING)
_N_COPIES = _share("paper_protocol.n_copies", "paper_protocol.copy_rate", _N_SYNTHETIC)

QUANTITIES: dict[str, list[Quantity]] = {
    "Synthetic images": [
        Quantity(
            "Copy candidates",
            "copy candidate",
            lambda r: Entry(_CANDIDATES(r), say("{} would be by chance", count(false_alarms_expected(r)))),
        ),
        Quantity(
            "Copy rate, overlooked copies not counted",
            "copy rate",
            lambda r: Entry(percent(r["calibrated"]["copy_rate"]), percent_interval(r["calibrated"]["copy_rate_ci"])),
        ),
        Quantity(
            "Copy rate, corrected for overlooked copies",
            "copy rate at power",
            lambda r: Entry(percent(r["calibrated"]["copy_rate_at_power"]), "estimate"),
        ),
        Quantity(
            "Copy rate that would have been noticed",
            "noticeable copy rate",
            lambda r: (
                Entry(percent(r["verdict"]["noticeable_rate"]), "")
                if r["verdict"]["status"] == "no_copies_found"
                else Entry("not stated", "as the verdict is not clean")
            ),
        ),
        Quantity(
            "FDR list",
            "FDR list",
            lambda r: Entry(_LISTED(r), say("at most {} false on average", percent(r["calibrated"]["fdr"]["q"]))),
        ),
        Quantity(
            "Near-identical pairs",
            "near-identical pair",
            lambda r: Entry(count(r["calibrated"]["n_near_identical"]), near_identical_by_chance(r)),
        ),
    ],
    "Training images given back": [
        Quantity(
            "Training images matched by a copy candidate",
            "memorized training image",
            lambda r: Entry(
                _MATCHED(r), say("{} expected from false alarms", count(r["calibrated"]["n_mem_expected_false"]))
            ),
        ),
        Quantity(
            "Share of the training set memorized",
            "memorized training image",
            lambda r: Entry(percent(r["calibrated"]["mem_rate"]), "false alarms taken off"),
            "Training images matched by a copy candidate, less those expected from false alarms, as a share of all.",
        ),
        Quantity(
            "Training images matched by the FDR list",
            "FDR list",
            lambda r: Entry(
                count(r["calibrated"]["fdr"]["n_mem"]),
                say("{} expected from false alarms", count(r["calibrated"]["fdr"]["n_mem_expected_false"])),
            ),
            "Training images nearest to an image of that list, each counted once.",
        ),
        Quantity(
            "Least number memorized by the generator",
            "least number memorized",
            lambda r: Entry(count(r["calibrated"]["n_mem_total_bound"]), "lower bound, on average"),
        ),
    ],
    "How the flag is set": [
        Quantity(
            "False-alarm level attained",
            "false-alarm rate",
            lambda r: Entry(
                percent(r["calibrated"]["alpha_attained"]), percent_interval(r["calibrated"]["false_alarm_rate_ci"])
            ),
        ),
        Quantity("Threshold", "threshold", lambda r: Entry(correlation(r["calibrated"]["threshold"]), "score")),
        Quantity(
            "Recall of planted copies",
            "recall",
            lambda r: Entry(
                percent(r["power_summary"]["working_recall"]), "the lowest of the means below and of the autoencoder's"
            ),
        ),
    ],
    "Controls": [
        Quantity(
            "Gap between synthetic and calibration images",
            "gap AUC",
            lambda r: Entry(decimal(r["controls"]["gap_auc"]), decimal_interval(r["controls"]["gap_auc_ci"])),
        ),
        Quantity(
            "Nearest real image is a training image",
            "nearest-in-training share",
            lambda r: Entry(
                percent(r["controls"]["nearest_in_training"]),
                say("{} of held-out real images", percent(r["controls"]["nearest_in_training_real"])),
            ),
        ),
    ],
    "Paper protocol, for comparison with the literature": [
        Quantity(
            "Training images memorized, N_mem",
            "paper protocol",
            lambda r: Entry(_N_MEM(r), say("{} if nothing were copied", percent(r["paper_protocol"]["mem_null_rate"]))),
            "Training images with a synthetic image above τ. Below: the null rate, by a formula that is only a guide.",
        ),
        Quantity(
            "Synthetic images that are copies, N_copies",
            "paper protocol",
            lambda r: Entry(
                _N_COPIES(r), say("{} if nothing were copied", percent(r["paper_protocol"]["copy_null_rate"]))
            ),
            "Synthetic images with a training image above τ. Below: the null rate, measured on validation images.",
        ),
        Quantity(
            "Share memorized at matched sizes",
            "size-matched rate",
            lambda r: Entry(percent(r["paper_protocol"]["mem_rate_matched"]), "about 5 % if nothing were copied"),
        ),
        Quantity("Threshold τ", "tau", lambda r: Entry(correlation(r["paper_protocol"]["tau"]), "similarity")),
    ],
}
