"""Can a classifier tell real from synthetic? The two-sample test by classification (Lopez-Paz and Oquab 2017)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.stats import rankdata

from medsynth.metrics.embedding import whitened
from medsynth.metrics.score import Best, Comparison, Rows, Sample, pooled_subjects
from medsynth.rng import seed_for


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """The probability that a positive case scores above a negative one; ties count half."""
    n = int(positive.sum())
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * (len(scores) - n)))


def discriminant(x: np.ndarray, y: np.ndarray, ridge: float) -> np.ndarray:
    """The direction of Fisher's linear discriminant between ``x`` and ``y``: ``(covariance + ridge * its mean variance)^-1 difference``."""
    centred = np.concatenate([x - x.mean(axis=0), y - y.mean(axis=0)])
    covariance = centred.T @ centred / len(centred)
    size = covariance.shape[0]
    return np.linalg.solve(covariance + (ridge * np.trace(covariance) / size + 1e-12) * np.eye(size), y.mean(axis=0) - x.mean(axis=0))


@dataclass(frozen=True, kw_only=True)
class TwoSample:
    """Area under the ROC curve of Fisher's discriminant on whitened features and their squares, over cases of subjects that it was not
    fitted to: ``folds`` parts of the subjects of each side, the mean over parts. 0.5: it cannot tell; below: copies on both sides.

    The squares make it see a change of spread. A closed form, so a thousand fits take seconds, and no solver's tolerance moves the number.
    It learns from few cases what few cases show: only the anchor's neighbourhood tells a bad AUC from a small number.
    """

    features: str
    folds: int = 5
    ridge: float = 0.1

    best: ClassVar[Best] = "low"
    least: ClassVar[int] = 50
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    tested: ClassVar[bool] = True

    def __call__(self, train: Sample, *samples: Sample) -> Comparison:
        _, z = whitened(train, samples, self.features)
        z = np.concatenate([z, z**2], axis=1)
        # a subject's place among the parts is its own: it depends neither on the order of the cases nor on which others there are
        place = np.array([seed_for("fold", subject) for subject in pooled_subjects(samples)])

        def parts(rows: Rows) -> np.ndarray:
            return np.unique(place[rows], return_inverse=True)[1] % self.folds

        def value(real: Rows, synthetic: Rows) -> float:
            part_real, part_made = parts(real), parts(synthetic)
            found = []
            for k in range(self.folds):
                direction = discriminant(z[real[part_real != k]], z[synthetic[part_made != k]], self.ridge)
                a, b = z[real[part_real == k]] @ direction, z[synthetic[part_made == k]] @ direction
                found.append(auc(np.concatenate([a, b]), np.arange(len(a) + len(b)) >= len(a)))
            return float(np.mean(found))

        return Comparison(value, lambda real, synthetic: {"folds": self.folds})
