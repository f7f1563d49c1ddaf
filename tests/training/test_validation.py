"""The share of the loss that training subjects are spared, with its interval over subjects."""

import numpy as np
import pytest
from scipy import stats

from medsynth.training.validation import memorization

LEVELS = np.array([0.02, 0.3, 1.5])


def losses(subjects: int, seed: int, cases: int = 1) -> tuple[np.ndarray, list[str]]:
    """A level's loss times what is a subject's own."""
    own = 1 + 0.2 * np.random.default_rng(seed).standard_normal(subjects)
    names = [f"{seed}/{i}" for i in range(subjects) for _ in range(cases)]
    return np.repeat(own, cases)[:, None] * LEVELS, names


def test_equal_losses_are_no_gap_and_no_loss_is_all_of_it():
    one, names = losses(8, 0)
    assert memorization(one, one, names, names) == {"gap": 0.0, "low": 0.0, "high": 0.0, "subjects": 8}
    assert memorization(0 * one, one, names, names)["gap"] == pytest.approx(1)
    assert memorization(0.7 * one, one, names, names)["gap"] == pytest.approx(0.3)


def test_the_interval_is_that_of_a_paired_t_test():
    (training, learned), (validation, unseen) = losses(12, 1), losses(12, 2)
    found = memorization(training, validation, learned, unseen)
    scale = (validation / LEVELS).mean()
    reference = stats.ttest_rel((validation / LEVELS)[:, 0], (training / LEVELS)[:, 0]).confidence_interval()
    assert (found["low"], found["high"]) == pytest.approx((reference.low / scale, reference.high / scale))


def test_slices_of_one_subject_do_not_narrow_the_interval():
    once, many = (memorization(*(a := losses(9, 3, n))[:1], *(b := losses(9, 4, n))[:1], a[1], b[1]) for n in (1, 5))
    assert many == pytest.approx(once)


def test_the_interval_holds_no_gap_in_nineteen_of_twenty_cases():
    hits = 0
    for seed in range(400):
        (training, learned), (validation, unseen) = losses(10, 2 * seed), losses(10, 2 * seed + 1)
        found = memorization(training, validation, learned, unseen)
        hits += found["low"] <= 0 <= found["high"]
    assert stats.binomtest(hits, 400, 0.95).pvalue > 0.01


def test_one_pair_is_no_evidence():
    (training, learned), (validation, unseen) = losses(1, 5), losses(6, 6)
    found = memorization(0 * training, validation, learned, unseen)
    assert (found["gap"], found["low"], found["subjects"]) == (pytest.approx(1, abs=0.5), pytest.approx(0, abs=0.5), 1)
