"""Anybody's images as cohorts on one grid: folders of NIfTI or DICOM, NumPy files, or a ``cohort.jsonl`` of ours.

What is compared must be seen alike. So one preprocessing, that of `medsynth.stages.prepare`, brings all images to one grid: axes turned to
one orientation, the coarsest of the cohorts' median spacings (nothing is made up by refining), the reference's median extent, and each
image's own percentiles or one window. Cohorts that show differently large pieces of a body cannot be compared, and are refused.
"""

import csv
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from medsynth import __version__
from medsynth.cohort import Case, Cohort, Header
from medsynth.conditions import ConditionSchema
from medsynth.config import DataSettings
from medsynth.data import transforms
from medsynth.data.source import Item, Rejected, Scan, Source
from medsynth.data.sources.arrays import SUFFIXES, Arrays
from medsynth.data.sources.dicom_tree import DicomTree
from medsynth.data.sources.folder import Folder
from medsynth.errors import MedsynthError, SettingsError, UnreadableImage
from medsynth.io.dicom import Journal
from medsynth.io.nifti import is_nifti
from medsynth.rng import seed_for
from medsynth.stages.prepare import Volumes, along_case, each, grid_size, images_of, refused
from medsynth.volume import Volume

MEASURED = 64  # images of a cohort whose grids are looked at before the common one is chosen
LONGEST = {2: 256, 3: 96}  # voxels along an axis, by dimensions, unless data.size says otherwise
SAME_VIEW = 1.15  # ratio of extents up to which two cohorts show the same piece of a body
PLACES = ("space", "box")
REAL = ("train", "holdout", "real")  # cohorts of people; of any other name: synthetic
PATTERN = r"sub-[A-Za-z0-9]+"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What was read: the cohorts by name, how they were brought to one grid, whose file each case is, and every identifier value seen."""

    cohorts: Mapping[str, Cohort]
    preprocessing: Mapping[str, Any]
    files: Mapping[str, str]  # case id to the source's own name for the image
    identifiers: Mapping[str, tuple[str, ...]]  # by cohort
    kinds: Mapping[str, str]  # the source that read it, by cohort
    rejected: Mapping[str, Counter]  # codes of unreadable images, by cohort


class Manifest:
    """The images of a ``cohort.jsonl`` of ours: those of a split of this name, or all where there is none."""

    licence = terms = ""

    def __init__(self, root: str, split: str) -> None:
        self.root = root
        cohort = Cohort.read(root)
        self._cohort = cohort.split(split) if cohort.split(split).cases else cohort
        self._cases = {case.id: case for case in self._cohort}

    @property
    def unit(self) -> str:
        return self._cohort.header.unit

    def scan(self, *, workers: int, journal: Journal | None = None) -> Scan:
        """List the cases; ``workers`` are not needed."""
        items = tuple(
            Item(
                key=case.id,
                subject=case.subject,
                modality=case.modality,
                files=(),
                condition=case.condition,
                mask=(case.mask,) if case.mask else (),
            )
            for case in self._cohort
        )
        return Scan(items=items, rejected=(), files=len(items))

    def open(self, item: Item) -> Volume:
        """The image in stored units, in the cohort's canonical space."""
        case = self._cases[item.key]
        array, mask = self._cohort.stored(case), self._cohort.mask(case)
        space = (*array.shape, *[1] * (3 - array.ndim))
        return Volume(
            array.reshape(1, *space), np.array(self._cohort.header.affine), None if mask is None else np.array(mask).reshape(space)
        )


def source_at(path: str, *, split: str, dims: int = 0, pattern: str = PATTERN, table: str = "", masks: bool = False) -> Source:
    """What reads the images of ``path``, by what lies there. Raises SettingsError where that is nothing, or of two kinds.

    Of a folder that holds ``images/``, as Decathlon's and our releases' ``nifti/`` do, that is read alone: masks are no images. With
    ``masks``, those of the same names in ``labels/`` beside it are read as such.
    """
    root = Path(path).expanduser()
    if root.name == "cohort.jsonl" or (root / "cohort.jsonl").is_file():
        return Manifest(str(root if root.name == "cohort.jsonl" else root / "cohort.jsonl"), split)
    if not root.exists():
        raise SettingsError(f"{path}: there is no such file or folder.")
    root = root / "images" if (root / "images").is_dir() else root
    found = [root] if root.is_file() else [found for found in root.rglob("*") if not found.name.startswith(".")]
    nifti, arrays = any(map(is_nifti, found)), any(each.suffix.lower() in SUFFIXES for each in found)
    if sum((nifti, arrays, any(each.suffix.lower() == ".dcm" for each in found))) > 1:
        raise SettingsError(f"{path} holds images of several kinds of files. Name the folder of one kind.")
    if arrays:
        return Arrays(str(root), dims)
    if nifti and root.is_file():
        return Folder(str(root.parent), "", "", images=".", masks="", files=root.name, subject_pattern=pattern, modality="OT")
    if nifti:
        labelled = masks and root.name == "images" and (root.parent / "labels").is_dir()
        place = {"images": "images", "masks": "labels"} if labelled else {"images": ".", "masks": ""}
        return Folder(str(root.parent if labelled else root), "", "", **place, subject_pattern=pattern, modality="OT", table=table)
    if root.is_file():
        raise SettingsError(f"{path} is neither a folder, nor NIfTI, .npy, .npz or cohort.jsonl.")
    return DicomTree(str(root), "", "")


def read_cohorts(
    paths: Mapping[str, str],
    data: DataSettings,
    folder: Path,
    *,
    reference: str,
    given: Sequence[str] = (),
    place: str = "space",
    subjects: str = "",
    masks: bool = False,
) -> Reading:
    """Read each path as the cohort of its name into ``folder``: real ones (`REAL`), and synthetic ones of any other name.

    ``reference`` names the cohort whose view is the common one; ``data`` says how, of which ``given`` names what the user chose
    ("data.size"): all else follows from the images. ``place``: ``space`` trusts the files' millimetres, ``box`` stretches every image over
    the grid, as generators do that resize whole images. ``subjects``: a table (image, subject), ``folders`` for the first folder below the
    path, a regular expression to search in the path, or empty for ``sub-XXX``. ``masks``: label maps are read too, where there are any.
    Raises SettingsError and MedsynthError.
    """
    if place not in PLACES:
        raise SettingsError(f"place={place}: it is one of {', '.join(PLACES)}.")
    table = Path(subjects).expanduser() if subjects.lower().endswith((".csv", ".tsv")) else None
    pattern = {"": PATTERN, "folders": r"^([^/]+)/"}.get(subjects, "" if table else subjects)
    dims = data.dims if "data.dims" in given else 0
    sources = {
        name: source_at(path, split="holdout" if name == "real" else name, dims=dims, pattern=pattern, masks=masks)
        for name, path in paths.items()
    }
    scans = {name: source.scan(workers=data.workers) for name, source in sources.items()}
    items = {name: sorted(scan.items, key=lambda item: item.key) for name, scan in scans.items()}
    for name, scan in scans.items():
        if not scan.items:
            why = ", ".join(f"{count} {code}" for code, count in Counter(r.code for r in scan.rejected).items())
            raise MedsynthError(
                f"{name}={paths[name]} holds no image that can be read{f': {why}' if why else ''}. Taken are NIfTI, DICOM, .npy and .npz."
            )
    known = {name: source.unit == "subject" for name, source in sources.items()}
    if table:
        named = _subjects_in(table)
        items = {name: [_named(item, named, name, table) for item in found] if name in REAL else found for name, found in items.items()}
        known |= {name: True for name in items if name in REAL}

    data, spacing, extents = _grid(sources, items, data, given, reference)
    if place == "space":
        _require_one_view(extents, reference, data)
    numbers = _numbered({name: [(known[name], item.subject) for item in found] for name, found in items.items()})
    cohorts, files, rejected = {}, {}, {}
    (folder / "volumes").mkdir(parents=True, exist_ok=True)
    for name, found in items.items():
        read = partial(_read, sources[name], data, spacing, place == "box")
        cases, integers, lost = [], [], Counter(r.code for r in scans[name].rejected)
        with Volumes(folder / "volumes", masks and any(item.mask for item in found)) as volumes:
            for number, (item, images) in enumerate(tqdm(each(read, found, data.workers), total=len(found), desc=name, unit="image")):
                if isinstance(images, Rejected):
                    lost[images.code] += 1
                    continue
                for image in images:
                    row, sha256, mask_sha256 = volumes.append(name, image.pixels, image.mask)
                    case = Case(
                        id=f"{name}-{number:06d}" + ("" if image.slice is None else f"-{image.slice:03d}"),
                        subject=numbers[name][number],
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
                    cases.append(case)
                    integers.append(image.integer)
                    files[case.id] = item.key
        if not cases:
            raise MedsynthError(f"{name}={paths[name]}: no image is left after reading: {dict(lost)}.")
        rejected[name] = lost
        cohorts[name] = Cohort(_header(name, known, cases, integers, spacing, data), tuple(cases), folder)
    conditions = ConditionSchema.of(data.conditions, [case.condition for case in cohorts[reference]])
    cohorts = {name: replace(cohort, header=replace(cohort.header, conditions=conditions)) for name, cohort in cohorts.items()}
    told = {"dims": data.dims, "size": list(data.size), "spacing": [round(s, 4) for s in spacing], "orientation": data.orientation}
    told |= {
        "place": place,
        "intensity": f"window {list(data.window)}" if data.window else f"percentiles {list(data.percentiles)} of each image",
    }
    return Reading(
        cohorts=cohorts,
        preprocessing=told,
        files=files,
        identifiers={name: tuple(dict.fromkeys(v for item in found for v in item.identifiers)) for name, found in items.items()},
        kinds={name: type(source).__name__ for name, source in sources.items()},
        rejected=rejected,
    )


def refuse_overlap(train: Cohort, holdout: Cohort, name: str = "holdout") -> None:
    """Raise MedsynthError where somebody, or an image, stands on both sides: then the control knows what it must not."""
    people = set(train.subjects) & set(holdout.subjects)
    images = {case.sha256 for case in train} & {case.sha256 for case in holdout}
    if people or images:
        what = f"{len(people)} subjects" if people else f"{len(images)} images"
        raise MedsynthError(f"{what} of train stand in {name} too. Of {name}, there must be only people that no training step ever saw.")


def _read(source: Source, data: DataSettings, spacing: Sequence[float], stretched: bool, item: Item) -> list | Rejected:
    try:
        volume = source.open(item)
        if stretched:
            own = transforms.geometry_in(volume, data.orientation)
            spacing = [n * s / (wanted or n) for n, s, wanted in zip(own.shape, own.spacing, grid_size(data), strict=True)]
        return images_of(volume, data, spacing)
    except (UnreadableImage, MemoryError) as error:
        return refused(item, error)


# ------------------------------------------------------------------------------------------------------------------------ the common grid


def _grid(
    sources: Mapping[str, Source], items: Mapping[str, Sequence[Item]], data: DataSettings, given: Sequence[str], reference: str
) -> tuple[DataSettings, tuple[float, ...], dict[str, np.ndarray]]:
    """The settings with what was not ``given`` taken from the images, the spacing (mm), and each cohort's median extent (mm)."""
    shapes, spacings = {}, {}
    for name, found in items.items():
        chosen = sorted(found, key=lambda item: seed_for(0, "measured", item.key))[:MEASURED]
        measured = [m for _, m in each(partial(_measured, sources[name], data), chosen, 1) if not isinstance(m, Rejected)]
        if not measured:
            raise MedsynthError(f"{name}: none of {len(chosen)} images can be read.")
        shapes[name], spacings[name] = (np.median([m[part] for m in measured], axis=0) for part in (0, 1))
    flat = {int(axis) for shape in shapes.values() for axis in np.flatnonzero(shape == 1)}
    dims = data.dims if "data.dims" in given else 2 if flat else 3
    if dims == 2 and len(flat) > 1:
        raise SettingsError(f"The images are slices across different axes ({sorted(flat)}), which cannot be compared.")
    axis = flat.pop() if dims == 2 and flat else data.slices.axis
    spacing = np.max(list(spacings.values()), axis=0)
    extents = {name: shapes[name] * spacings[name] for name in shapes}
    if "data.spacing" in given and data.spacing:
        spacing = np.array(data.spacing)
    seen = [k for k in range(3) if dims == 3 or k != axis]
    if "data.size" not in given:
        size = np.maximum(np.rint(extents[reference] / spacing), 1)
        shrink = max(1.0, max(size[k] for k in seen) / LONGEST[dims]) if "data.spacing" not in given else 1.0
        spacing = np.array([s * shrink if k in seen else s for k, s in enumerate(spacing)])
        size = [int(max(1, round(extents[reference][k] / spacing[k]))) for k in seen]
    elif len(size := list(data.size)) != dims:
        raise SettingsError(f"data.size={size}: the images have {dims} dimensions.")
    elif "data.spacing" not in given:
        spacing = np.array([extents[reference][k] / size[seen.index(k)] if k in seen else s for k, s in enumerate(spacing)])
    data = replace(data, dims=dims, size=size, slices=replace(data.slices, axis=axis))
    return data, tuple(float(s) for s in spacing), {name: extent[seen] for name, extent in extents.items()}


def _measured(source: Source, data: DataSettings, item: Item) -> tuple | Rejected:
    try:
        found = transforms.geometry_in(source.open(item), data.orientation)
        return found.shape, found.spacing
    except (UnreadableImage, MemoryError) as error:
        return refused(item, error)


def _require_one_view(extents: Mapping[str, np.ndarray], reference: str, data: DataSettings) -> None:
    for name, extent in extents.items():
        if max(np.max(extent / extents[reference]), np.max(extents[reference] / extent)) > SAME_VIEW:
            here, there = (" x ".join(f"{mm:.0f}" for mm in each) for each in (extent, extents[reference]))
            raise MedsynthError(
                f"The images of {name!r} show {here} mm, those of {reference!r} {there} mm: laid over each other they would not match, and "
                "copies would go unseen. If they were made by resizing whole images, say place=box; else crop one to the other."
            )


# --------------------------------------------------------------------------------------------------------------------------- whose they are


def _subjects_in(table: Path) -> dict[str, str]:
    """Image to subject, from a table whose first two columns say so."""
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            _, *rows = csv.reader(file, delimiter="\t" if table.suffix.lower() == ".tsv" else ",")
        return {row[0].strip(): row[1].strip() for row in rows if any(row)}
    except (OSError, ValueError, IndexError, csv.Error):
        raise MedsynthError(f"subjects={table} is no table of two columns (image, subject) below a line of names.") from None


def _named(item: Item, named: Mapping[str, str], cohort: str, table: Path) -> Item:
    stem = re.sub(r"\.(nii|nii\.gz|npy|npz)$", "", Path(item.key).name)
    subject = next((named[name] for name in (item.key, Path(item.key).name, stem) if name in named), None)
    if subject is None:
        raise MedsynthError(f"subjects={table} tells no subject of an image of {cohort!r}. Each image needs a line: its name, its subject.")
    return replace(item, subject=subject)


def _numbered(people: Mapping[str, Sequence[tuple[bool, str]]]) -> dict[str, list[str]]:
    """Numbers for people, one person the same number in all cohorts; where nobody tells who it is, one for each name of each cohort."""
    names = {name: [("" if known else name, subject) for known, subject in found] for name, found in people.items()}
    order = {key: i for i, key in enumerate(sorted({key for found in names.values() for key in found}))}
    return {name: [f"subject-{order[key]:06d}" for key in found] for name, found in names.items()}


def _header(
    name: str, known: Mapping[str, bool], cases: Sequence[Case], integers: Sequence[bool], spacing: tuple[float, ...], data: DataSettings
) -> Header:
    shape = cases[0].shape
    return Header(
        kind="real" if name in REAL else "synthetic",
        unit="subject" if all(known[each] for each in known if each in REAL) else "image",
        source={"name": name},
        shape=tuple(shape),
        spacing=cases[0].spacing,
        affine=transforms.canonical_affine(shape, along_case(spacing, data), data.orientation, data.slices.axis if data.dims == 2 else 2),
        scale=tuple(float(v) for v in np.median([case.scale for case in cases], axis=0)),
        integer=all(integers),
        modality=Counter(case.modality for case in cases).most_common(1)[0][0],
        made_with={"medsynth": __version__},
    )
