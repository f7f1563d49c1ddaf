"""The check of identifiers: planted ones are found wherever they hide, their values are never repeated, and doubt is said."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from medsynth.audit import identifiers
from medsynth.audit.finding import Evidence
from medsynth.audit.identifiers import Identifiers
from medsynth.io.identifiers import write_identifiers
from medsynth.io.search import Hit
from tests.make_evidence import make_evidence

KEY = b"k" * 32
NAME, NUMBER, UID = "Quaxolotl^Zebedee", "MRN00771234", "1.2.840.99999.4.7.1234567"


@pytest.fixture
def evidence(tmp_path: Path) -> Evidence:
    hashes = tmp_path / "identifiers.json"
    write_identifiers(hashes, KEY, [NAME, NUMBER, UID])
    leaving = tmp_path / "sample"
    leaving.mkdir()
    (leaving / "cohort.jsonl").write_text(json.dumps({"id": "synthetic000001", "path": "volumes/synthetic000001.nii.gz"}) + "\n")
    small = make_evidence(tmp_path / "cohorts", shape=(8, 8), n_train=2, n_holdout=2, n_synthetic=1)
    return replace(small, folders=(leaving,), identifiers=hashes, key=KEY)


def test_what_names_nobody_passes_and_the_planted_identifier_was_found_everywhere(evidence: Evidence) -> None:
    finding = Identifiers()(evidence)
    assert (finding.verdict, finding.value, finding.control) == ("pass", 0, 1)
    assert {"text", "manifest", "file name", "NIfTI header", "DICOM header"} <= set(finding.details["planted"])


@pytest.mark.parametrize("value", [NAME.replace("^", " "), NUMBER, UID, "ZEBEDEE QUAXOLOTL"])
def test_an_identifier_in_a_file_fails_with_its_place_and_never_its_value(evidence: Evidence, value: str) -> None:
    (evidence.folders[0] / "notes.json").write_text(json.dumps({"comment": f"like {value}."}))
    finding = Identifiers()(evidence)
    assert (finding.verdict, finding.value) == ("fail", 1)
    assert "notes.json" in finding.why
    said = json.dumps(finding.as_json()).casefold()
    assert not any(word in said for word in ("quaxolotl", "zebedee", "771234", "99999.4.7"))


def test_an_identifier_in_a_file_name_fails_and_the_name_is_withheld(evidence: Evidence) -> None:
    (evidence.folders[0] / f"{NUMBER}.txt").write_text("nothing")
    finding = Identifiers()(evidence)
    assert finding.verdict == "fail"
    assert "771234" not in json.dumps(finding.as_json())


def test_a_plain_word_that_may_be_a_name_is_counted_and_fails_nothing(evidence: Evidence) -> None:
    write_identifiers(evidence.identifiers, KEY, ["Brown"])
    (evidence.folders[0] / "notes.txt").write_text("brown fat")
    finding = Identifiers()(evidence)
    assert finding.verdict == "pass"
    assert finding.details["kinds"] == {"word": 1}


@pytest.mark.parametrize("missing", [{"key": None}, {"identifiers": None}, {"folders": ()}])
def test_without_key_hashes_or_folders_nothing_is_known(evidence: Evidence, missing: dict) -> None:
    finding = Identifiers()(replace(evidence, **missing))
    assert finding.verdict == "inconclusive"
    assert finding.value is None


def test_a_search_that_misses_the_planted_identifier_gives_no_verdict(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identifiers, "find", lambda *_: [])
    finding = Identifiers()(evidence)
    assert finding.verdict == "inconclusive"
    assert "DICOM header" in finding.why
    assert finding.control < 0.5


def test_a_search_that_fires_at_everything_gives_no_verdict(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    real = identifiers.find
    noisy = [Hit(file="note.txt", kind="text")]
    monkeypatch.setattr(identifiers, "find", lambda hashes, key, paths: real(hashes, key, paths) if paths == evidence.folders else noisy)
    finding = Identifiers()(evidence)
    assert finding.verdict == "inconclusive"
    assert "nothing in a clean file" in finding.why


def test_a_file_that_cannot_be_looked_through_gives_no_pass(evidence: Evidence) -> None:
    (evidence.folders[0] / "weights.zip").write_bytes(b"PK\x03\x04 broken")
    finding = Identifiers()(evidence)
    assert finding.verdict == "inconclusive"
    assert "weights.zip" in finding.why
