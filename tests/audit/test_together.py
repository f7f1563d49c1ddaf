"""Cohorts of one training set, counted together: the bounds of all hold at once less often than each alone."""

import numpy as np
import pytest

from medsynth.audit.rates import clopper_pearson
from medsynth.audit.together import share_of, together

SEARCH = {"check": "memorization", "verdict": "pass", "interval": [0.0, 0.02], "details": {"hard_copies": {"count": 1}}}


def test_by_hand() -> None:
    shares = [share_of("a", 1000, [SEARCH]), share_of("b", 200, [{**SEARCH, "interval": [0.0, 0.1]}])]
    found = together(shares, told=3, taken=5)
    assert found["copies"] == {"upper": pytest.approx(40 / 1200), "cases": 40, "confidence": 0.9}
    assert found["hard_copies"] == {"count": 2, "interval": list(clopper_pearson(2, 1200))}
    assert (found["cohorts"], found["cases"], found["looks"], found["untold"]) == (2, 1200, 5, 2)


@pytest.mark.parametrize("findings", [[], [{**SEARCH, "interval": None}]])
def test_a_cohort_that_nobody_searched_may_be_copies_alone(findings: list) -> None:
    found = together([share_of("a", 90, [SEARCH]), share_of("b", 10, findings)], told=1, taken=1)
    assert found["copies"]["upper"] == pytest.approx(0.9 * 0.02 + 0.1)
    assert found["hard_copies"] is None


@pytest.mark.parametrize("verdict", ["fail", "inconclusive"])
def test_a_bound_that_did_not_pass_is_none(verdict: str) -> None:
    found = together([share_of("a", 50, [{**SEARCH, "verdict": verdict}])], told=1, taken=1)
    assert (found["copies"]["upper"], found["hard_copies"]["count"]) == (1.0, 1)


def test_after_twenty_releases_no_confidence_is_left() -> None:
    assert together([share_of(str(i), 10, [SEARCH]) for i in range(30)], told=1, taken=1)["copies"]["confidence"] == 0


def test_the_bound_holds_as_often_as_it_says() -> None:
    """Three cohorts at a true rate of 2 %, bounds from exact intervals: at most 15 % of experiments may break it."""
    generator, broken = np.random.default_rng(0), 0
    for _ in range(400):
        copies = generator.binomial(300, 0.02, 3)
        shares = [share_of(str(i), 300, [{**SEARCH, "interval": clopper_pearson(int(k), 300)}]) for i, k in enumerate(copies)]
        broken += together(shares, told=1, taken=1)["copies"]["upper"] < 0.02
    assert broken / 400 <= 0.15
