"""An archive de-identified as a whole: nothing of it is in what comes out, in contents or in names, and nothing is lost without a word."""

import gzip
import json
import stat
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from medsynth.deidentify import burned_in, folder
from medsynth.deidentify.folder import JOURNAL, counts, deidentify
from medsynth.deidentify.image import Cleaner, read
from medsynth.deidentify.profile import Options
from medsynth.errors import MedsynthError, StageConflict
from medsynth.io.pseudonyms import new_uid
from tests.make_dicom import save, slices
from tests.plain_search import found_in

KEY = b"k" * 32
NAME, NUMBER = "Zyxwander^Umalia", "HOSP4711-0815"


def archive(folder: Path, count: int = 3) -> Path:
    for part in slices(count, patient=NUMBER, PatientName=NAME, StudyDate="20210310", InstitutionName="Zyxwander Infirmary"):
        part.add_new(0x00080081, "ST", "4711 Zyxwander Road")
        part.private_block(0x11, NAME, create=True).add_new(1, "LO", NUMBER)
        save([part], folder / NAME / f"{NUMBER}-{part.InstanceNumber}")
    (folder / f"{NAME}.txt").write_text(NAME)
    (folder / "broken.dcm").write_bytes(bytes(128) + b"DICM" + NAME.encode())
    return folder


def cleaner(**settings) -> Cleaner:
    return Cleaner(key=KEY, **({"burned_in": "keep"} | settings))


def test_nothing_of_the_archive_is_in_what_comes_out(tmp_path):
    root = archive(tmp_path / "in")
    verdicts = deidentify(root, tmp_path / "out", cleaner(options=Options(dates="shift")))
    assert counts(verdicts) == {("written", ""): 3, ("other", "not-an-image"): 1, ("rejected", "not-supported"): 1}
    assert found_in(root, [NAME, NUMBER, "Zyxwander"])
    assert found_in(tmp_path / "out", [NAME, NUMBER, "Zyxwander", "Infirmary"], ["20210310"]) == []
    for path in (tmp_path / "out").rglob("*.dcm"):
        content = path.read_bytes()
        assert content[:128] == bytes(128)
        data = pydicom.dcmread(path)
        assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID
        assert data.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1"


def test_an_instance_under_a_uid_of_the_standard_gets_another_in_its_file_meta_too(tmp_path):
    save(slices(1, SOPInstanceUID="1.2.840.10008.1.2"), tmp_path / "in")
    (verdict,) = deidentify(tmp_path / "in", tmp_path / "out", cleaner())
    data = pydicom.dcmread(tmp_path / "out" / verdict.written)
    assert data.file_meta.MediaStorageSOPInstanceUID == data.SOPInstanceUID == new_uid(KEY, "1.2.840.10008.1.2")


def test_pixels_are_the_same(tmp_path):
    root = archive(tmp_path / "in")
    deidentify(root, tmp_path / "out", cleaner())
    before = {new_uid(KEY, d.SOPInstanceUID): d.pixel_array for p in root.rglob("*/*/*") if p.is_file() for d in [pydicom.dcmread(p)]}
    after = {d.SOPInstanceUID: d.pixel_array for p in (tmp_path / "out").rglob("*.dcm") for d in [pydicom.dcmread(p)]}
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[uid], after[uid]) for uid in before)


def test_what_was_cleaned_once_is_cleaned_twice_to_the_same_bytes(tmp_path):
    deidentify(archive(tmp_path / "in"), tmp_path / "once", cleaner(options=Options(dates="shift")))
    deidentify(tmp_path / "once", tmp_path / "twice", cleaner(options=Options(dates="shift")))
    once, twice = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*.dcm")} for f in (tmp_path / "once", tmp_path / "twice"))
    assert once == twice
    assert len(once) == 3


def test_an_interrupted_run_goes_on_and_other_settings_do_not(tmp_path):
    root, out = archive(tmp_path / "in"), tmp_path / "out"
    whole = deidentify(root, out, cleaner())
    lines = (out / JOURNAL).read_text().splitlines(keepends=True)
    (out / JOURNAL).write_text("".join(lines[:3]) + lines[3][:10])  # killed within a line
    written = {path: path.stat().st_mtime_ns for path in out.rglob("*.dcm")}
    assert counts(deidentify(root, out, cleaner())) == counts(whole)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.dcm")} == written
    assert counts(deidentify(root, out, cleaner())) == counts(whole)
    assert len((out / JOURNAL).read_text().splitlines()) == len(lines)
    with pytest.raises(StageConflict, match="other settings"):
        deidentify(root, out, cleaner(options=Options(dates="shift")))


def test_one_instance_in_two_files_is_written_once_and_two_that_claim_to_be_one_are_not(tmp_path):
    (one,) = slices(1, patient=NUMBER)
    save([one], tmp_path / "in" / "a")
    save([one], tmp_path / "in" / "b")
    one.RescaleSlope = "2"
    save([one], tmp_path / "in" / "c")
    found = counts(deidentify(tmp_path / "in", tmp_path / "out", cleaner()))
    assert found == {("written", ""): 2, ("rejected", "duplicate-instance"): 1}
    assert len(list((tmp_path / "out").rglob("*.dcm"))) == 1


def test_the_way_back_is_written_only_on_request_and_for_its_owner_alone(tmp_path):
    root = archive(tmp_path / "in")
    deidentify(root, tmp_path / "out", cleaner(), mapping=tmp_path / "back.jsonl")
    assert stat.S_IMODE((tmp_path / "back.jsonl").stat().st_mode) == 0o600
    rows = [json.loads(line) for line in (tmp_path / "back.jsonl").read_text().splitlines()]
    assert {row["PatientID"] for row in rows} == {NUMBER}
    assert all((tmp_path / "out" / row["written"]).is_file() and Path(row["file"]).is_file() for row in rows)
    with pytest.raises(MedsynthError, match="lies in the folder"):
        deidentify(root, tmp_path / "new", cleaner(), mapping=tmp_path / "new" / "back.jsonl")
    with pytest.raises(MedsynthError, match="not there"):
        deidentify(root, tmp_path / "new", cleaner(), mapping=tmp_path / "nowhere" / "back.jsonl")
    with pytest.raises(MedsynthError, match="in one another"):
        deidentify(root, root / "out", cleaner())


def test_a_file_that_vanishes_is_rejected_under_a_pseudonym(tmp_path, monkeypatch):
    root = archive(tmp_path / "in")
    monkeypatch.setattr(folder, "_files", lambda root: [root / "Zyxwander.dcm", root / "Zyxwander.nii"])
    verdicts = deidentify(root, tmp_path / "out", cleaner())
    assert [verdict.verdict for verdict in verdicts] == ["rejected"] * 2
    assert found_in(tmp_path / "out", ["Zyxwander"]) == []


def test_other_objects_heads_and_screens_are_rejected_with_their_reason(tmp_path):
    def one(name: str, **values: object) -> None:
        save(slices(1, series=f"1.2.3.{len(name)}.{ord(name[0])}", patient=NUMBER, **values), tmp_path / "in" / name)

    one("report", SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    one("head", BodyPartExamined="HEAD")
    one("told", SeriesDescription="cerebral T1")
    one("screen", BurnedInAnnotation="YES")
    one("capture", Modality="SC", SOPClassUID="1.2.840.10008.5.1.4.1.1.7")
    one("knee", BodyPartExamined="KNEE")
    found = counts(deidentify(tmp_path / "in", tmp_path / "out", cleaner(burned_in="reject")))
    assert found[("rejected", "not-supported")] == 1
    assert found[("rejected", "face")] == 2
    assert found[("rejected", "burned-in-text")] == 2
    assert found[("written", "")] == 1
    kept = deidentify(tmp_path / "in", tmp_path / "kept", cleaner(faces="keep"))
    assert counts(kept)[("written", "")] == 5
    marks = {pydicom.dcmread(tmp_path / "kept" / verdict.written).get("RecognizableVisualFeatures") for verdict in kept if verdict.written}
    assert marks == {"YES", "NO", None}  # None: nothing tells


@pytest.mark.skipif(not burned_in.is_installed(), reason="tesseract is not installed")
def test_pixels_are_declared_clean_only_after_a_search(tmp_path):
    save(slices(1, patient=NUMBER, shape=(64, 64), BodyPartExamined="KNEE"), tmp_path / "in")
    for setting, declared in (("reject", True), ("mask", True), ("keep", False)):
        (verdict,) = deidentify(tmp_path / "in", tmp_path / setting, cleaner(burned_in=setting))
        data = pydicom.dcmread(tmp_path / setting / verdict.written)
        assert ("113101" in [item.CodeValue for item in data.DeidentificationMethodCodeSequence]) == declared
        assert (data.get("BurnedInAnnotation") == "NO") == declared


def test_compressed_pixels_lose_their_comments_and_what_lies_behind_them(tmp_path):
    (data,) = slices(1, patient=NUMBER, shape=(32, 32))
    plain = data.pixel_array if hasattr(data, "file_meta") else np.frombuffer(data.PixelData, "<u2").reshape(32, 32)
    data.PixelData = plain.tobytes() + NAME.encode() + b"\0\0"
    save([data], tmp_path / "in")
    deidentify(tmp_path / "in", tmp_path / "out", cleaner())
    (written,) = (tmp_path / "out").rglob("*.dcm")
    assert np.array_equal(pydicom.dcmread(written).pixel_array, plain)
    assert found_in(tmp_path / "out", [NAME]) == []


def test_an_overlay_in_the_unused_bits_of_pixels_is_cleared(tmp_path):
    (data,) = slices(1, patient=NUMBER, shape=(32, 32))
    values = np.arange(1024).reshape(32, 32) % 4096
    data.BitsStored, data.HighBit = 12, 11
    data.PixelData = (values | 0x4000).astype("<u2").tobytes()
    data.add_new(0x60000100, "US", 16)
    data.add_new(0x60000102, "US", 14)
    save([data], tmp_path / "in")
    deidentify(tmp_path / "in", tmp_path / "out", cleaner())
    (written,) = (tmp_path / "out").rglob("*.dcm")
    stored = np.frombuffer(pydicom.dcmread(written).PixelData, "<u2").reshape(32, 32)
    assert np.array_equal(stored, values)


def test_bits_below_those_stored_are_cleared(tmp_path):
    (data,) = slices(1, patient=NUMBER, shape=(32, 32))
    data.BitsStored, data.HighBit = 12, 15
    data.PixelData = (np.arange(1024).astype("<u2") << 4 | 5).tobytes()
    save([data], tmp_path / "in")
    deidentify(tmp_path / "in", tmp_path / "out", cleaner())
    (written,) = (tmp_path / "out").rglob("*.dcm")
    assert np.array_equal(np.frombuffer(pydicom.dcmread(written).PixelData, "<u2"), np.arange(1024) << 4)


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_volumes_keep_their_voxels_and_lose_every_text(tmp_path, kind, suffix):
    (tmp_path / "in").mkdir()
    voxels = np.arange(60, dtype=np.int16).reshape(3, 4, 5, 1)
    image = kind(voxels, np.diag([2.0, 3.0, 4.0, 1.0]))
    for field in ("descrip", "aux_file", "intent_name", *(["db_name"] if kind is nib.Nifti1Image else [])):
        image.header[field] = b"Zyxwander"
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", NAME.encode()))
    content = image.to_bytes() + NAME.encode()
    path = tmp_path / "in" / f"sub-Zyxwander_run-2_T1w{suffix}"
    if suffix == ".nii":
        path.write_bytes(content)
    else:
        with gzip.GzipFile(str(path).removesuffix(".gz"), "wb", fileobj=path.open("wb")) as packed:
            packed.write(content)
    (rejected,) = deidentify(tmp_path / "in", tmp_path / "rejected", cleaner())
    assert rejected.code == "face"
    (verdict,) = deidentify(tmp_path / "in", tmp_path / "out", cleaner(faces="keep"))
    assert found_in(tmp_path / "out", ["Zyxwander"]) == []
    assert verdict.written.endswith(f"_run-2_T1w{suffix}")
    back = nib.load(tmp_path / "out" / verdict.written)
    assert np.array_equal(back.get_fdata(), voxels)
    assert back.get_data_dtype() == np.int16
    assert np.allclose(back.affine, image.affine)
    assert not back.header.extensions


def test_a_volume_whose_header_contradicts_itself_is_rejected(tmp_path):
    (tmp_path / "in").mkdir()
    content = nib.Nifti1Image(np.zeros((3, 4, 5), np.int16), np.eye(4)).to_bytes()
    for number, (field, value) in enumerate({"bitpix": 32, "dim": [3, 3, -4, -5, 1, 1, 1, 1], "datatype": 16}.items()):
        header = nib.Nifti1Header(content[:348])
        header[field] = value
        (tmp_path / "in" / f"{number}.nii").write_bytes(header.binaryblock + content[348:] + b"Zyxwander" * 100)
    assert counts(deidentify(tmp_path / "in", tmp_path / "out", cleaner(faces="keep"))) == {("rejected", "not-nifti"): 3}


def test_single_letters_of_a_sidecar_stay_where_they_are_codes(tmp_path):
    (tmp_path / "in").mkdir()
    fields = {"Manufacturer": "J D", "Modality": "JD", "ScanningSequence": "GR", "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"]}
    (tmp_path / "in" / "a.json").write_text(json.dumps(fields))
    (verdict,) = deidentify(tmp_path / "in", tmp_path / "out", cleaner())
    assert json.loads((tmp_path / "out" / verdict.written).read_text()).keys() == {"ScanningSequence", "ImageType"}


def test_sidecars_keep_numbers_and_known_words(tmp_path):
    (tmp_path / "in").mkdir()
    fields = {"EchoTime": 0.03, "PhaseEncodingDirection": "j-", "SliceTiming": [0, 0.5], "Manufacturer": "Siemens", "ScanOptions": NAME}
    fields |= {"PatientName": NAME, "SeriesDescription": NAME, "InstitutionName": NAME, "ImageType": ["ORIGINAL", NAME], "Units": "Hz"}
    (tmp_path / "in" / "sub-Zyxwander_T1w.json").write_text(json.dumps(fields))
    (tmp_path / "in" / "sub-Zyxwander_dwi.bval").write_text("0 1000 1000\n")
    (tmp_path / "in" / "bad.bvec").write_text(NAME)
    verdicts = deidentify(tmp_path / "in", tmp_path / "out", cleaner())
    assert found_in(tmp_path / "out", ["Zyxwander"]) == []
    (sidecar,) = (tmp_path / "out").rglob("*_T1w.json")
    assert json.loads(sidecar.read_text()) == {
        "EchoTime": 0.03, "PhaseEncodingDirection": "j-", "SliceTiming": [0, 0.5], "Manufacturer": "Siemens"
    }  # fmt: skip
    assert {verdict.code for verdict in verdicts} == {"", "not-numbers"}


@pytest.mark.slow
def test_the_command_prints_the_table_and_says_nothing_of_the_archive(tmp_path):
    archive(tmp_path / "in", 20)
    command = [sys.executable, "-m", "medsynth.cli", "deidentify", tmp_path / "in", f"out={tmp_path / 'out'}", f"key={tmp_path / 'key'}"]
    done = subprocess.run([*command, "dates=shift", "workers=2"], capture_output=True, text=True, check=True)
    assert " 20  written" in done.stdout
    assert "rejected  not-supported" in done.stdout
    assert "Zyxwander" not in done.stdout + done.stderr
    again = subprocess.run([*command, "dates=shift", "workers=2"], capture_output=True, text=True, check=True)
    assert again.stdout == done.stdout
    wrong = subprocess.run([*command, "dates=forget"], capture_output=True, text=True)
    assert wrong.returncode == 2
    assert "remove, shift" in wrong.stderr


def test_a_file_is_read_whole(tmp_path):
    save(slices(1), tmp_path / "in")
    (path,) = (tmp_path / "in").iterdir()
    assert isinstance(read(path), Dataset)
