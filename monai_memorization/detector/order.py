# SPDX-License-Identifier: Apache-2.0
"""The order in which a training sees its images, so that it can go on in the middle of it, and be divided."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import torch
from torch.utils.data import Sampler

from monai_memorization.ranks import ALONE, Ranks


class BatchOrder(Sampler[list[int]]):
    """The batches of a training, in random order pass after pass without end, for torch's ``batch_sampler``.

    Its length is the number of batches in a pass. The order depends on the seed alone. The first ``n_done`` batches are
    left out, if it is set before any is drawn.

    Args:
        n_images: number of images.
        batch_size: images in a batch of one rank.
        seed: of the order, the same on all ranks.
        ranks: that divide each pass among themselves, in equal parts: a few images come twice in a pass where needed.
        drop_last: leave out the images of a pass that fill no batch, others in each pass.
    """

    def __init__(
        self, n_images: int, batch_size: int, seed: int = 0, ranks: Ranks = ALONE, drop_last: bool = False
    ) -> None:
        self.n_images = n_images
        self.batch_size = batch_size
        self.seed = seed
        self.ranks = ranks
        self.n_done = 0
        n_own = -(-n_images // ranks.n)
        self._n_batches = n_own // batch_size if drop_last else -(-n_own // batch_size)

    def __len__(self) -> int:
        return self._n_batches

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed)
        n = self.ranks.n
        n_padded = -(-self.n_images // n) * n
        for batch in count():
            if batch % len(self) == 0:
                order = torch.randperm(self.n_images, generator=generator)
                order = order.repeat(-(-n_padded // self.n_images))[:n_padded]
            if batch >= self.n_done:
                start = batch % len(self) * n * self.batch_size
                yield order[start : start + n * self.batch_size][self.ranks.rank :: n].tolist()
