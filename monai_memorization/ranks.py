# SPDX-License-Identifier: Apache-2.0
"""The processes of a distributed training: who works, and what they tell each other."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch.distributed as dist

# the others wait while rank 0 trains an encoder, which can take longer than the half hour after which torch gives up
PATIENCE = timedelta(days=1)


class Ranks:
    """The processes of this training, or the only one; make and use it on all of them alike.

    They talk through a group of their own, on the CPU, whatever the training uses.
    """

    def __init__(self) -> None:
        distributed = dist.is_available() and dist.is_initialized()
        self.n = dist.get_world_size() if distributed else 1
        self.rank = dist.get_rank() if distributed else 0
        self._group = dist.new_group(backend="gloo", timeout=PATIENCE) if self.n > 1 else None

    def share(self, content: Any) -> Any:
        """Return on every rank what rank 0 passed."""
        box = [content]
        if self.n > 1:
            dist.broadcast_object_list(box, src=0, group=self._group)
        return box[0]

    def gather(self, content: Any) -> list[Any]:
        """Return what each rank passed, in their order."""
        boxes = [content] * self.n
        if self.n > 1:
            dist.all_gather_object(boxes, content, group=self._group)
        return boxes
