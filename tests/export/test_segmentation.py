"""A mask leaves as a DICOM Segmentation that is valid, belongs to its images and comes back voxel by voxel."""

import subprocess
import sys
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from medsynth.export import dicom, segmentation
from medsynth.rng import generator_for
from tests.export.test_export_dicom import onto

AFFINE = np.array([[0, 0, 2.0, -30], [0.8, 0, 0, 12.5], [0, 0.6, 0, 4], [0, 0, 0, 1.0]])


def labels(shape: tuple[int, ...]) -> np.ndarray:
    """Blocks of the labels 1 and 3 that are alike under no flip."""
    mask = np.zeros(shape, np.uint8)
    mask[1:4, 2:7], mask[5:7, 1:3] = 1, 3
    if len(shape) == 3:
        mask[..., 0] = 0
    return mask


def written(
    synthetic, made_by, folder: Path, shape: tuple[int, ...], modality: str, mask: np.ndarray, form: str = "single_frame"
) -> tuple[list[Path], Path]:
    array = np.rint(generator_for("seg").uniform(0, 900, shape))
    cohort = synthetic(array, modality, affine=AFFINE, mask=mask, labels=(1, 3))
    images = dicom.write(cohort, cohort.cases[0], folder / "image", made_by, form=form)
    return images, segmentation.write(cohort, cohort.cases[0], images, folder / "segmentation.dcm", made_by)


def complaints(files: list[Path]) -> list[str]:
    tools = Path(sys.executable).parent
    runs = [subprocess.run([tools / "dciodvfy", "-new", file], capture_output=True, text=True) for file in files[-1:]]
    runs.append(subprocess.run([tools / "dcentvfy", *files], capture_output=True, text=True))
    lines = [line for run in runs for line in (run.stdout + run.stderr).splitlines()]
    return [line for line in lines if line.startswith(("Error", "Warning"))] + [f"exit {run.returncode}" for run in runs if run.returncode]


WRITTEN = [("CT", (8, 9, 4)), ("MR", (8, 9)), ("DX", (8, 9)), ("CR", (8, 9)), ("OT", (8, 9, 4))]


@pytest.mark.parametrize(
    ("modality", "shape", "form"), [(*kind, "single_frame") for kind in WRITTEN] + [(*kind, "enhanced") for kind in WRITTEN[:2]]
)
@pytest.mark.parametrize("empty", [False, True])
def test_the_validators_find_nothing_wrong(synthetic, made_by, tmp_path, modality, shape, form, empty) -> None:
    mask = np.zeros(shape, np.uint8) if empty else labels(shape)
    images, file = written(synthetic, made_by, tmp_path, shape, modality, mask, form)
    assert complaints([*images, file]) == []


def test_the_mask_comes_back_in_the_images_own_grid(synthetic, made_by, tmp_path) -> None:
    mask = labels((8, 9, 4))
    images, file = written(synthetic, made_by, tmp_path, mask.shape, "MR", mask)
    volume = highdicom.get_volume_from_series([pydicom.dcmread(image) for image in images])
    found = highdicom.seg.segread(file).get_volume(combine_segments=True, skip_overlap_checks=True).match_geometry(volume)
    wanted = dicom.Placed.of(AFFINE, mask.shape).turn(mask)
    # highdicom has an order of slices of its own: the images say which is which
    stored = [pydicom.dcmread(image).pixel_array for image in images]
    wanted = wanted[[next(k for k, image in enumerate(stored) if np.array_equal(image, of_volume)) for of_volume in volume.array]]
    # segment 2 is label 3
    np.testing.assert_array_equal(found.array, np.select([wanted == 1, wanted == 3], [1, 2], 0))


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_the_mask_comes_back_in_the_grid_of_an_enhanced_image(synthetic, made_by, tmp_path, modality) -> None:
    mask = labels((8, 9, 4))
    (image,), file = written(synthetic, made_by, tmp_path, mask.shape, modality, mask, "enhanced")
    volume = highdicom.imread(image).get_volume()
    found = highdicom.seg.segread(file).get_volume(combine_segments=True, skip_overlap_checks=True).match_geometry(volume)
    affine = np.diag([-1, -1, 1, 1]) @ volume.affine
    # segment 2 is label 3
    np.testing.assert_array_equal(onto(found.array, affine, AFFINE)[0], np.select([mask == 1, mask == 3], [1, 2], 0))
    (referred,) = pydicom.dcmread(file).ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert referred.ReferencedSOPInstanceUID == pydicom.dcmread(image).SOPInstanceUID


def test_it_refers_to_its_images_and_says_that_it_is_synthetic(synthetic, made_by, tmp_path) -> None:
    images, file = written(synthetic, made_by, tmp_path, (8, 9, 4), "CT", labels((8, 9, 4)))
    found, source = pydicom.dcmread(file), [pydicom.dcmread(image) for image in images]
    referred = {item.ReferencedSOPInstanceUID for item in found.ReferencedSeriesSequence[0].ReferencedInstanceSequence}
    assert referred <= {image.SOPInstanceUID for image in source}
    assert found.ReferencedSeriesSequence[0].SeriesInstanceUID == source[0].SeriesInstanceUID
    assert found.SyntheticData == "YES"
    assert found.SegmentationType == "BINARY"
    assert (found.StudyInstanceUID, found.FrameOfReferenceUID) == (source[0].StudyInstanceUID, source[0].FrameOfReferenceUID)
    assert [item.PurposeOfReferenceCodeSequence[0].CodeValue for item in found.ContributingEquipmentSequence] == ["109100"]
    assert [segment.SegmentLabel for segment in found.SegmentSequence] == ["label 1", "label 3"]


def test_the_same_mask_is_the_same_bytes(synthetic, made_by, tmp_path) -> None:
    mask = labels((8, 9, 4))
    _, first = written(synthetic, made_by, tmp_path / "first", mask.shape, "MR", mask)
    _, second = written(synthetic, made_by, tmp_path / "second", mask.shape, "MR", mask)
    assert first.read_bytes() == second.read_bytes()
    moments = {str(element.value) for element in pydicom.dcmread(first).iterall() if element.VR in ("DA", "TM", "DT") and element.value}
    assert moments == {"18500101", "1200", "185001011200"}
