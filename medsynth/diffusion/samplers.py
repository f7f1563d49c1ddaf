"""Samplers: functions that walk a denoiser down a grid of noise levels.

A sampler owns no state. 2-D and 3-D are the same code, and so is every process, since all are ``x = image + sigma * noise``. Arguments:

- ``denoise(x, sigma) -> x_hat``, the expected image; ``sigma`` is ``(n,)``, one level a case
- ``x``: noise of level ``sigmas[0]``, ``(n, channel, *space)``
- ``sigmas``: falling levels that end in 0, float64 on the CPU, see `medsynth.diffusion.schedule`
- ``noise(step)``: standard normal like ``x``, for the ancestral samplers alone; see `medsynth.diffusion.noise`

How many steps draw a Gaussian mixture's variance within 2 % on the grid of `LogSNR`, 80 to 0.002: dpmpp_2m 24, heun 40 (79 evaluations),
euler and ddim 240, ddpm 320. Every step's coefficients are Python floats made in float64, so that nothing waits for the device.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
Noise = Callable[[int], Tensor]


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None) -> Tensor:
    """First-order steps along ``dx/dsigma = (x - x_hat) / sigma`` (Karras et al. 2022, Eqs. 1 and 3). One evaluation a step."""
    for sigma, sigma_next, level, _ in _steps(x, sigmas):
        x = x + (sigma_next - sigma) / sigma * (x - denoise(x, level))
    return x


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None) -> Tensor:
    """Second-order steps: two evaluations each, one for the last (Karras et al. 2022, Algorithm 1)."""
    for sigma, sigma_next, level, level_next in _steps(x, sigmas):
        step = sigma_next - sigma
        slope = (x - denoise(x, level)) / sigma
        x_next = x + step * slope
        if sigma_next > 0:
            x_next = x + step / 2 * (slope + (x_next - denoise(x_next, level_next)) / sigma_next)
        x = x_next
    return x


def ddim(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None, *, eta: float = 0.0) -> Tensor:
    """Keep the predicted image, shrink the predicted noise to the next level (Song et al. 2021, Eq. 12). One evaluation a step.

    ``eta`` is the share of fresh noise. 0 is the path of `euler`: in these coordinates the two are one formula. 1 is `ddpm`.
    """
    for step, (sigma, sigma_next, level, _) in enumerate(_steps(x, sigmas)):
        fresh = eta * sigma_next * math.sqrt(1 - (sigma_next / sigma) ** 2)
        denoised = denoise(x, level)
        x = denoised + math.sqrt(sigma_next**2 - fresh**2) / sigma * (x - denoised)
        if fresh > 0:
            assert noise is not None, "ddim with eta > 0 draws noise at every step"
            x = x + fresh * noise(step)
    return x


def ddpm(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None) -> Tensor:
    """Ancestral sampling from the posterior of each step (Ho et al. 2020, Eq. 7), at any spacing of the levels. One evaluation a step.

    Meant for hundreds of steps: with few of them the images come out too smooth.
    """
    return ddim(denoise, x, sigmas, noise, eta=1.0)


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None) -> Tensor:
    """DPM-Solver++(2M), data prediction (Lu et al. 2022, Algorithm 2): second order with one evaluation a step. The default.

    The expected image is extrapolated in log sigma from the last two evaluations. The last step, to 0, has infinite length there, and takes
    the expected image itself.
    """
    previous, length_before = None, 0.0
    for sigma, sigma_next, level, _ in _steps(x, sigmas):
        denoised = denoise(x, level)
        if sigma_next == 0:
            return denoised
        length = math.log(sigma / sigma_next)
        # lerp(a, b, w) = a + w * (b - a) in one pass over memory
        ahead = denoised if previous is None else torch.lerp(previous, denoised, 1 + length / (2 * length_before))
        x = torch.lerp(ahead, x, sigma_next / sigma)
        previous, length_before = denoised, length
    return x


def _steps(x: Tensor, sigmas: Tensor) -> Iterator[tuple[float, float, Tensor, Tensor]]:
    """Level and next level of each step, as a number and as a tensor ``(n,)`` for the denoiser."""
    levels = sigmas.to(x.device, x.dtype)[:, None].expand(-1, len(x))
    values = sigmas.tolist()
    yield from zip(values[:-1], values[1:], levels[:-1], levels[1:], strict=True)
