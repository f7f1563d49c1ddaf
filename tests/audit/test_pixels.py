"""Text in synthetic pixels: read where it is drawn, not where it is not, with doubt where the reader cannot be trusted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medsynth.audit import pixels
from medsynth.audit.finding import Evidence
from medsynth.audit.level import LEVELS
from medsynth.audit.pixels import Pixels
from medsynth.deidentify import burned_in
from tests.make_evidence import cohort_of
from tests.make_text import burn, phantom

needs_tesseract = pytest.mark.skipif(not burned_in.is_installed(), reason="tesseract is not installed")
SIDE = 128


def shown(picture: np.ndarray) -> np.ndarray:
    """A picture (row, column), uint8, as a case's array (x, y) in model units."""
    return (picture.astype(np.float32) / 127.5 - 1).T[::-1, ::-1]


def evidence(folder: Path, *, text: int = 0, cases: int = 10, plants: int = 6, side: int = SIDE) -> Evidence:
    def pictures(first: int, count: int) -> np.ndarray:
        return np.stack([shown(phantom(side, first + n, rim=False)) for n in range(count)])

    synthetic = pictures(100, cases)
    for n in range(text):
        synthetic[n] = shown(burn(phantom(side, n, rim=False), "SMITH, JOHN M\nID 4711", size=13, contrast=200, place=(4, 4)))
    return Evidence(
        train=cohort_of(folder, "train", pictures(200, 3)),
        holdout=cohort_of(folder, "holdout", pictures(300, 3)),
        synthetic=cohort_of(folder, "synthetic", synthetic),
        level=replace(LEVELS["demo"], plants=plants, excess=0.7),
        seed=0,
    )


@needs_tesseract
def test_text_in_the_pixels_fails_and_its_cases_are_named(tmp_path: Path) -> None:
    finding = Pixels()(evidence(tmp_path, text=5, cases=5, plants=1))
    assert finding.verdict == "fail", finding.why
    assert finding.details["text"] >= 4
    assert "synthetic-000000" in finding.details["cases"]


@pytest.mark.slow
@needs_tesseract
def test_without_text_it_passes_and_the_planted_text_was_read(tmp_path: Path) -> None:
    finding = Pixels()(evidence(tmp_path))
    assert finding.verdict == "pass", finding.why
    assert finding.details["planted"]["read"] >= 5
    assert (finding.value, finding.control) == (0, 0)


@pytest.mark.slow
@needs_tesseract
def test_one_text_is_no_pass_and_is_pointed_at(tmp_path: Path) -> None:
    finding = Pixels()(evidence(tmp_path, text=1))
    assert finding.verdict == "inconclusive"
    assert "Look at synthetic-000000" in finding.why


@needs_tesseract
@pytest.mark.parametrize("axis", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_a_volume_is_read_along_every_axis(axis: int) -> None:
    picture = shown(burn(phantom(SIDE, 1, rim=False), "SMITH, JOHN M\nID 4711", size=13, contrast=200, place=(4, 4)))
    volume = np.repeat(np.expand_dims(picture, axis), 3, axis)
    planes = pixels._planes(volume.shape)
    assert planes == [tuple(other for other in range(3) if other != axis)]
    assert pixels._read(volume, planes)
    assert not pixels._read(volume, planes, turned=True)


def test_a_blind_reader_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burned_in, "is_installed", lambda: True)
    monkeypatch.setattr(burned_in, "find_in_frames", lambda frames: [])
    finding = Pixels()(evidence(tmp_path))
    assert finding.verdict == "inconclusive"
    assert "0 were read" in finding.why


def test_a_reader_that_sees_words_everywhere_accuses_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burned_in, "is_installed", lambda: True)
    monkeypatch.setattr(burned_in, "find_in_frames", lambda frames: [(0, 0, 1, 1)])
    finding = Pixels()(evidence(tmp_path))
    assert (finding.verdict, finding.value, finding.control) != ("fail", 1, 1)
    assert finding.value == 0


def test_without_a_reader_nothing_is_known_but_for_small_grids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(burned_in, "is_installed", lambda: False)
    finding = Pixels()(evidence(tmp_path / "large"))
    assert (finding.verdict, finding.value) == ("inconclusive", None)
    assert "apt-get install tesseract-ocr" in finding.why
    finding = Pixels()(evidence(tmp_path / "small", side=40))
    assert (finding.verdict, finding.value) == ("pass", 0)
    assert "40 x 40" in finding.why
