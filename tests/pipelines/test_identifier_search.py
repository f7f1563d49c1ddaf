"""No identifier of the hospital outlives `prepare`: neither in the run's files and their names nor in what tracking stored."""

import base64
import gzip
import io
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from medsynth.data.sources.phantom import person, planted_identifiers
from tests.pipelines.conftest import CHECKS, OVERRIDE, PATIENTS, Chain
from tests.plain_search import found_in, telling

SECRET = "Bafadafo^Togumuta"
TEXT = f"seen {SECRET} today".encode()


def planted() -> tuple[str, ...]:
    return telling(planted_identifiers(0, PATIENTS))


def planted_dates() -> set[str]:
    return set(planted_identifiers(0, PATIENTS, dates=True)) - set(planted_identifiers(0, PATIENTS))


def zipped(data: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("note.txt", data)
    return buffer.getvalue()


def in_a_cell(path: Path) -> None:
    """Longer than a page of the file, so that the pages' ends cut it."""
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE notes (note BLOB)")
        database.executemany("INSERT INTO notes VALUES (?)", [(b" " * pad + TEXT * 400,) for pad in range(3)])


PLANTS: dict[str, Callable[[Path], object]] = {
    "plain": lambda folder: (folder / "a").write_bytes(b"\0" * 5 + TEXT),
    "other case": lambda folder: (folder / "a").write_bytes(TEXT.upper()),
    "utf-16-le": lambda folder: (folder / "a").write_bytes(b"\0" + TEXT.decode().encode("utf-16-le")),
    "utf-16-be": lambda folder: (folder / "a").write_bytes(b"x" + TEXT.decode().encode("utf-16-be")),
    "gzip": lambda folder: (folder / "a").write_bytes(b"before it" + gzip.compress(TEXT) + b"behind it"),
    "gzip, cut off": lambda folder: (folder / "a").write_bytes(gzip.compress(TEXT * 99)[:-9]),
    "zip": lambda folder: (folder / "a").write_bytes(zipped(TEXT)),
    "base64": lambda folder: (folder / "a").write_bytes(b'{"data:image/png;base64,' + base64.b64encode(TEXT) + b'"}'),
    "base64, shifted": lambda folder: (folder / "a").write_bytes(b"x" + base64.b64encode(TEXT)),
    "base64, in lines": lambda folder: (folder / "a").write_bytes(base64.encodebytes(TEXT * 9)),
    "base64, for addresses": lambda folder: (folder / "a").write_bytes(base64.urlsafe_b64encode(b"\xfb\xff\xfe" + TEXT)),
    "gzip in base64 in zip": lambda folder: (folder / "a").write_bytes(zipped(base64.b64encode(gzip.compress(TEXT)))),
    "utf-16 in gzip": lambda folder: (folder / "a").write_bytes(gzip.compress(TEXT.decode().encode("utf-16"))),
    "database": lambda folder: in_a_cell(folder / "mlflow.db"),
    "file name": lambda folder: (folder / f"{SECRET}.npy").touch(),
    "folder name": lambda folder: (folder / SECRET / "deep").mkdir(parents=True),
    "link": lambda folder: (folder / "a").symlink_to(f"/archive/{SECRET}"),
}


@pytest.mark.parametrize("place", PLANTS)
def test_the_search_finds_what_is_planted(place: str, tmp_path: Path):
    PLANTS[place](tmp_path)
    assert {needle for _, needle in found_in(tmp_path, [SECRET, "Somebody else"])} == {SECRET}


def test_the_search_finds_nothing_where_nothing_is(tmp_path: Path):
    (tmp_path / "a").write_bytes(zipped(TEXT.replace(b"Baf", b"Bat")))
    assert found_in(tmp_path, [SECRET]) == []


def test_the_search_of_dates_tells_them_from_digits_of_numbers_and_hashes(tmp_path: Path):
    (tmp_path / "a.json").write_text('{"born": "19700214", "score": 0.19700214, "sha256": "ab19700214", "count": 119700214}')
    assert found_in(tmp_path, [SECRET], ["19700214"]) == [("a.json", "19700214")]
    (tmp_path / "a.json").write_text('{"score": 0.19700214, "sha256": "ab19700214", "count": 119700214}')
    assert found_in(tmp_path, [SECRET], ["19700214"]) == []


def test_the_archive_itself_is_full_of_them(chain: Chain):
    """What the search of a run does not find was there to be found."""
    somebody = person(0, 0)
    theirs = next((chain.folder / "hospital").glob(f"{'_'.join(somebody.names)}_*"))
    found = {needle for _, needle in found_in(theirs, (*somebody.names, somebody.number, *somebody.uids))}
    assert {*somebody.names, somebody.number} <= found
    assert found & set(somebody.uids)


def test_a_run_and_its_tracking_hold_no_identifier_of_the_archive(chain: Chain):
    assert (chain.runs / "mlflow.db").is_file()
    assert {path.name for path in chain.root.iterdir()} >= {"prepare", "train", "sample", "audit", "evaluate", "report", "release", "logs"}
    assert found_in(chain.runs, planted(), planted_dates()) == []


@pytest.mark.slow
def test_what_tracking_stores_of_an_audited_run_holds_none_either(chain: Chain, tmp_path: Path):
    """Pictures and the datasheet go to tracking only after a pass, which the one check that sixty steps can pass gives here; no
    release comes of it without the written override."""
    open_run = chain.copied(tmp_path / "runs", *CHECKS)
    (open_run.runs / "mlflow.db").unlink()  # a new one, as a database knows where its artifacts lie
    done = open_run.medsynth("run", "check=[identifiers]", OVERRIDE)
    assert done.returncode == 0, done.stderr[-4000:]
    stored = [path for path in (open_run.runs / "mlflow-artifacts").rglob("*") if path.is_file()]
    assert {path.suffix for path in stored} >= {".png", ".md"}
    assert found_in(open_run.runs, planted(), planted_dates()) == []
