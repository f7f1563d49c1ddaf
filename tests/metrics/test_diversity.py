import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medsynth.metrics.diversity import SimilarityGap, multiscale_ssim, ring, scales_for, vendi
from medsynth.metrics.score import NotApplicable, Sample


def smooth(shape: tuple[int, ...], seed: int) -> np.ndarray:
    image = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 2)
    return (image / np.abs(image).max()).astype(np.float32)


@pytest.mark.parametrize("shape", [(16, 16), (32, 32), (28, 28), (64, 64), (32, 32, 32), (12, 40, 24)])
def test_the_similarity_of_an_image_to_itself_is_one(shape):
    image = smooth(shape, 0)
    window, scales = scales_for(shape)
    assert multiscale_ssim(image, image, data_range=2.0, window=window, scales=scales) == pytest.approx(1, abs=1e-6)
    assert multiscale_ssim(image, smooth(shape, 1), data_range=2.0, window=window, scales=scales) < 0.9


@pytest.mark.parametrize("shape", [(96, 80), (64, 64, 64)])
def test_the_similarity_equals_monais(shape):
    import torch
    from monai.metrics import MultiScaleSSIMMetric

    window, scales = 3, 5
    x, y = smooth(shape, 0), smooth(shape, 0) * 0.7 + 0.3 * smooth(shape, 1)
    theirs = MultiScaleSSIMMetric(spatial_dims=len(shape), data_range=2.0, kernel_size=window, kernel_sigma=1.5)
    expected = float(theirs(torch.from_numpy(x)[None, None], torch.from_numpy(y)[None, None]))
    assert multiscale_ssim(x, y, data_range=2.0, window=window, scales=scales) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("side", "window", "scales"), [(256, 11, 5), (112, 7, 5), (100, 5, 5), (64, 3, 5), (32, 3, 4), (8, 3, 2)])
def test_window_and_scales_follow_the_size(side, window, scales):
    assert scales_for((side, side)) == (window, scales)


def test_an_image_too_small_for_any_window_is_not_judged():
    with pytest.raises(NotApplicable, match="2 voxels"):
        scales_for((2, 64))


def test_pairs_are_of_different_subjects_and_every_case_weighs_the_same():
    pairs = ring([str(i) for i in range(10)], 20)
    assert len(set(map(frozenset, pairs))) == 20
    assert set(np.bincount(np.ravel(pairs))) == {4}
    assert all(a % 2 != b % 2 for a, b in ring(["a", "b"] * 5, 20))


def test_a_cohort_that_repeats_itself_has_a_gap_above_zero():
    def sample(images):
        return Sample(images=images[:, None], features={}, subjects=[str(i) for i in range(len(images))], spacing=(1, 1))

    real = np.stack([smooth((16, 16), seed) for seed in range(120)])
    repeated = real[np.random.default_rng(0).integers(0, 3, 60)]
    comparison = SimilarityGap(pairs=120)(sample(real), sample(real[:60]), sample(repeated))
    assert comparison.value(np.arange(60), np.arange(60, 120)) > 0.2
    same = SimilarityGap(pairs=120)(sample(real), sample(real[:60]), sample(real[60:]))
    assert abs(same.value(np.arange(60), np.arange(60, 120))) < 0.05


def test_the_vendi_score_counts_different_cases():
    assert vendi(np.ones((7, 7))) == pytest.approx(1, abs=1e-8)
    assert vendi(np.eye(7)) == pytest.approx(7, abs=1e-8)
    assert vendi(np.kron(np.eye(3), np.ones((4, 4)))) == pytest.approx(3, abs=1e-8)
