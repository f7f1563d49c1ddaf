"""Pixels, decoded and written as they are: a compressed stream may hold comments, and bytes behind the last pixel may hold anything.

Only what the header describes goes out, as explicit little endian; colours that were subsampled become RGB. Bits outside those stored are
cleared where an overlay may lie in them (PS3.5 8.1.1).
"""

import warnings
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder, pack_bits
from pydicom.tag import Tag

from medsynth.errors import UnreadableImage
from medsynth.io.dicom import refuse

_PLAIN = ("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB")
_FLOATS = {"FloatPixelData": "<f4", "DoubleFloatPixelData": "<f8"}


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """``array`` (frame, row, column) or (frame, row, column, 3), as stored; ``photometric`` says how it is meant now."""

    array: np.ndarray
    photometric: str

    @property
    def colour(self) -> bool:
        return self.array.ndim == 4


def read(data: Dataset) -> Pixels:
    """Decode all frames. Raises UnreadableImage (``not-an-image``, ``undecodable``, ``unsupported-transfer-syntax``)."""
    photometric = str(data.get("PhotometricInterpretation", ""))
    try:
        frames = int(data.get("NumberOfFrames") or 1)
        for keyword, dtype in _FLOATS.items():
            if keyword in data:
                shape = frames, int(data.Rows), int(data.Columns)
                return Pixels(array=np.frombuffer(data[keyword].value, dtype, int(np.prod(shape))).reshape(shape), photometric=photometric)
        if "PixelData" not in data:
            raise refuse("not-an-image")
        decoder = get_decoder(data.file_meta.TransferSyntaxUID)
        if decoder.is_encapsulated and not decoder.is_available:
            raise refuse("unsupported-transfer-syntax")
        native = not decoder.is_encapsulated and photometric in _PLAIN
        high = int(data.get("HighBit") or int(data.BitsStored) - 1)
        low = max(high + 1 - int(data.BitsStored), 0) if native else 0  # above 0 in old files alone: pydicom takes 0 for granted
        if high >= int(data.BitsAllocated):
            raise refuse("undecodable")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            array, known = decoder.as_array(data, raw=native, allow_excess_frames=False, correct_unused_bits=not low)
    except UnreadableImage:
        raise
    except Exception:  # each decoder raises its own
        raise refuse("undecodable") from None
    array = array.reshape(frames, int(data.Rows), int(data.Columns), *((3,) if int(data.SamplesPerPixel) == 3 else ()))
    if low or any((Tag(group, 0x0102) in data and data[Tag(group, 0x0102)].value) for group in range(0x6000, 0x6020, 2)):
        array = _stored_bits(array, low, high)
    return Pixels(array=array, photometric=str(known["photometric_interpretation"]))


def _stored_bits(array: np.ndarray, low: int, high: int) -> np.ndarray:
    """Bits from the lowest to the highest stored one alone; the sign is kept, since the shift back is an arithmetic one."""
    unused = array.dtype.itemsize * 8 - 1 - high
    return (array << unused) >> (unused + low) << low


def write(data: Dataset, pixels: Pixels) -> None:
    """Put pixels into a rebuilt data set, and say how they are stored now."""
    array = pixels.array
    data.PhotometricInterpretation = pixels.photometric
    if array.dtype.kind == "f":
        keyword = next(keyword for keyword, dtype in _FLOATS.items() if np.dtype(dtype) == array.dtype)
        setattr(data, keyword, array.tobytes())
        return
    if pixels.colour:
        data.PlanarConfiguration = 0
    if int(data.BitsAllocated) == 1:
        stored = pack_bits(array.astype(np.uint8).ravel())
    else:
        data.BitsAllocated = array.dtype.itemsize * 8
        stored = array.astype(array.dtype.newbyteorder("<")).tobytes()
    stored += b"\0" * (len(stored) % 2)
    data.add_new(Tag("PixelData"), "OB" if int(data.BitsAllocated) <= 8 else "OW", stored)
