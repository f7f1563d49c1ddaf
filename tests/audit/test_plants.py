"""Planted copies are what they say: held against closed forms."""

import numpy as np
import pytest

from medsynth.audit.finding import Model
from medsynth.audit.plants import PART, REDRAWN, SHARE, kinds, redrawn
from medsynth.rng import generator_for

SPACE = (30, 20)


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    return tuple(generator_for(0, name).standard_normal(SPACE).astype(np.float32) for name in ("image", "other"))


def test_each_flip_undoes_itself(pair: tuple[np.ndarray, np.ndarray]) -> None:
    image, other = pair
    for axis, name in enumerate("xy"):
        copy = kinds(SPACE)[f"flip_{name}"](image, other, generator_for(1))
        assert (np.flip(copy, axis) == image).all()
        assert (copy != image).any()


def test_a_mixture_is_the_weighted_mean(pair: tuple[np.ndarray, np.ndarray]) -> None:
    image, other = pair
    assert kinds(SPACE)["mixture"](image, other, generator_for(1)) == pytest.approx(SHARE * image + (1 - SHARE) * other)


def test_a_part_is_the_training_image_inside_and_the_other_outside(pair: tuple[np.ndarray, np.ndarray]) -> None:
    image, other = pair
    copy = kinds(SPACE)["part"](image, other, generator_for(1))
    same = np.isclose(copy, image)
    assert same.mean() == pytest.approx(PART**2, abs=0.06)
    assert np.isclose(copy, other)[~same].mean() > 0.6  # the rest is the soft edge
    assert (copy[[0, -1]] == other[[0, -1]]).all()


def test_half_a_slice_further_is_the_mean_of_two_slices() -> None:
    volume = generator_for(0).standard_normal((4, 4, 6))
    copy = kinds(volume.shape)["slice_offset"](volume, volume, generator_for(1))
    means = (volume[..., 1:] + volume[..., :-1]) / 2
    assert np.allclose(copy[..., 1:-1], means[..., 1:]) or np.allclose(copy[..., 1:-1], means[..., :-1])


def test_a_bias_field_keeps_the_mean_of_an_even_image_and_differs_by_half_across_it() -> None:
    copy = kinds(SPACE)["bias_field"](np.zeros(SPACE), np.zeros(SPACE), generator_for(1)) + 1
    assert copy.mean() == pytest.approx(1)
    assert copy.max() / copy.min() == pytest.approx(1.5)


def test_the_perfect_model_of_noise_redraws_as_closely_as_the_posterior_allows() -> None:
    """Gaussian pixels of variance v, noised by s and taken back along the flow, correlate by ``sqrt(v / (v + s^2))`` with themselves."""
    variance = 0.25
    model = Model(denoise=lambda x, sigma, condition: x * np.float32(variance / (variance + sigma[0] ** 2)), levels=(0.1,))
    image = (0.5 * generator_for(0).standard_normal((1, 200, 200))).astype(np.float32)
    copy = redrawn(model, image, {}, generator_for(1))
    assert np.corrcoef(copy.ravel(), image.ravel())[0, 1] == pytest.approx(np.sqrt(variance / (variance + REDRAWN[0] ** 2)), abs=2e-3)
    assert copy.std() == pytest.approx(0.5, abs=0.02)
