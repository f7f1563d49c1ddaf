import json
import re
import stat
from pathlib import Path

import numpy as np
import pytest

from medsynth.errors import MedsynthError
from medsynth.io import nifti
from medsynth.tools import perform
from medsynth.volume import Volume
from tests.make_dicom import OBLIQUE, ramp_error, save, slices


@pytest.fixture
def archive(tmp_path) -> Path:
    root = tmp_path / "archive"
    save(slices(orientation=OBLIQUE, PatientName="Ada^L", SeriesDescription="T1 <axial>"), root / "good")
    short = slices(series="1.2.6")
    del short[4]
    save(short, root / "short")
    twice = slices(series="1.2.7", PhotometricInterpretation="MONOCHROME1")
    save([*twice, twice[0]], root / "twice")
    (root / "notes.txt").write_text("no image")
    (root / "empty").touch()
    return root


def rows(path: Path) -> list[dict]:
    return json.loads(path.read_text())


def test_one_row_a_series_with_verdict_reason_grid_and_volume(archive, tmp_path, capsys):
    perform("inspect", [str(archive), f"json={tmp_path}/rows.json", f"volumes={tmp_path}/volumes", f"html={tmp_path}/page.html"])
    accepted, repaired, rejected, empty = rows(tmp_path / "rows.json")
    assert [row["verdict"] for row in (accepted, repaired, rejected, empty)] == ["accepted", "repaired", "rejected", "rejected"]
    assert [len(row["files"]) for row in (accepted, repaired, rejected, empty)] == [8, 9, 7, 1]
    assert repaired["reason"].startswith("duplicate-file")
    assert (rejected["code"], empty["code"]) == ("missing-slice", "empty-file")
    assert "slices 4 and 5 are 4.00 mm apart, the others 2.00 mm" in rejected["reason"]
    assert rejected["at"] == [str(archive / "short/IM0003"), str(archive / "short/IM0004")]
    assert (rejected["volume"], rejected["shape"]) == ("", None)
    for row in (accepted, repaired):
        array, affine, _ = nifti.read(row["volume"])
        assert list(array.shape[1:]) == row["shape"] == [10, 12, 8]
        np.testing.assert_allclose(affine, row["affine"], atol=1e-4)
        assert ramp_error(Volume(array, affine)) <= 0.51  # also where black is white: stored units are as stored
    said = capsys.readouterr().out
    assert "26 files: 1 accepted, 1 repaired, 2 rejected; 1 other files are no DICOM images" in said
    assert "Ada^L" in said


def test_the_page_shows_a_thumbnail_of_each_accepted_series_and_is_for_its_owner_alone(archive, tmp_path):
    path = tmp_path / "page.html"
    perform("inspect", [str(archive), f"html={path}"])
    assert "built-in method" not in path.read_text()  # a key of a row taken for a method of dict
    page = path.read_text()
    assert len(re.findall('<img [^>]*src="data:image/png;base64,[A-Za-z0-9+/=]{200,}"', page)) == 2
    assert "T1 &lt;axial&gt;" in page
    assert "missing-slice" in page
    assert "http" not in page
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_rows_are_in_the_order_in_which_people_look_for_them(tmp_path):
    for series, name, what in (("1.2.3", "Beda", "T1"), ("1.2.4", "Ada", "T2"), ("1.2.5", "Ada", "T1")):
        save(slices(series=series, PatientID=name, PatientName=name, SeriesDescription=what), tmp_path / "archive" / series)
    perform("inspect", [str(tmp_path / "archive"), "html=", f"json={tmp_path}/rows.json"])
    assert [(row["patient"], row["description"]) for row in rows(tmp_path / "rows.json")] == [("Ada", "T1"), ("Ada", "T2"), ("Beda", "T1")]


def test_processes_find_what_one_process_finds(archive, tmp_path):
    for workers in (1, 2):
        perform("inspect", [str(archive), "html=", f"json={tmp_path}/{workers}.json", f"workers={workers}"])
    assert rows(tmp_path / "1.json") == rows(tmp_path / "2.json")


def test_mistakes_are_named(tmp_path):
    with pytest.raises(MedsynthError, match="not a folder"):
        perform("inspect", [str(tmp_path / "nowhere")])
    with pytest.raises(MedsynthError, match="gantry-tilt"):
        perform("inspect", [str(tmp_path), "repairs=[tilt]"])
