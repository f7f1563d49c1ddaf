"""Segmentation objects (PS3.3 A.51) as label maps of the images that they refer to; highdicom knows their frames."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from medsynth.errors import UnreadableImage
from medsynth.io.dicom.elements import tag, text
from medsynth.io.dicom.files import contained, open_dataset
from medsynth.io.dicom.reasons import Refusal, refuse
from medsynth.volume import Geometry

if TYPE_CHECKING:
    from medsynth.io.dicom.headers import Header

STORAGE = frozenset({"1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7"})  # Segmentation, Label Map Segmentation
TOLERANCE = 0.01  # mm: positions are rounded when they are written


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """Whose it is and which series it refers to."""

    path: str
    patient: str
    issuer: str
    study: str
    series: str
    instance: str
    refers_to: frozenset[str]  # SeriesInstanceUIDs
    text: Mapping[str, str] = field(default_factory=dict)  # further keywords that the caller asked for

    def belongs_to(self, image: "Header") -> bool:
        """Going by what the headers say: whether it refers to the image's series or, where it refers to none, is of its study."""
        same_person = (image.patient, image.issuer) == (self.patient, self.issuer)
        return same_person and (image.series in self.refers_to if self.refers_to else image.study == self.study)


def read_reference(path: str, *, keywords: Sequence[str] = ()) -> Segmentation | Refusal:
    """What a segmentation object belongs to."""
    names = ("PatientID", "IssuerOfPatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "ReferencedSeriesSequence")
    try:
        with contained():
            tags = [tag(keyword) for keyword in dict.fromkeys([*names, *keywords])]
            data, stream, _ = open_dataset(path, specific_tags=tags, stop_before_pixels=True)
            stream.close()
            patient, issuer, study, series, instance, _ = (text(data, name) for name in names)
            return Segmentation(
                path=path,
                patient=patient,
                issuer=issuer,
                study=study,
                series=series,
                instance=instance,
                refers_to=frozenset(text(item, "SeriesInstanceUID") for item in data.get("ReferencedSeriesSequence") or ()),
                text={keyword: text(data, keyword) for keyword in keywords},
            )
    except UnreadableImage as error:
        return Refusal(key=path, files=(path,), code=error.code, reason=str(error))


def is_segmentation(path: str | Path) -> bool:
    with contained():
        data, stream, _ = open_dataset(path, specific_tags=[tag("SOPClassUID")], stop_before_pixels=True)
        stream.close()
        return text(data, "SOPClassUID") in STORAGE


def read_segmentation(path: str | Path, geometry: Geometry) -> np.ndarray:
    """Labels ``(x, y, z)`` of uint8 on the grid of the image: a voxel holds its segment's number, 0 outside. Raises UnreadableImage.

    Frames that the object leaves out, as most writers do with empty ones, are empty.
    """
    import highdicom  # a second to import, and few archives hold segmentations

    with contained():
        data, stream, _ = open_dataset(path)
        stream.close()
        if data.get("SegmentationType") == "FRACTIONAL":
            raise refuse("fractional-segmentation")
        if max(int(item.SegmentNumber) for item in data.SegmentSequence) > 255:
            raise refuse("bad-pixels")
        try:
            labels = highdicom.seg.Segmentation.from_dataset(data, copy=False).get_volume(
                combine_segments=True, allow_missing_positions=True, dtype=np.uint8
            )
        except RuntimeError as error:
            raise refuse("overlapping-segments" if "overlap" in str(error) else "undecodable") from None
        # highdicom's axes are slice, row, column, in LPS
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ geometry.affine[:, [2, 1, 0, 3]]
        grid = highdicom.VolumeGeometry(affine, geometry.shape[::-1], "PATIENT")
        try:
            placed = labels.match_geometry(grid, tol=TOLERANCE)
        except (RuntimeError, ValueError):
            raise refuse("mask-grid") from None
        if np.count_nonzero(placed.array) != np.count_nonzero(labels.array):  # it was cropped, or of finer voxels
            raise refuse("mask-grid")
        return placed.array.transpose(2, 1, 0)
