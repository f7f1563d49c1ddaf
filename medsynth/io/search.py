"""Looks for identifiers that must not be found: `find` forms the tokens of `medsynth.io.identifiers` from the bytes of any file and looks
up their keyed hashes. What was found is never said, only where.
"""

import base64
import binascii
import gzip
import html
import os
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

import numpy as np
from tqdm import tqdm

from medsynth.errors import MedsynthError, UnreadableImage
from medsynth.io.dicom import header_texts
from medsynth.io.identifiers import SHORTEST, IdentifierHashes, Matcher

CHUNK = 2**24  # bytes scanned at once
OVERLAP = 2**10  # bytes scanned again with the next chunk, so that no token is cut
UNPACKED_LIMIT = 2**31  # bytes scanned of one file's content
DEPTH = 4  # containers in containers


@dataclass(frozen=True, order=True)
class Hit:
    """A file in which an identifier was found. It never says which one.

    ``kind``: uid, date, text (an id, several words), word and number (see `WEAK`), or ``unscanned`` for a file that cannot be looked
    through. ``file`` is relative to the folder searched, or ``(withheld)`` where the name itself holds an identifier.
    """

    file: str
    kind: str


def find(identifiers_file: Path, key: bytes, paths: Sequence[Path], *, own: bytes = b"") -> list[Hit]:
    """Files at or below ``paths`` whose names or bytes hold an identifier, by keyed hash.

    ``own`` is what this program puts into every HTML page, the same bytes whatever the data: a date in a library's source is nobody's.

    gzip, zip (also npz and checkpoints), base64, UTF-16, DICOM, JSON and HTML escapes are undone first. Numbers are not text: of NIfTI,
    npy and safetensors files the headers, extensions and trailing bytes are read and not the voxels, of DICOM and PNG all but the pixels.
    """
    known = Matcher(IdentifierHashes.read(Path(identifiers_file), key), key)
    hits: set[Hit] = set()
    files = [(path, root) for root in map(Path, paths) for path in _files(root)]
    for path, root in tqdm(files, desc="looking for identifiers", unit="file", disable=len(files) < 50):
        name = path.relative_to(root).as_posix() if path != root else path.name
        in_name = known.kinds(name)
        kinds = in_name | (known.kinds(os.readlink(path)) if path.is_symlink() else _scan(known, path, own))
        hits |= {Hit("(withheld)" if in_name else name, kind) for kind in kinds}
    return sorted(hits)


def _files(root: Path) -> list[Path]:
    if not root.exists():
        raise MedsynthError(f"There is nothing at {root} to look through for identifiers.")
    if not root.is_dir():
        return [root]
    return sorted(path for path in root.rglob("*") if path.is_symlink() or path.is_file())


class _Unscanned(Exception):
    """Content that cannot be looked through."""


def _scan(known: Matcher, path: Path, own: bytes) -> set[str]:
    """Kinds of identifiers in a file's content."""
    kinds: set[str] = set()
    try:
        page = own and path.suffix == ".html"
        with BytesIO(path.read_bytes().replace(own, b" ")) if page else path.open("rb") as file:
            for text in _texts(file, 0):
                kinds |= known.kinds(text)
    except Exception:  # each container's reader raises its own where the bytes are broken or hostile
        kinds.add("unscanned")
    return kinds


# ------------------------------------------------------------------------------------------------------------------ bytes to texts


def _texts(stream: BinaryIO, depth: int) -> Iterator[str]:
    """All texts in a stream, containers opened by their content."""
    start = stream.read(560)
    rest = _Joined(start, stream)
    if depth > DEPTH:
        raise _Unscanned
    if start[:2] == b"\x1f\x8b":
        yield from _plain(start, depth)  # gzip's own header may hold a file name
        with gzip.GzipFile(fileobj=rest) as unpacked:
            yield from _texts(unpacked, depth + 1)
    elif start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        yield from _zip(rest, depth)
    elif start[:6] == b"\x93NUMPY":
        yield from _npy(rest, depth)
    elif (nifti := _nifti_layout(start)) is not None:
        before, voxels = nifti
        yield from _around(rest, before, voxels, depth)
    elif start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 10**8:
        yield from _plain(rest.read(8 + int.from_bytes(start[:8], "little")), depth)  # safetensors: the header describes all that follows
    elif start[128:132] == b"DICM":
        yield from _dicom(rest, depth)
    elif start[:8] == b"\x89PNG\r\n\x1a\n":
        yield from _png(rest, depth)
    else:
        yield from _chunks(rest, depth)


class _Joined:
    """A stream with its first bytes put back; reading past `UNPACKED_LIMIT` is refused."""

    def __init__(self, start: bytes, stream: BinaryIO) -> None:
        self.start = start
        self.stream = stream
        self.count = 0

    def read(self, size: int = -1) -> bytes:
        size = UNPACKED_LIMIT - self.count + 1 if size < 0 else size
        head, self.start = self.start[:size], self.start[size:]
        data = head + self.stream.read(size - len(head)) if size > len(head) else head
        self.count += len(data)
        if self.count > UNPACKED_LIMIT:
            raise _Unscanned
        return data

    def skip(self, size: int) -> None:
        while size > 0 and (data := self.read(min(size, CHUNK))):
            self.count -= len(data)  # numbers are not scanned
            size -= len(data)


def _chunks(stream: _Joined, depth: int) -> Iterator[str]:
    tail = b""
    while data := stream.read(CHUNK):
        yield from _plain(tail + data, depth)
        tail = data[-OVERLAP:]


def _around(stream: _Joined, before: int, payload: int, depth: int) -> Iterator[str]:
    """The bytes before numbers, and what follows them."""
    yield from _plain(stream.read(before), depth)
    stream.skip(payload)
    yield from _chunks(stream, depth)


def _zip(stream: _Joined, depth: int) -> Iterator[str]:
    file = stream.stream if isinstance(stream.stream, BufferedReader | BytesIO) else BytesIO(stream.read())
    with zipfile.ZipFile(file) as archive:
        yield archive.comment.decode("utf-8", "replace")
        for member in archive.infolist():
            yield f"{member.filename} {member.comment.decode('utf-8', 'replace')} {member.extra.decode('latin-1')}"
            with archive.open(member) as unpacked:
                yield from _texts(unpacked, depth + 1)


def _npy(stream: _Joined, depth: int) -> Iterator[str]:
    start = stream.read(8)
    width = 2 if start[6] == 1 else 4
    header = stream.read(int.from_bytes(stream.read(width), "little"))
    yield from _plain(header, depth)
    try:
        shape, _, dtype = np.lib.format.read_array_header_2_0(BytesIO(len(header).to_bytes(4, "little") + header))
    except ValueError:
        raise _Unscanned from None
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if dtype.kind in "biufc":
        stream.skip(size)
    elif dtype.kind == "U":
        yield stream.read(size).decode("utf-32-be" if dtype.byteorder == ">" else "utf-32-le", "replace")
    yield from _chunks(stream, depth)


def _nifti_layout(start: bytes) -> tuple[int, int] | None:
    """Bytes before the voxels and bytes of the voxels, of a NIfTI-1 or -2 file (nifti1.h, nifti2.h)."""
    for order in ("<", ">"):
        if len(start) >= 352 and start[344:347] in (b"n+1", b"ni1") and np.frombuffer(start, f"{order}i4", 1)[0] == 348:
            dim, bits = np.frombuffer(start, f"{order}i2", 8, 40), np.frombuffer(start, f"{order}i2", 1, 72)[0]
            offset = float(np.frombuffer(start, f"{order}f4", 1, 108)[0])
        elif len(start) >= 544 and start[4:7] in (b"n+2", b"ni2") and np.frombuffer(start, f"{order}i4", 1)[0] == 540:
            dim, bits = np.frombuffer(start, f"{order}i8", 8, 16), np.frombuffer(start, f"{order}i2", 1, 14)[0]
            offset = float(np.frombuffer(start, f"{order}i8", 1, 168)[0])
        else:
            continue
        count = np.prod([max(int(n), 1) for n in dim[1 : 1 + max(0, min(int(dim[0]), 7))]], dtype=object)
        if 352 <= offset <= 10**8:
            return int(offset), int(count) * int(bits) // 8
    return None


def _dicom(stream: _Joined, depth: int) -> Iterator[str]:
    """Values by element, with their character set undone, and the raw bytes around the pixels: preamble and private groups too."""
    content = stream.read()
    try:
        texts, raw = header_texts(BytesIO(content))
    except UnreadableImage:
        texts, raw = [], [content]
    yield from texts
    for part in raw:
        yield from _plain(part, depth)


def _png(stream: _Joined, depth: int) -> Iterator[str]:
    stream.read(8)
    while len(head := stream.read(8)) == 8:
        length, name = int.from_bytes(head[:4], "big"), head[4:]
        if name == b"IDAT":
            stream.skip(length + 4)
            continue
        chunk = stream.read(length + 4)[:-4]
        yield from _plain(chunk, depth)
        if name in (b"zTXt", b"iTXt"):
            for at in (match.end() for match in re.finditer(b"\0", chunk)):  # deflated text follows one of the first separators
                for begin in (at, at + 1):
                    try:
                        yield from _plain(zlib.decompressobj().decompress(chunk[begin:], CHUNK), depth)
                    except zlib.error:
                        continue
        if name == b"IEND":
            break
    yield from _chunks(stream, depth)


_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{8,}={0,2}")
_WRAPPED = re.compile(r"(?<=[A-Za-z0-9+/]{60})\r?\n(?=[A-Za-z0-9+/])")


def _plain(data: bytes, depth: int) -> Iterator[str]:
    """Texts in bytes without structure, under each encoding that they may have."""
    try:
        decoded = [data.decode()]
    except UnicodeDecodeError:
        decoded = [data.decode("utf-8", "replace"), data.decode("latin-1")]
    if b"\0" in data:
        decoded.extend(_utf16(data))
    for text in decoded:
        yield text
        unescaped = unquote(html.unescape(re.sub(r"\\u([0-9a-fA-F]{4})", lambda match: chr(int(match[1], 16)), text)))
        if unescaped != text:
            yield unescaped
    if depth < DEPTH:
        for run in set(_BASE64.findall(_WRAPPED.sub("", decoded[0]))):
            yield from _base64(run, depth)


def _utf16(data: bytes) -> Iterator[str]:
    for run in re.findall(rb"(?:[\x20-\x7e]\0){4,}", data):
        yield run.decode("utf-16-le")
    for run in re.findall(rb"(?:\0[\x20-\x7e]){4,}", data):
        yield run.decode("utf-16-be")
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        yield data.decode("utf-16", "replace")


def _base64(run: str, depth: int) -> Iterator[str]:
    bare = run.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        decoded = base64.b64decode(bare + "=" * (-len(bare) % 4))
    except binascii.Error:
        return
    if len(decoded) >= 512 or decoded[:2] == b"\x1f\x8b":
        try:
            yield from _texts(BytesIO(decoded), depth + 1)
        except (OSError, zlib.error, EOFError, zipfile.BadZipFile):
            return  # bytes that only look like a container
    elif len(decoded) >= SHORTEST:
        try:
            text = decoded.decode()
        except UnicodeDecodeError:
            return
        if text.isprintable():
            yield text
