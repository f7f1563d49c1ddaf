"""The phantom hospital: its truth can be read from its pictures, its people stand everywhere and pass on nowhere, its mess is found."""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pydicom
import pytest

from medsynth.data.sources.phantom import Phantom, person, planted_identifiers, truth
from medsynth.data.sources.phantom_anatomy import (
    BODY_WIDTH,
    DIAGNOSES,
    FIELD_OF_VIEW,
    KIDNEY_PER_YEAR,
    ORGAN_CONTRAST,
    image_of,
    lesion_rate,
    measure,
)
from medsynth.data.transforms import placed, to_grid
from medsynth.errors import MedsynthError, SettingsError

PATIENTS = 8


@pytest.fixture(scope="module")
def hospital(tmp_path_factory) -> Phantom:
    return Phantom(str(tmp_path_factory.mktemp("hospital") / "archive"), patients=PATIENTS, size=32, slices=6)


@pytest.fixture(scope="module")
def scan(hospital):
    return hospital.scan(workers=1)


def digest(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def population():
    """200 patients of seed 5, and what `measure` reads from one slice each, by modality."""
    anatomies = [truth(5, patient) for patient in range(200)]
    grid = {"size": 48, "slices": 4, "thickness": 20.0}
    seen = {
        modality: [
            measure(image_of(a, modality, **grid, seed=k)[:, :, k % 4], (FIELD_OF_VIEW / 48,) * 2, modality)
            for k, a in enumerate(anatomies)
        ]
        for modality in ("CT", "MR")
    }
    return anatomies, seen


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_each_truth_can_be_read_from_a_picture(population, modality):
    anatomies, seen = population
    for name, bias, correlation in (("width", 4.0, 0.98), ("depth", 4.0, 0.98), ("kidney", 2.0, 0.85)):
        true, read = (np.array([getattr(one, name) for one in many]) for many in (anatomies, seen[modality]))
        assert abs(np.mean(read - true)) < bias, name
        assert np.corrcoef(true, read)[0, 1] > correlation, name
    contrast = np.array([a.contrast[modality] for a in anatomies])
    read = np.array([m.contrast for m in seen[modality]])
    assert np.mean(read) == pytest.approx(np.mean(contrast), abs=0.03 * ORGAN_CONTRAST[modality][0])
    assert np.corrcoef(contrast, read)[0, 1] > 0.7
    lesions, found = np.array([a.lesion > 0 for a in anatomies]), np.array([m.lesion for m in seen[modality]])
    assert np.mean(lesions != found) <= 0.02


def test_the_population_has_the_stated_distributions():
    people = [truth(1, patient) for patient in range(3000)]
    error = 4 / np.sqrt(3000)
    for sex, (mean, deviation) in BODY_WIDTH.items():
        widths = [a.width for a in people if a.sex == sex]
        assert np.mean(widths) == pytest.approx(mean, abs=deviation * error * 1.5)
        assert np.abs(np.array(widths) - mean).max() <= 2 * deviation + 1e-9
    assert np.mean([a.lesion > 0 for a in people]) == pytest.approx(lesion_rate(), abs=error / 2)
    for diagnosis, (prevalence, rate) in DIAGNOSES.items():
        assert np.mean([a.diagnosis == diagnosis for a in people]) == pytest.approx(prevalence, abs=error / 2)
        assert np.mean([a.lesion > 0 for a in people if a.diagnosis == diagnosis]) == pytest.approx(rate, abs=0.08)
    slope = np.polyfit([a.age for a in people], [a.kidney for a in people], 1)[0]
    assert slope == pytest.approx(KIDNEY_PER_YEAR, abs=0.01)


def test_a_narrow_window_does_not_change_what_is_measured():
    for patient in range(20):
        image = image_of(truth(0, patient), "CT", size=64, slices=4, thickness=8.0, seed=patient)[:, :, 1]
        pixel = (FIELD_OF_VIEW / 64,) * 2
        assert measure(np.clip(image, -200, 200), pixel, "CT") == measure(image, pixel, "CT")


def test_a_picture_without_a_body_measures_nothing():
    noise = np.random.default_rng(0).normal(size=(32, 32))
    assert measure(noise - 1000, (9.0, 9.0), "CT") is None
    assert measure(np.zeros((32, 32)), (9.0, 9.0), "MR") is None


def test_the_archive_is_read_with_exactly_the_expected_rejections(hospital, scan):
    expected = {code: count for code, count in hospital.expected_rejections().items() if count}
    assert Counter(row.code for row in scan.rejected) == expected
    assert set(expected) == {"localizer", "missing-slice", "not-an-image"}
    assert scan.other == 2  # a note, and the marker
    assert scan.files == scan.other + sum(len(item.files) for item in scan.items) + sum(row.files for row in scan.rejected)
    assert len({item.subject for item in scan.items}) == PATIENTS
    assert len(scan.items) > PATIENTS  # somebody came twice
    assert {item.modality for item in scan.items} == {"CT", "MR"}


def test_what_is_read_back_is_the_picture_of_the_patient_it_names(hospital, scan):
    patients = {person(0, patient).number: patient for patient in range(PATIENTS)}
    for item in scan.items:
        anatomy = truth(0, patients[item.subject])
        volume = hospital.open(item)
        pixel = FIELD_OF_VIEW / 32
        array, _ = to_grid(volume, size=(None,) * 3, spacing=(1, 1, 1))
        assert array.shape == (32, 32, 6)
        assert volume.geometry.spacing == pytest.approx((pixel, pixel, 8.0), rel=1e-5)
        seen = measure(array, (pixel, pixel), item.modality)
        assert seen.width == pytest.approx(anatomy.width, abs=10)
        assert seen.lesion == (anatomy.lesion > 0)
        # the large organ is on the patient's right, the vertebra at the back: the axes are RAS
        assert seen.contrast == pytest.approx(anatomy.contrast[item.modality], abs=3.5 * ORGAN_CONTRAST[item.modality][1])
        assert dict(item.condition) | {"age": 0} == {"sex": anatomy.sex, "diagnosis": anatomy.diagnosis, "age": 0}
        assert 0 <= item.condition["age"] - anatomy.age <= 2 or item.condition["age"] == 90
        assert item.modality != "CT" or (array == np.rint(array)).all()


def test_the_archive_lies_where_its_pictures_are_made(hospital, scan):
    item = scan.items[0]
    array, _, affine = placed(hospital.open(item), size=(None,) * 3, spacing=(1, 1, 1))
    centre = affine @ [*((np.array(array.shape) - 1) / 2), 1]
    np.testing.assert_allclose(centre[:3], 0, atol=1e-3)


def test_every_planted_string_stands_in_the_archive(hospital, scan):
    planted = planted_identifiers(0, PATIENTS, dates=True)
    names = "\n".join(str(path.relative_to(hospital.root)) for path in Path(hospital.root).rglob("*")).encode()
    content = b"".join(path.read_bytes() for path in Path(hospital.root).rglob("*") if path.is_file())
    absent = [value for value in planted if value.encode() not in content + names]
    # a patient without a second study, a gap, a localizer or a report lacks their UIDs, and a report's text
    who = [person(0, patient) for patient in range(PATIENTS)]
    optional = {p.planted["report"] for p in who} | {uid for p in who for uid in p.uids} | {p.seen[1] for p in who}
    assert set(absent) <= optional
    assert len(planted) - len(absent) > 25 * PATIENTS
    for patient in who:  # in file and folder names, too
        assert patient.planted["file"].encode() in content
    assert person(0, 0).names[0].encode() in names
    assert person(0, 0).planted["file"].encode() in names


def test_a_validator_finds_no_error_in_its_images(hospital, scan):
    for modality in ("CT", "MR"):
        path = next(item.files[0] for item in scan.items if item.modality == modality)
        said = subprocess.run([Path(sys.executable).parent / "dciodvfy", path], capture_output=True, text=True)
        assert f"{modality}Image" in said.stderr
        assert "Error" not in said.stderr + said.stdout


def test_planted_strings_stand_in_standard_nested_and_private_elements_and_before_them(hospital):
    path = next(p for p in Path(hospital.root).rglob("*") if p.is_file() and len(p.name) == 16)
    data = pydicom.dcmread(path)
    who = next(person(0, k) for k in range(PATIENTS) if person(0, k).number == data.PatientID)
    assert str(data.PatientName) == "^".join(who.names)
    assert data.RequestAttributesSequence[0].RequestedProcedureDescription == who.planted["RequestedProcedureDescription"]
    block = data.private_block(0x0029, "PHANTOM HEADER")
    assert block[0x01].value == who.planted["private text"]
    inner = block[0x04].value[0].private_block(0x0029, "PHANTOM HEADER")
    assert inner[0x03].value == who.planted["private nested"]
    assert data.preamble.rstrip(b"\0").decode() == who.planted["preamble"]


def test_no_planted_string_is_a_condition_and_each_items_own_are_named_as_identifiers(scan):
    planted = planted_identifiers(0, PATIENTS, dates=True)
    patients = {person(0, patient).number: person(0, patient) for patient in range(PATIENTS)}
    for item in scan.items:
        told = json.dumps(dict(item.condition))
        assert not [value for value in planted if value in told]
        who = patients[item.subject]
        named = "\x1f".join(item.identifiers).replace("^", " ")
        lacking = [place for place, value in who.planted.items() if value.replace("^", " ") not in named]
        assert set(lacking) <= {"preamble", "report"}  # where no element of an image's data set holds them


def test_the_same_seed_gives_the_same_bytes_and_another_gives_other_people(hospital, scan, tmp_path):
    again = Phantom(str(tmp_path / "again"), patients=PATIENTS, size=32, slices=6)
    again.write()
    assert digest(tmp_path / "again") == digest(Path(hospital.root))
    assert not set(planted_identifiers(0, 20)) & set(planted_identifiers(1, 20))
    assert len(set(planted_identifiers(0, 50))) > 40 * 30


@pytest.mark.slow
def test_processes_write_what_one_process_writes(tmp_path):
    for workers in (1, 2):
        Phantom(str(tmp_path / str(workers)), patients=45, size=16, slices=4).write(workers=workers)
    assert digest(tmp_path / "1") == digest(tmp_path / "2")


@pytest.mark.slow
def test_a_hospital_of_the_size_of_the_demonstration_is_written_in_seconds_of_computing(tmp_path):
    import time

    start = time.process_time()
    Phantom(str(tmp_path / "h"), patients=40).write(workers=1)
    assert (time.process_time() - start) * 5 < 30  # 200 patients; measured: 10 s, on two cores in half of it


def test_an_archive_is_written_once_and_never_over_another(hospital, scan, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in Path(hospital.root).rglob("*")}
    hospital.write()
    assert {path: path.stat().st_mtime_ns for path in Path(hospital.root).rglob("*")} == before
    with pytest.raises(MedsynthError, match=r"other settings \(seed\).*delete that folder"):
        Phantom(hospital.root, patients=PATIENTS, size=32, slices=6, seed=9).write()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("mine")
    with pytest.raises(MedsynthError, match=r"no phantom hospital.*source=dicom_tree"):
        Phantom(str(tmp_path / "mine")).write()
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_killed_writing_leaves_nothing_under_the_archives_name(tmp_path, monkeypatch):
    import medsynth.data.sources.phantom as module

    def die(*_):
        raise KeyboardInterrupt

    hospital = Phantom(str(tmp_path / "h"), patients=2, size=16, slices=4)
    with monkeypatch.context() as broken:
        broken.setattr(module, "_write_patient", die)
        with pytest.raises(KeyboardInterrupt):
            hospital.write()
    assert not list(tmp_path.iterdir())
    hospital.write()
    assert (tmp_path / "h" / module.MARKER).is_file()


def test_one_modality_alone_can_be_asked_for(tmp_path):
    hospital = Phantom(str(tmp_path / "h"), patients=3, size=16, slices=4, modalities=["MR"])
    assert {item.modality for item in hospital.scan(workers=1).items} == {"MR"}


@pytest.mark.parametrize(
    "wrong", [{"modalities": ["US"]}, {"modalities": []}, {"patients": 0}, {"size": 8}, {"slices": 2}, {"thickness": 0.0}]
)
def test_impossible_hospitals_are_refused(tmp_path, wrong):
    with pytest.raises(SettingsError, match=r"source\."):
        Phantom(str(tmp_path / "h"), **wrong).scan(workers=1)
