"""Schedules: which noise levels a sampler visits.

``schedule(steps, sigma_min, sigma_max)`` falls from ``sigma_max`` to ``sigma_min`` and ends in 0. The result has ``steps + 1``
levels in float64 on the CPU: samplers take their coefficients from them before the first evaluation.
"""

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from medsynth.diffusion.process import beta_sigma, beta_time
from medsynth.errors import SettingsError


class Schedule(Protocol):
    def __call__(self, steps: int, sigma_min: float, sigma_max: float) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class LogSNR:
    """Uniform in log sigma (Lu et al. 2022): the grid on which DPM-Solver++ has equal steps. The default."""

    def __call__(self, steps: int, sigma_min: float, sigma_max: float) -> Tensor:
        return _to_zero(_uniform(math.log(sigma_max), math.log(sigma_min), steps).exp(), sigma_max)


@dataclass(frozen=True, kw_only=True)
class Karras:
    """Uniform in ``sigma^(1/rho)``: shorter steps at low noise, the more the larger ``rho`` (Karras et al. 2022, Eq. 5)."""

    rho: float = 7.0

    def __call__(self, steps: int, sigma_min: float, sigma_max: float) -> Tensor:
        return _to_zero(_uniform(sigma_max ** (1 / self.rho), sigma_min ** (1 / self.rho), steps) ** self.rho, sigma_max)


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Uniform in the angle ``atan(sigma)``: the time of a cosine schedule (Nichol and Dhariwal 2021)."""

    def __call__(self, steps: int, sigma_min: float, sigma_max: float) -> Tensor:
        return _to_zero(_uniform(math.atan(sigma_max), math.atan(sigma_min), steps).tan(), sigma_max)


@dataclass(frozen=True, kw_only=True)
class Linear:
    """Uniform in the time of a linear beta: what DDPM and DDIM visit (Ho et al. 2020)."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __call__(self, steps: int, sigma_min: float, sigma_max: float) -> Tensor:
        ends = torch.tensor([sigma_max, sigma_min], dtype=torch.float64)
        first, last = beta_time(ends, self.beta_min, self.beta_max).tolist()
        return _to_zero(beta_sigma(_uniform(first, last, steps), self.beta_min, self.beta_max), sigma_max)


@dataclass(frozen=True, kw_only=True)
class UniformFlow:
    """Equal steps of flow time ``t = sigma / (1 + sigma)``: what rectified flow's Euler steps visit."""

    def __call__(self, steps: int, sigma_min: float, sigma_max: float) -> Tensor:
        time = _uniform(sigma_max / (1 + sigma_max), sigma_min / (1 + sigma_min), steps)
        return _to_zero(time / (1 - time), sigma_max)


def _uniform(first: float, last: float, n: int) -> Tensor:
    if n < 1:
        raise SettingsError(f"sampling.steps={n} leaves nothing to do. Take at least 1; the default is 30.")
    return torch.linspace(first, last, n, dtype=torch.float64)


def _to_zero(sigmas: Tensor, sigma_max: float) -> Tensor:
    sigmas[0] = sigma_max  # exactly: the first image is noise of this level
    return torch.cat([sigmas, sigmas.new_zeros(1)])
