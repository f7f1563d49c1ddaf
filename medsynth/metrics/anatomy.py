"""Structures by their masks: are the labelled organs and lesions of the synthetic cases as large, as many and where they are in real ones?

No distribution distance on features saw wrong anatomy reliably; volumes do, and the count of cases whose structures no real one resembles.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy import ndimage

from medsynth.metrics.radiomics import effects
from medsynth.metrics.score import FOLDS, Best, Comparison, NotApplicable, Rows, Sample, folds_of

FEWEST = 8  # cases that must have a structure before another one's can be called strange
SHRUNK = 0.1  # variances added to a covariance, so that few training cases cannot make a direction too sharp


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
    """``(case, *space) -> (case, label, 2 + 2 * axes)``: of each label its share of the voxels, its number of connected parts (neighbours
    share a face), the place of its centre along each axis, 0 to 1, and its standard deviation along each; not a number where the label is
    absent."""
    space = masks.shape[1:]
    wide = np.array([n - 1 or 1 for n in space])
    rows = np.full((len(masks), len(labels), 2 + 2 * len(space)), np.nan)
    for mask, row in zip(masks, rows, strict=True):
        for label, found in zip(labels, row, strict=True):
            here = mask == label
            found[:2] = here.mean(), ndimage.label(here)[1]
            if here.any():
                places = np.argwhere(here)
                found[2:] = np.concatenate([places.mean(axis=0) / wide, places.std(axis=0) / wide])
    return rows


@dataclass(frozen=True, kw_only=True)
class Implausible:
    """Share of cases with a structure further from the training cases' own than ``quantile`` of these are themselves.

    How far a structure lies from the others of its label is the Mahalanobis distance of its `structures`, with their covariance shrunk a
    little towards none; a case's furthest structure decides. Means and covariances are of four fifths of the subjects and tried on the
    others, so that about ``1 - quantile`` of real cases are flagged, however many labels and however few training cases there are. A
    structure that fewer than `FEWEST` of those cases have is not judged: the few real cases that have it would be furthest of all, and
    nothing would be flagged beside them.
    """

    quantile: float = 0.99

    features: ClassVar[str] = ""
    best: ClassVar[Best] = "anchor"  # real cases have rare structures too
    least: ClassVar[int] = 50
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    tested: ClassVar[bool] = True

    def __call__(self, train: Sample, *samples: Sample) -> Comparison:
        labels = labels_of(train, samples)
        fixed, fold = structures(train.masks, labels), folds_of(train.subjects)
        space = np.array(train.masks.shape[1:])
        grain = np.array([1 / space.prod(), 1, *(1 / space), *(1 / space)])  # a voxel, a part, a voxel's width
        known = [_known(fixed[fold != k], grain) for k in range(FOLDS)]

        def away(found: np.ndarray, subjects: Sequence[str]) -> np.ndarray:
            return np.stack([distances(found) for distances in known])[folds_of(subjects), np.arange(len(found))]

        limit = np.quantile(away(fixed, train.subjects), self.quantile, method="higher")
        flagged = np.concatenate([away(structures(sample.masks, labels), sample.subjects) for sample in samples]) > limit

        def details(real: Rows, synthetic: Rows) -> dict[str, object]:
            return {"real": float(flagged[real].mean()), "synthetic": float(flagged[synthetic].mean())}

        return Comparison(lambda real, synthetic: float(flagged[synthetic].mean()), details)


def _known(train: np.ndarray, grain: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The furthest structure's distance of cases ``(case, label, feature)`` from training cases. A label that is absent lies nowhere, and
    is far by its size and its number of parts only."""
    judged = np.isfinite(train).all(axis=2).sum(axis=0) >= FEWEST
    there = np.ma.masked_invalid(train[:, judged])
    mean, scale = there.mean(axis=0).filled(0), there.std(axis=0).filled(0) + grain / 4  # rounded to voxels

    def scaled(found: np.ndarray) -> np.ndarray:
        return np.nan_to_num((found[:, judged] - mean) / scale)

    z = scaled(train)
    inverse = np.linalg.inv(np.einsum("nlf,nlg->lfg", z, z) / len(z) + SHRUNK * np.eye(len(grain)))
    return lambda found: np.sqrt(np.einsum("nlf,lfg,nlg->nl", scaled(found), inverse, scaled(found))).max(axis=1, initial=0)
