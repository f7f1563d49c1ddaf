"""Drawing cases: noise, guidance and a sampler joined. What comes out is a function of the seeds, not of how they are batched."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from medsynth.diffusion.denoiser import Denoiser
from medsynth.diffusion.guidance import Guidance
from medsynth.diffusion.noise import CaseNoise
from medsynth.diffusion.samplers import Denoise, Noise


class Sampler(Protocol):
    def __call__(self, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None) -> Tensor: ...


@torch.inference_mode()
def sample(
    denoiser: Denoiser,
    sampler: Sampler,
    sigmas: Tensor,
    seeds: Sequence[int],
    shape: tuple[int, ...],
    condition: Tensor | None = None,
    guidance: Guidance | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """One image a seed, float32 ``(n, *shape)`` in model units on ``device``, where the denoiser already is.

    ``shape`` is ``(channel, *space)``, ``condition`` ``(n, size)`` or None. Run it under ``torch.autocast`` for bf16: only the network is
    affected. On a CPU cases are drawn one at a time, because matrix products and convolutions there round differently from batch size to
    batch size: so a case has the same bytes in every batch. On a GPU they are drawn together and agree to rounding.
    """
    guidance = guidance or Guidance()
    size = 1 if torch.device(device).type == "cpu" else max(len(seeds), 1)
    images = torch.empty(len(seeds), *shape, device=device)
    training = denoiser.training
    denoiser.eval()
    try:
        for start in range(0, len(seeds), size):
            batch = slice(start, start + size)
            noise = CaseNoise(seeds[batch], shape, device)
            denoise = guidance.bind(denoiser, None if condition is None else condition[batch].to(device))
            images[batch] = sampler(denoise, noise.initial() * sigmas[0].item(), sigmas, noise)
    finally:
        denoiser.train(training)
    return images
