"""Fidelity and diversity apart: what share of the synthetic cases looks real, and what share of the real ones is reached.

Each sample's manifold is the union of balls around its cases, out to the k-th nearest neighbour. Precision and recall (Kynkaanniemi et
al. 2019) fall with the dimension even between equal distributions, so only their relation to the anchor means something; density and
coverage (Naeem et al. 2020) do not.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from medsynth.metrics.embedding import leading, squared_distances, whitened
from medsynth.metrics.score import Best, Comparison, Rows, Sample, one_each, other_subjects, pooled_subjects


def radii(distances: np.ndarray, neighbours: int) -> np.ndarray:
    """Distance of each case to its k-th nearest neighbour; ``distances`` is ``(n, n)`` with an infinite diagonal."""
    k = min(neighbours, len(distances) - 1)
    return np.partition(distances, k - 1, axis=1)[:, k - 1]


def precision(across: np.ndarray, real: np.ndarray, synthetic: np.ndarray, k: int) -> float:
    """Share of synthetic cases in some real ball. ``across`` is ``(real, synthetic)``, ``real`` and ``synthetic`` the distances within
    each."""
    return float((across < radii(real, k)[:, None]).any(axis=0).mean())


def recall(across: np.ndarray, real: np.ndarray, synthetic: np.ndarray, k: int) -> float:
    """Share of real cases in some synthetic ball."""
    return float((across < radii(synthetic, k)[None, :]).any(axis=1).mean())


def density(across: np.ndarray, real: np.ndarray, synthetic: np.ndarray, k: int) -> float:
    """Mean number of real balls that a synthetic case lies in, over k: about 1; above 1 where synthetic cases crowd in the middle."""
    return float((across < radii(real, k)[:, None]).sum(axis=0).mean() / k)


def coverage(across: np.ndarray, real: np.ndarray, synthetic: np.ndarray, k: int) -> float:
    """Share of real balls with a synthetic case in them."""
    return float((across.min(axis=1) < radii(real, k)).mean())


def expected_coverage(cases: int, k: int) -> float:
    """Coverage between two samples of one distribution, ``cases`` each (Naeem et al. 2020, lemma 2)."""
    i = np.arange(1, k + 1)
    return float(1 - np.prod((cases - i) / (2 * cases - i)))


@dataclass(frozen=True, kw_only=True)
class Manifold:
    """One of the four shares, over one case of each subject: the next slice of the same person is a near neighbour and no evidence."""

    share: Literal["precision", "recall", "density", "coverage"]
    features: str
    neighbours: int = 5

    least: ClassVar[int] = 50
    tested: ClassVar[bool] = False

    @property
    def best(self) -> Best:
        return "anchor" if self.share == "density" else "high"

    @property
    def bounds(self) -> tuple[float, float]:
        return (0.0, np.inf) if self.share == "density" else (0.0, 1.0)

    def __call__(self, train: Sample, *samples: Sample) -> Comparison:
        share = {"precision": precision, "recall": recall, "density": density, "coverage": coverage}[self.share]
        z = leading(train, samples, self.features)
        distances = np.sqrt(squared_distances(z, z))
        subjects = np.asarray(pooled_subjects(samples))

        def value(real: Rows, synthetic: Rows) -> float:
            a, b = one_each(subjects, real), one_each(subjects, synthetic)
            return share(distances[np.ix_(a, b)], _apart(distances, a), _apart(distances, b), self.neighbours)

        return Comparison(value, lambda real, synthetic: {"neighbours": self.neighbours})


@dataclass(frozen=True, kw_only=True)
class Authenticity:
    """Share of cases that lie further from their nearest training case than that one from its nearest other (Alaa et al. 2022).

    Between independent draws it is no 0.5 but rises with the dimension, and a tenth of copies hardly moves it: read it beside the anchor,
    and leave proof of privacy to the audit. Training cases of the same subject do not count, so a training case itself can be judged: the
    anchor is what independent persons reach.
    """

    features: str

    best: ClassVar[Best] = "anchor"
    least: ClassVar[int] = 50
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    tested: ClassVar[bool] = False

    def __call__(self, train: Sample, *samples: Sample) -> Comparison:
        fixed, z = whitened(train, samples, self.features)
        names, owner = np.unique(np.asarray(train.subjects), return_inverse=True)
        number = {name: k for k, name in enumerate(names)}
        radius = np.where(other_subjects(train.subjects), np.sqrt(squared_distances(fixed, fixed)), np.inf).min(axis=1)
        subject = np.array([number.get(name, -1) for sample in samples for name in sample.subjects])
        distances = np.where(subject[:, None] == owner[None, :], np.inf, np.sqrt(squared_distances(z, fixed)))
        # strictly: a training case that is its neighbour's nearest has its very radius
        authentic = distances.min(axis=1) > radius[distances.argmin(axis=1)]
        return Comparison(lambda real, synthetic: float(authentic[synthetic].mean()))


def _apart(distances: np.ndarray, rows: Rows) -> np.ndarray:
    """Distances within these rows, infinite from a case to itself."""
    within = distances[np.ix_(rows, rows)]
    np.fill_diagonal(within, np.inf)
    return within
