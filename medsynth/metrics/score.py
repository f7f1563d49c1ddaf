"""What a metric looks at, what it promises, and its result with its doubt: the value, its interval, and the same metric between real and
real.

A metric is a callable ``metric(train, *samples) -> Comparison``. The training sample fixes what must not move between comparisons
(z-scores, a kernel's bandwidth, a PCA basis); the samples, one behind the other, are the pool of cases that will be compared. What costs
time (kernels, distances, spectra) is done once there, and the comparison is then a number for any two sets of the pool's rows. So
anchors, half-subsamples and permutations are written once, in `intervals`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import wraps
from typing import Any, ClassVar, Literal, Protocol
from weakref import WeakKeyDictionary

import numpy as np

from medsynth.conditions import Value
from medsynth.rng import seed_for

Best = Literal["low", "high", "anchor"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """A set of cases as a metric sees it, all arrays with one row a case.

    ``images`` are in model units, ``(case, 1, *space)``, or ``(0, 1, *space)`` for a metric of features; ``features`` maps an extractor's
    name to ``(case, dimension)`` and ``names`` to the names of its columns; ``subjects`` is the unit of resampling; ``spacing`` is in mm;
    ``masks`` is ``(case, *space)`` or None.
    """

    images: np.ndarray
    features: Mapping[str, np.ndarray]
    subjects: Sequence[str]
    spacing: Sequence[float]
    conditions: Sequence[Mapping[str, Value]] = ()
    masks: np.ndarray | None = None
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.subjects)

    @property
    def n_subjects(self) -> int:
        return len(set(self.subjects))

    def take(self, rows: np.ndarray, *, images: bool = True) -> "Sample":
        """These rows, as a sample; its images are a copy, which a metric of features need not have."""
        return Sample(
            images=self.images[rows if images else []],
            features={name: values[rows] for name, values in self.features.items()},
            subjects=[self.subjects[i] for i in rows],
            spacing=self.spacing,
            conditions=[self.conditions[i] for i in rows] if len(self.conditions) else (),
            masks=None if self.masks is None else self.masks[rows],
            names=self.names,
        )


def once_a_sample(function: Callable[..., Any]) -> Callable[..., Any]:
    """Remember ``function(sample, *settings)`` for as long as the sample lives: an ordinary cache would hold its images too."""
    kept: WeakKeyDictionary[Sample, dict[tuple, Any]] = WeakKeyDictionary()

    @wraps(function)
    def remembered(sample: Sample, *settings: Any) -> Any:
        found = kept.setdefault(sample, {})
        if settings not in found:
            found[settings] = function(sample, *settings)
        return found[settings]

    return remembered


def pooled_subjects(samples: Sequence[Sample]) -> list[str]:
    """The subject of every case of all samples, in order. Subjects of different samples are different persons, whatever they are called."""
    return [f"{i}/{subject}" for i, sample in enumerate(samples) for subject in sample.subjects]


def other_subjects(subjects: Sequence[str]) -> np.ndarray:
    """``(case, case)`` bool: True where two cases belong to different subjects. Slices of one person are no independent pair."""
    codes = np.unique(np.asarray(subjects), return_inverse=True)[1]
    return codes[:, None] != codes[None, :]


FOLDS = 5


def folds_of(subjects: Sequence[str]) -> np.ndarray:
    """The fifth of the subjects that each case belongs to, by its subject's name alone, ``(case,)`` int.

    What is fitted to four fifths of the training subjects and asked about the other one is never asked about what it knows. Every case is
    asked of its own fifth's, so that training cases (the anchor) and others are treated alike.
    """
    return np.array([seed_for("fold", subject) % FOLDS for subject in subjects], int)


def one_each(subjects: np.ndarray, rows: "Rows") -> "Rows":
    """The first of these rows of every subject, in order: where a count of neighbours or of different cases would count slices of one
    person."""
    return rows[np.sort(np.unique(subjects[rows], return_index=True)[1])]


Rows = np.ndarray  # indices into the pool: the cases of all samples, in order


@dataclass(frozen=True, eq=False)
class Comparison:
    """``value(real rows, synthetic rows)`` is the metric; ``details`` are aggregate numbers for the report, JSON-serialisable."""

    value: Callable[[Rows, Rows], float]
    details: Callable[[Rows, Rows], Mapping[str, object]] = lambda real, synthetic: {}


class NotApplicable(Exception):
    """The metric has no meaning on this data; the message says why and becomes the reason of an absent score."""


class Metric(Protocol):
    """Best on identical cohorts, worse when one is corrupted, its interval containing its value (tests/contracts).

    ``features`` names an extractor, or is empty where the metric looks at images, which no other one is given; ``least`` is the number of
    subjects (on each side) below which the metric says nothing; ``bounds`` are the values that it can take; ``tested`` says whether a
    permutation test is made.
    """

    @property
    def features(self) -> str: ...
    @property
    def best(self) -> Best: ...
    @property
    def least(self) -> int: ...
    @property
    def bounds(self) -> tuple[float, float]: ...
    @property
    def tested(self) -> bool: ...

    def __call__(self, train: Sample, *samples: Sample) -> Comparison: ...


@dataclass(frozen=True, kw_only=True)
class Absent:
    """A metric that cannot be had, whatever the cases: its rows say the ``reason``."""

    features: str
    best: Best
    reason: str

    least: ClassVar[int] = 0
    bounds: ClassVar[tuple[float, float]] = (-np.inf, np.inf)
    tested: ClassVar[bool] = False

    def __call__(self, train: Sample, *samples: Sample) -> Comparison:
        raise NotApplicable(self.reason)


@dataclass(frozen=True, kw_only=True)
class Score:
    """One row of ``metrics.json``.

    ``anchor`` is the same metric between real training and real held-out cases at matched size: the floor that a perfect generator would
    reach. ``best`` says which direction is good; "anchor": the nearer to the anchor the better. ``n_real`` and ``n_synthetic`` count
    cases, ``subjects_real`` and ``subjects_synthetic`` the units that the interval is about. ``group`` names a part of the cohort, such
    as ``class=a``. ``p`` is the permutation test's. ``status`` is "ok", or "absent" with the ``reason``.
    """

    name: str
    features: str = ""
    group: str = ""
    value: float | None = None
    interval: tuple[float, float] | None = None
    anchor: float | None = None
    anchor_interval: tuple[float, float] | None = None
    p: float | None = None
    n_real: int = 0
    n_synthetic: int = 0
    subjects_real: int = 0
    subjects_synthetic: int = 0
    best: Best = "low"
    status: Literal["ok", "absent", "unqualified"] = "ok"
    reason: str = ""
    details: Mapping[str, object] = field(default_factory=dict)

    def as_json(self) -> dict:
        return asdict(self)


def clearly_worse(
    best: Best,
    value: float,
    interval: Sequence[float],
    anchor: float,
    anchor_interval: Sequence[float],
    p: float | None,
) -> bool:
    """Whether a difference to the bad side of real against real is shown: the 95 % intervals lie apart, or the permutation test has p of at
    most 5 %. That none is shown at this number of cases does not mean that there is none."""
    tested = p is not None and p <= 0.05
    too_high = interval[0] > anchor_interval[1] or (tested and value > anchor)
    too_low = interval[1] < anchor_interval[0] or (tested and value < anchor)
    return {"low": too_high, "high": too_low, "anchor": too_high or too_low}[best]
