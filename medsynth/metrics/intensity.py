"""Grey values and fine structure: how the intensities are distributed, and how much power lies at each spatial frequency.

Both see what features of a network may not (a blur of half a voxel, two percent of noise, a gain), and both can be read in physical units.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from medsynth.metrics.anatomy import labels_of
from medsynth.metrics.score import Best, Comparison, Rows, Sample


def wasserstein(p: np.ndarray, q: np.ndarray, width: float) -> float:
    """The 1-Wasserstein distance of two histograms over the same bins of this width: the area between their distribution functions."""
    return float(np.abs(np.cumsum(p / p.sum()) - np.cumsum(q / q.sum())).sum() * width)


def histograms(images: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """``(case, 1, *space) -> (case, bin)``: the share of each case's voxels in each bin; values beyond the edges count in the outer
    bins."""
    inside = (np.clip(image, edges[0], edges[-1]) for image in images)
    return np.stack([np.histogram(image, edges)[0] / image.size for image in inside])


def bins_of(samples: Collection[Sample], bins: int) -> np.ndarray:
    """``(bins + 1,)``, float64: edges of equal bins that hold every voxel of the samples."""
    low = min(float(sample.images.min()) for sample in samples)
    high = max(float(sample.images.max()) for sample in samples)
    return np.linspace(low, max(high, low + 1e-6), bins + 1)


def within(sample: Sample, label: int, edges: np.ndarray) -> np.ndarray:
    """``(case, bin)``: how many of each case's voxels with this label lie in each bin; label 0 is all that has none."""
    pairs = zip(sample.images[:, 0], sample.masks, strict=True)
    return np.stack([np.histogram(image[mask == label], edges)[0] for image, mask in pairs])


@dataclass(frozen=True, kw_only=True)
class Intensity:
    """Distance of the grey-value distributions of all voxels, as a share of the intensity window (2 in model units)."""

    bins: int = 1000

    features: ClassVar[str] = ""
    best: ClassVar[Best] = "low"
    least: ClassVar[int] = 8
    bounds: ClassVar[tuple[float, float]] = (0.0, np.inf)
    tested: ClassVar[bool] = True

    def __call__(self, train: Sample, *samples: Sample) -> Comparison:
        edges = bins_of(samples, self.bins)
        shares = np.concatenate([histograms(sample.images, edges) for sample in samples])
        width = float(edges[1] - edges[0]) / 2.0

        def value(real: Rows, synthetic: Rows) -> float:
            return wasserstein(shares[real].mean(axis=0), shares[synthetic].mean(axis=0), width)

        return Comparison(value)


@dataclass(frozen=True, kw_only=True)
class TissueIntensity:
    """The same within each label of the masks, and outside of all of them: the mean of the distances, so that a small organ counts as much
    as the background. Details name them."""

    bins: int = 1000

    features: ClassVar[str] = ""
    best: ClassVar[Best] = "low"
    least: ClassVar[int] = 8
    bounds: ClassVar[tuple[float, float]] = (0.0, np.inf)
    tested: ClassVar[bool] = True

    def __call__(self, train: Sample, *samples: Sample) -> Comparison:
        labels = [0, *labels_of(train, samples)]
        edges = bins_of(samples, self.bins)
        width = float(edges[1] - edges[0]) / 2.0
        counts = {label: np.concatenate([within(sample, label, edges) for sample in samples]) for label in labels}

        def distances(real: Rows, synthetic: Rows) -> dict[int, float]:
            sums = {label: (rows[real].sum(axis=0), rows[synthetic].sum(axis=0)) for label, rows in counts.items()}
            # a label that no case of one side has is as far as the window is wide
            return {label: wasserstein(p, q, width) if p.any() and q.any() else 1.0 for label, (p, q) in sums.items()}

        def details(real: Rows, synthetic: Rows) -> dict[str, object]:
            return {"tissues": [{"label": int(label), "distance": value} for label, value in distances(real, synthetic).items()]}

        return Comparison(lambda real, synthetic: float(np.mean(list(distances(real, synthetic).values()))), details)


def power(images: np.ndarray) -> np.ndarray:
    """``(case, 1, *space) -> (case, *space)``: the power at each frequency; its sum is the sum of the squared voxels (Parseval)."""
    axes = tuple(range(1, images.ndim - 1))
    spectrum = np.fft.fftn(np.asarray(images[:, 0], np.float64), axes=axes)
    return np.abs(spectrum) ** 2 / np.prod(images.shape[2:])


def frequencies(shape: Sequence[int], spacing: Sequence[float]) -> np.ndarray:
    """``(*space)``: the length of each frequency, cycles per mm. Spacing may differ between axes."""
    grids = np.meshgrid(*[np.fft.fftfreq(n, d) for n, d in zip(shape, spacing, strict=True)], indexing="ij")
    return np.sqrt(sum(grid**2 for grid in grids))


def radial(images: np.ndarray, spacing: Sequence[float], *, taper: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies ``(band,)`` in cycles per mm, and each case's mean power around them ``(case, band)``.

    Bands are rings (shells) of equal width, up to 0.8 of the finest axis' Nyquist frequency. ``taper`` fades the images out towards their
    borders (Hann): otherwise the step from one border to the opposite one puts power everywhere, and a blur does not show.
    """
    shape = images.shape[2:]
    spacing = tuple(spacing)[: len(shape)]
    length = frequencies(shape, spacing)
    finest = int(np.argmin(spacing))
    count = max(int(0.8 * shape[finest] / 2), 2)
    edges = np.linspace(0, 0.8 * 0.5 / spacing[finest], count + 1)
    band = np.digitize(length.ravel(), edges) - 1
    band[0] = count  # the mean grey value is no structure
    filled = np.bincount(band, minlength=count + 1)[:count]
    window = np.ones(shape)
    for axis, n in enumerate(shape):
        if taper and n > 2:
            window *= np.hanning(n + 2)[1:-1].reshape([-1 if a == axis else 1 for a in range(len(shape))])
    rows = []
    for image in images:  # one by one: a spectrum of all volumes at once would need much memory
        centred = (image - image.mean()) * window
        rows.append(np.bincount(band, power(centred[None]).ravel(), minlength=count + 1)[:count])
    kept = filled > 0
    return ((edges[1:] + edges[:-1]) / 2)[kept], np.stack(rows)[:, kept] / filled[kept]


FLOOR = 1e-12  # of the training cases' power: rounding noise, far below any image's


@dataclass(frozen=True, kw_only=True)
class Spectrum:
    """Mean absolute difference of the logarithms (to base 10) of the radial power spectra: 0.3 is a factor of two in power at every
    frequency."""

    features: ClassVar[str] = ""
    best: ClassVar[Best] = "low"
    least: ClassVar[int] = 8
    bounds: ClassVar[tuple[float, float]] = (0.0, np.inf)
    tested: ClassVar[bool] = True

    def __call__(self, train: Sample, *samples: Sample) -> Comparison:
        least = FLOOR * float(radial(train.images[:8], train.spacing)[1].mean()) + 1e-30
        logs = np.concatenate([np.log10(radial(sample.images, sample.spacing)[1] + least) for sample in samples])

        def value(real: Rows, synthetic: Rows) -> float:
            return float(np.abs(logs[real].mean(axis=0) - logs[synthetic].mean(axis=0)).mean())

        return Comparison(value)
