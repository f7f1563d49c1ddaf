from pathlib import Path

import numpy as np
import pytest

from medsynth.io import dicom
from medsynth.io.dicom import headers
from tests.make_dicom import enhanced, save, slices

KEY, KEYWORDS = b"k" * 32, ["PatientName"]


@pytest.fixture
def archive(tmp_path, monkeypatch) -> Path:
    """Files of every kind of outcome."""
    monkeypatch.setattr(headers, "RECORD", 3)
    root = tmp_path / "archive"
    save(slices(PatientName="CANARY^NAME", PatientID="CANARY-7", PixelPaddingValue=3), root / "CANARY")
    save([enhanced(3)], root / "enhanced")
    (root / "notes.txt").write_text("no image")
    (root / "empty").touch()
    (segmentation,) = slices(1, SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4", series="1.2.9")
    save([segmentation], root / "segmentation")
    return root


def test_an_interrupted_scan_goes_on_where_it_stopped(archive, tmp_path, monkeypatch):
    plain = dicom.scan(archive, keywords=KEYWORDS)
    journal = dicom.Journal(tmp_path / "journal", KEY)
    read = headers.read_headers
    seen: list[str] = []

    def killed(path: str, **options: object) -> object:
        seen.append(path)
        if len(seen) == 8:
            raise KeyboardInterrupt
        return read(path, **options)

    monkeypatch.setattr(headers, "read_headers", killed)
    with pytest.raises(KeyboardInterrupt):
        dicom.scan(archive, keywords=KEYWORDS, journal=journal)
    assert dicom.scan(archive, keywords=KEYWORDS, journal=journal) == plain
    assert len(seen) == 8 + plain.files - 6  # two records of three were kept
    assert dicom.scan(archive, keywords=KEYWORDS, journal=journal) == plain
    assert len(seen) == 8 + plain.files - 6
    assert len(plain.segmentations) == len(plain.refusals) == plain.other == 1


def test_the_journal_keeps_nothing_that_can_be_read_without_the_key(archive, tmp_path):
    journal = dicom.Journal(tmp_path / "journal", KEY)
    dicom.scan(archive, keywords=KEYWORDS, journal=journal)
    content = journal.path.read_bytes()
    assert not any(word in content for word in (b"CANARY", b"1.2.3.4", b"archive", b"IM000"))
    counts = np.bincount(np.frombuffer(content, np.uint8), minlength=256)
    assert counts.max() < 3 * counts.mean()


def test_what_has_changed_or_does_not_open_is_read_again(archive, tmp_path):
    root, path = archive.resolve(), tmp_path / "journal"
    journal = dicom.Journal(path, KEY)
    found = dicom.scan(archive, keywords=KEYWORDS, journal=journal)
    known = journal.read(root, KEYWORDS)
    assert len(known) == found.files
    assert not journal.read(root, ["PatientID"])
    assert not journal.read(root.parent, KEYWORDS)
    assert not dicom.Journal(path, b"other" * 7).read(root, KEYWORDS)
    changed = root / "CANARY/IM0002"
    changed.write_bytes(changed.read_bytes() + bytes(2))
    assert set(known) - set(journal.read(root, KEYWORDS)) == {str(changed)}
    path.write_bytes(path.read_bytes()[:-5])
    assert 0 < len(journal.read(root, KEYWORDS)) < found.files - 1
    assert dicom.scan(archive, keywords=KEYWORDS, journal=journal).files == found.files


@pytest.mark.parametrize("torn", [1, 3, 60])
def test_what_is_read_after_a_torn_record_is_kept(archive, tmp_path, torn: int):
    """Of a record that a killed process began, some bytes are there: its length in parts, or its beginning."""
    root, path = archive.resolve(), tmp_path / "journal"
    journal = dicom.Journal(path, KEY)
    found = dicom.scan(archive, keywords=KEYWORDS, journal=journal)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:torn])
    known = journal.read(root, KEYWORDS)
    assert len(known) == found.files
    last = dict([next(iter(known.items()))])
    journal.add(root, KEYWORDS, last)
    assert len(path.read_bytes()) > len(whole)
    assert journal.read(root, KEYWORDS) == known
    path.write_bytes(path.read_bytes()[len(whole) :])
    assert journal.read(root, KEYWORDS) == last
