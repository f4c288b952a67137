# SPDX-License-Identifier: Apache-2.0
"""The audit: from three sets of images to a report that states its own error rates."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from monai_memorization.detector.embeddings import Embeddings, embed
from monai_memorization.detector.encoder import ContrastiveEncoder
from monai_memorization.detector.encoder_training import obtain_encoder, of_other_images
from monai_memorization.detector.leaks import find_leaks, refuse_identical, refuse_shared, refuse_unchanged
from monai_memorization.detector.regions import place
from monai_memorization.errors import InputError, some
from monai_memorization.files import check_writable, written_together
from monai_memorization.filtering import was_filtered
from monai_memorization.findings import Findings, measure, timed
from monai_memorization.images.monitored import warn_of_forgotten
from monai_memorization.images.preparation import choose_preparation, enlarged
from monai_memorization.images.prepared import prepared_batches
from monai_memorization.images.roles import read_roles
from monai_memorization.images.sets import ImageSet, check_seed
from monai_memorization.ranks import current_ranks, on_every_rank
from monai_memorization.reporting.limits import grouped_images, uneven_patients
from monai_memorization.reporting.pages import GalleryPair, write_gallery_page, write_report_page
from monai_memorization.reporting.pictures import LONGEST_SIDE
from monai_memorization.reporting.reasons import unknown_patients
from monai_memorization.reporting.report import (
    compose_report,
    refuse_foreign,
    write_leaks,
    write_report,
    write_tables,
)
from monai_memorization.statistics.conformal import as_fraction, n_patients_needed
from monai_memorization.statistics.fidelity import measure_fidelity
from monai_memorization.statistics.power import N_PLANTS
from monai_memorization.statistics.strata import Stratum, stratify

N_GALLERY_PAIRS = 200

logger = logging.getLogger(__name__)


@on_every_rank
def audit(
    training: str | Path,
    validation: str | Path | None,
    synthetic: str | Path,
    output_dir: str | Path,
    *,
    encoder: str | Path | None = None,
    reconstructed_validation: str | Path | None = None,
    reconstructed_training: str | Path | None = None,
    monitoring: str | Path | None = None,
    alpha: float = 0.05,
    q: float = 0.05,
    seed: int = 0,
    device: str = "auto",
    gallery: bool = False,
    skip_unreadable: bool = False,
    n_plants: int = N_PLANTS,
    cache_dir: str | Path | None = None,
    fidelity: bool = False,
    clip: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Audit a synthetic set: which of its images are copies of training images, and how sure is that?

    Writes report.json and report.html, which may be handed out, and pairs.csv, memorized.csv, near_identical.csv,
    leaks.csv and on request gallery.html, which stay inside. So do encoder/ and embeddings/, which are kept as soon as
    they are known: an audit that was stopped goes on there, and one of another synthetic set reads only what is new.

    Started by torchrun, or on every process of torch.distributed, it divides the work and returns the same on each.

    Args:
        training: images that the generator was trained on; folder, CSV or MONAI data list.
        validation: images of other patients from the same source, seen by neither generator nor encoder.
        synthetic: images drawn from the generator.
        output_dir: folder for the results.
        encoder: weights of an encoder trained on the training set; without it one is trained, and kept in
            `cache_dir`/encoder for the next run.
        reconstructed_validation: the validation images through the generator's autoencoder, under the same names; the
            audit is then calibrated on them.
        reconstructed_training: training images, all or some, through the generator's autoencoder, under the same names;
            planted as copies in the power test.
        monitoring: monitoring.csv of a training that was watched with MemorizationHandler; the validation patients that
            steered it are left out.
        alpha: level of the copy candidates, in (0, 1).
        q: level of the FDR list, in (0, 1).
        seed: of everything random.
        device: "cpu", "cuda", "cuda:1", ..., or "auto".
        gallery: whether to write gallery.html, which shows patient images.
        skip_unreadable: leave out images that cannot be read instead of stopping at the first.
        n_plants: training images of which copies are planted in the power test, all of a smaller set; more make the
            recall surer and the audit slower.
        cache_dir: folder of encoder/ and embeddings/, for audits of one training set; `output_dir` where none is given.
        fidelity: whether to measure how like the real images the synthetic set is as a whole.
        clip: intensities, lowest and highest, at which all images are cut off before they are scaled: the range of
            Hounsfield units that a generator of CT was trained in; None for that of a given encoder, else none.

    Returns:
        The content of report.json.

    Raises:
        InputError: for bad input, before anything is written to `output_dir` but encoder and embeddings, and
            refused_leaks.csv where images of the validation set are in the training set.
    """
    ranks = current_ranks()
    check_seed(seed)
    settings: dict[str, Any] = {"alpha": alpha, "q": q, "seed": seed, "device": choose_device(device)}
    settings |= {"skip_unreadable": skip_unreadable, "reconstructed": reconstructed_validation is not None}
    settings |= {"monitored_left_out": monitoring is not None, "n_plants": n_plants}
    output, seconds = Path(output_dir), dict[str, float]()
    for name in ("alpha", "q"):
        as_fraction(settings[name], name)
    if n_plants < 1:
        raise InputError(f"n_plants: found {n_plants}, but must be at least 1; without plants nothing can be concluded")
    sets = read_roles(
        training, validation, synthetic, reconstructed_validation, reconstructed_training, monitoring=monitoring
    )
    settings |= {"filtered": was_filtered(synthetic, sets["synthetic"])}
    calibration = sets.get("reconstructed_validation", sets["validation"])
    # refuses labels that cannot be calibrated, and a folder that cannot be written, before minutes of training
    strata = stratify(calibration.patient_ids, len(sets["synthetic"]), calibration.labels, sets["synthetic"].labels)
    _refuse_unplanted(sets["training"], strata)
    cache = output if cache_dir is None else Path(cache_dir)
    for folder in (output, cache):
        check_writable(folder)
    refuse_foreign(output)
    _warn(sets, calibration, strata, alpha)
    if monitoring is None:
        warn_of_forgotten(Path(encoder or cache / "encoder" / "model.pt"), sets["validation"])
    if encoder is None and not (cache / "encoder" / "model.pt").exists():
        _read_through(sets, skip_unreadable, clip)
    with timed(seconds, "encoder"):
        detector = obtain_encoder(
            encoder, sets["training"], cache / "encoder", seed, settings["device"], skip_unreadable, clip=clip
        )
    # one that was not given is of this training set; to hash the set again would read all of it
    settings["encoder_of_other_images"] = encoder is not None and of_other_images(detector, sets["training"])
    with timed(seconds, "embedding"):
        embedded = {
            role: embed(
                detector,
                images,
                device=settings["device"],
                skip_unreadable=skip_unreadable,
                cache_dir=cache / "embeddings",
            )
            for role, images in sets.items()
        }
    training_set, validation_set = embedded["training"], embedded["validation"]
    with timed(seconds, "leak_check"):
        leaks = find_leaks(training_set, validation_set, detector.preparation)
    refused = output / "refused_leaks.csv"  # leaks.csv is of the report that an earlier audit may have left beside it
    if ranks.rank == 0 and any(leak.kind == "identical_in_validation" for leak in leaks):
        write_leaks(leaks, refused)
    refuse_identical(leaks, refused)
    for role in ("validation", "training"):
        if f"reconstructed_{role}" in embedded:
            refuse_unchanged(embedded[f"reconstructed_{role}"], embedded[role])
    for role in ("validation", "reconstructed_validation"):  # in this order on each rank
        if role in embedded:
            refuse_shared(embedded["synthetic"], embedded[role])
    findings = measure(detector, embedded, settings, seconds)
    report = compose_report(findings, leaks, embedded, detector, settings, seconds)
    report["fidelity"] = None
    if fidelity:
        vectors = validation_set.vectors, embedded["synthetic"].vectors
        report["fidelity"] = measure_fidelity(*vectors, validation_set.images.patient_ids, seed)
    if ranks.rank > 0:
        return report
    with written_together(output) as folder:
        if gallery:
            write_gallery_page(_gallery_pairs(findings, embedded, detector), folder / "gallery.html")
        write_leaks(leaks, folder / "leaks.csv")
        write_tables(findings, embedded, folder)
        write_report(report, folder / "report.json")
        write_report_page(report, folder / "report.html")
    if not gallery:  # that of an earlier audit would show other pairs than the report counts
        (output / "gallery.html").unlink(missing_ok=True)
    refused.unlink(missing_ok=True)
    return report


def choose_device(device: str) -> str:
    """Return the device meant by ``device``: a GPU for "auto" where there is one.

    Raises:
        InputError: for a device that torch does not know or this machine does not have.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, dtype=torch.float64, device=device).cpu()  # which the search computes in
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device: {device!r} cannot be used here ({reason}); give cpu, cuda or auto") from None
    return device


def _refuse_unplanted(training: ImageSet, strata: Sequence[Stratum]) -> None:
    """Refuse synthetic images of a label that no training image has: none is planted, so their recall is not known."""
    known = training.labels
    unplanted = [s for s in strata if known is not None and s.label is not None and s.label not in known]
    if unplanted:
        raise InputError(
            f"label: found {sum(len(s.synthetic) for s in unplanted)} synthetic images labelled "
            f"{some([repr(s.label) for s in unplanted])} but no training image; write labels alike in all sets, or "
            "leave the label column out"
        )


def _warn(sets: Mapping[str, ImageSet], calibration: ImageSet, strata: Sequence[Stratum], alpha: float) -> None:
    """Tell at once what the report would tell after minutes."""
    unknown = [role for role in ("training", "validation") if not sets[role].has_patients]
    if unknown:
        logger.warning("%s %s", *unknown_patients(unknown))
    if calibration.labels is not None and sets["synthetic"].labels is None:
        logger.warning("labels: the synthetic set has none, so that those of the validation set are not used")
    if (uneven := uneven_patients(calibration.n_patients, calibration.n_patients_equal)) is not None:
        logger.warning("%s %s", *uneven)
    synthetic = sets["synthetic"]
    if (grouped := grouped_images(len(synthetic), synthetic.n_patients_equal)) is not None:
        logger.warning("%s %s", *grouped)
    fewest, needed = min(stratum.n_patients for stratum in strata), n_patients_needed(alpha)
    if fewest < needed:
        logger.warning(
            "validation: %d patients%s, but alpha %g needs at least %d: this audit cannot flag any image",
            fewest,
            "" if len(strata) == 1 else " of a label",
            alpha,
            needed,
        )


def _read_through(sets: Mapping[str, ImageSet], skip_unreadable: bool, clip: Sequence[float] | None) -> None:
    """Meet an image that cannot be read before the encoder is trained, which takes longer than reading all of them."""
    preparation = choose_preparation(sets["training"], clip=clip)
    for role, images in sets.items():
        if role != "training":  # the training of the encoder reads those first
            own = images.subset(range(len(images))[current_ranks().rows(len(images))])
            for _ in prepared_batches(own, preparation, skip_unreadable=skip_unreadable):
                pass


def _gallery_pairs(
    findings: Findings, embedded: Mapping[str, Embeddings], encoder: ContrastiveEncoder
) -> list[GalleryPair]:
    """Read pairs again, prepared as compared, volumes finer: all near-identical ones, then the most similar."""
    preparation = enlarged(encoder.preparation, LONGEST_SIDE)
    synthetic, training = embedded["synthetic"].images, embedded["training"].images
    pairs = []
    identical = findings.identical >= 0
    order = torch.where(identical, 2.0, findings.score).argsort(descending=True, stable=True)
    for i in order[: max(N_GALLERY_PAIRS, int(identical.sum()))].tolist():
        match = int(findings.identical[i] if identical[i] else findings.match[i])
        window = -1 if identical[i] else int(findings.window[i])
        pairs.append(
            GalleryPair(
                synthetic.image_ids[i],
                training.image_ids[match],
                training.patient_ids[match],
                float(findings.score[i]),
                float(findings.flags.p_value[i]),
                bool(findings.flags.copy_candidate[i]),
                bool(findings.flags.in_fdr_list[i]),
                bool(identical[i]),
                preparation(synthetic.paths[i]),
                preparation(training.paths[match]),
                place(window, len(preparation.image_size)) if window >= 0 else None,
            )
        )
    return pairs
