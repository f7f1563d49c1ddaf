"""Does anything that is to leave the building name a person? Names and bytes of files are searched for what prepare knows people by.

Prepare keeps identifiers as keyed hashes only; the search (`medsynth.io.search.find`) hashes what it reads and compares. A search that
finds nothing proves nothing by itself, so each audit first plants an identifier of its own in files of every kind that leaves, and must
find it in all.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from medsynth.audit.finding import Evidence, Finding, Verdict
from medsynth.io.identifiers import WEAK, write_identifiers
from medsynth.io.search import find
from medsynth.rng import seed_for

LISTED = 50  # files named in the finding


@dataclass(frozen=True, kw_only=True)
class Identifiers:
    """The check. ``value`` counts files with an identifier: one is enough to fail. ``control`` is the share of planted ones found."""

    def __call__(self, evidence: Evidence) -> Finding:
        if evidence.key is None or evidence.identifiers is None or not evidence.identifiers.is_file():
            missing = "the key of the pseudonyms (paths.key)" if evidence.key is None else "prepare/identifiers.json"
            return _finding("inconclusive", f"Without {missing} no identifier can be recognised: nothing was searched.")
        if not evidence.folders:
            return _finding("inconclusive", "No folder was given to search: nothing is known.")
        found = _control(evidence.key, evidence.seed)
        missed = [name for name, ok in found.items() if not ok]
        control = 1 - len(missed) / len(found)
        everything = find(evidence.identifiers, evidence.key, evidence.folders)
        hits = [hit for hit in everything if hit.kind not in WEAK]  # a plain word proves nothing: a patient may be called Brown
        named = sorted({hit.file for hit in hits if hit.kind != "unscanned"})
        closed = sorted({hit.file for hit in hits if hit.kind == "unscanned"})
        details = {
            "planted": found,
            "hits": [{"file": hit.file, "kind": hit.kind} for hit in hits[:LISTED]],
            "kinds": {kind: sum(hit.kind == kind for hit in everything) for kind in sorted({hit.kind for hit in everything})},
        }
        counts = {"value": len(named), "control": control, "details": details}
        if named:
            first = next(hit for hit in hits if hit.kind != "unscanned")
            more = f" and {len(named) - 1} more" if len(named) > 1 else ""
            return _finding("fail", f"{first.file}{more}: an identifier that prepare saw (kind: {first.kind}) stands there.", **counts)
        if missed:
            return _finding("inconclusive", f"The search missed an identifier planted in: {', '.join(missed)}.", **counts)
        if closed:
            return _finding("inconclusive", f"{len(closed)} files could not be looked through, the first: {closed[0]}.", **counts)
        places = f"{len(found)} kinds of files"
        return _finding(
            "pass", f"No file name, header, manifest or text holds an identifier; one planted in {places} was found in all.", **counts
        )


def _finding(
    verdict: Verdict, why: str, *, value: int | None = None, control: float | None = None, details: Mapping | None = None
) -> Finding:
    return Finding(
        check="identifiers", verdict=verdict, value=value, interval=None, control=control, limit=0, why=why, details=details or {}
    )


def _control(key: bytes, seed: int) -> dict[str, bool]:
    """Whether the search finds an identifier that was never anybody's, place by place; and finds nothing in a file without it."""
    value = f"Plant{seed_for(seed, 'planted identifier') % 10**12:012d}"
    with tempfile.TemporaryDirectory() as scratch:
        hashes = Path(scratch) / "identifiers.json"
        write_identifiers(hashes, key, [value])
        found = {}
        for name, plant in _places():
            folder = Path(scratch) / name.replace(" ", "-")
            folder.mkdir()
            plant(folder, value)
            found[name] = any(hit.kind not in {*WEAK, "unscanned"} for hit in find(hashes, key, [folder]))
        clean = Path(scratch) / "clean"
        clean.mkdir()
        (clean / "note.txt").write_text("nobody")
        found["nothing in a clean file"] = not find(hashes, key, [clean])
    return found


def _places() -> Iterator[tuple[str, Callable[[Path, str], object]]]:
    yield "text", lambda folder, value: (folder / "note.txt").write_text(f"seen {value} today")
    yield "text in UTF-16", lambda folder, value: (folder / "note.txt").write_text(f"seen {value} today", encoding="utf-16")
    yield "manifest", lambda folder, value: (folder / "cohort.jsonl").write_text(json.dumps({"path": f"volumes/{value}.nii.gz"}) + "\n")
    yield "file name", lambda folder, value: (folder / f"{value}.txt").write_text("nothing inside")
    yield "NIfTI header", _nifti
    yield "DICOM header", _dicom


def _nifti(folder: Path, value: str) -> None:
    image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
    image.header["descrip"] = value.encode()
    nib.save(image, folder / "volume.nii.gz")


def _dicom(folder: Path, value: str) -> None:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = SecondaryCaptureImageStorage, "2.25.1"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.PatientName = value
    data.save_as(folder / "image.dcm", enforce_file_format=True)
