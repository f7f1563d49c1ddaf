"""A watched sampler draws the same images, and the record is what it asked."""

import numpy as np
import pytest
import torch

from medsynth.diffusion.noise import CaseNoise
from medsynth.diffusion.samplers import ddpm, dpmpp_2m, heun
from medsynth.diffusion.schedule import Karras
from medsynth.diffusion.trajectory import Watched, step_errors

SHAPE = (1, 6, 5)


def denoise(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The expected image of a Gaussian prior of standard deviation 0.5: shrinkage, in closed form."""
    return x * (0.25 / (0.25 + sigma**2)).reshape(-1, *[1] * (x.ndim - 1))


def draw(sampler, steps: int) -> torch.Tensor:
    sigmas = Karras()(steps, 0.01, 20.0)
    noise = CaseNoise([1, 2, 3], SHAPE, "cpu")
    return sampler(denoise, noise.initial() * sigmas[0].item(), sigmas, noise)


@pytest.mark.parametrize("sampler", [heun, dpmpp_2m, ddpm])
def test_a_watched_sampler_draws_the_same_images(sampler):
    watched = Watched(sampler=sampler, cut=lambda x: x[0, 0])
    assert torch.equal(draw(watched, 9), draw(sampler, 9))
    sigmas = [sigma for sigma, _, _ in watched.seen]
    assert sigmas == sorted(sigmas, reverse=True)
    assert sigmas[0] == pytest.approx(20)
    for sigma, noisy, expected in watched.seen:
        np.testing.assert_allclose(expected, noisy * 0.25 / (0.25 + sigma**2), rtol=1e-5)
    assert watched.drew_noise == (sampler is ddpm)


def test_the_last_expectation_of_dpmpp_is_the_image():
    watched = Watched(sampler=dpmpp_2m, cut=lambda x: x)
    image = draw(watched, 7)
    levels = watched.levels(4)
    assert len(levels) == 4
    np.testing.assert_array_equal(levels[-1][2], image.numpy())
    assert levels[0][0] == watched.seen[0][0]
    assert len(watched.levels(100)) == 7


def test_errors_fall_with_the_steps_at_the_order_of_the_sampler():
    errors = step_errors(draw, heun, 40)
    assert sorted(errors) == [10, 20, 40]
    assert errors[10] > 3 * errors[20] > 6 * errors[40] > 0


def test_a_sampler_that_draws_noise_has_no_error_of_steps():
    assert step_errors(draw, ddpm, 8) == {}
