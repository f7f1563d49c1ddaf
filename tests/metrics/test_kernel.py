import numpy as np
import pytest
import torch

from medsynth.metrics.intervals import permutation_p
from medsynth.metrics.kernel import GaussianDistance, KernelDistance, discrepancy, gaussian, polynomial


def kid(x: np.ndarray, y: np.ndarray) -> float:
    both = np.concatenate([x, y])
    return discrepancy(polynomial(both, both), ~np.eye(len(both), dtype=bool), np.arange(len(x)), np.arange(len(x), len(both)))


def test_kid_equals_a_loop_over_all_pairs():
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((17, 5)), generator.standard_normal((23, 5)) + 0.4

    def k(a, b):
        return (float(np.dot(a, b)) / 5 + 1) ** 3

    within_x = sum(k(x[i], x[j]) for i in range(17) for j in range(17) if i != j) / (17 * 16)
    within_y = sum(k(y[i], y[j]) for i in range(23) for j in range(23) if i != j) / (23 * 22)
    across = sum(k(a, b) for a in x for b in y) / (17 * 23)
    assert kid(x, y) == pytest.approx(within_x + within_y - 2 * across, abs=1e-10)


def test_kid_equals_what_torchmetrics_says_of_the_whole_sample():
    try:
        from torchmetrics.image.kid import poly_mmd
    except Exception as error:  # a torchvision of another build breaks its import in several ways
        pytest.skip(f"torchmetrics cannot be imported: {type(error).__name__}")
    x, y = np.random.default_rng(0).standard_normal((2, 60, 16)) + np.array([0, 0.2])[:, None, None]
    assert kid(x, y) == pytest.approx(float(poly_mmd(torch.from_numpy(x), torch.from_numpy(y))), rel=1e-10)


def test_kid_is_unbiased_at_50_cases():
    values = [kid(*np.random.default_rng(seed).standard_normal((2, 50, 8))) for seed in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values, ddof=1) / np.sqrt(200)


def test_slices_of_one_subject_do_not_bias_it(cohort_of):
    """Two cohorts of one distribution, three like slices a subject: near zero, where pairs of one subject would lift it far above."""

    def sample(seed):
        generator = np.random.default_rng(seed)
        subjects = generator.standard_normal((40, 8))
        return cohort_of(
            np.repeat(subjects, 3, axis=0) + 0.1 * generator.standard_normal((120, 8)), np.repeat(np.arange(40), 3).astype(str)
        )

    values, naive = [], []
    for seed in range(60):
        train, real, synthetic = (sample(3 * seed + i) for i in range(3))
        rows = np.arange(120), np.arange(120, 240)
        values.append(KernelDistance(features="features")(train, real, synthetic).value(*rows))
        alone = [cohort_of(s.features["features"]) for s in (train, real, synthetic)]
        naive.append(KernelDistance(features="features")(*alone).value(*rows))
    error = np.std(values, ddof=1) / np.sqrt(60)
    assert abs(np.mean(values)) < 3 * error
    assert np.mean(naive) > 5 * error


def test_the_gaussian_kernel_sees_a_change_of_covariance_alone(cohort_of):
    """Twice and a quarter the variance at equal means: invisible to a linear kernel, which is the squared difference of means."""
    generator = np.random.default_rng(0)
    train, real, synthetic = (cohort_of(scale * generator.standard_normal((100, 8))) for scale in (1, 1, 1.5))
    comparison = GaussianDistance(features="features")(train, real, synthetic)
    subjects = [str(i) for i in range(200)]
    assert permutation_p(comparison, subjects, np.arange(100), np.arange(100, 200), 199, seed=0) <= 0.01


def test_the_bandwidth_is_the_training_cases_and_does_not_follow_the_synthetic_ones(cohort_of):
    generator = np.random.default_rng(0)
    train, real, synthetic = (cohort_of(generator.standard_normal((60, 8))) for _ in range(3))
    far = cohort_of(synthetic.features["features"] + 5)
    rows = np.arange(60), np.arange(60, 120)
    first, second = (GaussianDistance(features="features")(train, real, other).details(*rows) for other in (synthetic, far))
    assert first == second


def test_the_gaussian_kernel_is_its_definition():
    x, y = np.array([[0.0, 0.0]]), np.array([[3.0, 4.0]])
    assert gaussian(x, y, 2.0)[0, 0] == pytest.approx(np.exp(-25 / 8))
