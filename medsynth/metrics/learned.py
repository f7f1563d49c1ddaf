"""Scores on feature spaces that were learned here: several seeds, each of which must prove itself before it counts.

One trained network may see a missing class and the next one not (measured: ratios of 1.0, 6.6 and 2.5 for three seeds of one short
training). So every seed is tried on the user's own held-out cases, and the score is the median over the seeds that passed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from medsynth.metrics.defects import Material, collapse, dropped_class
from medsynth.metrics.embedding import squared_distances, standardised
from medsynth.metrics.frechet import FrechetDistance
from medsynth.metrics.score import NotApplicable, Sample, Score

FACTOR = 1.4  # of the Frechet distance, over the same without the defect
COLLAPSED = 3.0
KNOWN = 0.3  # of held-out cases known again


@dataclass(frozen=True, kw_only=True)
class Qualified:
    """Whether a space counts; ``told`` are the numbers behind it, and ``reason`` says what it failed at."""

    passed: bool
    reason: str
    told: Mapping[str, float]


def through(sample: Sample, name: str, space: str) -> Sample:
    """The sample whose features ``name`` are those of this space: a metric looks at one seed as at any other space."""
    return replace(sample, features={**sample.features, name: sample.features[space]})


def qualify(space: str, material: Material, moved: np.ndarray | None) -> Qualified:
    """Try a space on held-out cases with injected defects, against the reference.

    It must know held-out cases again after they were moved (``moved`` holds their features then; None: this is not asked), and its
    Frechet distance must rise `FACTOR` times where a class is missing and `COLLAPSED` times where every case occurs eight times.
    """
    told, faults = {}, []
    distance = FrechetDistance(features=space)

    def ratio(spoilt: Sample, whole: Sample) -> float:
        sides = (material.reference, whole, spoilt)
        comparison = distance(material.train, *sides)
        real, clean, made = np.split(np.arange(sum(map(len, sides))), np.cumsum([len(side) for side in sides])[:-1])
        return comparison.value(real, made) / max(comparison.value(real, clean), 1e-12)

    try:
        if moved is not None:
            told["known again"] = known_again(space, material, moved)
            if told["known again"] < KNOWN:
                faults.append(f"it knows {told['known again']:.0%} of held-out cases again after a small movement, of {KNOWN:.0%} needed")
        for name, spoilt, whole, least in (
            ("dropped class", dropped_class(material, 1.0), dropped_class(material, 0.0), FACTOR),
            ("collapse", collapse(material, 8), material.clean, COLLAPSED),
        ):
            told[name] = ratio(spoilt, whole)
            if told[name] < least:
                faults.append(f"a {name} raises its Frechet distance {told[name]:.2f} times, of {least} needed")
    except NotApplicable as answer:
        faults.append(str(answer))
    return Qualified(passed=not faults, reason="; ".join(faults), told=told)


def known_again(space: str, material: Material, moved: np.ndarray) -> float:
    """Share of the clean cases whose moved image is nearer to them than to any other, by direction from the training cases' mean."""
    _, both, _ = standardised(material.train, [material.clean], space)
    there = replace(material.clean, features={space: moved})
    _, again, _ = standardised(material.train, [there], space)
    unit = [z / np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12) for z in (again, both)]
    return float((squared_distances(*unit).argmin(axis=1) == np.arange(len(both))).mean())


def middle(scores: Mapping[str, Score], qualified: Mapping[str, Qualified]) -> str:
    """The seed whose value is the median of those that qualified; where none did, of all."""
    there = [space for space, row in scores.items() if row.value is not None]
    order = sorted([space for space in there if qualified[space].passed] or there, key=lambda space: scores[space].value)
    return order[(len(order) - 1) // 2] if order else next(iter(scores))


def told(middle: str, score: Score, scores: Mapping[str, Score], qualified: Mapping[str, Qualified]) -> Score:
    """The ``middle`` seed's score, with all seeds' values and the spread of those that count; unqualified where no seed passed."""
    if score.value is None:
        return score
    seeds = [{"space": space, "value": row.value, "qualified": qualified[space].passed} for space, row in scores.items()]
    counted = [row.value for space, row in scores.items() if qualified[space].passed == qualified[middle].passed and row.value is not None]
    score = replace(score, details={**score.details, "seeds": seeds, "spread": [min(counted), max(counted)]})
    if qualified[middle].passed:
        return score
    return replace(score, status="unqualified", reason=unqualified(qualified, scores))


def unqualified(qualified: Mapping[str, Qualified], spaces: Iterable[str]) -> str:
    return "no seed passed on injected defects: " + "; ".join(f"{space}: {qualified[space].reason}" for space in spaces)
