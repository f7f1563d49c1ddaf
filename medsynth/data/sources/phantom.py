"""A phantom hospital: a DICOM archive of nobody, whose truth is known.

It is written once, from a seed, as messy as an archive is: random file names, names and numbers of invented people in every corner of the
headers, localizers, a report, a note, series that lack a slice. Then it is read back like any other archive, by `DicomTree`, so that
nothing downstream knows that it is a phantom. What its pictures show is stated in `medsynth.data.sources.phantom_anatomy`, whom its files
name in `planted_identifiers`.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date, timedelta
from functools import cached_property, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import BasicTextSRStorage, CTImageStorage, ExplicitVRLittleEndian, MRImageStorage
from tqdm import tqdm

from medsynth.data.source import Item, Scan
from medsynth.data.sources.dicom_tree import DicomTree
from medsynth.data.sources.phantom_anatomy import FIELD_OF_VIEW, SECOND_STUDY, TISSUE, image_of, truth
from medsynth.errors import MedsynthError, SettingsError
from medsynth.io.dicom import Journal
from medsynth.rng import generator_for, seed_for
from medsynth.volume import Volume

VERSION = 1  # of what is written: another version is another archive
MARKER = "phantom.json"


class Phantom:
    """The phantom hospital below ``root``, written at the first scan.

    Each of ``patients`` is imaged with one of ``modalities`` (CT, MR; at random), as ``slices`` of ``size`` x ``size`` voxels,
    ``thickness`` mm apart, over `FIELD_OF_VIEW`. An archive that is already there is used if it was made with the same settings, and never
    overwritten.
    """

    unit = "subject"

    def __init__(
        self,
        root: str,
        patients: int = 200,
        seed: int = 0,
        modalities: Sequence[str] = ("CT", "MR"),
        size: int = 64,
        slices: int = 10,
        thickness: float = 8.0,
        licence: str = "CC0-1.0",
        terms: str = "Invented by this project: no real person.",
    ) -> None:
        self.root = root
        self.patients = patients
        self.seed = seed
        self.modalities = modalities
        self.size = size
        self.slices = slices
        self.thickness = thickness
        self.licence = licence
        self.terms = terms

    def scan(self, *, workers: int, journal: Journal | None = None) -> Scan:
        """Write the archive where it is missing, then read it as an archive. Raises MedsynthError where another one lies at ``root``."""
        self.write(workers=workers)
        return self._tree.scan(workers=workers, journal=journal)

    def open(self, item: Item) -> Volume:
        return self._tree.open(item)

    @property
    def _tree(self) -> DicomTree:
        return DicomTree(root=self.root, licence=self.licence, terms=self.terms)

    def expected_rejections(self) -> dict[str, int]:
        """How many rejections of which code the archive's mess must give."""
        visits = [visit for patient in range(self.patients) for visit in self._visits(patient)]
        return {
            "localizer": sum(visit.localizer for visit in visits),
            "missing-slice": sum(visit.gap for visit in visits),
            "not-an-image": sum(visit.report for visit in visits),
        }

    def write(self, *, workers: int = 1) -> None:
        """Write the archive by rename, so that it is there as a whole or not at all."""
        self._check()
        root = Path(self.root)
        if self._is_complete(root):
            return
        try:
            root.parent.mkdir(parents=True, exist_ok=True)
            partial_root = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
        except OSError as error:
            raise MedsynthError(
                f"The phantom hospital cannot be written to source.root={self.root} ({error.strerror}). Choose another source.root."
            ) from error
        try:
            work = partial(_write_patient, self, partial_root)
            bar = {"total": self.patients, "desc": "writing the phantom hospital", "unit": "patient"}
            if workers < 2 or self.patients < 40:
                list(tqdm(map(work, range(self.patients)), **bar))
            else:
                with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
                    list(tqdm(pool.map(work, range(self.patients), chunksize=4), **bar))
            family, given = person(self.seed, 0).names
            (partial_root / "notes.txt").write_text(f"Call the ward about {given} {family}, CD is unreadable.\n")
            (partial_root / MARKER).write_text(json.dumps(self._settings(), indent=1))
            os.chmod(partial_root, 0o755)
            if root.is_dir() and not any(root.iterdir()):
                root.rmdir()
            try:
                partial_root.rename(root)
            except OSError:
                if not self._is_complete(root):  # another process wrote the same one meanwhile
                    raise
        finally:
            shutil.rmtree(partial_root, ignore_errors=True)

    def _check(self) -> None:
        unknown = [name for name in self.modalities if name not in TISSUE]
        if unknown or not self.modalities:
            raise SettingsError(f"source.modalities={list(self.modalities)}: the phantom hospital has CT and MR.")
        if self.patients < 1 or self.size < 16 or self.slices < 4 or self.thickness <= 0:
            raise SettingsError(
                f"source.patients={self.patients} (1 or more), size={self.size} (16 or more), slices={self.slices} (4 or more), "
                f"thickness={self.thickness} (mm, above 0) make no hospital."
            )

    def _settings(self) -> dict[str, object]:
        names = ("patients", "seed", "size", "slices", "thickness")
        return {"version": VERSION, "modalities": list(self.modalities)} | {name: getattr(self, name) for name in names}

    def _is_complete(self, root: Path) -> bool:
        if not root.exists() or (root.is_dir() and not any(root.iterdir())):
            return False
        try:
            found = json.loads((root / MARKER).read_text())
        except (OSError, ValueError):
            raise MedsynthError(
                f"source.root={self.root} holds something that is no phantom hospital. Choose another source.root, "
                "or read what is there: source=dicom_tree or source=folder."
            ) from None
        wanted = self._settings()
        if other := [name for name in wanted if found.get(name) != wanted[name]]:
            raise MedsynthError(
                f"source.root={self.root} holds a phantom hospital made with other settings ({', '.join(other)}). "
                "Choose another source.root, or delete that folder to write it anew."
            )
        return True

    def _visits(self, patient: int) -> Iterator["_Visit"]:
        """The studies of a patient, and the mess in each. The first patients have some of every kind, so that no archive is without."""
        draw = generator_for(self.seed, "phantom", "visits", patient)
        modality = str(draw.choice(list(self.modalities)))
        for number in range(1 + (draw.random() < SECOND_STUDY or patient == 1)):
            mess = draw.random(3)
            yield _Visit(
                patient=patient,
                number=number,
                modality=modality,
                localizer=bool(mess[0] < 0.15 or patient == 0),
                gap=bool(mess[1] < 0.03 or (patient, number) == (2, 0)),
                report=bool(mess[2] < 0.05 or (patient, number) == (3, 0)),
            )


# ----------------------------------------------------------------------------------------------------------------- people who do not exist


@dataclass(frozen=True, kw_only=True)
class Person:
    """An invented person: every string that the archive holds about them. ``planted`` maps the place to the string."""

    names: tuple[str, str]
    number: str
    planted: Mapping[str, str]
    uids: tuple[str, ...]
    born: str
    seen: tuple[str, ...]


def person(seed: int, patient: int) -> Person:
    """The same for the same seed; no word of it occurs in any language or in this project."""
    draw = generator_for(seed, "phantom", "person", patient)

    def word(syllables: int = 4) -> str:
        return "".join(draw.choice(list("bdfgklmnprtvxz")) + draw.choice(list("aeiou")) for _ in range(syllables)).capitalize()

    family, given = word(), word()
    number = f"MRN{draw.integers(10**8, 10**9)}"
    places = {
        "family": family,
        "given": given,
        "PatientID": number,
        "OtherPatientIDs": f"SSN{draw.integers(10**8, 10**9)}",
        "PatientAddress": f"{draw.integers(1, 99)} {word()} Lane",
        "PatientTelephoneNumbers": f"+99 {draw.integers(10**8, 10**9)}",
        "AccessionNumber": f"ACC{draw.integers(10**8, 10**9)}",
        "InstitutionName": f"{word()} Infirmary",
        "ReferringPhysicianName": f"{word()}^{word()}",
        "OperatorsName": f"{word()}^{word()}",
        "StationName": f"STN{word(5)}",
        "DeviceSerialNumber": f"SER{draw.integers(10**8, 10**9)}",
        "ImageComments": f"discussed with {word()} {word()}",
        "StudyDescription": f"abdomen for Dr {word(5)}",
        "RequestedProcedureDescription": f"asked by Sister {word(5)}",  # nested
        "PersonName nested": f"{word()}^{word()}",
        "private text": f"csa {word(6)}",
        "private nested": f"phoenix {word(6)}",
        "private bytes": f"raw {word(6)}",
        "preamble": f"prea {word(6)}",
        "report": f"Seen with {word(6)} yesterday",
        "file": f"{word(5)}",
    }
    study_day = date(2015, 1, 1) + timedelta(days=int(draw.integers(0, 2500)))
    later = study_day + timedelta(days=int(draw.integers(100, 700)))
    # 45 years old at the study means born 45 years and some days before it
    born = study_day - timedelta(days=int(truth(seed, patient).age * 365.25) + int(draw.integers(2, 300)))
    return Person(
        names=(family, given),
        number=number,
        planted=places,
        uids=tuple(
            _uid(seed, patient, kind, visit) for visit in (0, 1) for kind in ("study", "frame", "image", "gap", "localizer", "report")
        ),
        born=born.strftime("%Y%m%d"),
        seen=tuple(day.strftime("%Y%m%d") for day in (study_day, later)),
    )


def planted_identifiers(seed: int, patients: int, dates: bool = False) -> tuple[str, ...]:
    """Every string planted for the first ``patients`` people of this seed: names, numbers, free text, UIDs. Some UIDs are of series that a
    patient lacks.

    ``dates`` adds birth and study dates, which are eight digits: search for these in text, not in pixels, where eight digits may occur by
    chance.
    """
    found: list[str] = []
    for patient in range(patients):
        who = person(seed, patient)
        found += [part for value in who.planted.values() for part in value.split("^")]
        found += who.uids
        if dates:
            found += [who.born, *who.seen]
    return tuple(dict.fromkeys(found))


def _uid(*parts: int | str) -> str:
    digest = hashlib.sha256("\x1f".join(map(str, ("phantom", *parts))).encode()).digest()
    return f"2.25.{int.from_bytes(digest[:16], 'big')}"


# ----------------------------------------------------------------------------------------------------------------------------- the archive


@dataclass(frozen=True, kw_only=True)
class _Visit:
    """A study: its image series, and what else is in it."""

    patient: int
    number: int
    modality: str
    localizer: bool
    gap: bool  # a second image series that lacks a slice
    report: bool


def _write_patient(phantom: Phantom, root: Path, patient: int) -> None:
    for visit in phantom._visits(patient):
        _Study(phantom, root, visit).write()


class _Study:
    """Writes one visit's files."""

    def __init__(self, phantom: Phantom, root: Path, visit: _Visit) -> None:
        self.phantom, self.visit, self.seed = phantom, visit, phantom.seed
        self.who, self.anatomy = person(phantom.seed, visit.patient), truth(phantom.seed, visit.patient)
        family, given = self.who.names
        # every third patient comes as a flat heap, as from a CD; the others under their name
        self.folder = (
            root / "incoming" if visit.patient % 3 == 2 else root / f"{family}_{given}_{self.who.number}" / self._name("study")[:6]
        )
        self.folder.mkdir(parents=True, exist_ok=True)

    def write(self) -> None:
        visit, phantom = self.visit, self.phantom
        grid = {"size": phantom.size, "slices": phantom.slices, "thickness": phantom.thickness}
        for kind in ("image", "gap") if visit.gap else ("image",):
            array = image_of(self.anatomy, visit.modality, **grid, seed=seed_for(self.seed, visit.patient, visit.number, kind))
            self._write_series(kind, array)
        if visit.localizer:
            self._write_localizer(array)
        if visit.report:
            self._write_report()

    def _write_series(self, kind: str, array: np.ndarray) -> None:
        pixel, thickness = FIELD_OF_VIEW / self.phantom.size, self.phantom.thickness
        corner = -pixel * (self.phantom.size - 1) / 2
        data = self._image(kind, (1, 0, 0, 0, 1, 0), (pixel, pixel))
        data.SliceThickness = f"{thickness:g}"
        for number in range(self.phantom.slices):
            if kind == "gap" and number == self.phantom.slices // 2:
                continue
            place = (corner, corner, (number - (self.phantom.slices - 1) / 2) * thickness)
            self._save_plane(data, kind, number, array[:, :, number], place)

    def _write_localizer(self, array: np.ndarray) -> None:
        pixel, thickness = FIELD_OF_VIEW / self.phantom.size, self.phantom.thickness
        corner, top = -pixel * (self.phantom.size - 1) / 2, (self.phantom.slices - 1) / 2 * thickness
        coronal = (array[:, array.shape[1] // 2, :], (1, 0, 0, 0, 0, -1), (corner, 0.0, top))
        sagittal = (array[array.shape[0] // 2, :, :], (0, 1, 0, 0, 0, -1), (0.0, corner, top))
        for number, (plane, directions, place) in enumerate((coronal, sagittal)):
            data = self._image("localizer", directions, (thickness, pixel))
            data.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
            self._save_plane(data, "localizer", number, plane, place)

    def _write_report(self) -> None:
        data = self._common("report")
        data.SOPClassUID, data.Modality = BasicTextSRStorage, "SR"
        data.SOPInstanceUID = self._own_uid("report", 0)
        data.InstanceNumber = 1
        data.ContentDate, data.ContentTime = data.StudyDate, data.StudyTime
        data.CompletionFlag, data.VerificationFlag = "COMPLETE", "UNVERIFIED"
        data.ReferencedPerformedProcedureStepSequence, data.PerformedProcedureCodeSequence = [], []
        data.ValueType, data.ContinuityOfContent = "CONTAINER", "SEPARATE"
        data.ConceptNameCodeSequence = [_code("121111", "DCM", "Summary")]
        line = Dataset()
        line.RelationshipType, line.ValueType = "CONTAINS", "TEXT"
        line.ConceptNameCodeSequence = [_code("121071", "DCM", "Finding")]
        line.TextValue = self.who.planted["report"]
        data.ContentSequence = [line]
        self._save(data, "report", 0)

    @cached_property
    def _patient(self) -> dict[str, object]:
        """What every file of the study says about the person: an honest archive's headers, with a name in every kind of place."""
        planted, visit = self.who.planted, self.visit
        given = ("PatientID", "OtherPatientIDs", "PatientAddress", "PatientTelephoneNumbers", "InstitutionName", "ReferringPhysicianName")
        given += ("OperatorsName", "StationName", "DeviceSerialNumber", "StudyDescription")
        request = Dataset()
        request.RequestedProcedureDescription = planted["RequestedProcedureDescription"]
        request.RequestedProcedureID = planted["AccessionNumber"]
        observer = Dataset()
        observer.PersonIdentificationCodeSequence = [_code("1", "99PHANTOM", planted["PersonName nested"].replace("^", " "))]
        observer.InstitutionName = planted["InstitutionName"]
        years = self.anatomy.age + (int(self.who.seen[visit.number][:4]) - int(self.who.seen[0][:4]))
        return {name: planted[name] for name in given} | {
            "PatientName": "^".join(self.who.names),
            "PatientBirthDate": self.who.born,
            "PatientSex": self.anatomy.sex,
            "PatientAge": f"{years:03d}Y",
            "AdmittingDiagnosesDescription": self.anatomy.diagnosis,
            "AccessionNumber": f"{planted['AccessionNumber']}{visit.number}"[:16],
            "StudyInstanceUID": _uid(self.seed, visit.patient, "study", visit.number),
            "StudyID": "",
            "StudyDate": self.who.seen[visit.number],
            "StudyTime": "101500",
            "SeriesDate": self.who.seen[visit.number],
            "AcquisitionDate": self.who.seen[visit.number],
            "Manufacturer": "",
            "RequestAttributesSequence": [request],
            "ReferringPhysicianIdentificationSequence": [observer],
        }

    def _common(self, kind: str) -> Dataset:
        data = Dataset()
        data.SpecificCharacterSet = "ISO_IR 100"
        for name, value in self._patient.items():
            setattr(data, name, value)
        data.SeriesInstanceUID = _uid(self.seed, self.visit.patient, kind, self.visit.number)
        data.SeriesNumber = {"localizer": 1, "image": 2, "gap": 3, "report": 99}[kind]
        data.SeriesDescription = f"{kind} {self.who.planted['file']}"
        private = data.private_block(0x0029, "PHANTOM HEADER", create=True)
        private.add_new(0x01, "LO", self.who.planted["private text"])
        private.add_new(0x02, "OB", self.who.planted["private bytes"].encode().ljust(64, b"\0"))
        inner = Dataset()
        inner.private_block(0x0029, "PHANTOM HEADER", create=True).add_new(0x03, "LT", self.who.planted["private nested"])
        private.add_new(0x04, "SQ", [inner])
        return data

    def _image(self, kind: str, directions: Sequence[float], spacing: Sequence[float]) -> Dataset:
        """What the images of a series have in common."""
        data, modality = self._common(kind), self.visit.modality
        data.Modality = modality
        data.FrameOfReferenceUID = _uid(self.seed, self.visit.patient, "frame", self.visit.number)
        data.PositionReferenceIndicator = ""
        data.PatientPosition, data.BodyPartExamined = "HFS", "ABDOMEN"
        data.ImageComments = self.who.planted["ImageComments"]
        data.ImageOrientationPatient = [f"{value:g}" for value in directions]
        data.PixelSpacing = [f"{value:.6g}" for value in spacing]
        data.SliceThickness = "5"
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
        if modality == "CT":
            data.SOPClassUID, data.ImageType = CTImageStorage, ["ORIGINAL", "PRIMARY", "AXIAL"]
            data.KVP, data.ConvolutionKernel, data.AcquisitionNumber = "120", "B30", 1
            data.RescaleSlope, data.RescaleIntercept, data.RescaleType = "1", "-2048", "HU"
        else:
            data.SOPClassUID, data.ImageType = MRImageStorage, ["ORIGINAL", "PRIMARY", "OTHER"]
            data.ScanningSequence, data.SequenceVariant, data.ScanOptions, data.MRAcquisitionType = "SE", "SK", "", "2D"
            data.RepetitionTime, data.EchoTime, data.EchoTrainLength, data.EchoNumbers = "2500", "90", "8", 1
            data.MagneticFieldStrength, data.FlipAngle = "1.5", "90"
        return data

    def _save_plane(self, data: Dataset, kind: str, number: int, plane: np.ndarray, place: Sequence[float]) -> None:
        """Complete ``data`` for one plane and write it. ``plane`` has RAS+ axes; DICOM's columns and rows run against both."""
        data.SOPInstanceUID = self._own_uid(kind, number)
        data.InstanceNumber = number + 1
        data.ImagePositionPatient = [f"{value:.6g}" for value in place]
        data.Rows, data.Columns = plane.shape[1], plane.shape[0]
        stored = np.rint(plane[::-1, ::-1].T) - int(data.get("RescaleIntercept", 0))
        data.PixelData = np.clip(stored, 0, 65535).astype("<u2").tobytes()
        self._save(data, kind, number)

    def _own_uid(self, kind: str, number: int) -> str:
        return _uid(self.seed, self.visit.patient, kind, self.visit.number, "instance", number)

    def _name(self, *parts: int | str) -> str:
        return f"{seed_for(self.seed, 'file', self.visit.patient, self.visit.number, *parts):016x}"

    def _save(self, data: Dataset, kind: str, number: int) -> None:
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta = meta
        data.preamble = self.who.planted["preamble"].encode().ljust(128, b"\0")
        name = self._name(kind, number)
        if kind == "localizer":
            name = f"{self.who.planted['file']}_{name[:4]}.dcm"
        data.save_as(self.folder / name, enforce_file_format=True)


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, meaning
    return code
