"""Features as distances need them: on one scale that the real training cases alone decide.

An extractor's columns differ in scale by orders of magnitude, so a raw Euclidean distance would look at the largest column only. The
synthetic cases never take part in the scaling: a defect must not be able to hide itself by it.
"""

from collections.abc import Sequence

import numpy as np
from scipy.spatial.distance import cdist

from medsynth.metrics.score import NotApplicable, Sample, once_a_sample

LIMIT = 10.0  # training standard deviations: beyond it a case is simply far away, and one case cannot carry a whole distance


def standardised(train: Sample, samples: Sequence[Sample], features: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The features of the training sample and of the pool as z-scores of the training sample, ``(case, dimension)`` float64, and the
    indices of the columns kept.

    Columns that are constant or not finite somewhere in the training sample are left out. A number that is not finite elsewhere counts as
    the limit.
    """
    if any(features not in sample.features for sample in (train, *samples)):
        raise NotApplicable(f"there are no {features} features of these images")
    fixed = np.asarray(train.features[features], np.float64)
    mean, deviation = fixed.mean(axis=0), fixed.std(axis=0)
    with np.errstate(invalid="ignore"):
        kept = np.flatnonzero(np.isfinite(deviation) & (deviation > 1e-9 * (1e-9 + np.abs(mean))))
    if not len(kept):
        raise NotApplicable(f"no {features} feature varies over the training cases")

    def scaled(values: np.ndarray) -> np.ndarray:
        z = (np.asarray(values, np.float64)[:, kept] - mean[kept]) / deviation[kept]
        return np.clip(np.nan_to_num(z, nan=LIMIT, posinf=LIMIT, neginf=-LIMIT), -LIMIT, LIMIT)

    return scaled(fixed), scaled(np.concatenate([sample.features[features] for sample in samples])), kept


def dimensions(cases: int) -> int:
    """How many principal axes so many independent cases can carry: a sixth, between 8 and 32."""
    return int(np.clip(cases // 6, 8, 32))


def whitened(train: Sample, samples: Sequence[Sample], features: str) -> tuple[np.ndarray, np.ndarray]:
    """Training sample and pool along the training sample's leading principal axes, each in its standard deviations, ``(case, axis)``.

    Hundreds of an extractor's columns say the same (brightness, mostly). Left as they are, their common direction is all that a distance
    sees: a kernel distance found a blur of half a voxel or 2 % of noise on 100 radiographs at 1 standard error, and finds it at 4 along
    whitened axes.
    """
    _, pool, _ = standardised(train, samples, features)
    fixed, mean, scale = _axes(train, features)
    return fixed, np.clip((pool - mean) @ scale, -LIMIT, LIMIT)


def leading(train: Sample, samples: Sequence[Sample], features: str) -> np.ndarray:
    """The pool as `whitened` gives it, along no more axes than the smallest of the samples can carry: along the last axes of many training
    cases, fewer cases that the axes were not fitted to crowd together, and hide a collapse."""
    return whitened(train, samples, features)[1][:, : dimensions(min(sample.n_subjects for sample in samples))]


@once_a_sample  # many metrics look along the same axes
def _axes(train: Sample, features: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    fixed, _, _ = standardised(train, [train], features)
    mean = fixed.mean(axis=0)
    _, singular, axes = np.linalg.svd(fixed - mean, full_matrices=False)
    count = min(dimensions(train.n_subjects), int((singular > 1e-6 * singular[0]).sum()))
    scale = axes[:count].T / (singular[:count] / np.sqrt(len(fixed)))
    return np.clip((fixed - mean) @ scale, -LIMIT, LIMIT), mean, scale


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """``(n, d), (m, d) -> (n, m)``, float64; exactly zero for a copy, which the shorter way by one matrix product is not."""
    return cdist(x, y, "sqeuclidean")
