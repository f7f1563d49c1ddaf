"""Does a volume go on from slice to slice as a real one does? In 2-D, from line to line.

A generator that makes slices, or attends along one axis less than along others, leaves steps between them. Distances on features hardly see
this, and the radial spectrum averages it away: here each axis speaks for itself.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.stats import wasserstein_distance

from medsynth.metrics.score import Best, Comparison, NotApplicable, Rows, Sample

SMALL = 1e-6  # model units: a step that no image shows


def steps(images: np.ndarray) -> np.ndarray:
    """``(case, 1, *space) -> (case, 2 * axes)``, of each axis: the logarithm of the mean absolute difference of neighbouring slices, and
    how far the logarithm of the power at fine detail along it (beyond a quarter of a cycle per voxel) lies above the axes' mean."""
    rows = []
    for image in np.asarray(images[:, 0], np.float64):
        differences = [np.log(np.abs(np.diff(image, axis=axis)).mean() + SMALL) for axis in range(image.ndim)]
        fine = np.array([np.log(_fine(image, axis) + SMALL**2) for axis in range(image.ndim)])
        rows.append([*differences, *(fine - fine.mean())])
    return np.array(rows)


def _fine(image: np.ndarray, axis: int) -> float:
    lines = np.moveaxis(image, axis, -1)
    n = lines.shape[-1]
    lines = (lines - lines.mean(axis=-1, keepdims=True)) * np.hanning(n + 2)[1:-1]
    spectrum = np.abs(np.fft.rfft(lines, axis=-1)) ** 2 / n
    return float(spectrum[..., np.fft.rfftfreq(n) > 0.25].mean())


@dataclass(frozen=True, kw_only=True)
class Continuity:
    """The 1-Wasserstein distance of the cases' `steps`, in standard deviations of the training cases; of all axes and both numbers the
    largest. Details tell each."""

    features: ClassVar[str] = ""
    best: ClassVar[Best] = "low"
    least: ClassVar[int] = 8
    bounds: ClassVar[tuple[float, float]] = (0.0, np.inf)
    tested: ClassVar[bool] = True

    def __call__(self, train: Sample, *samples: Sample) -> Comparison:
        if min(train.images.shape[2:]) < 4:
            raise NotApplicable("an axis has fewer than four voxels")
        fixed = steps(train.images)
        found = np.concatenate([steps(sample.images) for sample in samples]) / np.maximum(fixed.std(axis=0), 1e-3)

        def distances(real: Rows, synthetic: Rows) -> list[float]:
            return [float(wasserstein_distance(found[real, k], found[synthetic, k])) for k in range(found.shape[1])]

        def details(real: Rows, synthetic: Rows) -> dict[str, object]:
            each, axes = distances(real, synthetic), found.shape[1] // 2
            return {"differences": each[:axes], "anisotropy": each[axes:]}

        return Comparison(lambda real, synthetic: max(distances(real, synthetic)), details)
