"""NIfTI in and out, trusting no header.

A file is a few bytes of promises and then voxels. The promises are read first and held against a budget, so that an archive of kilobytes
which declares gigabytes costs nothing. What we write holds the voxels and their place in space and nothing else: no free text, no
extensions, no file name and no time, so the same voxels give the same bytes.
"""

import gzip
import io
import os
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from medsynth.errors import UnreadableImage

SUFFIXES = (".nii", ".nii.gz")
MAX_BYTES = 2 << 30  # of one image as float32, unless a source says otherwise
MAX_OFFSET = 1 << 24  # bytes between header and voxels (extensions), which have to be unpacked to be skipped
SPACINGS = (1e-3, 1e3)  # mm: beyond these a header is wrong, not the patient
_MILLIMETRES = {"meter": 1e3, "mm": 1.0, "micron": 1e-3, "unknown": 1.0}


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a NIfTI file says about itself, checked: ``shape`` (x, y, z), ``affine`` (RAS+ mm), ``texts`` (free text that may name a
    person)."""

    shape: tuple[int, int, int]
    affine: np.ndarray
    dtype: np.dtype
    offset: int  # bytes before the first voxel
    slope: float
    intercept: float
    texts: tuple[str, ...]


def is_nifti(path: Path) -> bool:
    """By name alone. ``._name.nii``, which macOS leaves beside a file, is none."""
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def read_header(path: Path | str, max_bytes: int = MAX_BYTES) -> Header:
    """The header alone, without touching voxels. Raises UnreadableImage as `read` does, for all that a header can tell."""
    with _refusing_the_unreadable():
        return _header(_unpacked(Path(path), 544), max_bytes)


def read(path: Path | str, max_bytes: int = MAX_BYTES) -> tuple[np.ndarray, np.ndarray, bool]:
    """Voxels, place and kind of a NIfTI-1 or -2 file, packed or not.

    Returns ``array`` float32 (1, x, y, z) with scl_slope and scl_inter applied, ``affine`` 4x4 float64 from voxel index to RAS+ mm, and
    whether the file stores whole numbers. Where neither sform nor qform is set, axes are taken as nibabel does (x grows to the left), from
    pixdim alone.

    Raises UnreadableImage with code ``not-nifti``, ``too-large``, ``truncated``, ``damaged``, ``bad-geometry``, ``not-finite``,
    ``not-scalar`` (colour, complex) or ``several-frames`` (more than one time point).
    """
    path = Path(path)
    with _refusing_the_unreadable():
        header = _header(_unpacked(path, 544), max_bytes)
        wanted = header.offset + int(np.prod(header.shape)) * header.dtype.itemsize
        data = _unpacked(path, wanted, whole=True)
        if len(data) < wanted:
            raise UnreadableImage("truncated", "The file ends before its last voxel. Copy it again from its source.")
    stored = np.frombuffer(data, header.dtype, offset=header.offset).reshape(header.shape, order="F")
    with np.errstate(over="ignore", invalid="ignore"):
        array = stored.astype(np.float32)
        if (header.slope, header.intercept) != (1.0, 0.0):
            array = (stored * np.float64(header.slope) + header.intercept).astype(np.float32)
    if not np.isfinite(array).all():
        raise UnreadableImage("not-finite", "Some voxels are NaN or infinite. Mask or interpolate them before preparing.")
    whole = stored.dtype.kind in "iu" and float(header.slope).is_integer() and float(header.intercept).is_integer()
    return array[None], header.affine, whole


def write(path: Path | str, array: np.ndarray, affine: np.ndarray, integer: bool) -> None:
    """Write ``array`` (x, y, z), or (x, y) as one slice, in stored units. ``.nii.gz`` is packed, ``.nii`` is not; the file arrives by
    rename.

    Whole numbers (``integer``; rounded here) are int16 where they fit, everything else float32: int32 would make float readers lose bits
    unseen.
    """
    path = Path(path)
    array = np.atleast_3d(array)
    assert array.ndim == 3, array.shape
    assert np.isfinite(array).all()
    if integer:
        array = np.rint(array)
        limits = np.iinfo(np.int16)
        integer = bool(array.min() >= limits.min and array.max() <= limits.max)
    array = array.astype("<i2" if integer else "<f4")
    header = nib.Nifti1Header(endianness="<")  # fresh: a copied one carries descrip, aux_file and extensions along
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_qform(affine, code="scanner", strip_shears=True)
    header.set_sform(affine, code="scanner")
    header.set_xyzt_units("mm", "sec")
    header["magic"], header["vox_offset"] = b"n+1", 352
    data = header.binaryblock + bytes(4) + array.tobytes(order="F")
    if path.name.endswith(".gz"):
        buffer = io.BytesIO()
        with gzip.GzipFile(filename="", fileobj=buffer, mode="wb", compresslevel=4, mtime=0) as packed:
            packed.write(data)
        data = buffer.getvalue()
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


class _refusing_the_unreadable:
    """Whatever parsing hostile bytes raises becomes one UnreadableImage; the original is dropped, since its text may quote a header."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind, error, trace) -> None:
        if isinstance(error, zlib.error | EOFError):
            raise UnreadableImage(
                "damaged", "The packed bytes do not agree with their checksum. Copy the file again from its source."
            ) from None
        if isinstance(error, nib.spatialimages.HeaderDataError | nib.wrapstruct.WrapStructError | KeyError | ValueError | OverflowError):
            raise UnreadableImage("not-nifti", "The header is not one of a NIfTI-1 or NIfTI-2 file.") from None


def _unpacked(path: Path, limit: int, whole: bool = False) -> bytes:
    """Up to ``limit`` unpacked bytes of a file: never more memory than that. With ``whole``, a packed file's checksum is verified too."""
    if not path.name.lower().endswith(".gz"):
        with path.open("rb") as file:
            return file.read(limit)
    pieces, left, behind = [], limit, 0
    with path.open("rb") as file:
        unpack = zlib.decompressobj(wbits=31)
        packed = file.read(1 << 12 if limit < 1 << 12 else 1 << 20)
        while packed:
            piece = unpack.decompress(packed, left or 1 << 16)
            pieces.append(piece[:left])
            left -= len(pieces[-1])
            behind += len(piece) - len(pieces[-1])
            if left == 0 and (not whole or behind > MAX_OFFSET):
                break  # so much more than the header declares is not unpacked for the checksum behind it
            if unpack.eof:  # a file may be several packed members, one after the other
                packed = unpack.unused_data or file.read(1 << 20)
                unpack = zlib.decompressobj(wbits=31)
                if left == 0 or not packed.startswith(b"\x1f\x8b"):
                    break
            else:
                packed = unpack.unconsumed_tail or file.read(1 << 20)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _header(block: bytes, max_bytes: int) -> Header:
    if len(block) < 348:
        raise UnreadableImage("truncated", "The file ends within its header. Copy it again from its source.")
    second = int.from_bytes(block[:4], "little") == 540 or int.from_bytes(block[:4], "big") == 540
    kind = nib.Nifti2Header if second else nib.Nifti1Header
    header = kind(block[: kind.sizeof_hdr], check=False)
    if bytes(header["magic"].tobytes()[:3]) not in (b"n+1", b"n+2") or int(header["sizeof_hdr"]) != kind.sizeof_hdr:
        raise UnreadableImage("not-nifti", "The file is not a single-file NIfTI-1 or NIfTI-2 image (header and voxels in one file).")

    dtype = header.get_data_dtype()
    if dtype.fields or dtype.kind not in "iuf":
        raise UnreadableImage("not-scalar", "Voxels are colours or complex numbers. Convert them to one number a voxel.")
    count = int(header["dim"][0])
    shape = [int(n) for n in header["dim"][1 : 1 + max(count, 0)]]
    if not 1 <= count <= 7 or min(shape) < 1:
        raise UnreadableImage("bad-geometry", "The header declares no valid number of voxels along some axis.")
    if max(shape[3:], default=1) > 1:
        raise UnreadableImage("several-frames", "The file holds several time points or channels. Split it into one image a file.")
    shape = [*shape[:3], 1, 1][:3]
    if np.prod([float(n) for n in shape]) * max(dtype.itemsize, 4) > max_bytes:
        raise UnreadableImage("too-large", f"The header declares more voxels than fit into {max_bytes / 2**20:.0f} MiB (source.max_bytes).")
    offset = float(header["vox_offset"])
    if not kind.sizeof_hdr <= offset <= MAX_OFFSET:
        raise UnreadableImage("not-nifti", "The header places its voxels outside any sensible part of the file.")

    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not np.isfinite(slope):  # the standard: then no scaling at all
        slope, intercept = 1.0, 0.0
    return Header(
        shape=tuple(shape),
        affine=_affine(header),
        dtype=dtype,
        offset=int(offset),
        slope=slope,
        intercept=intercept if np.isfinite(intercept) else 0.0,
        texts=tuple(filter(None, (_text(header[name]) for name in ("descrip", "aux_file", "intent_name", "db_name") if name in header))),
    )


def _affine(header: nib.Nifti1Header) -> np.ndarray:
    try:
        unit = header.get_xyzt_units()[0]
        affine = np.asarray(header.get_best_affine(), dtype=np.float64)
    except (ValueError, KeyError, nib.spatialimages.HeaderDataError):
        raise UnreadableImage("bad-geometry", "The header's rotation or unit of length is not valid.") from None
    affine[:3] *= _MILLIMETRES[unit]
    axes = affine[:3, :3]
    if not np.isfinite(affine).all() or np.abs(affine).max() > 1e6:
        raise UnreadableImage("bad-geometry", "The header's affine holds numbers that are no place in space.")
    spacing = np.linalg.norm(axes, axis=0)
    if spacing.min() < SPACINGS[0] or spacing.max() > SPACINGS[1]:
        raise UnreadableImage("bad-geometry", f"Voxels are not between {SPACINGS[0]:g} and {SPACINGS[1]:g} mm apart along every axis.")
    directions = axes / spacing
    if np.abs(directions.T @ directions - np.eye(3)).max() > 0.02:
        raise UnreadableImage("bad-geometry", "The header's axes are not at right angles. Resample the image to a right-angled grid.")
    return affine


def _text(field: np.ndarray) -> str:
    return bytes(field.tobytes()).split(b"\0")[0].decode("latin-1").strip()
