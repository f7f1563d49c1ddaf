import numpy as np
import pytest

from medsynth.metrics.intervals import score
from medsynth.metrics.kernel import GaussianDistance
from medsynth.metrics.ranking import Difference, differences, ranks
from medsynth.metrics.score import Sample
from medsynth.rng import generator_for

METRIC = GaussianDistance(features="f")


def sample(n: int, *name, shift: float = 0.0) -> Sample:
    features = generator_for(*name).standard_normal((n, 6)) + shift
    return Sample(images=np.zeros((n, 1, 2, 2)), features={"f": features}, subjects=[str(i) for i in range(n)], spacing=(1.0, 1.0))


def test_a_difference_is_that_of_the_two_scores():
    train, holdout = sample(60, "train"), sample(70, "holdout")
    cohorts = {"a": sample(60, "a"), "b": sample(60, "b", shift=0.4)}
    (pair,) = differences(METRIC, train, holdout, cohorts, seed=1, subsamples=20)
    scores = {
        name: score("mmd", METRIC, train, holdout, cohort, seed=1, subsamples=20, permutations=0).value for name, cohort in cohorts.items()
    }
    assert (pair.first, pair.second) == ("a", "b")
    assert pair.value == pytest.approx(scores["b"] - scores["a"], abs=1e-12)
    assert pair.interval[0] < pair.value < pair.interval[1]


def test_equal_generators_are_rarely_told_apart_and_a_worse_one_is_found():
    """The interval of the difference is one of 95 %, and narrower than those of the two scores, since both look at the same real half."""
    certain, found, trials = 0, 0, 60
    for trial in range(trials):
        train, holdout = sample(60, trial, "train"), sample(60, trial, "holdout")
        cohorts = {"a": sample(60, trial, "a"), "b": sample(60, trial, "b"), "worse": sample(60, trial, "worse", shift=0.6)}
        pairs = differences(METRIC, train, holdout, cohorts, seed=trial, subsamples=40)
        certain += pairs[0].certain
        found += ranks(list(cohorts), pairs)["worse"] == (3, 3)
    assert certain <= 0.12 * trials
    assert found >= 0.85 * trials


def test_what_cannot_be_told_apart_shares_a_place():
    def pair(first: str, second: str, low: float, high: float) -> Difference:
        return Difference(first=first, second=second, value=(low + high) / 2, interval=(low, high))

    pairs = [pair("a", "b", -1, 2), pair("a", "c", 1, 3), pair("b", "c", -1, 3), pair("a", "d", 1, 2), pair("b", "d", 1, 2)]
    pairs.append(pair("c", "d", -3, -1))
    assert ranks("abcd", pairs) == {"a": (1, 2), "b": (1, 3), "c": (3, 4), "d": (3, 3)}
