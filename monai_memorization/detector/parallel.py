# SPDX-License-Identifier: Apache-2.0
"""Train one network on several processes as one process would on all of their images."""

from __future__ import annotations

from copy import deepcopy
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from monai_memorization.ranks import Ranks, summed


def parallel(network: nn.Module, ranks: Ranks) -> nn.Module:
    """Return a network to train in place of ``network``, on its device and with its very weights.

    The processes average their gradients, and normalize batches over all images of all of them. ``network`` stays as it
    is but for the values of its weights and buffers.

    Args:
        network: without other batch normalization than torch's own.
        ranks: all processes of torch.distributed, or this one alone, which then gets ``network`` back.
    """
    if ranks.n == 1:
        return network
    # a copy of the modules alone: weights and buffers that are in the memo already are not copied
    tensors = chain(network.parameters(), network.buffers())
    copied = _share_batch_norm(deepcopy(network, {id(tensor): tensor for tensor in tensors}))
    return DistributedDataParallel(copied, broadcast_buffers=False)


def gathered(part: Tensor, ranks: Ranks) -> Tensor:
    """Return the parts of all ranks, (n B, ...), of which each passed one, (B, ...), with gradient to each of them."""
    if ranks.n == 1:
        return part
    whole = part.new_zeros(ranks.n, *part.shape)
    whole = torch.cat([whole[: ranks.rank], part[None], whole[ranks.rank + 1 :]])
    return summed(whole).flatten(0, 1)


class SharedBatchNorm(_BatchNorm):
    """Batch normalization over the images of all processes, of which each has as many.

    torch's own SyncBatchNorm is for GPUs alone, and so cannot be held against one process where there is none.

    Args:
        original: whose weights and buffers it has.
    """

    def __init__(self, original: _BatchNorm) -> None:
        super().__init__(original.num_features, original.eps, original.momentum)
        for name, tensor in (*original.named_parameters(), *original.named_buffers()):
            setattr(self, name, tensor)

    def _check_input_dim(self, input: Tensor) -> None:
        """Take features of any number of dimensions."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalized features, (B, C, *spatial)."""
        if not self.training:
            return super().forward(input)
        features, over = input.float(), [0, *range(2, input.dim())]
        shape = [1, -1] + [1] * (input.dim() - 2)
        n = summed(features.new_tensor(features.numel() / features.shape[1]))
        mean = summed(features.sum(over)) / n
        centred = features - mean.view(shape)
        variance = summed(centred.square().sum(over)) / n
        with torch.no_grad():
            self.get_buffer("num_batches_tracked").add_(1)
            self.get_buffer("running_mean").lerp_(mean, self.momentum or 0.0)
            self.get_buffer("running_var").lerp_(variance * n / (n - 1), self.momentum or 0.0)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (centred * scale.view(shape) + self.bias.view(shape)).to(input.dtype)


def _share_batch_norm(module: nn.Module) -> nn.Module:
    """Put SharedBatchNorm with the same weights and buffers in the place of each BatchNorm."""
    if isinstance(module, _BatchNorm):
        return SharedBatchNorm(module)
    for name, child in module.named_children():
        setattr(module, name, _share_batch_norm(child))
    return module
