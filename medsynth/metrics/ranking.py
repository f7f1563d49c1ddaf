"""Ranks with their doubt: a cohort stands before another only where their difference lies beyond its interval.

All cohorts are held against the same real cases, so a half of these that is hard for one is hard for the others. The difference of two is
therefore taken within each half (paired): its interval is far narrower than two intervals side by side would suggest. Intervals are of
each pair by itself, at 95 %.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medsynth.metrics.intervals import by_subject, draw, spread
from medsynth.metrics.score import Comparison, Metric, Rows, Sample, pooled_subjects
from medsynth.rng import generator_for


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How much worse ``second`` is than ``first``, in the metric's own unit; below zero it is better."""

    first: str
    second: str
    value: float
    interval: tuple[float, float]

    @property
    def certain(self) -> bool:
        """Whether one of the two is better."""
        return self.interval[0] > 0 or self.interval[1] < 0


def differences(
    metric: Metric, train: Sample, holdout: Sample, cohorts: Mapping[str, Sample], *, seed: int, subsamples: int
) -> list[Difference]:
    """Every pair of cohorts, by the metric between held-out and synthetic cases, over random halves of all subjects.

    The cohorts are of one size; as many training subjects are the floor that metrics which are best at it are measured from. Raises
    NotApplicable as the metric does.
    """
    size = min(train.n_subjects, *(cohort.n_subjects for cohort in cohorts.values()))
    samples = (train.take(spread(train.subjects, size, seed=seed)), holdout, *cohorts.values())
    comparison, subjects = metric(train, *samples), pooled_subjects(samples)
    parts = np.split(np.arange(len(subjects)), np.cumsum([len(sample) for sample in samples])[:-1])
    sides = [by_subject(subjects, part) for part in parts]
    halves = [len(side) // 2 for side in sides]
    generator = generator_for(seed, "differences")
    whole = _badness(comparison, metric.best, parts)
    spreads = np.array(
        [
            _badness(comparison, metric.best, [draw(side, m, generator) for side, m in zip(sides, halves, strict=True)])
            for _ in range(subsamples)
        ]
    )
    factor = max(math.sqrt(m / (len(side) - m)) for side, m in zip(sides, halves, strict=True))
    names, found = list(cohorts), []
    for b in range(len(names)):
        for a in range(b):
            value, reach = whole[b] - whole[a], 1.96 * float(np.std(spreads[:, b] - spreads[:, a], ddof=1)) * factor
            found.append(Difference(first=names[a], second=names[b], value=value, interval=(value - reach, value + reach)))
    return found


def _badness(comparison: Comparison, best: str, parts: Sequence[Rows]) -> list[float]:
    """A number for each cohort that is small where the cohort is good. ``parts``: the floor's rows, the held-out ones, each cohort's."""
    first, real, *made = parts
    values = [comparison.value(real, rows) for rows in made]
    if best == "anchor":
        floor = comparison.value(real, first)
        return [abs(value - floor) for value in values]
    return values if best == "low" else [-value for value in values]


def ranks(cohorts: Sequence[str], pairs: Sequence[Difference]) -> dict[str, tuple[int, int]]:
    """The best and the worst place that each cohort can have: (1, 2) for two that cannot be told apart and beat all others."""
    ahead = {name: 0 for name in cohorts}
    behind = {name: 0 for name in cohorts}
    for pair in pairs:
        if pair.certain:
            winner, loser = (pair.first, pair.second) if pair.value > 0 else (pair.second, pair.first)
            ahead[loser] += 1
            behind[winner] += 1
    return {name: (1 + ahead[name], len(cohorts) - behind[name]) for name in cohorts}
