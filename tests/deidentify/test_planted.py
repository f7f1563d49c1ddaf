"""Identifiers planted in more than fifty places of a file: none is left, whatever the options; and no file gets less valid."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.deidentification import CLASSES, errors, plant, survivors, validator
from medsynth.deidentify import burned_in
from medsynth.deidentify.folder import deidentify
from medsynth.deidentify.image import Cleaner, searched_overlay
from medsynth.deidentify.profile import Options
from tests.make_text import burn
from tests.plain_search import found_in

KEY = b"k" * 32
ALL = Options(dates="shift", descriptors="clean", graphics="clean", private="safe", patient="keep")
ZOO = Path(__file__).parents[3] / "shared" / "data" / "dicom_zoo"


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> tuple[Path, dict[str, dict[str, str]]]:
    root = tmp_path_factory.mktemp("archive")
    return root, {kind: plant(kind, root / f"{kind.replace(' ', '-')}.dcm") for kind in CLASSES}


@pytest.mark.parametrize("options", [Options(), ALL], ids=["basic", "every option"])
def test_no_planted_identifier_survives(archive, options, tmp_path):
    root, planted = archive
    for kind, found in planted.items():
        assert len(found) >= 50
        assert set(survivors((root / f"{kind.replace(' ', '-')}.dcm").read_bytes(), found)) == set(found), "they are there to be found"
    verdicts = deidentify(root, tmp_path / "out", Cleaner(key=KEY, options=options, burned_in="keep"))
    assert [verdict.verdict for verdict in verdicts] == ["written"] * 4
    needles = {text for found in planted.values() for text in found.values()}
    dates = {text for text in needles if len(text) == 8}
    assert found_in(tmp_path / "out", needles - dates, dates) == []


def test_no_error_text_quotes_the_file(archive, tmp_path, recwarn):
    root, planted = archive
    content = (root / "MR.dcm").read_bytes()
    chance = np.random.default_rng(3)
    (tmp_path / "in").mkdir()
    for number in range(60):
        broken = bytearray(content[: chance.integers(200, len(content))])
        for at in chance.integers(132, len(broken), 20):
            broken[at] = chance.integers(0, 256)
        (tmp_path / "in" / f"{number:02}.dcm").write_bytes(bytes(broken))
    verdicts = deidentify(tmp_path / "in", tmp_path / "out", Cleaner(key=KEY, burned_in="keep"))
    assert len(verdicts) == 60
    assert any(verdict.verdict == "rejected" for verdict in verdicts)
    assert not recwarn.list, "warnings quote values"
    whole = {place: text for place, text in planted["MR"].items() if len(text) > 8}
    assert found_in(tmp_path / "out", whole.values()) == []


def test_cleaned_files_have_no_more_errors_than_their_originals(archive, tmp_path):
    if validator() is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    root, planted = archive
    for kind in planted:
        given = root / f"{kind.replace(' ', '-')}.dcm"
        (tmp_path / kind / "in").mkdir(parents=True)
        shutil.copy(given, tmp_path / kind / "in")
        (verdict,) = deidentify(tmp_path / kind / "in", tmp_path / kind / "out", Cleaner(key=KEY, options=ALL, burned_in="keep"))
        assert errors(tmp_path / kind / "out" / verdict.written) <= errors(given), kind


@pytest.mark.real
def test_real_files_have_no_more_errors_afterwards(tmp_path):
    if not ZOO.is_dir() or validator() is None:
        pytest.skip("no dicom_zoo, or no dciodvfy")
    written = 0
    for path in sorted(ZOO.iterdir()):
        (tmp_path / path.name / "in").mkdir(parents=True)
        shutil.copy(path, tmp_path / path.name / "in")
        cleaner = Cleaner(key=KEY, options=ALL, burned_in="keep", faces="keep")
        (verdict,) = deidentify(tmp_path / path.name / "in", tmp_path / path.name / "out", cleaner)
        if verdict.written:
            written += 1
            assert errors(tmp_path / path.name / "out" / verdict.written) <= errors(path), path.name
    assert written > 25


@pytest.mark.slow
def test_another_process_with_the_same_key_writes_the_same_bytes(archive, tmp_path):
    root, _ = archive
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "key").chmod(0o600)
    command = [sys.executable, "-m", "medsynth.cli", "deidentify", root, f"key={tmp_path / 'key'}", "burned_in=keep"]
    for name in ("a", "b"):
        subprocess.run([*command, f"out={tmp_path / name}"], check=True, capture_output=True)
    a, b = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*.dcm")} for f in (tmp_path / "a", tmp_path / "b"))
    assert a == b
    assert len(a) == 4


@pytest.mark.skipif(not burned_in.is_installed(), reason="tesseract is not installed")
def test_an_overlay_that_shows_text_goes_and_one_that_shows_none_stays(tmp_path):
    plain = np.zeros((128, 256), np.uint8)
    plain[40:80, 60:120] = 255
    written = burn(np.zeros((128, 256), np.uint8), "JANE DOE 1970", size=20, contrast=255, place=(20, 50))
    packed = [np.packbits(picture > 128, bitorder="little").tobytes() for picture in (plain, written)]
    assert [searched_overlay(bits, 128, 256) for bits in packed] == [True, False]
