"""One data set, rebuilt. An attribute that PS3.15 Table E.1-1 names gets the table's action; one of the allow-list is copied if its value
is of the kind that it should be; everything else is not there: private attributes, curves, overlays, unknown attributes and free text, in
sequences of any depth. Pixels are not looked at here (see `medsynth.deidentify.pixels`).

**Text** passes only as words of `medsynth.deidentify.profile.words`, coded strings as `terms`; codes only if PS3.16 knows them, with its
meaning. On top of that no text passes in which an identifier of the same data set stands, such as a family name stored as a body part.
"""

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cache
from typing import Any

import numpy as np
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.pixels.processing import _expand_segmented_lut
from pydicom.sr._snomed_dict import mapping as snomed_mapping
from pydicom.sr.codedict import codes
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID_dictionary

from medsynth.deidentify.profile import EDITION, OVERLAY_DATA, PRIVATE, Options, actions, allowed, row_of, terms, words
from medsynth.errors import UnreadableImage
from medsynth.io.identifiers import IdentifierHashes, Matcher, identifying_values
from medsynth.io.pseudonyms import days_back, is_new_uid, new_uid, pseudonym

OLDEST = 90  # years: higher ages single people out (45 CFR 164.514(b)(2)(i)(C))
REMOVED = "REMOVED"

# PS3.3 IODs with neither functional groups nor a type 1 among the attributes that the table removes or replaces as the IOD needs it
_CLASSIC = frozenset(
    f"1.2.840.10008.5.1.4.1.1.{leaf}"
    for leaf in (
        *("1", "1.1", "1.1.1", "1.2", "1.2.1", "1.3", "1.3.1", "2", "3.1", "4", "6.1"),
        *("7", "7.1", "7.2", "7.3", "7.4", "12.1", "12.2", "20", "128"),
    )
)
_NUMBERS = frozenset(["DS", "IS", "FD", "FL", "SL", "SS", "SV", "UL", "US", "UV"])
_TEXTS = frozenset(["AE", "LO", "LT", "PN", "SH", "ST", "UC", "UR", "UT"])
_DATES = frozenset(["DA", "DT", "TM"])
_DUMMIES: dict[str, Any] = {
    **dict.fromkeys(_TEXTS | {"CS"}, REMOVED),
    "UR": "urn:removed",
    "AS": "000Y",
    "DA": "19000101",
    "TM": "000000",
    "DT": "19000101000000",
    "OB": b"\0\0",
    "UN": b"\0\0",
    **dict.fromkeys(_NUMBERS, 0),
}
_INSTANCES = frozenset(["SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"])  # never a UID of PS3.6
_CODE = ("CodeValue", "LongCodeValue", "URNCodeValue")
_ENUMERATED = frozenset(["M", "F", "O", "YES", "NO", "UNKNOWN", "ALTERED", "UNALTERED"])  # sex, smoking, neutered
_KERNEL = re.compile(r"[A-Z]{1,2}[a-z]?\d{1,2}[a-zA-Z]?|FC\d\d")  # Siemens, Philips, Canon
_OVERLAY = {"Rows": 0x10, "Columns": 0x11, "Type": 0x40, "Origin": 0x50, "BitsAllocated": 0x100, "BitPosition": 0x102, "Data": 0x3000}

_TABLES = {"LUTData": "LUTDescriptor"} | {
    f"{colour}PaletteColorLookupTableData": f"{colour}PaletteColorLookupTableDescriptor" for colour in ("Red", "Green", "Blue")
}

# Numbers and codes of private attributes that PS3.15 Table E.3.10-1 lists as safe: group, creator, element, value representation
_SAFE_PRIVATE = {
    (0x0019, "GEMS_ACQU_01", 0x23): "DS",  # table speed
    (0x0019, "GEMS_ACQU_01", 0x24): "DS",  # mid scan time
    (0x0019, "GEMS_ACQU_01", 0x27): "DS",  # rotation speed
    (0x0025, "GEMS_SERS_01", 0x07): "SL",  # images in series
    (0x0045, "GEMS_HELIOS_01", 0x01): "SS",  # macro rows
    (0x0045, "GEMS_HELIOS_01", 0x02): "FL",  # macro row width
    (0x00E1, "ELSCINT1", 0x21): "DS",  # dose length product
    (0x01E1, "ELSCINT1", 0x50): "DS",  # acquisition duration
    (0x01F1, "ELSCINT1", 0x07): "DS",  # table velocity
    (0x01F1, "ELSCINT1", 0x26): "DS",  # pitch
    (0x01F1, "ELSCINT1", 0x27): "DS",  # rotation time
    (0x2001, "Philips Imaging DD 001", 0x03): "FL",  # b-value
    (0x2005, "Philips MR Imaging DD 001", 0x0D): "FL",  # scale intercept
    (0x2005, "Philips MR Imaging DD 001", 0x0E): "FL",  # scale slope
    (0x7053, "Philips PET Private Group", 0x00): "DS",  # SUV scale factor
    (0x7053, "Philips PET Private Group", 0x09): "DS",  # activity concentration scale factor
}


@dataclass(frozen=True, kw_only=True)
class Person:
    """Whom a data set is about, as it may be said: ``name`` a pseudonym, ``days`` by which dates move into the past."""

    name: str
    days: int


def person_of(data: Dataset, key: bytes) -> Person:
    """Raises UnreadableImage (``missing-subject``) where neither a patient nor a study is named.

    A data set that this key has de-identified before keeps its pseudonym and its dates.
    """
    given = _first(data, "PatientID")
    if is_new_uid(key, _first(data, "SOPInstanceUID")) and re.fullmatch(r"sub-[0-9a-f]{12}", given):
        return Person(name=given, days=0)
    issuer, study = _first(data, "IssuerOfPatientID"), _first(data, "StudyInstanceUID")
    if not given and not study:
        raise UnreadableImage("missing-subject", "It has neither a patient id nor a study UID, so that nobody can tell whose it is.")
    subject = (f"{given}@{issuer}" if issuer else given) or f"study {study}"
    return Person(name=pseudonym(key, "subject", subject), days=days_back(key, subject))


def _first(data: Dataset, keyword: str) -> str:
    try:
        return str(data.get(keyword) or "").strip()
    except Exception:  # a value that cannot be parsed
        return ""


@dataclass(frozen=True, kw_only=True)
class Rebuilder:
    """Rebuilds data sets under one key and one choice of options.

    ``overlay_is_clean`` says whether a packed overlay plane (bytes, rows, columns) shows no text; it is asked under Clean Graphics alone.
    """

    key: bytes
    options: Options = field(default_factory=Options)
    overlay_is_clean: Callable[[bytes, int, int], bool] = lambda *_: False

    def __call__(self, data: Dataset) -> Dataset:
        """The data set without pixels. Raises UnreadableImage (``missing-subject``)."""
        person = person_of(data, self.key)
        known = Matcher(IdentifierHashes.of(b"", _identifiers(data)), b"")
        big_endian = data.original_encoding[1] is False
        work = _Work(self, person, known, classic=_first(data, "SOPClassUID") in _CLASSIC, swapped=big_endian)
        built = work.rebuilt(data, top=True)
        built.PatientName = built.PatientID = person.name
        built.PatientIdentityRemoved = "YES"
        built.DeidentificationMethod = ["medsynth", f"PS3.15 {EDITION} Table E.1-1", "rebuilt by allow-list"]
        shifted = self.options.dates == "shift"
        built.LongitudinalTemporalInformationModified = "MODIFIED" if shifted else "REMOVED"
        set_method_codes(built, self.options.codes)
        return built


def set_method_codes(data: Dataset, method: tuple[tuple[str, str], ...]) -> None:
    """De-identification Method Code Sequence (0012,0064), from CID 7050."""
    data.DeidentificationMethodCodeSequence = [_code_item(value, "DCM", meaning) for value, meaning in method]


def _identifiers(data: Dataset) -> Iterator[str]:
    """`identifying_values` but for descriptions, element by element: one that cannot be parsed hides no other."""
    described = actions(Options(descriptors="clean"))
    for tag in data.keys():  # noqa: SIM118 (a data set's iterator parses values)
        try:
            element = data[tag]
            if element.VR == "SQ":
                for item in element.value or []:
                    yield from _identifiers(item)
            elif described.get(row_of(tag)) != "C":
                part = Dataset()
                part.add(element)
                yield from identifying_values(part)
        except Exception:  # whatever the bytes lead pydicom to: such an element is not copied either
            continue


def _code_item(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    setattr(item, "CodeValue" if len(value) <= 16 else "LongCodeValue", value)
    item.CodingSchemeDesignator, item.CodeMeaning = scheme, meaning[:64]
    return item


@cache
def _meanings() -> dict[tuple[str, str], str]:
    """Meaning of every code of PS3.16, by scheme and value; those of SNOMED RT are said as SNOMED CT says them."""
    found = {(scheme, code.value): code.meaning for scheme in codes.schemes() for code in getattr(codes, scheme).concepts.values()}
    return found | {("SRT", old): found["SCT", new] for old, new in snomed_mapping["SRT"].items() if ("SCT", new) in found}


class _Work:
    """The rebuild of one data set."""

    def __init__(self, rebuilder: Rebuilder, person: Person, known: Matcher, classic: bool, swapped: bool) -> None:
        self.key = rebuilder.key
        self.overlay_is_clean = rebuilder.overlay_is_clean
        self.person = person
        self.known = known
        self.classic = classic
        self.swapped = swapped
        self.actions, self.basic = actions(rebuilder.options), actions(Options())

    def rebuilt(self, data: Dataset, top: bool = False) -> Dataset:
        built = Dataset()
        for tag in sorted(data.keys()):
            if tag >> 16 < 8 or tag >> 16 in (0x7FE0, 0xFFFA, 0xFFFC):
                continue
            try:
                made = self._element(data[tag], top)
            except Exception:  # a value that pydicom cannot parse or would not write is not copied
                continue
            if made is not None:
                built.add(made)
        if self.actions[PRIVATE] == "C":
            _copy_safe_private(data, built)
        if self.actions[OVERLAY_DATA] == "C" and top:
            self._copy_overlays(data, built)
        _cut_tables(built)
        if any(keyword in data for keyword in _CODE):
            _set_code(data, built)
        return built

    def _element(self, element: DataElement, top: bool) -> DataElement | None:
        row = row_of(element.tag)
        if row in self.actions:
            return self._by_table(element, row, top)
        if element.tag in allowed():
            return self._copied(element)
        return None

    def _by_table(self, element: DataElement, row: str, top: bool) -> DataElement | None:
        tag, vr, action = element.tag, _vr(element.tag), self.actions[row]
        if action in ("K", "C"):
            kept = self._characteristic(element, vr) if action == "K" else self._cleaned(element, vr)
            if kept is not None:
                return kept
            action = self.basic[row]
        action = self._resolved(action, top)
        if action == "X" or not vr:
            return None
        if action == "Z":
            return DataElement(tag, vr, [] if vr == "SQ" else None)
        if vr == "UI":
            return self._copied(element)
        if vr == "SQ":
            items = [self.rebuilt(item) for item in element.value or []]
            return DataElement(tag, vr, items if action == "U" else [item for item in items if len(item)] or [Dataset()])
        return DataElement(tag, vr, _DUMMIES[vr])

    def _resolved(self, action: str, top: bool) -> str:
        """One of the alternatives of an action such as ``X/Z/D``: the first where the attribute is optional, else the one that is valid
        whatever its type is (PS3.15 E.1.1, Table E.1-1a)."""
        if action == "X/Z/U*":
            return "U"
        alternatives = action.split("/")
        first, last = alternatives[0], alternatives[-1]
        return last if action == "X/Z" or not (top and self.classic) else first

    def _cleaned(self, element: DataElement, vr: str) -> DataElement | None:
        """What an option keeps of this element, if anything."""
        if vr in _DATES or _keyword(element.tag) == "TimezoneOffsetFromUTC":
            moved = [self._moved(str(value), vr) for value in _each(element)]
            return DataElement(element.tag, vr, moved) if moved and all(moved) else None
        if vr in _TEXTS:
            kept = [self._clean_text(str(value)) for value in _each(element)]
            return DataElement(element.tag, vr, [text for text in kept if text]) if any(kept) else None
        return self._copied(element) if vr == "SQ" else None

    def _characteristic(self, element: DataElement, vr: str) -> DataElement | None:
        """Age, sex, size and the like, as far as numbers and enumerated values say them."""
        if vr in _TEXTS or (vr == "CS" and not {str(value).strip() for value in _each(element)} <= _ENUMERATED):
            return self._cleaned(element, vr)
        return self._copied(element)

    def _moved(self, text: str, vr: str) -> str:
        """A date moved by the person's days, a time as it is; empty where it is neither."""
        text = text.strip()
        if vr == "TM":
            return text if re.fullmatch(r"\d{2}(\d{2}(\d{2}(\.\d{1,6})?)?)?", text) else ""
        if vr not in _DATES:  # the offset from UTC
            return text if re.fullmatch(r"[+-]\d{4}", text) else ""
        match = re.fullmatch(r"(\d{8})" + (r"(\d{0,6}(?:\.\d{1,6})?(?:[+-]\d{4})?)" if vr == "DT" else "()"), text)
        try:
            return f"{date.fromisoformat(match[1]) - timedelta(days=self.person.days):%Y%m%d}{match[2]}" if match else ""
        except (ValueError, OverflowError):
            return ""

    def _copied(self, element: DataElement) -> DataElement | None:
        """The element if its value is of the kind that its attribute should have."""
        tag, vr = element.tag, _vr(element.tag)
        stored = str(element.VR)
        if stored != vr and stored not in vr.split(" or ") and not {stored, vr} <= _NUMBERS:
            return None
        if vr == "SQ":
            items = [self.rebuilt(item) for item in element.value or []]
            kept = [item for item in items if len(item)]
            return DataElement(tag, vr, kept) if kept or not items else None
        values = _each(element)
        if not values:
            return DataElement(tag, stored, None)
        if vr == "UI":
            kept = frozenset() if _keyword(tag) in _INSTANCES else UID_dictionary.keys()
            return DataElement(tag, vr, [uid if uid in kept else new_uid(self.key, uid) for uid in map(str, values)])
        if vr == "CS":
            said = [self._code_string(str(value), tag) for value in values]
            return DataElement(tag, vr, said) if tag >> 16 != 0x0028 or REMOVED not in said else None
        if vr == "AS":
            return DataElement(tag, vr, _capped(str(values[0]))) if _capped(str(values[0])) else None
        if vr in ("DS", "IS"):
            texts = [str(value).strip() for value in values]
            numbers = all(re.fullmatch(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", text) for text in texts)
            return DataElement(tag, vr, texts) if numbers and not any(self._names(text, weak=False) for text in texts) else None
        if vr in _TEXTS:
            return DataElement(tag, vr, [self._vocabulary(str(value), tag) for value in values])
        if isinstance(element.value, bytes):  # tables of numbers, 16 bits each
            return DataElement(tag, stored, np.frombuffer(element.value, "<u2").byteswap().tobytes() if self.swapped else element.value)
        return DataElement(tag, stored, element.value) if all(isinstance(value, int | float) for value in values) else None

    def _code_string(self, text: str, tag: BaseTag) -> str:
        text = text.strip()
        listed = terms().get(_keyword(tag))
        if listed is not None:
            return text if not text or text in listed else REMOVED
        legal = re.fullmatch(r"[A-Z0-9 _]{0,16}", text) and terms()[""].issuperset(re.split("[ _]+", text.casefold()) if text else ())
        return text if legal and not self._names(text) else REMOVED

    def _vocabulary(self, text: str, tag: BaseTag) -> str:
        """Text of an attribute that an image needs: its known words, or a word that says that there was another."""
        number = re.fullmatch(r"\d{1,3}", text.strip())
        kernel = _keyword(tag) == "ConvolutionKernel" and _KERNEL.fullmatch(text.strip())
        if (number or kernel) and not self._names(text):
            return text.strip()
        return self._clean_text(text) or (REMOVED if text.strip() else "")

    def _clean_text(self, text: str) -> str:
        kept = [word for word in re.findall(r"[^\W_]+", text) if word.casefold() in words()]
        cleaned = " ".join(word for word in kept if not self._names(word))[:64].strip()
        return "" if self._names(cleaned) else cleaned

    def _names(self, text: str, weak: bool = True) -> bool:
        """Whether an identifier of this data set stands in the text."""
        kinds = self.known.kinds(text)
        return bool(kinds if weak else kinds - {"word", "number", "date"})

    def _copy_overlays(self, data: Dataset, built: Dataset) -> None:
        """Overlay planes (PS3.3 C.9.2) of one bit a pixel in which no text is seen."""
        for group in range(0x6000, 0x6020, 2):
            try:
                values = {name: data[Tag(group, element)].value for name, element in _OVERLAY.items()}
                rows, columns = int(values["Rows"]), int(values["Columns"])
                packed = bytes(values["Data"])[: (rows * columns + 7) // 8]
                fits = (values["BitsAllocated"], values["BitPosition"], values["Type"] in ("G", "R")) == (1, 0, True)
            except Exception:  # absent, or not to be parsed
                continue
            if fits and len(packed) * 8 >= rows * columns and self.overlay_is_clean(packed, rows, columns):
                values["Data"] = packed + b"\0" * (len(packed) % 2)
                values["Origin"] = [int(place) for place in values["Origin"]]
                for name, element in _OVERLAY.items():
                    built.add(DataElement(Tag(group, element), dictionary_VR(Tag(group, element)).replace("OB or ", ""), values[name]))


@cache
def _vr(tag: int) -> str:
    """The value representation of a standard attribute; empty for one that PS3.6 does not know."""
    try:
        return dictionary_VR(tag)
    except KeyError:
        return ""


@cache
def _keyword(tag: int) -> str:
    return keyword_for_tag(tag)


def _each(element: DataElement) -> list:
    if element.value is None or element.value == "" or element.value == b"":
        return []
    return list(element.value) if isinstance(element.value, MultiValue | list) else [element.value]


def _cut_tables(built: Dataset) -> None:
    """Lookup tables (PS3.3 C.7.6.3.1.5, C.11.1.1) end where their descriptors say; one without a valid descriptor goes. Segmented ones
    become plain ones: how long they are is known only then."""
    for keyword, descriptor in _TABLES.items():
        segments = built.pop(f"Segmented{keyword}", None) if descriptor != "LUTDescriptor" else None
        if segments is None and keyword not in built:
            continue
        try:
            if segments is not None:
                form = f"<{len(segments.value) // 2}H" if built[descriptor].value[2] > 8 else f"<{len(segments.value)}B"
                plain = np.array(_expand_segmented_lut(struct.unpack(form, segments.value), form), "<u2")
                built.add(DataElement(Tag(keyword), "OW", plain.tobytes()))
            count, _, bits = built[descriptor].value
            value = built[keyword].value
            count = count % 2**16 or 2**16  # 0 stands for 65536
            size = count * (2 if isinstance(value, bytes) and (bits > 8 or len(value) >= 2 * count) else 1)
            assert 8 <= bits <= 16
            assert len(value) >= size
        except Exception:  # absent, or not what it should be
            built.pop(keyword, None)
            continue
        built[keyword].value = value[:size] + b"\0" * (size % 2) if isinstance(value, bytes) else value[:size]


def _capped(age: str) -> str:
    match = re.fullmatch(r"(\d{3})([DWMY])", age.strip())
    return "" if not match else f"{OLDEST:03d}Y" if match[2] == "Y" and int(match[1]) > OLDEST else age.strip()


def _set_code(data: Dataset, built: Dataset) -> None:
    """The item's code with the standard's own meaning; a code that PS3.16 does not know may be anybody's, and is replaced."""
    value = next(text for keyword in _CODE if (text := _first(data, keyword)) or keyword == _CODE[-1])
    scheme = _first(data, "CodingSchemeDesignator")
    meaning = _meanings().get((scheme, value))
    for keyword in (*_CODE, "CodingSchemeVersion"):
        if keyword in built:
            del built[keyword]
    built.update(_code_item(value, scheme, meaning) if meaning else _code_item(REMOVED, "99MEDSYNTH", REMOVED))


def _copy_safe_private(data: Dataset, built: Dataset) -> None:
    for (group, creator, element), vr in _SAFE_PRIVATE.items():
        try:
            stored = data.private_block(group, creator)[element]
            value = stored.value
            if stored.VR == "UN":
                part = Dataset()
                part.add(DataElement(Tag(stored.tag), vr, _from_bytes(bytes(value), vr)))
                value = part[stored.tag].value
            values = value if isinstance(value, MultiValue | list) else [value]
            if vr == "DS":
                value = [f"{float(part):.10g}" for part in values]
            elif not all(isinstance(part, int | float) for part in values):
                continue
        except Exception:  # absent, or not the number that it should be
            continue
        built.private_block(group, creator, create=True).add_new(element, vr, value)


def _from_bytes(value: bytes, vr: str) -> Any:
    """A value of unknown representation (PS3.5 6.2.2: little endian)."""
    if vr == "DS":
        return value.decode("ascii").strip("\0 ").split("\\")
    return struct.unpack({"FL": "<f", "SL": "<i", "SS": "<h"}[vr], value)[0]
