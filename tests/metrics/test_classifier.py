import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import roc_auc_score

from medsynth.metrics.classifier import TwoSample, auc

C2ST = TwoSample(features="features")


def test_the_area_equals_scikit_learns_with_ties_too():
    generator = np.random.default_rng(0)
    scores, positive = generator.integers(0, 6, 80).astype(float), generator.random(80) < 0.3
    assert auc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


def test_a_known_shift_has_the_area_of_theory(cohort_of):
    """Of N(0, I) and N(m, I) the best classifier reaches the area Phi(|m| / sqrt 2)."""
    generator = np.random.default_rng(0)
    train, real, synthetic = (cohort_of(generator.standard_normal((1000, 4)) + m) for m in (0, 0, 0.5))
    found = C2ST(train, real, synthetic).value(np.arange(1000), np.arange(1000, 2000))
    assert found == pytest.approx(norm.cdf(1 / np.sqrt(2)), abs=0.02)


def test_a_change_of_spread_alone_is_seen(cohort_of):
    generator = np.random.default_rng(0)
    train, real, synthetic = (cohort_of(scale * generator.standard_normal((300, 8))) for scale in (1, 1, 1.5))
    assert C2ST(train, real, synthetic).value(np.arange(300), np.arange(300, 600)) > 0.8


def test_it_guesses_between_draws_of_one_distribution_however_few(cohort_of):
    areas = []
    for seed in range(40):
        generator = np.random.default_rng(seed)
        train, real, synthetic = (cohort_of(generator.standard_normal((50, 8)), [f"{seed}/{i}" for i in range(50)]) for _ in range(3))
        areas.append(C2ST(train, real, synthetic).value(np.arange(50), np.arange(50, 100)))
    assert abs(np.mean(areas) - 0.5) < 3 * np.std(areas, ddof=1) / np.sqrt(40)


def test_slices_of_a_subject_are_never_on_both_sides(cohort_of):
    """Ten near-equal slices a subject and no difference between the cohorts: learned by heart, a subject would give its next slice away."""
    generator = np.random.default_rng(0)

    def sample():
        people = np.repeat(generator.standard_normal((40, 8)), 10, axis=0) + 0.01 * generator.standard_normal((400, 8))
        return cohort_of(people, np.repeat(np.arange(40), 10).astype(str))

    areas = [C2ST(sample(), sample(), sample()).value(np.arange(400), np.arange(400, 800)) for _ in range(6)]
    assert 0.3 < np.mean(areas) < 0.6
