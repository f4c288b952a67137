# SPDX-License-Identifier: Apache-2.0
"""Everything whose speed a GPU changes, measured in one run of a few minutes; one JSON.

Ceilings of the machine (matrix product, copy), exact search, registration, embedding, encoder training, both stages of
the default 2D recipe, sampling, compiled training last, since compiling is what may fail. Each figure is the median of
several timings after a warm-up, with their range. The results of the GPU are also held against those of the CPU.
Without a GPU it runs on the CPU, which `--tiny` makes a matter of seconds.

    python benchmarks/gpu.py --output gpu.json [--tiny]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from monai.bundle import ConfigParser
from monai.inferers import DiffusionInferer
from overhead import commit, machine
from torch import Tensor, nn

from monai_memorization.detector.contrastive import nt_xent
from monai_memorization.detector.embeddings import embed_batch
from monai_memorization.detector.encoder import ContrastiveEncoder
from monai_memorization.detector.neighbors import nearest
from monai_memorization.detector.registration import agreement
from monai_memorization.detector.views import Views
from monai_memorization.generation.sampling import LatentDiffusionSampler

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CONFIGS = Path(__file__).parents[1] / "bundles" / "latent_diffusion_2d" / "configs"
DIMENSIONS = 128
SIZES = ([128, 128], [512, 512])
N_STEPS = 20  # of the solver, as the sampler takes by default


def main() -> None:
    """Measure part by part; the JSON is written anew after each, so that a run that is cut off is not lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true", help="sizes that show that it runs, and nothing else")
    options = parser.parse_args()
    torch.manual_seed(0)
    result: dict[str, Any] = {"commit": commit(), "machine": machine()}
    parts = (_ceilings, _search, _registration, _encoder, _latent_diffusion, _compiled)
    for part in parts:
        start = time.perf_counter()
        result[part.__name__[1:]] = part(options.tiny) | {"seconds": round(time.perf_counter() - start, 1)}
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def _ceilings(tiny: bool) -> dict[str, Any]:
    """Rates of the largest plain operations: float32 and half-precision product, copy (bytes read and written)."""
    side = 256 if tiny else 8192
    matrix = torch.randn(side, side, device=DEVICE)
    half = matrix.bfloat16()
    block = torch.randn((1 << 16) if tiny else (1 << 28), device=DEVICE)
    return {
        "float32_tflops": _rate(lambda: matrix @ matrix, 2e-12 * side**3),
        "bfloat16_tflops": _rate(lambda: half @ half, 2e-12 * side**3),
        "copy_gb_per_s": _rate(block.clone, 8e-9 * len(block)),
    }


def _search(tiny: bool) -> dict[str, Any]:
    """Exact nearest neighbours of n in n embeddings, as a share of the float32 product alone; equal on the CPU."""
    sizes = (300, 700) if tiny else (10_000, 30_000, 100_000)
    result: dict[str, Any] = {}
    for n in sizes:
        query, reference = (torch.randn(n, DIMENSIONS, device=DEVICE) for _ in range(2))
        floating = 2e-12 * n * n * DIMENSIONS
        result[f"{n}"] = {
            "tflops": _rate(lambda q=query, r=reference: nearest(q, r), floating, repeats=3),
            "tflops_tensorfloat32": _rate(lambda q=query, r=reference: _coarse(nearest, q, r), floating, repeats=3),
            "top_5_tflops": _rate(lambda q=query, r=reference: nearest(q, r, k=5), floating, repeats=3),
            "product_only_tflops": _rate(lambda q=query, r=reference: _product(q, r), floating, repeats=3),
            "peak_extra_mb": _peak_mb(lambda q=query, r=reference: nearest(q, r)),
        }
    for k in (1, 5):
        similarity, index = nearest(query[:1000], reference[:30_000], k)
        on_cpu = nearest(query[:1000].cpu(), reference[:30_000].cpu(), k)
        result[f"top_{k}_of_1000_in_{min(len(reference), 30_000)}"] = {
            "same_index_as_cpu": bool((index.cpu() == on_cpu[1]).all()),
            "largest_difference_from_cpu": float((similarity.cpu() - on_cpu[0]).abs().max()),
        }
    return result


def _registration(tiny: bool) -> dict[str, Any]:
    """Images registered per second with four candidates each, and how far their agreement is from the CPU's."""
    result: dict[str, Any] = {}
    for name, sides in {"32x32": (32, 32), "24x24x24": (24, 24, 24)}.items():
        candidates = torch.randn(4 if tiny else 64, 4, 1, *sides)
        query = candidates[:, 0] + 0.5 * torch.randn(len(candidates), 1, *sides)
        on_device = query.to(DEVICE), candidates.to(DEVICE)
        difference = agreement(*on_device).cpu() - agreement(query, candidates)
        result[name] = {
            "registered_per_s": _rate(partial(agreement, *on_device), len(query)),
            "largest_difference_from_cpu": float(difference.abs().max()),
        }
    return result


def _train(encoder: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, views: Views) -> None:
    first, second = encoder(torch.cat([images, views(images)])).chunk(2)
    optimizer.zero_grad()
    nt_xent(first, second, 0.1).backward()
    optimizer.step()


def _product(query: Tensor, reference: Tensor) -> None:
    for rows in query.split(8192):
        for columns in reference.split(8192):
            rows @ columns.T


def _coarse(function: Callable[..., Any], *arguments: Any) -> None:
    """Call with products that are allowed to be rounded, on whose candidates the search looks again."""
    torch.set_float32_matmul_precision("high")
    function(*arguments)
    torch.set_float32_matmul_precision("highest")


def _encoder(tiny: bool) -> dict[str, Any]:
    """Images per second embedded and steps per second trained, and what of a step the views take."""
    cases = {"64x64": (64, 64), "128x128": (128, 128), "32x64x64": (32, 64, 64)}
    batch = 4 if tiny else 128
    result: dict[str, Any] = {}
    for name, size in {"16x16": (16, 16)}.items() if tiny else cases.items():
        images = torch.rand(batch, 1, *size, device=DEVICE)
        encoder = ContrastiveEncoder(size).to(DEVICE)
        if len(size) == 2:  # as its trainer does
            encoder = encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        optimizer = torch.optim.AdamW(encoder.parameters())
        views = Views()

        training = _rate(partial(_train, encoder, optimizer, images, views), 1)
        encoder.eval()
        on_device = embed_batch(encoder, images, DEVICE)
        result[name] = {
            "embedded_per_s": _rate(lambda e=encoder, i=images: embed_batch(e, i, DEVICE), batch),
            "embedded_per_s_bfloat16": _rate(lambda e=encoder, i=images: _autocast(embed_batch, e, i, DEVICE), batch),
            "training_steps_per_s": training,
            "views_per_s": _rate(lambda v=views, i=images: v(i), batch),
            "largest_difference_from_cpu": float(
                (on_device - embed_batch(encoder.cpu(), images.cpu())).abs().max() / on_device.abs().max()
            ),
        }
    return result


def _latent_diffusion(tiny: bool) -> dict[str, Any]:
    """Both stages of the default recipe (networks and batch sizes of the bundle's own configs), and sampling."""
    result: dict[str, Any] = {}
    for size in ([16, 16],) if tiny else SIZES:
        if DEVICE.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        parser = _recipe("train_autoencoder", size, tiny)
        autoencoder = parser.get_parsed_content("autoencoder_def").to(DEVICE)
        images = torch.rand(parser["autoencoder_batch_size"], 1, *size, device=DEVICE)
        diffusion, latents, loss = _denoising(size, tiny)
        ways: dict[str, Any] = {"float32": {}, "amp": {"amp": True}, "amp_channels_last": {"amp": True, "last": True}}
        n = 2 if tiny else 16
        sampler = LatentDiffusionSampler(
            autoencoder, diffusion, _solver(), latents.shape[1:], n_steps=2 if tiny else N_STEPS
        )
        result["x".join(map(str, size))] = {
            "autoencoder_steps_per_s": {
                way: _training_rate(autoencoder, lambda net, x=images: F.l1_loss(net(x)[0], x), **settings)
                for way, settings in ways.items()
            },
            "diffusion_steps_per_s": {
                way: _training_rate(diffusion, loss, **settings) for way, settings in ways.items()
            },
            "encoded_per_s": _rate(lambda a=autoencoder, x=images: _encode(a, x), len(images)),
            "sampled_per_s": _rate(lambda s=sampler, n=n: s(range(n)), n, repeats=3),
            "sampled_per_s_amp": _rate(lambda s=sampler, n=n: _autocast(s, range(n)), n, repeats=3),
            "peak_memory_gb": torch.cuda.max_memory_allocated() / 1e9 if DEVICE.type == "cuda" else None,
        }
    return result


def _compiled(tiny: bool) -> dict[str, Any]:
    """Steps per second of the diffusion stage as `torch.compile` makes it, in mixed precision."""
    if tiny:
        return {}
    result: dict[str, Any] = {}
    for size in SIZES:
        diffusion, _, loss = _denoising(size, tiny)
        result["x".join(map(str, size))] = _training_rate(diffusion, loss, amp=True, compiled=True)
    return result


def _denoising(size: list[int], tiny: bool) -> tuple[nn.Module, Tensor, Callable[[nn.Module], Tensor]]:
    """Return the network of the diffusion stage, made-up latents, and the loss of a network on them."""
    parser = _recipe("train_diffusion", size, tiny)
    factor = 2 ** (len(parser["autoencoder_channels"]) - 1)
    shape = (parser["latent_channels"], *(side // factor for side in size))
    latents = torch.randn(parser["diffusion_batch_size"], *shape, device=DEVICE)
    loss = partial(_denoising_loss, latents=latents, scheduler=parser.get_parsed_content("scheduler"))
    return parser.get_parsed_content("network_def").to(DEVICE), latents, loss


def _recipe(name: str, size: list[int], tiny: bool) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config([str(CONFIGS / f"{name}.json"), *([str(CONFIGS / "quick.yaml")] if tiny else [])])
    parser["image_size"] = size
    return parser


def _solver() -> Any:
    parser = ConfigParser()
    parser.read_config(str(CONFIGS / "inference.json"))
    return parser.get_parsed_content("scheduler")


def _training_rate(
    network: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    amp: bool = False,
    last: bool = False,
    compiled: bool = False,
) -> dict[str, float]:
    network = network.train().to(memory_format=torch.channels_last if last else torch.contiguous_format)
    called = torch.compile(network) if compiled else network
    optimizer = torch.optim.Adam(network.parameters(), 1e-5)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(DEVICE.type, dtype=torch.bfloat16, enabled=amp):
            value = loss(called)  # type: ignore[arg-type]
        value.backward()
        optimizer.step()

    return _rate(step, 1)


def _denoising_loss(network: nn.Module, latents: Tensor, scheduler: Any) -> Tensor:
    noise = torch.randn_like(latents)
    timesteps = torch.randint(scheduler.num_train_timesteps, (len(latents),), device=latents.device)
    return DiffusionInferer(scheduler)(latents, network, noise, timesteps).float().square().mean()  # type: ignore[arg-type]


def _encode(autoencoder: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        autoencoder.encode(images)  # type: ignore[operator]


def _autocast(function: Callable[..., Any], *arguments: Any) -> None:
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        function(*arguments)


def _rate(function: Callable[[], Any], work: float, repeats: int = 5, least: float = 0.2) -> dict[str, float]:
    """Time a function, and give ``work`` done in one call per second: median and range of the timings.

    Args:
        function: what is timed, called until a timing lasts ``least`` seconds.
        work: done by one call, in any unit.
        repeats: timings.
        least: seconds.
    """
    calls = 1
    for _ in range(2):  # warm up, then see how long it takes
        seconds = _time(function, 1)
    calls = max(1, round(least / seconds)) if seconds < least else 1
    rates = [work * calls / _time(function, calls) for _ in range(repeats)]
    return {"median": _round(statistics.median(rates)), "least": _round(min(rates)), "most": _round(max(rates))}


def _time(function: Callable[[], Any], calls: int) -> float:
    _synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    _synchronize()
    return time.perf_counter() - start


def _synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def _peak_mb(function: Callable[[], Any]) -> float | None:
    if DEVICE.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return _round((torch.cuda.max_memory_allocated() - before) / 1e6)


def _round(value: float) -> float:
    return float(f"{value:.4g}")


if __name__ == "__main__":
    main()
