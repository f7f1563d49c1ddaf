"""Files below a folder, told apart by content, and DICOM data sets opened so that no broken or hostile file can do more than be refused."""

import errno
import logging
import os
import re
import stat
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from multiprocessing import get_context
from pathlib import Path
from typing import BinaryIO, TypeVar

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.filereader import read_preamble
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
from tqdm import tqdm

from medsynth.errors import UnreadableImage
from medsynth.io.dicom.reasons import Refusal, refuse, worded

# pydicom's warnings quote header values
logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)

INFLATE_LIMIT = 2**27  # bytes of a deflated file, inflated: 1.5 MB can hold 3 GB
WORTH_PROCESSES = 1000  # files: with fewer, one process is done before others have started
PIXELS = (0x7FE00008, 0x7FE00009, 0x7FE00010)

A = TypeVar("A")
T = TypeVar("T")


def parallel(work: Callable[[A], T], items: Sequence[A], workers: int, says: str, *, worth: int | None = None) -> Iterator[T]:
    """``work`` for each item, in order, with a bar; in processes where there are enough items (``worth``) to pay for their start."""
    bar = {"total": len(items), "desc": says, "unit": "", "disable": len(items) < 100}
    if workers < 2 or len(items) < (WORTH_PROCESSES if worth is None else worth):
        yield from tqdm(map(work, items), **bar)
        return
    # forkserver: a fork of a process in which a numerical library has started threads may hang
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
        yield from tqdm(pool.map(work, items, chunksize=64 if worth is None else 1), **bar)


def walk(root: Path) -> tuple[list[str], list[Refusal]]:
    """Regular files below ``root`` in a fixed order, and what is not opened."""
    found: list[str] = []
    refusals: list[Refusal] = []
    links: list[str] = []

    def leave(path: str, code: str, files: int = 1) -> None:
        refusals.append(Refusal(key=path, files=(path,) * files, code=code, reason=worded(code)))

    for folder, folders, names in os.walk(root, onerror=lambda error: leave(error.filename, "unreadable-folder", files=0)):
        folders.sort()
        for name in sorted(names + [name for name in folders if os.path.islink(os.path.join(folder, name))]):
            path = os.path.join(folder, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                links.append(path)
            elif stat.S_ISREG(mode):
                found.append(path)
            else:
                leave(path, "not-a-file")
    seen = set(found)
    for path in links:
        target = os.path.realpath(path)
        if not Path(target).is_relative_to(root) or not os.path.exists(target):
            leave(path, "link-outside")
        elif os.path.isfile(target) and target not in seen:
            seen.add(target)  # unreachable without the link: below a folder that cannot be listed
            found.append(target)
    return found, refusals


def is_dicom(path: str | Path) -> bool:
    """Whether the content is DICOM: the magic after the preamble, or, without preamble, a first element of group 0002 or 0008."""
    with open(path, "rb") as file:
        start = file.read(132)
    if start[128:] == b"DICM":
        return True
    if len(start) < 16 or start[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08") or start[3 if start[0] else 2] != 0:
        return False
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    return explicit or (start[0] != 0 and int.from_bytes(start[4:8], "little") <= os.path.getsize(path))


def is_keyword(name: str) -> bool:
    """Whether PS3.6 knows an attribute of this keyword."""
    return tag_for_keyword(name) is not None


@contextmanager
def contained() -> Iterator[None]:
    """Whatever a hostile or broken file makes a parser raise or say becomes one error that quotes nothing of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except UnreadableImage:
            raise
        except OSError as error:
            raise refuse("no-permission" if error.errno in (errno.EACCES, errno.EPERM) else "io-error") from None
        except Exception as error:  # pydicom raises whatever the bytes lead it to: struct.error, KeyError, RecursionError ...
            raise refuse("unreadable", type(error).__name__) from None


def open_dataset(source: str | Path | BinaryIO, **options) -> tuple[Dataset, BinaryIO, int]:
    """The data set, the stream behind its last element read, and the stream's size; a deflated file is inflated within `INFLATE_LIMIT`.

    ``options`` are pydicom's: ``specific_tags``, ``stop_before_pixels``. The caller closes the stream.
    """
    stream = open(source, "rb") if isinstance(source, str | Path) else source  # noqa: SIM115
    try:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(0)
        if read_preamble(stream, force=True) is not None:
            meta = pydicom.filereader._read_file_meta_info(stream)
            if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
                stream, packed = BytesIO(), stream
                with packed:
                    size = _inflate(packed, meta, stream)
        stream.seek(0)
        data = pydicom.dcmread(stream, force=True, **options)
    except BaseException:
        stream.close()
        raise
    if "TransferSyntaxUID" not in data.file_meta:
        implicit, little = data.original_encoding
        plain = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        data.file_meta.TransferSyntaxUID = plain if little else ExplicitVRBigEndian
    return data, stream, size


def _inflate(packed: BinaryIO, meta: Dataset, plain: BytesIO) -> int:
    """Write the file as explicit little endian. pydicom itself would inflate without bound, even to read a header."""
    content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed.read(INFLATE_LIMIT), INFLATE_LIMIT + 1)
    if len(content) > INFLATE_LIMIT:
        raise refuse("too-large")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    plain.write(b"\0" * 128 + b"DICM")
    write_file_meta_info(plain, meta, enforce_standard=False)
    plain.write(content)
    return plain.tell()


def read_full_header(path: str | Path) -> Dataset:
    """The whole header, private elements and file meta information included. Raises UnreadableImage."""
    with contained():
        data, stream, _ = open_dataset(path, stop_before_pixels=True)
        with stream:
            # values are parsed when they are looked at: here is where that may fail
            data.walk(lambda _, element: None)
            return data


def header_texts(source: BinaryIO) -> tuple[list[str], list[bytes]]:
    """All values that are text, their character sets decoded, and the raw bytes before and behind the pixels. Raises UnreadableImage.

    The codes of PS3.16 and SNOMED CT are blanked where they stand as codes: 109100 is in every synthetic file, and may be a patient's id.
    """
    with contained():
        data, stream, size = open_dataset(source, stop_before_pixels=True)
        start = stream.tell()
        _, end, _ = pixel_extent(data, stream, size)
        texts: list[str] = []

        def note(holder: Dataset, element: pydicom.DataElement) -> None:
            code = element.keyword == "CodeValue" and _is_standard(str(element.value), str(holder.get("CodingSchemeDesignator", "")))
            if element.VR != "SQ" and not isinstance(element.value, bytes) and not code:
                texts.append(str(element.value))

        for part in (data.file_meta, data):
            part.walk(note)
        stream.seek(0)
        before = _CODE.sub(_without_code, stream.read(start))
        stream.seek(end)
        return texts, [before, _CODE.sub(_without_code, stream.read())]


# Code Value (0008,0100) and Coding Scheme Designator (0008,0102) behind it, as explicit and as implicit little endian
_CODE = re.compile(rb"(\x08\x00\x00\x01(?:SH..|..\0\0))([0-9]{1,16})( ?\x08\x00\x02\x01(?:SH..|..\0\0)(DCM|SCT) )", re.DOTALL)


def _without_code(match: re.Match[bytes]) -> bytes:
    before, value, behind, scheme = match.groups()
    return before + b" " * len(value) + behind if _is_standard(value.decode(), scheme.decode()) else match[0]


def _is_standard(value: str, scheme: str) -> bool:
    return value in _standard_codes().get(scheme, ())


@cache
def _standard_codes() -> dict[str, frozenset[str]]:
    """The codes that the standard names, by their scheme."""
    from pydicom.sr.codedict import codes  # half a second

    return {scheme: frozenset(code.value for code in getattr(codes, scheme).concepts.values()) for scheme in ("DCM", "SCT")}


def pixel_extent(data: Dataset, stream: BinaryIO, size: int) -> tuple[int, int, int]:
    """Tag, end in the stream, and bytes of the pixel element that begins where ``stream`` stands; an end behind ``size``: cut short.

    Without a pixel element the tag is 0 and the end where the stream stands.
    """
    start = stream.tell()
    order = "little" if data.original_encoding[1] else "big"
    head = stream.read(12)
    implicit = head[4:6] not in (b"OB", b"OW", b"OF", b"OD", b"UN")  # whatever the transfer syntax says
    tag = int.from_bytes(head[:2], order) << 16 | int.from_bytes(head[2:4], order)
    if tag not in PIXELS:
        return 0, start, 0
    length = int.from_bytes(head[4:8] if implicit else head[8:12], order)
    begin = stream.seek(start + (8 if implicit else 12))
    if length == 0xFFFFFFFF:
        return tag, _fragments_end(stream, size), size - begin
    return tag, begin + length, length


def _fragments_end(stream: BinaryIO, size: int) -> int:
    """Where encapsulated pixel data (always little endian, PS3.5 A.4) ends with its delimiter; behind ``size`` where it does not."""
    while len(item := stream.read(8)) == 8:
        tag, length = item[:4], int.from_bytes(item[4:], "little")
        if tag == b"\xfe\xff\xdd\xe0":
            return stream.tell()
        if tag != b"\xfe\xff\x00\xe0":
            break
        stream.seek(length, os.SEEK_CUR)
        if length % 2 and stream.read(1) != b"\0":  # some writers pad a fragment and do not count it
            stream.seek(-1, os.SEEK_CUR)
    return size + 1
