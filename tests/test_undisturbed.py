# SPDX-License-Identifier: Apache-2.0
"""What happens within undisturbed() leaves no trace in random states and modes."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from monai_memorization.undisturbed import undisturbed

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


def draw(device: str) -> list[float]:
    return [torch.rand(1, device=device).item(), torch.rand(1).item(), np.random.rand(), random.random()]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("fails", [False, True])
def test_random_numbers_go_on_where_they_were(device, fails):
    draw(device)
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    expected = [draw(device) for _ in range(2)]
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    found = [draw(device)]
    try:
        with undisturbed():
            draw(device)
            torch.manual_seed(7)
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert [*found, draw(device)] == expected


def test_modes_of_all_parts_are_restored():
    network = nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Dropout(), nn.Linear(1, 1)))
    network[1].eval()
    before = [part.training for part in network.modules()]
    with undisturbed([network]):
        network.train()
        network[0].eval()
    assert [part.training for part in network.modules()] == before
