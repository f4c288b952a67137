# SPDX-License-Identifier: Apache-2.0
"""What the tests of several processes run on each of them: ``python ranks_at_work.py NAME``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from ignite.engine import Events
from made_up_images import smooth_images
from monai.bundle import ConfigWorkflow
from monai.inferers import SimpleInferer
from torch import Tensor, nn

from monai_memorization.cli import main
from monai_memorization.detector.contrastive import nt_xent
from monai_memorization.detector.embeddings import embed
from monai_memorization.detector.encoder import ContrastiveEncoder, load_encoder
from monai_memorization.detector.encoder_training import train_encoder
from monai_memorization.detector.parallel import gathered, parallel
from monai_memorization.images.prepared import prepared_images
from monai_memorization.images.sets import read_image_set
from monai_memorization.ranks import ALONE, Ranks, current_ranks, on_every_rank, stop


def gradients(ranks: Ranks) -> dict[str, Tensor]:
    """The loss of one batch of eight images, its gradients, and the buffers afterwards."""
    torch.manual_seed(0)
    encoder = ContrastiveEncoder((16, 16), embedding_size=8, widths=(4, 8), halvings=1)
    images = smooth_images(8, (16, 16))[:, None]
    views, own = (images + 0.1 * torch.randn(images.shape)).clamp(0, 1), ranks.rows(8)
    network = parallel(encoder, ranks).train()
    embeddings = network(torch.cat([images[own], views[own]]))
    loss = nt_xent(*(gathered(part, ranks) for part in embeddings.chunk(2)), temperature=0.1)
    loss.backward()
    weights: nn.Module = encoder
    found = {name: value.grad for name, value in weights.named_parameters() if value.grad is not None}
    return found | dict(weights.named_buffers()) | {"loss": loss.detach()}


def losses(folder: Path) -> list[float]:
    """The losses of five steps of a training with batches of eight of ten images."""
    told: list[float] = []

    class Notes:
        def attach(self, engine) -> None:
            engine.add_event_handler(
                Events.ITERATION_COMPLETED, lambda: told.append(engine.state.output["loss"].item())
            )

    images = prepared_images(folder, (16, 16))
    train_encoder(images, 5, widths=(4, 8), batch_size=8, inferer=SimpleInferer(), train_handlers=[Notes()])
    return told


@on_every_rank
def train() -> None:
    ranks = current_ranks()
    found = {"gradients": gradients(ranks), "losses": losses(Path("training")), "seeds": [ranks.rank, ranks.n]}
    torch.save(found, f"rank{ranks.rank}.pt")


@on_every_rank
def embed_set() -> None:
    images = read_image_set("holed", "training")
    for cache_dir in (None, Path("cache"), Path("cache")):
        embedded = embed(load_encoder("model.pt"), images, 2, cache_dir=cache_dir, skip_unreadable=True)
    assert sorted(path.suffix for path in Path("cache").iterdir()) == [".pt"] * 2  # of three, one is not whole
    kept = {"vectors": embedded.vectors, "digests": embedded.digests, "names": embedded.images.image_ids}
    torch.save(kept | {"unreadable": embedded.unreadable}, f"embedded{current_ranks().rank}.pt")


def audits() -> None:
    """Embed a set, audit it, and audit one with an image that only rank 1 finds out cannot be read."""
    embed_set()
    words = ["audit", "--training", "training", "--validation", "validation", "--encoder", "model.pt"]
    assert main([*words, "--synthetic", "synthetic", "--output-dir", "out", "--gallery"]) == 0
    assert main([*words, "--synthetic", "broken", "--output-dir", "failed"]) == 2
    Path("failed_on_rank_0").touch()


def run_config(bundle: str, name: str, *further: str, **options: object) -> ConfigWorkflow:
    """Run a config of a bundle with its multi-GPU override."""
    configs = Path(__file__).parent.parent / "bundles" / bundle / "configs"
    files = [str(configs / f"{prefix}{name}.json") for prefix in ("", "multi_gpu_")]
    workflow = ConfigWorkflow([*files, *further], logging_file=False, **options)
    workflow.initialize()
    workflow.run()
    torch.distributed.barrier()  # as the end of a command: the next one reads what rank 0 may still be writing
    return workflow


def bundles() -> None:
    """Both stages of the 2D bundle and its inference, then training and inference of the audit bundle."""
    options = json.loads(Path("options.json").read_text())
    found: dict[str, Tensor] = {}
    for name in ("train_autoencoder", "train_diffusion"):
        workflow = run_config("latent_diffusion_2d", name, "record.json", **options)
        for key, value in workflow.parser.get_parsed_content("network_def").state_dict().items():
            found[f"{name} {key}"] = value
    torch.save(found, f"weights{torch.distributed.get_rank()}.pt")
    run_config("latent_diffusion_2d", "inference", **options | {"output_dir": "drawn"})
    size = {"image_size": [32, 32], "batch_size": 8}
    short = {"max_epochs": 1, "epoch_length": 3, "training": "training", "output_dir": "encoder"}
    run_config("memorization_audit", "train", **size | short)
    given = {"images": "training", "encoder_weights": "encoder/model.pt", "output_dir": "embedded"}
    run_config("memorization_audit", "inference", **size | given).finalize()


if __name__ == "__main__":
    globals()[sys.argv[1]]()
    assert current_ranks() is ALONE
    stop()
    threads = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    assert not [name for name in threads if "gloo" in name], threads
