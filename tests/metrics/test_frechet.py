import numpy as np
import pytest
import torch

from medsynth.metrics.embedding import dimensions
from medsynth.metrics.frechet import FrechetDistance, frechet


def exactly(mean: np.ndarray, covariance: np.ndarray, cases: int, seed: int) -> np.ndarray:
    """Cases whose sample mean and covariance are exactly these."""
    x = np.random.default_rng(seed).standard_normal((cases, len(mean)))
    x -= x.mean(axis=0)
    x = x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / (cases - 1))).T
    return mean + x @ np.linalg.cholesky(covariance).T


def test_scaled_and_shifted_gaussians_have_their_closed_form_distance():
    """|m|^2 + d (s - 1)^2 between N(0, I) and N(m, s^2 I)."""
    m, s = np.linspace(-1, 2, 7), 1.7
    found = frechet(exactly(np.zeros(7), np.eye(7), 60, 0), exactly(m, s**2 * np.eye(7), 40, 1))
    assert found == pytest.approx((m**2).sum() + 7 * (s - 1) ** 2, abs=1e-10)


def test_covariances_that_do_not_commute_have_their_closed_form_distance():
    """In two dimensions tr (AB)^(1/2) = (tr AB + 2 (det AB)^(1/2))^(1/2)."""
    a, b = np.array([[2.0, 0.6], [0.6, 1.0]]), np.array([[0.5, -0.3], [-0.3, 1.5]])
    root = np.sqrt(np.trace(a @ b) + 2 * np.sqrt(np.linalg.det(a @ b)))
    found = frechet(exactly(np.zeros(2), a, 30, 0), exactly(np.zeros(2), b, 50, 1))
    assert found == pytest.approx(np.trace(a) + np.trace(b) - 2 * root, abs=1e-10)


def test_it_equals_what_monai_and_torchmetrics_say():
    from monai.metrics import FIDMetric

    generator = np.random.default_rng(0)
    mixing = generator.standard_normal((64, 64)) / 8
    x, y = generator.standard_normal((1000, 64)) @ mixing, 1.2 * generator.standard_normal((1000, 64)) @ mixing + 0.1
    ours = frechet(x, y)
    assert ours == pytest.approx(float(FIDMetric()(torch.from_numpy(y), torch.from_numpy(x))), rel=1e-9)

    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
    except Exception as error:  # a torchvision of another build breaks its import in several ways
        pytest.skip(f"torchmetrics cannot be imported: {type(error).__name__}")

    class Features(torch.nn.Module):
        num_features = 64

        def forward(self, features):
            return features

    theirs = FrechetInceptionDistance(feature=Features(), normalize=True).set_dtype(torch.float64)
    theirs.update(torch.from_numpy(x), real=True)
    theirs.update(torch.from_numpy(y), real=False)
    assert ours == pytest.approx(float(theirs.compute()), rel=1e-9)


def test_fewer_cases_than_dimensions_never_give_a_negative_or_undefined_distance():
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((2, 50, 512))
    for scale in (0.1, 1, 3, 10):
        assert 0 <= frechet(scale * x, scale * x[::-1]) <= 1e-9
    assert 0 <= frechet(x, np.tile(x[:1], (50, 1))) < np.inf  # a cohort that collapsed to one image
    covariances = np.cov(x.T), np.cov(y.T)
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    overlap = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ covariances[1] @ root), 0)).sum()
    slow = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(covariances[0]) + np.trace(covariances[1]) - 2 * overlap
    assert frechet(x, y) == pytest.approx(slow, rel=1e-6)


def test_500_cases_of_2048_dimensions_have_their_closed_form_distance():
    """Cases that vary along other dimensions share no covariance: the distance is the shift and both traces. And nothing below zero or
    undefined at any scale, for equal cohorts, copies of one case, and features that never vary."""
    x, y = np.random.default_rng(0).standard_normal((2, 500, 2048))
    left, right = x * (np.arange(2048) < 1024), y * (np.arange(2048) >= 1024) + 0.5
    expected = ((left.mean(0) - right.mean(0)) ** 2).sum() + left.var(axis=0, ddof=1).sum() + right.var(axis=0, ddof=1).sum()
    assert frechet(left, right) == pytest.approx(expected, rel=1e-10)
    for one, other in ((1e-6 * x, 1e-6 * x[::-1]), (1e3 * x, np.tile(x[:1], (500, 1))), (0 * x, y)):
        found = frechet(one, other)
        assert isinstance(found, float)
        assert 0 <= found < np.inf
    assert frechet(x, x[::-1]) <= 1e-8


def test_it_is_symmetric_rotates_scales_and_adds_the_shift():
    generator = np.random.default_rng(0)
    x, y = generator.standard_normal((80, 12)), generator.standard_normal((60, 12)) * 1.5 + 0.3
    rotation = np.linalg.qr(generator.standard_normal((12, 12)))[0]
    distance = frechet(x, y)
    assert frechet(y, x) == pytest.approx(distance, rel=1e-8)
    assert frechet(x @ rotation, y @ rotation) == pytest.approx(distance, rel=1e-8)
    assert frechet(3 * x, 3 * y) == pytest.approx(9 * distance, rel=1e-8)
    assert frechet(x, x + 0.5) == pytest.approx(12 * 0.25, rel=1e-8)


@pytest.mark.parametrize(("cases", "axes"), [(10, 8), (60, 10), (96, 16), (1000, 32)])
def test_the_number_of_axes_is_a_sixth_of_the_cases_between_8_and_32(cases, axes):
    assert dimensions(cases) == axes


def test_the_metric_uses_no_more_axes_than_the_smaller_cohort_carries(cohort_of):
    generator = np.random.default_rng(0)
    train, holdout, synthetic = (cohort_of(generator.standard_normal((n, 64))) for n in (300, 60, 200))
    comparison = FrechetDistance(features="features")(train, holdout, synthetic)
    assert comparison.details(np.arange(60), np.arange(60, 260))["dimensions"] == 10
