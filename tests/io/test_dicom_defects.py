"""Each defect class: right, or refused for the right reason. The slow half compares other readers, and with that docs/dicom.md."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from medsynth.io import dicom, nifti
from medsynth.io.dicom.inspection import Inspection, inspect
from medsynth.volume import Volume
from tests.dicom_defects import CASES, Case
from tests.dicom_readers import READERS, verdict
from tests.make_dicom import save, slices

DOCS = Path(__file__).parents[2] / "docs/dicom.md"
MARKS = "<!-- defects: written by tests/io/test_dicom_defects.py -->", "<!-- end of defects -->"


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
    right = [case.judge(volume) and volume.array.shape[3] == case.slices for volume in volumes(found)]
    assert right == [True] * case.volumes, [row.reason for row in found.rows]
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


def table(folder: Path) -> str:
    """What each reader makes of each defect, as docs/dicom.md has it."""
    lines = [["defect", *READERS], ["---"] * (1 + len(READERS))]
    for number, (name, case) in enumerate(CASES.items()):
        archive = folder / f"{number:02d}"
        archive.mkdir()
        case.make(archive)
        lines.append([name, *(verdict(reader, case, archive) for reader in READERS)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


@pytest.mark.slow
def test_the_documented_comparison_is_what_the_readers_do(tmp_path):
    """Run with MEDSYNTH_WRITE_DOCS=1 to write it."""
    for peer in ("itk", "SimpleITK", "dcm2niix", "dicom2nifti"):
        pytest.importorskip(peer, reason=f"{peer} is not installed: pip install -e '.[peers]'")
    found = table(tmp_path)
    before, after = DOCS.read_text().split(MARKS[0])[0], DOCS.read_text().split(MARKS[1])[1]
    if os.environ.get("MEDSYNTH_WRITE_DOCS"):
        DOCS.write_text(f"{before}{MARKS[0]}\n{found}{MARKS[1]}{after}")
    assert f"{MARKS[0]}\n{found}{MARKS[1]}" in DOCS.read_text()


def test_every_reason_and_repair_is_documented():
    text = DOCS.read_text()
    assert all(f"| `{code}` | {reason.what} | {reason.remedy} |" in text for code, reason in dicom.REASONS.items())
    assert all(f"| `{name}` | {what} |" in text for name, what in dicom.REPAIRS.items())
