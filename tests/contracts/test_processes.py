"""What every process in conf/process promises. A new one is held to this by lying there."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import instantiate
from torch import nn

from medsynth.diffusion.denoiser import Denoiser

OPTIONS = sorted((Path(__file__).resolve().parents[2] / "conf/process").glob("*.yaml"))


@pytest.fixture(params=OPTIONS, ids=lambda path: path.stem)
def process(request):
    return instantiate(yaml.safe_load(request.param.read_text()))


def levels(process, n: int = 64, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.linspace(math.log(process.sigma_min), math.log(process.sigma_max), n, dtype=torch.float64).exp().to(dtype)


class Oracle(nn.Module):
    """The network whose denoiser returns ``image``: the scalings solved for the network's output."""

    def __init__(self, process, image: torch.Tensor, sigma: torch.Tensor, noised: torch.Tensor) -> None:
        super().__init__()
        self.process, self.image, self.sigma, self.noised = process, image, sigma, noised

    def forward(self, x, c_noise, condition=None):
        c_skip, c_out, c_in, expected_noise = (scale.reshape(-1, 1, 1, 1) for scale in self.process.scalings(self.sigma))
        torch.testing.assert_close(x, c_in * self.noised)
        torch.testing.assert_close(c_noise, expected_noise.flatten())
        return (self.image - c_skip * self.noised) / c_out


class Silent(nn.Module):
    def forward(self, x, c_noise, condition=None):
        return torch.zeros_like(x)


def test_a_perfect_network_gives_the_image_back(process):
    generator = torch.Generator().manual_seed(0)
    sigma = levels(process)
    image, noise = torch.randn(2, 64, 1, 4, 4, generator=generator, dtype=torch.float64)
    noised = image + sigma.reshape(-1, 1, 1, 1) * noise
    denoiser = Denoiser(Oracle(process, image, sigma, noised), process)
    torch.testing.assert_close(denoiser(noised, sigma), image, rtol=1e-9, atol=1e-9)
    assert denoiser.loss(image, sigma, noise).max() < 1e-12


def test_the_loss_of_a_network_that_gives_nothing_is_known(process):
    generator = torch.Generator().manual_seed(0)
    sigma = levels(process)
    image, noise = torch.randn(2, 64, 1, 4, 4, generator=generator, dtype=torch.float64)
    c_skip, _, _, _ = (scale.reshape(-1, 1, 1, 1) for scale in process.scalings(sigma))
    error = c_skip * (image + sigma.reshape(-1, 1, 1, 1) * noise) - image
    expected = process.weight(sigma) * error.square().mean((1, 2, 3))
    torch.testing.assert_close(Denoiser(Silent(), process).loss(image, sigma, noise), expected)


def test_scalings_are_finite_in_float32_and_agree_with_float64_at_both_ends(process):
    exact, single = process.scalings(levels(process)), process.scalings(levels(process, dtype=torch.float32))
    for wide, narrow in zip(exact, single, strict=True):
        assert narrow.dtype == torch.float32
        torch.testing.assert_close(narrow.double(), wide, rtol=2e-6, atol=2e-7)
    for scale in process.scalings(torch.tensor([1e-6, 1e6])):
        assert scale.isfinite().all()


def test_the_loss_weighs_the_network_s_own_error_equally_at_every_noise_level(process):
    sigma = levels(process)
    _, c_out, _, _ = process.scalings(sigma)
    torch.testing.assert_close(process.weight(sigma) * c_out**2, torch.ones_like(sigma))


def test_the_network_sees_about_unit_variance(process):
    """Data of standard deviation 0.5, the usual one of images scaled to -1..1, at every noise level."""
    sigma = levels(process)
    _, _, c_in, c_noise = process.scalings(sigma)
    deviation = c_in * (0.25 + sigma**2).sqrt()
    assert (deviation > 0.4).all()
    assert (deviation < 1.01).all()
    assert c_noise.abs().max() <= 2, "the network's adapter scales labels of about one unit"
    assert (c_noise.diff() > 0).all()


def test_at_the_highest_noise_the_denoiser_does_not_pass_the_noise_on(process):
    """Where an untrained network gives zeros, the image must not be larger than the noise it was asked to remove."""
    c_skip, c_out, _, _ = process.scalings(levels(process))
    assert (c_skip >= 0).all()
    assert (c_skip <= 1).all()
    assert c_out.abs().max() <= process.sigma_max


def test_training_levels_stay_in_range_and_cover_it(process):
    sigma = process.draw_sigma(4096, torch.Generator().manual_seed(0))
    assert sigma.shape == (4096,)
    assert sigma.dtype == torch.float32
    assert sigma.min() >= process.sigma_min * (1 - 1e-5)
    assert sigma.max() <= process.sigma_max * (1 + 1e-5)
    assert sigma.log().std() > 1


def test_training_levels_belong_to_the_generator(process):
    draws = [process.draw_sigma(8, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_a_batch_of_one_draws_from_the_same_distribution_as_a_large_one(process):
    generator = torch.Generator().manual_seed(0)
    alone = torch.cat([process.draw_sigma(1, generator) for _ in range(4000)]).log().sort().values
    together = process.draw_sigma(4000, generator).log().sort().values
    quantiles = slice(200, 3800, 100)
    torch.testing.assert_close(alone[quantiles], together[quantiles], rtol=0, atol=0.25)
