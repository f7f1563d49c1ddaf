"""What a sampler does on its way: the noisy image and the expected one at every level, and what another number of steps would have changed.

Both are seen from outside: a watched sampler is the sampler itself, with a denoiser and a noise that keep a record.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from medsynth.diffusion.samplers import Denoise, Noise
from medsynth.diffusion.sampling import Sampler

Draw = Callable[[Sampler, int], Tensor]  # draws the same seeds with this sampler in so many steps, (n, *shape)


@dataclass(kw_only=True)
class Watched:
    """A sampler that keeps ``(sigma, cut(x), cut(x_hat))`` of each evaluation, on the CPU, and whether it drew fresh noise.

    Without ``cut`` it keeps no image: whole volumes of all levels would fill the memory.
    """

    sampler: Sampler
    cut: Callable[[Tensor], Tensor] | None = None
    seen: list[tuple[float, np.ndarray, np.ndarray]] = field(default_factory=list)
    drew_noise: bool = False

    def __call__(self, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None) -> Tensor:
        def watching(x: Tensor, sigma: Tensor) -> Tensor:
            expected = denoise(x, sigma)
            if self.cut is not None:
                self.seen.append((float(sigma[0]), *(self.cut(image).float().cpu().numpy() for image in (x, expected))))
            return expected

        def drawing(step: int) -> Tensor:
            assert noise is not None, "a sampler that draws noise is given some"
            self.drew_noise = True
            return noise(step)

        return self.sampler(watching, x, sigmas, drawing)

    def levels(self, count: int) -> list[tuple[float, np.ndarray, np.ndarray]]:
        """``count`` of the evaluations, evenly from the first to the last."""
        return [self.seen[i] for i in sorted({round(k) for k in np.linspace(0, len(self.seen) - 1, min(count, len(self.seen)))})]


def step_errors(draw: Draw, sampler: Sampler, steps: int) -> dict[int, float]:
    """By how much images drawn in a quarter, a half and all of ``steps`` differ from the same in twice as many: root mean square over
    pixels and seeds, model units. Empty where the sampler draws fresh noise at every step: other steps are other images then.
    """
    finest = Watched(sampler=sampler)
    best = draw(finest, 2 * steps)
    if finest.drew_noise:
        return {}
    counts = sorted({max(2, steps // 4), max(2, steps // 2), steps})
    return {count: float(torch.sqrt(torch.mean((draw(sampler, count) - best) ** 2))) for count in counts}
