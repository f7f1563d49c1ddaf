"""Copies that the audit plants itself, to learn what its detector finds: a training image as a leak would show it.

Each kind is a function ``(image, other, generator) -> image`` on ``(*space)`` in model units (-1..+1). ``other`` is a synthetic case, with
which partial copies and mixtures are made. The search enumerates flips, quarter turns, zooms and moves; small turns and warps it does
not, so that they say what becomes of a copy that nobody thought of.
"""

from collections.abc import Callable, Mapping
from functools import partial as bound
from itertools import pairwise

import numpy as np
from scipy import ndimage

from medsynth.audit.finding import Model
from medsynth.conditions import Value

Plant = Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]

AXES = "xyz"
TURN = 7.0  # degrees
WARP = 0.03  # of an axis: standard deviation of the displacement
PART = 0.5  # of an axis that a partial copy covers
SHARE = 0.6  # of a mixture that is the training image
REDRAWN = (0.2, 0.12, 0.07, 0.04, 0.02, 0.01)  # noise levels from which, and through which, the model draws a training case again


def exact(image: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return image


def noise(image: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """White noise of 5 % of the intensity range."""
    return image + 0.1 * generator.standard_normal(image.shape, dtype=np.float32)


def blur(image: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Gaussian, 0.8 voxels: a 3-wide mean has the same variance."""
    return ndimage.gaussian_filter(image, 0.8, mode="nearest")


def gain(image: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return 1.3 * image + 0.1


def gamma(image: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return 2 * np.clip((image + 1) / 2, 0, None) ** 1.5 - 1


def bias_field(image: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Intensity times a field that rises by half of it from one corner to the opposite one, as of a surface coil."""
    signs = generator.choice((-1.0, 1.0), image.ndim)
    ramps = np.meshgrid(*(sign * np.linspace(-1, 1, size) for sign, size in zip(signs, image.shape, strict=True)), indexing="ij")
    return (image + 1) * (1 + 0.2 * sum(ramps) / image.ndim) - 1


def flip(image: np.ndarray, other: np.ndarray, generator: np.random.Generator, axis: int) -> np.ndarray:
    return np.flip(image, axis)


def quarter_turn(image: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return np.rot90(image, generator.choice((1, 3)))


def shift(image: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Moved along every axis by up to 6 % of it, at least one voxel; the border is repeated."""
    for axis, size in enumerate(image.shape):
        most = max(1, int(0.06 * size))
        step = int(generator.integers(1, most + 1)) * int(generator.choice((-1, 1)))
        image = np.take(image, np.clip(np.arange(size) - step, 0, size - 1), axis)
    return image


def slice_offset(image: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Slices taken between the training volume's: half a slice further."""
    return ndimage.shift(image, (0,) * (image.ndim - 1) + (generator.choice((-0.5, 0.5)),), order=1, mode="nearest")


def crop(image: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """The central 85 % of every axis, resized to the whole by cubic splines."""
    middle = [(size - 1) / 2 for size in image.shape]
    return ndimage.affine_transform(image, [0.85] * image.ndim, [0.15 * m for m in middle], order=3, mode="nearest")


def several(image: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Mirrored, brighter and noisy."""
    return 1.2 * np.flip(image, 0) + 0.05 + 0.08 * generator.standard_normal(image.shape, dtype=np.float32)


def small_turn(image: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Turned by 7 degrees within the plane of the first two axes, by linear interpolation."""
    return ndimage.rotate(image, TURN * generator.choice((-1, 1)), axes=(0, 1), reshape=False, order=1, mode="nearest")


def warp(image: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Bent elastically: every voxel moved by a smooth random field (a Gaussian of 15 % of the axis)."""
    places = np.indices(image.shape, dtype=np.float32)
    for axis, size in enumerate(image.shape):
        field = ndimage.gaussian_filter(generator.standard_normal(image.shape), [0.15 * n for n in image.shape], mode="nearest")
        places[axis] += WARP * size * field / field.std()
    return ndimage.map_coordinates(image, places, order=1, mode="nearest")


def part(image: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A block of the training image, half of each axis about the middle, pasted into a synthetic case with a soft edge."""
    weight = np.ones(image.shape)
    for axis, size in enumerate(image.shape):
        centre = (size - 1) / 2 + generator.uniform(-0.1, 0.1) * size
        inside = PART * size / 2 - np.abs(np.arange(size) - centre)  # voxels to the edge
        weight = weight * np.clip(0.5 + inside, 0, 1).reshape([-1 if a == axis else 1 for a in range(image.ndim)])
    return weight * image + (1 - weight) * other


def mixture(image: np.ndarray, other: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Three fifths of the training image, two of a synthetic case."""
    return SHARE * image + (1 - SHARE) * other


def redrawn(model: Model, image: np.ndarray, condition: Mapping[str, Value], generator: np.random.Generator) -> np.ndarray:
    """A near-duplicate of the model's own making: ``image`` ``(channel, *space)`` with a tenth of the range of noise, and drawn from there.

    Meng et al. 2022, "SDEdit"; Euler steps. What the model makes of a case that it knows is what a leak looks like, and transformed copies
    do not stand for it: a filter that found all of those missed most of these (arXiv 2510.01793).
    """
    x = image + REDRAWN[0] * generator.standard_normal(image.shape, dtype=np.float32)
    for sigma, lower in pairwise((*REDRAWN, 0.0)):
        expected = model.denoise(x[None], np.array([sigma], np.float32), condition)[0]
        x = x + np.float32((lower - sigma) / sigma) * (x - expected)
    return x


UNFORESEEN = frozenset({"small_turn", "warp", "part", "mixture", "redrawn"})  # kinds that the search does not enumerate


def kinds(space: tuple[int, ...]) -> Mapping[str, Plant]:
    """The kinds that images of this shape can show: quarter turns only where they are square, offsets of slices only in volumes."""
    flips = {f"flip_{AXES[axis]}": bound(flip, axis=axis) for axis in range(len(space))}
    square = [quarter_turn] if len(space) == 2 and space[0] == space[1] else []
    volume = [slice_offset] if len(space) == 3 else []
    rigid = [exact, noise, blur, gain, gamma, bias_field, *square, shift, *volume, crop, several]
    return {**{plant.__name__: plant for plant in rigid}, **flips, **{plant.__name__: plant for plant in (small_turn, warp, part, mixture)}}
