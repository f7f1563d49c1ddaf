"""Every number with its doubt: an interval, an anchor between real and real, and a permutation test; written once for all metrics.

The interval comes from halves: the metric is computed on random halves of the subjects, drawn without replacement, and its spread there
is that of the whole, up to a factor of one (Politis and Romano 1994). A bootstrap draws copies, and a copy is what these metrics react
to: its interval does not even contain the estimate (measured: 0 of 15 for the Frechet distance).
"""

import math
from collections.abc import Sequence

import numpy as np

from medsynth.metrics.score import Comparison, Metric, NotApplicable, Rows, Sample, Score, pooled_subjects
from medsynth.rng import generator_for

FEWEST = 8  # subjects on each side below which a half tells nothing about the whole


def spread(subjects: Sequence[str], cases: int, *, seed: int) -> Rows:
    """So many cases from as many subjects as possible, in random order: one of every subject, then a second of every subject, and so on."""
    generator = generator_for(seed, "spread")
    turn: dict[str, int] = {}
    ranks = []
    order = generator.permutation(len(subjects))
    for i in order:
        turn[subjects[i]] = turn.get(subjects[i], 0) + 1
        ranks.append(turn[subjects[i]])
    return order[np.argsort(ranks, kind="stable")][:cases]


def score(
    name: str, metric: Metric, train: Sample, holdout: Sample, synthetic: Sample, *, seed: int, subsamples: int, permutations: int
) -> Score:
    """The metric between held-out and synthetic cases, beside the same between held-out and training cases.

    Most metrics depend on the number of independent cases, so both sides take one case of as many subjects: as many as the smaller of the
    two cohorts has. All held-out cases take part in both. ``permutations=0`` makes no test.
    """
    size = min(train.n_subjects, synthetic.n_subjects)
    rows = (spread(sample.subjects, n, seed=seed) for sample, n in ((train, size), (synthetic, size), (holdout, len(holdout))))
    anchor, synthetic, holdout = (
        sample.take(taken, images=not metric.features) for sample, taken in zip((train, synthetic, holdout), rows, strict=True)
    )
    counted = {
        "name": name,
        "features": metric.features,
        "best": metric.best,
        "n_real": len(holdout),
        "n_synthetic": len(synthetic),
        "subjects_real": holdout.n_subjects,
        "subjects_synthetic": synthetic.n_subjects,
    }
    fewest = min(holdout.n_subjects, synthetic.n_subjects, anchor.n_subjects)
    if fewest < metric.least:
        reason = (
            f"needs {metric.least} subjects on each side; there are {holdout.n_subjects} held out, {anchor.n_subjects} for training, "
            f"{synthetic.n_subjects} synthetic"
        )
        return Score(**counted, status="absent", reason=reason)
    samples = (anchor, holdout, synthetic)
    subjects = pooled_subjects(samples)
    first, real, made = np.split(np.arange(len(subjects)), np.cumsum([len(anchor), len(holdout)]))
    try:
        comparison = metric(train, *samples)
        value, floor = comparison.value(real, made), comparison.value(real, first)
    except NotApplicable as answer:
        return Score(**counted, status="absent", reason=str(answer))
    if not (math.isfinite(value) and math.isfinite(floor)):
        return Score(**counted, status="absent", reason="the value is not finite")
    return Score(
        **counted,
        value=value,
        interval=interval(comparison, subjects, real, made, subsamples, metric.bounds, seed=seed),
        anchor=floor,
        anchor_interval=interval(comparison, subjects, real, first, subsamples, metric.bounds, seed=seed),
        p=permutation_p(comparison, subjects, real, made, permutations, seed=seed) if metric.tested and permutations else None,
        details=comparison.details(real, made),
    )


def interval(
    comparison: Comparison,
    subjects: Sequence[str],
    real: Rows,
    synthetic: Rows,
    subsamples: int,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    *,
    seed: int,
) -> tuple[float, float]:
    """The 95 % interval ``value +- 1.96 sd sqrt(m / (N - m))`` over random halves of the subjects, m of N, on both sides; cut at
    ``bounds``. Where every half says the same, as of a share of none, it reaches 3 / N of a share (the rule of three: Hanley and
    Lippman-Hand 1983)."""
    generator = generator_for(seed, "halves")
    sides = [by_subject(subjects, rows) for rows in (real, synthetic)]
    halves = [len(side) // 2 for side in sides]
    values = [comparison.value(*[draw(side, m, generator) for side, m in zip(sides, halves, strict=True)]) for _ in range(subsamples)]
    # the two sides' factors are one, or a little less where a number is odd: the larger is the careful one
    factor = max(math.sqrt(m / (len(side) - m)) for side, m in zip(sides, halves, strict=True))
    centre, reach = comparison.value(real, synthetic), 1.96 * float(np.std(values, ddof=1)) * factor
    if bounds == (0.0, 1.0) and centre in bounds:
        reach = max(reach, 3 / min(map(len, sides)))
    return max(centre - reach, min(bounds[0], centre)), min(centre + reach, max(bounds[1], centre))


def permutation_p(comparison: Comparison, subjects: Sequence[str], real: Rows, synthetic: Rows, permutations: int, *, seed: int) -> float:
    """The share of random relabellings with a value at least as large, the observed one counted: valid at any number.

    One random case of each subject takes part, since only subjects are exchangeable.
    """
    generator = generator_for(seed, "permutations")
    real, synthetic = ([generator.choice(rows) for rows in by_subject(subjects, side)] for side in (real, synthetic))
    both = np.array([*real, *synthetic])
    observed = comparison.value(both[: len(real)], both[len(real) :])
    at_least = 1
    for _ in range(permutations):
        shuffled = generator.permutation(both)
        at_least += comparison.value(shuffled[: len(real)], shuffled[len(real) :]) >= observed
    return at_least / (permutations + 1)


def by_subject(subjects: Sequence[str], rows: Rows) -> list[np.ndarray]:
    """The rows of each subject."""
    found: dict[str, list[int]] = {}
    for row in rows:
        found.setdefault(subjects[row], []).append(int(row))
    return [np.array(each) for each in found.values()]


def draw(sides: list[np.ndarray], count: int, generator: np.random.Generator) -> Rows:
    """The rows of so many random subjects."""
    return np.concatenate([sides[i] for i in generator.choice(len(sides), count, replace=False)])
