"""Intervals and tests against SciPy, closed forms and simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from medsynth.audit.rates import (
    auc,
    auc_interval,
    calibration_units,
    clopper_pearson,
    conformal_threshold,
    label_share,
    paired_difference,
    rate_above,
    units_for_lower_bound,
    units_for_upper_bound,
    wilson,
)
from medsynth.rng import generator_for


@pytest.mark.parametrize(("hits", "n"), [(0, 20), (1, 72), (7, 300), (72, 72), (3, 5)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_intervals_of_a_rate_are_scipys(hits: int, n: int, confidence: float) -> None:
    reference = stats.binomtest(hits, n)
    exact = reference.proportion_ci(confidence, method="exact")
    score = reference.proportion_ci(confidence, method="wilson")
    assert clopper_pearson(hits, n, confidence) == pytest.approx((exact.low, exact.high))
    assert wilson(hits, n, confidence) == pytest.approx((score.low, score.high))


def test_without_units_nothing_is_known() -> None:
    assert clopper_pearson(0, 0) == (0, 1)
    assert wilson(0, 0) == (0, 1)


def test_zero_hits_have_the_closed_form_and_the_rule_of_three() -> None:
    assert clopper_pearson(0, 200)[1] == pytest.approx(1 - 0.025 ** (1 / 200))
    assert clopper_pearson(0, 1000, 0.9)[1] == pytest.approx(3 / 1000, rel=0.01)


def test_units_for_a_bound_have_their_closed_form() -> None:
    assert units_for_upper_bound(0.02) == math.ceil(math.log(0.025) / math.log(0.98))
    assert units_for_lower_bound(0.95) == 72  # 72 of 72: what the facts about copy detectors ask for
    assert calibration_units(0.01) == 99
    assert calibration_units(0.05) == 19
    assert calibration_units(0.1) == 9


@pytest.mark.parametrize(("limit", "hits"), [(0.05, 1), (0.33, 2), (0.02, 3)])
def test_units_for_a_bound_are_enough_and_one_less_is_not(limit: float, hits: int) -> None:
    n = units_for_upper_bound(limit, hits)
    assert clopper_pearson(hits, n)[1] <= limit < clopper_pearson(hits, n - 1)[1]
    n = units_for_lower_bound(1 - limit, hits)
    assert clopper_pearson(n - hits, n)[0] >= 1 - limit > clopper_pearson(n - 1 - hits, n - 1)[0]


def test_uncorrelated_judgements_have_newcombes_interval_of_independent_rates() -> None:
    # a product table, 60 % by 30 %: its correlation is 0
    low, high = paired_difference(18, 42, 12, 28)
    (low_a, high_a), (low_b, high_b) = wilson(60, 100), wilson(30, 100)
    assert low == pytest.approx(0.3 - math.hypot(0.6 - low_a, high_b - 0.3))
    assert high == pytest.approx(0.3 + math.hypot(high_a - 0.6, 0.3 - low_b))


def test_the_paired_interval_turns_round_with_its_arguments() -> None:
    low, high = paired_difference(20, 12, 2, 16)
    assert paired_difference(20, 2, 12, 16) == pytest.approx((-high, -low))


def test_the_paired_interval_covers_what_it_says() -> None:
    generator = generator_for(0, "coverage")
    shares, weight = (0.0, 0.06, 0.01, 0.93), 3.0
    truth = shares[1] - weight * shares[2]
    tables = generator.multinomial(200, shares, size=2000)
    inside = [low <= truth <= high for low, high in (paired_difference(*map(int, table), weight=weight) for table in tables)]
    assert np.mean(inside) > 0.93


def test_the_conformal_threshold_is_exceeded_as_often_as_it_says() -> None:
    generator = generator_for(0, "conformal")
    exceeded = []
    for _ in range(4000):
        scores = generator.standard_normal(40)
        threshold, alpha = conformal_threshold(scores[:39], 0.1)
        assert alpha == 0.1
        exceeded.append(scores[39] > threshold)
    assert np.mean(exceeded) == pytest.approx(0.1, abs=0.015)  # (39 + 1) * 0.1 is whole: exact but for chance


def test_too_few_subjects_raise_alpha_and_say_so() -> None:
    assert conformal_threshold(np.arange(9.0), 0.01) == (8.0, 0.1)
    assert conformal_threshold(np.arange(19.0), 0.05) == (18.0, 0.05)


def test_exchangeable_labels_share_by_their_number() -> None:
    generator = generator_for(0, "labels")
    weights = generator.exponential(size=50) ** 3  # some attract a lot
    ps = []
    for trial in range(200):
        member = generator.permutation(np.arange(50) < 35)
        share, expected, p = label_share(weights, member, generator=generator_for(trial), permutations=199)
        assert expected == 0.7
        ps.append(p)
    assert np.mean(np.array(ps) <= 0.05) < 0.09
    assert 0.4 < np.mean(ps) < 0.6
    assert 0 <= share <= 1


def test_the_permutation_p_is_the_hypergeometric_tail_for_equal_weights() -> None:
    weights = np.array([1.0] * 6 + [0.0] * 14)
    member = np.array([True] * 10 + [False] * 10)  # all six fall on members
    _, _, p = label_share(weights, member, generator=generator_for(0), permutations=20000)
    assert p == pytest.approx(stats.hypergeom.sf(5, 20, 6, 10), rel=0.25)


def test_one_unit_that_attracts_everything_is_no_evidence() -> None:
    weights = np.zeros(20)
    weights[0] = 500
    share, _, p = label_share(weights, np.arange(20) < 15, generator=generator_for(0))
    assert share == 1
    assert p == pytest.approx(0.75, abs=0.03)


def test_auc_is_the_share_of_pairs_and_ties_count_half() -> None:
    members, others = np.array([1.0, 2.0, 2.0, 5.0]), np.array([0.0, 2.0, 3.0])
    pairs = [(a > b) + 0.5 * (a == b) for a in members for b in others]
    assert auc(members, others) == pytest.approx(np.mean(pairs))
    assert auc(members, others) == pytest.approx(1 - auc(others, members))


def test_around_one_half_the_interval_of_auc_has_the_exact_null_variance() -> None:
    """What Mann and Whitney give for guesses: (m + n + 1) / (12 m n); seen from the end that lies at one half."""
    m, n = 60, 40
    value = 0.5 + stats.norm.ppf(0.975) * math.sqrt((m + n + 1) / (12 * m * n))
    assert auc_interval(value, m, n)[0] == pytest.approx(0.5)


@pytest.mark.parametrize("shift", [0.0, 1.0, 2.0])
def test_the_interval_of_auc_covers_the_truth_of_two_normal_distributions(shift: float) -> None:
    generator, truth = generator_for(0, "auc", str(shift)), stats.norm.cdf(shift / math.sqrt(2))
    covered = 0
    for _ in range(300):
        low, high = auc_interval(auc(generator.normal(shift, 1, 30), generator.normal(0, 1, 20)), 30, 20)
        covered += low <= truth <= high
    assert 0.91 < covered / 300 <= 1


def test_where_all_members_are_told_the_interval_of_auc_still_has_a_width() -> None:
    low, high = auc_interval(1.0, 16, 400)
    assert 0.9 < low < 0.96
    assert high == pytest.approx(1)
    assert auc_interval(0.0, 16, 400) == pytest.approx((1 - high, 1 - low))


def test_members_above_all_but_a_share_of_the_others_are_counted() -> None:
    others = np.arange(100.0)
    assert rate_above(np.array([97.0, 98.0, 98.5, 99.0, 200.0]), others, 0.01) == 3  # beyond 98: one other is
    assert rate_above(np.array([98.0]), others, 0.01) == 0
    assert rate_above(np.array([98.0]), others[:99], 0.01) is None
