"""The cost of an image, against Gaussian data whose cost is known in closed form."""

import math
from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import instantiate
from torch import nn

from medsynth.diffusion.denoiser import Denoiser
from medsynth.diffusion.likelihood import FLOOR, exact, flow_cost, hutchinson, rising, variational_bound

PROCESSES = sorted((Path(__file__).resolve().parents[2] / "conf/process").glob("*.yaml"))
DEVIATIONS = torch.tensor([0.9, 0.5, 0.3, 0.1], dtype=torch.float64).reshape(1, 1, 2, 2)  # of each pixel


def ideal(x, sigma):
    """The expected image of Gaussian data with independent pixels."""
    variance = DEVIATIONS**2
    return x * variance / (variance + sigma.reshape(-1, 1, 1, 1) ** 2)


class Inverted(nn.Module):
    """The network of a process that gives what `ideal` says."""

    def __init__(self, process, x, sigma):
        super().__init__()
        self.process, self.x, self.sigma = process, x, sigma

    def forward(self, x, c_noise, condition=None):
        c_skip, c_out, c_in, _ = (scale.reshape(-1, 1, 1, 1) for scale in self.process.scalings(self.sigma))
        return (ideal(x / c_in, self.sigma) - c_skip * x / c_in) / c_out


@pytest.fixture(params=PROCESSES, ids=lambda path: path.stem)
def process(request):
    return instantiate(yaml.safe_load(request.param.read_text()))


def data(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images, and noise for their floor."""
    x, noise = torch.randn(2, n, 1, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x * DEVIATIONS, noise


def known_cost(x, noise):
    """Bits per dimension of each case above the noise floor, from the densities themselves."""
    variance = DEVIATIONS**2 + FLOOR**2
    nats = ((x + FLOOR * noise) ** 2 / variance + variance.log() - noise**2 - math.log(FLOOR**2)) / 2
    return nats.flatten(1).mean(1) / math.log(2)


def test_the_flow_gives_each_case_its_gaussian_cost_in_every_process(process):
    x, noise = data(64)

    def denoise(x, sigma):
        return Denoiser(Inverted(process, x, sigma), process)(x, sigma)

    found = flow_cost(denoise, x, noise, exact, rising(100, process.sigma_max))
    assert (found - known_cost(x, noise)).abs().max() < 1e-3
    assert abs((found - known_cost(x, noise)).mean()) < 5e-4


def test_a_hundred_steps_are_within_half_a_thousandth_of_a_bit_and_the_error_falls_with_the_square():
    x, noise = data(64)
    errors = [
        (flow_cost(ideal, x, noise, exact, rising(steps, 80.0)) - known_cost(x, noise)).mean().abs().item() for steps in (50, 100, 200)
    ]
    assert errors[1] < 5e-4
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.3)
    assert errors[1] / errors[2] == pytest.approx(4, rel=0.4)


def test_the_mean_cost_of_a_gaussian_is_half_the_log_of_one_plus_signal_to_noise():
    x, noise = data(20_000)
    assert known_cost(x, noise).mean().item() == pytest.approx((1 + DEVIATIONS**2 / FLOOR**2).log2().mean().item() / 2, abs=0.02)


def test_signs_probe_the_trace_without_bias():
    """A linear denoiser with mixed pixels: the probes' mean is the exact trace, within three standard errors."""
    generator = torch.Generator().manual_seed(1)
    matrix = torch.randn(16, 16, generator=generator, dtype=torch.float64)

    def denoise(x, sigma):
        return (x.flatten(1) @ matrix.T).reshape(x.shape)

    x = torch.randn(1, 1, 4, 4, generator=generator, dtype=torch.float64).expand(4000, 1, 4, 4)
    sigma = torch.ones(4000, dtype=torch.float64)
    _, known = exact(denoise, x[:1], sigma[:1])
    assert known.item() == pytest.approx(matrix.trace().item(), abs=1e-10)
    probes = torch.randn(x.shape, generator=generator, dtype=torch.float64).sign()
    _, found = hutchinson(probes)(denoise, x, sigma)
    assert abs(found.mean() - known).item() < 3 * found.std().item() / math.sqrt(4000)


def test_the_bound_is_met_by_the_ideal_denoiser_and_never_undercut(process):
    """KL of the noisy data to itself is zero, so the ideal bound is the cost; any other denoiser costs more."""
    x, _ = data(4000)
    generator = torch.Generator().manual_seed(2)

    def bound(denoise):
        noises = (torch.randn(x.shape, generator=generator, dtype=torch.float64) for _ in range(16))
        offset = torch.rand(len(x), generator=generator, dtype=torch.float64)
        found = variational_bound(denoise, x, noises, 16, offset, process.sigma_max)
        return found.mean().item(), found.std().item() / math.sqrt(len(x))

    known = (1 + DEVIATIONS**2 / FLOOR**2).log2().mean().item() / 2
    value, error = bound(ideal)
    assert value == pytest.approx(known, abs=3 * error)
    assert bound(lambda x, sigma: 0.8 * ideal(x, sigma))[0] > known + 1


def test_costs_do_not_depend_on_the_unit_of_the_intensities():
    """All in a tenth of the unit, floor too: the same bits."""
    x, noise = data(8)

    def smaller(x, sigma):
        return ideal(10 * x, 10 * sigma) / 10

    found = flow_cost(ideal, x, noise, exact, rising(200, 80.0))
    again = flow_cost(smaller, x / 10, noise, exact, rising(200, 8.0, FLOOR / 10))
    torch.testing.assert_close(again, found, rtol=0, atol=2e-3)
