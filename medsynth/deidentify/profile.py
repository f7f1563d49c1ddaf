"""PS3.15 Table E.1-1 as data: what the Basic Application Level Confidentiality Profile and its options do to each attribute.

``ps3_15_e1_1.csv`` holds the table: one row an attribute with its action, one column an option. ``attributes.csv`` holds the allow-list:
attributes of radiology images (PS3.3) that hold numbers, codes or vocabulary, and that the table does not name.
"""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import permutations
from typing import Literal

from pydicom.datadict import tag_for_keyword
from pydicom.sr._cid_dict import cid_concepts

EDITION = "2026c"
PRIVATE, CURVE, OVERLAY_DATA, OVERLAY_COMMENTS = "private", "50xxxxxx", "60xx3000", "60xx4000"  # rows that are no single tag


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which options of the profile are applied (PS3.15 E.3), beside what is done to pixels."""

    dates: Literal["remove", "shift"] = "remove"
    descriptors: Literal["remove", "clean"] = "remove"
    graphics: Literal["remove", "clean"] = "remove"
    private: Literal["remove", "safe"] = "remove"
    patient: Literal["remove", "keep"] = "remove"

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the table that these options switch on."""
        asked = {
            "retain_modified_dates": self.dates == "shift",
            "clean_descriptors": self.descriptors == "clean",
            "clean_graphics": self.graphics == "clean",
            "retain_safe_private": self.private == "safe",
            "retain_patient_characteristics": self.patient == "keep",
        }
        return tuple(column for column, on in asked.items() if on)

    @property
    def codes(self) -> tuple[tuple[str, str], ...]:
        """The profile and these options in CID 7050 (PS3.16): value and meaning."""
        return (("113100", "Basic Application Confidentiality Profile"), *(_CODES[column] for column in self.columns))


_CODES = {
    "clean_graphics": ("113103", "Clean Graphics Option"),
    "clean_descriptors": ("113105", "Clean Descriptors Option"),
    "retain_modified_dates": ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    "retain_patient_characteristics": ("113108", "Retain Patient Characteristics Option"),
    "retain_safe_private": ("113111", "Retain Safe Private Option"),
}


@cache
def table() -> tuple[Mapping[str, str], ...]:
    """All rows: ``tag`` (eight hexadecimal digits, or one of the group rows), ``name``, ``basic``, and one column an option."""
    with (files(__package__) / "ps3_15_e1_1.csv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


@cache
def actions(options: Options) -> Mapping[str, str]:
    """The action on each row under these options: that of the Basic Profile, or ``K`` (keep) or ``C`` (clean) where an option says so."""
    found = {}
    for row in table():
        chosen = {row[column] for column in options.columns} - {""}
        found[row["tag"]] = "C" if "C" in chosen else "K" if "K" in chosen else row["basic"]
    return found


@cache
def row_of(tag: int) -> str:
    """The key of a tag's row, whether there is one or not."""
    group = tag >> 16
    if group % 2:
        return PRIVATE
    if group & 0xFF00 == 0x5000:
        return CURVE
    if group & 0xFF00 == 0x6000 and tag & 0xFFFF in (0x3000, 0x4000):
        return OVERLAY_DATA if tag & 0xFFFF == 0x3000 else OVERLAY_COMMENTS
    return f"{tag:08X}"


@cache
def allowed() -> frozenset[int]:
    """Tags of the allow-list."""
    with (files(__package__) / "attributes.csv").open(encoding="utf-8", newline="") as file:
        rows = tuple(csv.DictReader(file))
    assert all(tag_for_keyword(row["keyword"]) == int(row["tag"], 16) for row in rows)
    return frozenset(int(row["tag"], 16) for row in rows)


@cache
def terms() -> Mapping[str, frozenset[str]]:
    """What coded strings may say: whole terms by keyword; under an empty one the words of all other terms."""
    lines = (files(__package__) / "terms.txt").read_text(encoding="utf-8").splitlines()
    listed = dict(line.split(": ") for line in lines if ": " in line and not line.startswith("#"))
    found = {keyword: frozenset(text.split("|")) for keyword, text in listed.items()}
    found["PatientOrientation"] = frozenset("".join(ends) for count in (1, 2, 3) for ends in permutations("APLRHF", count))
    found["ContextIdentifier"] = frozenset(map(str, cid_concepts))
    others = frozenset(word for line in lines if ": " not in line and not line.startswith("#") for word in line.split())
    return found | {"": others | words()}


@cache
def words() -> frozenset[str]:
    """The vocabulary that cleaned text is made of."""
    lines = (files(__package__) / "words.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())
