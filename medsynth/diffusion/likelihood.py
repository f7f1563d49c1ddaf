"""How many bits an image costs a model: the variational bound and the likelihood along the probability-flow ODE, in the one unit of both.

Neither is about the image itself: a density of pixel values depends on their unit, their quantisation and the smallest noise of the model.
Both are about the image with noise of level ``floor``, and count what a code of the noisy image costs beyond the noise itself,

    [-log2 p(image + floor * noise) + log2 N(floor * noise)] / pixels,

in bits per dimension above the noise floor. A Gaussian of standard deviation s costs ``log2(1 + s^2 / floor^2) / 2``. The number is free
of the intensities' unit and of the bit depth of the files. It may be compared between models (EDM, VP and flow alike) that share the
floor, the images, the window, the grid and the channels; never between an image model and a latent one, or with bits per dimension of
stored integers.

``denoise(x, sigma) -> x_hat`` is the conditional model without guidance: a guided one is the denoiser of no density. Images are
``(n, channel, *space)``, results ``(n,)`` float64. Masks that a model generates are channels and count as dimensions.
"""

import math
from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
from torch import Tensor

from medsynth.diffusion.samplers import Denoise

FLOOR = 0.01  # model units: the lowest level that all processes are trained for, 10 HU in a window of 2000
SPREAD = 0.5  # model units: about the standard deviation of an image's pixels (Karras et al. 2022)


def variational_bound(
    denoise: Denoise, x: Tensor, noises: Iterable[Tensor], levels: int, offset: Tensor, sigma_max: float, floor: float = FLOOR
) -> Tensor:
    """An upper bound of the mean cost, by the denoising error at every noise level (Kingma et al. 2021, eqs. 11 to 15, continuous time).

        KL(N(x, sigma_max^2) | N(0, sigma_max^2)) + integral of E|x - x_hat|^2 / sigma^2 over log sigma, from floor to sigma_max

    The first term is what the prior pays for the last noise, the second what the reverse diffusion pays; the paper's third one, from the
    floor to the stored number, is left out. Monte Carlo: ``noises`` are ``levels`` draws of standard normal noise like x, and ``offset``
    ``(n,)`` in 0..1 shifts each case's evenly spaced levels. Unbiased for any number of levels.
    """
    span = math.log(sigma_max / floor)
    nats = x.double().square().flatten(1).sum(1) / (2 * sigma_max**2)
    for k, noise in zip(range(levels), noises, strict=True):
        sigma = (floor * torch.exp(span * (k + offset.double()) / levels)).to(x.dtype)
        error = x - denoise(x + _per_case(sigma, x) * noise, sigma)
        nats = nats + span / levels * error.double().square().flatten(1).sum(1) / sigma.double().square()
    return nats / (math.log(2) * x[0].numel())


def flow_cost(denoise: Denoise, x: Tensor, noise: Tensor, divergence: "Divergence", sigmas: Tensor) -> Tensor:
    """The cost by the instantaneous change of variables along the probability-flow ODE (Chen et al. 2018; Song et al. 2021, eq. 39).

    From ``x + floor * noise`` up the rising levels ``sigmas`` by Heun's steps; the floor is the first level, and at the last one the
    density is taken as ``N(0, sigma^2)``. ``divergence`` is `exact` or `hutchinson`. The steps are those of
    ``z = x / (sigma^2 + SPREAD^2)^(1/2)`` in log sigma, where a path of image-like data is almost straight: of x itself, it takes ten
    times as many for the same error.
    """
    levels = sigmas.double().tolist()
    d = x[0].numel()
    z, change = (x + levels[0] * noise) / math.hypot(levels[0], SPREAD), torch.zeros(len(x), dtype=torch.float64)

    def slope(z: Tensor, level: float) -> tuple[Tensor, Tensor]:
        scale = math.hypot(level, SPREAD)
        denoised, trace = divergence(denoise, z * scale, torch.full((len(z),), level, dtype=z.dtype, device=z.device))
        return z * (SPREAD / scale) ** 2 - denoised / scale, d - trace.double().cpu()

    for level, following in pairwise(levels):
        step = math.log(following / level)
        first, trace = slope(z, level)
        second, trace_ahead = slope(z + step * first, following)
        z = z + step / 2 * (first + second)
        change = change + step / 2 * (trace + trace_ahead)
    last = z.double().cpu() * math.hypot(levels[-1], SPREAD)
    prior = last.square().flatten(1).sum(1) / (2 * levels[-1] ** 2) + d * math.log(levels[-1])
    floor = noise.double().cpu().square().flatten(1).sum(1) / 2 + d * math.log(levels[0])
    return (prior - change - floor) / (math.log(2) * d)  # log(2 pi) / 2 of each dimension stands on both sides


Divergence = Callable[[Denoise, Tensor, Tensor], tuple[Tensor, Tensor]]  # denoise, x, sigma -> x_hat, trace of its Jacobian (n,)


def hutchinson(probe: Tensor) -> Divergence:
    """The trace as ``v^T J v``, unbiased, for signs ``v`` of the shape of x (Hutchinson 1990; Skilling 1989): one backward pass."""

    def trace(denoise: Denoise, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            denoised = denoise(x, sigma)
            (product,) = torch.autograd.grad((denoised * probe).sum(), x)
        return denoised.detach(), (product * probe).flatten(1).sum(1)

    return trace


def exact(denoise: Denoise, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The trace itself, by one backward pass a dimension: for small images."""
    total = torch.zeros(len(x), dtype=x.dtype)
    for i in range(x[0].numel()):
        unit = torch.zeros(x[0].numel(), dtype=x.dtype)
        unit[i] = 1
        denoised, part = hutchinson(unit.reshape(x[:1].shape).expand_as(x))(denoise, x, sigma)
        total = total + part
    return denoised, total


def rising(steps: int, sigma_max: float, floor: float = FLOOR) -> Tensor:
    """``steps + 1`` levels from ``floor`` to ``sigma_max``, even in log sigma, float64."""
    return torch.linspace(math.log(floor), math.log(sigma_max), steps + 1, dtype=torch.float64).exp()


def _per_case(scalar: Tensor, x: Tensor) -> Tensor:
    return scalar.reshape(-1, *[1] * (x.ndim - 1))
