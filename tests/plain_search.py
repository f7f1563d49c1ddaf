"""A search for strings in a folder that trusts nothing: every byte of every file, its packed and encoded parts opened first.

It is the oracle of the tests on identifiers, so it shares no line with `medsynth.io.search`: it knows neither which files the project
writes nor what may stand in them. Letters count as equal in either case.
"""

import base64
import binascii
import io
import re
import sqlite3
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

DEPTH = 6  # of packings in one another
LARGEST = 1 << 26  # bytes unpacked from one place
BLOCK = 1 << 20  # bytes searched together
GZIP, ZLIB = re.compile(rb"\x1f\x8b\x08"), re.compile(rb"\x78[\x01\x5e\x9c\xda]")
BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{12,}={0,2}")
LINE_END = re.compile(rb"\r?\n[ \t]*")


def found_in(folder: Path, needles: Iterable[str], dates: Iterable[str] = ()) -> list[tuple[str, str]]:
    """``(path below folder, needle)`` of everything that is found, in contents and in names of files and folders.

    Dates of eight digits are looked for in texts alone, and only where neither a digit, a letter nor a point touches them: within hashes
    and decimal fractions eight digits come by chance.
    """
    needles, dates = tuple(needles), set(dates)
    assert min(map(len, needles)) >= 8, "shorter ones occur by chance"
    wanted, found, seen = _Needles(needles), set(), set()

    def search(name: str, data: bytes) -> None:
        for piece in opened(data):
            found.update((name, needle) for needle in wanted.within(piece))
            if dates:
                found.update((name, date) for date in _dates_of(piece) if date in dates)

    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        search(name, name.encode(errors="surrogateescape"))
        if path.is_symlink():
            search(name, str(path.readlink()).encode(errors="surrogateescape"))
        elif path.is_file() and path.stat().st_ino not in seen:  # two names of one file
            seen.add(path.stat().st_ino)
            search(name, path.read_bytes())
    return sorted(found)


def _dates_of(data: bytes) -> Iterator[str]:
    for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        yield from re.findall(r"(?<![0-9A-Za-z.])[0-9]{8}(?![0-9A-Za-z.])", text)


def telling(planted: Iterable[str]) -> tuple[str, ...]:
    """What of the planted strings tells somebody: each as a whole, and its single words.

    Left out are words that several of them share ("Infirmary"), which tell nobody apart, and what is shorter than eight characters, which
    occurs by chance in hashes.
    """
    planted = [text for text in planted if len(text) >= 8]
    words = Counter(word for text in planted for word in set(re.findall(r"[^\s^]+", text)))
    return tuple(dict.fromkeys([*planted, *(word for word, times in words.items() if times == 1 and len(word) >= 8)]))


class _Needles:
    """Looks for thousands of strings at once: places whose next eight bytes begin one, then the whole of it there."""

    def __init__(self, needles: Iterable[str]) -> None:
        self.beginning: dict[int, list[tuple[bytes, str]]] = {}
        for needle in needles:
            for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
                encoded = needle.lower().encode(encoding)
                self.beginning.setdefault(int.from_bytes(encoded[:8], "little"), []).append((encoded, needle))
        self.sorted = np.array(sorted(self.beginning), np.uint64)

    def within(self, data: bytes) -> set[str]:
        data = data.lower()  # ASCII letters alone, in UTF-16 too
        values = np.frombuffer(data, np.uint8)
        found: set[str] = set()
        for start in range(0, len(values) - 7, BLOCK):
            block = values[start : start + BLOCK + 7].astype(np.uint64)
            eight = sum(block[k : len(block) - 7 + k] << np.uint64(8 * k) for k in range(8))
            place = np.minimum(np.searchsorted(self.sorted, eight), len(self.sorted) - 1)
            for at in np.flatnonzero(self.sorted[place] == eight):
                begun = self.beginning[int(eight[at])]
                found |= {needle for encoded, needle in begun if data.startswith(encoded, start + int(at))}
        return found


def opened(data: bytes, depth: int = DEPTH) -> Iterator[bytes]:
    """``data`` itself, and what is in it: gzip and zlib streams at any place, zip members, base64 at any alignment, the cells of SQLite."""
    yield data
    if depth == 0:
        return
    inner = [*_inflated(data), *_zipped(data), *_from_base64(data), *_cells(data)]
    for piece in inner:
        yield from opened(piece, depth - 1)


def _inflated(data: bytes) -> Iterator[bytes]:
    for pattern, bits in ((GZIP, 31), (ZLIB, 15)):
        for start in pattern.finditer(data):
            try:
                piece = zlib.decompressobj(bits).decompress(memoryview(data)[start.start() :], LARGEST)
            except zlib.error:
                continue
            if len(piece) >= 8:
                yield piece


def _zipped(data: bytes) -> Iterator[bytes]:
    if b"PK\x03\x04" not in data:
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    yield member.read(LARGEST)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError):
        return


def _from_base64(data: bytes) -> Iterator[bytes]:
    # lines of one block are joined; a word before it may stand so close that it shifts the alignment
    for text in {data, LINE_END.sub(b"", data)}:
        for match in BASE64.findall(text):
            plain = match.rstrip(b"=").replace(b"-", b"+").replace(b"_", b"/")
            for start in range(4):
                part = plain[start:]
                try:
                    yield base64.b64decode(part + b"A" * (-len(part) % 4))
                except binascii.Error:
                    continue


def _cells(data: bytes) -> Iterator[bytes]:
    """Every value of every table: a long one is cut into pages in the file."""
    if not data.startswith(b"SQLite format 3\0"):
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "copy.db"
        path.write_bytes(data)
        database = sqlite3.connect(path)
        database.text_factory = bytes
        try:
            for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                for row in database.execute(f'SELECT * FROM "{table.decode()}"'):
                    yield from (value for value in row if isinstance(value, bytes) and len(value) >= 8)
        except sqlite3.DatabaseError:
            return
        finally:
            database.close()
