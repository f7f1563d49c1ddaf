"""What is pushed is a whole release of synthetic images, or it is said and not sent; what is asked of pull is a part of an archive."""

import builtins
import json
import sys
from pathlib import Path

import pydicom
import pytest

from medsynth import cli, tools
from medsynth.errors import MedsynthError, SettingsError
from medsynth.export.dicom import write
from medsynth.export.seal import seal
from tests.export.conftest import made_by, synthetic  # noqa: F401
from tests.export.test_export_dicom import ramp

NOWHERE = "to=dicom://ARCHIVE@127.0.0.1:1"


@pytest.fixture
def released(synthetic, made_by, tmp_path) -> Path:  # noqa: F811
    cohort = synthetic(ramp((8, 10, 3)), "MR")
    write(cohort, cohort.cases[0], tmp_path / "release" / "dicom" / "a", made_by)
    seal(tmp_path / "release", bytes(32))
    return tmp_path / "release"


def push(folder: Path, *settings: str) -> None:
    tools.perform("push", [str(folder), NOWHERE, "retries=0", "timeout=2", *settings])


def test_a_whole_release_is_sent(released) -> None:
    with pytest.raises(MedsynthError, match=r"makes no association.*0 of 3 files"):
        push(released)


def test_a_changed_release_is_not_sent_unless_told_so(released) -> None:
    (released / "note.txt").write_text("more")
    with pytest.raises(MedsynthError, match=r"not a whole release: extra note\.txt"):
        push(released)
    with pytest.raises(MedsynthError, match="makes no association"):
        push(released, "unverified=true")


def test_an_object_that_does_not_say_that_it_is_synthetic_is_never_sent(released) -> None:
    (file, *_) = sorted(released.rglob("*.dcm"))
    image = pydicom.dcmread(file)
    del image.SyntheticData
    image.save_as(file)
    seal(released, bytes(32))
    with pytest.raises(MedsynthError, match="1 of 3 DICOM files do not say Synthetic Data"):
        push(released, "unverified=true")


def test_a_folder_without_images_and_no_folder_are_errors(tmp_path) -> None:
    with pytest.raises(MedsynthError, match="is no folder"):
        push(tmp_path / "none")
    with pytest.raises(MedsynthError, match="no DICOM file"):
        push(tmp_path, "unverified=true")


def test_a_release_in_spite_of_its_evidence_says_so_when_it_is_sent(released, caplog) -> None:
    (released / "audit.json").write_text(json.dumps({"released_in_spite_of": {"reason": "a test"}}))
    seal(released, bytes(32))
    with pytest.raises(MedsynthError, match="makes no association"):
        push(released)
    assert "IN SPITE OF ITS EVIDENCE" in caplog.text


@pytest.mark.parametrize("query", ["{}", "{PatientID: '*'}", "{Modality: ''}"])
def test_a_whole_archive_is_not_pulled(tmp_path, query) -> None:
    with pytest.raises(SettingsError, match="whole archive"):
        tools.perform("pull", [str(tmp_path), "source=dicom://A@127.0.0.1:1", f"query={query}"])


def test_a_misspelt_keyword_is_said_before_anything_is_asked(tmp_path) -> None:
    with pytest.raises(SettingsError, match="Modlity is no DICOM keyword"):
        tools.perform("pull", [str(tmp_path), "source=dicom://A@127.0.0.1:1", "query={Modlity: MR}"])


@pytest.mark.parametrize(("library", "to"), [("pynetdicom", NOWHERE), ("dicomweb_client.api", "to=http://127.0.0.1:1/dicom-web")])
def test_without_its_library_the_error_names_the_extra(released, monkeypatch, library, to) -> None:
    real_import = builtins.__import__

    def without(name, *args, **kwargs):
        if name == library:
            raise ImportError(name, name=name)
        return real_import(name, *args, **kwargs)

    for name in ("medsynth.pacs.dimse", "medsynth.pacs.web"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MedsynthError, match=r"medsynth-diffusion\[pacs\]"):
        tools.perform("push", [str(released), to])


@pytest.mark.parametrize("verb", ["push", "pull"])
def test_help_shows_the_path_first_and_every_setting(verb, capsys) -> None:
    assert cli.main([verb, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"usage: medsynth {verb} PATH" in shown
    assert all(f"  {name}=" in shown for name in ("calling", "user", "ca", "timeout", "retries"))
