"""push: a release goes to an archive, by C-STORE or STOW-RS.

Only a release that is whole against its own checksums is sent, unless told otherwise; and never an object that does not say of itself
that it is synthetic.
"""

import json
import logging
from dataclasses import MISSING, dataclass, field
from pathlib import Path

import pydicom
from tqdm import tqdm

from medsynth.errors import MedsynthError
from medsynth.export.seal import files_of, verify
from medsynth.io.dicom import is_dicom
from medsynth.pacs.connection import Address, Connection
from medsynth.pacs.transfer import Journal, archive_at, push

log = logging.getLogger(__name__)


@dataclass
class _What:
    path: str = field(default=MISSING, metadata={"help": "the released folder: runs/NAME/release"})
    to: str = field(default=MISSING, metadata={"help": "dicom://AET@host:port, dicoms://AET@host:port (TLS) or https://host/dicom-web"})
    unverified: bool = field(default=False, metadata={"help": "send a folder that is no release, or was changed"})
    journal: str = field(default="", metadata={"help": "file that notes what arrived; none: PATH.pushed.jsonl"})


@dataclass
class Settings(Connection, _What):  # fields of the last base come first
    """The command line of ``medsynth push``."""


def run(settings: Settings) -> None:
    folder, address = Path(settings.path).expanduser(), Address.of(settings.to)
    if not folder.is_dir():
        raise MedsynthError(f"{folder} is no folder. Give that of a release: runs/NAME/release.")
    _refuse_changes(folder, settings.unverified)
    files = _objects(folder)
    archive = archive_at(address, settings)
    journal = Journal(Path(settings.journal).expanduser() if settings.journal else folder.with_name(f"{folder.name}.pushed.jsonl"))
    sent = push(files, archive, settings.to, journal, settings.retries)
    log.info("push: %d files sent now, %d are there", sent, len(files))


def _refuse_changes(folder: Path, unverified: bool) -> None:
    problems = verify(folder)
    if problems and not unverified:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise MedsynthError(
            f"{folder} is not a whole release: {problems[0]}{more}. Release it again, or send it as it is with unverified=true."
        )
    audit = folder / "audit.json"
    if audit.is_file() and "released_in_spite_of" in json.loads(audit.read_text(encoding="utf-8")):
        log.warning("push: this cohort was RELEASED IN SPITE OF ITS EVIDENCE; its datasheet.md says why.")


def _objects(folder: Path) -> list[Path]:
    """The DICOM files, all of which say that they are synthetic."""
    files = [path for path in files_of(folder).values() if path.is_file() and is_dicom(path)]
    if not files:
        raise MedsynthError(f"{folder} holds no DICOM file. Release with release.formats=[dicom].")
    bar = tqdm(files, desc="looking", unit="file", disable=len(files) < 1000)
    marks = (pydicom.dcmread(file, specific_tags=["SyntheticData"], stop_before_pixels=True).get("SyntheticData") for file in bar)
    silent = sum(mark != "YES" for mark in marks)
    if silent:
        raise MedsynthError(
            f"{silent} of {len(files)} DICOM files do not say Synthetic Data (0008,001C) = YES. Only synthetic images are sent."
        )
    return files
