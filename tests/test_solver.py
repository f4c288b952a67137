# SPDX-License-Identifier: Apache-2.0
"""The solver: with a network that is exactly right, what is drawn has the distribution that the network knows."""

from __future__ import annotations

import math

import pytest
import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, PNDMScheduler
from torch import Tensor, nn

from monai_memorization.generation.denoising import denoise
from monai_memorization.generation.sampling import noise
from monai_memorization.generation.solver import DPMSolverScheduler, solver_of

SCHEDULE = {"schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0195, "clip_sample": False}


class Exact(nn.Module):
    """What a perfectly trained network says of images from a known distribution.

    Args:
        scheduler: of the training.
        expected: the mean of the images given x_t, alpha_t and sigma_t.
    """

    def __init__(self, scheduler, expected) -> None:
        super().__init__()
        self.scheduler, self.expected = scheduler, expected

    def forward(self, x: Tensor, timesteps: Tensor, context: Tensor | None = None) -> Tensor:
        share = self.scheduler.alphas_cumprod[int(timesteps[0])]
        signal, spread = share.sqrt(), (1 - share).sqrt()
        images = self.expected(x, signal, spread)
        said = (x - signal * images) / spread
        return {"epsilon": said, "sample": images, "v_prediction": signal * said - spread * images}[
            self.scheduler.prediction_type
        ]


def of_normal(mean: float, deviation: float):
    def expected(x, signal, spread):
        gain = signal * deviation**2 / (signal**2 * deviation**2 + spread**2)
        return mean + gain * (x - signal * mean)

    return expected


def of_two_points(x, signal, spread):
    return torch.tanh(signal * x / spread**2)


def draw(scheduler, expected, n_steps: int, n: int = 4000) -> Tensor:
    return denoise(noise(range(n), (1, 1, 1)), Exact(scheduler, expected), scheduler, n_steps).flatten()


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_twenty_steps_draw_from_the_distribution_that_the_network_knows(prediction):
    scheduler = DPMSolverScheduler(**SCHEDULE, prediction_type=prediction)
    drawn = draw(scheduler, of_normal(0.5, 0.3), 20)
    assert abs(drawn.mean() - 0.5) < 4 * 0.3 / math.sqrt(4000)
    assert abs(drawn.std() / 0.3 - 1) < 0.05


def test_of_two_images_each_is_drawn_and_nothing_between():
    drawn = draw(DPMSolverScheduler(**SCHEDULE), of_two_points, 20)
    assert (drawn.abs() - 1).abs().max() < 1e-3
    assert abs((drawn > 0).double().mean() - 0.5) < 4 * 0.5 / math.sqrt(4000)


def test_more_steps_are_nearer_to_the_truth():
    errors = [abs(float(draw(DPMSolverScheduler(**SCHEDULE), of_normal(0.0, 0.3), n).std()) - 0.3) for n in (3, 100)]
    assert errors[1] < 0.25 * errors[0]


def test_a_schedule_that_ends_without_any_signal_is_drawn_from():
    scheduler = DPMSolverScheduler(**SCHEDULE, prediction_type="v_prediction")
    scheduler.alphas_cumprod[-1] = 0.0
    drawn = draw(scheduler, of_normal(0.5, 0.3), 20)
    assert abs(drawn.mean() - 0.5) < 4 * 0.3 / math.sqrt(4000)


def test_steps_run_from_the_first_to_the_last_of_the_training():
    scheduler = DPMSolverScheduler(**SCHEDULE)
    for n_steps in (1, 2, 20, 1000):
        scheduler.set_timesteps(n_steps)
        steps = scheduler.timesteps
        assert len(steps) <= n_steps
        assert int(steps[0]) == 999
        assert (steps.diff() < 0).all()
        assert int(steps[-1]) == 0 or n_steps == 1


def test_foreseen_images_are_clipped_where_the_schedule_says_so():
    settings = SCHEDULE | {"clip_sample": True, "clip_sample_min": -0.2, "clip_sample_max": 0.2}
    drawn = draw(DPMSolverScheduler(**settings), of_two_points, 5, n=50)
    assert drawn.abs().max() <= 0.2


@pytest.mark.parametrize("kind", [DDPMScheduler, DDIMScheduler])
def test_noise_schedules_of_ddpm_and_ddim_get_the_solver(kind):
    settings = SCHEDULE | {"clip_sample": True, "clip_sample_min": -2.0, "prediction_type": "sample"}
    given = kind(**settings)
    before = given.timesteps.clone()
    solver = solver_of(given)
    assert type(solver) is DPMSolverScheduler
    assert torch.equal(solver.alphas_cumprod, given.alphas_cumprod)
    assert (solver.clip_sample, solver.clip_sample_values, solver.prediction_type) == (True, [-2.0, 1.0], "sample")
    solver.set_timesteps(5)
    assert torch.equal(given.timesteps, before)


def test_other_schedulers_are_left_as_they_are():
    given = PNDMScheduler(schedule="scaled_linear_beta")
    assert type(solver_of(given)) is PNDMScheduler
    assert solver_of(given) is not given
