"""Stand-ins that need no generator: what a cohort must beat before its scores say anything."""

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter

from medsynth.rng import generator_for

BLUR = 3.0  # mm, standard deviation
VOXELS = 65536  # drawn together


def blurred(images: np.ndarray, spacing: Sequence[float], millimetres: float = BLUR) -> np.ndarray:
    """Images ``(case, 1, *space)`` blurred by so many mm along every axis, whatever its spacing: right anatomy, no detail."""
    space = images.ndim - 2
    sigmas = [millimetres / step for step in tuple(spacing)[:space]]
    return np.stack([gaussian_filter(image[0], sigmas, mode="nearest")[None] for image in images])


def gaussian(images: np.ndarray, cases: int, *, seed: int) -> np.ndarray:
    """So many draws from the Gaussian with the mean and covariance of the images (all principal components), float32.

    Under random filters this is a hard baseline: it has the right mean, the right spectrum and the right modes of variation, and no
    anatomy. Its values are cut at the images' extremes.
    """
    generator = generator_for(seed, "gaussian baseline")
    # random weights of the centred images have their covariance: no decomposition is needed
    weights = generator.standard_normal((cases, len(images))) / np.sqrt(len(images) - 1)
    flat = images.reshape(len(images), -1)
    low, high = images.min(), images.max()
    drawn = np.empty((cases, flat.shape[1]), np.float32)
    for start in range(0, flat.shape[1], VOXELS):  # double precision, but never of all voxels at once
        some = flat[:, start : start + VOXELS].astype(np.float64)
        mean = some.mean(axis=0)
        drawn[:, start : start + VOXELS] = np.clip(mean + weights @ (some - mean), low, high)
    return drawn.reshape(cases, *images.shape[1:])
