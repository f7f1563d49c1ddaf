"""The Frechet distance between Gaussians fitted to real and synthetic features (Heusel et al. 2017), in a form that cannot fail.

With centred features A and B, each divided by the root of its degrees of freedom, ``tr((S1 S2)^(1/2))`` is the nuclear norm of ``A B^T``:
no matrix root, so nothing complex, nothing negative, and exact where there are fewer cases than dimensions. Its bias at small numbers
stays: read it beside its anchor.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from medsynth.metrics.embedding import leading
from medsynth.metrics.score import Best, Comparison, Sample


def frechet(real: np.ndarray, synthetic: np.ndarray) -> float:
    """The squared Frechet distance of two sets of features ``(case, dimension)``; covariances with n - 1."""
    shift = real.mean(axis=0) - synthetic.mean(axis=0)
    a, b = _root(real), _root(synthetic)
    overlap = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return max(0.0, float((shift**2).sum() + (a**2).sum() + (b**2).sum() - 2 * overlap))


@dataclass(frozen=True, kw_only=True)
class FrechetDistance:
    """On the leading principal axes of the training cases: the whole covariance cannot be estimated from some hundred cases."""

    features: str

    best: ClassVar[Best] = "low"
    least: ClassVar[int] = 50
    bounds: ClassVar[tuple[float, float]] = (0.0, np.inf)
    tested: ClassVar[bool] = True

    def __call__(self, train: Sample, *samples: Sample) -> Comparison:
        z = leading(train, samples, self.features)
        return Comparison(lambda real, synthetic: frechet(z[real], z[synthetic]), lambda real, synthetic: {"dimensions": z.shape[1]})


def _root(features: np.ndarray) -> np.ndarray:
    """A with ``A^T A`` the covariance, and at most ``dimension`` rows."""
    centred = (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)
    # the triangle of a QR factorisation has the same A^T A, and the nuclear norm needs no more
    return np.linalg.qr(centred, mode="r") if len(centred) > centred.shape[1] else centred
