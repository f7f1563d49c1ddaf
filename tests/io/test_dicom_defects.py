"""Each defect class: right, or refused for the right reason. The slow half compares other readers, and with that docs/dicom.md."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from medsynth.io import dicom, nifti
from medsynth.io.dicom.inspection import Inspection, inspect
from medsynth.volume import Volume
from tests.dicom_defects import CASES, Case, is_right
from tests.make_dicom import save, slices


def inspected(case: Case, folder: Path) -> Inspection:
    (folder / "archive").mkdir()
    case.make(folder / "archive")
    return inspect(folder / "archive", repairs=[*dicom.HARMLESS, *case.repairs], volumes=folder / "volumes")


def volumes(found: Inspection) -> list[Volume]:
    read = [nifti.read(row.volume) for row in found.rows if row.volume]
    return [Volume(array, affine) for array, affine, _ in read]


@pytest.mark.parametrize("name", CASES)
def test_each_defect_is_read_right_or_refused_for_its_reason(name, tmp_path):
    case = CASES[name]
    found = inspected(case, tmp_path)
    assert [is_right(volume, case) for volume in volumes(found)] == [True] * case.volumes, [row.reason for row in found.rows]
    assert sorted(row.code for row in found.rows if row.verdict == "rejected") == sorted(case.codes)
    assert {row.verdict for row in found.rows if row.volume} <= {"repaired" if case.repaired else "accepted"}
    assert all(row.reason.startswith(tuple(case.repaired)) for row in found.rows if row.verdict == "repaired")
    files = [file for row in found.rows for file in row.files]
    assert len(files) == len(set(files)) == found.files - found.other


def test_a_slice_that_may_not_be_read_refuses_the_series_that_it_lies_with():
    with TemporaryDirectory() as name:  # pytest's own folders are closed to the user that this test becomes
        folder = Path(name)
        folder.chmod(0o755)
        save(slices(), folder / "one")
        save(slices(series="1.2.6"), folder / "other")
        os.chmod(folder / "one/IM0007", 0)
        user = os.geteuid()
        try:
            if user == 0:  # nothing is forbidden to root
                os.seteuid(65534)
            found = inspect(folder)
        finally:
            os.seteuid(user)
    assert sorted((row.code, len(row.files)) for row in found.rows) == [("", 8), ("incomplete", 7), ("no-permission", 1)]
