# SPDX-License-Identifier: Apache-2.0
"""What layout, precision and compilation of the networks are worth on a CPU; the package's choices rest on it.

Training steps of encoder, autoencoder and diffusion model, embedding and decoding: in float32, with channels_last, in
bfloat16, in both, and compiled. Median CPU time of one thread, in seconds; compiling is not in it. Where the processor
has no instructions for bfloat16, which then takes ten times as long, null. `gpu.py` measures GPUs.

    python benchmarks/precision.py --output precision.json [--tiny]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from overhead import commit, machine
from torch import Tensor, nn
from training_rates import BATCH, CASES, SIZES, TINY_CASES, Case, denoising_step, parse, rounded, seconds, train_step

from monai_memorization.detector.contrastive import computes_in_bfloat16
from monai_memorization.detector.embeddings import embed_batch
from monai_memorization.detector.encoder import ContrastiveEncoder
from monai_memorization.files import write_text

WAYS = {
    "float32": (False, False),
    "channels_last": (True, False),
    "bfloat16": (False, True),
    "channels_last, bfloat16": (True, True),
}


def main(arguments: list[str] | None = None) -> None:
    """Measure case by case; the JSON is written anew after each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="sizes that show that it runs, and nothing else")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    result: Case = {"commit": commit(), "machine": machine(), "threads": torch.get_num_threads(), "seconds": {}}
    for name, size in {"16x16": (16, 16)}.items() if options.tiny else SIZES.items():
        result["seconds"][f"encoder, {name}"] = times_of_encoder(size, 4 if options.tiny else BATCH)
        write_text(options.output, json.dumps(result, indent=1) + "\n")
    for name, case in TINY_CASES.items() if options.tiny else CASES.items():
        result["seconds"][name] = times_of_latent_diffusion(case)
        write_text(options.output, json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def times_of_encoder(size: tuple[int, ...], n: int) -> Case:
    """Times of a training step without its views, and of embedding two batches."""
    images = torch.rand(n, 1, *size)

    def train(network: nn.Module) -> Callable[[], Any]:
        return partial(train_step, network, torch.optim.AdamW(network.parameters()), images, torch.clone)

    def embed(network: nn.Module) -> Callable[[], Any]:
        return partial(embed_batch, network.eval(), torch.cat([images, images]))

    new = partial(ContrastiveEncoder, size)
    return {"training step": in_all_ways(new, train), "embedding": in_all_ways(new, embed)}


def times_of_latent_diffusion(case: Case) -> Case:
    """Times of a training step of autoencoder, without its discriminator, and diffusion model, and of decoding."""
    stages = {name: parse(f"train_{name}", case) for name in ("autoencoder", "diffusion")}
    images = torch.rand(stages["autoencoder"]("autoencoder_batch_size"), 1, *stages["autoencoder"]("image_size"))
    with torch.no_grad():
        latent = stages["autoencoder"]("autoencoder_def").encode(images[:1])[0]
    latents = torch.randn(stages["diffusion"]("diffusion_batch_size"), *latent.shape[1:])

    def train_autoencoder(network: nn.Module) -> Callable[[], Any]:
        return partial(reconstruction_step, network, torch.optim.Adam(network.parameters()), images)

    def train_diffusion(network: nn.Module) -> Callable[[], Any]:
        optimizer = torch.optim.AdamW(network.parameters())
        return partial(denoising_step, network, optimizer, stages["diffusion"]("scheduler"), latents)

    def decoder() -> nn.Module:
        autoencoder = parse("train_autoencoder", case)("autoencoder_def").eval()
        return nn.Sequential(autoencoder.post_quant_conv, autoencoder.decoder)

    return {
        "autoencoder step": in_all_ways(lambda: parse("train_autoencoder", case)("autoencoder_def"), train_autoencoder),
        "decoding": in_all_ways(decoder, lambda network: partial(decoded, network, latents)),
        "diffusion step": in_all_ways(lambda: parse("train_diffusion", case)("network_def"), train_diffusion),
    }


def reconstruction_step(network: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor) -> None:
    """Take one step on the difference alone."""
    optimizer.zero_grad()
    F.l1_loss(network(images)[0], images).backward()
    optimizer.step()


@torch.no_grad()
def decoded(network: nn.Module, latents: Tensor) -> Tensor:
    """Return the images of latents."""
    return torch.as_tensor(network(latents))


def in_all_ways(new: Callable[[], nn.Module], work: Callable[[nn.Module], Callable[[], Any]]) -> dict[str, Any]:
    """Return the seconds of what ``work`` makes of a new network, by way; or why torch cannot compile it."""
    times: dict[str, Any] = {}
    for way, (last, half) in WAYS.items():
        if half and not computes_in_bfloat16():
            times[way] = None
            continue
        network = new()
        if last:
            is_3d = max(weights.ndim for weights in network.parameters()) == 5
            network = network.to(memory_format=torch.channels_last_3d if is_3d else torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            times[way] = rounded(seconds(work(network)))
    torch.compiler.reset()
    try:
        times["compiled"] = rounded(seconds(work(torch.compile(new()))))
    except RuntimeError as error:
        times["compiled"] = type(error).__name__
    return times


if __name__ == "__main__":
    main()
