"""What every sampler in conf/sampler promises. A new one is held to this by lying there.

The oracle is a Gaussian with full covariance, whose best denoiser is linear. A sampler is then a linear map of its noise, and the
covariance of what it draws follows exactly from sending unit vectors through: no random numbers, no tolerance for them.
"""

from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import instantiate
from torch import Tensor

from medsynth.diffusion.noise import CaseNoise
from medsynth.diffusion.schedule import LogSNR

OPTIONS = sorted((Path(__file__).resolve().parents[2] / "conf/sampler").glob("*.yaml"))
SIZE = 4
MEAN = torch.linspace(-0.5, 0.5, SIZE, dtype=torch.float64)
MIXING = torch.randn(SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) / 4
COVARIANCE = MIXING @ MIXING.T + 0.02 * torch.eye(SIZE, dtype=torch.float64)


@pytest.fixture(params=OPTIONS, ids=lambda path: path.stem)
def sampler(request):
    return instantiate(yaml.safe_load(request.param.read_text()))


class Gaussian:
    """The closed-form denoiser of N(MEAN, COVARIANCE) for images of SIZE pixels in any arrangement, counting its evaluations."""

    def __init__(self) -> None:
        self.evaluations = 0

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == (len(x),), "a sampler gives one noise level a case"
        assert (sigma > 0).all(), "no denoiser is defined at noise level 0"
        self.evaluations += 1
        noise = sigma[0].double() ** 2 * torch.eye(SIZE, dtype=torch.float64)
        gain = COVARIANCE @ torch.linalg.inv(COVARIANCE + noise)
        return (MEAN + (x.flatten(1).double() - MEAN) @ gain.T).to(x.dtype).reshape(x.shape)


def sigmas(steps: int) -> Tensor:
    return LogSNR()(steps, 0.002, 80.0)


def draw(sampler, seeds=(3, 1, 4, 1), steps=6, shape=(1, 2, 2), dtype=torch.float32) -> tuple[Tensor, int]:
    denoise, noise, levels = Gaussian(), CaseNoise(seeds, shape), sigmas(steps)
    images = sampler(denoise, (noise.initial() * levels[0]).to(dtype), levels, lambda step: noise(step).to(dtype))
    return images, denoise.evaluations


def drawn_moments(sampler, steps: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of everything that the sampler can draw, exactly: one row a unit vector of one noise source."""
    rows = torch.eye((steps + 1) * SIZE, dtype=torch.float64).reshape(-1, steps + 1, SIZE)
    rows = torch.cat([torch.zeros_like(rows[:1]), rows])  # first without any noise: the mean
    levels = sigmas(steps)
    out = sampler(Gaussian(), rows[:, steps] * levels[0], levels, lambda step: rows[:, step])
    gains = out[1:] - out[0]
    return out[0], gains.T @ gains


def spread_error(found: Tensor, true: Tensor) -> float:
    """Wasserstein-2 distance of two centred Gaussians, relative to the spread of the true one."""
    root = matrix_root(true)
    squared = found.trace() + true.trace() - 2 * matrix_root(root @ found @ root).trace()
    return (squared.clamp(min=0) / true.trace()).sqrt().item()


def matrix_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T


@pytest.mark.parametrize(("shape", "dtype"), [((1, 2, 2), torch.float32), ((1, 2, 1, 2), torch.float32), ((4, 1, 1), torch.float64)])
def test_shape_and_dtype_are_kept_in_2d_and_3d(sampler, shape, dtype):
    images, _ = draw(sampler, shape=shape, dtype=dtype)
    assert images.shape == (4, *shape)
    assert images.dtype == dtype
    assert images.isfinite().all()


def test_the_same_noise_gives_the_same_images(sampler):
    (first, _), (second, _) = draw(sampler), draw(sampler)
    assert torch.equal(first, second)
    other, _ = draw(sampler, seeds=(5, 6, 7, 8))
    assert not torch.equal(first, other)


def test_a_case_does_not_depend_on_the_cases_beside_it(sampler):
    together, _ = draw(sampler, seeds=(3, 1, 4))
    for place, seed in enumerate((3, 1, 4)):
        alone, _ = draw(sampler, seeds=(seed,))
        torch.testing.assert_close(alone[0], together[place], rtol=1e-5, atol=1e-6)


def test_the_noise_and_the_grid_are_left_as_they_were(sampler):
    noise, levels = CaseNoise((1, 2), (1, 2, 2)), sigmas(5)
    x = noise.initial() * levels[0]
    before = x.clone(), levels.clone()
    sampler(Gaussian(), x, levels, noise)
    assert torch.equal(x, before[0])
    assert torch.equal(levels, before[1])


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_step_costs_one_evaluation_or_two(sampler, steps):
    images, evaluations = draw(sampler, steps=steps)
    assert evaluations in (steps, 2 * steps - 1)
    assert images.isfinite().all()


def test_a_single_step_gives_the_expected_image(sampler):
    """The best guess from noise alone in one evaluation, and what each sampler's last step must come to."""
    noise, levels = CaseNoise((1, 2), (1, 2, 2)), sigmas(1)
    x = noise.initial().double() * levels[0]
    torch.testing.assert_close(sampler(Gaussian(), x, levels, noise), Gaussian()(x, levels[:1].expand(2)))


def test_the_gaussian_is_reached(sampler):
    """Mean and spread within 2 %: with the default 20 steps or, where the sampler is of first order, with more, the closer the more."""
    for steps in (20, 40, 160, 640):
        mean, covariance = drawn_moments(sampler, steps)
        if spread_error(covariance, COVARIANCE) < 0.02:
            break
    else:
        pytest.fail(f"{steps} steps draw a spread that is {spread_error(covariance, COVARIANCE):.1%} off")
    assert (mean - MEAN).norm() < 0.02 * MEAN.norm()
