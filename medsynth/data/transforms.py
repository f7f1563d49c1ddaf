"""From a file's grid and units to the model's, and the way back.

One grid for all: the axes are turned, then every axis by itself is resampled, cropped and padded in one step, which is a small sparse
matrix. Where that makes voxels larger its rows are widened triangles, so that nothing folds over (the filter of Pillow and of PyTorch's
``antialias``). One scale a case: two stored values that map to -1 and +1, so that `to_stored` can always go back.
"""

from collections.abc import Sequence

import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from scipy.sparse import csr_array

from medsynth.errors import SettingsError, UnreadableImage
from medsynth.volume import Geometry, Volume

SAMPLE = 1 << 20  # voxels that percentiles look at: more change no digit that matters
UNMOVED = 0.02  # voxels: a grid that differs by less at its edge is the same grid, and is copied, not interpolated


def geometry_in(volume: Volume, orientation: str = "RAS") -> Geometry:
    """Voxels and their place along the axes in which ``orientation`` counts them."""
    return _oriented(volume, orientation)[1]


def to_grid(
    volume: Volume, *, size: Sequence[int | None], spacing: Sequence[float], orientation: str = "RAS"
) -> tuple[np.ndarray, np.ndarray | None]:
    """The image on the common grid, float32 (x, y, z) in stored units, and its label map there, or None. See `placed` for their affine.

    Axes are turned to ``orientation``; each is brought to ``spacing`` (mm) and to ``size`` voxels around the image's centre. An axis whose
    size is None stays as it is, as a stack of slices does along its normal. What lies outside the image takes its lowest value, label 0.
    Images are averaged (antialiased) where voxels grow and interpolated linearly where they shrink; labels take the nearest voxel.
    """
    array, mask, _ = placed(volume, size=size, spacing=spacing, orientation=orientation)
    return array, mask


def placed(
    volume: Volume, *, size: Sequence[int | None], spacing: Sequence[float], orientation: str = "RAS"
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """As `to_grid`, with the affine (4x4, voxel index to RAS+ mm) of the result."""
    assert volume.array.shape[0] == 1, "sources give one channel"
    if len(size) != 3:
        raise SettingsError(f"data.size={list(size)} names {len(size)} axes; a grid in space has 3.")
    spacing = [*spacing, *[1.0] * (3 - len(spacing))]  # two values for slices: their normal stays as it is
    (array, mask), geometry = _oriented(volume, orientation)
    lowest = array.min()
    affine = geometry.affine.copy()
    plans = []
    for axis, wanted in enumerate(size):
        count, ratio = geometry.shape[axis], spacing[axis] / geometry.spacing[axis]
        wanted = count if wanted is None else int(wanted)
        if size[axis] is None or abs(ratio - 1) * max(count, wanted) < UNMOVED:
            first, ratio = float((count - wanted) // 2), 1.0  # whole voxels: copied, not interpolated
        else:
            first = (count - 1) / 2 - ratio * (wanted - 1) / 2
        plans.append((axis, count, wanted, first, ratio))
        affine[:3, 3] += geometry.affine[:3, axis] * first
        affine[:3, axis] *= ratio
    # what shrinks most goes first: less to do for the others; of equals the axis whose neighbours lie farthest apart in memory
    for plan in sorted(plans, key=lambda plan: (plan[2] / plan[1], -abs(array.strides[plan[0]]))):
        array = _along_axis(array, *plan, lowest)
        mask = None if mask is None else _nearest(mask, *plan)
    return np.ascontiguousarray(array), None if mask is None else np.ascontiguousarray(mask), affine


def scale_of(array: np.ndarray, percentiles: Sequence[float] = (0.5, 99.5), window: Sequence[float] | None = None) -> tuple[float, float]:
    """The stored values that map to -1 and +1: ``window`` where it is given, else two percentiles of the image, else its range.

    Raises UnreadableImage with code ``not-finite``, or ``constant`` where nothing would be left to see.
    """
    flat = array.ravel()
    if not np.isfinite(flat).all():
        raise UnreadableImage("not-finite", "Some voxels are NaN or infinite.")
    extremes = float(flat.min()), float(flat.max())
    if window is not None:
        low, high = (float(value) for value in window)
        if not low < high:
            raise SettingsError(f"data.window={list(window)} is no interval: its first value must be the lower one.")
        if extremes[1] <= low or extremes[0] >= high:
            raise UnreadableImage("constant", "No voxel lies within data.window, so the image would be one flat colour.")
    else:
        # an odd stride, so that no axis of a common length is seen at a few places only
        low, high = (float(value) for value in np.percentile(flat[:: 2 * (flat.size // SAMPLE // 2) + 1], percentiles))
        if not _apart(low, high):
            low, high = extremes  # almost all voxels alike: a mask-like image, still one
    if not _apart(*extremes) or not _apart(low, high):
        raise UnreadableImage("constant", "All voxels have the same value.")
    return low, high


def to_model(array: np.ndarray, scale: tuple[float, float]) -> np.ndarray:
    """Stored units to float32 -1..+1, clipped."""
    low, high = scale
    # float64 scalars over float32 voxels: the shift loses nothing where values are large and close together
    return np.clip((array - np.float64(low)) * (2.0 / (high - low)) - 1.0, -1.0, 1.0).astype(np.float32)


def to_stored(array: np.ndarray, scale: tuple[float, float], integer: bool = False) -> np.ndarray:
    """The inverse of `to_model` within the scale, float32; rounded to whole numbers where stored values are ``integer``."""
    low, high = scale
    stored = (array + np.float64(1.0)) * ((high - low) / 2.0) + low
    return (np.rint(stored) if integer else stored).astype(np.float32)


def slices(
    pixels: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    axis: int = 2,
    every: int = 1,
    span: Sequence[float] = (0.0, 1.0),
    foreground: float = 0.0,
) -> list[tuple[int, np.ndarray, np.ndarray | None]]:
    """The slices of a volume in model units that become cases: ``(index, image, label map or None)``, axes in their order without ``axis``.

    Every ``every``-th within ``span`` (share of the axis), if at least the share ``foreground`` of its pixels lies above the lower
    intensity bound: 5 % of the scale above -1, since noise lies above the bound itself. Raises UnreadableImage with code ``no-slice`` where
    none is left.
    """
    low, high = span
    if axis not in (0, 1, 2) or every < 1 or not 0 <= low < high <= 1:
        wrong = f"data.slices: axis={axis} (0, 1 or 2), every={every} (1 or more), range={list(span)} (0 <= first < second <= 1)"
        raise SettingsError(f"{wrong} do not fit.")
    count = pixels.shape[axis]
    first, last = int(np.floor(low * count)), int(np.ceil(high * count))
    kept = []
    for index in range(first, last, every):
        image = np.take(pixels, index, axis)
        if (image > -0.9).mean() >= foreground:
            kept.append((index, np.ascontiguousarray(image), None if mask is None else np.ascontiguousarray(np.take(mask, index, axis))))
    if not kept:
        raise UnreadableImage("no-slice", "No slice lies in data.slices.range with enough foreground (data.slices.foreground).")
    return kept


def canonical_affine(
    shape: Sequence[int], spacing: Sequence[float], orientation: str = "RAS", axis: int = 2
) -> tuple[tuple[float, ...], ...]:
    """The grid of a synthetic image: ``orientation``'s axes at right angles, its centre at the origin. Nobody's own position.

    ``shape`` has two axes for slices across ``axis``, whose normal then becomes the third axis of the affine; ``spacing`` follows
    ``shape``, with or without the normal's (1 mm if not given). 4x4, voxel index to RAS+ mm, as nested tuples.
    """
    directions = np.zeros((3, 3))
    for column, (row, sign) in enumerate(axcodes2ornt(_checked(orientation)).astype(int)):
        directions[row, column] = sign
    if len(shape) == 2:
        directions = directions[:, [*(a for a in range(3) if a != axis), axis]]
    shape, spacing = [*shape, 1][:3], [*spacing, 1.0][:3]
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return tuple(tuple(float(value) + 0.0 for value in row) for row in affine)  # + 0.0: no negative zeros


def _apart(low: float, high: float) -> bool:
    return high - low > 1e-6 * max(abs(low), abs(high), 1e-30)


def _checked(orientation: str) -> str:
    if sorted(orientation.translate(str.maketrans("LPI", "RAS"))) != ["A", "R", "S"]:
        raise SettingsError(f"data.orientation={orientation!r}: name each axis once, R or L, A or P, S or I; for example RAS or LPS.")
    return orientation


def _oriented(volume: Volume, orientation: str) -> tuple[tuple[np.ndarray, np.ndarray | None], Geometry]:
    """Image and labels with their axes turned (views, no voxel is changed), and their geometry."""
    turn = ornt_transform(io_orientation(volume.affine), axcodes2ornt(_checked(orientation)))
    array = apply_orientation(volume.array[0], turn)
    mask = None if volume.mask is None else apply_orientation(volume.mask, turn)
    return (array, mask), Geometry(array.shape, volume.affine @ inv_ornt_aff(turn, volume.array.shape[1:]))


def _along_axis(array: np.ndarray, axis: int, count: int, wanted: int, first: float, ratio: float, lowest: float) -> np.ndarray:
    """One axis at positions ``first + ratio * k`` for k below ``wanted``; ``lowest`` where these lie outside the image."""
    if ratio == 1.0 and first == round(first):
        return _copied(array, axis, count, wanted, int(first), lowest)
    # the other axes in the order in which they lie in memory: NIfTI's first axis runs fastest, DICOM's as it was turned
    order = [axis, *sorted((other for other in range(3) if other != axis), key=lambda other: -abs(array.strides[other]))]
    moved = array.transpose(order)
    flat = np.ascontiguousarray(moved, np.float32).reshape(count, -1)
    result = (_weights(count, wanted, first, ratio) @ flat).reshape(wanted, *moved.shape[1:])
    positions = first + ratio * np.arange(wanted)
    result[(positions < -0.5) | (positions > count - 0.5)] = lowest
    return result.transpose(np.argsort(order))


def _weights(count: int, wanted: int, first: float, ratio: float) -> csr_array:
    """Rows of triangles of half-width ``max(1, ratio)`` voxels, cut at the image's edge and summing to 1: (wanted, count), float32.

    A triangle seen at whole voxels has its centre of gravity up to a twentieth of a voxel off; tilting it puts that back, so that a ramp
    stays where it is.
    """
    width = max(1.0, ratio)
    centres = np.clip(first + ratio * np.arange(wanted), 0, count - 1)
    reach = np.arange(-int(np.ceil(width)), int(np.ceil(width)) + 2)
    columns = np.floor(centres).astype(int)[:, None] + reach
    away = columns - centres[:, None]
    weights = np.maximum(0.0, 1 - np.abs(away) / width)
    offset, spread = (weights * away).sum(axis=1), (weights * away**2).sum(axis=1)
    tilt = np.divide(offset, spread, out=np.zeros(wanted), where=spread > 1e-12)
    weights *= (1 - tilt[:, None] * away) * ((columns >= 0) & (columns < count))
    weights /= weights.sum(axis=1, keepdims=True)
    rows, places = np.nonzero(weights)
    return csr_array((weights[rows, places].astype(np.float32), (rows, columns[rows, places])), shape=(wanted, count))


def _copied(array: np.ndarray, axis: int, count: int, wanted: int, first: int, fill: float) -> np.ndarray:
    inside = slice(max(first, 0), min(first + wanted, count))
    kept = array[(slice(None),) * axis + (inside,)]
    if kept.shape[axis] == wanted:
        return kept
    before = max(-first, 0)
    pad = [(0, 0)] * axis + [(before, wanted - kept.shape[axis] - before)] + [(0, 0)] * (array.ndim - axis - 1)
    return np.pad(kept, pad, constant_values=fill)


def _nearest(mask: np.ndarray, axis: int, count: int, wanted: int, first: float, ratio: float) -> np.ndarray:
    if ratio == 1.0 and first == round(first):
        return _copied(mask, axis, count, wanted, int(first), 0)
    positions = first + ratio * np.arange(wanted)
    taken = np.take(mask, np.clip(np.rint(positions).astype(int), 0, count - 1), axis)
    outside = (positions < -0.5) | (positions > count - 0.5)
    taken[(slice(None),) * axis + (outside,)] = 0
    return taken
