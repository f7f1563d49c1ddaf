"""Copies that the audit plants itself, to learn what its detector finds: a training image as a leak would show it.

Each kind is a function ``(image, generator) -> image`` on ``(*space)`` in model units (-1..+1).
"""

from collections.abc import Callable, Mapping

import numpy as np
from scipy import ndimage

Plant = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def exact(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return image


def noise(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """White noise of 5 % of the intensity range."""
    return image + 0.1 * generator.standard_normal(image.shape, dtype=np.float32)


def blur(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Gaussian, 0.8 voxels: a 3-wide mean has the same variance."""
    return ndimage.gaussian_filter(image, 0.8, mode="nearest")


def gain(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return 1.3 * image + 0.1


def gamma(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return 2 * np.clip((image + 1) / 2, 0, None) ** 1.5 - 1


def flip(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Mirrored along one axis."""
    return np.flip(image, generator.integers(image.ndim))


def turn(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A quarter turn."""
    return np.rot90(image, generator.choice((1, 3)))


def shift(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Moved along every axis by up to 6 % of it, at least one voxel; the border is repeated."""
    for axis, size in enumerate(image.shape):
        most = max(1, int(0.06 * size))
        step = int(generator.integers(1, most + 1)) * int(generator.choice((-1, 1)))
        image = np.take(image, np.clip(np.arange(size) - step, 0, size - 1), axis)
    return image


def crop(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The central 85 % of every axis, resized to the whole by cubic splines."""
    middle = [(size - 1) / 2 for size in image.shape]
    return ndimage.affine_transform(image, [0.85] * image.ndim, [0.15 * m for m in middle], order=3, mode="nearest")


def several(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Mirrored, brighter and noisy."""
    return 1.2 * np.flip(image, 0) + 0.05 + 0.08 * generator.standard_normal(image.shape, dtype=np.float32)


def kinds(space: tuple[int, ...]) -> Mapping[str, Plant]:
    """The kinds that images of this shape can show: quarter turns only where they are square."""
    square = {turn} if len(space) == 2 and space[0] == space[1] else set()
    chosen = [exact, noise, blur, gain, gamma, flip, *square, shift, crop, several]
    return {plant.__name__: plant for plant in chosen}
