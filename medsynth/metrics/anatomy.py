"""Structures by their masks: are the labelled organs and lesions of the synthetic cases as large, as many and where they are in real ones?

No distribution distance on features saw wrong anatomy reliably; volumes do, and the count of cases whose structures no real one resembles.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import ndimage

from medsynth.metrics.radiomics import effects
from medsynth.metrics.score import FOLDS, Best, Comparison, NotApplicable, Rows, Sample, folds_of


def label_volumes(masks: np.ndarray, labels: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """``(case, *space) -> (case, label)``: millilitres of each label (square centimetres of a slice)."""
    space = masks.ndim - 1
    unit = float(np.prod(tuple(spacing)[:space])) / 10**space
    return np.stack([(masks == label).reshape(len(masks), -1).sum(axis=1) for label in labels], axis=1) * unit


def labels_of(train: Sample, samples: Sequence[Sample]) -> np.ndarray:
    """The foreground labels of the training masks. Raises NotApplicable where there are no masks or nothing in them."""
    if any(sample.masks is None for sample in (train, *samples)):
        raise NotApplicable("the cases have no masks")
    labels = np.setdiff1d(np.unique(train.masks), [0])
    if not len(labels):
        raise NotApplicable("the training masks are empty")
    return labels


@dataclass(frozen=True, kw_only=True)
class LabelVolumes:
    """The mean size of Cohen's d over the labels' volumes; details name each label."""

    features: ClassVar[str] = ""
    best: ClassVar[Best] = "low"
    least: ClassVar[int] = 8
    bounds: ClassVar[tuple[float, float]] = (0.0, np.inf)
    tested: ClassVar[bool] = True

    def __call__(self, train: Sample, *samples: Sample) -> Comparison:
        labels = labels_of(train, samples)
        volumes = np.concatenate([label_volumes(sample.masks, labels, tuple(sample.spacing)) for sample in samples])

        def details(real: Rows, synthetic: Rows) -> dict[str, object]:
            shifts = effects(volumes[real], volumes[synthetic])
            return {
                "labels": [
                    {"label": int(label), "d": float(d), "real": float(a), "synthetic": float(b)}
                    for label, d, a, b in zip(
                        labels, shifts, np.median(volumes[real], axis=0), np.median(volumes[synthetic], axis=0), strict=True
                    )
                ],
                "unit": "mL" if train.masks.ndim == 4 else "cm2",
            }

        return Comparison(lambda real, synthetic: float(np.abs(effects(volumes[real], volumes[synthetic])).mean()), details)


def structures(masks: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """``(case, *space) -> (case, label * (2 + axes))``: of each label its share of the voxels, its number of connected parts (neighbours
    share a face) and the place of its centre along each axis, 0 to 1; not a number where the label is absent."""
    space = masks.shape[1:]
    rows = []
    for mask in masks:
        row = []
        for label in labels:
            found = mask == label
            centre = [float(at.mean()) / (n - 1 or 1) for at, n in zip(np.nonzero(found), space, strict=True)] if found.any() else []
            row += [float(found.mean()), float(ndimage.label(found)[1]), *(centre or [np.nan] * len(space))]
        rows.append(row)
    return np.array(rows).reshape(len(masks), -1)


@dataclass(frozen=True, kw_only=True)
class Implausible:
    """Share of cases with a structure further outside of the training cases' range than ``quantile`` of these are themselves.

    Ranges are of `structures`, between the training cases' ``1 - quantile`` and ``quantile``; how far outside a case lies is told in the
    width of the range, and its worst structure decides. Ranges are taken of four fifths of the subjects and tried on the others, so that
    about ``1 - quantile`` of real cases are flagged, however many labels and however few training cases there are.
    """

    quantile: float = 0.99

    features: ClassVar[str] = ""
    best: ClassVar[Best] = "anchor"  # real cases have rare structures too
    least: ClassVar[int] = 50
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    tested: ClassVar[bool] = True

    def __call__(self, train: Sample, *samples: Sample) -> Comparison:
        labels = labels_of(train, samples)
        space = train.masks.shape[1:]
        smallest = np.array([1 / np.prod(space), 1, *(1 / n for n in space)] * len(labels))  # a voxel, a part, a voxel's width
        fixed, fold = structures(train.masks, labels), folds_of(train.subjects)
        ranges = [np.nanquantile(fixed[fold != k], [1 - self.quantile, self.quantile], axis=0) for k in range(FOLDS)]

        def outside(found: np.ndarray, subjects: Sequence[str]) -> np.ndarray:
            low, high = np.stack([ranges[k] for k in folds_of(subjects)], axis=1)
            beyond = np.maximum(low - found, found - high) / (high - low + smallest)
            return np.nan_to_num(beyond, nan=0.0).max(axis=1)  # an absent label has no place; its volume says that it is absent

        limit = np.quantile(outside(fixed, train.subjects), self.quantile, method="higher")
        flagged = np.concatenate([outside(structures(sample.masks, labels), sample.subjects) for sample in samples]) > limit

        def details(real: Rows, synthetic: Rows) -> dict[str, object]:
            return {"real": float(flagged[real].mean()), "synthetic": float(flagged[synthetic].mean())}

        return Comparison(lambda real, synthetic: float(flagged[synthetic].mean()), details)
