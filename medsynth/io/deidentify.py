"""Names that cannot be turned back, and a way to look for the ones that must not be found again.

A pseudonym is an HMAC-SHA256 under a key that lives outside every run: the same person has the same name in each run of one site, and
nobody without the key can test a guess. Every identifier that a source saw is kept as such a hash only; `find` forms the same tokens
from the bytes of any file and looks them up.

**Tokens.** Text is NFKC-normalised and case-folded; a *word* is a run of letters and digits. An identifier is the sequence of its words,
so ``DOE^JANE``, ``Doe, Jane`` and ``doe_jane`` are one; it is also looked for with its words run together (``doejane``). A person name
gives its parts too. Free text of more than `LONGEST` words gives each run of `LONGEST` words in it. UIDs and dates are whole tokens: a UID
is also found as the beginning of a longer one, a date in any of its common renderings. What has fewer than four characters, such as ``M``
or ``CT``, does not count.
"""

import base64
import binascii
import gzip
import hashlib
import hmac
import html
import json
import os
import re
import secrets
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader, BytesIO
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

import numpy as np
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from tqdm import tqdm

from medsynth.errors import MedsynthError, UnreadableImage
from medsynth.io.dicom import header_texts

KEY_BYTES = 32
LONGEST = 8  # words of a token
SHORTEST = 4  # characters of a token
CHUNK = 2**24  # bytes scanned at once
OVERLAP = 2**10  # bytes scanned again with the next chunk, so that no token is cut
UNPACKED_LIMIT = 2**31  # bytes scanned of one file's content
DEPTH = 4  # containers in containers

# Single alphabetic words and short numbers also occur by chance: a name such as "Brown" is found where a text says brown.
WEAK = frozenset({"word", "number"})


# ------------------------------------------------------------------------------------------------------------------ key and pseudonyms


def load_key(path: Path | str) -> bytes:
    """The secret of the pseudonyms; a new one of 32 random bytes, readable by its owner alone, where there is none.

    Whoever loses it cannot match old pseudonyms to new ones; whoever publishes it publishes the pseudonyms' meaning.
    """
    path = Path(path).expanduser()
    try:
        if not path.exists():
            _create_key(path)
        status = path.stat()
        key = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
    except OSError as error:
        raise MedsynthError(
            f"The key file {path} cannot be read or made ({error.strerror}). Set paths.key to a file of your own."
        ) from error
    if status.st_mode & 0o077:
        raise MedsynthError(f"The key file {path} is open to others (mode {status.st_mode & 0o777:03o}). Run: chmod 600 {path}")
    if len(key) < KEY_BYTES:
        raise MedsynthError(
            f"The key file {path} holds {len(key)} bytes, not {KEY_BYTES}. Restore it, or remove it to start with a new key."
        )
    return key


def _create_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # a link, not a rename: of two processes that start together, one key wins and both read it
        os.link(partial, path)
    except FileExistsError:
        pass
    finally:
        partial.unlink(missing_ok=True)


def pseudonym(key: bytes, kind: str, value: str) -> str:
    """A short name for ``value``, such as ``sub-1a2b3c4d5e6f``: 48 bits, so that of a million names two agree with a chance of 1 in 560."""
    return f"{ {'subject': 'sub'}.get(kind, kind) }-{_digest(key, kind, value)[:12]}"


def _digest(key: bytes, kind: str, value: str) -> str:
    return hmac.digest(key, f"{kind}\x1f{value}".encode("utf-8", "surrogateescape"), "sha256").hex()


# ------------------------------------------------------------------------------------------------------------------ identifiers of a header

# Text that names a machine's type or a vocabulary, not a person, a place or a day.
_HARMLESS = frozenset(
    [
        *("Manufacturer", "ManufacturerModelName", "SoftwareVersions", "SequenceName", "ConvolutionKernel", "ImplementationVersionName"),
        *("CodingSchemeDesignator", "CodingSchemeVersion", "CodeValue", "TransmitCoilName", "ReceiveCoilName", "ImagedNucleus"),
        *("RescaleType", "DeidentificationMethod"),
    ]
)
_NAMING = frozenset(["AE", "DA", "DT", "LO", "LT", "PN", "SH", "ST", "UC", "UI", "UR", "UT", "OB", "UN"])


def identifying_values(data: Dataset) -> tuple[str, ...]:
    """Every value of a header that could name the person, recursively and in private elements too: ids, names, dates, UIDs, free text.

    Default is to count: only coded strings (CS), numbers, times of day, standard UIDs and a short list of harmless attributes do not.
    A description of one plain word, such as ``Brain``, does not count either.
    """
    return tuple(dict.fromkeys(value for value in _values(data) if value))


def _values(data: Dataset) -> Iterator[str]:
    standard_code = data.get("CodingSchemeDesignator") == "DCM"  # its meanings are the standard's own words (PS3.16)
    for element in data:
        harmless = element.keyword in _HARMLESS or element.tag.is_private_creator or (standard_code and element.keyword == "CodeMeaning")
        if element.VR == "SQ":
            for item in element.value or []:
                yield from _values(item)
        elif element.VR in _NAMING and not harmless:
            for value in element.value if isinstance(element.value, MultiValue) else [element.value]:
                yield _value(element.keyword, element.VR, value)


_DESCRIBED = re.compile("Description|Comment|Protocol|Reason|Meaning|Contrast|Region|Examined|Explanation")


def _value(keyword: str, vr: str, value: object) -> str:
    """One value as text, empty where it names nobody."""
    if isinstance(value, bytes):  # private text under an unknown VR, or binary data, which is no text
        value = value.rstrip(b"\0 ").decode("latin-1")
        value = value if len(value) <= OVERLAP and value.isprintable() else ""
    text = str(value or "").replace("\0", "").strip()
    text = text if vr == "PN" else text.replace("^", " ")  # only a name is taken apart
    standard = vr == "UI" and text.startswith("1.2.840.10008.")  # classes and transfer syntaxes
    return "" if standard or (text.isalpha() and _DESCRIBED.search(keyword)) else text


# ------------------------------------------------------------------------------------------------------------------ tokens

# a decimal number is one word, not two; more digits before the point are a moment in time
_DECIMAL = r"(?<![\w.])\d{1,7}\.\d+(?:e[-+]?\d+)?(?![\w.])"
_WORD = re.compile(rf"{_DECIMAL}|[^\W_]+")
_UID = re.compile(r"(?<![\d.])\d+(?:\.\d+){3,}")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = f"({'|'.join(_MONTHS)})[a-z]*"
_DATE = re.compile(
    r"(?<!\d)(?:(?P<run>(?:19|20)\d{6})(?=\D|$|\d{4,6}(?:\D|$))"
    r"|(?P<y>(?:19|20)\d\d)[-/. ](?P<m>\d{1,2})[-/. ](?P<d>\d{1,2})(?!\d)"
    r"|(?P<a>\d{1,2})[-/. ](?P<b>\d{1,2})[-/. ](?P<y2>(?:19|20)\d\d)(?!\d)"
    rf"|(?P<d3>\d{{1,2}})(?:st|nd|rd|th)?[-/. ]*(?P<mon3>{_MONTH})[-/., ]*(?P<y3>(?:19|20)\d\d)(?!\d))"
    rf"|(?P<mon4>{_MONTH})\.? (?P<d4>\d{{1,2}})(?:st|nd|rd|th)?,? (?P<y4>(?:19|20)\d\d)(?!\d)"
)


def _normal(text: str) -> str:
    return text.casefold() if text.isascii() else unicodedata.normalize("NFKC", text).casefold()


def _dates(text: str) -> Iterator[str]:
    """Dates in normalised text as ``YYYYMMDD``; one whose day and month may be exchanged gives both."""
    for match in _DATE.finditer(re.sub(_DECIMAL, " ", text)):
        part = match.groupdict()
        if part["run"]:
            yield part["run"]
        elif part["y"]:
            yield f"{part['y']}{int(part['m']):02}{int(part['d']):02}"
        elif part["y2"]:
            a, b = int(part["a"]), int(part["b"])
            yield f"{part['y2']}{b:02}{a:02}"
            yield f"{part['y2']}{a:02}{b:02}"
        else:
            day, month, year = (part["d3"], part["mon3"], part["y3"]) if part["mon3"] else (part["d4"], part["mon4"], part["y4"])
            yield f"{year}{_MONTHS.index(month[:3]) + 1:02}{int(day):02}"


def _forms(value: str) -> Iterator[tuple[str, str]]:
    """The tokens (kind, token) that stand for one identifier."""
    text = _normal(value.replace("\0", "").strip())
    if _UID.fullmatch(text):
        yield "uid", text
        return
    if re.fullmatch(r"(19|20)\d\d(0[1-9]|1[0-2])([0-2]\d|3[01])(\d{2,6}(\.\d+)?([-+]\d{4})?)?", text):
        yield "date", text[:8]
    names = [_WORD.findall(part) for group in text.split("=") for part in group.split("^")] if "^" in text else []
    for words in names:
        yield from _text_forms(words)
    for group in text.split("=") if "^" in text else [text]:
        words = _WORD.findall(group)
        yield from _text_forms(words)
        if "^" in text:  # given name before family name
            yield from _text_forms([word for part in reversed(group.split("^")[:2]) for word in _WORD.findall(part)])


def _text_forms(words: list[str]) -> Iterator[tuple[str, str]]:
    if len(words) > LONGEST:
        for start in range(len(words) - LONGEST + 1):
            yield from _text_forms(words[start : start + LONGEST])
    elif len(words) > 1:
        if sum(map(len, words)) >= SHORTEST:
            yield "text", " ".join(words)
            if len(words) <= 4:
                yield "text", "".join(words)
    elif words and len(words[0]) >= SHORTEST:
        (word,) = words
        yield ("word" if word.isalpha() else "number" if word.isdigit() and len(word) < 6 else "text"), word


@dataclass(frozen=True, kw_only=True)
class IdentifierHashes:
    """Tokens of identifiers as keyed hashes. Without the key the file tells how many there are, and nothing else."""

    check: str  # of the key
    hashes: dict[str, frozenset[str]]  # kind: hashes
    heads: frozenset[str]  # first words of the tokens that have several: where a search is worth going on
    lengths: tuple[int, ...]  # of these tokens, words

    @classmethod
    def of(cls, key: bytes, values: Iterable[str]) -> "IdentifierHashes":
        hashes: dict[str, set[str]] = {kind: set() for kind in ("uid", "date", "text", "word", "number")}
        heads, lengths = set(), set()
        for kind, token in {form for value in set(values) for form in _forms(value)}:
            hashes[kind].add(_token_hash(key, token))
            if " " in token:
                heads.add(_token_hash(key, f"{token.split(' ')[0]} "))
                lengths.add(token.count(" ") + 1)
        frozen = {kind: frozenset(found) for kind, found in hashes.items()}
        return cls(check=_token_hash(key, ""), hashes=frozen, heads=frozenset(heads), lengths=tuple(sorted(lengths)))

    def write(self, path: Path) -> None:
        """Write as JSON, by rename."""
        partial = path.with_name(f".{path.name}.partial")
        hashes = {kind: sorted(found) for kind, found in self.hashes.items()}
        content = {"check": self.check, "hashes": hashes, "heads": sorted(self.heads), "lengths": self.lengths}
        partial.write_text(json.dumps({"medsynth": "identifiers", "version": 1, **content}))
        partial.replace(path)

    @classmethod
    def read(cls, path: Path, key: bytes) -> "IdentifierHashes":
        try:
            content = json.loads(path.read_text())
            assert (content["medsynth"], content["version"]) == ("identifiers", 1)
            hashes = {kind: frozenset(found) for kind, found in content["hashes"].items()}
            found = cls(check=content["check"], hashes=hashes, heads=frozenset(content["heads"]), lengths=tuple(content["lengths"]))
        except (OSError, ValueError, KeyError, TypeError, AssertionError) as error:
            raise MedsynthError(f"{path} is not a file of identifier hashes ({type(error).__name__}). Run prepare again.") from error
        if found.check != _token_hash(key, ""):
            raise MedsynthError(f"{path} was made with another key. Point paths.key to the key that prepare used, or run prepare again.")
        return found


def write_identifiers(path: Path, key: bytes, values: Iterable[str]) -> None:
    """Keep these identifiers as keyed hashes of their tokens."""
    IdentifierHashes.of(key, values).write(path)


def _token_hash(key: bytes, token: str) -> str:
    return hmac.digest(key, b"token\x1f" + token.encode("utf-8", "replace"), hashlib.sha256).hex()[:20]


# ------------------------------------------------------------------------------------------------------------------ search


@dataclass(frozen=True, order=True)
class Hit:
    """A file in which an identifier was found. It never says which one.

    ``kind``: uid, date, text (an id, several words), word and number (see `WEAK`), or ``unscanned`` for a file that cannot be looked
    through. ``file`` is relative to the folder searched, or ``(withheld)`` where the name itself holds an identifier.
    """

    file: str
    kind: str


def find(identifiers_file: Path, key: bytes, paths: Sequence[Path]) -> list[Hit]:
    """Files at or below ``paths`` whose names or bytes hold an identifier, by keyed hash.

    gzip, zip (also npz and checkpoints), base64, UTF-16, DICOM, JSON and HTML escapes are undone first. Numbers are not text: of NIfTI,
    npy and safetensors files the headers, extensions and trailing bytes are read and not the voxels, of DICOM and PNG all but the pixels.
    """
    known = _Matcher(IdentifierHashes.read(Path(identifiers_file), key), key)
    hits: set[Hit] = set()
    files = [(path, root) for root in map(Path, paths) for path in _files(root)]
    for path, root in tqdm(files, desc="looking for identifiers", unit="file", disable=len(files) < 50):
        name = path.relative_to(root).as_posix() if path != root else path.name
        in_name = known.kinds(name)
        kinds = in_name | (known.kinds(os.readlink(path)) if path.is_symlink() else known.scan(path))
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


class _Matcher:
    """Looks tokens up, each distinct word once."""

    def __init__(self, known: IdentifierHashes, key: bytes) -> None:
        self.known = known
        self.key = key
        self.words: dict[str, tuple[frozenset[str], bool]] = {}  # kinds of the word, whether a longer token begins with it

    def scan(self, path: Path) -> set[str]:
        """Kinds of identifiers in a file's content."""
        kinds: set[str] = set()
        try:
            with path.open("rb") as file:
                for text in _texts(file, 0):
                    kinds |= self.kinds(text)
        except (_Unscanned, OSError, zlib.error, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError):
            kinds.add("unscanned")
        return kinds

    def kinds(self, text: str) -> set[str]:
        """Kinds of identifiers among a text's tokens."""
        text = _normal(text)
        kinds = {"uid" for uid in set(_UID.findall(text)) for part in _beginnings(uid) if self._is("uid", part)}
        kinds |= {"date" for date in set(_dates(text)) if self._is("date", date)}
        words = _WORD.findall(_UID.sub(" ", text))
        for at, word in enumerate(words):
            found, goes_on = self._word(word)
            kinds |= found
            if goes_on:
                ends = (at + length for length in self.known.lengths if at + length <= len(words))
                kinds |= {"text" for end in ends if self._is("text", " ".join(words[at:end]))}
        return kinds

    def _is(self, kind: str, token: str) -> bool:
        return bool(self.known.hashes[kind]) and _token_hash(self.key, token) in self.known.hashes[kind]

    def _word(self, word: str) -> tuple[frozenset[str], bool]:
        if word not in self.words:
            if len(self.words) > 10**6:
                self.words.clear()
            digest = _token_hash(self.key, word) if len(word) >= SHORTEST else ""
            kinds = frozenset(kind for kind in ("text", "word", "number") if digest in self.known.hashes[kind])
            self.words[word] = kinds, _token_hash(self.key, f"{word} ") in self.known.heads
        return self.words[word]


def _beginnings(uid: str) -> Iterator[str]:
    parts = uid.split(".")
    return (".".join(parts[:count]) for count in range(4, len(parts) + 1))


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
