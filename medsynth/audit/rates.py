"""Rates with their doubt: intervals for counts and differences, tests by permutation, and how many cases a claim needs.

All intervals are two-sided at ``confidence``; 95 % unless a caller says otherwise. Counts are of independent units, so callers count
subjects (or synthetic cases given the model), never slices of one subject.
"""

import math

import numpy as np
from scipy import optimize, stats

Interval = tuple[float, float]
NEAR_ONE = 1 - 1e-5


def clopper_pearson(hits: int, n: int, confidence: float = 0.95) -> Interval:
    """Exact interval of a rate (Clopper and Pearson 1934): never covers less than ``confidence``. ``n`` 0 gives (0, 1)."""
    assert 0 <= hits <= n, (hits, n)
    tail = (1 - confidence) / 2
    low = 0.0 if hits == 0 else float(stats.beta.ppf(tail, hits, n - hits + 1))
    high = 1.0 if hits == n else float(stats.beta.ppf(1 - tail, hits + 1, n - hits))
    return low, high


def wilson(hits: float, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of a rate (Wilson 1927), the better building block for differences."""
    if n == 0:
        return 0.0, 1.0
    z2 = stats.norm.ppf((1 + confidence) / 2) ** 2
    rate = hits / n
    centre = (rate + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (rate * (1 - rate) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_difference(both: int, only_a: int, only_b: int, neither: int, *, weight: float = 1.0, confidence: float = 0.95) -> Interval:
    """Interval of ``rate_a - weight * rate_b`` where the same units were judged twice.

    Square-and-add of Wilson's intervals with their correlation. With ``weight`` 1 it is method 8 of Newcombe 1998 ("Improved confidence
    intervals for the difference between binomial proportions based on paired data"); Zou and Donner 2008 for weights.
    """
    n = both + only_a + only_b + neither
    if n == 0:
        return -weight, 1.0
    hits_a, hits_b = both + only_a, both + only_b
    a, b = hits_a / n, hits_b / n
    (low_a, high_a), (low_b, high_b) = wilson(hits_a, n, confidence), wilson(hits_b, n, confidence)
    margins = hits_a * (n - hits_a) * hits_b * (n - hits_b)
    phi = (both * neither - only_a * only_b) / math.sqrt(margins) if margins else 0.0
    delta = a - weight * b
    return delta - _add(a - low_a, weight * (high_b - b), phi), delta + _add(high_a - a, weight * (b - low_b), phi)


def residual_risk(hits: int, n: int, control_hits: int, control_n: int, confidence: float = 0.95) -> tuple[float, Interval]:
    """What an attack gains beyond its success on people who cannot leak, ``(a - c) / (1 - c)``, with its interval.

    It is one minus a ratio of two independent rates of failure; the interval of that ratio is by square-and-add from Wilson's (Donner and
    Zou 2012, MOVER-R). 0 is no gain, 1 is certainty, and below 0 the control fared better. Where the control never fails there is nothing
    left to gain: the risk is 0, and its interval is (-inf, 1).
    """
    p, q = (1 - hits / n if n else 1.0), (1 - control_hits / control_n if control_n else 1.0)
    (low_p, high_p), (low_q, high_q) = wilson(n - hits, n, confidence), wilson(control_n - control_hits, control_n, confidence)
    if q == 0:
        return 0.0, (-math.inf, 1.0)
    least = low_p * (2 * p - low_p)
    low = least / (p * q + math.sqrt(max((p * q) ** 2 - least * high_q * (2 * q - high_q), 0.0))) if least else 0.0
    high = (p * q + math.sqrt((p * q) ** 2 - low_q * (2 * q - low_q) * high_p * (2 * p - high_p))) / (low_q * (2 * q - low_q))
    return 1 - p / q, (float(1 - high), float(1 - low))


def _add(x: float, y: float, phi: float) -> float:
    return math.sqrt(max(0.0, x * x - 2 * phi * x * y + y * y))


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """The chance that a member's score lies above another's; ties count half (Mann and Whitney 1947)."""
    ranks = stats.rankdata(np.concatenate([members, others]))
    m, n = len(members), len(others)
    return float((ranks[:m].sum() - m * (m + 1) / 2) / (m * n))


def auc_interval(value: float, members: int, others: int, confidence: float = 0.95) -> Interval:
    """Score interval of an `auc` of so many independent units (Newcombe 2006, "Confidence intervals for an effect size measure based on the
    Mann-Whitney statistic. Part 2", method 5).

    Both ends are the values whose own standard error (Hanley and McNeil 1982, with the mean of both counts) just reaches ``value``. At one
    half that is the exact null variance, and at 1 the interval still has a width, which those that estimate the variance do not have.
    """
    value = min(max(value, 1e-9), 1 - 1e-9)  # at the very ends the equation has a second root there
    z = stats.norm.ppf((1 + confidence) / 2)
    mean = (members + others) / 2 - 1

    def off(true: float) -> float:
        variance = true * (1 - true) * (1 + mean * (1 - true) / (2 - true) + mean * true / (1 + true)) / (members * others)
        return abs(value - true) - z * math.sqrt(variance)

    return float(optimize.brentq(off, 0.0, value)), float(optimize.brentq(off, value, 1.0))


def rate_above(members: np.ndarray, others: np.ndarray, false_positives: float) -> int | None:
    """How many members score above all but a share ``false_positives`` of the others; None where these are too few to hold it.

    Nobody's score decides by itself whether he is above: equal scores are not.
    """
    allowed = math.floor(false_positives * len(others) + 1e-9)
    return None if allowed == 0 else int((members > np.sort(others)[-allowed - 1]).sum())


def label_share(
    weights: np.ndarray, member: np.ndarray, *, generator: np.random.Generator, permutations: int = 9999
) -> tuple[float, float, float]:
    """Do members attract more weight than a random choice of as many units would? Returns share of weight, expected share, one-sided p.

    ``weights`` is a number a unit (here: of synthetic cases whose nearest real subject it is), ``member`` its label. The null
    distribution shuffles the labels over the units, so a unit that attracts many cases for its own reasons does not count as evidence
    many times. It is a test of exchangeability: exact whatever the weights' distribution. The smallest p is ``1 / (permutations + 1)``.
    """
    weights, member = np.asarray(weights, dtype=np.float64), np.asarray(member, dtype=bool)
    total = weights.sum()
    if total == 0 or member.all() or not member.any():
        return float("nan"), float(member.mean()), 1.0
    observed = weights[member].sum()
    shuffled = np.array([weights[generator.permutation(len(weights))[: member.sum()]].sum() for _ in range(permutations)])
    p = (1 + (shuffled >= observed - 1e-9 * total).sum()) / (permutations + 1)
    return float(observed / total), float(member.mean()), float(p)


def conformal_threshold(scores: np.ndarray, alpha: float) -> tuple[float, float]:
    """The score that a further exchangeable unit exceeds with probability at most ``alpha``, and the alpha that these units can hold.

    Split-conformal quantile (Vovk et al. 2005; Lei et al. 2018): the ``ceil((n + 1)(1 - alpha))``-th smallest. Fewer than ``1 / alpha -
    1`` units cannot hold alpha: then the largest score is returned, with ``1 / (n + 1)``.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    n = len(ordered)
    assert n > 0, "no unit to calibrate on"
    rank = math.ceil((n + 1) * (1 - alpha) - 1e-9)
    return (float(ordered[rank - 1]), alpha) if rank <= n else (float(ordered[-1]), 1 / (n + 1))


def calibration_units(alpha: float) -> int:
    """Units that a conformal threshold at ``alpha`` needs: ``1 / alpha - 1``."""
    return math.ceil(1 / alpha - 1 - 1e-9)


def units_for_upper_bound(limit: float, hits: int = 0, confidence: float = 0.95) -> int:
    """Fewest units of which ``hits`` may fire so that the exact upper bound is at most ``limit``.

    With no hits: ``log((1 - confidence) / 2) / log(1 - limit)``, rounded up.
    """
    return _fewest(lambda n: n >= hits and clopper_pearson(hits, n, confidence)[1] <= limit)


def units_for_lower_bound(limit: float, misses: int = 0, confidence: float = 0.95) -> int:
    """Fewest units of which ``misses`` may be missed so that the exact lower bound is at least ``limit``."""
    return _fewest(lambda n: n >= misses and clopper_pearson(n - misses, n, confidence)[0] >= limit)


def _fewest(enough) -> int:
    """The smallest n that satisfies a monotone condition, by doubling and bisection."""
    high = 1
    while not enough(high):
        high *= 2
        if high > 10**9:
            raise ValueError("no number of units is enough")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def fisher(correlation: np.ndarray) -> np.ndarray:
    """Fisher's z of a correlation; finite at 1, as what lies beyond 1 - 1e-5 is rounding."""
    return np.arctanh(np.clip(correlation, -NEAR_ONE, NEAR_ONE))
