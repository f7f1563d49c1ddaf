"""An archive, file by file: each file ends as a cleaned copy under a pseudonymous name, or in the list of those left out, with a reason.

``deidentified.jsonl`` in the new folder is that list and the record of progress: an interrupted run goes on behind its last line. Files are
named in it by pseudonyms; the way back is written only where the caller gives a file for it.
"""

import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from medsynth.deidentify import burned_in, image, nifti
from medsynth.deidentify.dataset import person_of
from medsynth.deidentify.image import Cleaner
from medsynth.deidentify.profile import EDITION
from medsynth.errors import MedsynthError, StageConflict, UnreadableImage
from medsynth.io.dicom import is_dicom
from medsynth.io.pseudonyms import pseudonym

JOURNAL = "deidentified.jsonl"
_SIDECARS = {".json": nifti.clean_sidecar, ".bval": nifti.clean_gradients, ".bvec": nifti.clean_gradients}
# BIDS: what in a name says how an image was made, and names nobody
_SUFFIX = re.compile(
    r"_(T[12]w|T2star|FLAIR|PDw?|T[12]map|dwi|bold|sbref|epi|magnitude[12]?|phasediff|phase[12]?|swi|angio|ct|pet|asl|m0scan|mask|dseg|seg)$"
)
_ENTITY = re.compile(r"(?:^|_)(run-\d{1,3}|echo-\d{1,3}|part-(?:mag|phase|real|imag)|dir-(?:AP|PA|LR|RL|SI|IS))(?=_)")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one file. ``file`` is a pseudonym, ``written`` a path below the new folder. ``back`` never leaves the memory."""

    file: str
    verdict: str  # written, rejected, other
    code: str = ""
    reason: str = ""
    written: str = ""
    back: dict[str, str] | None = None


def deidentify(root: Path, out: Path, cleaner: Cleaner, *, workers: int = 1, mapping: Path | None = None) -> list[Verdict]:
    """Clean every file below ``root`` into ``out``; returns all verdicts, those of an interrupted run included.

    Raises MedsynthError where the folders lie in one another or masking is asked for without tesseract, StageConflict where ``out`` holds
    something else.
    """
    root, out = root.resolve(), out.resolve()
    if out == root or root in out.parents or out in root.parents:
        raise MedsynthError(f"out={out} and {root} lie in one another. Give another folder for the cleaned files.")
    if cleaner.burned_in == "mask" and not burned_in.is_installed():
        raise MedsynthError("burned_in=mask needs tesseract. Install it (apt-get install tesseract-ocr), or use burned_in=reject.")
    if mapping is not None and (mapping.resolve().is_relative_to(out) or mapping.exists()):
        raise MedsynthError(f"mapping={mapping} lies in the folder of the cleaned files, or exists. Give a new file.")
    if mapping is not None and not mapping.parent.is_dir():
        raise MedsynthError(f"mapping={mapping} lies in a folder that is not there. Make it first.")
    out.mkdir(parents=True, exist_ok=True)
    done = _resumed(out, cleaner)
    paths = [path for path in _files(root) if _name(cleaner.key, root, path) not in done]
    verdicts = list(done.values())
    with open(out / JOURNAL, "a", encoding="utf-8") as journal, _private(mapping) as way_back:
        for verdict in tqdm(_each(_Task(root, out, cleaner), paths, workers), total=len(paths), unit="file", disable=len(paths) < 50):
            if verdict.back and way_back:
                way_back.write(json.dumps(verdict.back, sort_keys=True) + "\n")
            row = {name: value for name, value in asdict(verdict).items() if name != "back"}
            journal.write(json.dumps(row, sort_keys=True) + "\n")
            journal.flush()
            verdicts.append(verdict)
    return verdicts


def counts(verdicts: list[Verdict]) -> Counter[tuple[str, str]]:
    """How many files got which verdict for which reason."""
    return Counter((verdict.verdict, verdict.code) for verdict in verdicts)


def _files(root: Path) -> list[Path]:
    if not root.is_dir():
        raise MedsynthError(f"{root} is not a folder.")
    return sorted(path for path in root.rglob("*") if path.is_file() and not path.is_symlink())


def _name(key: bytes, root: Path, path: Path) -> str:
    """A pseudonym of the file as it is: another if it changes, and that of its path alone once it is gone."""
    try:
        state = path.stat()
    except OSError:
        return pseudonym(key, "file", str(path.relative_to(root)))
    return pseudonym(key, "file", f"{path.relative_to(root)}\x1f{state.st_size}\x1f{state.st_mtime_ns}")


def _resumed(out: Path, cleaner: Cleaner) -> dict[str, Verdict]:
    """Verdicts of an interrupted run with the same settings and key. A last line that was cut is made again."""
    path = out / JOURNAL
    settings = asdict(cleaner) | {"key": "", "edition": EDITION, "text": burned_in.is_installed()}
    settings["key"] = pseudonym(cleaner.key, "key", "")
    head = {"medsynth": "deidentified", "settings": settings}
    if not path.exists():
        if any(out.iterdir()):
            raise StageConflict(f"{out} is not empty and holds no {JOURNAL}. Give a new folder.")
        path.write_text(json.dumps(head, sort_keys=True) + "\n", encoding="utf-8")
        return {}
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [line for line in lines if line.endswith("\n")]
    try:
        found = json.loads(whole[0])
        rows = [Verdict(**json.loads(line)) for line in whole[1:]]
    except (ValueError, IndexError, TypeError):
        raise StageConflict(f"{path} is no record of a de-identification. Give a new folder.") from None
    if found != head:
        raise StageConflict(f"{out} was made with other settings, another key or another version. Give a new folder, or the same settings.")
    if len(whole) < len(lines):
        path.write_text("".join(whole), encoding="utf-8")
    return {row.file: row for row in rows}


class _private:
    """The file of the way back, readable by its owner alone; None where nobody asked for it."""

    def __init__(self, path: Path | None) -> None:
        self.file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") if path else None

    def __enter__(self):
        return self.file

    def __exit__(self, *_) -> None:
        if self.file:
            self.file.close()


def _each(task: "_Task", paths: list[Path], workers: int) -> Iterator[Verdict]:
    """Verdicts as they come, with a bounded number of files in flight."""
    if workers < 2 or len(paths) < 2 * workers:
        yield from map(task, paths)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
        waiting: set[Future] = set()
        for path in paths:
            waiting.add(pool.submit(task, path))
            if len(waiting) >= 8 * workers:
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in finished)
        yield from (future.result() for future in waiting)


@dataclass(frozen=True)
class _Task:
    root: Path
    out: Path
    cleaner: Cleaner

    def __call__(self, path: Path) -> Verdict:
        name = _name(self.cleaner.key, self.root, path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pydicom's quote values
            return self._verdict(path, name)

    def _verdict(self, path: Path, name: str) -> Verdict:
        try:
            suffix = "".join(path.suffixes[-2:]).lower() if path.name.lower().endswith(".nii.gz") else path.suffix.lower()
            if suffix in (".nii", ".nii.gz"):
                return self._bytes(path, name, suffix, nifti.clean_volume(path, flat=self.cleaner.faces == "reject"))
            if suffix in _SIDECARS:
                return self._bytes(path, name, suffix, _SIDECARS[suffix](path))
            if not is_dicom(path):
                return Verdict(file=name, verdict="other", code="not-an-image", reason="It is neither DICOM nor NIfTI.")
            return self._dicom(path, name)
        except UnreadableImage as error:
            return Verdict(file=name, verdict="rejected", code=error.code, reason=str(error))
        except MedsynthError as error:
            return Verdict(file=name, verdict="rejected", code="failed", reason=str(error))
        except Exception as error:  # its text may quote the file: the kind is all that is said
            return Verdict(file=name, verdict="rejected", code="failed", reason=f"It could not be worked on ({type(error).__name__}).")

    def _dicom(self, path: Path, name: str) -> Verdict:
        data = image.read(path)
        cleaned, person = self.cleaner(data), person_of(data, self.cleaner.key)
        folder = f"{person.name}/study-{_short(cleaned, 'StudyInstanceUID')}/series-{_short(cleaned, 'SeriesInstanceUID')}"
        target = self.out / folder / f"{cleaned.SOPInstanceUID}.dcm"
        target.parent.mkdir(parents=True, exist_ok=True)
        image.write(cleaned, target)
        told = ("PatientID", "IssuerOfPatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
        back = {"file": str(path), "written": str(target.relative_to(self.out)), "person": person.name, "days_back": str(person.days)}
        back |= {keyword: str(data.get(keyword, "")) for keyword in told} | {f"new_{word}": str(cleaned.get(word, "")) for word in told[2:]}
        return Verdict(file=name, verdict="written", written=back["written"], back=back)

    def _bytes(self, path: Path, name: str, suffix: str, content: bytes) -> Verdict:
        """A NIfTI file or its sidecar: files of one stem keep a common one."""
        stem = path.name[: -len(suffix)]
        key = self.cleaner.key
        subject = re.match(r"sub-([A-Za-z0-9]+)", stem)
        person = pseudonym(key, "subject", subject[1] if subject else str(path.relative_to(self.root).parent / stem))
        kept = "".join(f"_{entity}" for entity in _ENTITY.findall(stem)) + (match[0] if (match := _SUFFIX.search(stem)) else "")
        place = str(path.relative_to(self.root).parent / stem)
        shown = f"{person}_{pseudonym(key, 'img', place)}{kept}{suffix}"
        target = self.out / person / shown
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        partial.write_bytes(content)
        partial.replace(target)
        back: dict[str, Any] = {"file": str(path), "written": str(target.relative_to(self.out)), "person": person}
        return Verdict(file=name, verdict="written", written=back["written"], back=back)


def _short(data, keyword: str) -> str:
    """Twelve characters of a new UID: a folder's name."""
    return sha256(str(data.get(keyword, "")).encode()).hexdigest()[:12]
