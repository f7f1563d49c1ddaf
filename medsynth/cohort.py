"""The manifest that every stage reads and writes. Real and synthetic cohorts are one type.

A cohort is a JSON Lines file: its first line is the header, every further line one case. Pixels lie beside it, either
as rows of a memory-mapped array (prepared training data: ``volumes/train.npy``) or as one NIfTI file a case
(synthetic data). `Cohort.pixels` reads both alike, in *model units*: float32 ``(channel, *space)`` with the image
scaled so that ``Case.scale`` maps to -1 and +1.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from medsynth.conditions import ConditionSchema, Value
from medsynth.errors import MedsynthError
from medsynth.rng import seed_for

SPLITS = ("train", "validation", "holdout")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One unit of data. ``subject`` is a person (a keyed pseudonym for real ones); no subject stands in two splits."""

    id: str
    subject: str
    split: str  # train, validation, holdout; synthetic
    path: str  # beside the manifest: a NIfTI file, or an array of many cases of which ``row`` is this one
    sha256: str  # of the case's stored bytes
    shape: tuple[int, ...]  # space alone, voxels
    spacing: tuple[float, ...]  # mm
    modality: str  # CT, MR, DX, OT
    scale: tuple[float, float]  # stored units that map to -1 and +1
    condition: Mapping[str, Value] = field(default_factory=dict)
    row: int | None = None
    mask: str | None = None  # like ``path``, same row
    mask_sha256: str | None = None  # of the mask's stored bytes
    seed: int | None = None  # of a synthetic case


@dataclass(frozen=True, kw_only=True)
class Header:
    """What holds for all cases of a cohort."""

    kind: str  # real, synthetic
    unit: str  # "subject", or "image" where the source knows no subjects: then every claim is about images
    source: Mapping[str, str]  # name, licence, terms
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    affine: tuple[tuple[float, ...], ...]  # canonical grid, 4x4, RAS+ mm: median of the training set, never one subject's
    scale: tuple[float, float]  # canonical intensity scale, stored units
    integer: bool  # whether stored values are integers
    modality: str
    labels: tuple[int, ...] = ()  # foreground labels of the masks
    joint_mask: bool = False  # the masks are channels of the model
    conditions: ConditionSchema = field(default_factory=ConditionSchema)
    made_with: Mapping[str, str] = field(default_factory=dict)
    rejected: Mapping[str, str] = field(default_factory=dict)  # ids of drawn cases that were copies, and the check that found each

    @property
    def dims(self) -> int:
        return len(self.shape)

    @property
    def channels(self) -> int:
        """Channels that a model sees: the image, and one a foreground label where masks are generated with it."""
        return 1 + (len(self.labels) if self.joint_mask else 0)


@dataclass(frozen=True)
class Cohort:
    """A header, cases in a fixed order, and the folder in which their pixels lie."""

    header: Header
    cases: tuple[Case, ...]
    folder: Path

    def __len__(self) -> int:
        return len(self.cases)

    def __iter__(self) -> Iterator[Case]:
        return iter(self.cases)

    def split(self, *names: str) -> "Cohort":
        """The cases of one or several splits, as a cohort."""
        return replace(self, cases=tuple(case for case in self.cases if case.split in names))

    def where(self, cases: Iterable[Case]) -> "Cohort":
        return replace(self, cases=tuple(cases))

    def ordered(self) -> "Cohort":
        """The same cases in the order of their ids: what must not depend on a manifest's order takes this one."""
        return self.where(sorted(self, key=lambda case: case.id))

    @property
    def subjects(self) -> list[str]:
        """The subject of each case, in order: the unit that intervals and splits are about."""
        return [case.subject for case in self.cases]

    def stored(self, case: Case) -> np.ndarray:
        """The image alone in stored units, float32 ``(*space)``."""
        low, high = case.scale
        return (self._image(case) + 1.0) * np.float32((high - low) / 2) + np.float32(low)

    def mask(self, case: Case) -> np.ndarray | None:
        """The label map ``(*space)``, uint8, or None."""
        if case.mask is None:
            return None
        return np.asarray(_array(self.folder / case.mask, case.row), dtype=np.uint8).reshape(case.shape)

    def pixels(self, case: Case) -> np.ndarray:
        """What a model sees: float32 ``(channel, *space)``, image scaled to -1..+1, then one -1/+1 channel a label if masks are joint."""
        image = self._image(case)[None]
        if not self.header.joint_mask:
            return image
        mask = self.mask(case)
        assert mask is not None, f"{case.id} has no mask, though the cohort's masks are joint"
        onehot = [np.where(mask == label, 1.0, -1.0).astype(np.float32) for label in self.header.labels]
        return np.concatenate([image, np.stack(onehot)])

    def images(self) -> np.ndarray:
        """All images in model units, float32 ``(case, 1, *space)``: for the metrics and the audit, which look at images without masks."""
        if not self.cases:
            return np.zeros((0, 1, *self.header.shape), np.float32)
        images = np.stack([self._image(case)[None] for case in self.cases])
        _shard.cache_clear()  # what has been read of a mapped file counts as this process' memory, a second time
        return images

    def _image(self, case: Case) -> np.ndarray:
        array = np.asarray(_array(self.folder / case.path, case.row), dtype=np.float32).reshape(case.shape)
        if case.row is not None:
            return array  # rows of the cache are in model units already
        low, high = case.scale
        return (array - np.float32(low)) * np.float32(2 / (high - low)) - np.float32(1)

    @property
    def digest(self) -> str:
        """SHA-256 over header and cases: two cohorts with one digest hold the same bytes in the same order."""
        return hashlib.sha256("\n".join(self._lines()).encode()).hexdigest()

    def _lines(self) -> Iterator[str]:
        header = asdict(self.header) | {"conditions": self.header.conditions.as_json()}
        yield json.dumps({"medsynth": "cohort", "version": 1, **header}, sort_keys=True)
        for case in self.cases:
            yield json.dumps({k: v for k, v in asdict(case).items() if v is not None}, sort_keys=True)

    def write(self, path: Path) -> None:
        """Write the manifest by rename: a reader sees all of it or none."""
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in self._lines())
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    @classmethod
    def read(cls, path: Path | str) -> "Cohort":
        path = Path(path)
        if not path.is_file():
            raise MedsynthError(f"There is no cohort at {path}. The stage that writes it has not finished; run it first.")
        try:
            first, *rest = path.read_text(encoding="utf-8").splitlines()
            header = json.loads(first)
            assert (header.pop("medsynth"), header.pop("version")) == ("cohort", 1)
            header["conditions"] = ConditionSchema.from_json(header["conditions"])
            header = Header(**{k: _tuples(v) if isinstance(v, list) else v for k, v in header.items()})
            cases = tuple(Case(**{k: _tuples(v) if isinstance(v, list) else v for k, v in json.loads(line).items()}) for line in rest)
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            raise MedsynthError(f"{path} is not a cohort manifest of this version ({type(error).__name__}).") from error
        return cls(header, cases, path.parent)


def _tuples(value: object) -> object:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


@lru_cache(maxsize=16)
def _shard(path: Path, modified: int) -> np.ndarray:
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _array(path: Path, row: int | None) -> np.ndarray:
    if row is not None:
        return _shard(path, path.stat().st_mtime_ns)[row]
    import nibabel as nib

    return np.asarray(nib.load(path).dataobj)


def sha256_of(data: bytes | Path) -> str:
    """SHA-256 of bytes or of a file, hexadecimal."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).hexdigest()
    with data.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def split_subjects(subjects: Sequence[str], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Subject to split, by subject and never by image.

    ``subjects`` are the source's own ids, so that the split does not depend on the pseudonyms' key. Every subject
    gets a place by the hash of seed and id, and the places are cut by ``fractions`` (summing to 1). With at least as
    many subjects as splits with a positive share, none of these is empty.
    """
    wanted = [name for name in SPLITS if fractions.get(name, 0) > 0]
    order = sorted(set(subjects), key=lambda subject: seed_for(seed, "split", subject))
    counts = {name: int(len(order) * fractions[name]) for name in wanted}
    for name in wanted:
        counts[name] = max(counts[name], 1)
    while sum(counts.values()) > max(len(order), 1):
        largest = max(counts, key=lambda name: counts[name])
        if counts[largest] == 0:
            break
        counts[largest] -= 1
    counts[wanted[0]] += len(order) - sum(counts.values())
    names = [name for name in wanted for _ in range(counts[name])]
    return dict(zip(order, names, strict=True))
