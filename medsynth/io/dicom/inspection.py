"""What an archive holds, series by series, for the curator's own eyes: real file names and header values, which the run folder never has.

A series is accepted only after its pixels were read too.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from medsynth.errors import UnreadableImage
from medsynth.io import nifti
from medsynth.io.dicom.files import parallel
from medsynth.io.dicom.headers import Header, scan
from medsynth.io.dicom.reasons import HARMLESS, REPAIRS, Refusal
from medsynth.io.dicom.segmentations import Segmentation, read_segmentation
from medsynth.io.dicom.series import read_stack
from medsynth.io.dicom.verdicts import Stack, stacks
from medsynth.volume import Geometry

VERDICTS = ("accepted", "repaired", "rejected")
THUMBNAIL = 160  # pixels of the longer side
_SHOWN = ("PatientName", "SeriesDescription", "StudyDate")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One series, or one file that is no part of any."""

    series: str
    files: tuple[str, ...]
    verdict: str  # one of `VERDICTS`
    code: str = ""  # of `REASONS`, where it is rejected
    reason: str = ""  # why it is rejected, or what was repaired
    at: tuple[str, ...] = ()  # the files that the reason is about
    values: str = ""  # the header values that it is about
    modality: str = ""
    patient: str = ""
    description: str = ""
    date: str = ""
    shape: tuple[int, ...] | None = None  # x, y, z
    affine: tuple[tuple[float, ...], ...] | None = None  # voxel index to RAS+ millimetres
    volume: str = ""  # the NIfTI file
    thumbnail: bytes = b""  # PNG


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """Every file is in a row, or is one of the ``other`` files: no DICOM, or a DICOMDIR."""

    rows: tuple[Row, ...]
    files: int
    other: int


def inspect(
    root: str | Path, *, repairs: Collection[str] = HARMLESS, workers: int = 1, volumes: str | Path = "", thumbnails: bool = False
) -> Inspection:
    """Judge all that lies below ``root``. ``volumes`` is a folder for the accepted ones: NIfTI, stored units, not resampled."""
    found = scan(root, workers=workers, keywords=_SHOWN)
    accepted, refusals = stacks(found.headers, found.refusals, repairs)
    whose: dict[str, Header] = {header.path: header for header in found.headers}
    jobs = [_Job(part=stack, images=()) for stack in accepted]
    jobs += [
        _Job(part=mask, images=tuple(stack.geometry for stack in accepted if mask.belongs_to(stack.headers[0])))
        for mask in found.segmentations
    ]
    if volumes:
        Path(volumes).mkdir(parents=True, exist_ok=True)
        jobs = [replace(job, volume=str(Path(volumes).absolute() / f"series-{n:04d}.nii.gz")) for n, job in enumerate(jobs, 1)]
    rows = list(parallel(_Judge(thumbnails), jobs, workers, "reading series", worth=2 * workers))
    rows += [_refused(refusal, whose) for refusal in (*refusals, *found.refusals)]
    rows.sort(key=lambda row: (VERDICTS.index(row.verdict), not row.patient, row.patient, row.date, row.description))
    return Inspection(rows=tuple(rows), files=found.files, other=found.other)


@dataclass(frozen=True, kw_only=True)
class _Job:
    part: Stack | Segmentation
    images: tuple[Geometry, ...]  # the grids that a segmentation may lie on
    volume: str = ""


@dataclass(frozen=True)
class _Judge:
    thumbnails: bool

    def __call__(self, job: _Job) -> Row:
        row = _of_stack(job.part) if isinstance(job.part, Stack) else _of_segmentation(job.part)
        try:
            array, affine = _read(job)
        except UnreadableImage as error:
            return replace(row, verdict="rejected", code=error.code, reason=str(error))
        if job.volume:
            nifti.write(job.volume, array, affine, integer=bool(np.all(np.mod(array, 1) == 0)))
        return replace(
            row,
            shape=array.shape,
            affine=tuple(map(tuple, affine.tolist())),
            volume=job.volume,
            thumbnail=_thumbnail(array, affine) if self.thumbnails else b"",
        )


def _read(job: _Job) -> tuple[np.ndarray, np.ndarray]:
    """Voxels ``(x, y, z)`` and affine; of a segmentation its labels on the first grid that it fits. Raises UnreadableImage."""
    if isinstance(job.part, Stack):
        volume = read_stack(job.part, polarity=False)  # how black is shown is no matter of stored units
        return volume.array[0], volume.affine
    misfit = UnreadableImage("mask-without-image", "The images that it refers to are not there, or were rejected.")
    for geometry in job.images:
        try:
            return read_segmentation(job.part.path, geometry), geometry.affine
        except UnreadableImage as error:
            misfit = error
    raise misfit


def _of_stack(stack: Stack) -> Row:
    return replace(
        _about(stack.headers[0]),
        series=stack.key,
        files=stack.files,
        verdict="repaired" if stack.repairs else "accepted",
        reason="; ".join(f"{name}: {REPAIRS[name]}" for name in stack.repairs),
    )


def _of_segmentation(mask: Segmentation) -> Row:
    return replace(_about(mask), series=mask.series, files=(mask.path,), verdict="accepted", modality="SEG")


def _about(part: Header | Segmentation) -> Row:
    return Row(
        series=part.series,
        files=(),
        verdict="",
        modality=getattr(part, "modality", ""),
        patient=" ".join(filter(None, dict.fromkeys((part.patient, part.text["PatientName"])))),
        description=part.text["SeriesDescription"],
        date=part.text["StudyDate"],
    )


def _refused(refusal: Refusal, whose: dict[str, Header]) -> Row:
    header = whose.get(refusal.files[0]) if refusal.files else None
    row = _about(header) if header else Row(series=refusal.series, files=(), verdict="")
    return replace(
        row,
        files=refusal.files,
        verdict="rejected",
        code=refusal.code,
        reason=refusal.reason,
        at=refusal.at or (() if refusal.files else (refusal.key,)),
        values=refusal.values,
    )


def _thumbnail(array: np.ndarray, affine: np.ndarray) -> bytes:
    """The middle slice as PNG, between its first and last percent of grey values, with square millimetres."""
    plane = array[:, :, array.shape[2] // 2].T.astype(np.float64)
    low, high = np.percentile(plane, (1, 99))
    if high <= low:  # a mask, or a single bright spot
        low, high = plane.min(), max(plane.max(), plane.min() + 1)
    grey = Image.fromarray((np.clip((plane - low) / (high - low), 0, 1) * 255).astype(np.uint8))
    width, height = (n * float(np.linalg.norm(affine[:3, axis])) for axis, n in enumerate(array.shape[:2]))
    scale = THUMBNAIL / max(width, height)
    buffer = BytesIO()
    grey.resize((max(1, round(width * scale)), max(1, round(height * scale)))).save(buffer, format="PNG")
    return buffer.getvalue()


def in_one_line(files: Sequence[str], root: str | Path) -> str:
    """The first of the files below ``root``, and how many more there are."""
    first = Path(files[0])
    name = str(first.relative_to(root)) if first.is_relative_to(root) else str(first)
    return name if len(files) == 1 else f"{name} and {len(files) - 1} more"
