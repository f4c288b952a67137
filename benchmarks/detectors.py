# SPDX-License-Identifier: Apache-2.0
"""Detectors of copies that are compared by detection.py, each built from the prepared training images alone.

A detector takes images (n, C, *spatial) in [0, 1] and returns how much each is like a copy, (n,), larger is more, and
the training image that it is taken for, (n,). They share images, calibration and, where they are too slow to look at
all training images, the candidates: the ``N_CANDIDATES`` nearest by pixel correlation.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations, product
from pathlib import Path

import torch
import torch.nn.functional as F
from monai.losses import SSIMLoss
from monai.metrics import MultiScaleSSIMMetric
from monai.networks.nets import AutoencoderKL, resnet50
from scipy.fft import dctn
from torch import Tensor, nn

from monai_memorization.detector import degradations
from monai_memorization.detector.contrastive import MixedPrecisionInferer, nt_xent
from monai_memorization.detector.embeddings import embed_batch
from monai_memorization.detector.encoder import ContrastiveEncoder, load_encoder
from monai_memorization.detector.encoder_training import train_encoder
from monai_memorization.detector.near_identical import flips
from monai_memorization.detector.neighbors import nearest
from monai_memorization.detector.registration import fine_structure
from monai_memorization.detector.scores import copy_scores
from monai_memorization.generation.autoencoding import kl_divergence
from monai_memorization.generation.latents import encode
from monai_memorization.images.prepared import PreparedImages

Detector = Callable[[Tensor], tuple[Tensor, Tensor]]
N_CANDIDATES = 8
N_CALIBRATING = 50  # neighbours whose mean distance calibrates L2, as in Carlini et al. 2023
HASH_SIDE, HASH_BITS_SIDE = 32, {2: 8, 3: 4}
ALIGNED_SIDE = {2: 32, 3: 12}


def by_nearest(represent: Callable[[Tensor], Tensor], training: Tensor, batch_size: int = 64) -> Detector:
    """Return the detector whose score is the correlation of representations with that of the nearest training image."""

    def represent_all(images: Tensor) -> Tensor:
        return torch.cat([represent(batch.float()) for batch in images.split(batch_size)])

    reference = represent_all(training)

    def detect(images: Tensor) -> tuple[Tensor, Tensor]:
        similarity, index = nearest(represent_all(images), reference)
        return similarity[:, 0], index[:, 0]

    return detect


def pixel_correlation(training: PreparedImages, seed: int) -> Detector:
    """Pearson correlation of the pixels (Akbar et al. 2023)."""
    return by_nearest(_pixels, training.pixels)


def l2(training: PreparedImages, seed: int) -> Detector:
    """Distance of the pixels to the nearest training image."""
    reference = _pixels(training.pixels)

    def detect(images: Tensor) -> tuple[Tensor, Tensor]:
        distance, index = torch.cdist(_pixels(images), reference).min(dim=1)
        return -distance, index

    return detect


def calibrated_l2(training: PreparedImages, seed: int) -> Detector:
    """Distance to the nearest training image over the mean distance to the nearest 50 (Carlini et al. 2023)."""
    reference = _pixels(training.pixels)

    def detect(images: Tensor) -> tuple[Tensor, Tensor]:
        k = min(N_CALIBRATING, len(reference))
        distance, index = torch.cdist(_pixels(images), reference).topk(k, dim=1, largest=False)
        return -distance[:, 0] / distance.mean(dim=1).clamp_min(1e-9), index[:, 0]

    return detect


def ssim(training: PreparedImages, seed: int) -> Detector:
    """Structural similarity, of the candidates nearest by pixel correlation; window of 7."""
    d = training.pixels.dim() - 2
    loss = SSIMLoss(d, win_size=7, reduction="none")
    return _by_pairs(training, lambda first, second: 1 - loss(first, second).flatten(1).mean(dim=1))


def ms_ssim(training: PreparedImages, seed: int) -> Detector:
    """Structural similarity at two scales, for these images are small; candidates as of :func:`ssim`."""
    d = training.pixels.dim() - 2
    metric = MultiScaleSSIMMetric(d, kernel_size=5, kernel_sigma=1.0, weights=(0.4, 0.6))
    return _by_pairs(training, lambda first, second: metric._compute_metric(first, second).flatten(1).mean(dim=1))


def perceptual_hash(training: PreparedImages, seed: int) -> Detector:
    """Hamming distance of the signs of the lowest cosine frequencies about their median (pHash), in 3D likewise."""
    return by_nearest(_hash, training.pixels)


def aligned_thumbnails(training: PreparedImages, seed: int) -> Detector:
    """Pearson correlation of thumbnails, the largest over flips, rotations by 5 and 10 degrees and shifts by 5 %."""
    side = ALIGNED_SIDE[training.pixels.dim() - 2]
    reference = _pixels(_thumbnails(training.pixels.float(), side))

    def detect(images: Tensor) -> tuple[Tensor, Tensor]:
        best, match = torch.full((len(images),), -2.0), torch.zeros(len(images), dtype=torch.int64)
        for moved in _small_moves(_thumbnails(images, side)):
            similarity, index = nearest(_pixels(moved), reference)
            better = similarity[:, 0] > best
            best, match = torch.where(better, similarity[:, 0], best), torch.where(better, index[:, 0], match)
        return best, match

    return detect


def random_network(training: PreparedImages, seed: int) -> Detector:
    """Our encoder without any training, the control of what training adds."""
    torch.manual_seed(seed)
    preparation = training.preparation
    encoder = ContrastiveEncoder(preparation.image_size, preparation.channels).eval()
    return by_nearest(lambda images: embed_batch(encoder, images), training.pixels)


def paper_recipe(training: PreparedImages, seed: int, n_steps: int = 300) -> Detector:
    """The paper's detector from its description: ResNet-50 to 128 values, flip and 5 degrees, NT-Xent at 0.07.

    One of each pair is the image as it is; Adam at 1e-4, falling to 5e-5 along a cosine, batch 64. From random weights
    and with fewer steps than the paper, as stated with the results.
    """
    torch.manual_seed(seed)
    preparation = training.preparation
    d = len(preparation.image_size)
    network = resnet50(spatial_dims=d, n_input_channels=preparation.channels, num_classes=128)
    if d == 2:
        network = network.to(memory_format=torch.channels_last)  # half the time in bfloat16
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, n_steps, eta_min=5e-5)
    call = MixedPrecisionInferer()
    for _ in range(n_steps):
        images = training.pixels[torch.randperm(len(training))[:64]].float()
        n = len(images)
        flipped = torch.zeros(n, d, dtype=torch.bool)
        flipped[:, -1] = torch.rand(n) < 0.5
        angles = (torch.rand(n, d * (d - 1) // 2) * 10 - 5) * (torch.rand(n, 1) < 0.5)
        first, second = call(torch.cat([images, degradations.affine(images, angles, flips=flipped)]), network).chunk(2)
        optimizer.zero_grad()
        nt_xent(first, second, 0.07).backward()
        optimizer.step()
        scheduler.step()
    network.eval()
    return by_nearest(lambda images: embed_batch(network, images), training.pixels)


def autoencoder_latents(training: PreparedImages, seed: int, n_steps: int = 1000) -> Detector:
    """Latents of the autoencoder of a latent diffusion model, trained on these images: an embedding that comes free.

    The network of the bundles' quick recipe, Adam at 1e-3, batch 16, L1 and KL at 1e-6; without features and adversary,
    which change what is decoded more than what is encoded.
    """
    torch.manual_seed(seed)
    channels, sides = training.preparation.channels, training.preparation.image_size
    network = AutoencoderKL(
        spatial_dims=len(sides),
        in_channels=channels,
        out_channels=channels,
        channels=(16, 32, 32),
        num_res_blocks=(1, 1, 1),
        attention_levels=(False, False, False),
        norm_num_groups=4,
        with_encoder_nonlocal_attn=False,
        with_decoder_nonlocal_attn=False,
        include_fc=False,
    )
    padding = [size for side in reversed(sides) for size in (0, -side % 4)]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(n_steps):
        images = F.pad(training.pixels[torch.randperm(len(training))[:16]].float(), padding)
        reconstruction, mu, sigma = network(images)
        optimizer.zero_grad()
        (F.l1_loss(reconstruction, images) + 1e-6 * kl_divergence(mu, sigma)).backward()
        optimizer.step()
    return by_nearest(lambda images: encode(network, F.pad(images, padding)).flatten(1), training.pixels)


def encoder_alone(training: PreparedImages, seed: int, encoder: Path | None = None) -> Detector:
    """Our encoder, the embedding alone."""
    network = _encoder(training, seed, encoder)
    return by_nearest(lambda images: embed_batch(network, images), training.pixels)


def registration_alone(training: PreparedImages, seed: int) -> Detector:
    """Registration of the candidates nearest by pixel correlation, without an encoder."""
    reference = _structure(training.pixels)
    vectors = _pixels(training.pixels)

    def detect(images: Tensor) -> tuple[Tensor, Tensor]:
        return copy_scores(_pixels(images), _structure(images), vectors, reference, training.images.patient_ids)[:2]

    return detect


def ours(training: PreparedImages, seed: int, encoder: Path | None = None) -> Detector:
    """The detector of this package: the embedding, and registration of the nearest."""
    network = _encoder(training, seed, encoder)

    def vectors_of(images: Tensor) -> Tensor:
        return torch.cat([embed_batch(network, batch.float()) for batch in images.split(64)])

    vectors, reference = vectors_of(training.pixels), _structure(training.pixels)

    def detect(images: Tensor) -> tuple[Tensor, Tensor]:
        return copy_scores(vectors_of(images), _structure(images), vectors, reference, training.images.patient_ids)[:2]

    return detect


DETECTORS: dict[str, Callable[..., Detector]] = {
    "pixel_correlation": pixel_correlation,
    "l2": l2,
    "calibrated_l2": calibrated_l2,
    "ssim": ssim,
    "ms_ssim": ms_ssim,
    "perceptual_hash": perceptual_hash,
    "aligned_thumbnails": aligned_thumbnails,
    "random_network": random_network,
    "paper_recipe": paper_recipe,
    "autoencoder_latents": autoencoder_latents,
    "encoder_alone": encoder_alone,
    "registration_alone": registration_alone,
    "ours": ours,
}
TRAINED_BY_US = ("encoder_alone", "ours")


def _encoder(training: PreparedImages, seed: int, path: Path | None) -> nn.Module:
    return load_encoder(path) if path is not None else train_encoder(training, seed=seed)


def _pixels(images: Tensor) -> Tensor:
    # a faint fixed pattern, lest an image be constant and its correlation undefined
    flat = images.float().flatten(1)
    return flat + 1e-6 * torch.linspace(-1, 1, flat.shape[1])


def _structure(images: Tensor) -> Tensor:
    return torch.cat([fine_structure(batch.float()) for batch in images.split(64)])


def _thumbnails(images: Tensor, side: int) -> Tensor:
    return F.interpolate(images, size=[min(side, size) for size in images.shape[2:]], mode="area")


def _by_pairs(training: PreparedImages, similarity: Callable[[Tensor, Tensor], Tensor]) -> Detector:
    """Return the detector of a similarity of pairs, taken of the candidates nearest by pixel correlation."""
    reference = _pixels(training.pixels)

    @torch.no_grad()
    def detect(images: Tensor) -> tuple[Tensor, Tensor]:
        index = nearest(_pixels(images), reference, min(N_CANDIDATES, len(reference)))[1]
        values = torch.stack([similarity(images, training.pixels[column].float()) for column in index.T], dim=1)
        best, column = values.max(dim=1)
        return best, index.gather(1, column[:, None])[:, 0]

    return detect


def _hash(images: Tensor) -> Tensor:
    d = images.dim() - 2
    thumbnails = _thumbnails(images, HASH_SIDE).mean(dim=1)
    frequencies = torch.from_numpy(dctn(thumbnails.numpy(), axes=range(1, d + 1)))
    lowest = frequencies[(slice(None), *[slice(0, HASH_BITS_SIDE[d])] * d)].flatten(1)[:, 1:]
    # of signs with equally many of both, the correlation is 1 - 2 Hamming distance / bits
    return torch.where(lowest > lowest.median(dim=1, keepdim=True).values, 1.0, -1.0)


def _small_moves(images: Tensor) -> list[Tensor]:
    """The images after each flip, rotation in one plane and shift along one axis, or two in 2D."""
    n, d = len(images), images.dim() - 2
    planes = len(list(combinations(range(d), 2)))
    turns = [[0.0] * planes]
    for plane, angle in product(range(planes), (-10.0, -5.0, 5.0, 10.0)):
        turns.append([angle if p == plane else 0.0 for p in range(planes)])
    shifts = [list(s) for s in product((-0.05, 0.0, 0.05), repeat=d) if d == 2 or sum(map(bool, s)) <= 1]
    moved = []
    for turn, shift in product(turns, shifts):
        turned = degradations.affine(images, torch.tensor([turn]).expand(n, -1), torch.tensor([shift]).expand(n, -1))
        moved += [turned.flip(axes) for axes in flips(d)]
    return moved
