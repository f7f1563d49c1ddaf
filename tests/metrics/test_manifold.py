import contextlib
import io

import numpy as np
import prdc
import pytest

from medsynth.metrics.embedding import squared_distances
from medsynth.metrics.manifold import Manifold, coverage, density, expected_coverage, precision, recall


def matrices(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    within = [np.where(np.eye(len(z), dtype=bool), np.inf, np.sqrt(squared_distances(z, z))) for z in (x, y)]
    return np.sqrt(squared_distances(x, y)), *within


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_the_four_shares_equal_their_reference_implementation(shift):
    x, y = np.random.default_rng(0).standard_normal((2, 150, 6))
    y = y[:110] * 0.9 + shift
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = prdc.compute_prdc(x, y, nearest_k=5)
    for share in (precision, recall, density, coverage):
        assert share(*matrices(x, y), 5) == pytest.approx(theirs[share.__name__], abs=1e-6)


def test_coverage_of_one_distribution_is_what_theory_expects_and_density_is_one():
    values = [matrices(*np.random.default_rng(seed).standard_normal((2, 1000, 8))) for seed in range(2)]
    assert np.mean([coverage(*m, 5) for m in values]) == pytest.approx(expected_coverage(1000, 5), abs=0.01)
    assert np.mean([density(*m, 5) for m in values]) == pytest.approx(1, abs=0.1)
    assert expected_coverage(1000, 5) == pytest.approx(0.9690, abs=5e-5)


def test_a_cohort_that_repeats_a_few_images_covers_little():
    generator = np.random.default_rng(0)
    x = generator.standard_normal((160, 8))
    collapsed = generator.standard_normal((20, 8))[generator.integers(0, 20, 160)]
    assert coverage(*matrices(x, collapsed), 5) <= 0.6
    assert coverage(*matrices(x, generator.standard_normal((160, 8))), 5) >= 0.93


def test_slices_of_one_subject_are_not_each_others_neighbours(cohort_of):
    """Ten near-equal slices a subject: balls that reach the next slice only would hold no other person, and coverage would vanish."""

    def sample(seed):
        generator = np.random.default_rng(seed)
        people = np.repeat(generator.standard_normal((60, 4)), 10, axis=0) + 0.001 * generator.standard_normal((600, 4))
        return cohort_of(people, np.repeat(np.arange(60), 10).astype(str))

    rows = np.arange(600), np.arange(600, 1200)
    kept = Manifold(share="coverage", features="features")(sample(0), sample(1), sample(2)).value(*rows)
    alone = [cohort_of(sample(seed).features["features"]) for seed in range(3)]
    assert kept > 0.9
    assert Manifold(share="coverage", features="features")(*alone).value(*rows) < 0.1
