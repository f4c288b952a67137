# SPDX-License-Identifier: Apache-2.0
"""Release: draw, audit, drop and draw again until enough images pass; then have another detector judge them."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monai_memorization.auditing import audit, choose_device
from monai_memorization.detector.encoder import WIDTHS, load_encoder
from monai_memorization.detector.encoder_training import obtain_encoder
from monai_memorization.detector.shards import hash_weights
from monai_memorization.errors import InputError
from monai_memorization.files import check_writable, new_folder, write_text
from monai_memorization.filtering import DATA_LIST, read_suspected, write_data_list
from monai_memorization.gating import Decision, apply_policy, read_policy
from monai_memorization.generation.draws import Draw
from monai_memorization.images.division import check_disjoint, split
from monai_memorization.images.monitored import leave_out_monitored, warn_of_forgotten
from monai_memorization.images.roles import originals
from monai_memorization.images.sets import ImageSet, read_image_set, write_image_set
from monai_memorization.judging import Detector, describe_judge, describe_residual, passing_images
from monai_memorization.ranks import several_processes
from monai_memorization.reporting.pages import write_report_page
from monai_memorization.reporting.report import write_report
from monai_memorization.statistics.conformal import as_fraction
from monai_memorization.statistics.verdict import restate

logger = logging.getLogger(__name__)

# the judge has to overlook other copies than the filter does: fewer and wider layers
JUDGE_WIDTHS = (24, 48, 96, 192)
N_PLANTS = 256
MARK = "release.work"


@dataclass(frozen=True)
class Release:
    """What came of it.

    Args:
        n_drawn: images drawn.
        n_passed: of those, images that passed the filter.
        report: content of report.json; None where it gave up.
        decision: of the gate; None where it gave up.
    """

    n_drawn: int
    n_passed: int
    report: dict[str, Any] | None = None
    decision: Decision | None = None

    @property
    def written(self) -> bool:
        """Whether images were handed out: only where the gate lets them pass."""
        return self.decision is not None and self.decision.status == "pass"


def release(
    draw: Draw,
    n: int,
    training: str | Path,
    validation: str | Path,
    output_dir: str | Path,
    *,
    work_dir: str | Path | None = None,
    limit: int | None = None,
    policy: str | Path | None = None,
    encoder: str | Path | None = None,
    judge: str | Path | None = None,
    reconstructed_validation: str | Path | None = None,
    reconstructed_training: str | Path | None = None,
    monitoring: str | Path | None = None,
    alpha: float = 0.05,
    q: float = 0.05,
    seed: int = 0,
    device: str = "auto",
    skip_unreadable: bool = False,
    clip: Sequence[float] | None = None,
) -> Release:
    """Draw until ``n`` images pass an audit, judge them by another audit, and write them if the gate lets them pass.

    The validation patients are divided: one half calibrates the filter, the other half the judge. The judge is another
    network with another seed; it is calibrated on those validation images that pass the filter, as an honest image
    among those left has passed it too.

    Args:
        draw: writes the images of given seeds, which are 0, 1, 2, ...; see :mod:`monai_memorization.generation.draws`.
            That of seed 0 is drawn once beforehand, to see that it can be.
        n: images wanted.
        training: images that the generator was trained on.
        validation: images of other patients, seen by neither generator nor encoder.
        output_dir: a new or empty folder; takes report.json and report.html, and if the gate lets them pass
            synthetic.json and images/. All of it may be handed out.
        work_dir: a new or empty folder, or that of an earlier release, whose content is replaced but for the encoders;
            takes what stays inside. None for ``output_dir`` with "_work" behind its name.
        limit: most images drawn; None for ten times ``n``.
        policy: of the gate; None for the default.
        encoder: weights of the filter's encoder; None trains one.
        judge: weights of the judge's encoder; None trains one.
        reconstructed_validation: as of the audit.
        reconstructed_training: as of the audit.
        monitoring: as of the audit.
        alpha: level of both audits.
        q: level of their FDR lists, at most alpha.
        seed: of everything random but the images.
        device: where the encoders run, and where images are compared.
        skip_unreadable: leave out images that cannot be read.
        clip: as of the audit.

    Returns:
        What came of it. If fewer than ``n`` of ``limit`` images passed, it gave up: ``output_dir`` is not made.

    Raises:
        InputError: for bad input.
    """
    if several_processes():
        raise InputError("WORLD_SIZE: found several processes, but a release runs in one; start it without torchrun")
    output, work = Path(output_dir), Path(work_dir or f"{output_dir}_work")
    limit = 10 * n if limit is None else limit
    if not 1 <= n <= limit:
        raise InputError(f"n: found {n} with a limit of {limit}; give at least 1, and a limit of at least that many")
    common: dict[str, Any] = {"alpha": alpha, "q": q, "seed": seed, "device": choose_device(device)}
    common |= {"n_plants": N_PLANTS, "skip_unreadable": skip_unreadable, "clip": clip}
    common |= {"training": training, "reconstructed_training": reconstructed_training}
    for name, level in (("alpha", alpha), ("q", q)):
        as_fraction(level, name)
    if q > alpha:
        raise InputError(
            f"q: found {q:g}, above alpha {alpha:g}, by which images are left out; give a q of at most that"
        )
    if output.resolve() in (work.resolve(), *work.resolve().parents):
        raise InputError(f"work_dir: {work} lies in {output}, which is to be handed out; name a folder outside of it")
    wanted, training_set = read_policy(policy), read_image_set(training, "training")
    halves = _halves(training_set, validation, reconstructed_validation, monitoring, encoder, seed)
    _warn_of_few(halves["judge"]["validation"], wanted["min_validation_patients"])
    _clear(output, work)
    # whatever is wrong with given encoders or the generator shows before encoders are trained, and what is wrong with
    # the real images before hours of drawing
    for path in (encoder, judge):
        if path is not None:
            load_encoder(path)
    draw(range(1), work / "trial")
    shutil.rmtree(work / "trial")
    encoders = _obtain_encoders(training_set, {"filter": encoder, "judge": judge}, work, common)
    filtering = common | {"encoder": encoders["filter"]} | _listed(halves["filter"], work / "filter_validation")
    n_drawn, passed, filtered = _draw_and_filter(draw, n, limit, work, filtering)
    if len(passed) < n:
        return Release(n_drawn, len(passed))
    kept = passed.subset(range(n))
    write_data_list(kept, work / "passed")
    report = _judge(filtered, halves["judge"], encoders, work, training_set, common)
    report["release"] = {"n_asked": n, "n_drawn": n_drawn, "n_passed": len(passed)} | report["release"]
    decision = apply_policy(report, wanted)
    with new_folder(output) as folder:
        if decision.status == "pass":
            write_data_list(kept, folder)
        write_report(report, folder / "report.json")
        write_report_page(report, folder / "report.html")
    return Release(n_drawn, len(passed), report, decision)


def _halves(
    training: ImageSet,
    validation: str | Path,
    reconstructed: str | Path | None,
    monitoring: str | Path | None,
    encoder: str | Path | None,
    seed: int,
) -> dict[str, dict[str, ImageSet]]:
    """Divide the validation set by patient, and its reconstructions with it, into those of the filter and the judge."""
    images = read_image_set(validation, "validation")
    check_disjoint(training, images)
    if monitoring is not None:
        images = leave_out_monitored({"validation": images}, monitoring)["validation"]
    elif encoder is not None:
        warn_of_forgotten(Path(encoder), images)
    halves: dict[str, dict[str, ImageSet]] = {}
    for name, half in zip(("filter", "judge"), split(images, 0.5, seed), strict=True):
        halves[name] = {"validation": half}
        if reconstructed is not None:
            made = read_image_set(reconstructed, "reconstructed_validation")
            own = [i for i, original in enumerate(originals(made, half)) if original >= 0]
            halves[name]["reconstructed_validation"] = made.subset(own)
    return halves


def _warn_of_few(judging: ImageSet, least: int | None) -> None:
    """Tell at once that the gate cannot let anything pass, which it would tell after hours."""
    if least is None or (judging.has_patients and judging.n_patients >= least):
        return
    found = f"{judging.n_patients} patients, half of those given," if judging.has_patients else "unknown patients"
    logger.warning(
        "validation: %s will judge, where the policy's min_validation_patients is %d: the gate cannot let the images "
        "pass; name more than %d patients, or give a policy that asks for less",
        found,
        least,
        2 * least,
    )


def _listed(sets: Mapping[str, ImageSet], folder: Path) -> dict[str, Any]:
    """Write sets as CSVs, and return these as arguments of the audit."""
    for role, images in sets.items():
        write_image_set(images, folder / f"{role}.csv")
    return {role: folder / f"{role}.csv" for role in sets}


def _obtain_encoders(
    training: ImageSet, given: Mapping[str, str | Path | None], work: Path, common: Mapping[str, Any]
) -> dict[str, Path]:
    """Load or train both encoders, and return where their weights are.

    Raises:
        InputError: if they are one and the same.
    """
    hashes = []
    for name, seed, widths in (("filter", common["seed"], WIDTHS), ("judge", common["seed"] + 1, JUDGE_WIDTHS)):
        options = common["device"], common["skip_unreadable"]
        folder, settings = work / name / "encoder", {"widths": widths, "clip": common["clip"]}
        encoder = obtain_encoder(given[name], training, folder, seed, *options, **settings)
        hashes.append(hash_weights(encoder))
    if hashes[0] == hashes[1]:
        raise InputError("judge: is the encoder that filters, and would overlook what that overlooks; give another one")
    return {name: Path(path or work / name / "encoder" / "model.pt") for name, path in given.items()}


def _clear(output: Path, work: Path) -> None:
    """Make room for the work; an earlier release's goes, but for its encoders."""
    check_writable(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"output_dir: {output} exists and is not empty; name a new folder")
    if work.is_dir() and any(work.iterdir()) and not (work / MARK).is_file():
        raise InputError(f"work_dir: {work} is not the folder of an earlier release; name a new one, or empty it")
    check_writable(work)
    for name in ("trial", "drawn", "passed"):
        shutil.rmtree(work / name, ignore_errors=True)
    for name in ("trial", "drawn"):
        (work / name).mkdir(parents=True)
    write_text(work / MARK, "Made by `monai-memorization release`: patient data, stays inside.\n")


def _draw_and_filter(
    draw: Draw, n: int, limit: int, work: Path, arguments: Mapping[str, Any]
) -> tuple[int, ImageSet, dict[str, Any]]:
    """Draw, and audit all that was drawn, until ``n`` images pass or ``limit`` are drawn.

    Returns:
        Number drawn, the images that passed, in the order of their names, and the last report.
    """
    n_drawn, n_more = 0, math.ceil(n / (1 - arguments["alpha"]))
    while True:
        n_more = min(n_more, limit - n_drawn)
        draw(range(n_drawn, n_drawn + n_more), work / "drawn")
        n_drawn += n_more
        report = audit(synthetic=work / "drawn", output_dir=work / "filter", **arguments)
        images, suspected = read_suspected(work / "filter", read_image_set(work / "drawn", "synthetic"))
        passed = images.subset(i for i, name in enumerate(images.image_ids) if not suspected[name])
        logger.info("%d images drawn, %d passed of %d wanted", n_drawn, len(passed), n)
        if len(passed) >= n or n_drawn >= limit:
            return n_drawn, passed, report
        # where hardly any passes, the limit is reached in a few rounds all the same
        n_more = math.ceil((n - len(passed)) / max(len(passed) / n_drawn, 0.05))


def _judge(
    filtered: Mapping[str, Any],
    half: Mapping[str, ImageSet],
    encoders: Mapping[str, Path],
    work: Path,
    training: ImageSet,
    common: Mapping[str, Any],
) -> dict[str, Any]:
    """Audit what passed by the other encoder and the other patients; add what the filter may have left."""
    options = common["device"], common["skip_unreadable"]
    filtering = Detector(encoders["filter"], training, filtered, *options, work / "filter" / "embeddings")
    passing = _listed(passing_images(half, filtering), work / "judge_validation")
    synthetic = work / "passed" / DATA_LIST
    report = audit(synthetic=synthetic, output_dir=work / "judge", encoder=encoders["judge"], **passing, **common)
    judging = Detector(encoders["judge"], training, report, *options, work / "judge" / "embeddings")
    residual = describe_residual(filtered, report["sets"]["synthetic"]["n_images"], common["seed"])
    judge = describe_judge(report, filtering, judging, common["seed"], common["n_plants"])
    # what is left has passed the filter, as few planted copies have
    report["verdict"] = restate(report["verdict"], judge["noticeable_rate"])
    return report | {"release": residual | {"judge": judge}}
