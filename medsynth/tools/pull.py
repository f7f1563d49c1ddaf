"""pull: series of an archive come into a folder for prepare, by C-GET or C-MOVE, or by WADO-RS."""

import logging
from dataclasses import MISSING, dataclass, field
from pathlib import Path

from medsynth.errors import SettingsError
from medsynth.pacs.connection import Address, Connection
from medsynth.pacs.transfer import archive_at, pull

log = logging.getLogger(__name__)


@dataclass
class _What:
    path: str = field(default=MISSING, metadata={"help": "the folder to fill; prepare reads it with source=dicom_tree"})
    source: str = field(default=MISSING, metadata={"help": "dicom://AET@host:port, dicoms://AET@host:port (TLS) or https://host/dicom-web"})
    query: dict[str, str] = field(
        default_factory=dict, metadata={"help": "DICOM keywords, as '{Modality: MR, StudyDate: 20200101-20201231}'; wildcards * and ?"}
    )
    listen: int = field(default=0, metadata={"help": "port for C-MOVE, under the AE title calling; 0: C-GET"})


@dataclass
class Settings(Connection, _What):  # fields of the last base come first
    """The command line of ``medsynth pull``."""


def run(settings: Settings) -> None:
    if not any(value.strip("*") for value in settings.query.values()):
        raise SettingsError("query: say which series, such as query='{Modality: MR}'; an empty one would fetch the whole archive.")
    archive = archive_at(Address.of(settings.source), settings, listen=settings.listen)
    folder = Path(settings.path).expanduser()
    series, files = pull(settings.query, archive, settings.source, folder, settings.retries)
    log.info("pull: %d series, %d files in %s", series, files, folder)
