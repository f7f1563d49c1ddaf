import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.stats import wasserstein_distance

from medsynth.metrics.intensity import Intensity, Spectrum, frequencies, histograms, power, radial, wasserstein
from medsynth.metrics.score import Sample


def sample(images: np.ndarray, spacing=(1.0, 1.0)) -> Sample:
    return Sample(images=images, features={}, subjects=[str(i) for i in range(len(images))], spacing=spacing)


def test_the_wasserstein_distance_equals_scipys():
    generator = np.random.default_rng(0)
    p, q = generator.random((2, 50))
    centres = np.arange(50) * 0.1
    assert wasserstein(p, q, 0.1) == pytest.approx(wasserstein_distance(centres, centres, p, q), abs=1e-9)


def test_a_shift_of_grey_values_is_its_own_distance():
    p = np.zeros(40)
    p[3:20] = np.random.default_rng(0).random(17)
    assert wasserstein(p, np.roll(p, 13), 0.25) == pytest.approx(13 * 0.25, abs=1e-12)
    images = np.random.default_rng(0).uniform(-0.8, 0.5, (10, 1, 16, 16)).astype(np.float32)
    found = Intensity(bins=1000)(sample(images), sample(images), sample(images + np.float32(0.2))).value(np.arange(10), np.arange(10, 20))
    assert found == pytest.approx(0.2 / 2, abs=1e-4)  # of the window, which is 2 wide


def test_a_histogram_loses_no_voxel():
    images = np.random.default_rng(0).normal(0, 2, (4, 1, 9, 9))
    assert histograms(images, np.linspace(-1, 1, 11)).sum(axis=1) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(16, 16), (12, 9), (8, 10, 6)])
def test_power_keeps_the_sum_of_squares(shape):
    images = np.random.default_rng(0).standard_normal((3, 1, *shape))
    assert power(images).reshape(3, -1).sum(axis=1) == pytest.approx((images.reshape(3, -1) ** 2).sum(axis=1), rel=1e-6)


@pytest.mark.parametrize(("shape", "spacing"), [((64, 64), (1.0, 1.0)), ((64, 48), (0.5, 1.5)), ((32, 32, 16), (1.0, 1.0, 2.0))])
def test_a_gaussian_blur_takes_the_power_that_theory_says(shape, spacing):
    """exp(-4 pi^2 s^2 f^2) in power, s in mm and f in cycles per mm, up to half the coarsest Nyquist frequency."""
    images = np.random.default_rng(0).standard_normal((60, 1, *shape))
    millimetres = 1.2 * max(spacing)
    blurred = np.stack([gaussian_filter(image[0], [millimetres / s for s in spacing], mode="wrap", truncate=8)[None] for image in images])
    frequency, before = radial(images, spacing, taper=False)
    _, after = radial(blurred, spacing, taper=False)
    # the mean over a ring of the transfer, as rings are not infinitely thin: the same rings of the closed form
    length = frequencies(shape, spacing)
    low = frequency <= 0.25 / max(spacing)
    half = (frequency[1] - frequency[0]) / 2
    expected = [
        np.exp(-4 * np.pi**2 * millimetres**2 * length[(length >= f - half) & (length < f + half) & (length > 0)] ** 2).mean()
        for f in frequency[low]
    ]
    ratio = (after.mean(axis=0) / before.mean(axis=0))[low]
    assert low.sum() >= 3
    assert ratio == pytest.approx(np.array(expected), rel=0.03)


def test_white_noise_is_flat_and_a_power_law_keeps_its_slope():
    generator = np.random.default_rng(0)
    noise = generator.standard_normal((200, 1, 64, 64))
    length = frequencies((64, 64), (1.0, 1.0))
    length[0, 0] = 1
    coloured = np.fft.ifftn(np.fft.fftn(noise, axes=(2, 3)) / length, axes=(2, 3)).real  # power as 1 / f^2
    for images, slope in ((noise, 0.0), (coloured, -2.0)):
        frequency, rows = radial(images, (1.0, 1.0), taper=False)
        fitted = np.polyfit(np.log(frequency[2:]), np.log(rows.mean(axis=0)[2:]), 1)[0]
        assert fitted == pytest.approx(slope, abs=0.05)


def test_a_border_that_jumps_does_not_hide_a_blur():
    """A ramp ends where it did not begin: untapered, its jump fills the spectrum and a blur of one voxel hardly shows."""
    ramp = np.linspace(-1, 1, 32)[:, None] * np.ones((1, 32))
    images = (ramp + 0.05 * np.random.default_rng(0).standard_normal((40, 1, 32, 32))).astype(np.float32)
    blurred = np.stack([gaussian_filter(image[0], 1.0)[None] for image in images])
    rows = np.arange(20), np.arange(20, 60)
    found = Spectrum()(sample(images), sample(images[:20]), sample(blurred)).value(*rows)
    untapered = np.abs(np.diff([np.log10(radial(i, (1, 1), taper=False)[1]).mean(axis=0) for i in (images, blurred)], axis=0)).mean()
    assert found > 1.5 * untapered


def test_a_blur_is_found_at_half_a_voxel():
    images = np.stack([gaussian_filter(np.random.default_rng(i).standard_normal((32, 32)), 0.6)[None] for i in range(150)]).astype(
        np.float32
    )
    blurred = np.stack([gaussian_filter(image[0], 0.5)[None] for image in images[100:]])
    metric = Spectrum()
    rows = np.arange(50), np.arange(50, 100)
    between_real = metric(sample(images), sample(images[:50]), sample(images[50:100])).value(*rows)
    assert metric(sample(images), sample(images[:50]), sample(blurred)).value(*rows) > 5 * between_real
