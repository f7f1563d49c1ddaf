"""Do the synthetic cases differ from each other as much as real ones do?

Two views: the structural similarity of random pairs (Wang et al. 2003), and the effective number of different cases under a kernel (Vendi
score, Friedman and Dieng 2023). Both depend on the data and on the number of cases, so both are told as a relation to real cases.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import numpy as np
import torch
from scipy.ndimage import correlate1d

from medsynth.metrics.embedding import squared_distances, whitened
from medsynth.metrics.kernel import gaussian
from medsynth.metrics.score import Best, Comparison, NotApplicable, Rows, Sample, once_a_sample, one_each, other_subjects, pooled_subjects

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales, finest first (Wang et al. 2003)
PAIRS_AT_ONCE = 64
SIGMA = 1.5  # voxels, of the Gaussian window


def scales_for(shape: tuple[int, ...]) -> tuple[int, int]:
    """The largest odd window (3 to 11 voxels) and the most scales (5 at most) that fit the shortest side.

    Raises NotApplicable where not even a window of 3 fits one scale.
    """
    shortest = min(shape)
    for scales in range(len(WEIGHTS), 0, -1):
        for window in (11, 9, 7, 5, 3):
            if shortest > (window - 1) * 2 ** (scales - 1) and shortest // 2 ** (scales - 1) >= window:
                return window, scales
    raise NotApplicable(f"a side of {shortest} voxels is too short for a structural similarity")


def multiscale_ssim(x: np.ndarray, y: np.ndarray, *, data_range: float, window: int, scales: int) -> float:
    """Multi-scale structural similarity of two images ``(*space)``: 1 if they are equal. The weights of the scales used are made to sum
    to 1."""
    return _similarity(_levels(x, window, scales), _levels(y, window, scales), data_range, window)


Level = tuple[np.ndarray, np.ndarray, np.ndarray]  # an image at one scale, and the means of it and of its square around each voxel


def _levels(image: np.ndarray, window: int, scales: int) -> list[Level]:
    levels = []
    for _ in range(scales):
        image = np.asarray(image, np.float32)
        levels.append((image, _means(image, window), _means(image * image, window)))
        image = _halved(image)
    return levels


def _similarity(x: list[Level], y: list[Level], data_range: float, window: int) -> float:
    weights = np.array(WEIGHTS[: len(x)]) / sum(WEIGHTS[: len(x)])
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    product = 1.0
    for scale, (weight, (a, mean_a, aa), (b, mean_b, bb)) in enumerate(zip(weights, x, y, strict=True)):
        both = mean_a * mean_b
        terms = (2 * (_means(a * b, window) - both) + c2) / (aa - mean_a**2 + bb - mean_b**2 + c2)
        if scale == len(x) - 1:
            terms = (2 * both + c1) / (mean_a**2 + mean_b**2 + c1) * terms
        # a negative structure term has no real power; as in the reference it counts as none
        product *= max(float(terms.mean(dtype=np.float64)), 0.0) ** weight
    return product


def _means(image: np.ndarray, window: int) -> np.ndarray:
    """Gaussian means around each voxel whose window lies inside."""
    offsets = np.arange(window) - (window - 1) / 2
    weights = np.exp(-((offsets / SIGMA) ** 2) / 2)
    for axis in range(image.ndim):
        image = correlate1d(image, weights / weights.sum(), axis=axis)
        image = np.take(image, np.arange(window // 2, image.shape[axis] - window // 2), axis=axis)
    return image


def _halved(image: np.ndarray) -> np.ndarray:
    """Means of blocks of two voxels along every axis; an odd last voxel is dropped."""
    for axis in range(image.ndim):
        even = np.take(image, np.arange(image.shape[axis] // 2 * 2), axis=axis)
        image = (np.take(even, np.arange(0, even.shape[axis], 2), axis) + np.take(even, np.arange(1, even.shape[axis], 2), axis)) / 2
    return image


def ring(subjects: Sequence[str], pairs: int) -> list[tuple[int, int]]:
    """At most so many different pairs of cases of different subjects: each case with the next one, then each with the one after that, and
    so on.

    Every case takes part in as many pairs as any other (up to one round), so that no case weighs more. Random if the order of the cases is.
    """
    n = len(subjects)
    steps = range(1, (n - 1) // 2 + 1)
    found = ((i, (i + step) % n) for step in steps for i in range(n) if subjects[i] != subjects[(i + step) % n])
    return sorted(islice(found, pairs))


@dataclass(frozen=True, kw_only=True)
class SimilarityGap:
    """Mean similarity of synthetic pairs less that of real pairs: above zero, the synthetic cases repeat each other."""

    pairs: int = 400  # of each sample; a half of the cases holds a quarter of them, so few make a wide interval
    data_range: float = 2.0  # model units

    features: ClassVar[str] = ""
    best: ClassVar[Best] = "anchor"
    least: ClassVar[int] = 50
    bounds: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    tested: ClassVar[bool] = False

    def __call__(self, train: Sample, *samples: Sample) -> Comparison:
        window, scales = scales_for(train.images.shape[2:])
        starts = np.cumsum([0, *map(len, samples)])
        pairs = [start + np.array(ring(s.subjects, self.pairs)).reshape(-1, 2) for start, s in zip(starts[:-1], samples, strict=True)]
        first, second = np.concatenate(pairs).T
        similar = np.concatenate([_similarities(s, self.pairs, self.data_range, window, scales) for s in samples])

        def inside(rows: Rows) -> float:
            chosen = np.zeros(starts[-1], bool)
            chosen[rows] = True
            return float(similar[chosen[first] & chosen[second]].mean())

        def details(real: Rows, synthetic: Rows) -> dict[str, object]:
            return {"real": inside(real), "synthetic": inside(synthetic), "window": window, "scales": scales, "data_range": self.data_range}

        return Comparison(lambda real, synthetic: inside(synthetic) - inside(real), details)


@once_a_sample  # real cases are compared with many cohorts
def _similarities(sample: Sample, pairs: int, data_range: float, window: int, scales: int) -> np.ndarray:
    """Of the pairs of `ring`; what each image needs by itself is done once for neighbouring pairs."""
    chosen, found = ring(sample.subjects, pairs), []
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for start in range(0, len(chosen), PAIRS_AT_ONCE):
            block = chosen[start : start + PAIRS_AT_ONCE]
            cases = sorted({case for pair in block for case in pair})
            levels = dict(zip(cases, pool.map(lambda case: _levels(sample.images[case, 0], window, scales), cases), strict=True))
            found += pool.map(lambda pair, of=levels: _similarity(of[pair[0]], of[pair[1]], data_range, window), block)
    return np.array(found)


def vendi(kernel: np.ndarray) -> float:
    """The effective number of different cases: the exponential entropy of the eigenvalues of ``kernel / n``, whose diagonal is 1."""
    values = np.linalg.eigvalsh(kernel / len(kernel))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


@dataclass(frozen=True, kw_only=True)
class VendiRatio:
    """Vendi score of synthetic over that of real cases, at the same number: one case of each subject. Below one, the synthetic cases are
    less diverse."""

    features: str

    best: ClassVar[Best] = "anchor"
    least: ClassVar[int] = 50
    bounds: ClassVar[tuple[float, float]] = (0.0, np.inf)
    tested: ClassVar[bool] = False

    def __call__(self, train: Sample, *samples: Sample) -> Comparison:
        fixed, z = whitened(train, samples, self.features)
        bandwidth = float(np.median(np.sqrt(squared_distances(fixed, fixed)[other_subjects(train.subjects)])))
        if not bandwidth > 0:
            raise NotApplicable("half of the training cases are equal")
        kernel = gaussian(z, z, bandwidth)
        subjects = np.asarray(pooled_subjects(samples))

        def value(real: Rows, synthetic: Rows) -> float:
            real, synthetic = one_each(subjects, real), one_each(subjects, synthetic)
            size = min(len(real), len(synthetic))
            return vendi(kernel[np.ix_(synthetic[:size], synthetic[:size])]) / vendi(kernel[np.ix_(real[:size], real[:size])])

        return Comparison(value)
