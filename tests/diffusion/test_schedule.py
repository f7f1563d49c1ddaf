"""Schedules against the formulas and conservation laws they are named after."""

import math

import pytest
import torch

from medsynth.diffusion.process import beta_sigma, beta_time
from medsynth.diffusion.schedule import Cosine, Karras, Linear, LogSNR, UniformFlow


@pytest.mark.parametrize("steps", [1, 2, 3, 10, 30, 50, 250, 999, 1000])
def test_steps_of_flow_time_sum_to_the_interval(steps):
    """A peer's grid of 30 steps sums to 1.0087, having gone through float16."""
    sigmas = UniformFlow()(steps, 0.01, 80.0)
    walked = -(sigmas / (1 + sigmas)).diff()
    assert walked.sum().item() == pytest.approx(80 / 81, abs=1e-6)
    if steps > 2:
        torch.testing.assert_close(walked[:-1], walked[:1].expand(steps - 1), rtol=1e-6, atol=0)


def test_each_grid_is_uniform_in_the_time_it_is_named_after():
    times = {
        LogSNR(): lambda sigma: sigma.log(),
        Karras(rho=5): lambda sigma: sigma ** (1 / 5),
        Cosine(): lambda sigma: sigma.atan(),
        Linear(): lambda sigma: beta_time(sigma, 0.1, 20.0),
    }
    for schedule, time in times.items():
        gaps = time(schedule(20, 0.002, 80.0)[:-1]).diff()
        torch.testing.assert_close(gaps, gaps[:1].expand(19), rtol=1e-6, atol=0)


def test_the_linear_beta_is_that_of_ddpm():
    """The continuous form against the product over DDPM's 1000 steps, 1e-4 to 2e-2: half a beta squared a step apart."""
    alpha_bar = (1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)).cumprod(0)
    discrete = ((1 - alpha_bar) / alpha_bar).sqrt()
    for step in (99, 499, 899):
        assert math.log(discrete[step] / beta_sigma(torch.tensor((step + 1) / 1000), 0.1, 20.0)) == pytest.approx(0, abs=0.05)


def test_time_and_noise_level_of_a_linear_beta_are_inverse_to_each_other():
    sigma = torch.logspace(-6, 2, 50, dtype=torch.float64)
    torch.testing.assert_close(beta_sigma(beta_time(sigma, 0.1, 20.0), 0.1, 20.0), sigma, rtol=1e-9, atol=0)
