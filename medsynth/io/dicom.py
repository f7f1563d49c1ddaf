"""DICOM series to volumes: no file name is believed, no geometry is guessed.

Files are sniffed by content, read as `Header` values (one a frame), grouped by series, and judged: a group becomes stacks that are
evenly spaced and complete as far as their positions tell, or a refusal with a code of `REASONS`. Nothing is merged, shortened, padded or
reordered without a word. This module is the only reader that knows DICOM's LPS axes: what it returns is RAS+ millimetres, axes (x along a
row, y down a column, z along the normal), in stored units after the modality's rescale (PS3.3 C.7.6.2, C.7.6.3, C.11.1).
"""

import logging
import math
import os
import stat
import warnings
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_preamble
from pydicom.filewriter import write_file_meta_info
from pydicom.pixels import get_decoder
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)
from tqdm import tqdm

from medsynth.errors import UnreadableImage
from medsynth.volume import Geometry, Volume

# pydicom's warnings quote header values
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)

PROJECTION = frozenset({"CR", "DX", "DR", "MG", "RG", "XR", "PX", "IO"})  # one file is a whole image
EXPANDED_LIMIT = 2**31  # bytes of one volume as float32
INFLATE_LIMIT = 2**27  # bytes of a deflated file, inflated: 1.5 MB can hold 3 GB
ANGLE = 1e-4  # direction cosines of one plane may differ by their rounding
WORTH_PROCESSES = 1000  # files: with fewer, one process is done before others have started
PLANES = math.sin(math.radians(5))  # directions that differ by more are planes of their own

REASONS: Mapping[str, str] = {
    "empty-file": "The file has no bytes.",
    "not-a-file": "It is a pipe, a socket or a device, not a file.",
    "link-outside": "It is a link that leads out of the source folder, or nowhere.",
    "unreadable": "It begins like DICOM, but its header cannot be read.",
    "unreadable-folder": "The folder cannot be listed.",
    "truncated": "It ends before its pixels do, or has none though it says it is an image.",
    "not-an-image": "It is a DICOM object without pixels, such as a report, a plan or a presentation state.",
    "too-large": "Its pixels or its deflated content expand beyond the limit of 2 GiB a volume (128 MiB a deflated file).",
    "unsupported-transfer-syntax": "No decoder for its compression is installed",
    "undecodable": "Its compressed pixels cannot be decoded, or do not have the size that its header states.",
    "colour": "It is a colour or palette image.",
    "bad-pixels": "Its pixel description (bits, sign, planes) contradicts itself.",
    "segmentation": "It is a segmentation object; only masks stored as image series are read.",
    "multiframe": "It holds several frames without functional groups that place them in space.",
    "enhanced-multiframe": "Its functional groups do not place every frame of one volume in space.",
    "missing-uid": "It has no series or instance UID, so that it cannot be told what belongs together.",
    "mixed-subject": "One series UID is used for several people.",
    "mixed-frame": "One series lies in several frames of reference.",
    "mixed-size": "Slices of one plane differ in rows, columns or pixel spacing.",
    "mixed-orientation": "Slices are turned against each other by a small angle.",
    "mixed-attribute": "Slices of one stack differ in an attribute that makes another image",
    "incomplete": "One of its files cannot be read, so that the others are not the whole of it.",
    "uneven-stacks": "Its stacks (echoes, time points, b-values) do not cover the same slices.",
    "missing-geometry": "It does not say where its pixels lie: position, orientation or pixel spacing is missing.",
    "bad-geometry": "Its orientation is not orthonormal, or its position or spacing is not a positive finite number.",
    "gantry-tilt": "Its slices are sheared against their normal, as under a tilted gantry.",
    "missing-slice": "A gap between slices is a multiple of the others: slices are missing",
    "uneven-spacing": "Its slices are not evenly spaced",
    "duplicate-instance": "One instance stands in several files.",
    "duplicate-position": "Several slices lie at one position, and no attribute tells them apart.",
    "single-slice": "A single slice is no volume; only radiographs are read from one file.",
    "localizer": "It is a localizer.",
    "mosaic": "It is a mosaic of slices in one frame.",
    "bad-rescale": "Its rescale is not finite, zero, or given for some slices only.",
    "modality-lut": "Its values go through a modality look-up table.",
    "inverted-units": "MONOCHROME1 with physical units (Hounsfield, activity): the polarity contradicts them.",
    "not-finite": "Its pixels hold values that are not finite.",
    "several-volumes": "The files hold more than one volume.",
}

# A differing value is another image. If positions repeat, such a value splits the series; if they do not, the series is refused.
_HARD = (
    "SOPClassUID",
    "Modality",
    "ImageType",
    "PhotometricInterpretation",
    "EchoNumbers",
    "TemporalPositionIdentifier",
    "DiffusionBValue",
    "ConvolutionKernel",
)
# May rightly vary from slice to slice, and splits the series only where positions repeat.
_SOFT = (
    "AcquisitionNumber",
    "EchoTime",
    "InversionTime",
    "FlipAngle",
    "RepetitionTime",
    "TriggerTime",
    "KVP",
    "DiffusionGradientOrientation",
    "FrameReferenceTime",
    "AcquisitionTime",
    "AcquisitionDateTime",
)
_READ = (
    *_HARD,
    *_SOFT,
    *("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID", "IssuerOfPatientID"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"),
    *("PixelPresentation", "SliceThickness", "RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
# PS3.4 B.5: enhanced and legacy converted enhanced CT, MR, PET
_ENHANCED = frozenset(f"1.2.840.10008.5.1.4.1.1.{leaf}" for leaf in ("2.1", "2.2", "4.1", "4.4", "128.1", "130"))
_SEGMENTATION = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})
# A file refused for one of these may have been a slice of its series.
_LOST = frozenset({"unreadable", "truncated", "too-large", "unsupported-transfer-syntax", "bad-pixels", "modality-lut"})
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
_PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What decides over one frame of one file: identity, geometry (LPS, as stored), pixels, and the attributes that split a series."""

    path: str
    frame: int  # 0 in a single-frame file
    frames: int
    patient: str
    issuer: str
    study: str
    series: str
    instance: str
    reference: str  # Frame of Reference UID
    modality: str
    rows: int
    columns: int
    orientation: tuple[float, ...] | None  # six direction cosines: along a row, down a column
    position: tuple[float, ...] | None  # of the first voxel's centre, mm
    spacing: tuple[float, ...] | None  # between rows, between columns, mm
    thickness: float | None
    image_type: tuple[str, ...]
    inverted: bool  # MONOCHROME1
    units: str  # RescaleType
    bits: int  # stored
    signed: bool
    slope: float | None
    intercept: float | None
    hard: tuple[str, ...]
    soft: tuple[str, ...]
    text: Mapping[str, str] = field(default_factory=dict)  # further keywords that the caller asked for

    @property
    def projection(self) -> bool:
        return self.modality in PROJECTION


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Files that are not used, and why. ``files`` and ``key`` are the archive's names: they stay in memory."""

    key: str
    files: tuple[str, ...]
    code: str
    reason: str
    series: str = ""  # of a single broken file, where its header still tells


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One volume's headers in the order of its third axis, and its grid."""

    key: str  # SeriesInstanceUID, with ``#2`` and so on where a series is several stacks
    headers: tuple[Header, ...]
    geometry: Geometry

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(header.path for header in self.headers))


@dataclass(frozen=True, kw_only=True)
class Found:
    """A folder's content: every file is in ``headers``, in ``refusals`` or among the ``other`` files, which are no DICOM images at all."""

    headers: tuple[Header, ...]
    refusals: tuple[Refusal, ...]
    files: int
    other: int


def refuse(code: str, detail: str = "") -> UnreadableImage:
    """The error of this code, worded by `REASONS`; ``detail`` holds derived numbers only, no header value."""
    return UnreadableImage(code, f"{REASONS[code].rstrip('.')}{': ' + detail if detail else ''}.")


# ------------------------------------------------------------------------------------------------------------------ files and headers


def scan(root: str | Path, *, workers: int = 1, keywords: Sequence[str] = ()) -> Found:
    """Headers of all images below ``root``, sniffed by content. ``keywords`` are read as text into `Header.text`.

    Links are followed only inside ``root``, and to each file once; pipes are never opened.
    """
    paths, refusals = _walk(Path(root).resolve())
    files = len(paths) + sum(len(refusal.files) for refusal in refusals)
    headers, other = [], 0
    for outcome in parallel(_Reader(tuple(keywords)), paths, workers, "reading headers"):
        if outcome is None:
            other += 1
        elif isinstance(outcome, Refusal):
            refusals.append(outcome)
        else:
            headers.extend(outcome)
    return Found(headers=tuple(headers), refusals=tuple(refusals), files=files, other=other)


def parallel(work: Callable[[str], T], paths: Sequence[str], workers: int, says: str) -> list[T]:
    """``work`` for each path, in order, in processes where there are enough of them to pay for their start."""
    bar = {"total": len(paths), "desc": says, "unit": "file", "disable": len(paths) < 100}
    if workers < 2 or len(paths) < WORTH_PROCESSES:
        return list(tqdm(map(work, paths), **bar))
    # forkserver: a fork of a process in which a numerical library has started threads may hang
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
        return list(tqdm(pool.map(work, paths, chunksize=64), **bar))


@dataclass(frozen=True)
class _Reader:
    keywords: tuple[str, ...]

    def __call__(self, path: str) -> list[Header] | Refusal | None:
        try:
            return read_headers(path, keywords=self.keywords)
        except UnreadableImage as error:
            return Refusal(
                key=path, files=(path,), code=error.code, reason=str(error), series=_series_of(path) if error.code in _LOST else ""
            )


def _series_of(path: str) -> str:
    """The series of a broken file, empty where even that cannot be read."""
    try:
        with _contained():
            data, stream, _ = open_dataset(path, specific_tags=[Tag("SeriesInstanceUID")], stop_before_pixels=True)
            stream.close()
            return _text(data, "SeriesInstanceUID")
    except UnreadableImage:
        return ""


def _walk(root: Path) -> tuple[list[str], list[Refusal]]:
    """Regular files below ``root`` in a fixed order, and what is not opened."""
    found: list[str] = []
    refusals: list[Refusal] = []
    links: list[str] = []

    def leave(path: str, code: str, files: int = 1) -> None:
        refusals.append(Refusal(key=path, files=(path,) * files, code=code, reason=REASONS[code]))

    for folder, folders, names in os.walk(root, onerror=lambda error: leave(error.filename, "unreadable-folder", files=0)):
        folders.sort()
        for name in sorted(names + [name for name in folders if os.path.islink(os.path.join(folder, name))]):
            path = os.path.join(folder, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                links.append(path)
            elif stat.S_ISREG(mode):
                found.append(path)
            else:
                leave(path, "not-a-file")
    seen = set(found)
    for path in links:
        target = os.path.realpath(path)
        if not Path(target).is_relative_to(root) or not os.path.exists(target):
            leave(path, "link-outside")
        elif os.path.isfile(target) and target not in seen:
            seen.add(target)  # unreachable without the link: below a folder that cannot be listed
            found.append(target)
    return found, refusals


def read_headers(path: str | Path, *, keywords: Sequence[str] = ()) -> list[Header] | None:
    """One header a frame; None where the file is no DICOM, or a directory of other files. Raises UnreadableImage.

    No pixel is decoded. That all of them are there, and how large they are, is known afterwards.
    """
    with _contained():
        if os.path.getsize(path) == 0:
            raise refuse("empty-file")
        if not is_dicom(path):
            return None
        tags = [Tag(keyword) for keyword in dict.fromkeys([*_READ, *keywords])]
        data, stream, size = open_dataset(path, specific_tags=tags, stop_before_pixels=True)
        with stream:
            if str(data.file_meta.get("MediaStorageSOPClassUID", "")) == _MEDIA_DIRECTORY:
                return None
            _judge_pixels(data, stream, size)
        return [_header(str(path), data, frame, keywords) for frame in range(_count(data))]


def is_keyword(name: str) -> bool:
    """Whether PS3.6 knows an attribute of this keyword."""
    return tag_for_keyword(name) is not None


@contextmanager
def _contained() -> Iterator[None]:
    """Whatever a hostile or broken file makes a parser raise or say becomes one error that quotes nothing of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except UnreadableImage:
            raise
        except Exception as error:  # pydicom raises whatever the bytes lead it to: struct.error, KeyError, RecursionError ...
            raise refuse("unreadable", type(error).__name__) from None


def is_dicom(path: str | Path) -> bool:
    """Whether the content is DICOM: the magic after the preamble, or, without preamble, a first element of group 0002 or 0008."""
    with open(path, "rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM":
        return True
    if len(start) < 16 or start[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08") or start[3 if start[0] else 2] != 0:
        return False
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    return explicit or (start[0] != 0 and int.from_bytes(start[4:8], "little") <= os.path.getsize(path))


def open_dataset(source: str | Path | BinaryIO, **options) -> tuple[Dataset, BinaryIO, int]:
    """The data set, the stream behind its last element read, and the stream's size; a deflated file is inflated within `INFLATE_LIMIT`.

    ``options`` are pydicom's: ``specific_tags``, ``stop_before_pixels``. The caller closes the stream.
    """
    stream = open(source, "rb") if isinstance(source, str | Path) else source  # noqa: SIM115
    try:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        if read_preamble(stream, force=True) is not None:
            meta = pydicom.filereader._read_file_meta_info(stream)
            if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                stream, packed = BytesIO(), stream
                with packed:
                    size = _inflate(packed, meta, stream)
        stream.seek(0)
        data = pydicom.dcmread(stream, force=True, **options)
    except BaseException:
        stream.close()
        raise
    if "TransferSyntaxUID" not in data.file_meta:
        implicit, little = data.original_encoding
        plain = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        data.file_meta.TransferSyntaxUID = plain if little else ExplicitVRBigEndian
    return data, stream, size


def _inflate(packed: BinaryIO, meta: Dataset, plain: BytesIO) -> int:
    """Write the file as explicit little endian. pydicom itself would inflate without bound, even to read a header."""
    content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed.read(INFLATE_LIMIT), INFLATE_LIMIT + 1)
    if len(content) > INFLATE_LIMIT:
        raise refuse("too-large")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    plain.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(plain, meta, enforce_standard=False)
    plain.write(content)
    return plain.tell()


def read_full_header(path: str | Path) -> Dataset:
    """The whole header, private elements and file meta information included. Raises UnreadableImage."""
    with _contained():
        data, stream, _ = open_dataset(path, stop_before_pixels=True)
        with stream:
            # values are parsed when they are looked at: here is where that may fail
            data.walk(lambda _, element: None)
            return data


def header_texts(source: BinaryIO) -> tuple[list[str], list[bytes]]:
    """All values that are text, their character sets decoded, and the raw bytes before and behind the pixels. Raises UnreadableImage."""
    with _contained():
        data, stream, size = open_dataset(source, stop_before_pixels=True)
        start = stream.tell()
        _, end, _ = _pixel_extent(data, stream, size)
        texts: list[str] = []

        def note(_: Dataset, element: pydicom.DataElement) -> None:
            if element.VR != "SQ" and not isinstance(element.value, bytes):
                texts.append(str(element.value))

        for part in (data.file_meta, data):
            part.walk(note)
        stream.seek(0)
        before = stream.read(start)
        stream.seek(end)
        return texts, [before, stream.read()]


def _count(data: Dataset) -> int:
    return int(data.get("NumberOfFrames") or 1)


def _judge_pixels(data: Dataset, stream: BinaryIO, size: int) -> None:
    """Refuse what is no monochrome image with all of its pixels. ``stream`` stands where the pixel element begins."""
    start = stream.tell()
    tag, end, length = _pixel_extent(data, stream, size)
    storage = str(data.get("SOPClassUID") or data.file_meta.get("MediaStorageSOPClassUID", ""))
    if tag not in _PIXELS:
        raise refuse("truncated" if start > size or "Rows" in data or UID(storage).name.endswith("Image Storage") else "not-an-image")
    if storage in _SEGMENTATION:
        raise refuse("segmentation")
    rows, columns, frames = int(data.get("Rows") or 0), int(data.get("Columns") or 0), _count(data)
    samples, bits = int(data.get("SamplesPerPixel") or 1), int(data.get("BitsAllocated") or 0)
    if min(rows, columns, frames, samples) < 1:
        raise refuse("bad-pixels")
    if rows * columns * frames * samples * 4 > EXPANDED_LIMIT:
        raise refuse("too-large")
    mapped = _text(data, "PixelPresentation") in ("COLOR", "MIXED")  # values above some number are colours
    if samples != 1 or mapped or _text(data, "PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        raise refuse("colour")
    if storage not in _ENHANCED and (frames > 1 or "PerFrameFunctionalGroupsSequence" in data):
        raise refuse("multiframe")
    stored, high = int(data.get("BitsStored") or 0), int(data.get("HighBit", -1))
    if (
        tag != 0x7FE00010
        or bits not in (8, 16, 32)
        or not 0 < stored <= bits
        or high != stored - 1
        or data.get("PixelRepresentation") not in (0, 1)
    ):
        raise refuse("bad-pixels")
    syntax = data.file_meta.TransferSyntaxUID
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        raise refuse("unsupported-transfer-syntax", syntax.name if syntax.is_transfer_syntax else "not a known one")
    if end > size or (not syntax.is_encapsulated and length < rows * columns * frames * bits // 8):
        raise refuse("truncated")


def _pixel_extent(data: Dataset, stream: BinaryIO, size: int) -> tuple[int, int, int]:
    """Tag, end in the stream, and bytes of the pixel element that begins where ``stream`` stands; an end behind ``size``: cut short.

    Without a pixel element the tag is 0 and the end where the stream stands.
    """
    start = stream.tell()
    implicit, little = data.original_encoding
    order = "little" if little else "big"
    head = stream.read(12)
    tag = int.from_bytes(head[:2], order) << 16 | int.from_bytes(head[2:4], order)
    if tag not in _PIXELS:
        return 0, start, 0
    length = int.from_bytes(head[4:8] if implicit else head[8:12], order)
    begin = stream.seek(start + (8 if implicit else 12))
    if length == 0xFFFFFFFF:
        return tag, _fragments_end(stream, size), size - begin
    return tag, begin + length, length


def _fragments_end(stream: BinaryIO, size: int) -> int:
    """Where encapsulated pixel data (always little endian, PS3.5 A.4) ends with its delimiter; behind ``size`` where it does not."""
    while len(item := stream.read(8)) == 8:
        tag, length = item[:4], int.from_bytes(item[4:], "little")
        if tag == b"\xfe\xff\xdd\xe0":
            return stream.tell()
        if tag != b"\xfe\xff\x00\xe0":
            break
        stream.seek(length, os.SEEK_CUR)
    return size + 1


def _header(path: str, data: Dataset, frame: int, keywords: Sequence[str]) -> Header:
    """The header of one frame: a functional group's value (PS3.3 C.7.6.16) stands before the file's own."""
    groups = _groups(data, frame)
    modality = _text(data, "Modality").upper() or "OT"
    projection = modality in PROJECTION
    spacing = _numbers(groups, "PixelSpacing")
    if spacing is None and projection:
        spacing = _numbers(groups, "ImagerPixelSpacing") or _numbers(groups, "NominalScannedPixelSpacing")
    slope, intercept = _numbers(groups, "RescaleSlope"), _numbers(groups, "RescaleIntercept")
    if any("ModalityLUTSequence" in group for group in groups):
        raise refuse("modality-lut")
    thickness = _numbers(groups, "SliceThickness")
    return Header(
        path=path,
        frame=frame,
        frames=_count(data),
        patient=_text(data, "PatientID"),
        issuer=_text(data, "IssuerOfPatientID"),
        study=_text(data, "StudyInstanceUID"),
        series=_text(data, "SeriesInstanceUID"),
        instance=_text(data, "SOPInstanceUID"),
        reference=_text(data, "FrameOfReferenceUID"),
        modality=modality,
        rows=int(data.Rows),
        columns=int(data.Columns),
        orientation=_numbers(groups, "ImageOrientationPatient", 6),
        position=_numbers(groups, "ImagePositionPatient", 3),
        spacing=spacing if spacing is None or len(spacing) == 2 else None,
        thickness=thickness[0] if thickness else None,
        image_type=tuple(_text(data, "ImageType").upper().split("\\")),
        inverted=_text(data, "PhotometricInterpretation") == "MONOCHROME1",
        units=_first_text(groups, "RescaleType"),
        bits=int(data.BitsStored),
        signed=bool(data.PixelRepresentation),
        slope=slope[0] if slope else None,
        intercept=intercept[0] if intercept else None,
        hard=tuple(_first_text(groups, keyword) for keyword in _HARD) + tuple(_first_text(groups, keyword) for keyword in _FRAME_HARD),
        soft=tuple(_first_text(groups, keyword) for keyword in _SOFT) + tuple(_first_text(groups, keyword) for keyword in _FRAME_SOFT),
        text={keyword: _text(data, keyword) for keyword in keywords},
    )


# The enhanced objects' names for what splits a series
_FRAME_HARD = ("FrameType", "TemporalPositionIndex", "StackID")
_FRAME_SOFT = ("FrameAcquisitionNumber", "EffectiveEchoTime", "FrameReferenceDateTime", "FrameAcquisitionDateTime")


def _groups(data: Dataset, frame: int) -> list[Dataset]:
    """Where to look for a frame's values, first to last: its own groups, the shared ones, the file."""
    groups = []
    if per_frame := data.get("PerFrameFunctionalGroupsSequence"):
        if len(per_frame) != _count(data):
            raise refuse("enhanced-multiframe")
        groups.append(per_frame[frame])
    groups.extend(data.get("SharedFunctionalGroupsSequence") or [])
    return [*(item for group in groups for item in _items(group)), data]


def _items(group: Dataset) -> Iterator[Dataset]:
    """The items of a group's sequences, and of the sequences in them: b-values lie one deeper."""
    for element in group:
        if element.VR == "SQ":
            for item in element.value:
                yield item
                yield from _items(item)


def _numbers(groups: Iterable[Dataset], keyword: str, count: int | None = None) -> tuple[float, ...] | None:
    for group in groups:
        value = group.get(keyword)
        if value is not None and value != "":
            numbers = tuple(float(v) for v in (value if isinstance(value, Sequence | pydicom.multival.MultiValue) else [value]))
            return numbers if numbers and (count is None or len(numbers) == count) else None
    return None


def _text(data: Dataset, keyword: str) -> str:
    value = data.get(keyword)
    if value is None:
        return ""
    parts = value if isinstance(value, pydicom.multival.MultiValue | list | tuple) else [value]
    return "\\".join(str(part) for part in parts).replace("\0", "").strip()


def _first_text(groups: Iterable[Dataset], keyword: str) -> str:
    return next((text for group in groups if (text := _text(group, keyword))), "")


# ------------------------------------------------------------------------------------------------------------------ geometry verdicts


def stacks(headers: Iterable[Header], broken: Iterable[Refusal] = ()) -> tuple[list[Stack], list[Refusal]]:
    """Group headers by series and judge each group: every header ends in exactly one stack or one refusal.

    A series of which a ``broken`` file was part is refused: without its last slice it would look whole.
    """
    torn = {refusal.series for refusal in broken} - {""}
    groups: dict[tuple[str, str], list[Header]] = defaultdict(list)
    found: list[Stack] = []
    refusals: list[Refusal] = []
    for header in headers:
        if header.series and header.instance:
            groups[header.study, header.series].append(header)
        else:
            refusals.append(_refusal(header.path, [header], refuse("missing-uid")))
    for (_, series), members in sorted(groups.items()):
        if series in torn and not all(header.projection for header in members):
            refusals.append(_refusal(series, members, refuse("incomplete")))
            continue
        volumes: list[list[Header]] = []
        for part in _planes(sorted(members, key=lambda header: (header.path, header.frame)), refusals):
            try:
                volumes.extend(_volumes(part))
            except UnreadableImage as error:
                refusals.append(_refusal(series, part, error))
        for number, volume in enumerate(volumes, 1):
            key = series if number == 1 else f"{series}#{number}"
            try:
                found.append(_stack(key, volume))
            except UnreadableImage as error:
                refusals.append(_refusal(key, volume, error))
    return found, refusals


def _refusal(key: str, members: Sequence[Header], error: UnreadableImage) -> Refusal:
    return Refusal(key=key, files=tuple(dict.fromkeys(h.path for h in members)), code=error.code, reason=str(error))


def _planes(members: list[Header], refusals: list[Refusal]) -> Iterator[list[Header]]:
    """The parts of a series that lie in one plane each: localizers set aside, radiographs one by one."""
    series = members[0].series
    try:
        if len({(header.patient, header.issuer) for header in members}) > 1:
            raise refuse("mixed-subject")
        if len({(header.instance, header.frame) for header in members}) < len(members):
            raise refuse("duplicate-instance")
    except UnreadableImage as error:
        refusals.append(_refusal(series, members, error))
        return
    for code, word in (("localizer", "LOCALIZER"), ("mosaic", "MOSAIC")):
        if aside := [header for header in members if word in header.image_type]:
            refusals.append(_refusal(series, aside, refuse(code)))
            members = [header for header in members if word not in header.image_type]
    if not members:
        return
    if all(header.projection for header in members):
        yield from ([header] for header in members)
        return
    try:
        if len({header.reference for header in members}) > 1:
            raise refuse("mixed-frame")
        for header in members:
            _check_geometry(header)
        planes = _by_orientation(members)
    except UnreadableImage as error:
        refusals.append(_refusal(series, members, error))
        return
    yield from planes


def _check_geometry(header: Header) -> None:
    if header.orientation is None or header.position is None or header.spacing is None:
        raise refuse("enhanced-multiframe" if header.frames > 1 else "missing-geometry")
    values = np.array([*header.orientation, *header.position, *header.spacing])
    row, column = np.array(header.orientation[:3]), np.array(header.orientation[3:])
    # 1e-3: real scanners round direction cosines to four digits
    askew = abs(row @ row - 1) > 1e-3 or abs(column @ column - 1) > 1e-3 or abs(row @ column) > 1e-3
    if not np.isfinite(values).all() or np.abs(values).max() > 1e5 or min(header.spacing) <= 0 or askew:
        raise refuse("bad-geometry")


def _by_orientation(members: list[Header]) -> list[list[Header]]:
    planes: list[list[Header]] = []
    for header in members:
        for plane in planes:
            apart = np.abs(np.subtract(header.orientation, plane[0].orientation)).max()
            if apart <= ANGLE:
                plane.append(header)
                break
            if apart < PLANES:
                raise refuse("mixed-orientation")
        else:
            planes.append([header])
    return planes


def _volumes(part: list[Header]) -> list[list[Header]]:
    """One plane's headers as one volume, or as several where an attribute tells repeated positions apart."""
    if part[0].projection:
        return [part]
    if len({(h.rows, h.columns, *np.round(h.spacing, 5)) for h in part}) > 1:
        raise refuse("mixed-size")
    places = _places(part)
    names = (*_HARD, *_FRAME_HARD)
    hard = [i for i in range(len(names)) if len({h.hard[i] for h in part}) > 1]
    if len(set(places)) == len(part):
        if hard:
            raise refuse("mixed-attribute", ", ".join(names[i] for i in hard))
        return [part]
    soft = [i for i in range(len(part[0].soft)) if len({h.soft[i] for h in part}) > 1]
    for extra in [(), *((i,) for i in soft), *combinations(soft, 2)]:
        groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for number, header in enumerate(part):
            groups[tuple(header.hard[i] for i in hard) + tuple(header.soft[i] for i in extra)].append(number)
        covered = [sorted(places[number] for number in group) for group in groups.values()]
        if len(groups) > 1 and all(cover == covered[0] for cover in covered) and len(set(covered[0])) == len(covered[0]):
            return [[part[number] for number in group] for _, group in sorted(groups.items())]
    by_hard = defaultdict(list)
    for header, place in zip(part, places, strict=True):
        by_hard[tuple(header.hard[i] for i in hard)].append(place)
    told_apart = len(by_hard) > 1 and all(len(set(group)) == len(group) for group in by_hard.values())
    raise refuse("uneven-stacks" if told_apart else "duplicate-position")


def _normal(header: Header) -> np.ndarray:
    normal = np.cross(header.orientation[:3], header.orientation[3:])
    return normal / np.linalg.norm(normal)


def _places(part: Sequence[Header]) -> list[int]:
    """The number of each header's position along the normal: equal for positions within 0.01 mm."""
    along = np.array([header.position for header in part]) @ _normal(part[0])
    order = np.argsort(along, kind="stable")
    steps = np.concatenate([[0], np.cumsum(np.diff(along[order]) > 0.01)])
    places = np.empty(len(part), int)
    places[order] = steps
    return places.tolist()


def _stack(key: str, members: list[Header]) -> Stack:
    """Order by position on the normal, and judge spacing, shear and values."""
    first = members[0]
    _check_values(members)
    if first.projection:
        return Stack(key=key, headers=tuple(members), geometry=_radiograph(first))
    if len(members) < 2:
        raise refuse("single-slice")
    if len(members) * first.rows * first.columns * 4 > EXPANDED_LIMIT:
        raise refuse("too-large")
    normal = _normal(first)
    members = sorted(members, key=lambda header: float(np.dot(header.position, normal)))
    positions = np.array([header.position for header in members], np.float64)
    gaps = np.diff(positions @ normal)
    gap = float(np.median(gaps))
    tolerance = max(0.01 * gap, 0.01)
    worst = int(np.abs(gaps - gap).argmax())
    if abs(gaps[worst] - gap) > tolerance:
        # in multiples of the smallest, since more gaps than one may be wide
        multiples = gaps / gaps.min()
        missing = multiples.max() > 1.5 and np.abs(multiples - multiples.round()).max() < 0.05
        says = f"slices {worst + 1} and {worst + 2} are {gaps[worst]:.2f} mm apart, the others {gap:.2f} mm"
        raise refuse("missing-slice" if missing else "uneven-spacing", says)
    step = (positions[-1] - positions[0]) / (len(members) - 1)
    sideways = np.abs(np.diff(positions, axis=0) - np.outer(gaps, normal)).max(initial=0)
    drift = np.abs(positions - positions[0] - np.outer(np.arange(len(members)), step)).max()
    if sideways > tolerance:
        raise refuse("gantry-tilt" if drift <= tolerance else "uneven-spacing", f"shifted sideways by {sideways:.2f} mm a slice")
    if drift > tolerance:
        raise refuse("uneven-spacing", f"positions drift by {drift:.2f} mm from an even grid")
    # the mean step, not the normal: exact at both ends, so that no rounding adds up over the stack
    return Stack(key=key, headers=tuple(members), geometry=_geometry(members[0], step, len(members)))


def _check_values(members: Sequence[Header]) -> None:
    first = members[0]
    rescales = [(header.slope, header.intercept) for header in members]
    given = {slope is not None or intercept is not None for slope, intercept in rescales}
    numbers = [value for pair in rescales for value in pair if value is not None]
    if len(given) > 1 or not np.isfinite(numbers).all() or any(slope == 0 for slope, _ in rescales):
        raise refuse("bad-rescale")
    if len({(header.bits, header.signed) for header in members}) > 1 and first.inverted:
        raise refuse("bad-pixels")
    if first.inverted and (first.modality in ("CT", "PT") or first.units == "HU"):
        raise refuse("inverted-units")


def _geometry(header: Header, step: np.ndarray, slices: int) -> Geometry:
    """LPS to RAS+, the only place: the first two axes change their sign (PS3.3 C.7.6.2.1.1; NIfTI-1 quaternion note)."""
    row_spacing, column_spacing = header.spacing
    affine = np.eye(4)
    affine[:3, 0] = np.array(header.orientation[:3]) * column_spacing  # the column index grows along a row
    affine[:3, 1] = np.array(header.orientation[3:]) * row_spacing
    affine[:3, 2] = step
    affine[:3, 3] = header.position
    return Geometry((header.columns, header.rows, slices), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)


def _radiograph(header: Header) -> Geometry:
    """A projection has no place in the patient: its plane is laid like an axial slice, in millimetres at the detector, third axis 1 mm."""
    if header.spacing is None:
        raise refuse("missing-geometry")
    if not np.isfinite(header.spacing).all() or not 1e-6 < min(header.spacing) <= max(header.spacing) < 1e5:
        raise refuse("bad-geometry")
    flat = np.diag([-header.spacing[1], -header.spacing[0], 1.0, 1.0])
    return Geometry((header.columns, header.rows, 1), flat)


# ------------------------------------------------------------------------------------------------------------------ pixels


def read_series(files: Sequence[str | Path]) -> Volume:
    """The one volume in these files: float32 ``(1, x, y, z)`` after rescale, RAS+ affine. Raises UnreadableImage.

    The order of ``files`` does not matter. The verdicts of `stacks` are passed again, so that this cannot be used around them.
    """
    headers = [header for path in files for header in read_headers(path) or _no_image()]
    found, refusals = stacks(headers)
    if refusals:
        raise UnreadableImage(refusals[0].code, refusals[0].reason)
    if len(found) != 1:
        raise refuse("several-volumes")
    (stack,) = found
    columns, rows, slices = stack.geometry.shape
    array = np.empty((slices, rows, columns), np.float32)
    opened: tuple[str, np.ndarray] = ("", array)
    for number, header in enumerate(stack.headers):
        if opened[0] != header.path:
            opened = header.path, read_pixels(header.path)
        array[number] = _in_units(opened[1][header.frame], header)
    if not np.isfinite(array).all():
        raise refuse("not-finite")
    return Volume(array.transpose(2, 1, 0)[None], stack.geometry.affine)


def _no_image() -> list[Header]:
    raise refuse("not-an-image")


def _in_units(stored: np.ndarray, header: Header) -> np.ndarray:
    """Polarity, then rescale. In float64, unless all that happens are small integers, which float32 holds exactly and faster."""
    slope, intercept = 1.0 if header.slope is None else header.slope, header.intercept or 0.0
    exact = header.bits <= 16 and slope == 1 and intercept.is_integer() and abs(intercept) < 2**20
    values = stored.astype(np.float32 if exact else np.float64)
    if header.inverted:
        # about the middle of what the bits can hold: the same for every slice and every patient
        values = (-1.0 if header.signed else 2.0**header.bits - 1) - values
    if slope != 1:
        values *= slope
    if intercept:
        values += intercept
    return values


def read_pixels(path: str | Path) -> np.ndarray:
    """Stored pixels ``(frame, row, column)`` of a file whose header `read_headers` accepts. Raises UnreadableImage."""
    with _contained():
        data, stream, _ = open_dataset(path, specific_tags=[*(Tag(keyword) for keyword in _LAYOUT), Tag(0x7FE00010)])
        with stream:
            frames, rows, columns = _count(data), int(data.Rows), int(data.Columns)
            if data.file_meta.TransferSyntaxUID.is_encapsulated:
                for frame in range(frames):
                    _check_codestream(get_frame(data.PixelData, frame, number_of_frames=frames), rows, columns)
            try:
                pixels = data.pixel_array
            except Exception:  # each decoder raises its own
                raise refuse("undecodable") from None
            return pixels.reshape(frames, rows, columns)


_LAYOUT = (
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration", "SOPClassUID"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
)


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
