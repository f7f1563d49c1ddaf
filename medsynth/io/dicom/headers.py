"""What decides over one frame of one file, and the scan of a folder that collects it. No pixel is decoded here."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pydicom.dataset import Dataset
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medsynth.errors import UnreadableImage
from medsynth.io.dicom.decoders import is_decoded
from medsynth.io.dicom.elements import count, first_text, groups, numbers, tag, text
from medsynth.io.dicom.files import PIXELS, contained, is_dicom, open_dataset, parallel, pixel_extent, walk
from medsynth.io.dicom.reasons import Refusal, refuse
from medsynth.io.dicom.segmentations import STORAGE, Segmentation, read_reference

if TYPE_CHECKING:
    from medsynth.io.dicom.journal import Journal

PROJECTION = frozenset({"CR", "DX", "DR", "MG", "RG", "XR", "PX", "IO"})  # one file is a whole image
RECORD = 512  # files of one record of the journal
EXPANDED_LIMIT = 2**31  # bytes of one volume as float32

# What splits a series: attributes, and what enhanced objects call them.
# A differing HARD value is another image. If positions repeat, such a value splits the series; if they do not, the series is refused.
HARD = (
    *("SOPClassUID", "Modality", "ImageType", "PhotometricInterpretation", "EchoNumbers", "TemporalPositionIdentifier", "DiffusionBValue"),
    *("ConvolutionKernel", "FrameType", "TemporalPositionIndex", "StackID"),
)
# A SOFT one may rightly vary from slice to slice, and splits the series only where positions repeat.
SOFT = (
    *("AcquisitionNumber", "EchoTime", "InversionTime", "FlipAngle", "RepetitionTime", "TriggerTime", "NominalPercentageOfCardiacPhase"),
    *("KVP", "DiffusionGradientOrientation", "FrameReferenceTime", "AcquisitionTime", "AcquisitionDateTime"),
    *("FrameAcquisitionNumber", "EffectiveEchoTime", "FrameReferenceDateTime", "FrameAcquisitionDateTime"),
)
_READ = (
    *HARD,
    *SOFT,
    *("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "PatientID", "IssuerOfPatientID"),
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"),
    *("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "PixelPresentation", "SliceThickness"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType", "ModalityLUTSequence"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
)
# PS3.4 B.5: enhanced and legacy converted enhanced CT, MR, PET
_ENHANCED = frozenset(f"1.2.840.10008.5.1.4.1.1.{leaf}" for leaf in ("2.1", "2.2", "4.1", "4.4", "128.1", "130"))
# A file refused for one of these may have been a slice of its series.
_LOST = frozenset({"unreadable", "truncated", "too-large", "unsupported-transfer-syntax", "bad-pixels", "modality-lut"})
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"


@dataclass(frozen=True, kw_only=True, slots=True)  # slots: an archive has a hundred thousand
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
    colour: bool
    bits: int  # stored
    allocated: int
    signed: bool
    padding: tuple[int, int] | None  # stored values from, to
    begin: int | None  # of the file's plain pixels, bytes from its start; None where they must be unpacked
    slope: float | None
    intercept: float | None
    hard: tuple[str, ...]
    soft: tuple[str, ...]
    text: Mapping[str, str] = field(default_factory=dict)  # further keywords that the caller asked for

    @property
    def projection(self) -> bool:
        return self.modality in PROJECTION


@dataclass(frozen=True, kw_only=True)
class Found:
    """A folder's content: every file is in ``headers``, in ``segmentations``, in ``refusals`` or among the ``other`` files, which are no
    DICOM at all, or only list files."""

    headers: tuple[Header, ...]
    segmentations: tuple[Segmentation, ...]
    refusals: tuple[Refusal, ...]
    files: int
    other: int


Outcome = list[Header] | Segmentation | Refusal | None  # of reading one file


def scan(root: str | Path, *, workers: int = 1, keywords: Sequence[str] = (), journal: "Journal | None" = None) -> Found:
    """Headers of all images below ``root``, sniffed by content. ``keywords`` are read as text into `Header.text`.

    Links are followed only inside ``root``, and to each file once; pipes are never opened. With a ``journal``, files that it knows are not
    read again.
    """
    root, keywords = Path(root).resolve(), tuple(keywords)
    paths, refusals = walk(root)
    files = len(paths) + sum(len(refusal.files) for refusal in refusals)
    known = journal.read(root, keywords) if journal else {}
    unread = [path for path in paths if path not in known]
    fresh: dict[str, Outcome] = {}
    for path, outcome in zip(unread, parallel(_Reader(keywords), unread, workers, "reading headers"), strict=True):
        fresh[path] = outcome
        if journal and len(fresh) == RECORD:
            journal.add(root, keywords, fresh)
            known |= fresh
            fresh = {}
    if journal and fresh:
        journal.add(root, keywords, fresh)
    known |= fresh
    outcomes = [known[path] for path in paths]
    return Found(
        headers=tuple(header for outcome in outcomes if isinstance(outcome, list) for header in outcome),
        segmentations=tuple(outcome for outcome in outcomes if isinstance(outcome, Segmentation)),
        refusals=(*refusals, *(outcome for outcome in outcomes if isinstance(outcome, Refusal))),
        files=files,
        other=outcomes.count(None),
    )


@dataclass(frozen=True)
class _Reader:
    keywords: tuple[str, ...]

    def __call__(self, path: str) -> Outcome:
        try:
            return read_headers(path, keywords=self.keywords)
        except UnreadableImage as error:
            if error.code == "segmentation":
                return read_reference(path, keywords=self.keywords)
            series = _series_of(path) if error.code in _LOST else ""
            return Refusal(key=path, files=(path,), code=error.code, reason=str(error), series=series)


def _series_of(path: str) -> str:
    """The series of a broken file, empty where even that cannot be read."""
    try:
        with contained():
            data, stream, _ = open_dataset(path, specific_tags=[tag("SeriesInstanceUID")], stop_before_pixels=True)
            stream.close()
            return text(data, "SeriesInstanceUID")
    except UnreadableImage:
        return ""


def read_headers(path: str | Path, *, keywords: Sequence[str] = ()) -> list[Header] | None:
    """One header a frame; None where the file is no DICOM, or a directory of other files. Raises UnreadableImage.

    No pixel is decoded. That all of them are there, and how large they are, is known afterwards.
    """
    with contained():
        if os.path.getsize(path) == 0:
            raise refuse("empty-file")
        if not is_dicom(path):
            return None
        tags = [tag(keyword) for keyword in dict.fromkeys([*_READ, *keywords])]
        data, stream, size = open_dataset(path, specific_tags=tags, stop_before_pixels=True)
        with stream:
            if str(data.file_meta.get("MediaStorageSOPClassUID", "")) == _MEDIA_DIRECTORY:
                return None
            begin = _judge_pixels(data, stream, size)
        return [_header(str(path), data, frame, begin, keywords) for frame in range(count(data))]


def _judge_pixels(data: Dataset, stream: BinaryIO, size: int) -> int | None:
    """Refuse what is no image with all of its pixels. ``stream`` stands where the pixel element begins.

    Returns `Header.begin`.
    """
    start = stream.tell()
    element, end, length = pixel_extent(data, stream, size)
    storage = str(data.get("SOPClassUID") or data.file_meta.get("MediaStorageSOPClassUID", ""))
    if element not in PIXELS:
        raise refuse("truncated" if start > size or "Rows" in data or UID(storage).name.endswith("Image Storage") else "not-an-image")
    if storage in STORAGE:
        raise refuse("segmentation")
    rows, columns, frames = int(data.get("Rows") or 0), int(data.get("Columns") or 0), count(data)
    samples, bits = int(data.get("SamplesPerPixel") or 1), int(data.get("BitsAllocated") or 0)
    if min(rows, columns, frames, samples) < 1:
        raise refuse("bad-pixels")
    if rows * columns * frames * samples * 4 > EXPANDED_LIMIT:
        raise refuse("too-large")
    if text(data, "PixelPresentation") in ("COLOR", "MIXED"):  # values above some number are colours
        raise refuse("supplemental-palette")
    if storage not in _ENHANCED and (frames > 1 or "PerFrameFunctionalGroupsSequence" in data):
        raise refuse("multiframe")
    stored, high = int(data.get("BitsStored") or 0), int(data.get("HighBit", -1))
    colours = {"RGB": 3, "PALETTE COLOR": 1}.get(meaning := text(data, "PhotometricInterpretation"), 3 if meaning.startswith("YBR_") else 0)
    if (
        element != PIXELS[-1]
        or bits not in (8, 16, 32)
        or not 0 < stored <= bits
        or high != stored - 1
        or data.get("PixelRepresentation") not in (0, 1)
        or samples != (1 if meaning in ("MONOCHROME1", "MONOCHROME2") else colours)
    ):
        raise refuse("bad-pixels")
    syntax = data.file_meta.TransferSyntaxUID
    if not is_decoded(syntax):
        raise refuse("unsupported-transfer-syntax", syntax.name if syntax.is_transfer_syntax else "not a known one")
    sampled = 2 if meaning == "YBR_FULL_422" else samples  # PS3.3 C.7.6.3.1.2: two pixels share their colour
    if end > size or (not syntax.is_encapsulated and length < rows * columns * frames * sampled * bits // 8):
        raise refuse("truncated")
    plain = syntax in (ImplicitVRLittleEndian, ExplicitVRLittleEndian) and isinstance(stream, BufferedReader)
    return end - length if plain else None


def _header(path: str, data: Dataset, frame: int, begin: int | None, keywords: Sequence[str]) -> Header:
    """The header of one frame: a functional group's value (PS3.3 C.7.6.16) stands before the file's own."""
    places = groups(data, frame)
    modality = text(data, "Modality").upper() or "OT"
    projection = modality in PROJECTION
    spacing = numbers(places, "PixelSpacing")
    if spacing is None and projection:
        spacing = numbers(places, "ImagerPixelSpacing") or numbers(places, "NominalScannedPixelSpacing")
    slope, intercept = numbers(places, "RescaleSlope"), numbers(places, "RescaleIntercept")
    if any(tag("ModalityLUTSequence") in place.keys() for place in places):  # noqa: SIM118
        raise refuse("modality-lut")
    thickness = numbers(places, "SliceThickness")
    return Header(
        path=path,
        frame=frame,
        frames=count(data),
        patient=_shared(text(data, "PatientID")),
        issuer=_shared(text(data, "IssuerOfPatientID")),
        study=_shared(text(data, "StudyInstanceUID")),
        series=_shared(text(data, "SeriesInstanceUID")),
        instance=text(data, "SOPInstanceUID"),
        reference=_shared(text(data, "FrameOfReferenceUID")),
        modality=_shared(modality),
        rows=int(data.Rows),
        columns=int(data.Columns),
        orientation=_once(numbers(places, "ImageOrientationPatient", 6)),
        position=numbers(places, "ImagePositionPatient", 3),
        spacing=_once(spacing if spacing is None or len(spacing) == 2 else None),
        thickness=thickness[0] if thickness else None,
        image_type=_once(tuple(text(data, "ImageType").upper().split("\\"))),
        inverted=text(data, "PhotometricInterpretation") == "MONOCHROME1",
        units=_shared(first_text(places, "RescaleType")),
        colour=not text(data, "PhotometricInterpretation").startswith("MONOCHROME"),
        bits=int(data.BitsStored),
        allocated=int(data.BitsAllocated),
        signed=bool(data.PixelRepresentation),
        padding=_padding(data),
        begin=begin,
        slope=slope[0] if slope else None,
        intercept=intercept[0] if intercept else None,
        hard=_once(tuple(_shared(first_text(places, keyword)) for keyword in HARD)),
        soft=_once(tuple(_shared(first_text(places, keyword)) for keyword in SOFT)),
        text={keyword: _shared(text(data, keyword)) for keyword in keywords},
    )


# One copy of what all slices of a series say, also behind a process border: an archive has many slices.
_shared = sys.intern


@lru_cache(4096)
def _once(value: tuple | None) -> tuple | None:
    return value


def _padding(data: Dataset) -> tuple[int, int] | None:
    """The stored values that are no image, first and last (PS3.3 C.7.5.1.1.2)."""
    values = [number for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit") for number in numbers([data], keyword, 1) or ()]
    if not values:
        return None
    span = 2 ** int(data.BitsAllocated)
    if data.PixelRepresentation:  # some write the bits of a negative number as an unsigned one
        values = [value - span if value >= span // 2 else value for value in values]
    return int(min(values)), int(max(values))
