"""inspect: which series of an archive can be read, which only after a repair, and which cannot and why, before anything is trained.

Its outputs name real files and people, and nothing else of medsynth does: they are for whoever answers for the archive.
"""

import json
import os
from base64 import b64encode
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from jinja2 import Environment, PackageLoader

from medsynth.errors import MedsynthError, SettingsError
from medsynth.io.dicom import HARMLESS, REPAIRS
from medsynth.io.dicom.inspection import VERDICTS, Inspection, Row, in_one_line, inspect

WIDTHS = {"verdict": 10, "modality": 10, "files": 7, "shape": 14, "spacing": 18, "series": 60}  # characters


@dataclass
class Settings:
    path: str = field(metadata={"help": "a folder of DICOM files, any names, any depth"})
    html: str | None = field(default="inspect.html", metadata={"help": "page with thumbnails; html= writes none"})
    json: str = field(default="", metadata={"help": "file with one row a series"})
    volumes: str = field(default="", metadata={"help": "folder for the accepted series as NIfTI, in stored units, not resampled"})
    repairs: list[str] = field(default_factory=lambda: list(HARMLESS), metadata={"help": f"allowed repairs, of {', '.join(REPAIRS)}"})
    workers: int = field(default=1, metadata={"help": "processes"})


def run(settings: Settings) -> None:
    """Print the table and write what the settings ask for. Raises MedsynthError."""
    root = Path(settings.path).expanduser()
    if not root.is_dir():
        raise MedsynthError(f"{settings.path} is not a folder.")
    if unknown := [name for name in settings.repairs if name not in REPAIRS]:
        raise SettingsError(f"repairs: there is no repair {unknown[0]!r}. There are {', '.join(REPAIRS)}.")
    found = inspect(root, repairs=settings.repairs, workers=settings.workers, volumes=settings.volumes, thumbnails=bool(settings.html))
    print("\n".join(table(found, root.resolve())))
    if settings.json:
        _write(settings.json, "[\n" + ",\n".join(json.dumps(_record(row)) for row in found.rows) + "\n]\n")
    if settings.html:
        _write(settings.html, page(found, root.resolve()))
        print(f"page with thumbnails: {settings.html} (names real people: keep it as you keep the archive)")


def table(found: Inspection, root: Path) -> list[str]:
    """A line a series; files that are refused alone share a line with their like."""
    lines = ["".join(name.ljust(width) for name, width in WIDTHS.items()).rstrip()]
    alone: dict[str, list[Row]] = {}
    for row in found.rows:
        if row.verdict == "rejected" and len(row.files) < 2 and not row.values:
            alone.setdefault(row.code, []).append(row)
        else:
            lines += _lines(row, row.files, root)
    for rows in alone.values():
        lines += _lines(rows[0], [file for row in rows for file in row.files or row.at], root)
    verdicts = Counter(row.verdict for row in found.rows)
    counts = ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in VERDICTS)
    return [*lines, "", f"{found.files} files: {counts}; {found.other} other files are no DICOM images"]


def _lines(row: Row, files: Sequence[str], root: Path) -> list[str]:
    about = " ".join(filter(None, (row.patient, row.date, row.description))) or in_one_line(files, root)
    cells = (
        row.verdict,
        row.modality,
        str(len(files)),
        "x".join(map(str, row.shape or ())),
        "x".join(f"{s:.3g}" for s in _spacing(row)),
        about,
    )
    line = "".join(cell[: width - 1].ljust(width) for cell, width in zip(cells, WIDTHS.values(), strict=True)).rstrip()
    why = f"{row.code}: {row.reason}" if row.code else row.reason
    about = [why, f"in {in_one_line(row.at, root)}" if row.at else "", row.values]
    return [line, *(f"{'':<{WIDTHS['verdict']}}{text}" for text in about if text)]


def _spacing(row: Row) -> list[float]:
    return [sum(part[axis] ** 2 for part in row.affine[:3]) ** 0.5 for axis in range(3)] if row.affine else []


def _record(row: Row) -> dict[str, object]:
    return {name: value for name, value in asdict(row).items() if name != "thumbnail"}


def page(found: Inspection, root: Path) -> str:
    """The table as one HTML page, thumbnails inside."""
    template = Environment(loader=PackageLoader("medsynth.tools", ""), autoescape=True).get_template("inspect.html.j2")
    rows = [
        {
            **_record(row),
            "spacing": " x ".join(f"{s:.4g}" for s in _spacing(row)),
            "picture": b64encode(row.thumbnail).decode(),
            "where": in_one_line(row.files or row.at, root),
            "named": [in_one_line([file], root) for file in row.at],
        }
        for row in found.rows
    ]
    return template.render(root=root, rows=rows, files=found.files, other=found.other, counts=Counter(row.verdict for row in found.rows))


def _write(path: str, text: str) -> None:
    """For the owner alone: the text names people."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)  # of a file that was there too
        file.write(text)
