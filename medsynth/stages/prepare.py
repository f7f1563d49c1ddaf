"""prepare: an archive becomes a cohort. Every series gets a verdict, every subject a pseudonym and one split, every
image one grid and one scale.

Reads the source; writes ``cohort.jsonl``, ``rejected.jsonl`` (pseudonym, reason; nothing is merged or repaired in
silence), ``merged.jsonl``, ``identifiers.json`` (keyed hashes of every identifier value seen, so that the audit can
look for them), ``summary.json`` and the cache ``volumes/``. Splits, order and seeds depend on the source's own ids and
the run's seed; only the pseudonyms depend on the key.

Subjects who share an equal image are one person as far as anybody can tell, sent twice under two names. They become
one subject, in one split: otherwise a person would be trained on and held out at once.
"""

import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from tqdm import tqdm

from medsynth import __version__
from medsynth.audit.level import shortage
from medsynth.cohort import SPLITS, Case, Cohort, Header, split_subjects
from medsynth.conditions import ConditionSchema
from medsynth.config import DataSettings
from medsynth.data import transforms
from medsynth.data.cache import Shard
from medsynth.data.source import Item, Rejected, Scan, Source
from medsynth.errors import MedsynthError, UnreadableImage
from medsynth.io.dicom import Journal
from medsynth.io.identifiers import write_identifiers
from medsynth.io.pseudonyms import load_key, pseudonym
from medsynth.receipt import discard
from medsynth.rng import seed_for
from medsynth.stages import Run
from medsynth.volume import Volume

log = logging.getLogger(__name__)
CACHE = "float16"
JOURNAL = "scan.journal"  # sealed, and gone when the stage is done


@dataclass(frozen=True, kw_only=True)
class Image:
    """One case's pixels on the common grid, in model units, with what the manifest needs to know of it."""

    slice: int | None
    pixels: np.ndarray
    mask: np.ndarray | None
    scale: tuple[float, float]
    integer: bool


def work(run: Run, folder: Path) -> None:
    discard(folder, keep=(JOURNAL,))  # reading is quick beside training: an interrupted attempt starts anew, but for the headers
    source: Source = run.objects["source"]
    data, seed = run.settings.data, run.settings.run.seed
    key = load_key(Path(run.settings.paths.key).expanduser())
    journal = Journal(folder / JOURNAL, key)
    scan = source.scan(workers=data.workers, journal=journal)
    if not scan.items:
        _write_rejected(folder / "rejected.jsonl", scan.rejected, key)
        raise _nothing_in(source, scan, folder)
    items = sorted(scan.items, key=lambda item: seed_for(seed, "order", item.key))
    split = _splits(items, data, seed)
    spacing = tuple(data.spacing) if data.spacing else _median_spacing(source, [i for i in items if split[i.subject] == "train"], data)
    read = partial(_read, source, data, spacing)
    write_identifiers(folder / "identifiers.json", key, (value for item in items for value in item.identifiers))
    (folder / "volumes").mkdir()

    masked = any(item.mask for item in items)
    rejected = list(scan.rejected)
    cases: list[Case] = []
    integers: list[bool] = []
    blank: set[str] = set()
    with Volumes(folder / "volumes", masked) as volumes:
        for item, images in tqdm(each(read, items, data.workers), total=len(items), desc="prepare", unit="image"):
            if isinstance(images, Rejected):
                rejected.append(images)
                continue
            name = split[item.subject]
            for image in images:
                row, sha256, mask_sha256 = volumes.append(name, image.pixels, image.mask)
                if image.pixels.min() == image.pixels.max():
                    blank.add(sha256)
                integers.append(image.integer)
                cases.append(
                    Case(
                        id=pseudonym(key, "case", item.key) + ("" if image.slice is None else f"-{image.slice:03d}"),
                        subject=pseudonym(key, "subject", item.subject),
                        split=name,
                        path=f"volumes/{name}.npy",
                        row=row,
                        mask=f"volumes/{name}.mask.npy" if mask_sha256 else None,
                        sha256=sha256,
                        mask_sha256=mask_sha256,
                        shape=image.pixels.shape,
                        spacing=along_case(spacing, data)[: data.dims],
                        modality=item.modality,
                        scale=image.scale,
                        condition={n: item.condition[n] for n in data.conditions if n in item.condition},
                    )
                )
    merged = same_people([case for case in cases if case.sha256 not in blank])
    cases, moved = _as_one(cases, merged, folder, masked)
    _write_merged(folder / "merged.jsonl", merged)
    _write_rejected(folder / "rejected.jsonl", rejected, key)
    if not any(case.split == "train" for case in cases):
        raise MedsynthError(f"No training case is left after reading: {_reasons(rejected)}. See {folder / 'rejected.jsonl'}.")
    cohort = Cohort(_header(source, data, cases, integers, spacing, folder), tuple(cases), folder)
    summary = _summary(scan, cohort, rejected) | {"merged_subjects": len(merged), "moved_cases": moved}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1, sort_keys=True))
    cohort.write(folder / "cohort.jsonl")
    journal.path.unlink(missing_ok=True)
    run.tracker.metrics({f"prepare/{name}": value for name, value in summary.items() if isinstance(value, int)})
    run.tracker.dataset("real", cohort.digest, len(cohort), "training")
    if merged:
        largest = 1 + max(Counter(merged.values()).values())
        log.warning(
            "prepare: %d %ss have an image that is equal to one of another %s, and count as one with it (at most %d together); "
            "%d cases changed their split for it.", len(merged), source.unit, source.unit, largest, moved,
        )  # fmt: skip
    holdout = len(set(cohort.split("holdout").subjects))
    if short := shortage(run.settings.audit.level, holdout, run.settings.sampling.cases):
        log.warning("prepare: %s A larger data.splits.holdout, more subjects or more sampling.cases help; nobody has trained yet.", short)
    log.info("prepare: %d cases of %d %ss; rejected: %s", len(cohort), len(set(cohort.subjects)), source.unit, _reasons(rejected) or "none")


class Volumes:
    """The cache while it is written: an array of images a split, and one of masks if there are any."""

    def __init__(self, folder: Path, masked: bool) -> None:
        self.folder, self.masked = folder, masked
        self._open, self._shards = ExitStack(), dict[str, Shard]()

    def __enter__(self) -> "Volumes":
        self._open.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._open.__exit__(*error)

    def append(self, split: str, pixels: np.ndarray, mask: np.ndarray | None) -> tuple[int, str, str | None]:
        """Add a case; returns its row and the SHA-256 of its image and of its mask."""
        digest = None
        if self.masked:  # rows of both arrays stay in step: a case without a mask gets an empty row, which its entry does not name
            _, digest = self._shard(f"{split}.mask", pixels.shape, "uint8").append(np.zeros(pixels.shape) if mask is None else mask)
        row, sha256 = self._shard(split, pixels.shape, CACHE).append(pixels)
        return row, sha256, None if mask is None else digest

    def _shard(self, name: str, shape: tuple[int, ...], dtype: str) -> Shard:
        if name not in self._shards:
            self._shards[name] = self._open.enter_context(Shard(self.folder / f"{name}.npy", shape, dtype))
        return self._shards[name]


def same_people(cases: Sequence[Case]) -> dict[str, str]:
    """Each subject who shares an equal image with earlier ones, directly or over others, and the first of them all."""
    place = {subject: number for number, subject in enumerate(dict.fromkeys(case.subject for case in cases))}
    earlier = {subject: subject for subject in place}

    def first(subject: str) -> str:
        while earlier[subject] != subject:
            subject = earlier[subject]
        return subject

    owners: dict[str, str] = {}
    for case in cases:
        one, other = sorted((first(owners.setdefault(case.sha256, case.subject)), first(case.subject)), key=place.__getitem__)
        earlier[other] = one
    return {subject: first(subject) for subject in place if first(subject) != subject}


def _as_one(cases: Sequence[Case], merged: Mapping[str, str], folder: Path, masked: bool) -> tuple[list[Case], int]:
    """The cases with ``merged`` people as one subject in one split, and how many changed their split.

    Whoever is trained on under one name counts as trained on: the first split of `SPLITS` takes all.
    """
    cases = [replace(case, subject=merged.get(case.subject, case.subject)) for case in cases]
    split: dict[str, str] = {}
    for case in cases:
        split[case.subject] = min(split.get(case.subject, case.split), case.split, key=SPLITS.index)
    moved = sum(case.split != split[case.subject] for case in cases)
    if not moved:
        return cases, 0
    before = (folder / "volumes").rename(folder / "volumes.before")
    (folder / "volumes").mkdir()
    rows = {path.name: np.load(path, mmap_mode="r", allow_pickle=False) for path in before.iterdir()}
    placed = []
    with Volumes(folder / "volumes", masked) as volumes:
        for case in cases:
            name = split[case.subject]
            mask = rows[Path(case.mask).name][case.row] if case.mask else None
            row, *_ = volumes.append(name, rows[Path(case.path).name][case.row], mask)
            path = f"volumes/{name}.npy"
            placed.append(replace(case, split=name, path=path, row=row, mask=f"volumes/{name}.mask.npy" if case.mask else None))
    shutil.rmtree(before)
    return placed, moved


def _write_merged(path: Path, merged: Mapping[str, str]) -> None:
    """Who counts as whom, by pseudonym: `medsynth trace` finds a person under each of their names."""
    rows = ({"subject": subject, "counts_as": first} for subject, first in merged.items())
    path.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows), encoding="utf-8")


def _nothing_in(source: Source, scan: Scan, folder: Path) -> MedsynthError:
    found = f"{scan.files} files, of which {scan.other} are no images" if scan.files else "no files at all"
    reasons = f"; rejected: {_reasons(scan.rejected)}, see {folder / 'rejected.jsonl'}" if scan.rejected else ""
    return MedsynthError(f"source.root={source.root} holds nothing to train on: {found}{reasons}. Check source and source.root.")


def _splits(items: Sequence[Item], data: DataSettings, seed: int) -> dict[str, str]:
    prescribed = {item.subject: item.split for item in items if item.split is not None}
    fractions = {name: getattr(data.splits, name) for name in SPLITS}
    return split_subjects([item.subject for item in items], fractions, seed) | prescribed


def _median_spacing(source: Source, items: Sequence[Item], data: DataSettings) -> tuple[float, ...]:
    measured = each(partial(_spacing, source, data), items, data.workers)
    bar = tqdm(measured, total=len(items), desc="geometry", unit="image")
    found = [spacing for _, spacing in bar if not isinstance(spacing, Rejected)]
    if not found:
        raise MedsynthError("No training image could be read, so there is no median spacing. See the reasons with data.spacing given.")
    return tuple(float(s) for s in np.median(found, axis=0))


def _spacing(source: Source, data: DataSettings, item: Item) -> tuple[float, ...] | Rejected:
    try:
        return transforms.geometry_in(source.open(item), data.orientation).spacing
    except (UnreadableImage, MemoryError) as error:
        return refused(item, error)


def _read(source: Source, data: DataSettings, spacing: tuple[float, ...], item: Item) -> list[Image] | Rejected:
    """Open one item and bring it to the grid and to model units; slices of a volume become one image each where ``data.dims`` is 2."""
    try:
        if data.joint_mask and not item.mask:
            raise UnreadableImage("no-mask", "it has no mask, and data.joint_mask=true needs one for every image")
        return images_of(source.open(item), data, spacing)
    except (UnreadableImage, MemoryError) as error:
        return refused(item, error)


def images_of(volume: Volume, data: DataSettings, spacing: Sequence[float]) -> list[Image]:
    """A volume on the grid of ``data`` at ``spacing`` (mm), in model units; its slices where ``data.dims`` is 2. Raises UnreadableImage."""
    integer = bool(np.all(np.mod(volume.array, 1) == 0))
    array, mask = transforms.to_grid(volume, size=grid_size(data), spacing=spacing, orientation=data.orientation)
    scale = transforms.scale_of(array, percentiles=data.percentiles, window=data.window)
    pixels = transforms.to_model(array, scale)
    if data.dims == 3:
        return [Image(slice=None, pixels=pixels, mask=mask, scale=scale, integer=integer)]
    kept = transforms.slices(
        pixels, mask, axis=data.slices.axis, every=data.slices.every, span=data.slices.range, foreground=data.slices.foreground
    )
    single = array.shape[data.slices.axis] == 1
    return [Image(slice=None if single else k, pixels=p, mask=m, scale=scale, integer=integer) for k, p, m in kept]


def refused(item: Item, error: UnreadableImage | MemoryError) -> Rejected:
    code, reason = "no-memory", "It needs more memory than there is. Leave it out, or take fewer data.workers."
    if isinstance(error, UnreadableImage):
        code, reason = error.code, str(error)
    return Rejected(key=item.key, files=len(item.files) + len(item.mask), code=code, reason=reason)


def grid_size(data: DataSettings) -> tuple[int | None, ...]:
    """Voxels along the three axes of a volume; None along the normal of slices, which stays as it is."""
    if data.dims == 3:
        return tuple(data.size)
    in_plane = iter(data.size)
    return tuple(None if axis == data.slices.axis else next(in_plane) for axis in range(3))


def along_case(spacing: tuple[float, ...], data: DataSettings) -> tuple[float, ...]:
    """``spacing`` (x, y, z) in the order of a case's axes; for slices their normal comes last."""
    normal = data.slices.axis if data.dims == 2 else 2
    return (*(s for axis, s in enumerate(spacing) if axis != normal), spacing[normal])


def each(function, items: Sequence[Item], workers: int) -> Iterator[tuple[Item, object]]:
    """``(item, function(item))`` in order, in ``workers`` processes and with a bounded number of results in flight."""
    if workers < 2 or len(items) < 2 * workers:
        yield from ((item, function(item)) for item in items)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
        window = 8 * workers
        waiting = [(item, pool.submit(function, item)) for item in items[:window]]
        rest = iter(items[window:])
        while waiting:
            item, future = waiting.pop(0)
            yield item, future.result()
            for following in rest:
                waiting.append((following, pool.submit(function, following)))
                break


def _write_rejected(path: Path, rejected: Sequence[Rejected], key: bytes) -> None:
    rows = ({"id": pseudonym(key, "case", r.key), "files": r.files, "code": r.code, "reason": r.reason} for r in rejected)
    path.write_text("".join(json.dumps(row, sort_keys=True) + "\n" for row in rows), encoding="utf-8")


def _header(
    source: Source, data: DataSettings, cases: Sequence[Case], integers: Sequence[bool], spacing: tuple[float, ...], folder: Path
) -> Header:
    train = [case for case in cases if case.split == "train"]
    modality, _ = Counter(case.modality for case in train).most_common(1)[0]
    masked = all(case.mask for case in cases)
    axis = data.slices.axis if data.dims == 2 else 2
    return Header(
        kind="real",
        unit=source.unit,
        source={"name": type(source).__name__, "licence": source.licence, "terms": source.terms},
        shape=tuple(train[0].shape),
        spacing=train[0].spacing,
        affine=transforms.canonical_affine(train[0].shape, along_case(spacing, data), data.orientation, axis),
        scale=tuple(float(v) for v in np.median([case.scale for case in train], axis=0)),
        integer=all(integers),
        modality=modality,
        labels=_labels(folder, train) if masked else (),
        joint_mask=data.joint_mask,
        conditions=ConditionSchema.of(data.conditions, [case.condition for case in train]),
        made_with={"medsynth": __version__},
    )


def _labels(folder: Path, train: Sequence[Case]) -> tuple[int, ...]:
    masks = np.load(folder / train[0].mask, mmap_mode="r", allow_pickle=False)
    return tuple(int(label) for label in np.unique(masks) if label)


def _summary(scan: Scan, cohort: Cohort, rejected: Sequence[Rejected]) -> dict[str, object]:
    """What became of every file, and who stands in which split: counts only."""
    splits = {name: cohort.split(name) for name in SPLITS}
    return {
        "files": scan.files,
        "other_files": scan.other,
        "rejected_files": sum(r.files for r in rejected),
        "series": len(scan.items) + len(scan.rejected),
        "rejected": len(rejected),
        "repaired": dict(sorted(Counter(name for item in scan.items for name in item.repairs).items())),
        "rejected_by_code": dict(sorted(Counter(r.code for r in rejected).items())),
        "cases": len(cohort),
        "subjects": len(set(cohort.subjects)),
        "splits": {name: {"cases": len(part), "subjects": len(set(part.subjects))} for name, part in splits.items()},
    }


def _reasons(rejected: Sequence[Rejected]) -> str:
    return ", ".join(f"{count} {code}" for code, count in Counter(r.code for r in rejected).most_common())
