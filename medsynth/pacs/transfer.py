"""Sending files to an archive and fetching series from one, through breaks of the connection and of ourselves.

What has arrived is noted in a journal, line by line, and not moved again by the same command. A break is followed by another try, after
1, 2, 4, ... seconds; each success makes the next pause short again. What an archive refuses for good is collected, and told at the end.
"""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tqdm import tqdm

from medsynth.cohort import sha256_of
from medsynth.errors import MedsynthError
from medsynth.pacs.connection import Address, Connection, Unreachable

log = logging.getLogger(__name__)

LONGEST_PAUSE = 60.0  # seconds
LISTED = 10  # failures named in a message
JOURNAL = ".pulled.jsonl"
pause = time.sleep


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What became of a file that was sent. ``failure`` says why it was refused for good; ``warning`` what was changed on arrival."""

    file: Path
    failure: str = ""
    warning: str = ""


@dataclass(frozen=True, kw_only=True)
class Series:
    """A series as the archive names it; ``instances`` is how many it says to hold, or None."""

    study: str
    uid: str
    instances: int | None


class Archive(Protocol):
    """What a protocol must be able to do. All raise Unreachable where another try may succeed, and MedsynthError where none will."""

    def store(self, files: Sequence[Path]) -> Iterator[Stored]:
        """Send the files, in order. Refuses before the first where the archive does not take what one of them is."""

    def find(self, query: Mapping[str, str]) -> list[Series]:
        """The series that match, by DICOM keywords of study and series; ``*`` and ``?`` are wildcards, ``-`` spans dates."""

    def fetch(self, series: Series, keep: Callable[[str, bytes], None]) -> None:
        """Hand each instance's UID and file to ``keep``."""


def archive_at(address: Address, connection: Connection, *, listen: int = 0) -> Archive:
    """The archive at this address. ``listen`` is the port on which a C-MOVE's instances arrive; 0 means C-GET."""
    if address.title:
        from medsynth.pacs.dimse import Dimse

        return Dimse(address, connection, listen=listen)
    from medsynth.pacs.web import Web

    return Web(address, connection)


def persistently(work: Callable[[Callable[[], None]], None], retries: int) -> None:
    """Do ``work`` again after each Unreachable, up to ``retries`` times without progress; ``work`` calls its argument at each progress."""
    failures = 0

    def progress() -> None:
        nonlocal failures
        failures = 0

    while True:
        try:
            return work(progress)
        except Unreachable as error:
            failures += 1
            if failures > retries:
                raise
            log.info("%s Trying again (%d of %d).", error, failures, retries)
            pause(min(2.0 ** (failures - 1), LONGEST_PAUSE))


class Journal:
    """Keys of what is done, one line each, on disk before the next is begun. A line that a crash cut short does not count."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        self.done = {key for line in lines if line.endswith("\n") and (key := _key(line))}
        if lines and not lines[-1].endswith("\n"):
            self._append("\n")

    def __contains__(self, key: Sequence[str]) -> bool:
        return tuple(key) in self.done

    def note(self, key: Sequence[str]) -> None:
        self._append(json.dumps(list(key)) + "\n")
        self.done.add(tuple(key))

    def _append(self, text: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())


def _key(line: str) -> tuple[str, ...]:
    try:
        return tuple(json.loads(line))
    except (ValueError, TypeError):
        return ()


def push(files: Sequence[Path], archive: Archive, to: str, journal: Journal, retries: int) -> int:
    """Send ``files`` to ``archive``, whose address is ``to``; returns how many were sent now. Raises MedsynthError where some are
    refused."""
    keys = {file: (to, sha256_of(file)) for file in files}
    waiting = [file for file in files if keys[file] not in journal]
    sent, refused, changed = 0, [], []

    def work(progress: Callable[[], None]) -> None:
        nonlocal sent
        while waiting:  # an archive may end its answer early without an error
            before = len(waiting)
            for outcome in archive.store(list(waiting)):
                waiting.remove(outcome.file)
                if outcome.failure:
                    refused.append(f"{outcome.file.name}: {outcome.failure}")
                else:
                    journal.note(keys[outcome.file])
                    changed.extend([outcome.warning] if outcome.warning else [])
                    sent += 1
                bar.update()
                progress()
            if len(waiting) == before:
                raise Unreachable("The archive took nothing and did not say why.")

    with tqdm(total=len(files), initial=len(files) - len(waiting), desc="push", unit="file") as bar:
        try:
            persistently(work, retries)
        except Unreachable as error:
            raise MedsynthError(
                f"{error} {len(files) - len(waiting) - len(refused)} of {len(files)} files have arrived. Run the same command again to go "
                "on: what arrived is not sent again."
            ) from error
    if changed:
        log.warning("push: the archive changed %d files on arrival: %s.", len(changed), "; ".join(sorted(set(changed))))
    if refused:
        raise MedsynthError(f"The archive refused {len(refused)} of {len(files)} files:\n" + _listed(refused))
    return sent


def pull(query: Mapping[str, str], archive: Archive, source: str, folder: Path, retries: int) -> tuple[int, int]:
    """Fetch what matches ``query`` into ``folder``, one folder a series; returns the number of series and files that are there.
    Raises MedsynthError where one is incomplete."""
    found: list[Series] = []
    persistently(lambda _: found.extend(archive.find(query)), retries)
    if not found:
        raise MedsynthError("No series of the archive matches the query.")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    journal, short = Journal(folder / JOURNAL), []
    with tqdm(total=len(found), desc="pull", unit="series") as bar:
        for series in found:
            target = folder / _safe(series.uid)
            if (source, series.uid) not in journal or not target.is_dir():
                missing = _fetch(series, archive, target, retries)
                if missing:
                    short.append(f"{missing} of {series.instances} instances of a series did not come")
                else:
                    journal.note((source, series.uid))
            bar.update()
    if short:
        raise MedsynthError(
            f"{len(short)} of {len(found)} series are incomplete; the others have arrived. Run the same command again to go on:\n"
            + _listed(short)
        )
    return len(found), sum(len(list((folder / series.uid).iterdir())) for series in found)


def _fetch(series: Series, archive: Archive, folder: Path, retries: int) -> int:
    """Fetch a series; returns how many of its instances are missing."""
    folder.mkdir(exist_ok=True)

    def work(progress: Callable[[], None]) -> None:
        def keep(instance: str, content: bytes) -> None:
            path = folder / f"{_safe(instance)}.dcm"
            partial = path.with_suffix(".partial")
            partial.write_bytes(content)
            partial.replace(path)
            progress()

        archive.fetch(series, keep)

    persistently(work, retries)
    kept = len(list(folder.glob("*.dcm")))
    return 1 if not kept else max(0, (series.instances or 0) - kept)


def _safe(uid: str) -> str:
    """A UID as a file's name: what an archive sends is not believed to be one."""
    if not re.fullmatch(r"[0-9.]{1,64}", uid) or not uid.strip("."):
        raise MedsynthError("The archive sent an object whose UID is none (PS3.5 9.1), so that no file can be named after it.")
    return uid


def _listed(lines: Iterable[str]) -> str:
    lines = list(lines)
    more = [f"  and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
    return "\n".join([*(f"  {line}" for line in lines[:LISTED]), *more])
