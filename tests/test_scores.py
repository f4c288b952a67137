# SPDX-License-Identifier: Apache-2.0
"""The score of an image depends on it and the training set alone, and names the training image that was copied."""

from __future__ import annotations

import pytest
import torch
from made_up_images import smooth_images

from monai_memorization.detector import degradations
from monai_memorization.detector.embeddings import shrink
from monai_memorization.detector.registration import agreement, fine_structure
from monai_memorization.detector.scores import copy_scores


def described(images):
    """Thumbnails in the place of embeddings, and fine structure."""
    return shrink(images), fine_structure(images)


@pytest.fixture(scope="module")
def training():
    return smooth_images(20, (32, 32))[:, None]


def test_copies_score_above_other_images_and_are_matched(training):
    copies = degradations.turn(training[:6], 4)
    others = smooth_images(26, (32, 32))[20:, None]

    score, match = copy_scores(*described(torch.cat([copies, others])), *described(training))

    assert match[:6].tolist() == list(range(6))
    assert score[:6].min() > score[6:].max()


def test_score_does_not_depend_on_the_other_images_that_are_scored(training):
    images = torch.cat([degradations.turn(training[:3], 4), smooth_images(25, (32, 32))[20:, None]])

    together, match = copy_scores(*described(images), *described(training))

    for i, image in enumerate(images):
        alone, own_match = copy_scores(*described(image[None]), *described(training))
        torch.testing.assert_close(alone[0], together[i], atol=1e-4, rtol=1e-4)
        assert own_match[0] == match[i]


def test_score_is_the_best_mean_in_fishers_z_over_the_nearest(training):
    images = degradations.shift(training[:3], 0.05)
    vectors, structure = described(training)

    score, match = copy_scores(*described(images), vectors, structure, k=4)

    for i, image in enumerate(images):
        own = shrink(image[None])[0]
        similarity = torch.tensor([torch.corrcoef(torch.stack([own, other]))[0, 1] for other in vectors])
        best = {}
        for t in similarity.argsort(descending=True)[:4].tolist():
            agreed = agreement(fine_structure(image[None]), structure[t][None, None])[0, 0]
            best[t] = float(torch.tanh((torch.atanh(similarity[t]) + torch.atanh(agreed)) / 2))
        assert match[i] == max(best, key=best.__getitem__)
        assert score[i].item() == pytest.approx(max(best.values()), abs=1e-3)


def test_training_set_smaller_than_the_number_of_candidates_is_searched_whole(training):
    score, match = copy_scores(*described(training[:2]), *described(training[:2]), k=4)

    assert match.tolist() == [0, 1]
    assert score.min() > 0.99
    assert score.max() <= 1
