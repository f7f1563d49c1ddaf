"""Values of a data set as text and numbers, and where to look for a frame's: its functional groups, then the file (PS3.3 C.7.6.16)."""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache

import pydicom
from pydicom.dataset import Dataset
from pydicom.tag import BaseTag, Tag

from medsynth.io.dicom.reasons import refuse


def groups(data: Dataset, frame: int) -> list[Dataset]:
    """Where to look for a frame's values, first to last: its own groups, the shared ones, the file."""
    found = []
    if per_frame := data.get("PerFrameFunctionalGroupsSequence"):
        if len(per_frame) != count(data):
            raise refuse("enhanced-multiframe")
        found.append(per_frame[frame])
    found.extend(data.get("SharedFunctionalGroupsSequence") or [])
    return [*(item for group in found for item in _items(group)), data]


def _items(group: Dataset) -> Iterator[Dataset]:
    """The items of a group's sequences, and of the sequences in them: b-values lie one deeper."""
    for element in group:
        if element.VR == "SQ":
            for item in element.value:
                yield item
                yield from _items(item)


@cache
def tag(keyword: str) -> BaseTag:
    return Tag(keyword)


def _value(data: Dataset, keyword: str) -> object:
    """None where it is missing, which most of what is asked for is: pydicom's own look-up by keyword takes much longer to say so."""
    return data[tag(keyword)].value if tag(keyword) in data.keys() else None  # noqa: SIM118


def numbers(groups: Iterable[Dataset], keyword: str, size: int | None = None) -> tuple[float, ...] | None:
    for group in groups:
        value = _value(group, keyword)
        if value is not None and value != "":
            values = tuple(float(v) for v in (value if isinstance(value, Sequence | pydicom.multival.MultiValue) else [value]))
            return values if values and (size is None or len(values) == size) else None
    return None


def text(data: Dataset, keyword: str) -> str:
    value = _value(data, keyword)
    if value is None:
        return ""
    parts = value if isinstance(value, pydicom.multival.MultiValue | list | tuple) else [value]
    return "\\".join(str(part) for part in parts).replace("\0", "").strip()


def first_text(groups: Iterable[Dataset], keyword: str) -> str:
    return next((found for group in groups if (found := text(group, keyword))), "")


def count(data: Dataset) -> int:
    return int(data.get("NumberOfFrames") or 1)
