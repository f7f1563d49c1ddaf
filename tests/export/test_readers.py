"""Four readers that others wrote get back the voxels and the place of the NIfTI that the same case leaves as."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import highdicom
import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from medsynth.cohort import Cohort
from medsynth.export.dicom import Provenance, write
from tests.export.test_export_dicom import PLANES, onto, ramp

Image = tuple[np.ndarray, np.ndarray]  # (x, y, z), RAS+ affine
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
CORNERS = np.array([[i, j, k, 1] for i in (0, 8) for j in (0, 10) for k in (0, 4)])


def with_pydicom(files: Sequence[Path]) -> Image:
    """What PS3.3 C.7.6.2.1.1 says, by hand."""
    images = [pydicom.dcmread(file) for file in files]
    if "NumberOfFrames" in images[0]:
        (image,) = images
        shared = image.SharedFunctionalGroupsSequence[0]
        frames = image.pixel_array.reshape(-1, image.Rows, image.Columns)
        positions = [frame.PlanePositionSequence[0].ImagePositionPatient for frame in image.PerFrameFunctionalGroupsSequence]
        measures, orientation = shared.PixelMeasuresSequence[0], shared.PlaneOrientationSequence[0].ImageOrientationPatient
        rescale = shared.PixelValueTransformationSequence[0]
        values = frames * float(rescale.RescaleSlope) + float(rescale.RescaleIntercept)
    else:
        measures, orientation = images[0], images[0].ImageOrientationPatient
        positions = [image.ImagePositionPatient for image in images]
        values = np.stack([_single(image) for image in images])
    row, column = np.array(orientation, float).reshape(2, 3)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * float(measures.PixelSpacing[1]), column * float(measures.PixelSpacing[0])
    affine[:3, 2] = np.array(positions[1], float) - np.array(positions[0], float)
    affine[:3, 3] = np.array(positions[0], float)
    return values.transpose(2, 1, 0), LPS @ affine


def _single(image: pydicom.Dataset) -> np.ndarray:
    rescale = image
    if "RealWorldValueMappingSequence" in image:
        rescale = image.RealWorldValueMappingSequence[0]
        return image.pixel_array * rescale.RealWorldValueSlope + rescale.RealWorldValueIntercept
    return image.pixel_array * float(rescale.get("RescaleSlope", 1)) + float(rescale.get("RescaleIntercept", 0))


def with_simpleitk(files: Sequence[Path]) -> Image:
    image = sitk.ReadImage(str(files[0]) if len(files) == 1 else [str(file) for file in files])
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), LPS @ affine


def with_dcm2niix(files: Sequence[Path]) -> Image:
    folder = files[0].parent
    tool = Path(sys.executable).parent / "dcm2niix"
    subprocess.run([tool, "-z", "n", "-b", "n", "-f", "read", "-o", folder.parent, folder], check=True, capture_output=True)
    (path,) = folder.parent.glob("read*.nii")
    image = nib.load(path)
    return image.get_fdata(), image.affine


def with_highdicom(files: Sequence[Path]) -> Image:
    images = [highdicom.imread(file) for file in files]
    volume = images[0].get_volume() if len(images) == 1 else highdicom.get_volume_from_series(images)
    return volume.array, LPS @ volume.affine


READERS = [with_pydicom, with_simpleitk, with_dcm2niix, with_highdicom]
FORMS = [(modality, form) for modality in ("CT", "MR") for form in ("single_frame", "enhanced")]
# The single-frame MR class has no rescale, so that a real-world value mapping says what other numbers mean, and these two do not read it.
UNMAPPED = {(reader, "MR", "single_frame") for reader in (with_simpleitk, with_dcm2niix)}


def read(reader: Callable[[Sequence[Path]], Image], cohort: Cohort, folder: Path, made_by: Provenance, form: str) -> np.ndarray:
    """The voxels in the cohort's own order of axes, after their place was compared with the NIfTI's."""
    case, affine = cohort.cases[0], nib.load(cohort.folder / cohort.cases[0].path).affine
    found, place = onto(*reader(write(cohort, case, folder / "image", made_by, form=form)), affine)
    assert np.abs(CORNERS @ (place - affine).T).max() < 1e-4  # mm
    return found


@pytest.mark.parametrize(("modality", "form"), FORMS)
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@pytest.mark.parametrize("plane", PLANES)
def test_other_readers_get_the_same_voxels_at_the_same_place(synthetic, made_by, tmp_path, plane, reader, modality, form) -> None:
    cohort = synthetic(ramp((8, 10, 4)), modality, affine=PLANES[plane])
    np.testing.assert_array_equal(read(reader, cohort, tmp_path, made_by, form), ramp((8, 10, 4)))


@pytest.mark.parametrize(("reader", "modality", "form"), sorted({(r, *f) for r in READERS for f in FORMS} - UNMAPPED, key=str))
def test_other_readers_get_values_within_half_a_step(synthetic, made_by, tmp_path, reader, modality, form) -> None:
    array = (ramp((8, 10, 4)) / 7 + 0.123).astype(np.float32)
    cohort = synthetic(array, modality, affine=PLANES["oblique"], integer=False)
    step = float(array.max() - array.min()) / 65535
    assert np.abs(read(reader, cohort, tmp_path, made_by, form) - array).max() <= step / 2 + 1e-4  # 1e-4: these readers use float32
