"""What in a header could name a person, and how it is kept: as keyed hashes of tokens.

**Tokens.** Text is NFKC-normalised and case-folded; a *word* is a run of letters and digits. An identifier is the sequence of its words,
so ``DOE^JANE``, ``Doe, Jane`` and ``doe_jane`` are one; it is also looked for with its words run together (``doejane``). A person name
gives its parts too. Free text of more than `LONGEST` words gives each run of `LONGEST` words in it. UIDs and dates are whole tokens: a UID
is also found as the beginning of a longer one, a date in any of its common renderings. What has fewer than four characters, such as ``M``
or ``CT``, does not count.
"""

import hashlib
import hmac
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.uid import UID_dictionary

from medsynth.errors import MedsynthError

LONGEST = 8  # words of a token
SHORTEST = 4  # characters of a token
BLOB = 2**10  # bytes: longer values of unknown kind are data, not text

# Single alphabetic words and short numbers also occur by chance: a name such as "Brown" is found where a text says brown.
WEAK = frozenset({"word", "number"})


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
        value = value if len(value) <= BLOB and value.isprintable() else ""
    text = str(value or "").replace("\0", "").strip()
    text = text if vr == "PN" else text.replace("^", " ")  # only a name is taken apart
    standard = vr == "UI" and text in UID_dictionary  # classes and transfer syntaxes
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


# ------------------------------------------------------------------------------------------------------------------ matching


class Matcher:
    """Looks tokens up, each distinct word once."""

    def __init__(self, known: IdentifierHashes, key: bytes) -> None:
        self.known = known
        self.key = key
        self.words: dict[str, tuple[frozenset[str], bool]] = {}  # kinds of the word, whether a longer token begins with it

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
