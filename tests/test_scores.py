# SPDX-License-Identifier: Apache-2.0
"""The score of an image depends on it and the training set alone, and names the training image that was copied."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_up_images import smooth_images

from monai_memorization.detector import degradations
from monai_memorization.detector.embeddings import shrink
from monai_memorization.detector.registration import agreement, fine_structure
from monai_memorization.detector.scores import REPEATED, copy_scores, nearest_patients


def described(images):
    """Thumbnails in the place of embeddings, and fine structure."""
    return shrink(images), fine_structure(images)


def scored(images, training, patients=None, k=4):
    return copy_scores(*described(images), *described(training), patients or [*map(str, range(len(training)))], k)


@pytest.fixture(scope="module")
def training():
    return smooth_images(20, (32, 32))[:, None]


def test_copies_score_above_other_images_and_are_matched(training):
    copies = degradations.turn(training[:6], 4)
    others = smooth_images(26, (32, 32))[20:, None]

    score, match = scored(torch.cat([copies, others]), training)

    assert match[:6].tolist() == list(range(6))
    assert score[:6].min() > score[6:].max()


def test_score_does_not_depend_on_the_other_images_that_are_scored(training):
    images = torch.cat([degradations.turn(training[:3], 4), smooth_images(25, (32, 32))[20:, None]])

    together, match = scored(images, training)

    for i, image in enumerate(images):
        alone, own_match = scored(image[None], training)
        torch.testing.assert_close(alone[0], together[i], atol=1e-4, rtol=1e-4)
        assert own_match[0] == match[i]


def test_score_is_by_how_much_the_best_candidate_exceeds_the_median_of_the_others(training):
    images = degradations.shift(training[:3], 0.05)
    vectors, structure = described(training)

    score, match = scored(images, training)

    for i, image in enumerate(images):
        own = shrink(image[None])[0]
        similarity = torch.tensor([torch.corrcoef(torch.stack([own, other]))[0, 1] for other in vectors])
        likeness = {}
        for t in similarity.argsort(descending=True)[:4].tolist():
            agreed = agreement(fine_structure(image[None]), structure[t][None, None])[0, 0]
            likeness[t] = float(torch.atanh(similarity[t]) + torch.atanh(agreed)) / 2
        best = max(likeness, key=likeness.__getitem__)
        others = statistics.median(value for t, value in likeness.items() if t != best)
        assert match[i] == best
        assert score[i].item() == pytest.approx(math.tanh(likeness[best] - others), abs=1e-3)


def test_an_image_that_is_like_everybody_is_a_copy_of_nobody():
    common, own = smooth_images(1, (32, 32))[:, None], smooth_images(61, (32, 32))[1:, None]
    images = 0.7 * common + 0.3 * own
    training, held_out = images[:20], images[20:]
    likeness = agreement(fine_structure(common), fine_structure(training)[None])[0]
    of_others = agreement(fine_structure(held_out), fine_structure(training).expand(40, *[-1] * 4))

    score, _ = scored(torch.cat([common, held_out, training[:1]]), training)

    assert likeness.max() > of_others.amax(dim=1).quantile(0.9)  # it lacks the detail in which images differ
    assert score[0] < score[1:-1].median() < 0.99 < score[-1]


@pytest.mark.parametrize("same_patient", [True, False])
def test_copies_of_a_picture_that_the_training_set_repeats_stand_out_all_the_same(training, same_patient):
    repeats = degradations.brightness(training[:1].repeat(30, 1, 1, 1), torch.linspace(0.97, 1, 30))
    patients = [f"p{i}" for i in range(20)] + ["p0" if same_patient else f"again{i}" for i in range(30)]
    copies = degradations.turn(training[:1], 4)
    alone, match = scored(copies, training)

    score, repeated_match = scored(copies, torch.cat([training, repeats]), patients)

    assert match[0] == 0
    assert repeated_match[0] in (0, *range(20, 50))
    assert score[0] == pytest.approx(alone[0].item(), abs=0.05)


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 12), st.integers(0, 10**6))
def test_nearest_patients_equal_a_walk_down_the_ranking(k, n_training, n_patients, seed):
    generator = torch.Generator().manual_seed(seed)
    vectors, training = (torch.randn(n, 3, generator=generator) for n in (4, n_training))
    patients = [str(int(i)) for i in torch.randint(n_patients, (n_training,), generator=generator)]

    similarity, index = nearest_patients(vectors, training, patients, k)

    correlations = torch.from_numpy(np.corrcoef(torch.cat([vectors, training]).double().numpy()))
    for i in range(len(vectors)):
        passed, found = [], []
        for t in correlations[i, 4:].argsort(descending=True).tolist():
            if all(patients[t] != patients[s] and correlations[4 + t, 4 + s] < REPEATED for s in passed):
                found.append(t)
            passed.append(t)
        found += [-1] * (k - len(found))
        assert index[i].tolist() == found[:k]
        expected = [0.0 if t < 0 else float(correlations[i, 4 + t]) for t in found[:k]]
        torch.testing.assert_close(similarity[i], torch.tensor(expected), atol=1e-5, rtol=0)


def test_training_set_with_fewer_patients_than_candidates_is_searched_whole(training):
    score, match = scored(training[:2], training[:2])

    assert match.tolist() == [0, 1]
    assert score.min() > 0.99
    assert score.max() <= 1

    score, match = scored(training[:3], training[:2], ["one", "one"])

    assert match[:2].tolist() == [0, 1]
    assert score[:2].min() > 0.99 > score[2]
