"""Texture in the reader's words: which radiomic features moved, by how many standard deviations, and the Frechet distance over all of them.

Unlike a network's features these have names, so a shift can be read (Konz et al. 2026). The scale is the training cases'.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from medsynth.metrics.embedding import standardised
from medsynth.metrics.frechet import FrechetDistance
from medsynth.metrics.score import Best, Comparison, Rows, Sample


def effects(real: np.ndarray, synthetic: np.ndarray) -> np.ndarray:
    """Cohen's d of each column: the difference of means, synthetic less real, in pooled standard deviations. ``(case, d), (case, d) ->
    (d,)``."""
    n, m = len(real), len(synthetic)
    variance = ((n - 1) * real.var(axis=0, ddof=1) + (m - 1) * synthetic.var(axis=0, ddof=1)) / (n + m - 2)
    return (synthetic.mean(axis=0) - real.mean(axis=0)) / np.sqrt(np.maximum(variance, 1e-12))


@dataclass(frozen=True, kw_only=True)
class Radiomics:
    """The Frechet distance on texture features, with the ``top`` features that moved most."""

    features: str = "texture"
    top: int = 20

    best: ClassVar[Best] = "low"
    least: ClassVar[int] = 50
    bounds: ClassVar[tuple[float, float]] = (0.0, np.inf)
    tested: ClassVar[bool] = True

    def __call__(self, train: Sample, *samples: Sample) -> Comparison:
        distance = FrechetDistance(features=self.features)(train, *samples)

        def details(real: Rows, synthetic: Rows) -> dict[str, object]:
            _, z, kept = standardised(train, samples, self.features)
            shifts = effects(z[real], z[synthetic])
            most = np.argsort(-np.abs(shifts), kind="stable")[: self.top]
            names = train.names.get(self.features) or [str(i) for i in range(kept.max() + 1)]
            return {
                **distance.details(real, synthetic),
                "shifted": [{"feature": names[kept[i]], "d": float(shifts[i])} for i in most],
                "beyond_half": float((np.abs(shifts) > 0.5).mean()),
            }

        return Comparison(distance.value, details)


@dataclass(frozen=True, kw_only=True)
class TextureEffects:
    """The mean size of Cohen's d over all texture features: defined at numbers at which a distribution distance is not."""

    features: str = "texture"

    best: ClassVar[Best] = "low"
    least: ClassVar[int] = 8
    bounds: ClassVar[tuple[float, float]] = (0.0, np.inf)
    tested: ClassVar[bool] = True

    def __call__(self, train: Sample, *samples: Sample) -> Comparison:
        _, z, _ = standardised(train, samples, self.features)
        return Comparison(lambda real, synthetic: float(np.abs(effects(z[real], z[synthetic])).mean()))
