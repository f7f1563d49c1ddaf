"""A synthetic case's label map as a DICOM Segmentation that refers to its images, one binary segment a label.

highdicom builds the object; what it takes from the clock or draws at random is then replaced, so that the same case is the same bytes.
BINARY and not LABELMAP, which archives of 2022 refuse to store.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from medsynth.cohort import Case, Cohort
from medsynth.errors import MedsynthError
from medsynth.export.dicom import SERIES_DESCRIPTION, STUDY_DATE, STUDY_TIME, Placed, Provenance, equipment, file_meta, uid_for


def write(cohort: Cohort, case: Case, images: Sequence[Path], path: Path, made_by: Provenance) -> Path:
    """Write ``case``'s mask as ``path``. ``images`` are the files that `medsynth.export.dicom.write` returned for it.
    Raises MedsynthError where there is nothing to segment.
    """
    import highdicom  # a second: only where there are masks
    import highdicom.seg
    import highdicom.sr

    mask = cohort.mask(case)
    assert mask is not None, f"{case.id} has no mask"
    mask = mask[..., None] if mask.ndim == 2 else mask
    labels = list(cohort.header.labels) or [int(label) for label in np.unique(mask) if label]
    if not labels:
        raise MedsynthError(f"{case.id}: its mask is empty and the cohort names no labels, so there is nothing to segment.")
    frames = Placed.of(np.array(cohort.header.affine), mask.shape).turn(mask)
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=f"label {label}",
            # the cohort knows numbers, not anatomy: the broadest codes that are true of any mask
            segmented_property_category=highdicom.sr.CodedConcept("91723000", "SCT", "Anatomical Structure"),
            segmented_property_type=highdicom.sr.CodedConcept("85756007", "SCT", "Tissue"),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=highdicom.AlgorithmIdentificationSequence(
                name="medsynth diffusion model",
                family=highdicom.sr.CodedConcept("123109", "DCM", "Artificial Intelligence"),
                version=made_by.version,
            ),
        )
        for number, label in enumerate(labels, start=1)
    ]
    sources = [pydicom.dcmread(image) for image in images]
    segmentation = highdicom.seg.Segmentation(
        source_images=sources,
        pixel_array=np.stack([frames == label for label in labels], axis=-1).astype(np.uint8),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=uid_for(made_by, case, "segmentation series"),
        series_number=2,
        sop_instance_uid=uid_for(made_by, case, "segmentation"),
        instance_number=1,
        manufacturer="medsynth",
        manufacturer_model_name="medsynth diffusion model",
        software_versions=made_by.version,
        device_serial_number=made_by.weights[:16] or "unknown",
        content_label="SYNTHETIC",
        content_description=SERIES_DESCRIPTION,
        series_description=SERIES_DESCRIPTION,
        omit_empty_frames=bool(frames.any()),  # an empty mask keeps its frames: a segmentation without any is none
    )
    if "PatientOrientation" in sources[0]:  # a radiograph has no place in space, and says with this how it is turned
        segmentation.PatientOrientation = sources[0].PatientOrientation
    segmentation.SyntheticData = "YES"  # of what is derived from synthetic images too (PS3.3 C.12.1)
    segmentation.ContributingEquipmentSequence = [equipment(case, made_by)]
    _repeatable(segmentation, uid_for(made_by, case, "segmentation dimensions"))
    segmentation.file_meta = file_meta(segmentation.SOPClassUID, segmentation.SOPInstanceUID)
    segmentation.save_as(path, enforce_file_format=True)
    return path


def _repeatable(dataset: Dataset, dimensions: pydicom.uid.UID) -> None:
    """Put the convention's date in the clock's place, and one derived UID in that of the random one that names the frames' dimensions."""
    for element in dataset.iterall():
        if element.keyword == "DimensionOrganizationUID":
            element.value = dimensions
        elif element.VR == "DA" and element.value and element.keyword != "PatientBirthDate":
            element.value = STUDY_DATE
        elif element.VR == "TM" and element.value:
            element.value = STUDY_TIME
        elif element.VR == "DT" and element.value:
            element.value = STUDY_DATE + STUDY_TIME
