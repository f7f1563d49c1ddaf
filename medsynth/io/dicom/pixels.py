"""Stored pixels of files whose header was accepted, and their values in units."""

from pathlib import Path

import numpy as np
from pydicom.encaps import get_frame
from pydicom.pixels.processing import apply_color_lut
from pydicom.tag import Tag

from medsynth.io.dicom.decoders import decode
from medsynth.io.dicom.elements import count, text
from medsynth.io.dicom.files import contained, open_dataset
from medsynth.io.dicom.headers import Header
from medsynth.io.dicom.reasons import refuse

_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601
_LAYOUT = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "SOPClassUID"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *(f"{colour}PaletteColorLookupTable{part}" for colour in ("Red", "Green", "Blue") for part in ("Descriptor", "Data")),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
)


class PixelReader:
    """Frames of files in the order of a stack. A file of several frames is unpacked once, not once a frame."""

    def __init__(self) -> None:
        self._path, self._pixels = "", np.empty(0)

    def frame(self, header: Header) -> np.ndarray:
        """Stored pixels ``(row, column)``; of a colour image their luminance. Raises UnreadableImage."""
        if header.begin is not None and not header.colour:
            return _plain(header)
        if self._path != header.path:
            self._path, self._pixels = header.path, read_pixels(header.path)
        return self._pixels[header.frame]


def _plain(header: Header) -> np.ndarray:
    """Uncompressed little-endian pixels, from where they stand in the file. Bits above those stored are no part of a value."""
    dtype = np.dtype(f"<{'i' if header.signed else 'u'}{header.allocated // 8}")
    size = header.rows * header.columns
    with contained():
        stored = np.fromfile(header.path, dtype, size, offset=header.begin + header.frame * size * dtype.itemsize)
        if stored.size < size:
            raise refuse("truncated")
    spare = header.allocated - header.bits
    if spare:
        stored = stored << spare >> spare  # arithmetic on signed integers: the sign is spread
    return stored.reshape(header.rows, header.columns)


def in_units(stored: np.ndarray, header: Header, *, polarity: bool = True) -> np.ndarray:
    """Polarity, where wanted, then rescale. In float64, unless all is small integers, which float32 holds exactly and faster."""
    slope, intercept = 1.0 if header.slope is None else header.slope, header.intercept or 0.0
    exact = header.bits <= 16 and slope == 1 and intercept.is_integer() and abs(intercept) < 2**20
    values = stored.astype(np.float32 if exact else np.float64)
    if header.inverted and polarity:
        # about the middle of what the bits can hold: the same for every slice and every patient
        values = (-1.0 if header.signed else 2.0**header.bits - 1) - values
    if slope != 1:
        values *= slope
    if intercept:
        values += intercept
    return values


def read_pixels(path: str | Path) -> np.ndarray:
    """Stored pixels ``(frame, row, column)`` of a file whose header `read_headers` accepts; of a colour image their luminance.
    Raises UnreadableImage.
    """
    with contained():
        data, stream, _ = open_dataset(path, specific_tags=[*(Tag(keyword) for keyword in _LAYOUT), Tag(0x7FE00010)])
        with stream:
            frames, rows, columns = count(data), int(data.Rows), int(data.Columns)
            if data.file_meta.TransferSyntaxUID.is_encapsulated:
                for frame in range(frames):
                    _check_codestream(get_frame(data.PixelData, frame, number_of_frames=frames), rows, columns)
            try:
                pixels = decode(data)
                if text(data, "PhotometricInterpretation") == "PALETTE COLOR":
                    pixels = apply_color_lut(pixels, data)[..., :3]
            except Exception:  # each decoder raises its own
                raise refuse("undecodable") from None
            if pixels.size > frames * rows * columns:
                pixels = pixels @ np.array(_LUMINANCE)
            return pixels.reshape(frames, rows, columns)


def _check_codestream(frame: bytes, rows: int, columns: int) -> None:
    """A codestream has a size of its own, which decoders allocate: it must be the header's.

    JPEG 2000 SIZ (ISO 15444-1 A.5.1) and the JPEG frame headers (ISO 10918-1 B.2.2; 14495-1 for JPEG-LS).
    """
    if frame[:4] == b"\xff\x4f\xff\x51":
        x1, y1, x0, y0 = (int.from_bytes(frame[i : i + 4], "big") for i in range(8, 24, 4))
        size = (y1 - y0, x1 - x0)
    elif frame[:2] == b"\xff\xd8":
        size = _jpeg_size(frame)
    else:
        return  # RLE states no size; pydicom decodes it into the header's
    if size != (rows, columns):
        raise refuse("undecodable")


def _jpeg_size(frame: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(frame) and frame[at] == 0xFF:
        marker, length = frame[at + 1], int.from_bytes(frame[at + 2 : at + 4], "big")
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return int.from_bytes(frame[at + 5 : at + 7], "big"), int.from_bytes(frame[at + 7 : at + 9], "big")
        at += 2 + length
    return None
