# SPDX-License-Identifier: Apache-2.0
"""Candidates are of different patients and different pictures, and the best is held against the others."""

from __future__ import annotations

import statistics

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from monai_memorization.detector.candidates import REPEATED, excess, nearest_patients


@given(st.integers(1, 5), st.integers(1, 40), st.integers(1, 12), st.integers(0, 10**6))
def test_nearest_patients_equal_a_walk_down_the_ranking(k, n_training, n_patients, seed):
    generator = torch.Generator().manual_seed(seed)
    vectors, training = (torch.randn(n, 3, generator=generator) for n in (4, n_training))
    patients = [str(int(i)) for i in torch.randint(n_patients, (n_training,), generator=generator)]

    similarity, index = nearest_patients(vectors, training, patients, k)

    correlations = torch.from_numpy(np.corrcoef(torch.cat([vectors, training]).double().numpy()))
    for i in range(len(vectors)):
        found = []
        for t in correlations[i, 4:].argsort(descending=True).tolist():
            if all(patients[t] != patients[s] and correlations[4 + t, 4 + s] < REPEATED for s in found):
                found.append(t)
        found += [-1] * (k - len(found))
        assert index[i].tolist() == found[:k]
        expected = [0.0 if t < 0 else float(correlations[i, 4 + t]) for t in found[:k]]
        torch.testing.assert_close(similarity[i], torch.tensor(expected), atol=1e-5, rtol=0)


def test_one_patient_with_more_images_than_are_searched_at_first_does_not_hide_the_others():
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(1, 16, generator=generator)
    near = query + 0.5 * torch.randn(300, 16, generator=generator)
    others = torch.randn(3, 16, generator=generator)

    index = nearest_patients(query, torch.cat([near, others]), ["one"] * 300 + ["a", "b", "c"])[1]

    assert index[0, 0] < 300
    assert sorted(index[0, 1:].tolist()) == [300, 301, 302]


@given(st.lists(st.floats(-3, 12), min_size=1, max_size=5), st.integers(0, 4))
def test_excess_is_over_the_lower_median_of_the_others(likeness, n_missing):
    index = torch.tensor([[*range(10, 10 + len(likeness))] + [-1] * n_missing])
    values = torch.tensor([likeness + [50.0] * n_missing], dtype=torch.float64)

    value, best = excess(values, index)

    where = max(range(len(likeness)), key=likeness.__getitem__)
    others = likeness[:where] + likeness[where + 1 :]
    assert best[0] == 10 + where
    expected = likeness[where] - statistics.median_low(others) if others else max(likeness[where], 0)
    assert abs(value[0].item() - expected) < 1e-9
