"""Guidance: how a condition steers a denoiser. `Guidance.bind` gives samplers the plain ``(x, sigma) -> x_hat`` that they walk."""

from dataclasses import dataclass

import torch
from torch import Tensor

from medsynth.diffusion.denoiser import Denoiser
from medsynth.diffusion.samplers import Denoise


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Classifier-free guidance (Ho and Salimans 2022): away from the unconditional image by ``scale``, in the network's own direction.

    Scale 1 is the conditional model as trained, at one evaluation; above 1 the condition shows more and the variety falls, at the
    price of two. The null condition is the all-zero vector, which training sees through ``fit.condition_dropout``.
    """

    scale: float = 1.0

    def bind(self, denoiser: Denoiser, condition: Tensor | None = None) -> Denoise:
        """``condition`` is ``(n, size)``, one row a case of the batch to come, or None for an unconditional model."""
        if condition is None or self.scale == 1:
            return lambda x, sigma: denoiser(x, sigma, condition)

        def guided(x: Tensor, sigma: Tensor) -> Tensor:
            # one call of twice the batch: half the launches on a GPU
            both = denoiser(torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([torch.zeros_like(condition), condition]))
            without, with_condition = both.chunk(2)
            return without + self.scale * (with_condition - without)

        return guided
