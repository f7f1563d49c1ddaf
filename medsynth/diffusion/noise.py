"""Noise belongs to a case: every number is drawn from a generator of the case's own seed and step.

So a case's noise does not depend on its batch, its order, its process or its device: it is drawn on the CPU and moved.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medsynth.rng import seed_for

INITIAL = -1  # the step of the noise that a sampler starts from


@dataclass(frozen=True)
class CaseNoise:
    """Standard normal noise ``(n, *shape)``, float32, for cases of these seeds. Called with a step, it is a sampler's ``noise``."""

    seeds: Sequence[int]
    shape: tuple[int, ...]  # (channel, *space)
    device: torch.device | str = "cpu"

    def __call__(self, step: int) -> Tensor:
        drawn = [torch.randn(self.shape, generator=torch.Generator().manual_seed(seed_for(seed, "noise", step))) for seed in self.seeds]
        return torch.stack(drawn).to(self.device)

    def initial(self) -> Tensor:
        return self(INITIAL)
