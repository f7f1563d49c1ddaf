"""What leaves as DICOM is valid by David Clunie's validators, says what it is, and comes back as it went out."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st

from medsynth.cohort import Cohort
from medsynth.errors import MedsynthError, SettingsError
from medsynth.export import dicom
from medsynth.export.dicom import BODY_PARTS, Placed, Quantised, demographics, write
from medsynth.io.dicom import read_series
from medsynth.rng import generator_for

AXIAL = np.array([[0.7, 0, 0, -11.5], [0, 0.9, 0, 20.25], [0, 0, 2.5, -3], [0, 0, 0, 1]])
SAGITTAL = np.array([[0, 0, 2.0, -30], [0.8, 0, 0, 12.5], [0, 0.6, 0, 4], [0, 0, 0, 1.0]])  # x runs to the front, y up, z to the right
CORONAL = np.array([[-0.8, 0, 0, 40], [0, 0, -3.0, 12.5], [0, 0.6, 0, 4], [0, 0, 0, 1.0]])


def oblique() -> np.ndarray:
    a, b = np.deg2rad(20), np.deg2rad(-35)
    turn = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn = turn @ np.array([[np.cos(b), -np.sin(b), 0], [np.sin(b), np.cos(b), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn @ np.diag([0.7, 0.9, 2.5]), [-31.123456, 7.654321, 100.5]
    return affine


FEETWARD = np.array([[0, 0.9, 0, -11.5], [0.7, 0, 0, 20.25], [0, 0, -2.5, 90], [0, 0, 0, 1.0]])  # columns before rows, head first
PLANES = {"axial": AXIAL, "sagittal": SAGITTAL, "coronal": CORONAL, "oblique": oblique(), "feetward": FEETWARD}


def validator(name: str) -> str:
    found = shutil.which(name, path=Path(sys.executable).parent)
    assert found, f"{name} of the package dicom3tools is not installed"
    return found


def complaints(files: list[Path]) -> list[str]:
    """Every error and warning of dciodvfy on each file and of dcentvfy on all of them together."""
    runs = [subprocess.run([validator("dciodvfy"), "-new", str(file)], capture_output=True, text=True) for file in files]
    runs.append(subprocess.run([validator("dcentvfy"), *map(str, files)], capture_output=True, text=True))
    lines = [line for run in runs for line in (run.stdout + run.stderr).splitlines()]
    return [line for line in lines if line.startswith(("Error", "Warning"))] + [f"exit {run.returncode}" for run in runs if run.returncode]


def ramp(shape: tuple[int, ...], low: int = -900, high: int = 1500) -> np.ndarray:
    """Whole numbers between low and high, different in every voxel's neighbourhood."""
    return np.rint(generator_for("ramp", *shape).uniform(low, high, shape))


KINDS = [
    ("CT", (8, 10, 3)),
    ("MR", (8, 10, 3)),
    ("CT", (8, 10)),
    ("MR", (8, 10)),
    ("DX", (8, 10)),
    ("CR", (8, 10)),
    ("OT", (8, 10)),
    ("OT", (8, 10, 3)),
]


WRITTEN = [(modality, shape, "single_frame") for modality, shape in KINDS] + [(*kind, "enhanced") for kind in KINDS[:4]]


@pytest.mark.parametrize(("modality", "shape", "form"), WRITTEN)
@pytest.mark.parametrize("integer", [True, False])
def test_the_validators_find_nothing_wrong(synthetic, made_by, tmp_path, modality, shape, form, integer) -> None:
    array = ramp(shape) if integer else ramp(shape) / 7
    cohort = synthetic(array, modality, integer=integer, condition={"sex": "female", "age": 61.4, "finding": "nodule"})
    files = write(cohort, cohort.cases[0], tmp_path / "out", made_by, body_part="CHEST", form=form)
    assert len(files) == (shape[2] if len(shape) == 3 and form == "single_frame" else 1)
    assert complaints(files) == []


@pytest.mark.parametrize("condition", [{}, {"sex": "M", "age": 0.5}, {"sex": "F", "age": 1.99}, {"sex": "?", "age": "60-69"}, {"age": 102}])
def test_the_validators_accept_every_kind_of_patient(synthetic, made_by, tmp_path, condition) -> None:
    cohort = synthetic(ramp((8, 10)), "MR", condition=condition)
    assert complaints(write(cohort, cohort.cases[0], tmp_path / "out", made_by)) == []


@pytest.mark.slow
@pytest.mark.parametrize("body_part", BODY_PARTS)
def test_the_validators_accept_every_body_part(synthetic, made_by, tmp_path, body_part) -> None:
    for modality, form in (("MR", "single_frame"), ("DX", "single_frame"), ("CT", "enhanced")):
        cohort = synthetic(ramp((8, 10)), modality)
        assert complaints(write(cohort, cohort.cases[0], tmp_path / modality, made_by, body_part=body_part, form=form)) == []


def read(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """A series as another library reads it: array (x, y, z) and RAS+ affine."""
    image = sitk.ReadImage([str(file) for file in files])
    affine = np.eye(4)
    affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) @ np.diag(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    return sitk.GetArrayFromImage(image).transpose(2, 1, 0), np.diag([-1, -1, 1, 1]) @ affine


@pytest.mark.parametrize(("modality", "shape", "form"), [row for row in WRITTEN if row[0] in ("DX", "CR") or len(row[1]) == 3])
def test_what_is_written_can_be_trained_on_again(synthetic, made_by, tmp_path, modality, shape, form) -> None:
    array = ramp(shape, 0)
    affine = oblique() if len(shape) == 3 else AXIAL  # where a radiograph lies is a convention of the reader
    cohort = synthetic(array, modality, affine=affine)
    found = read_series(write(cohort, cohort.cases[0], tmp_path / "out", made_by, form=form))
    voxels, place = onto(found.array[0], found.affine, affine)
    np.testing.assert_array_equal(voxels, array.reshape(voxels.shape))
    if len(shape) == 3:
        np.testing.assert_allclose(place, affine, atol=1e-4)


def onto(array: np.ndarray, affine: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same image with its axes in the order and direction of ``wanted``: no resampling."""
    to = nib.orientations.ornt_transform(nib.io_orientation(affine), nib.io_orientation(wanted))
    return nib.orientations.apply_orientation(array, to), affine @ nib.orientations.inv_ornt_aff(to, array.shape)


@pytest.mark.parametrize("plane", PLANES)
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_another_reader_gets_the_same_voxels_at_the_same_place(synthetic, made_by, tmp_path, plane, modality) -> None:
    array, affine = ramp((8, 10, 4)), PLANES[plane]
    cohort = synthetic(array, modality, affine=affine)
    files = write(cohort, cohort.cases[0], tmp_path / "out", made_by)
    found, place = onto(*read(files), affine)
    np.testing.assert_array_equal(found, array)
    corners = np.array([[i, j, k, 1] for i in (0, 8) for j in (0, 10) for k in (0, 4)])
    assert np.abs(corners @ (place - affine).T).max() < 1e-4


@pytest.mark.parametrize("plane", PLANES)
def test_slices_are_numbered_along_their_normal_and_shown_upright(synthetic, made_by, tmp_path, plane) -> None:
    cohort = synthetic(ramp((8, 10, 4)), "MR", affine=PLANES[plane])
    images = [pydicom.dcmread(file) for file in write(cohort, cohort.cases[0], tmp_path / "out", made_by)]
    row, column = np.array(images[0].ImageOrientationPatient, float).reshape(2, 3)
    along = [np.cross(row, column) @ np.array(image.ImagePositionPatient, float) for image in images]
    assert [image.InstanceNumber for image in images] == [1, 2, 3, 4]
    assert (np.diff(along) > 0).all()
    assert row[np.abs(row).argmax()] > 0  # to the left, or to the back
    down = np.abs(column).argmax()
    assert column[down] > 0 if down == 1 else column[down] < 0  # to the back, or to the feet


def test_the_affine_survives_any_turn_of_the_axes() -> None:
    array = ramp((3, 4, 5))
    for axes in np.array(np.meshgrid(*[[0, 1, 2]] * 3)).reshape(3, -1).T:
        if len(set(axes)) < 3:
            continue
        for signs in np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T:
            affine = np.eye(4)
            affine[:3, :3] = np.eye(3)[:, axes] * signs * [0.5, 0.75, 2.0]
            placed = Placed.of(affine, array.shape)
            slices = placed.turn(array)
            for index in ((0, 0, 0), (2, 3, 4), (1, 0, 3)):
                k, r, c = np.argwhere(slices == array[index])[0]
                world = np.diag([-1, -1, 1, 1]) @ placed.affine @ [c, r, k, 1]
                np.testing.assert_allclose(world, affine @ [*index, 1], atol=1e-9)


def test_a_sheared_grid_is_refused(synthetic, made_by, tmp_path) -> None:
    sheared = AXIAL.copy()
    sheared[1, 2] = 0.5
    with pytest.raises(MedsynthError, match="sheared"):
        Placed.of(sheared, (4, 4, 4))


@settings(deadline=None, max_examples=150)
@given(
    low=st.floats(-1e5, 1e5, allow_subnormal=False),
    span=st.floats(0, 1e6, allow_subnormal=False),
    integer=st.booleans(),
    signed=st.booleans(),
)
def test_stored_values_are_within_half_a_step(low, span, integer, signed) -> None:
    values = low + span * generator_for("values").uniform(0, 1, (2, 3, 4))
    values = np.rint(values) if integer else values
    stored = Quantised.of(values, integer, signed=signed)
    back = stored.stored.astype(np.float64) * stored.slope + stored.intercept
    assert np.abs(back - values).max() <= stored.slope / 2 * (1 + 1e-9) + 1e-9 * np.abs(values).max()
    assert len(dicom._ds(stored.slope)) <= 16
    assert float(dicom._ds(stored.slope)) == stored.slope
    assert stored.slope <= max(1.0, (values.max() - values.min()) / 65535 * (1 + 1e-9))


@pytest.mark.parametrize("modality", ["CT", "MR", "DX", "CR", "OT"])
def test_values_that_are_no_whole_numbers_are_found_by_what_the_header_says(synthetic, made_by, tmp_path, modality) -> None:
    array = ramp((8, 10), -700, 900) / 7 - 0.123
    cohort = synthetic(array, modality, integer=False)
    (file,) = write(cohort, cohort.cases[0], tmp_path / "out", made_by)
    image = pydicom.dcmread(file)
    if modality == "CT":
        slope, intercept = float(image.RescaleSlope), float(image.RescaleIntercept)
    else:
        (mapping,) = image.RealWorldValueMappingSequence
        slope, intercept = mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept
    found = image.pixel_array * slope + intercept
    turned = Placed.of(AXIAL, (8, 10, 1)).turn(array[..., None])[0]
    assert np.abs(found - turned).max() <= slope / 2 + 1e-4  # 1e-4: the cohort itself is float32
    assert slope < 0.01


def test_hounsfield_units_come_back_exactly(synthetic, made_by, tmp_path) -> None:
    array = ramp((8, 10, 2), -1024, 3071)
    cohort = synthetic(array, "CT")
    image = pydicom.dcmread(write(cohort, cohort.cases[0], tmp_path / "out", made_by)[0])
    assert (float(image.RescaleSlope), float(image.RescaleIntercept), image.RescaleType) == (1, 0, "HU")
    assert float(image.WindowWidth) > 1


def test_every_object_says_that_it_is_synthetic(synthetic, made_by, tmp_path) -> None:
    for modality, shape, form in WRITTEN:
        cohort = synthetic(ramp(shape), modality)
        for file in write(cohort, cohort.cases[0], tmp_path / f"{modality}{len(shape)}{form}", made_by, form=form):
            image = pydicom.dcmread(file)
            assert image.SyntheticData == "YES"
            assert image.ImageType[0] == "DERIVED"
            assert image.SeriesDescription == "SYNTHETIC - NOT FOR CLINICAL USE"
            assert image.PatientIdentityRemoved == "YES"
            assert image.DeidentificationMethod
            assert image.BurnedInAnnotation == "NO"
            assert image.IssuerOfPatientID == "MEDSYNTH"
            (equipment,) = image.ContributingEquipmentSequence
            (purpose,) = equipment.PurposeOfReferenceCodeSequence
            assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("109100", "DCM")
            assert equipment.SoftwareVersions == "1.2.3"
            assert made_by.weights in equipment.ContributionDescription
            assert form == "enhanced" or made_by.weights in image.DerivationDescription


def everything(cohort: Cohort, folder: Path, made_by: dicom.Provenance, form: str) -> list[bytes]:
    return [file.read_bytes() for file in write(cohort, cohort.cases[0], folder, made_by, form=form)]


def uids(cohort: Cohort, folder: Path, made_by: dicom.Provenance) -> set[str]:
    images = [pydicom.dcmread(file) for file in write(cohort, cohort.cases[0], folder, made_by)]
    names = ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "SOPInstanceUID")
    return {str(image[name].value) for image in images for name in names}


@pytest.mark.parametrize("form", dicom.FORMS)
def test_the_same_case_is_the_same_bytes_at_any_time(synthetic, made_by, tmp_path, monkeypatch, form) -> None:
    array = ramp((8, 10, 3))
    first = everything(synthetic(array, "MR"), tmp_path / "first", made_by, form)
    monkeypatch.setattr("time.time", lambda: 4e9)
    assert everything(synthetic(array, "MR"), tmp_path / "second", made_by, form) == first


def test_both_forms_of_a_case_are_series_of_one_study_that_an_archive_can_hold_together(synthetic, made_by, tmp_path) -> None:
    cohort = synthetic(ramp((8, 10, 3)), "CT")
    files = [file for form in dicom.FORMS for file in write(cohort, cohort.cases[0], tmp_path / form, made_by, form=form)]
    assert complaints(files) == []
    images = [pydicom.dcmread(file) for file in files]
    assert [len({image[name].value for image in images}) for name in ("StudyInstanceUID", "FrameOfReferenceUID")] == [1, 1]
    assert [len({image[name].value for image in images}) for name in ("SeriesInstanceUID", "SOPInstanceUID")] == [2, 4]


def test_another_seed_model_setting_or_id_gives_other_uids(synthetic, made_by, tmp_path) -> None:
    array = ramp((8, 10, 3))
    all_of = [
        uids(synthetic(array, "MR"), tmp_path / "a", made_by),
        uids(synthetic(array, "MR", seed=8), tmp_path / "b", made_by),
        uids(synthetic(array, "MR", id="syn-a1b3"), tmp_path / "c", made_by),
        uids(synthetic(array, "MR"), tmp_path / "d", replace(made_by, weights="a2" * 32)),
        uids(synthetic(array, "MR"), tmp_path / "e", replace(made_by, fingerprint="b3" * 32)),
    ]
    assert [len(some) for some in all_of] == [6] * 5  # study, series, frame of reference, three instances
    assert len(set.union(*all_of)) == 30
    for uid in set.union(*all_of):
        assert pydicom.uid.UID(uid).is_valid
        assert uid.startswith("2.25.")
        assert len(uid) <= 44


def test_ten_thousand_uids_differ_and_are_uuids(synthetic, made_by) -> None:
    case = synthetic(ramp((8, 10)), "MR").cases[0]
    made = {dicom.uid_for(made_by, case, "instance", k) for k in range(10_000)}
    assert len(made) == 10_000
    number = int(next(iter(made)).removeprefix("2.25."))
    assert (number >> 76) & 0xF == 8
    assert (number >> 62) & 0x3 == 0b10


def test_the_patient_is_the_one_that_was_asked_for() -> None:
    assert demographics({"sex": "female", "age": 45.9}) == ("F", "045Y", "18050101")
    assert demographics({"sex": "M", "age": 0.5}) == ("M", "006M", "18490701")
    assert demographics({"sex": "male", "age": 0.0}) == ("M", "000M", "18500101")
    assert demographics({"sex": "x", "age": "60-69"}) == ("", "", "")
    assert demographics({}) == ("", "", "")


def test_no_date_of_a_series_can_be_that_of_a_real_one(synthetic, made_by, tmp_path) -> None:
    cohort = synthetic(ramp((8, 10)), "DX", condition={"age": 33})
    (file,) = write(cohort, cohort.cases[0], tmp_path / "out", made_by)
    dates = [str(element.value) for element in pydicom.dcmread(file).iterall() if element.VR in ("DA", "DT")]
    assert len(dates) >= 5
    assert all(date < "1895" for date in dates)  # Röntgen


def test_what_cannot_be_written_is_refused_before_a_file_is(synthetic, made_by, tmp_path) -> None:
    volume = synthetic(ramp((8, 10, 3)), "DX")
    with pytest.raises(MedsynthError, match="one projection"):
        write(volume, volume.cases[0], tmp_path / "out", made_by)
    image = synthetic(ramp((8, 10)), "MR")
    with pytest.raises(SettingsError, match=r"release\.body_part='BREAST'"):
        write(image, image.cases[0], tmp_path / "out", made_by, body_part="BREAST")
    real = replace(image, header=replace(image.header, kind="real"))
    with pytest.raises(MedsynthError, match="synthetic"):
        write(real, real.cases[0], tmp_path / "out", made_by)
    assert not (tmp_path / "out").exists()
