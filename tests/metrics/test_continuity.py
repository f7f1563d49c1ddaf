import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medsynth.metrics.continuity import Continuity, steps
from medsynth.metrics.score import NotApplicable, Sample


def volumes(seed: int, cases: int = 40, shape=(16, 16, 12)) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.stack([gaussian_filter(generator.standard_normal(shape), 1.5)[None] * generator.uniform(0.8, 1.2) for _ in range(cases)])


def sample(images: np.ndarray) -> Sample:
    return Sample(images=images, features={}, subjects=[str(i) for i in range(len(images))], spacing=(1.0,) * (images.ndim - 2))


def test_slices_that_do_not_go_on_show_along_their_axis():
    train, real, made = volumes(0), volumes(1), volumes(2)
    jumps = made + 0.05 * np.random.default_rng(3).standard_normal((40, 1, 1, 1, 12))  # a level of its own for each slice
    rows = np.arange(40), np.arange(40, 80)
    good, bad = (Continuity()(sample(train), sample(real), sample(images)) for images in (made, jumps))
    assert bad.value(*rows) > 5 * good.value(*rows)
    told = bad.details(*rows)
    assert np.argmax(told["differences"]) == np.argmax(told["anisotropy"]) == 2


def test_the_same_noise_along_every_axis_is_no_anisotropy():
    noisy = volumes(2, shape=(16, 16, 16)) + 0.1 * np.random.default_rng(3).standard_normal((40, 1, 16, 16, 16))
    assert np.abs(steps(noisy)[:, 3:]).mean() < 0.05
    assert steps(noisy)[:, :3].min() > steps(volumes(2, shape=(16, 16, 16)))[:, :3].max()


def test_a_ramp_has_the_step_that_it_rises_by():
    ramp = (np.arange(8) * 0.25)[:, None] * np.ones((8, 6))
    assert np.exp(steps(ramp[None, None])[0, :2]) == pytest.approx([0.25, 0], abs=2e-6)


def test_three_slices_are_too_few():
    with pytest.raises(NotApplicable, match="four voxels"):
        Continuity()(sample(volumes(0, shape=(8, 8, 3))), sample(volumes(1, shape=(8, 8, 3))))
