import base64
import gzip
import io
import json
import os
import re
import zipfile
import zlib
from copy import deepcopy
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medsynth.errors import MedsynthError
from medsynth.export import dicom, segmentation
from medsynth.export.dicom import code
from medsynth.io.identifiers import WEAK, IdentifierHashes, identifying_values, write_identifiers
from medsynth.io.pseudonyms import load_key, pseudonym
from medsynth.io.search import find
from tests.make_dicom import save, slices

KEY = bytes(range(32))
NAME, ID, DAY, UID = "Przybylski^Jane Ada", "HOSP-004711", "19480229", "1.2.826.0.1.3680043.2.1125.77"
NOTE = "fell from a ladder on the stairs of the old mill and broke the left wrist"


@pytest.fixture
def known(tmp_path):
    path = tmp_path / "identifiers.json"
    write_identifiers(path, KEY, [NAME, ID, DAY, UID, NOTE, "M", "CT", ""])
    return path


def kinds(known, content: bytes | str, name: str = "some file") -> set[str]:
    folder = known.parent / "searched"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    hits = find(known, KEY, [folder])
    (folder / name).unlink()
    return {hit.kind for hit in hits}


# ------------------------------------------------------------------------------------------------------------------ key and pseudonyms


def test_a_new_key_is_secret_random_and_stays(tmp_path):
    path = tmp_path / "new" / "folder" / "key"
    key = load_key(path)
    assert len(key) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_key(path) == key
    assert load_key(tmp_path / "other") != key
    assert [p.name for p in path.parent.iterdir()] == ["key"]


def test_a_key_that_others_may_read_is_refused_with_the_way_out(tmp_path):
    path = tmp_path / "key"
    load_key(path)
    path.chmod(0o640)
    with pytest.raises(MedsynthError, match="chmod 600"):
        load_key(path)


@pytest.mark.parametrize("content", [b"", b"short"])
def test_a_damaged_key_is_refused_and_not_replaced(tmp_path, content):
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(MedsynthError, match=f"holds {len(content)} bytes"):
        load_key(path)
    assert path.read_bytes() == content


def test_a_key_that_cannot_be_made_is_said_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(MedsynthError, match=r"paths\.key"):
        load_key(tmp_path / "file" / "key")


def test_a_pseudonym_is_short_stable_and_tells_nothing_without_the_key():
    name = pseudonym(KEY, "subject", "P1")
    assert name == pseudonym(KEY, "subject", "P1")
    assert name.startswith("sub-")
    assert len(name) == 16
    assert len({name, pseudonym(KEY, "subject", "P2"), pseudonym(KEY[::-1], "subject", "P1"), pseudonym(KEY, "case", "P1")}) == 4
    # HMAC-SHA256 by its definition (RFC 2104), not through the hmac module
    import hashlib

    block = KEY.ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in block) + b"subject\x1fP1").digest()
    assert name[4:] == hashlib.sha256(bytes(b ^ 0x5C for b in block) + inner).hexdigest()[:12]


# ------------------------------------------------------------------------------------------------------------------ tokens


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("PRZYBYLSKI^JANE ADA", "text"),
        ("Jane Ada Przybylski", "text"),
        ("report of przybylski, jane-ada.", "text"),
        ("PrzybylskiJaneAda.txt", "text"),
        ("Ms Przybylski", "word"),
        ("id=hosp_004711;", "text"),
        ("HOSP004711", "text"),
        ("19480229", "date"),
        ("19480229123000.000000+0100", "date"),
        ("1948-02-29T10:00", "date"),
        ("born 29.02.1948", "date"),
        ("born 2/29/1948", "date"),
        ("29 Feb 1948", "date"),
        ("February 29th, 1948", "date"),
        ("1.2.826.0.1.3680043.2.1125.77", "uid"),
        ("1.2.826.0.1.3680043.2.1125.77.5.1", "uid"),
        ("/x/1.2.826.0.1.3680043.2.1125.77.dcm", "uid"),
        ("he broke THE LEFT wrist: from a ladder on the stairs of the old", "text"),
    ],
)
def test_an_identifier_is_found_in_each_of_its_spellings(known, text, kind):
    assert kind in kinds(known, f"before {text} after")


@pytest.mark.parametrize(
    "text",
    [
        "M CT MR",
        "Jan Ad P",
        "1.2.826.0.1.3680043.2.1125.771",
        "1.2.826.0.1",
        "1948-02-28",
        "the left wrist",
        "HOSP-004712",
        "119480229",
        "0.19480229",
    ],
)
def test_what_is_only_like_an_identifier_is_not_found(known, text):
    assert kinds(known, f"before {text} after") == set()


def test_a_number_with_a_point_is_one_word(tmp_path):
    write_identifiers(tmp_path / "identifiers.json", KEY, ["4711.25"])
    assert kinds(tmp_path / "identifiers.json", "value 4711.25, and") == {"text"}
    assert kinds(tmp_path / "identifiers.json", "values 4711 25 14711.25") == set()


def test_hashes_hold_no_identifier_and_need_their_key(known):
    content = known.read_text().casefold()
    assert not any(part in content for part in ("przybylski", "jane", "hosp", "004711", "19480229", "3680043", "ladder"))
    with pytest.raises(MedsynthError, match="another key"):
        find(known, KEY[::-1], [known])
    with pytest.raises(MedsynthError, match="Run prepare again"):
        IdentifierHashes.read(known.with_name("gone.json"), KEY)


def test_single_plain_words_are_marked_as_weak():
    hashes = IdentifierHashes.of(KEY, ["Brown^Al", "1234"]).hashes
    assert {kind for kind, found in hashes.items() if found} - {"text"} == WEAK


# ------------------------------------------------------------------------------------------------------------------ containers


def _zip(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b", content)
    return buffer.getvalue()


def _png(name: bytes, body: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT", bytes(50)) + chunk(name, body) + chunk(b"IEND", b"")


TEXT = f"patient {ID} seen".encode()
WRAPPED = {
    "plain": TEXT,
    "behind a lot of text": b"word " * 100 + bytes(1000) + TEXT,
    "gzip": gzip.compress(TEXT),
    "gzip name": gzip.compress(b"")[:3] + b"\x08" + gzip.compress(b"")[4:10] + b"HOSP-004711.nii\0" + gzip.compress(b"")[10:],
    "zip": _zip(TEXT),
    "gzip in zip": _zip(gzip.compress(TEXT)),
    "base64": b'{"x": "' + base64.b64encode(TEXT) + b'"}',
    "base64 in lines": base64.encodebytes(bytes(100) + TEXT * 30),
    "base64 of gzip": base64.b64encode(gzip.compress(TEXT)),
    "utf-16": TEXT.decode().encode("utf-16"),
    "utf-16-be in binary": b"\xff\x01\x02" + TEXT.decode().encode("utf-16-be") + b"\xfe",
    "utf-16-le in binary": b"\xff\x01\x02" + TEXT.decode().encode("utf-16-le") + b"\xfe",
    "latin-1": "Größe é ".encode("latin-1") + TEXT,
    "json escapes": rb"\u0048OSP\u002d004711",
    "html": b"HOSP&#45;004711",
    "url": b"HOSP%2D004711",
    "png text": _png(b"tEXt", b"Comment\0" + TEXT),
    "png deflated": _png(b"zTXt", b"Comment\0\0" + zlib.compress(TEXT)),
}


@pytest.mark.parametrize("content", WRAPPED.values(), ids=WRAPPED)
def test_an_identifier_is_found_inside(known, content):
    assert "text" in kinds(known, content)


def test_an_identifier_across_two_chunks_is_found(known, monkeypatch):
    monkeypatch.setattr("medsynth.io.search.CHUNK", 4096)
    for at in range(4080, 4100):
        assert "text" in kinds(known, b" " * at + TEXT + b" " * 9000), at


def test_headers_of_arrays_are_searched_and_their_numbers_are_not(known):
    hidden = np.frombuffer((b" " + TEXT).ljust(1024), np.float32)
    assert "text" in kinds(known, hidden.tobytes())
    image = nib.Nifti1Image(hidden.reshape(256, 1, 1), np.eye(4))
    assert kinds(known, image.to_bytes()) == set()
    assert kinds(known, gzip.compress(image.to_bytes())) == set()
    assert "text" in kinds(known, image.to_bytes() + TEXT)
    image.header["descrip"] = ID
    assert "text" in kinds(known, gzip.compress(image.to_bytes()))
    image.header["descrip"] = ""
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", TEXT))
    assert "text" in kinds(known, gzip.compress(image.to_bytes()))
    second = nib.Nifti2Image(hidden.reshape(256, 1, 1), np.eye(4))
    assert kinds(known, second.to_bytes()) == set()
    second.header["aux_file"] = ID
    assert "text" in kinds(known, second.to_bytes())

    buffer = io.BytesIO()
    np.save(buffer, hidden)
    assert kinds(known, buffer.getvalue()) == set()
    assert "text" in kinds(known, buffer.getvalue() + TEXT)
    buffer = io.BytesIO()
    np.savez(buffer, ids=np.array([ID]))
    assert "text" in kinds(known, buffer.getvalue())


def test_dicom_is_searched_everywhere_but_in_its_pixels(known, tmp_path):
    data = slices(1, shape=(16, 16))[0]
    data.PixelData = (b" " + TEXT).ljust(512)

    def content(edit=lambda data: None) -> bytes:
        copy = deepcopy(data)
        edit(copy)
        return (tmp_path / "x" / os.path.basename(save([copy], tmp_path / "x")[0])).read_bytes()

    def nested(copy: Dataset) -> None:
        copy.RequestAttributesSequence = Sequence([Dataset()])
        copy.RequestAttributesSequence[0].ScheduledProcedureStepDescription = f"for {ID}"

    def greek(copy: Dataset) -> None:
        copy.SpecificCharacterSet = "ISO_IR 126"
        copy.PatientName = "Διονυσιος"

    assert kinds(known, content()) == set()
    assert "text" in kinds(known, content(nested))
    assert "text" in kinds(known, content(lambda copy: copy.private_block(0x11, "X", create=True).add_new(1, "UN", TEXT + b" ")))
    assert "text" in kinds(known, content(lambda copy: setattr(copy, "DataSetTrailingPadding", TEXT + b" ")))
    assert "text" in kinds(known, TEXT.ljust(128, b"\0") + content()[128:])
    assert "date" in kinds(known, content(lambda copy: setattr(copy, "StudyDate", DAY)))
    assert kinds(known, content(greek)) == set()
    write_identifiers(known, KEY, ["ΔΙΟΝΥΣΙΟΣ"])
    assert kinds(known, content(greek)) == {"word"}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
def test_a_standard_code_is_no_identifier_in_its_own_place(known, tmp_path, syntax):
    """109100, Synthesizing Equipment, stands in every synthetic file; a patient's id may be the same number."""
    write_identifiers(known, KEY, ["109100", "109109", "85756007"])

    def found(scheme: str, *values: str, comment: str = "none") -> set[str]:
        data = slices(1, shape=(16, 16))[0]
        data.ImageComments = comment
        data.PurposeOfReferenceCodeSequence = [code(value, scheme, "Some equipment") for value in values]
        return kinds(known, Path(save([data], tmp_path / "x", syntax=syntax)[0]).read_bytes())

    assert found("DCM", "109100", "109101") == set()
    assert found("SCT", "85756007") == set()
    assert found("DCM", "109100", comment="seen 109100") == {"text"}
    assert found("99LOCAL", "109100") == {"text"}
    assert found("DCM", "109109") == {"text"}  # which the standard does not know
    assert found("SCT", "109100") == {"text"}
    assert kinds(known, "109100") == {"text"}


def test_every_code_that_a_release_holds_is_one_of_the_standard():
    from medsynth.io.dicom.files import _standard_codes

    written = "\n".join(path.read_text() for path in (Path(dicom.__file__), Path(segmentation.__file__)))
    codes = re.findall(r"\"(\d{6,})\", \"(DCM|SCT)\"", written)
    assert ("109100", "DCM") in codes
    assert [each for each in codes if each[0] not in _standard_codes()[each[1]]] == []


def test_a_name_that_holds_an_identifier_is_found_and_not_repeated(known):
    folder = known.parent / "out"
    (folder / "HOSP-004711").mkdir(parents=True)
    (folder / "HOSP-004711" / "image.txt").write_text("nothing")
    (folder / "link").symlink_to("/data/hosp_004711")
    hits = find(known, KEY, [folder])
    assert {(hit.file, hit.kind) for hit in hits} == {("(withheld)", "text"), ("link", "text")}


def test_what_cannot_be_looked_through_is_said(known):
    assert kinds(known, gzip.compress(os.urandom(3000))[:-100]) == {"unscanned"}
    assert kinds(known, b"PK\x03\x04" + bytes(100)) == {"unscanned"}
    deep = TEXT
    for _ in range(8):
        deep = gzip.compress(deep)
    assert "unscanned" in kinds(known, deep)
    with pytest.raises(MedsynthError, match="nothing at"):
        find(known, KEY, [known.parent / "gone"])


def test_ordinary_outputs_hold_no_identifier_by_chance(tmp_path):
    chance = np.random.default_rng(1)
    values = [f"PAT-{n:06}" for n in chance.integers(0, 10**6, 500)] + [f"1.2.840.{n}.{n % 977}.3" for n in chance.integers(0, 10**9, 500)]
    write_identifiers(tmp_path / "identifiers.json", KEY, values)
    out = tmp_path / "out"
    out.mkdir()
    (out / "numbers.json").write_text(json.dumps(chance.normal(size=20000).tolist()))
    (out / "noise.bin").write_bytes(chance.bytes(2**18))
    np.save(out / "images.npy", chance.normal(size=(50, 64, 64)))
    assert find(tmp_path / "identifiers.json", KEY, [out]) == []


# ------------------------------------------------------------------------------------------------------------------ identifiers of a header


def test_every_naming_value_of_a_header_is_collected_wherever_it_lies():
    data = Dataset()
    planted = {
        "PatientName": "A^B", "PatientID": "id-1", "OtherPatientIDs": ["id-2", "id-3"], "PatientBirthDate": "19500101",
        "StudyDate": "20200101", "AcquisitionDateTime": "20200102101010", "AccessionNumber": "acc-1", "InstitutionName": "Hospital",
        "InstitutionAddress": "Road 1", "ReferringPhysicianName": "Ref^Doc", "OperatorsName": "Op^One", "StationName": "st-1",
        "DeviceSerialNumber": "ser-1", "SeriesInstanceUID": "1.2.3.4", "StudyDescription": "knee after fall",
        "ImageComments": "see letter", "PatientComments": "lives alone", "RetrieveAETitle": "AE1",
    }  # fmt: skip
    for keyword, value in planted.items():
        setattr(data, keyword, value)
    deep = Dataset()
    deep.RequestingPhysician = "Deep^Doc"
    item = Dataset()
    item.ReferencedStudySequence = [deep]
    data.RequestAttributesSequence = [item]
    block = data.private_block(0x11, "VENDOR", create=True)
    block.add_new(1, "LO", "private-1")
    block.add_new(2, "UN", b"private-2 ")
    private_item = Dataset()
    private_item.PatientID = "private-3"
    block.add_new(3, "SQ", [private_item])

    data.Modality, data.Manufacturer, data.SOPClassUID, data.PatientSex = "MR", "SIEMENS", "1.2.840.10008.5.1.4.1.1.4", "F"
    data.SeriesDescription, data.PatientAge, data.StudyTime = "Brain", "050Y", "101010"
    block.add_new(4, "OB", bytes(range(64)))
    expected = {value for values in planted.values() for value in (values if isinstance(values, list) else [values])}
    assert set(identifying_values(data)) == expected | {"Deep^Doc", "private-1", "private-2", "private-3"}
