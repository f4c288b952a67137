# SPDX-License-Identifier: Apache-2.0
"""The score of an image depends on it and the training set alone, and names the training image that was copied."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from made_up_images import smooth_images

from monai_memorization.detector import degradations
from monai_memorization.detector.embeddings import shrink
from monai_memorization.detector.regions import regional_excess
from monai_memorization.detector.registration import agreement, fine_structure
from monai_memorization.detector.scores import REGIONAL_WEIGHT, copy_scores

PATIENTS = [f"p{i}" for i in range(30)]


def described(images):
    """Thumbnails in the place of embeddings, and fine structure."""
    return shrink(images), fine_structure(images)


def scored(images, training, patients=None, k=4):
    return copy_scores(*described(images), *described(training), patients or PATIENTS[: len(training)], k)


@pytest.fixture(scope="module")
def training():
    return smooth_images(20, (32, 32))[:, None]


def test_copies_score_above_other_images_and_are_matched(training):
    copies = degradations.turn(training[:6], 4)
    others = smooth_images(26, (32, 32))[20:, None]

    score, match, _ = scored(torch.cat([copies, others]), training)

    assert match[:6].tolist() == list(range(6))
    assert score[:6].min() > score[6:].max()


def test_score_does_not_depend_on_the_other_images_that_are_scored(training):
    images = torch.cat([degradations.turn(training[:3], 4), smooth_images(25, (32, 32))[20:, None]])

    together, match, _ = scored(images, training)

    for i, image in enumerate(images):
        alone, own_match, _ = scored(image[None], training)
        torch.testing.assert_close(alone[0], together[i], atol=1e-4, rtol=1e-4)
        assert own_match[0] == match[i]


def test_score_is_by_how_much_the_best_candidate_exceeds_the_median_of_the_others(training):
    images = degradations.shift(training[:3], 0.05)
    vectors, structure = described(training)

    score, match, _ = scored(images, training)

    for i, image in enumerate(images):
        own = shrink(image[None])[0]
        similarity = torch.tensor([torch.corrcoef(torch.stack([own, other]))[0, 1] for other in vectors])
        likeness = {}
        for t in similarity.argsort(descending=True)[:4].tolist():
            agreed = agreement(fine_structure(image[None]), structure[t][None, None])[0, 0]
            likeness[t] = float(torch.atanh(similarity[t]) + torch.atanh(agreed)) / 2
        best = max(likeness, key=likeness.__getitem__)
        others = statistics.median(value for t, value in likeness.items() if t != best)
        part = REGIONAL_WEIGHT * regional_excess(fine_structure(image[None]), structure, PATIENTS, 4)[0].item()
        assert match[i] == best
        assert score[i].item() == pytest.approx(math.tanh(max(likeness[best] - others, part)), abs=1e-3)


def test_an_image_that_is_like_everybody_is_a_copy_of_nobody():
    common, own = smooth_images(1, (32, 32))[:, None], smooth_images(61, (32, 32))[1:, None]
    images = 0.7 * common + 0.3 * own
    training, held_out = images[:20], images[20:]
    likeness = agreement(fine_structure(common), fine_structure(training)[None])[0]
    of_others = agreement(fine_structure(held_out), fine_structure(training).expand(40, *[-1] * 4))

    score, _, _ = scored(torch.cat([common, held_out, training[:1]]), training)

    assert likeness.max() > of_others.amax(dim=1).quantile(0.9)  # it lacks the detail in which images differ
    assert score[0] < score[1:-1].quantile(0.75) < 0.99 < score[-1]


@pytest.mark.parametrize(("share", "window"), [(0.5, (0, 3, 6)), (0.25, (0,))])
def test_copies_of_a_part_are_matched_there(training, share, window):
    hosts = smooth_images(26, (32, 32))[20:, None]
    copies = degradations.splice(training[:6], hosts, share)

    score, match, where = scored(torch.cat([copies, hosts, training[:6]]), training)

    assert match[:6].tolist() == list(range(6))
    assert set(where[:6].tolist()) <= set(window)
    assert score[:6].min() > score[6:12].max()
    assert where[12:].tolist() == [-1] * 6


@pytest.mark.parametrize("same_patient", [True, False])
def test_copies_of_a_picture_that_the_training_set_repeats_stand_out_all_the_same(training, same_patient):
    repeats = degradations.brightness(training[:1].repeat(30, 1, 1, 1), torch.linspace(0.97, 1, 30))
    patients = [f"p{i}" for i in range(20)] + ["p0" if same_patient else f"again{i}" for i in range(30)]
    copies = degradations.turn(training[:1], 4)
    alone, match, _ = scored(copies, training)

    score, repeated_match, _ = scored(copies, torch.cat([training, repeats]), patients)

    assert match[0] == 0
    assert repeated_match[0] in (0, *range(20, 50))
    assert score[0] == pytest.approx(alone[0].item(), abs=0.05)


def test_training_set_with_fewer_patients_than_candidates_is_searched_whole(training):
    score, match, _ = scored(training[:2], training[:2])

    assert match.tolist() == [0, 1]
    assert score.min() > 0.99
    assert score.max() <= 1

    score, match, _ = scored(training[:3], training[:2], ["one", "one"])

    assert match[:2].tolist() == [0, 1]
    assert score[:2].min() > 0.99 > score[2]
