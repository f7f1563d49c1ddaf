"""A synthetic case as a DICOM series that any viewer reads and nobody can mistake for a patient.

Volumes and slices of CT and MR become a series of single-frame images or one enhanced multi-frame image, radiographs one DX or CR image,
everything else Secondary Capture. Nothing is copied from a real file: every attribute is written here, from the case, the model and the
settings. UIDs are a function of what made the case, dates are a convention, and no clock is read, so the same case is the same bytes.

LPS lives here: the cohort's affine is RAS+, DICOM's patient axes are L, P, H (PS3.3 C.7.6.2). The axes in a slice are turned the way
viewers show them (along a row to the left or the back, down a column to the back or the feet), which the geometry records, and slices are
numbered along their normal.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.tag import Tag
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    SecondaryCaptureImageStorage,
)
from pydicom.valuerep import format_number_as_ds

from medsynth.cohort import Case, Cohort
from medsynth.conditions import Value
from medsynth.errors import MedsynthError, SettingsError

FORMS = ("single_frame", "enhanced")
SERIES_DESCRIPTION = "SYNTHETIC - NOT FOR CLINICAL USE"
# A convention, not a date of anything: every synthetic study "happens" at noon on the first day of 1850, and birth dates are counted back
# from it. Nobody was imaged before 1895, so the date cannot be that of a real study, nor be taken for one that was shifted.
STUDY_YEAR = 1850
STUDY_DATE, STUDY_TIME = f"{STUDY_YEAR}0101", "1200"  # six digits could be a patient's number
IMPLEMENTATION = UID("2.25.147888207105306213471529404921117713238")  # a fixed UUID: this writer
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])

# Unpaired parts alone (PS3.16 Annex L): a paired one, or none, makes Laterality (0020,0060) required, which a synthetic image does not
# know.
BODY_PARTS: Mapping[str, tuple[str, str]] = {
    "ABDOMEN": ("818983003", "Abdomen"),
    "BRAIN": ("12738006", "Brain"),
    "CHEST": ("43799004", "Chest"),
    "HEAD": ("69536005", "Head"),
    "HEART": ("80891009", "Heart"),
    "LIVER": ("10200004", "Liver"),
    "NECK": ("45048000", "Neck"),
    "PELVIS": ("12921003", "Pelvis"),
    "PROSTATE": ("41216001", "Prostate"),
    "SPINE": ("421060004", "Spine"),
    "WHOLEBODY": ("38266002", "Entire body"),
}


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What made a cohort: with a case's seed and id, all that its UIDs are derived from."""

    weights: str  # SHA-256 of the denoiser's weights
    fingerprint: str  # of the settings that it was sampled with
    version: str  # of medsynth; not in the UIDs, since a new version may write an old case


def write(
    cohort: Cohort, case: Case, folder: Path, made_by: Provenance, *, body_part: str = "WHOLEBODY", form: str = "single_frame"
) -> list[Path]:
    """Write one synthetic case as a series into the new folder ``folder``; returns its files.

    ``form`` single_frame: one file a slice, in order along their normal. enhanced: CT and MR as one file of as many frames; there is no
    such form of the others, which stay single-frame.
    Stored values are 16-bit integers within half a quantisation step of the case's; `Quantised` says where the step is recorded.
    """
    header = cohort.header
    if header.kind != "synthetic":
        raise MedsynthError("Only a synthetic cohort is written as DICOM: this one's header says kind=" + repr(header.kind) + ".")
    if form not in FORMS:
        raise SettingsError(f"release.dicom={form!r} is not one of {', '.join(FORMS)}.")
    if body_part not in BODY_PARTS:
        raise SettingsError(f"release.body_part={body_part!r} is not one of {', '.join(BODY_PARTS)}.")
    array = cohort.stored(case)
    array = array[..., None] if array.ndim == 2 else array
    if not np.isfinite(array).all():
        raise MedsynthError(f"{case.id} holds values that are not finite. Draw the case again: delete its file and run sample.")
    enhanced = form == "enhanced" and header.modality in _ENHANCED
    sop_class, modules = _ENHANCED[header.modality] if enhanced else _KINDS.get(header.modality, _KINDS["OT"])
    if header.modality in ("CR", "DX") and array.shape[2] > 1:
        raise MedsynthError(
            f"{case.id} has {array.shape[2]} slices, but a {header.modality} image is one projection. Check the source's modality."
        )

    placed = Placed.of(np.array(header.affine), array.shape)
    quantised = Quantised.of(placed.turn(array), header.integer, signed=header.modality in ("CT", "MR"))
    folder.mkdir(parents=True)
    slices, files = range(array.shape[2]), []
    for number, frames in enumerate([slices] if enhanced else [range(k, k + 1) for k in slices], start=1):
        instance = uid_for(made_by, case, "enhanced instance") if enhanced else uid_for(made_by, case, "instance", number - 1)
        image = _shared(case, header.modality, made_by, body_part)
        image.file_meta = file_meta(sop_class, instance)
        image.SOPClassUID, image.SOPInstanceUID, image.InstanceNumber = sop_class, instance, number
        image.SeriesInstanceUID = uid_for(made_by, case, "enhanced series" if enhanced else "series")
        _pixels(image, quantised.stored[frames.start : frames.stop])
        modules(image, placed, quantised, frames)
        if enhanced:
            _name_frames(image, uid_for(made_by, case, "dimensions"), uid_for(made_by, case, "irradiation event"))
        if header.modality not in ("CR", "DX"):
            image.FrameOfReferenceUID = uid_for(made_by, case, "frame of reference")
        files.append(folder / f"{number:05d}.dcm")
        image.save_as(files[-1], enforce_file_format=True)
    return files


def uid_for(made_by: Provenance, case: Case, *parts: int | str) -> UID:
    """A UID below ``2.25`` (PS3.5 B.2): a name-based UUID of what made the case and of what in it is named.

    The same case has the same UIDs on every machine; another model, setting, seed or id has others.
    """
    named = "\x1f".join(str(part) for part in ("medsynth", made_by.weights, made_by.fingerprint, case.seed, case.id, *parts))
    value = int.from_bytes(hashlib.sha256(named.encode()).digest()[:16], "big")
    value = value & ~(0xF << 76) | (8 << 76)  # RFC 9562: version 8, of one's own making
    value = value & ~(0x3 << 62) | (0x2 << 62)  # its variant
    return UID(f"2.25.{value}")


def file_meta(sop_class: UID, instance: UID) -> FileMetaDataset:
    """The file's meta information; its version names are ours, so that a new pydicom does not change the bytes."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID, meta.ImplementationVersionName = IMPLEMENTATION, "MEDSYNTH"
    return meta


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """An item of a code sequence (PS3.3 8.8)."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def derivation(case: Case, made_by: Provenance) -> str:
    """With what a case was made, so that it can be made again."""
    return (
        f"Drawn from a diffusion model by medsynth {made_by.version}: weights sha256:{made_by.weights}, "
        f"settings {made_by.fingerprint}, seed {case.seed}. Not acquired from a patient."
    )


def equipment(case: Case, made_by: Provenance) -> Dataset:
    """The model as Synthesizing Equipment (PS3.3 C.12.1, Contributing Equipment Sequence), and what in it made this case."""
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = Sequence([code("109100", "DCM", "Synthesizing Equipment")])
    item.Manufacturer, item.ManufacturerModelName = "medsynth", "medsynth diffusion model"
    item.SoftwareVersions = made_by.version
    item.DeviceSerialNumber = made_by.weights[:16] or "unknown"
    item.ContributionDateTime = STUDY_DATE + STUDY_TIME
    item.ContributionDescription = derivation(case, made_by)
    return item


@dataclass(frozen=True, eq=False)
class Placed:
    """How an array ``(x, y, z)`` lies as slices ``(slice, row, column)``: ``affine`` maps (column, row, slice) to LPS millimetres."""

    affine: np.ndarray
    swap: bool  # the array's first axis runs down the slice instead of across it
    flips: tuple[int, ...]  # axes of (slice, row, column) that run against the array's

    @classmethod
    def of(cls, affine: np.ndarray, shape: tuple[int, ...]) -> "Placed":
        """Turn the slices of the third axis upright, and number them along their normal. Raises where axes are not at right angles."""
        lps = LPS @ affine
        directions = lps[:3, :3] / np.linalg.norm(lps[:3, :3], axis=0)
        if np.abs(directions.T @ directions - np.eye(3)).max() > 1e-4:
            raise MedsynthError("The cohort's grid is sheared: its axes are not at right angles, which a DICOM slice cannot say.")
        nearest = _nearest_axes(directions)
        swap = nearest[0] > nearest[1]  # across the slice runs L before P before H
        lps = lps[:, [1, 0, 2, 3]] if swap else lps
        columns, rows, slices = (shape[1], shape[0], shape[2]) if swap else shape
        across, down = sorted(nearest[:2])
        flips = []
        if lps[across, 0] < 0:  # to the left, or to the back
            lps, flips = _flipped(lps, 0, columns), [*flips, 2]
        if (lps[down, 1] > 0) == (down == 2):  # to the back, or to the feet
            lps, flips = _flipped(lps, 1, rows), [*flips, 1]
        if np.cross(lps[:3, 0], lps[:3, 1]) @ lps[:3, 2] < 0:
            lps, flips = _flipped(lps, 2, slices), [*flips, 0]
        return cls(lps, swap, tuple(flips))

    def turn(self, array: np.ndarray) -> np.ndarray:
        """``(x, y, z)`` as ``(slice, row, column)``."""
        return np.flip(array.transpose(2, 0, 1) if self.swap else array.transpose(2, 1, 0), self.flips)

    @property
    def spacing(self) -> np.ndarray:
        """Millimetres between columns, rows and slices."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def position(self, k: int) -> np.ndarray:
        """The centre of slice ``k``'s first pixel, LPS mm."""
        return self.affine[:3, 3] + k * self.affine[:3, 2]


def _nearest_axes(directions: np.ndarray) -> list[int]:
    """The patient axis that each column of ``directions`` is nearest to, each taken once."""
    left, nearest = np.abs(directions), [0, 0, 0]
    for _ in range(3):
        axis, column = np.unravel_index(np.argmax(left), left.shape)
        nearest[column] = int(axis)
        left = left.copy()
        left[axis, :] = left[:, column] = -1
    return nearest


def _flipped(affine: np.ndarray, axis: int, size: int) -> np.ndarray:
    flip = np.eye(4)
    flip[axis, axis], flip[axis, 3] = -1, size - 1
    return affine @ flip


@dataclass(frozen=True, eq=False)
class Quantised:
    """Values as 16-bit integers: ``value = slope * stored + intercept``, within half a ``slope``.

    CT records the two as its rescale, in Hounsfield units. The other classes have no rescale that readers agree on: whole numbers that
    fit are stored as they are, and everything else is spread over 16 bits with a real-world value mapping (PS3.3 C.7.6.16.2.11).
    """

    stored: np.ndarray  # (slice, row, column), uint16 or int16
    slope: float
    intercept: float

    @classmethod
    def of(cls, values: np.ndarray, integer: bool, *, signed: bool) -> "Quantised":
        low, high = float(values.min()), float(values.max())
        if integer:
            low, high = round(low), round(high)
            if low >= 0 and high <= 0xFFFF:
                return cls(np.rint(values).astype(np.uint16), 1.0, 0.0)
            if signed and low >= -0x8000 and high <= 0x7FFF:
                return cls(np.rint(values).astype(np.int16), 1.0, 0.0)
        slope = 1.0 if (integer and high - low <= 0xFFFF) or high == low else (high - low) / 0xFFFF
        # What a reader multiplies with is the 16 characters of a DS, so the integers are chosen for those, not for the number behind them.
        slope, intercept = float(_ds(slope)), float(_ds(low))
        stored = np.rint((values.astype(np.float64) - intercept) / slope).clip(0, 0xFFFF)
        return cls(stored.astype(np.uint16), slope, intercept)

    @property
    def is_plain(self) -> bool:
        """Stored values are the values."""
        return self.slope == 1 and self.intercept == 0


def _ds(value: float) -> str:
    """A decimal string of at most 16 characters (PS3.5 6.2)."""
    return format_number_as_ds(float(value) + 0.0)  # + 0.0: no minus before a zero


def _decimals(values: np.ndarray) -> list[str]:
    return [_ds(value) for value in values]


def _shared(case: Case, modality: str, made_by: Provenance, body_part: str) -> Dataset:
    """Patient, study, series, equipment, and what says in every object that it is synthetic."""
    image = Dataset()
    image.SpecificCharacterSet = "ISO_IR 192"
    image.SyntheticData = "YES"
    image.InstanceCreatorUID = IMPLEMENTATION

    image.PatientName, image.PatientID, image.IssuerOfPatientID = f"SYNTHETIC^{case.id}", case.id, "MEDSYNTH"
    image.PatientSex, image.PatientAge, image.PatientBirthDate = demographics(case.condition)
    if not image.PatientAge:
        del image.PatientAge
    image.PatientIdentityRemoved = "YES"
    image.DeidentificationMethod = ["Fully synthetic image, no patient behind it", f"medsynth {made_by.version}"]

    image.StudyInstanceUID = uid_for(made_by, case, "study")
    image.StudyID, image.AccessionNumber, image.ReferringPhysicianName = "1", "", ""
    image.StudyDate = image.SeriesDate = image.ContentDate = STUDY_DATE
    image.StudyTime = image.SeriesTime = image.ContentTime = STUDY_TIME
    image.StudyDescription, image.SeriesDescription = "SYNTHETIC", SERIES_DESCRIPTION
    image.Modality, image.SeriesNumber, image.AcquisitionNumber = modality, 1, 1
    image.BodyPartExamined = body_part

    image.Manufacturer, image.ManufacturerModelName, image.SoftwareVersions = "medsynth", "medsynth diffusion model", made_by.version
    image.ContributingEquipmentSequence = Sequence([equipment(case, made_by)])
    image.DerivationDescription = derivation(case, made_by)
    image.BurnedInAnnotation, image.LossyImageCompression = "NO", "00"
    if case.condition:
        image.ImageComments = "Requested: " + ", ".join(f"{name}={value}" for name, value in sorted(case.condition.items()))
    return image


def demographics(condition: Mapping[str, Value]) -> tuple[str, str, str]:
    """Sex, age and birth date as requested by ``condition``'s "sex" (M, F, male, female) and "age" (years); empty where it asks for
    none."""
    sex = {"m": "M", "male": "M", "f": "F", "female": "F", "o": "O", "other": "O"}.get(str(condition.get("sex", "")).lower(), "")
    try:
        years = float(condition["age"])
    except (KeyError, ValueError):  # none, or an age group such as "60-69"
        return sex, "", ""
    if years >= 2:
        return sex, f"{int(years):03d}Y", f"{STUDY_YEAR - int(years)}0101"
    months = max(int(years * 12), 0)
    year, month = divmod(STUDY_YEAR * 12 - months, 12)
    return sex, f"{months:03d}M", f"{year}{month + 1:02d}01"


def _pixels(image: Dataset, stored: np.ndarray) -> None:
    _, image.Rows, image.Columns = stored.shape
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelRepresentation = int(stored.dtype == np.int16)
    image.PixelData = np.ascontiguousarray(stored).astype(stored.dtype.newbyteorder("<")).tobytes()


def _window(image: Dataset, values: np.ndarray) -> None:
    """Without a window, viewers choose one a slice, and the brightness jumps."""
    low, high = np.percentile(values, (0.5, 99.5))
    image.WindowCenter, image.WindowWidth = _ds(round((low + high) / 2, 3)), _ds(max(round(high - low, 3), 1))


def _reference(image: Dataset) -> None:
    """Frame of Reference (PS3.3 C.7.4.1) of somebody who was on no table."""
    image.PatientPosition, image.PositionReferenceIndicator = "HFS", ""


def _measures(image: Dataset, placed: Placed) -> None:
    across, down, between = placed.spacing
    image.PixelSpacing, image.SliceThickness = [_ds(down), _ds(across)], _ds(between)  # between rows first


def _orientation(image: Dataset, placed: Placed) -> None:
    image.ImageOrientationPatient = _decimals((placed.affine[:3, :2] / placed.spacing[:2]).T.ravel())


def _plane(image: Dataset, placed: Placed, k: int) -> None:
    """Image Plane (PS3.3 C.7.6.2)."""
    _reference(image)
    _measures(image, placed)
    _orientation(image, placed)
    image.ImagePositionPatient = _decimals(placed.position(k))
    image.SliceLocation = _ds(placed.affine[:3, 2] / placed.spacing[2] @ placed.position(k))


def _real_world_values(image: Dataset, quantised: Quantised) -> None:
    if quantised.is_plain:
        return
    item = Dataset()
    item.RealWorldValueIntercept, item.RealWorldValueSlope = quantised.intercept, quantised.slope
    item.add_new("RealWorldValueFirstValueMapped", "US", 0)
    item.add_new("RealWorldValueLastValueMapped", "US", 0xFFFF)
    item.LUTExplanation, item.LUTLabel = "Stored units of the source", "SOURCE"
    item.MeasurementUnitsCodeSequence = Sequence([code("1", "UCUM", "no units")])
    image.RealWorldValueMappingSequence = Sequence([item])


def _ct(image: Dataset, placed: Placed, quantised: Quantised, frames: range) -> None:
    image.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    image.KVP = None
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = _ds(quantised.intercept), _ds(quantised.slope), "HU"
    _plane(image, placed, frames.start)
    _window(image, quantised.stored * quantised.slope + quantised.intercept)


def _mr(image: Dataset, placed: Placed, quantised: Quantised, frames: range) -> None:
    image.ImageType = ["DERIVED", "PRIMARY", "OTHER"]
    image.ScanningSequence, image.SequenceVariant, image.ScanOptions = "RM", "NONE", ""  # RM: research mode; no sequence was played
    image.MRAcquisitionType = "3D" if len(quantised.stored) > 1 else "2D"
    image.RepetitionTime = image.EchoTime = image.EchoTrainLength = None
    _plane(image, placed, frames.start)
    image.SpacingBetweenSlices = image.SliceThickness
    _real_world_values(image, quantised)
    _window(image, quantised.stored)


def _region(body_part: str) -> Sequence:
    value, meaning = BODY_PARTS[body_part]
    return Sequence([code(value, "SCT", meaning)])


def _projection(image: Dataset, placed: Placed, quantised: Quantised) -> None:
    image.ImagerPixelSpacing = [_ds(placed.spacing[1]), _ds(placed.spacing[0])]
    image.PatientOrientation = ["L", "F"]
    _real_world_values(image, quantised)
    _window(image, quantised.stored)


def _cr(image: Dataset, placed: Placed, quantised: Quantised, frames: range) -> None:
    image.ImageType = ["DERIVED", "PRIMARY"]
    image.ViewPosition = ""
    _projection(image, placed, quantised)


def _dx(image: Dataset, placed: Placed, quantised: Quantised, frames: range) -> None:
    image.ImageType = ["DERIVED", "PRIMARY", ""]
    image.PresentationIntentType, image.ImageLaterality = "FOR PRESENTATION", "U"
    image.AnatomicRegionSequence = _region(image.BodyPartExamined)
    image.PixelIntensityRelationship, image.PixelIntensityRelationshipSign = "LOG", -1
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType, image.PresentationLUTShape = "0", "1", "US", "IDENTITY"
    image.DetectorType, image.PositionerType = "DIRECT", "NONE"
    image.AcquisitionContextSequence = Sequence([])
    _projection(image, placed, quantised)


def _secondary_capture(image: Dataset, placed: Placed, quantised: Quantised, frames: range) -> None:
    image.ImageType = ["DERIVED", "PRIMARY"]
    image.Modality, image.ConversionType = "OT", "SYN"
    image.PatientOrientation = ""
    _plane(image, placed, frames.start)
    _real_world_values(image, quantised)
    _window(image, quantised.stored)


def _enhanced_ct(image: Dataset, placed: Placed, quantised: Quantised, frames: range) -> None:
    _multi_frame(image, placed, quantised, frames, "CTImageFrameTypeSequence", units="HU")


def _enhanced_mr(image: Dataset, placed: Placed, quantised: Quantised, frames: range) -> None:
    image.ComplexImageComponent, image.AcquisitionContrast = "MAGNITUDE", "UNKNOWN"
    image.ApplicableSafetyStandardAgency = "IEC"  # validators ask for one, though no scanner was there to be held to it
    _multi_frame(image, placed, quantised, frames, "MRImageFrameTypeSequence", units="US")


def _multi_frame(image: Dataset, placed: Placed, quantised: Quantised, frames: range, frame_type: str, *, units: str) -> None:
    """One stack of frames (PS3.3 C.7.6.16 and C.7.6.17): what they share once, and the place of each."""
    del image.DerivationDescription, image.AcquisitionNumber  # the enhanced classes have none: the equipment says how it was made
    _reference(image)
    image.NumberOfFrames, image.AcquisitionDateTime = len(frames), STUDY_DATE + STUDY_TIME
    image.ImageType = ["DERIVED", "PRIMARY", "VOLUME", "NONE"]
    image.PixelPresentation, image.VolumetricProperties, image.VolumeBasedCalculationTechnique = "MONOCHROME", "VOLUME", "NONE"
    image.ContentQualification, image.PresentationLUTShape, image.AcquisitionContextSequence = "RESEARCH", "IDENTITY", Sequence([])
    image.DeviceSerialNumber = image.ContributingEquipmentSequence[0].DeviceSerialNumber

    kind, measures, orientation, anatomy, values, window = (Dataset() for _ in range(6))
    kind.FrameType = image.ImageType
    for keyword in _FRAME_KIND:
        if keyword in image:
            kind[keyword] = image[keyword]
    _measures(measures, placed)
    measures.SpacingBetweenSlices = measures.SliceThickness
    _orientation(orientation, placed)
    anatomy.AnatomicRegionSequence, anatomy.FrameLaterality = _region(image.BodyPartExamined), "U"
    values.RescaleIntercept, values.RescaleSlope, values.RescaleType = _ds(quantised.intercept), _ds(quantised.slope), units
    _window(window, quantised.stored * quantised.slope + quantised.intercept)
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Sequence([measures]), Sequence([orientation])
    shared.FrameAnatomySequence, shared.PixelValueTransformationSequence = Sequence([anatomy]), Sequence([values])
    shared.FrameVOILUTSequence = Sequence([window])
    setattr(shared, frame_type, Sequence([kind]))
    image.SharedFunctionalGroupsSequence = Sequence([shared])
    image.PerFrameFunctionalGroupsSequence = Sequence([_frame(placed, k) for k in frames])


_FRAME_KIND = (
    "PixelPresentation",
    "VolumetricProperties",
    "VolumeBasedCalculationTechnique",
    "ComplexImageComponent",
    "AcquisitionContrast",
)


def _frame(placed: Placed, k: int) -> Dataset:
    content, position, groups = Dataset(), Dataset(), Dataset()
    content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", k + 1, [1, k + 1]
    content.FrameAcquisitionNumber = 1
    position.ImagePositionPatient = _decimals(placed.position(k))
    groups.FrameContentSequence, groups.PlanePositionSequence = Sequence([content]), Sequence([position])
    return groups


def _name_frames(image: Dataset, dimensions: UID, event: UID) -> None:
    """Frames are indexed by stack and by position in it. Of a CT, the class also asks for an event of irradiation: a name for none."""
    organization = Dataset()
    organization.DimensionOrganizationUID = dimensions
    image.DimensionOrganizationType, image.DimensionOrganizationSequence = "3D", Sequence([organization])
    image.DimensionIndexSequence = Sequence([])
    for keyword in ("StackID", "InStackPositionNumber"):
        index = Dataset()
        index.DimensionOrganizationUID = dimensions
        index.DimensionIndexPointer, index.FunctionalGroupPointer = Tag(keyword), Tag("FrameContentSequence")
        image.DimensionIndexSequence.append(index)
    if image.Modality == "CT":
        irradiation = Dataset()
        irradiation.IrradiationEventUID = event
        image.SharedFunctionalGroupsSequence[0].IrradiationEventIdentificationSequence = Sequence([irradiation])


_KINDS: Mapping[str, tuple[UID, Callable[[Dataset, Placed, Quantised, range], None]]] = {
    "CT": (CTImageStorage, _ct),
    "MR": (MRImageStorage, _mr),
    "CR": (ComputedRadiographyImageStorage, _cr),
    "DX": (DigitalXRayImageStorageForPresentation, _dx),
    "OT": (SecondaryCaptureImageStorage, _secondary_capture),
}
_ENHANCED = {"CT": (EnhancedCTImageStorage, _enhanced_ct), "MR": (EnhancedMRImageStorage, _enhanced_mr)}
