# SPDX-License-Identifier: Apache-2.0
"""Power: planted copies are counted as the audit would count them, seen and unseen families apart."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from made_up_images import smooth_images

from monai_memorization.detector.neighbors import nearest
from monai_memorization.statistics import power
from monai_memorization.statistics.power import (
    FAMILIES,
    Family,
    Recall,
    choose_plants,
    choose_plants_within,
    measure_power,
    measure_reconstructions,
    summarize_power,
)
from monai_memorization.statistics.power import plant as planted

SIZES = {2: (32, 32), 3: (16, 16, 16)}


def by_pixels(training):
    """The detector that compares every pixel."""
    return lambda images: tuple(column[:, 0] for column in nearest(images.flatten(1), training.flatten(1)))


def plant(dimension=2, level=0.99, families=FAMILIES, seed=0):
    """Plant 8 of 30 images and look for them with a detector that sees every pixel."""
    training = smooth_images(30, SIZES[dimension])[:, None]
    index = torch.arange(3, 27, 3)
    return measure_power(by_pixels(training), training[index], index, torch.full((8,), level), families, seed)


def entry(family, recall, seen=True, whole=True):
    return Recall(family, 1.0, 32, recall, 1.0, seen, whole)


@pytest.mark.parametrize("dimension", [2, 3])
def test_exact_copies_are_all_found_by_a_detector_that_sees_everything(dimension):
    exact = next(cell for cell in plant(dimension) if cell.family == "identity")

    assert (exact.n, exact.recall, exact.matched) == (8, 1, 1)


@pytest.mark.parametrize(("level", "recall"), [(math.inf, 0), (-math.inf, 1)])
def test_nothing_is_above_infinity_and_everything_above_its_negative(level, recall):
    assert {cell.recall for cell in plant(level=level)} == {recall}


@pytest.mark.parametrize("dimension", [2, 3])
@pytest.mark.parametrize("n_cells", [1, 5])
def test_number_of_copies_searched_at_once_changes_nothing(monkeypatch, dimension, n_cells):
    together = plant(dimension)

    monkeypatch.setattr(power, "VALUES_AT_ONCE", n_cells * 8 * math.prod(SIZES[dimension]))

    assert plant(dimension) == together


def test_recall_counts_each_copy_against_its_own_threshold():
    training = smooth_images(10)[:, None]
    identity = [family for family in FAMILIES if family.name == "identity"]
    levels = torch.tensor([0.5, 0.5, 2.0, 0.5])

    (cell,) = measure_power(by_pixels(training), training[:4], torch.arange(4), levels, identity)

    assert cell.recall == 0.75


def test_copy_that_is_found_elsewhere_is_not_matched():
    training = smooth_images(10)[:, None]
    to_next = Family("swap", (1,), lambda images, others, _: others)

    (cell,) = measure_power(by_pixels(training), training[:4], torch.arange(4), torch.full((4,), 0.9), [to_next])

    assert (cell.recall, cell.matched) == (1, 0)


def test_reconstructions_are_counted_like_any_planted_copies():
    training = smooth_images(10)[:, None]
    index, levels = torch.tensor([7, 2, 5, 0]), torch.tensor([0.5, 0.5, 0.5, 2.0])
    copies = training[index]
    copies[1] = training[3]  # comes back as another patient
    swap = Family("swap", (1,), lambda *_: copies)

    cell = measure_reconstructions(*by_pixels(training)(copies), index, levels)

    assert (cell.family, cell.n, cell.recall, cell.matched) == ("autoencoder", 4, 0.75, 0.75)
    assert (cell.seen_in_training, cell.whole) == (False, True)
    (same,) = measure_power(by_pixels(training), training[index], index, levels, [swap])
    assert (same.recall, same.matched) == (cell.recall, cell.matched)


def test_recall_falls_as_the_threshold_rises():
    recalls = [[cell.recall for cell in plant(level=level)] for level in (0.5, 0.9, 0.99, 0.999)]

    for lower, higher in itertools.pairwise(recalls):
        assert all(a >= b for a, b in zip(lower, higher, strict=True))
    assert recalls[0] != recalls[-1]


@pytest.mark.parametrize("dimension", [2, 3])
def test_every_family_of_the_dimension_is_measured_at_every_strength(dimension):
    measured = [(cell.family, cell.strength) for cell in plant(dimension)]

    expected = [(f.name, s) for f in FAMILIES if dimension in f.dimensions for s in f.strengths]
    assert measured == expected
    assert len(set(measured)) == len(measured)
    assert {("flip", axis) for axis in range(dimension)} <= set(measured)


@pytest.mark.parametrize("dimension", [2, 3])
def test_at_least_four_families_are_unseen(dimension):
    unseen = [family for family in FAMILIES if dimension in family.dimensions and not family.seen_in_training]

    assert len({family.name for family in unseen}) >= 4
    assert any(family.whole for family in unseen)
    assert any(family.whole and family.seen_in_training for family in FAMILIES)


def test_a_family_is_either_seen_or_unseen():
    names = {True: set(), False: set()}
    for family in FAMILIES:
        names[family.seen_in_training].add(family.name)

    assert names[True] & names[False] == set()


def test_random_families_repeat_with_the_seed_and_leave_the_global_state_alone():
    before = torch.get_rng_state()

    first, again, other = plant(level=0.99, seed=1), plant(level=0.99, seed=1), plant(level=0.99, seed=2)

    assert first == again
    assert first != other
    assert torch.equal(torch.get_rng_state(), before)


def test_planted_images_are_chosen_once_each_and_no_more_than_asked():
    for n_training in (1, 5, 40):
        chosen = choose_plants(n_training, seed=0, n=32).tolist()
        assert len(chosen) == len(set(chosen)) == min(32, n_training)
        assert set(chosen) <= set(range(n_training))
    assert choose_plants(500, 0).tolist() != choose_plants(500, 1).tolist()
    assert choose_plants(500, 1).tolist() == choose_plants(500, 1).tolist()


def test_plants_have_the_labels_of_the_synthetic_images():
    labels = ["a"] * 90 + ["b"] * 30
    index = choose_plants_within(labels, {"a": 100, "b": 300}, seed=0, n=20).tolist()
    assert len(set(index)) == 20
    assert sorted(labels[i] for i in index) == ["a"] * 5 + ["b"] * 15
    # of ten b there are not enough for 200 plants, three quarters of them b
    few = choose_plants_within(["a"] * 90 + ["b"] * 10, {"a": 100, "b": 300}, seed=0, n=200).tolist()
    assert sorted(few)[-10:] == list(range(90, 100))
    assert len(few) == 13
    # eight equal labels and 12 plants: the four that are left go round
    eight = choose_plants_within(list("abcdefgh") * 20, dict.fromkeys("abcdefgh", 25), seed=0, n=12).tolist()
    assert len(eight) == 12
    assert sorted(["abcdefgh"[i % 8] for i in eight].count(label) for label in "abcdefgh") == [1] * 4 + [2] * 4
    # a label that no synthetic image has is not planted, one that no training image has cannot be
    assert set(choose_plants_within(labels, {"b": 1, "c": 99}, seed=0).tolist()) <= set(range(90, 120))
    assert choose_plants_within(labels, {"c": 9}, seed=0).tolist() == []


def test_without_labels_plants_are_chosen_at_random():
    assert choose_plants_within([None] * 50, {None: 7}, seed=3).tolist() == choose_plants(50, seed=3).tolist()


def test_summary_is_the_means_by_hand():
    summary = summarize_power(
        [
            entry("a", 1.0),
            entry("a", 0.5),
            entry("b", 0.9),
            entry("c", 0.6, seen=False),
            entry("d", 0.8, seen=False),
            entry("e", 0.1, seen=False, whole=False),
            entry("e", 0.3, seen=False, whole=False),
        ]
    )

    assert summary.seen == pytest.approx(0.8)
    assert summary.unseen == pytest.approx(0.7)
    assert summary.working_recall == pytest.approx(0.7)
    assert summary.n_planted == 32
    assert summary.partial == pytest.approx(0.2)


def test_working_recall_is_the_lowest_and_unknown_without_copies():
    assert summarize_power([entry("a", 0.4), entry("c", 0.6, seen=False)]).working_recall == 0.4
    assert summarize_power([entry("a", 0.4)]).working_recall == 0.4
    own = [entry("a", 0.9), entry("c", 1, seen=False), entry("autoencoder", 0.5, seen=False)]
    assert summarize_power(own).unseen == 0.75
    assert summarize_power(own).working_recall == 0.5
    empty = summarize_power([])
    assert (empty.seen, empty.unseen, empty.working_recall, empty.n_planted, empty.partial) == (
        None,
        None,
        None,
        0,
        None,
    )


def test_partial_copies_are_put_into_the_hosts():
    images, hosts = torch.ones(3, 1, 8, 8), torch.arange(2.0).view(2, 1, 1, 1) * 0.25 + torch.zeros(2, 1, 8, 8)
    seen = []
    splice = Family("splice", (1,), lambda copied, others, _: seen.append((copied, others)) or copied)

    list(planted(images, [splice], hosts=hosts))

    assert torch.equal(seen[0][0], images)
    assert torch.equal(seen[0][1], hosts[[0, 1, 0]])


def test_what_a_caller_draws_between_copies_changes_none_of_them():
    images = smooth_images(4, (16, 16))[:, None]
    alone = [copies for _, _, copies in planted(images, seed=5)]
    torch.manual_seed(1)
    drawn, made = [], []
    for _, _, copies in planted(images, seed=5):
        made.append(copies)
        drawn.append(torch.rand(()))
    torch.manual_seed(1)
    assert all(torch.equal(one, other) for one, other in zip(alone, made, strict=True))
    assert drawn == [torch.rand(()) for _ in drawn]
