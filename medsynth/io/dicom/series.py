"""A series as one volume: the verdict once more, then its pixels in their places."""

import math
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from medsynth.errors import UnreadableImage
from medsynth.io.dicom.headers import Header, read_headers
from medsynth.io.dicom.pixels import PixelReader, in_units
from medsynth.io.dicom.reasons import HARMLESS, refuse
from medsynth.io.dicom.verdicts import Stack, stacks
from medsynth.volume import Volume


def read_series(files: Sequence[str | Path], *, repairs: Collection[str] = HARMLESS) -> Volume:
    """The one volume in these files: float32 ``(1, x, y, z)`` after rescale, RAS+ affine. Raises UnreadableImage.

    The order of ``files`` does not matter. The verdicts of `stacks` are passed again, so that this cannot be used around them; ``repairs``
    are those that are allowed.
    """
    headers = [header for path in files for header in read_headers(path) or _no_image()]
    found, refusals = stacks(headers, repairs=repairs)
    if refusals:
        raise UnreadableImage(refusals[0].code, refusals[0].reason)
    if len(found) != 1:
        raise refuse("several-volumes")
    return read_stack(found[0])


def read_stack(stack: Stack, *, polarity: bool = True) -> Volume:
    """The volume of a stack, on its grid, with its repairs done. Raises UnreadableImage.

    MONOCHROME1 is turned to MONOCHROME2 unless ``polarity`` is false: then values are as stored, after rescale alone.
    """
    first = stack.headers[0]
    array = np.empty((len(stack.headers), first.rows, first.columns), np.float32)
    padded = np.zeros(array.shape, bool) if "padding" in stack.repairs else None
    pixels = PixelReader()
    for number, header in enumerate(stack.headers):
        stored = pixels.frame(header)
        in_units(stored, header, array[number], polarity=polarity)
        if padded is not None and header.padding:
            padded[number] = (stored >= header.padding[0]) & (stored <= header.padding[1])
    if padded is not None and not padded.all():
        array[padded] = array[~padded].min()
    if any(stack.shear):
        array = _upright(array, stack)
    return Volume(array.transpose(2, 1, 0)[None], stack.geometry.affine)


def _upright(array: np.ndarray, stack: Stack) -> np.ndarray:
    """Each slice ``(slice, row, column)`` shifted to where its shear put it, on the larger grid of the stack."""
    columns, rows, slices = stack.geometry.shape
    lowest = float(array.min())
    upright = np.empty((slices, rows, columns), np.float32)
    begin = [math.floor(min(0.0, (slices - 1) * by)) for by in reversed(stack.shear)]
    for number, plane in enumerate(array):
        offset = [start - number * by for start, by in zip(begin, reversed(stack.shear), strict=True)]
        ndimage.affine_transform(plane, np.ones(2), offset, (rows, columns), upright[number], order=1, mode="constant", cval=lowest)
    return upright


def _no_image() -> list[Header]:
    raise refuse("not-an-image")
