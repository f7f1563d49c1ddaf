"""How strongly does the model repeat a single case? Measured on canaries, pictures of nobody that training was given (`medsynth.canaries`).

For each pair the attacker says which of the two was in training: the one whose pattern a synthetic case comes nearer to. A model that
repeats nobody leaves a coin's toss. How near is the correlation of what lies beyond the training mean.

*Exposure* (Carlini et al. 2019, section 4.2) is how far up an inserted canary ranks among references that were never inserted: ``log2`` of
their number less ``log2`` of its rank. A canary that left no trace has 1.44 bits on average. The share of right guesses also bounds from
below the epsilon of differential privacy under exchange of one case, ``log(p / (1 - p))`` (Steinke et al. 2023).

It gates nothing: canaries are not people, and what is rarer than they are may be repeated more. But it is measured in the very run.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from medsynth.audit.finding import Evidence, Finding, Verdict
from medsynth.audit.nearest import pooled
from medsynth.audit.rates import clopper_pearson
from medsynth.canaries import CanarySet
from medsynth.rng import generator_for

REFERENCES = 1023  # so that the largest exposure is 10 bits
LIMIT = 0.75  # of the upper bound of right guesses
VOXELS = 4096  # images are averaged down to about so many
RESAMPLES = 999  # for the interval of the mean exposure


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """The check. ``value`` is the share of pairs that the synthetic cohort gives away, ``control`` that of a coin."""

    def __call__(self, evidence: Evidence) -> Finding:
        canaries = evidence.canaries
        if canaries is None or not canaries.count:
            return _finding("inconclusive", "Training was given no canaries, so nothing was measured. train.canaries=50 inserts fifty.")
        if not len(evidence.synthetic):
            return _finding("inconclusive", "There are no synthetic cases.")
        factors = _factors(canaries.mean.shape[1:])
        middle = pooled(canaries.mean[:1], factors)
        cases = sorted(evidence.synthetic, key=lambda case: case.id)
        synthetic = _patterns((evidence.synthetic.pixels(case)[:1] for case in cases), middle, factors)

        def likeness(numbers: Iterable[int]) -> np.ndarray:
            own = _patterns((canaries.image(number)[:1] for number in numbers), middle, factors)
            return np.round((own @ synthetic.T).max(axis=1), 6)  # the last bits depend on the processor

        inserted, withheld, others = (
            likeness(numbers) for numbers in (canaries.inserted, canaries.withheld, canaries.references(REFERENCES))
        )
        return _judge(canaries, inserted, withheld, others, evidence.seed)


def exposure(score: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Bits, for each score: ``log2(n + 1) - log2(rank)`` among ``n`` references; the highest score has rank 1, and of equals it is last."""
    rank = 1 + (references[None] >= score[:, None]).sum(axis=1)
    return math.log2(len(references) + 1) - np.log2(rank)


def epsilon(right: int, guesses: int) -> float:
    """Lower 95 % bound of epsilon (pure, exchange of one case) from guesses that a coin made independent; 0 where there is none."""
    share = clopper_pearson(right, guesses, 0.9)[0]  # one-sided
    return max(math.log(share / (1 - share)), 0.0) if share > 0 else 0.0


def _judge(canaries: CanarySet, inserted: np.ndarray, withheld: np.ndarray, references: np.ndarray, seed: int) -> Finding:
    n, right = canaries.count, int((inserted > withheld).sum())
    interval = clopper_pearson(right, n)
    bits = exposure(inserted, references)
    drawn = generator_for(seed, "exposure").integers(n, size=(RESAMPLES, n))
    low, high = np.quantile(bits[drawn].mean(axis=1), (0.025, 0.975))
    details = {
        "canaries": n,
        "exposure": round(float(bits.mean()), 6),
        "exposure_interval": (round(float(low), 6), round(float(high), 6)),
        "exposure_of_withheld": round(float(exposure(withheld, references).mean()), 6),
        "exposure_largest": round(float(bits.max()), 6),
        "exposure_possible": math.log2(REFERENCES + 1),
        "epsilon_at_least": round(epsilon(right, n), 6),
    }
    told = (
        f"Of {n} canaries that training was given the synthetic cohort gives {right} away (a coin: {n / 2:g}); their mean exposure is "
        f"{bits.mean():.1f} of {details['exposure_possible']:.0f} bits (no trace: 1.4)"
    )
    verdict: Verdict = "pass"
    if interval[1] > LIMIT:
        verdict, told = "inconclusive", f"{told}. That is too few to tell: at least {_enough()} canaries are needed (train.canaries)"
    if interval[0] > 0.5:
        verdict = "fail"
        told = f"{told}: single cases are repeated. Train on more subjects or with fewer steps (fit.steps)"
    return _finding(verdict, f"{told}.", value=right / n, interval=interval, control=0.5, details=details)


def _enough() -> int:
    """Fewest canaries of which half may be given away."""
    return next(n for n in range(2, 1000, 2) if clopper_pearson(n // 2, n)[1] <= LIMIT)


def _factors(space: tuple[int, ...]) -> tuple[int, ...]:
    factor = max(1, math.ceil((math.prod(space) / VOXELS) ** (1 / len(space)) - 1e-9))
    return tuple(min(factor, size) for size in space)


def _patterns(images: Iterable[np.ndarray], middle: np.ndarray, factors: tuple[int, ...]) -> np.ndarray:
    """What images show beyond the middle, averaged down, as unit vectors ``(image, voxel)``."""
    rows = np.concatenate([pooled(image, factors) - middle for image in images]).reshape(-1, middle.size).astype(np.float64)
    rows -= rows.mean(axis=1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def _finding(verdict: Verdict, why: str, *, value=None, interval=None, control=None, details=None) -> Finding:
    return Finding(
        check="canaries",
        verdict=verdict,
        value=value,
        interval=interval,
        control=control,
        limit=LIMIT,
        why=why,
        required=False,
        details=details or {},
    )
