# SPDX-License-Identifier: Apache-2.0
"""Power: the share of planted copies that the audit at hand would find (design: section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from monai_memorization.detector import degradations

N_PLANTS = 16
AUTOENCODER = "autoencoder"
VALUES_AT_ONCE = 1 << 25  # of copies in memory (128 MB); each search of them looks through the whole training set


@dataclass(frozen=True)
class Family:
    """A way in which a generator may change an image while copying it.

    Args:
        name: as in the report.
        strengths: from weak to strong.
        degrade: images (n, C, *spatial), other training images of that shape, strength -> copies.
        seen_in_training: whether the encoder's views contain it.
        whole: whether the copy is of the whole image; partial copies stay out of the mean.
        dimensions: the numbers of spatial dimensions it is for.
    """

    name: str
    strengths: tuple[float, ...]
    degrade: Callable[[Tensor, Tensor, float], Tensor]
    seen_in_training: bool = True
    whole: bool = True
    dimensions: tuple[int, ...] = (2, 3)


@dataclass(frozen=True)
class Recall:
    """Share of planted copies of one family and strength that were found; the fields are keys of `power[]`.

    Args:
        family: name of the family.
        strength: of the degradation; the axis for flips.
        n: copies planted.
        recall: share above the threshold of the copy candidates.
        matched: share whose match is the training image that was copied.
        seen_in_training: whether the encoder has seen the family.
        whole: whether the copies are of whole images.
    """

    family: str
    strength: float
    n: int
    recall: float
    matched: float
    seen_in_training: bool
    whole: bool


@dataclass(frozen=True)
class PowerSummary:
    """Mean recalls over whole copies; the fields are the keys of `power_summary`.

    Args:
        seen: over families that the encoder has seen.
        unseen: over families that it has not.
        working_recall: the lowest of both and of the recall on the generator's own reconstructions, where these are
            given; on it the verdict rests.
        n_planted: training images behind it.
        partial: over partial copies, which stay out of the verdict.
    """

    seen: float | None
    unseen: float | None
    working_recall: float | None
    n_planted: int
    partial: float | None


def _alone(degrade: Callable[..., Tensor]) -> Callable[[Tensor, Tensor, float], Tensor]:
    return lambda images, _, strength: degrade(images, strength)


def _combine(images: Tensor, others: Tensor, strength: float) -> Tensor:
    """Rotate, darken and blur at once; strength 1 is 5 degrees, gamma 1.2 and a blur of 1 % of the shorter side."""
    images = degradations.gamma(degradations.turn(images, 5 * strength), 1.2**strength)
    return degradations.blur(images, 0.01 * strength)


FAMILIES = (
    Family("identity", (0,), lambda images, _, __: images),
    Family("flip", (0, 1), lambda images, _, axis: degradations.mirror(images, int(axis))),
    Family("flip", (2,), lambda images, _, axis: degradations.mirror(images, int(axis)), dimensions=(3,)),
    Family("rotation", (3, 5, 10, 20), _alone(degradations.turn)),
    Family("shift", (0.02, 0.05, 0.1), _alone(degradations.shift)),
    Family("crop", (0.95, 0.9, 0.8, 0.65), _alone(degradations.crop)),
    Family("gamma", (0.5, 0.75, 1.25, 1.5), _alone(degradations.gamma)),
    Family("brightness", (1.1, 1.3, 1.6, 2), _alone(degradations.brightness)),
    Family("contrast", (1.1, 1.3, 1.6, 2), _alone(degradations.contrast)),
    Family("bias_field", (0.1, 0.2, 0.3, 0.5), _alone(degradations.bias_field)),
    Family("blur", (0.01, 0.02, 0.03, 0.04), _alone(degradations.blur)),
    Family("noise", (0.01, 0.05, 0.1, 0.2), _alone(degradations.noise)),
    Family("resampling", (0.02, 0.04, 0.06, 0.08), _alone(degradations.coarsen), seen_in_training=False),
    Family("combination", (0.5, 1, 1.5, 2), _combine),
    Family("elastic", (0.01, 0.02, 0.03, 0.05), _alone(degradations.elastic), seen_in_training=False),
    Family("quantization", (32, 16, 8, 4), _alone(degradations.quantize), seen_in_training=False),
    Family("sharpening", (0.5, 1, 1.5, 2), _alone(degradations.sharpen), seen_in_training=False),
    Family("jpeg", (95, 70, 40, 10), _alone(degradations.jpeg), seen_in_training=False, dimensions=(2,)),
    Family("blend", (0.8, 0.6), degradations.blend, seen_in_training=False, whole=False),
    Family("splice", (0.5, 0.25), degradations.splice, seen_in_training=False, whole=False),
)


def choose_plants(n_training: int, seed: int, n: int = N_PLANTS) -> Tensor:
    """Choose the training images that are copied, at most ``n`` of them, int64, at random."""
    return torch.randperm(n_training, generator=torch.Generator().manual_seed(seed))[:n]


def choose_plants_within(
    labels: Sequence[str | None], n_synthetic: Mapping[str | None, int], seed: int, n: int = N_PLANTS
) -> Tensor:
    """Choose training images as :func:`choose_plants`, with the labels in the proportions of the synthetic images.

    How well copies are found may differ by label, and it is copies among the synthetic images that are looked for,
    whatever labels most training images have.

    Args:
        labels: of the training images, n_T.
        n_synthetic: synthetic images of each label; other training images are not chosen.
        seed: of the choice.
        n: at most so many, and one of each label that is too rare for a share of them; fewer where the training set has
            too few images of a label.

    Returns:
        Positions, int64.
    """
    order = choose_plants(len(labels), seed, len(labels)).tolist()
    there = {label: [i for i in order if labels[i] == label] for label in n_synthetic if label in labels}
    total = sum(n_synthetic[label] for label in there)
    n = min([n, *(len(plants) * total // n_synthetic[label] for label, plants in there.items())])
    quota = {label: n * n_synthetic[label] // total for label in there}
    # what rounding down left goes to the largest remainders
    by_remainder = sorted(there, key=lambda label: n * n_synthetic[label] % total, reverse=True)
    for label in by_remainder[: n - sum(quota.values())]:
        quota[label] += 1
    return torch.tensor(
        [i for label, plants in there.items() for i in plants[: max(1, quota[label])]], dtype=torch.int64
    )


def measure_power(
    score: Callable[[Tensor], tuple[Tensor, ...]],
    images: Tensor,
    index: Tensor,
    threshold: Tensor,
    families: Sequence[Family] = FAMILIES,
    seed: int = 0,
    hosts: Tensor | None = None,
) -> list[Recall]:
    """Plant copies of training images and count those that are found.

    Args:
        score: the detector: prepared images -> their scores, (n,), and the training images that give them, (n,).
        images: the training images that are copied, prepared, (n, C, *image_size) in [0, 1].
        index: their positions in the training set, int64 (n,).
        threshold: score above which a copy of each counts as found, (n,).
        families: what is done to the copies.
        seed: of random degradations; torch's own random state is left as it was.
        hosts: as of :func:`plant`.

    Returns:
        One entry per family and strength.
    """
    recalls, n = [], len(images)
    for group in plant_together(images, families, seed, hosts):
        scores, match = score(torch.cat([copies for _, _, copies in group]))[:2]
        for (family, strength, _), cell in zip(group, zip(scores.split(n), match.split(n), strict=True), strict=True):
            found = _found(*cell, index, threshold)
            recalls.append(Recall(family.name, strength, n, *found, family.seen_in_training, family.whole))
    return recalls


def plant_together(
    images: Tensor, families: Sequence[Family] = FAMILIES, seed: int = 0, hosts: Tensor | None = None
) -> Iterator[list[tuple[Family, float, Tensor]]]:
    """Make the planted copies as :func:`plant`, as many families and strengths at a time as memory allows."""
    cells = plant(images, families, seed, hosts)
    while group := list(islice(cells, max(1, VALUES_AT_ONCE // images.numel()))):
        yield group


def plant(
    images: Tensor, families: Sequence[Family] = FAMILIES, seed: int = 0, hosts: Tensor | None = None
) -> Iterator[tuple[Family, float, Tensor]]:
    """Make the planted copies, one family and strength at a time.

    Args:
        images: the training images that are copied, prepared, (n, C, *image_size) in [0, 1].
        families: what is done to the copies.
        seed: of random degradations; torch's own random state is left as it was.
        hosts: images of other patients, which partial copies are put into, of the same shape, as many or fewer; None
            puts them into each other, where they are copies of two training images.

    Yields:
        Family, strength and copies, of the shape of ``images``.
    """
    others = images.roll(1, 0) if hosts is None else hosts[torch.arange(len(images)) % len(hosts)]
    state = torch.Generator().manual_seed(seed).get_state()
    for family in families:
        for strength in family.strengths if images.dim() - 2 in family.dimensions else ():
            with torch.random.fork_rng(devices=[]):  # not beyond the yield, where the caller draws too
                torch.set_rng_state(state)
                copies = degradations.rescale(family.degrade(images, others, strength))
                state = torch.get_rng_state()
            yield family, strength, copies


def measure_reconstructions(score: Tensor, match: Tensor, index: Tensor, threshold: Tensor) -> Recall:
    """Count the training images that are found again after a pass through the generator's autoencoder.

    They stand for the copies of this very generator, and no view of the encoder's training looks like them.

    Args:
        score: scores of the reconstructions, (n,) with n >= 1.
        match: the training images that give them, int64 (n,).
        index: positions of their originals in the training set, int64 (n,).
        threshold: score above which each counts as found, (n,).

    Returns:
        The entry of the family ``AUTOENCODER``, of strength 1.
    """
    found = _found(score, match, index, threshold)
    return Recall(AUTOENCODER, 1, len(index), *found, seen_in_training=False, whole=True)


def summarize_power(recalls: Sequence[Recall]) -> PowerSummary:
    """Average the recalls over the cells of whole copies, seen and unseen apart, and of partial copies.

    Reconstructions are the copies that this very generator makes, so that no mean over other kinds may outvote them.
    """
    seen = _mean(r.recall for r in recalls if r.whole and r.seen_in_training)
    unseen = _mean(r.recall for r in recalls if r.whole and not r.seen_in_training)
    n_planted = min((r.n for r in recalls if r.family != AUTOENCODER), default=0)
    known = [(mean, n_planted) for mean in (seen, unseen) if mean is not None]
    known += [(r.recall, r.n) for r in recalls if r.family == AUTOENCODER]
    working_recall, behind = min(known, default=(None, 0))
    return PowerSummary(seen, unseen, working_recall, behind, _mean(r.recall for r in recalls if not r.whole))


def _found(score: Tensor, match: Tensor, index: Tensor, threshold: Tensor) -> tuple[float, float]:
    """Share of copies above their threshold, and share matched with the training image that was copied."""
    return (score > threshold).double().mean().item(), (match == index).double().mean().item()


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return sum(listed) / len(listed) if listed else None
