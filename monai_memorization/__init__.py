# SPDX-License-Identifier: Apache-2.0
"""Find out whether a generative model hands out copies of its training patients.

The flow, and where it is:

    images       which images there are, whose they are, how one is read and prepared
    detector     degradations and views, the encoder and its training, embeddings, exact nearest neighbours
    statistics   paper protocol, calibrated protocol, gap, power, verdict: functions on plain tensors
    findings     what an audit counts and judges, from embeddings to verdict
    reporting    report.json and its tables, report.html, gallery.html
    auditing     audit(): all of it in one call
    serving      the answer for one image, for MONAI Label
    gating       gate(): does a report meet a policy?
    filtering    the set without the images that an audit suspects
    generation   train latent diffusion models, draw images from any generator
    releasing    release(): draw until enough images pass, and have another detector judge them
    handlers     the audit within a training
    demo, cli    the command line

Public names are imported when they are first used, as MONAI takes seconds to load.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from monai_memorization.version import __version__

if TYPE_CHECKING:
    from monai_memorization.auditing import audit
    from monai_memorization.detector.embeddings import Embeddings, embed
    from monai_memorization.detector.encoder import ContrastiveEncoder, load_encoder, save_encoder
    from monai_memorization.detector.encoder_training import train_encoder
    from monai_memorization.detector.neighbors import nearest
    from monai_memorization.errors import InputError
    from monai_memorization.filtering import filter_synthetic
    from monai_memorization.gating import gate
    from monai_memorization.images.division import split
    from monai_memorization.images.sets import ImageSet, read_image_set
    from monai_memorization.releasing import release

__all__ = [
    "ContrastiveEncoder",
    "Embeddings",
    "ImageSet",
    "InputError",
    "__version__",
    "audit",
    "embed",
    "filter_synthetic",
    "gate",
    "load_encoder",
    "nearest",
    "read_image_set",
    "release",
    "save_encoder",
    "split",
    "train_encoder",
]

_MODULES = {
    "ContrastiveEncoder": "detector.encoder",
    "Embeddings": "detector.embeddings",
    "ImageSet": "images.sets",
    "InputError": "errors",
    "audit": "auditing",
    "embed": "detector.embeddings",
    "filter_synthetic": "filtering",
    "gate": "gating",
    "load_encoder": "detector.encoder",
    "nearest": "detector.neighbors",
    "read_image_set": "images.sets",
    "release": "releasing",
    "save_encoder": "detector.encoder",
    "split": "images.division",
    "train_encoder": "detector.encoder_training",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
