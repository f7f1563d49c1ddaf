"""Does a synthetic case show what was asked of it? A small reader, fitted to real training cases, says what it sees.

The reader is a ridge regression of each attribute on features, one for each fifth of the subjects and fitted to the others; a case is read
by its subject's, so no training case is read by a reader that knows it. An attribute is asked only if it can be read from real cases so;
else it is left out with the reason, since a blind reader would call every generator unfaithful.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.stats import rankdata
from sklearn.linear_model import RidgeCV

from medsynth.metrics.classifier import auc
from medsynth.metrics.embedding import standardised
from medsynth.metrics.score import FOLDS, Best, Comparison, NotApplicable, Rows, Sample, folds_of

GATE = 0.7  # how well real cases must be read: AUROC, or its like of a number
STRENGTHS = tuple(float(10**k) for k in range(5))  # of the ridge, chosen by leave-one-out error in closed form


@dataclass(frozen=True, eq=False)
class Read:
    """What was asked and what was seen of one attribute, over the pool; ``truth`` is a class' number, or the value, ``known`` where there
    is one. ``seen`` is ``(case, class)`` scores, or ``(case, 1)`` values."""

    name: str
    values: tuple[str, ...]  # of a class; empty for a number
    truth: np.ndarray
    known: np.ndarray
    seen: np.ndarray

    def quality(self, rows: Rows) -> float:
        """0.5: nothing of the attribute is seen; 1: all. The mean AUROC of each class against the others; of a number, half of one plus its
        rank correlation."""
        rows = rows[self.known[rows]]
        truth, seen = self.truth[rows], self.seen[rows]
        if not self.values:
            a, b = rankdata(truth), rankdata(seen[:, 0])
            return float((1 + np.corrcoef(a, b)[0, 1]) / 2) if a.std() > 0 and b.std() > 0 else 0.5
        here = [k for k in range(len(self.values)) if 0 < (truth == k).sum() < len(truth)]
        return float(np.mean([auc(seen[:, k], truth == k) for k in here])) if here else 0.5

    def shares(self, rows: Rows) -> np.ndarray:
        """How often each class is seen."""
        return np.bincount(self.seen[rows].argmax(axis=1), minlength=len(self.values)) / len(rows)

    def told(self, rows: Rows) -> dict[str, float]:
        """The quality, and the accuracy of a class, or the mean absolute error of a number in its own unit."""
        known = rows[self.known[rows]]
        truth, seen = self.truth[known], self.seen[known]
        if self.values:
            return {"quality": self.quality(rows), "accuracy": float((seen.argmax(axis=1) == truth).mean())}
        return {"quality": self.quality(rows), "mean_absolute_error": float(np.abs(seen[:, 0] - truth).mean())}


def readings(train: Sample, samples: Sequence[Sample], features: str) -> tuple[list[Read], dict[str, float]]:
    """What the readers see in the pool of each attribute that they can read, and how well they read the training cases of those that they
    cannot. Raises NotApplicable where there is no attribute, or none that they can."""
    names = sorted({name for condition in train.conditions for name in condition})
    if not names:
        raise NotApplicable("nothing was asked of the cases: data.conditions is empty")
    fixed, pool, _ = standardised(train, samples, features)
    fold = folds_of(train.subjects)
    pool_fold = np.concatenate([folds_of(sample.subjects) for sample in samples])
    asked = [condition for sample in samples for condition in sample.conditions or ({},) * len(sample)]
    found, blind = [], {}
    for name in names:
        values = sorted({str(c[name]) for c in train.conditions if isinstance(c.get(name), str)})
        if len(values) == 1:
            blind[name] = 0.5
            continue
        truth, known = _truth(name, values, train.conditions)
        target = np.eye(len(values))[truth[known].astype(int)] if values else truth[known, None]
        own, seen = np.zeros((len(fixed), target.shape[1])), np.zeros((len(pool), target.shape[1]))
        for k in range(FOLDS):
            others = fold[known] != k
            reader = RidgeCV(alphas=STRENGTHS).fit(fixed[known][others], target[others])
            own[fold == k] = reader.predict(fixed[fold == k]).reshape(-1, target.shape[1]) if (fold == k).any() else 0
            seen[pool_fold == k] = reader.predict(pool[pool_fold == k]).reshape(-1, target.shape[1]) if (pool_fold == k).any() else 0
        reached = Read(name, tuple(values), truth, known, own).quality(np.arange(len(fixed)))
        if reached < GATE:
            blind[name] = reached
        else:
            found.append(Read(name, tuple(values), *_truth(name, values, asked), seen))
    if not found:
        raise NotApplicable(_blind(blind))
    return found, blind


def _truth(name: str, values: Sequence[str], conditions: Sequence[Mapping]) -> tuple[np.ndarray, np.ndarray]:
    place = {value: k for k, value in enumerate(values)}
    given = [condition.get(name) for condition in conditions]
    truth = [(place.get(str(value), -1) if values else float(value)) if value is not None else -1 for value in given]
    return np.array(truth, float), np.array([value is not None and (not values or str(value) in place) for value in given], bool)


def _blind(attributes: Mapping[str, float]) -> str:
    each = ", ".join(f"{name} {value:.2f}" for name, value in attributes.items())
    return f"no attribute can be read from real cases: of {GATE} needed, {each}"


@dataclass(frozen=True, kw_only=True)
class ConditionFidelity:
    """How well the requested attributes are read from synthetic cases: the mean of their qualities, where the anchor is the same of real
    training cases. Details tell each attribute, with accuracy or error, of real and synthetic cases."""

    features: str

    best: ClassVar[Best] = "anchor"  # above it, cases are more typical of their class than real ones
    least: ClassVar[int] = 50
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    tested: ClassVar[bool] = False

    def __call__(self, train: Sample, *samples: Sample) -> Comparison:
        if not all(len(sample.conditions) for sample in samples):
            raise NotApplicable("nothing was asked of some of the cases")
        found, blind = readings(train, samples, self.features)

        def details(real: Rows, synthetic: Rows) -> dict[str, object]:
            each = [{"attribute": read.name, "real": read.told(real), "synthetic": read.told(synthetic)} for read in found]
            return {"attributes": each, "not_readable": blind, "gate": GATE}

        return Comparison(lambda real, synthetic: float(np.mean([read.quality(synthetic) for read in found])), details)


@dataclass(frozen=True, kw_only=True)
class PredictedLabels:
    """Total variation between how often each class is seen in real and in synthetic cases, the largest over the classes' attributes.

    A dropped class shows here whatever a feature distance sees. If other shares were requested than real cases have, so does that.
    """

    features: str

    best: ClassVar[Best] = "low"
    least: ClassVar[int] = 50
    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    tested: ClassVar[bool] = True

    def __call__(self, train: Sample, *samples: Sample) -> Comparison:
        found, blind = readings(train, samples, self.features)
        classes = [read for read in found if read.values]
        if not classes:
            raise NotApplicable(_blind(blind) if blind else "no attribute is a class")

        def value(real: Rows, synthetic: Rows) -> float:
            return max(float(np.abs(read.shares(real) - read.shares(synthetic)).sum() / 2) for read in classes)

        def details(real: Rows, synthetic: Rows) -> dict[str, object]:
            each = [
                {"attribute": read.name, "class": name, "real": float(a), "synthetic": float(b)}
                for read in classes
                for name, a, b in zip(read.values, read.shares(real), read.shares(synthetic), strict=True)
            ]
            return {"classes": each}

        return Comparison(value, details)
