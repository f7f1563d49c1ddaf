"""Which defects can each metric see on these data? Every metric is blind to some (Raisa et al. 2025, "All fidelity and diversity metrics
have flaws"), and which ones depends on the images and on their number.

Defects are put into the user's own held-out images (`medsynth.metrics.defects`) at rising severities. A metric sees a defect if, at the
highest severity, it would be called clearly worse than real against real, by the rule of every score; and if its value has risen on the
way there, by no more than half of its null interval backwards. The reference are training cases, so that all held-out cases can be spoilt.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from tqdm import tqdm

from medsynth.metrics.defects import DEFECTS, Defect, Material
from medsynth.metrics.intervals import interval, permutation_p
from medsynth.metrics.learned import through
from medsynth.metrics.score import Best, Metric, NotApplicable, Sample, clearly_worse, pooled_subjects
from medsynth.rng import seed_for

FEWEST = 24  # cases that a defect must leave
SUBSAMPLES, PERMUTATIONS = 20, 19
LEVELS: Mapping[str, Sequence[int]] = {"small": (4,), "quick": (0, 2, 4), "full": (0, 1, 2, 3, 4)}  # of a defect's severities
CASES: Mapping[str, int] = {"off": 100, "small": 60, "quick": 100, "full": 400}  # subjects on each side
LARGE, OF_LARGE = 100_000, 60  # voxels of an image, beyond which so many subjects do unless all is asked for: features of volumes cost time


def cases_of(level: str, voxels: int) -> int:
    """Subjects on each side."""
    return CASES[level] if voxels <= LARGE or level == "full" else min(CASES[level], OF_LARGE)


def badges(
    metrics: Mapping[str, Metric], material: Material, spaces: Mapping[str, Sequence[str]], level: str, defects: Sequence[Defect] = DEFECTS
) -> list[dict]:
    """One row a metric and defect: whether it is seen, and the values by severity. ``spaces`` maps a learned feature space to its seeds; a
    defect is seen if most of them see it."""
    rows = []
    trains = {space: through(material.train, name, space) for name, each in spaces.items() for space in each}  # one each: scales are kept
    for defect in tqdm(defects, desc="evaluate: sanity", unit="defect"):
        severities = [defect.severities[i] for i in LEVELS[level]]
        try:
            samples = [defect.make(material, severity) for severity in (defect.nothing, *severities)]
            reason = "" if min(map(len, samples)) >= FEWEST else f"fewer than {FEWEST} cases would be left"
        except NotApplicable as answer:
            samples, reason = [], str(answer)
        for name, metric in metrics.items():
            row = {"name": name, "features": metric.features, "defect": defect.name, "severities": severities, "unit": defect.unit}
            if reason:
                rows.append({**row, "sees": None, "reason": reason})
                continue
            rows.append(row | _judged(metric, material, samples, spaces.get(metric.features), trains, seed_for(material.seed, defect.name)))
    return rows


def _judged(
    metric: Metric, material: Material, samples: Sequence[Sample], seeds: Sequence[str] | None, trains: Mapping[str, Sample], seed: int
) -> dict:
    given = (material.reference, *samples)
    found = []
    for space in seeds or [metric.features]:
        try:
            seen = [through(sample, metric.features, space) if seeds else sample for sample in given]
            found.append(_measured(metric, trains.get(space, material.train), *seen, seed=seed))
        except NotApplicable as answer:
            return {"sees": None, "reason": str(answer)}
    verdicts = [sees(metric.best, each) for each in found]
    order = np.argsort([each["values"][-1] for each in found], kind="stable")
    return found[order[(len(found) - 1) // 2]] | {
        "sees": sum(verdicts) * 2 > len(verdicts),
        "reason": "",
        **({"seeds": [sum(verdicts), len(verdicts)]} if seeds else {}),
    }


def _measured(metric: Metric, train: Sample, reference: Sample, *samples: Sample, seed: int) -> dict:
    """Values by severity, and whether the last is clearly worse than the value of the first of the samples, which has no defect."""
    comparison = metric(train, reference, *samples)
    subjects = pooled_subjects((reference, *samples))
    real, clean, *spoilt = np.split(np.arange(len(subjects)), np.cumsum([len(reference), *map(len, samples)])[:-1])
    null, *values = (comparison.value(real, rows) for rows in (clean, *spoilt))
    null_interval, last = (interval(comparison, subjects, real, rows, SUBSAMPLES, metric.bounds, seed=seed) for rows in (clean, spoilt[-1]))
    worse = clearly_worse(metric.best, values[-1], last, null, null_interval, None)
    if not worse and metric.tested:
        p = permutation_p(comparison, subjects, real, spoilt[-1], PERMUTATIONS, seed=seed)
        worse = clearly_worse(metric.best, values[-1], last, null, null_interval, p)
    return {"values": values, "null": null, "null_interval": list(null_interval), "clearly_worse": worse}


def sees(best: Best, measured: Mapping) -> bool:
    """The rule above, of what was measured at rising severities."""
    if not measured["clearly_worse"]:
        return False
    low, high = measured["null_interval"]
    risen = [badness(best, value, measured["null"]) for value in (measured["null"], *measured["values"])]
    return all(later >= earlier - (high - low) / 2 for earlier, later in pairwise(risen))


def badness(best: Best, value: float, null: float) -> float:
    """How much worse a value is than without the defect."""
    return {"low": value - null, "high": null - value, "anchor": abs(value - null)}[best]
