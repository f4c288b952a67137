# SPDX-License-Identifier: Apache-2.0
"""A few large denoising steps that draw what the thousand small ones of DDPM would, each image from its own noise."""

from __future__ import annotations

import hashlib
import math
from copy import deepcopy
from typing import Any

import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, Scheduler
from torch import Tensor

# log of alpha_t / sigma_t below which nothing is left of an image; some schedules end at minus infinity
LEAST_LOG_RATIO = -6.0


class DPMSolverScheduler(DDIMScheduler):
    """SDE-DPM-Solver++(2M) (Lu et al. 2022, "DPM-Solver++", section 5), as a scheduler of MONAI.

    DDPM adds noise in each step, and so mends what earlier steps got wrong; DDIM does not, and shows fewer copies of
    the same model. This solver adds noise as DDPM does, but needs few steps, as each makes use of the images that the
    step before foresaw. Steps are evenly spaced in log(alpha_t / sigma_t). An image's noise comes from a stream that
    its first noise seeds, so that the image depends on that alone, not on what it is drawn together with.

    The arguments are those of ``DDIMScheduler``.
    """

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Choose the steps: first, last and what lies between, at most ``num_inference_steps`` of them."""
        super().set_timesteps(num_inference_steps, device)
        ratios = self._log_ratios().clamp_min(LEAST_LOG_RATIO)
        even = torch.linspace(float(ratios[-1]), float(ratios[0]), num_inference_steps, dtype=ratios.dtype)
        self.timesteps = (ratios - even[:, None]).abs().argmin(dim=1).unique().flip(0).to(device or "cpu")

    def step(  # type: ignore[override]
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, **_: Any
    ) -> tuple[Tensor, Tensor]:
        """Go one step towards the images; steps are taken in the order of ``timesteps``.

        Args:
            model_output: what the network says, (B, C, *spatial).
            timestep: one of ``timesteps``.
            sample: what the network was asked about, of the same shape; standard normal noise in the first step.

        Returns:
            What to ask about in the next step, or in the last step the images, and the images as foreseen now.
        """
        now = int(timestep)
        foreseen = self._foresee(model_output, now, sample)
        later = self.timesteps[self.timesteps < now]
        if now == int(self.timesteps[0]):
            self._streams, self._before = _seed_streams(sample), (now, foreseen)
        if len(later) == 0:
            return foreseen, foreseen
        then, (before, foreseen_before) = int(later[0]), self._before
        self._before = now, foreseen
        ratios = self._log_ratios().tolist()
        change = ratios[then] - ratios[now]
        # the images as foreseen, continued along a line through those of the step before
        slope = 0.0 if before == now else change / (2 * (ratios[now] - ratios[before]))
        images = foreseen + slope * (foreseen - foreseen_before)
        signal, spread = self._weights(then)
        kept = spread / self._weights(now)[1] * math.exp(-change)
        renewed = -math.expm1(-2 * change)
        noise = torch.stack([torch.randn(sample.shape[1:], generator=stream) for stream in self._streams])
        return kept * sample + signal * renewed * images + spread * math.sqrt(renewed) * noise.to(sample), foreseen

    def _foresee(self, model_output: Tensor, timestep: int, sample: Tensor) -> Tensor:
        """Return the images that the network foresees."""
        signal, spread = self._weights(timestep)
        images = {
            "epsilon": lambda: (sample - spread * model_output) / signal,
            "sample": lambda: model_output,
            "v_prediction": lambda: signal * sample - spread * model_output,
        }[str(self.prediction_type)]()
        return images.clamp(*self.clip_sample_values) if self.clip_sample else images

    def _weights(self, timestep: int) -> tuple[float, float]:
        """Return alpha_t and sigma_t, the weights of image and noise."""
        share = float(self.alphas_cumprod[timestep])
        return math.sqrt(share), math.sqrt(1 - share)

    def _log_ratios(self) -> Tensor:
        """Return log(alpha_t / sigma_t) of each step of the training, float64."""
        return self.alphas_cumprod.double().cpu().logit() / 2


def solver_of(scheduler: Scheduler) -> Scheduler:
    """Copy a noise schedule for drawing; that of DDPM or DDIM is given to :class:`DPMSolverScheduler`."""
    if not isinstance(scheduler, DDPMScheduler | DDIMScheduler):
        return deepcopy(scheduler)
    low, high = scheduler.clip_sample_values
    solver = DPMSolverScheduler(
        scheduler.num_train_timesteps,
        clip_sample=scheduler.clip_sample,
        clip_sample_min=low,
        clip_sample_max=high,
        prediction_type=str(scheduler.prediction_type),
    )
    for name in ("betas", "alphas", "alphas_cumprod"):
        setattr(solver, name, getattr(scheduler, name).clone())
    return solver


def _seed_streams(noise: Tensor) -> list[torch.Generator]:
    """Return a stream of random numbers for each item of a batch of noise, that its values seed."""
    values = noise.float().cpu().contiguous().numpy()
    seeds = (hashlib.blake2b(item.tobytes(), digest_size=8).digest() for item in values)
    return [torch.Generator().manual_seed(int.from_bytes(seed, "big")) for seed in seeds]
