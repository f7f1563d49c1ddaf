"""Processes: how a network's output becomes a denoised image, and which noise levels it is trained on.

Every process is written in the same coordinates, ``x + sigma * noise``: variance-preserving diffusion and rectified flow are this after
rescaling, so samplers, guidance, averaging and previews are written once. A process is four scalars (Karras et al. 2022, Eq. 7),

    x_hat = c_skip * x + c_out * network(c_in * x, c_noise)

a loss weight and a distribution of training noise levels. It holds settings and no state.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

from medsynth.errors import SettingsError

Scalings = tuple[Tensor, Tensor, Tensor, Tensor]


class Process(Protocol):
    """``sigma_min`` and ``sigma_max`` bound the noise levels it is trained for, and so the range that a schedule walks."""

    @property
    def sigma_min(self) -> float: ...

    @property
    def sigma_max(self) -> float: ...

    def scalings(self, sigma: Tensor) -> Scalings:
        """``(c_skip, c_out, c_in, c_noise)``, each shaped like ``sigma`` (> 0)."""
        ...

    def weight(self, sigma: Tensor) -> Tensor:
        """Weight of the squared error of the denoised image, shaped like ``sigma``."""
        ...

    def draw_sigma(self, n: int, generator: Generator) -> Tensor:
        """Training noise levels, float32 ``(n,)`` on the generator's device."""
        ...


@dataclass(frozen=True, kw_only=True)
class EDM:
    """Preconditioning for unit variance at every noise level, log-normal training noise (Karras et al. 2022, Table 1, last column).

    ``sigma_data`` is the standard deviation of a pixel of the training images in model units.
    """

    sigma_data: float = 0.5
    p_mean: float = -1.2
    p_std: float = 1.2
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def scalings(self, sigma: Tensor) -> Scalings:
        total = torch.hypot(sigma, torch.full_like(sigma, self.sigma_data))
        return (self.sigma_data / total) ** 2, sigma * self.sigma_data / total, 1 / total, sigma.log() / 4

    def weight(self, sigma: Tensor) -> Tensor:
        return 1 / sigma**2 + 1 / self.sigma_data**2

    def draw_sigma(self, n: int, generator: Generator) -> Tensor:
        normal = torch.special.ndtri(stratified(n, generator))
        return (self.p_mean + self.p_std * normal).clamp(math.log(self.sigma_min), math.log(self.sigma_max)).exp()


@dataclass(frozen=True, kw_only=True)
class VariancePreserving:
    """The continuous form of DDPM (Ho et al. 2020; Song et al. 2021, Appendix C) with a linear beta from ``beta_min`` to ``beta_max``.

    The defaults are DDPM's 1e-4 to 2e-2 over 1000 steps. ``prediction`` is what the network gives: the noise ``eps``, the image ``x0``, or
    ``v = alpha * noise - sigma_vp * image`` (Salimans and Ho 2022). The loss is the plain squared error of that output.
    """

    prediction: str = "v"
    beta_min: float = 0.1
    beta_max: float = 20.0
    sigma_min: float = 0.01  # time 0.9e-3, the first of DDPM's 1000 steps
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        if self.prediction not in ("eps", "x0", "v"):
            raise SettingsError(f"process.prediction={self.prediction!r} is none of eps, x0, v.")

    def scalings(self, sigma: Tensor) -> Scalings:
        total = torch.hypot(sigma, torch.ones_like(sigma))
        time = beta_time(sigma, self.beta_min, self.beta_max)
        if self.prediction == "eps":
            return torch.ones_like(sigma), -sigma, 1 / total, time
        if self.prediction == "x0":
            return torch.zeros_like(sigma), torch.ones_like(sigma), 1 / total, time
        return 1 / total**2, -sigma / total, 1 / total, time

    def weight(self, sigma: Tensor) -> Tensor:
        _, c_out, _, _ = self.scalings(sigma)
        return 1 / c_out**2

    def draw_sigma(self, n: int, generator: Generator) -> Tensor:
        ends = torch.tensor([self.sigma_min, self.sigma_max], dtype=torch.float64)
        first, last = beta_time(ends, self.beta_min, self.beta_max).tolist()
        return beta_sigma(first + (last - first) * stratified(n, generator), self.beta_min, self.beta_max)


@dataclass(frozen=True, kw_only=True)
class RectifiedFlow:
    """Straight paths from image to noise (Liu et al. 2023; Lipman et al. 2023): ``x_t = (1 - t) * image + t * noise``.

    The network gives the velocity ``noise - image``; training times are uniform. ``x_t / (1 - t)`` is ``image + sigma * noise`` with
    ``sigma = t / (1 - t)``, so a flow network takes the same samplers and the same grid of noise levels as any other.
    """

    sigma_min: float = 0.01
    sigma_max: float = 80.0

    def scalings(self, sigma: Tensor) -> Scalings:
        rest = 1 / (1 + sigma)  # 1 - t
        time = sigma * rest
        return rest, -time, rest, time

    def weight(self, sigma: Tensor) -> Tensor:
        return (1 + 1 / sigma) ** 2

    def draw_sigma(self, n: int, generator: Generator) -> Tensor:
        first, last = (sigma / (1 + sigma) for sigma in (self.sigma_min, self.sigma_max))
        time = first + (last - first) * stratified(n, generator)
        return time / (1 - time)


def stratified(n: int, generator: Generator) -> Tensor:
    """``n`` numbers in (0, 1), float32: each uniform, and together one in every n-th part (Kingma et al. 2021, Appendix I.1).

    A batch then always sees low and high noise, which lowers the variance of the loss at no cost.
    """
    shift = torch.rand(1, generator=generator, device=generator.device, dtype=torch.float64)
    spread = (torch.arange(n, device=generator.device, dtype=torch.float64) / n + shift) % 1
    return spread.clamp(1e-6, 1 - 1e-6).float()  # 0 and 1 would be infinite noise levels


def beta_sigma(time: Tensor, beta_min: float, beta_max: float) -> Tensor:
    """Noise level at a time in [0, 1] of a linear beta: ``sigma^2 = exp(integral of beta) - 1`` (Song et al. 2021, Appendix C)."""
    return torch.expm1(beta_min * time + (beta_max - beta_min) * time**2 / 2).sqrt()


def beta_time(sigma: Tensor, beta_min: float, beta_max: float) -> Tensor:
    """The inverse of `beta_sigma`."""
    integral = torch.log1p(sigma**2)
    # the root in the form that does not cancel near zero
    return 2 * integral / (beta_min + (beta_min**2 + 2 * (beta_max - beta_min) * integral).sqrt())
