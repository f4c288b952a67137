# SPDX-License-Identifier: Apache-2.0
"""What is in the files of a set, whatever their names and times: hashes by which an image is known again."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

from monai_memorization.images.sets import kind
from monai_memorization.ranks import current_ranks

N_THREADS = 8


def hash_contents(paths: Sequence[Path]) -> list[str]:
    """Hash the bytes of files, and how they would be read; each rank those of its part.

    Args:
        paths: n images: files, or folders of DICOM slices, whose names within the folder count too.

    Returns:
        n hashes; equal for equal files. That of one that cannot be opened is like no other's.
    """
    ranks = current_ranks()
    with ThreadPoolExecutor(N_THREADS) as pool:
        own = list(pool.map(hash_content, paths[ranks.rows(len(paths))]))
    return list(chain.from_iterable(ranks.gather(own)))


def hash_content(path: Path) -> str:
    """Hash one image; see :func:`hash_contents`."""
    digest = hashlib.blake2b(digest_size=16)
    try:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file == path or (file.is_file() and not file.name.startswith(".")):
                digest.update(repr((file.relative_to(path).as_posix(), kind(file), file.stat().st_size)).encode())
                with file.open("rb") as opened:
                    while part := opened.read(1 << 20):
                        digest.update(part)
    except OSError:
        return hashlib.blake2b(os.fsencode(path), digest_size=16).hexdigest()
    return digest.hexdigest()
