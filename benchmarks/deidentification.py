"""``python -m benchmarks.deidentification``: the table of docs/deidentification.md, written there.

Identifiers planted in each place of a file that can hold one, and what is left of them by medsynth and its peers.

Four kinds of objects: MR, CT, enhanced MR and secondary capture. Peers run with their defaults (deid with private elements removed). A
survivor is a planted string found in the bytes of what a tool wrote, in any of three encodings. Peers that are not installed have no row.
"""

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRLittleEndian

from benchmarks.table import Table
from medsynth.deidentify.folder import deidentify
from medsynth.deidentify.image import Cleaner

CLASSES = {"MR": "1.2.840.10008.5.1.4.1.1.4", "CT": "1.2.840.10008.5.1.4.1.1.2"}
CLASSES |= {"enhanced MR": "1.2.840.10008.5.1.4.1.1.4.1", "SC": "1.2.840.10008.5.1.4.1.1.7"}
_TEXTS = [
    "AccessionNumber",
    "AdmittingDiagnosesDescription",
    "AdditionalPatientHistory",
    "InstitutionName",
    "InstitutionAddress",
    "InstitutionalDepartmentName",
    "StationName",
    "StudyDescription",
    "SeriesDescription",
    "ProtocolName",
    "DeviceSerialNumber",
    "PatientID",
    "OtherPatientIDs",
    "PatientAddress",
    "PatientComments",
    "PatientTelephoneNumbers",
    "EthnicGroup",
    "Occupation",
    "MedicalRecordLocator",
    "IssuerOfPatientID",
    "StudyID",
    "ImageComments",
    "RequestedProcedureID",
    "RequestedProcedureDescription",
    "PerformedProcedureStepDescription",
    "PerformedProcedureStepID",
    "DerivationDescription",
    "ContrastBolusAgent",
    "IdentifyingComments",
    "AcquisitionComments",
    "DetectorID",
    "ClinicalTrialSubjectID",
    "CountryOfResidence",
    "RegionOfResidence",
]
_NAMES = [
    "PatientName",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "OperatorsName",
    "OtherPatientNames",
    "PatientBirthName",
    "PatientMotherBirthName",
    "NameOfPhysiciansReadingStudy",
    "PhysiciansOfRecord",
    "RequestingPhysician",
    "ResponsiblePerson",
]
_DATES = [
    "StudyDate",
    "SeriesDate",
    "AcquisitionDate",
    "ContentDate",
    "PatientBirthDate",
    "InstanceCreationDate",
    "PerformedProcedureStepStartDate",
]
_UIDS = ["StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "FrameOfReferenceUID", "InstanceCreatorUID", "IrradiationEventUID"]


def measure(tiny: bool) -> list[Table]:
    rows = []
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(name)
        needles = {kind: plant(kind, folder / "in" / f"{kind.replace(' ', '-')}.dcm") for kind in CLASSES}
        for tool, work in [("(the input)", shutil.copy), *tools()]:
            row: dict[str, str | int] = {"tool": tool}
            for kind, planted in needles.items():
                given, made = folder / "in" / f"{kind.replace(' ', '-')}.dcm", folder / tool / f"{kind}.dcm"
                made.parent.mkdir(parents=True, exist_ok=True)
                try:
                    work(given, made)
                    row[kind] = len(survivors(made.read_bytes(), planted))
                    row[f"{kind}, errors"] = errors(made)
                except Exception as error:  # a peer that does not take a file is a result too
                    row[kind], row[f"{kind}, errors"] = type(error).__name__, ""
            rows.append(row)
    planted = ", ".join(f"{len(found)} in {kind}" for kind, found in needles.items())
    note = f"Planted strings left in one file of each kind, and errors that dciodvfy finds in it. Planted: {planted}."
    return [Table(title="De-identification against peers", note=note, rows=rows)]


def plant(kind: str, path: Path) -> dict[str, str]:
    """Write a file of this kind; returns where what was planted. No string occurs in two places or by chance."""
    data, found = Dataset(), {}

    def text(place: str, upper: bool = False) -> str:
        found[place] = f"{'ZQ' if upper else 'Zq'}{len(found):04d}{'WUMBAL' if upper else 'Wumbal'}"
        return found[place]

    def uid(place: str) -> str:
        found[place] = f"1.2.826.0.{7 + list(CLASSES).index(kind)}.{4711000 + len(found)}.{90210 + len(found)}"
        return found[place]

    data.SOPClassUID, data.Modality = CLASSES[kind], kind.removeprefix("enhanced ") if kind != "SC" else "OT"
    for keyword in _TEXTS:
        setattr(data, keyword, text(keyword))
    for keyword in _NAMES:
        setattr(data, keyword, f"{text(keyword)}^Given")
    for keyword in _UIDS:
        setattr(data, keyword, uid(keyword))
    for number, keyword in enumerate(_DATES):
        found[keyword] = f"{1931 + number}0{number + 1}1{number}"
        setattr(data, keyword, found[keyword])
    found["AcquisitionDateTime"] = "19470613"
    data.AcquisitionDateTime = "19470613101112"
    data.RetrieveAETitle, data.StationAETitle = text("RetrieveAETitle", True), text("StationAETitle", True)
    _nest(data, text, uid)
    _hide(data, text)
    _geometry(data, kind)
    meta = data.file_meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.SourceApplicationEntityTitle = text("file meta: source AE", True)
    meta.PrivateInformationCreatorUID, meta.PrivateInformation = "1.2.3.4", text("file meta: private").encode()
    data.preamble = text("preamble").encode().ljust(128, b"\0")
    path.parent.mkdir(parents=True, exist_ok=True)
    dcmwrite(path, data, enforce_file_format=True)
    return found


def _nest(data: Dataset, text: Callable[..., str], uid: Callable[[str], str]) -> None:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = text("nested code value"), "99LOCAL", text("nested code meaning")
    request = Dataset()
    request.ScheduledProcedureStepDescription = text("nested description")
    request.ScheduledProtocolCodeSequence = [code]
    deep = Dataset()
    deep.PatientName, deep.FrameComments = text("nested name"), text("nested comment")
    deep.ReferencedSOPClassUID, deep.ReferencedSOPInstanceUID = CLASSES["MR"], uid("nested reference")
    deep.add_new(0x00090010, "LO", text("nested private creator"))
    deep.add_new(0x00091001, "LO", text("nested private"))
    image = Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = CLASSES["MR"], uid("reference")
    image.PurposeOfReferenceCodeSequence, image.SourceImageSequence = [code], [deep]
    person = Dataset()
    person.InstitutionName, person.PersonAddress = text("nested institution"), text("nested address")
    data.RequestAttributesSequence, data.ReferencedImageSequence, data.OperatorIdentificationSequence = [request], [image], [person]
    data.ProcedureCodeSequence = [code]


def _hide(data: Dataset, text: Callable[..., str]) -> None:
    data.add_new(0x00290010, "LO", text("private creator"))
    data.add_new(0x00291010, "OB", text("private bytes").encode())
    inner = Dataset()
    inner.PatientName = text("private sequence")
    data.add_new(0x00291020, "SQ", [inner])
    data.add_new(0x50000005, "US", 2)
    data.add_new(0x50003000, "OW", text("curve").encode())
    for element, vr, value in (
        (0x10, "US", 8),
        (0x11, "US", 12),
        (0x40, "CS", "G"),
        (0x50, "SS", [1, 1]),
        (0x100, "US", 1),
        (0x102, "US", 0),
    ):
        data.add_new(0x60000000 + element, vr, value)
    data.add_new(0x60000022, "LO", text("overlay description"))
    data.add_new(0x60004000, "LT", text("overlay comments"))
    data.add_new(0x60003000, "OW", text("overlay").encode())
    data.add_new(0xFFFCFFFC, "OB", text("trailing padding").encode())


def _geometry(data: Dataset, kind: str) -> None:
    data.Rows, data.Columns, data.SamplesPerPixel, data.PhotometricInterpretation = 16, 16, 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 8 if kind == "SC" else 16
    data.HighBit, data.PixelRepresentation, data.InstanceNumber = data.BitsStored - 1, 0, 1
    data.ImageType, data.PatientPosition, data.BodyPartExamined, data.SeriesNumber = ["ORIGINAL", "PRIMARY", "AXIAL"], "HFS", "KNEE", 1
    data.ImageOrientationPatient, data.ImagePositionPatient, data.PixelSpacing = [1, 0, 0, 0, 1, 0], [0, 0, 0], [1, 1]
    data.PixelData = (np.arange(256) % 251).astype("u1" if kind == "SC" else "<u2").tobytes()
    data["PixelData"].VR = "OB" if kind == "SC" else "OW"
    if kind == "SC":
        data.ConversionType = "WSD"
    if kind == "enhanced MR":
        data.NumberOfFrames, frame, plane = 1, Dataset(), Dataset()
        plane.ImagePositionPatient = [0, 0, 0]
        frame.PlanePositionSequence = [plane]
        data.PerFrameFunctionalGroupsSequence = [frame]


def survivors(content: bytes, planted: dict[str, str]) -> list[str]:
    """Places whose string is in these bytes."""
    spellings = ("latin-1", "utf-16-le", "utf-16-be")
    return [place for place, text in planted.items() if any(text.encode(spelling) in content for spelling in spellings)]


def errors(path: Path) -> int | str:
    """Errors that dciodvfy reports, if it is installed."""
    program = validator()
    if program is None:
        return ""
    done = subprocess.run([program, path], capture_output=True, check=False)
    return sum(line.startswith(b"Error") for line in done.stderr.splitlines())


def validator() -> str | None:
    """The dciodvfy of this environment (dicom3tools), or of the system."""
    beside = Path(sys.executable).with_name("dciodvfy")
    return str(beside) if beside.exists() else shutil.which("dciodvfy")


def tools() -> Iterator[tuple[str, Callable[[Path, Path], object]]]:
    yield "medsynth", _medsynth
    for tool, module, work in (
        ("dicom-anonymizer", "dicomanonymizer", _dicom_anonymizer),
        ("dicognito", "dicognito", _dicognito),
        ("deid", "deid", _deid),
    ):
        if importlib.util.find_spec(module):
            yield tool, work
    if shutil.which("gdcmanon") and shutil.which("openssl"):
        yield "gdcmanon", _gdcmanon


def _medsynth(given: Path, made: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "in").mkdir()
        shutil.copy(given, folder / "in" / "file.dcm")
        (verdict,) = deidentify(folder / "in", folder / "out", Cleaner(key=b"k" * 32, burned_in="keep"))
        shutil.copy(folder / "out" / verdict.written, made)


def _dicom_anonymizer(given: Path, made: Path) -> None:
    from dicomanonymizer import anonymize_dicom_file

    anonymize_dicom_file(str(given), str(made))


def _dicognito(given: Path, made: Path) -> None:
    from dicognito.anonymizer import Anonymizer

    data = dcmread(given)
    Anonymizer(seed="benchmark").anonymize(data)
    data.save_as(made)


def _deid(given: Path, made: Path) -> None:
    from deid.dicom import get_identifiers, replace_identifiers

    with tempfile.TemporaryDirectory() as folder:
        replace_identifiers(
            dicom_files=[str(given)],
            ids=get_identifiers([str(given)]),
            save=True,
            output_folder=folder,
            remove_private=True,
            overwrite=True,
        )
        shutil.copy(next(Path(folder).rglob("*.dcm")), made)


def _gdcmanon(given: Path, made: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        certificate = Path(folder) / "certificate.pem"
        keys = ["-newkey", "rsa:2048", "-nodes", "-keyout", Path(folder) / "key.pem", "-out", certificate, "-subj", "/CN=benchmark"]
        subprocess.run(["openssl", "req", "-x509", *keys], check=True, capture_output=True)
        subprocess.run(["gdcmanon", "-e", "-c", certificate, given, made], check=True, capture_output=True)


if __name__ == "__main__":
    (table,) = measure(tiny=False)
    page = Path(__file__).parents[1] / "docs" / "deidentification.md"
    rows = table.markdown().split("\n\n", 1)[1].strip()
    page.write_text(
        re.sub(r"(<!-- measured -->\n).*?(<!-- end -->)", lambda part: f"{part[1]}{rows}\n{part[2]}", page.read_text(), flags=re.DOTALL)
    )
