"""Structures by their volumes: are the labelled organs and lesions of the synthetic cases as large as those of real ones?

No distribution distance on features saw wrong anatomy reliably; volumes do, and they also count the cases that no real one resembles.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from medsynth.metrics.radiomics import effects
from medsynth.metrics.score import Best, Comparison, NotApplicable, Rows, Sample


def label_volumes(masks: np.ndarray, labels: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """``(case, *space) -> (case, label)``: millilitres of each label (square centimetres of a slice)."""
    space = masks.ndim - 1
    unit = float(np.prod(tuple(spacing)[:space])) / 10**space
    return np.stack([(masks == label).reshape(len(masks), -1).sum(axis=1) for label in labels], axis=1) * unit


@dataclass(frozen=True, kw_only=True)
class LabelVolumes:
    """The mean size of Cohen's d over the labels' volumes; details name each label and the share of cases outside of all training
    volumes."""

    features: ClassVar[str] = ""
    best: ClassVar[Best] = "low"
    least: ClassVar[int] = 8
    bounds: ClassVar[tuple[float, float]] = (0.0, np.inf)
    tested: ClassVar[bool] = True

    def __call__(self, train: Sample, *samples: Sample) -> Comparison:
        if any(sample.masks is None for sample in (train, *samples)):
            raise NotApplicable("the cases have no masks")
        labels = np.setdiff1d(np.unique(train.masks), [0])
        if not len(labels):
            raise NotApplicable("the training masks are empty")
        fixed = label_volumes(train.masks, labels, tuple(train.spacing))
        volumes = np.concatenate([label_volumes(sample.masks, labels, tuple(sample.spacing)) for sample in samples])
        outside = ((volumes < fixed.min(axis=0)) | (volumes > fixed.max(axis=0))).any(axis=1)

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
                "implausible": {"real": float(outside[real].mean()), "synthetic": float(outside[synthetic].mean())},
            }

        return Comparison(lambda real, synthetic: float(np.abs(effects(volumes[real], volumes[synthetic])).mean()), details)
