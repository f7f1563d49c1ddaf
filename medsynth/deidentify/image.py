"""One DICOM image file, from bytes to bytes: data set, pixels, text in them, faces, and what is said about it afterwards."""

import os
import re
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pydicom.uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian

from medsynth.deidentify import burned_in, pixels
from medsynth.deidentify.dataset import Rebuilder, set_method_codes
from medsynth.deidentify.faces import is_head
from medsynth.deidentify.profile import Options
from medsynth.errors import UnreadableImage
from medsynth.io import dicom

WRITER = "2.25.147888207105306213471529404921117713238"  # Implementation Class UID: a fixed UUID
CLEAN_PIXELS = ("113101", "Clean Pixel Data Option")

IMAGES = frozenset(
    str(getattr(pydicom.uid, name))
    for name in (
        *("ComputedRadiographyImageStorage", "DigitalXRayImageStorageForPresentation", "DigitalXRayImageStorageForProcessing"),
        *("DigitalMammographyXRayImageStorageForPresentation", "DigitalMammographyXRayImageStorageForProcessing"),
        *("DigitalIntraOralXRayImageStorageForPresentation", "DigitalIntraOralXRayImageStorageForProcessing"),
        *("CTImageStorage", "EnhancedCTImageStorage", "LegacyConvertedEnhancedCTImageStorage"),
        *("MRImageStorage", "EnhancedMRImageStorage", "EnhancedMRColorImageStorage", "LegacyConvertedEnhancedMRImageStorage"),
        *("PositronEmissionTomographyImageStorage", "EnhancedPETImageStorage", "LegacyConvertedEnhancedPETImageStorage"),
        *("NuclearMedicineImageStorage", "UltrasoundImageStorage", "UltrasoundMultiFrameImageStorage", "EnhancedUSVolumeStorage"),
        *("SecondaryCaptureImageStorage", "MultiFrameSingleBitSecondaryCaptureImageStorage"),
        *("MultiFrameGrayscaleByteSecondaryCaptureImageStorage", "MultiFrameGrayscaleWordSecondaryCaptureImageStorage"),
        *("MultiFrameTrueColorSecondaryCaptureImageStorage", "XRayAngiographicImageStorage", "XRayRadiofluoroscopicImageStorage"),
        *("EnhancedXAImageStorage", "EnhancedXRFImageStorage", "XRay3DAngiographicImageStorage", "XRay3DCraniofacialImageStorage"),
        *("BreastTomosynthesisImageStorage", "SegmentationStorage", "ParametricMapStorage"),
    )
)


@dataclass(frozen=True, kw_only=True)
class Cleaner:
    """What is done to each image. ``burned_in`` and ``faces`` say what becomes of images that show text or a head."""

    key: bytes
    options: Options = field(default_factory=Options)
    burned_in: Literal["reject", "mask", "keep"] = "reject"
    faces: Literal["reject", "keep"] = "reject"

    def __call__(self, data: Dataset) -> Dataset:
        """The image that may leave, with its file meta information. Raises UnreadableImage: codes of `medsynth.io.dicom.REASONS`, and
        ``missing-subject``, ``not-supported``, ``burned-in-text``, ``face``."""
        sop_class = str(data.get("SOPClassUID", ""))
        if sop_class not in IMAGES:
            raise UnreadableImage("not-supported", "It is no radiology image, but a report, plan, document or photograph.")
        head = is_head(data)
        if head and self.faces == "reject":
            raise UnreadableImage("face", "It shows a head, whose face can be recognised. Set faces=keep to take it with its face.")
        found = pixels.read(data)
        found, searched = self._without_text(data, found)
        graphics = searched_overlay if burned_in.is_installed() else lambda *_: False
        built = Rebuilder(key=self.key, options=self.options, overlay_is_clean=graphics)(data)
        pixels.write(built, found)
        if searched:
            built.BurnedInAnnotation = "NO"
            set_method_codes(built, (*self.options.codes, CLEAN_PIXELS))
        elif str(data.get("BurnedInAnnotation", "")) in ("YES", "NO"):
            built.BurnedInAnnotation = data.BurnedInAnnotation
        if head is not None:
            built.RecognizableVisualFeatures = "YES" if head else "NO"
        built.file_meta = _file_meta(sop_class, str(built.SOPInstanceUID))
        return built

    def _without_text(self, data: Dataset, found: pixels.Pixels) -> tuple[pixels.Pixels, bool]:
        """Pixels without text, and whether it was searched for. Raises UnreadableImage (``burned-in-text``)."""
        if self.burned_in == "keep":
            return found, False
        suspicion = burned_in.suspicion(data)
        can_search = burned_in.is_installed() and found.array.dtype.kind != "b"
        told_clean = str(data.get("BurnedInAnnotation", "")) == "NO" and can_search
        if suspicion and self.burned_in == "reject" and (suspicion.certain or not told_clean):
            raise UnreadableImage("burned-in-text", f"It may show text: {suspicion.why}. Set burned_in=mask to mask what is found.")
        if not can_search:
            return found, False
        if self.burned_in == "mask":
            inside = burned_in.masked(found.array, burned_in.outside_regions(data))
            clean = burned_in.cleaned(inside)
            if suspicion and suspicion.certain and np.array_equal(clean, found.array):
                raise UnreadableImage("burned-in-text", f"It shows text that was not found to be masked: {suspicion.why}. Leave it out.")
            return replace(found, array=clean), True
        boxes = burned_in.find_in_frames(found.array)
        if boxes:
            raise UnreadableImage("burned-in-text", f"Text is seen in its pixels, in {len(boxes)} places. Set burned_in=mask to mask it.")
        return found, True


def searched_overlay(packed: bytes, rows: int, columns: int) -> bool:
    """Whether a packed overlay plane shows no text, and is none."""
    if re.search(rb"[0-9A-Za-z^ ]{6}", packed):
        return False
    bits = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")[: rows * columns]
    return not burned_in.find(bits.reshape(rows, columns) * np.uint8(255))


def _file_meta(sop_class: str, instance: str) -> FileMetaDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = sop_class, instance
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID, meta.ImplementationVersionName = WRITER, "MEDSYNTH"
    return meta


def read(path: Path | str) -> Dataset:
    """The whole data set of a file. Raises UnreadableImage (``unreadable``, ``empty-file``)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if Path(path).stat().st_size == 0:
                raise dicom.refuse("empty-file")
            data, stream, _ = dicom.open_dataset(path)
            stream.close()
            return data
        except UnreadableImage:
            raise
        except Exception as error:  # pydicom raises whatever the bytes lead it to, and quotes them
            raise dicom.refuse("unreadable", type(error).__name__) from None


def write(data: Dataset, path: Path) -> None:
    """Write a cleaned image; it arrives whole. Raises UnreadableImage (``duplicate-instance``) where another is there already."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        dcmwrite(partial, data, enforce_file_format=True)
        os.link(partial, path)
    except FileExistsError:
        if partial.read_bytes() != path.read_bytes():
            raise dicom.refuse("duplicate-instance") from None
    finally:
        partial.unlink(missing_ok=True)
