# SPDX-License-Identifier: Apache-2.0
"""MONAI Label app: is this image a near copy of a training image? As a classification, with a score.

    monailabel start_server --app docs/monai_label --studies IMAGES --conf bundle FOLDER_OF_THE_BUNDLE

The bundle needs its weights and its reference; docs/monai_label.md of the repository says how to write both.
"""

from __future__ import annotations

from typing import Any

from monai.transforms import SaveImaged
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.tasks.infer.bundle import BundleInferTask

from monai_memorization.serving import CandidateMapd


class CopyInferTask(BundleInferTask):
    """The audit bundle without its map, and with the detector's score and the p-value beside that of the label.

    Args:
        path: folder of the bundle.
        conf: what the server was started with.
    """

    def __init__(self, path: str, conf: dict[str, str]) -> None:
        super().__init__(
            path,
            conf,
            type="classification",
            post_filter=[SaveImaged, CandidateMapd],
            add_post_restore=False,
            load_strict=True,
        )

    def writer(self, data: dict[str, Any], extension: str | None = None, dtype: str | None = None) -> tuple[None, Any]:
        """Return no file and the answer."""
        _, answer = super().writer(data, extension, dtype)
        return None, answer | data["result"]


class MyApp(MONAILabelApp):
    """The app; MONAI Label looks for this name.

    Args:
        app_dir: folder of this file.
        studies: folder or address of the images.
        conf: what the server was started with; ``bundle`` is the folder of the audit bundle.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="Copies of training images",
            description="Is an image a near copy of one that a generator was trained on?",
        )

    def init_infers(self) -> dict[str, InferTask]:
        """Return the one task."""
        return {"memorization_audit": CopyInferTask(self.conf["bundle"], self.conf)}
