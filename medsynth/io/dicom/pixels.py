"""Stored pixels of files whose header was accepted, and their values in units."""

from pathlib import Path

import numpy as np
from pydicom.encaps import get_frame
from pydicom.pixels.processing import apply_color_lut

from medsynth.io.dicom.decoders import decode
from medsynth.io.dicom.elements import count, tag, text
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
    """Frames of files in the order of a stack. A file of several frames is unpacked once, and plain pixels are read into one buffer."""

    def __init__(self) -> None:
        self._path, self._pixels = "", np.empty(0)
        self._buffer = np.empty(0, np.uint8)

    def frame(self, header: Header) -> np.ndarray:
        """Stored pixels ``(row, column)``, valid until the next call; of a colour image their luminance. Raises UnreadableImage."""
        if header.begin is not None and not header.colour:
            return self._plain(header)
        if self._path != header.path:
            self._path, self._pixels = header.path, read_pixels(header.path)
        return self._pixels[header.frame]

    def _plain(self, header: Header) -> np.ndarray:
        """Uncompressed little-endian pixels, from where they stand in the file. Bits above those stored are no part of a value."""
        dtype = np.dtype(f"<{'i' if header.signed else 'u'}{header.allocated // 8}")
        size = header.rows * header.columns * dtype.itemsize
        if self._buffer.size != size:
            self._buffer = np.empty(size, np.uint8)
        with contained(), open(header.path, "rb", buffering=0) as file:
            file.seek(header.begin + header.frame * size)
            if file.readinto(self._buffer) < size:
                raise refuse("truncated")
        stored = self._buffer.view(dtype).reshape(header.rows, header.columns)
        spare = header.allocated - header.bits
        return stored << spare >> spare if spare else stored  # arithmetic on signed integers: the sign is spread


def in_units(stored: np.ndarray, header: Header, out: np.ndarray | None = None, *, polarity: bool = True) -> np.ndarray:
    """Polarity, where wanted, then rescale, into ``out`` where given. In float64, unless all is small integers, which float32 holds
    exactly and faster. Raises UnreadableImage where float32 cannot hold it.
    """
    slope, intercept = 1.0 if header.slope is None else header.slope, header.intercept or 0.0
    turned = header.inverted and polarity
    if not turned and header.bits <= 16 and slope == 1 and intercept.is_integer() and abs(intercept) < 2**20:
        return np.add(stored, np.float32(intercept), out=out, dtype=np.float32)
    values = stored.astype(np.float64)
    if turned:
        # about the middle of what the bits can hold: the same for every slice and every patient
        values = (-1.0 if header.signed else 2.0**header.bits - 1) - values
    values *= slope
    values += intercept
    if not np.abs(values).max() <= np.finfo(np.float32).max:
        raise refuse("not-finite")
    if out is None:
        return values
    out[...] = values
    return out


def read_pixels(path: str | Path) -> np.ndarray:
    """Stored pixels ``(frame, row, column)`` of a file whose header `read_headers` accepts; of a colour image their luminance.
    Raises UnreadableImage.
    """
    with contained():
        data, stream, _ = open_dataset(path, specific_tags=[tag(keyword) for keyword in (*_LAYOUT, "PixelData")])
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
