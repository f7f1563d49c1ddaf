"""What a source of images promises, and what it hands over.

A source knows a folder. It first scans it: every file ends in an `Item`, in a `Rejected` or in the count of files
that are no images. Then single items are opened, in any order and in other processes, so a source holds settings
only. Items and rejections carry the archive's own names: they live in memory and never reach a file of the run, where
``prepare`` writes pseudonyms.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from medsynth.conditions import Value
from medsynth.io.dicom import Journal
from medsynth.volume import Volume


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image that a source can open: a series, a NIfTI file, a row of an array."""

    key: str  # the source's own name for it, unique in the source
    subject: str  # the source's own name for the person; equal to ``key`` where the source knows none
    modality: str  # CT, MR, DX, OT
    files: tuple[str, ...]  # what `Source.open` reads
    condition: Mapping[str, Value] = field(default_factory=dict)
    mask: tuple[str, ...] = ()  # files of its label map
    split: str | None = None  # where the source prescribes one
    repairs: tuple[str, ...] = ()  # defects that were repaired, since the settings allow it
    identifiers: tuple[str, ...] = ()  # every value in it that could name the person: ids, names, dates, UIDs, free text


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A file or series that is not used, with its reason. ``reason`` quotes no header value and no file name."""

    key: str
    files: int
    code: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Scan:
    """All that a source holds. ``files`` is the number of files seen; those in no item and no rejection are ``other``
    (no images at all)."""

    items: tuple[Item, ...]
    rejected: tuple[Rejected, ...]
    files: int
    other: int = 0


class Source(Protocol):
    """Ids unique, the scan repeatable, geometry that survives a round trip (tests/contracts)."""

    root: str
    licence: str
    terms: str

    @property
    def unit(self) -> str:
        """ "subject", or "image" where the source knows no subjects."""
        ...

    def scan(self, *, workers: int, journal: Journal | None = None) -> Scan:
        """``journal`` is for sources whose scan takes long enough to be interrupted."""
        ...

    def open(self, item: Item) -> Volume:
        """The image and its mask, in stored units. Raises UnreadableImage."""
        ...
