# SPDX-License-Identifier: Apache-2.0
"""Shards: what is kept of some hundred images at a time, so that an audit goes on where it stopped.

A shard is found again by a hash of everything that it depends on: the contents of its images, the weights, the
preparation, the code and the libraries. So a changed image or encoder is never served what was kept of another. It is
kept or computed as a whole, in the same batches, since the last bits of an embedding can depend on its batch: a result
is the same to the bit whatever was kept.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

from monai_memorization.detector.encoder import ContrastiveEncoder
from monai_memorization.files import write_bytes

LIBRARIES = ("torch", "monai", "numpy", "nibabel", "pillow", "pydicom")


@dataclass(frozen=True)
class Shard:
    """What is kept of n images.

    Args:
        vectors: embeddings, float32 (n, D).
        thumbnails: the images shrunk, float32 (n, E).
        structure: their fine structure, float16 (n, C, *sides).
        digests: hash of each prepared image, uint8 (n, 16).
        n_scaled: number of images that had another size than the encoder's.
    """

    vectors: Tensor
    thumbnails: Tensor
    structure: Tensor
    digests: Tensor
    n_scaled: int


def write_shard(shard: Shard, path: Path) -> None:
    """Write a shard, whole or not at all."""
    content = io.BytesIO()
    torch.save(asdict(shard), content)
    write_bytes(path, content.getvalue())


def read_shard(path: Path) -> Shard | None:
    """Read a shard; None where there is none, or a crash of the machine left it damaged."""
    try:
        return Shard(**torch.load(path, weights_only=True))
    except (OSError, RuntimeError, EOFError, ValueError, TypeError, pickle.UnpicklingError):
        return None


def name_shard(settings: bytes, contents: Sequence[str]) -> str:
    """Return the file name of a shard: a hash of what it depends on.

    Args:
        settings: see :func:`hash_settings`.
        contents: hashes of the images, in their order.
    """
    return hashlib.blake2b(settings + "\n".join(contents).encode(), digest_size=16).hexdigest() + ".pt"


def hash_settings(encoder: ContrastiveEncoder, batch_size: int, device: str | torch.device) -> bytes:
    """Hash everything but the images that embeddings depend on."""
    settings = (hash_weights(encoder), encoder.settings, encoder.preparation, batch_size, torch.device(device).type)
    return hashlib.blake2b(repr((settings, hash_code())).encode()).digest()


def hash_weights(network: nn.Module) -> str:
    """Hash the values of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.cpu().numpy().tobytes())
    return digest.hexdigest()


@cache
def hash_code() -> str:
    """Hash the code that reads, prepares and embeds images, ours and that of libraries."""
    digest = hashlib.blake2b(repr([version(name) for name in LIBRARIES]).encode())
    package = Path(__file__).parents[1]
    for file in sorted(file for room in ("images", "detector") for file in (package / room).glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()
