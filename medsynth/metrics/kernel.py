"""Kernel distances: the squared maximum mean discrepancy between real and synthetic features (Gretton et al. 2012, equation 3).

The estimator is the full-sample unbiased one, so a value near zero means the same at 50 cases as at 5000, and it may be a little
negative. KID is this with a cubic polynomial kernel (Binkowski et al. 2018); the Gaussian kernel sees every difference of distributions,
not only the first three moments.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from medsynth.metrics.embedding import squared_distances, whitened
from medsynth.metrics.score import Best, Comparison, NotApplicable, Rows, Sample, other_subjects, pooled_subjects


def polynomial(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``(x.y / d + 1)^3``, the kernel of KID."""
    return (x @ y.T / x.shape[1] + 1.0) ** 3


def gaussian(x: np.ndarray, y: np.ndarray, bandwidth: float) -> np.ndarray:
    """``exp(-|x - y|^2 / (2 bandwidth^2))``."""
    return np.exp(-squared_distances(x, y) / (2 * bandwidth**2))


def discrepancy(kernel: np.ndarray, pairs: np.ndarray, real: Rows, synthetic: Rows) -> float:
    """The unbiased squared discrepancy of two sets of rows of a kernel matrix.

    ``pairs`` is True where two rows are independent: a row and itself never, two slices of one subject neither, as both would bias the
    estimate upwards.
    """

    def within(rows: Rows) -> float:
        used = pairs[np.ix_(rows, rows)]
        return float((kernel[np.ix_(rows, rows)] * used).sum() / used.sum())

    return within(real) + within(synthetic) - 2 * float(kernel[np.ix_(real, synthetic)].mean())


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """KID without subsets: torch-fidelity's default of 1000 cases a subset fails below that, and its spread is no standard error."""

    features: str

    best: ClassVar[Best] = "low"
    least: ClassVar[int] = 50
    bounds: ClassVar[tuple[float, float]] = (-np.inf, np.inf)
    tested: ClassVar[bool] = True

    def __call__(self, train: Sample, *samples: Sample) -> Comparison:
        _, z = whitened(train, samples, self.features)
        kernel, pairs = polynomial(z, z), other_subjects(pooled_subjects(samples))
        return Comparison(lambda real, synthetic: discrepancy(kernel, pairs, real, synthetic))


@dataclass(frozen=True, kw_only=True)
class GaussianDistance:
    """The discrepancy under a Gaussian kernel, as CMMD (Jayasumana et al. 2024). Its bandwidth is the median distance of training cases,
    for every comparison the same: a bandwidth that follows the synthetic cases would hide what is wrong with them."""

    features: str

    best: ClassVar[Best] = "low"
    least: ClassVar[int] = 50
    bounds: ClassVar[tuple[float, float]] = (-np.inf, np.inf)
    tested: ClassVar[bool] = True

    def __call__(self, train: Sample, *samples: Sample) -> Comparison:
        fixed, z = whitened(train, samples, self.features)
        bandwidth = float(np.median(np.sqrt(squared_distances(fixed, fixed)[other_subjects(train.subjects)])))
        if not bandwidth > 0:
            raise NotApplicable("half of the training cases are equal")
        kernel, pairs = gaussian(z, z, bandwidth), other_subjects(pooled_subjects(samples))
        return Comparison(
            lambda real, synthetic: discrepancy(kernel, pairs, real, synthetic), lambda real, synthetic: {"bandwidth": bandwidth}
        )
