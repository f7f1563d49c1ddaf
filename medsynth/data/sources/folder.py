"""A folder of NIfTI images, with label maps of the same names in another folder, and a table of attributes: Decathlon, BIDS, or one's own.

Headers are judged at the scan, without touching a voxel; voxels when an image is opened. Where file names tell who somebody is (``sub-01``
in BIDS), images of a person stay together; where they do not, every claim that follows is about images.
"""

import csv
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from medsynth.conditions import Value
from medsynth.data.source import Item, Rejected, Scan
from medsynth.errors import MedsynthError, SettingsError, UnreadableImage
from medsynth.io import nifti
from medsynth.io.dicom import Journal
from medsynth.volume import Geometry, Volume

SAME_GRID = 0.1  # mm between the corners of an image and its mask: tools write affines with rounded numbers
NOT_RAW = ("derivatives", "sourcedata")  # BIDS: what was made from the images, and what they were made from
MISSING = ("", "n/a", "na", "nan", "null", "none")  # n/a is what BIDS writes

MASKS = "labels"  # need not be there; any other name must


class Folder:
    """NIfTI files below ``root/images``, nested or not; ``root/masks`` holds label maps under the same relative names.

    ``images`` may be ``.``, for BIDS; ``files`` then chooses, such as ``*_T1w.nii.gz``. ``table`` is a CSV or TSV file below ``root`` whose
    first column names a case (its file's name without ending) or a subject, and whose other columns become conditions. ``subject_pattern``
    is searched in the path below ``images``; its match (or first group) is the subject. ``labels`` lists what masks may hold besides 0;
    empty allows all. NIfTI tells no ``modality``, so the settings do.
    """

    def __init__(
        self,
        root: str,
        licence: str,
        terms: str,
        images: str = "images",
        masks: str = MASKS,
        table: str = "",
        files: str = "*",
        subject_pattern: str = "sub-[A-Za-z0-9]+",
        labels: Sequence[int] = (),
        modality: str = "MR",
        max_bytes: int = nifti.MAX_BYTES,
    ) -> None:
        self.root = root
        self.licence = licence
        self.terms = terms
        self.images = images
        self.masks = masks
        self.table = table
        self.files = files
        self.subject_pattern = subject_pattern
        self.labels = labels
        self.modality = modality
        self.max_bytes = max_bytes

    @property
    def unit(self) -> str:
        """ "subject" where every image's name tells one."""
        found, _, _ = self._listed()
        return "subject" if found and all(self._subject(name) for name in found) else "image"

    def scan(self, *, workers: int, journal: Journal | None = None) -> Scan:
        """Judge every header; ``workers`` are not needed. Raises SettingsError where a folder or the table is not what the settings say."""
        found, masks, others = self._listed()
        rejected, items = [], []
        rows = self._table({_stem(name) for name in found}, {self._subject(name) for name in found} - {None})
        for name in masks.keys() - found.keys():
            rejected.append(
                Rejected(key=f"{self.masks}/{name}", files=1, code="mask-without-image", reason="No image has this mask's name.")
            )
        stems = Counter(_stem(name) for name in found)
        for name, path in tqdm(found.items(), desc="reading headers", unit="file", disable=len(found) < 100):
            mask = masks.get(name)
            try:
                header = self._judged(path)
                texts = header.texts
                if mask is not None:
                    of_mask = self._judged(mask)
                    texts += of_mask.texts
                    if not Geometry(of_mask.shape, of_mask.affine).is_close(Geometry(header.shape, header.affine), SAME_GRID):
                        raise UnreadableImage("mask-grid", "Its mask lies on another grid. Resample the mask to the image.")
                if stems[_stem(name)] > 1 and _stem(name) in rows:
                    raise UnreadableImage("same-name", "Several images have the name that the table gives attributes to.")
            except UnreadableImage as error:
                rejected.append(Rejected(key=name, files=1 + (mask is not None), code=error.code, reason=str(error)))
                continue
            subject = self._subject(name)
            condition, named = rows.get(subject, ({}, ()))
            own, own_named = rows.get(_stem(name), ({}, ()))
            items.append(
                Item(
                    key=name,
                    subject=subject or name,
                    modality=self.modality,
                    files=(str(path),),
                    mask=() if mask is None else (str(mask),),
                    condition=condition | own,
                    identifiers=tuple(
                        dict.fromkeys(filter(None, (_stem(name), subject, *Path(name).parts[:-1], *texts, *named, *own_named)))
                    ),
                )
            )
        return Scan(
            items=tuple(items),
            rejected=tuple(sorted(rejected, key=lambda row: row.key)),
            files=len(found) + len(masks) + others,
            other=others,
        )

    def open(self, item: Item) -> Volume:
        """The image and its label map. Raises UnreadableImage for voxels that are none, with a mask's code where the mask is at fault."""
        array, affine, _ = nifti.read(item.files[0], self.max_bytes)
        return Volume(array, affine, self._labels_in(item.mask[0], array.shape[1:]) if item.mask else None)

    def _labels_in(self, path: str, shape: tuple[int, ...]) -> np.ndarray:
        array = nifti.read(path, self.max_bytes)[0][0]
        if array.shape != shape:
            raise UnreadableImage("mask-grid", "Its mask lies on another grid. Resample the mask to the image.")
        if array.min() < 0 or array.max() > 255 or (array != np.rint(array)).any():
            raise UnreadableImage("mask-values", "Its mask holds values that are no labels (integers from 0 to 255).")
        mask = array.astype(np.uint8)
        if self.labels and not set(np.flatnonzero(np.bincount(mask.ravel()))) <= {0, *(int(label) for label in self.labels)}:
            raise UnreadableImage("unknown-label", f"Its mask holds a label beyond source.labels={list(self.labels)}.")
        return mask

    def _judged(self, path: Path) -> nifti.Header:
        if not path.is_file():
            raise UnreadableImage("not-a-file", "It is a broken link, or no file.")
        if Path(self.root).resolve() not in path.resolve().parents:
            raise UnreadableImage("link-outside", "It is a link that leads out of source.root.")
        if not os.access(path, os.R_OK):
            raise UnreadableImage("unreadable", "The file's permissions forbid reading it.")
        return nifti.read_header(path, self.max_bytes)

    def _subject(self, name: str) -> str | None:
        try:
            match = re.search(self.subject_pattern, name) if self.subject_pattern else None
        except re.error as error:
            raise SettingsError(f"source.subject_pattern={self.subject_pattern!r} is no regular expression: {error.msg}.") from error
        return match and (match.group(1) if match.re.groups else match.group())

    def _listed(self) -> tuple[dict[str, Path], dict[str, Path], int]:
        """Images and masks by their name below their folder, in a fixed order, and the number of files that are neither."""
        root = Path(self.root)
        images, masks = root / self.images, root / self.masks
        if not root.is_dir():
            raise SettingsError(f"source.root={self.root} is not a folder.")
        if not images.is_dir():
            raise SettingsError(
                f"source.root={self.root}: there is no folder {self.images!r} in it. Set source.images (. is the root itself)."
            )
        apart = masks if self.masks and masks != images else None
        if apart and self.masks != MASKS and not apart.is_dir():
            raise SettingsError(f"source.root={self.root}: there is no folder {self.masks!r} in it. Set source.masks, or leave it out.")
        found, others = _nifti_below(images, self.files, leave=apart)
        labelled, more = _nifti_below(apart, self.files, leave=images if apart in images.parents else None) if apart else ({}, 0)
        return found, labelled, others + more

    def _table(self, cases: set[str], subjects: set[str]) -> dict[str, tuple[dict[str, Value], tuple[str, ...]]]:
        """Case or subject to its conditions, and to what in its row could name a person. Quotes line numbers, never a value."""
        if not self.table:
            return {}
        path = Path(self.root) / self.table
        if not path.is_file():
            raise SettingsError(f"source.table={self.table}: there is no such file below source.root={self.root}.")
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                header, *lines = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        except (ValueError, csv.Error, UnicodeDecodeError):
            raise MedsynthError(f"{path} is no table: it needs a line of column names, then rows, as UTF-8 text.") from None
        lines = {number: [cell.strip() for cell in line] for number, line in enumerate(lines, 2) if any(line)}
        if wrong := [number for number, line in lines.items() if len(line) != len(header)]:
            raise MedsynthError(f"{path}, line {wrong[0]}: it has not {len(header)} cells, as the first line does.")
        if unknown := [number for number, line in lines.items() if line[0] not in cases | subjects]:
            raise MedsynthError(
                f"{path}, line {unknown[0]}: the first column ({header[0]}) names no image and no subject of {self.images!r} "
                f"({len(unknown)} of {len(lines)} lines). Remove the lines, or set source.images and source.files."
            )
        repeated = Counter(line[0] for line in lines.values())
        if twice := [number for number, line in lines.items() if repeated[line[0]] > 1]:
            raise MedsynthError(f"{path}, lines {twice[0]} and {twice[1]}: two rows name one image or subject. Keep one.")
        columns = {name: [line[k] for line in lines.values()] for k, name in enumerate(header) if k}
        kinds = {name: _kind(values) for name, values in columns.items()}
        rows = {}
        for line in lines.values():
            cells = {name: cell for name, cell in zip(header[1:], line[1:], strict=True) if cell.casefold() not in MISSING}
            rows[line[0]] = (
                {name: float(cell) if kinds[name] == "number" else cell for name, cell in cells.items() if kinds[name] != "free text"},
                tuple(cell for name, cell in cells.items() if kinds[name] == "free text"),
            )
        return rows


def _kind(values: Sequence[str]) -> str:
    """Number, class, or free text. Text that hardly ever repeats tells people apart, so it is no class that a model could learn."""
    given = [value for value in values if value.casefold() not in MISSING]
    try:
        if all(np.isfinite([float(value) for value in given])):
            return "number"
    except ValueError:
        pass
    return "free text" if len(set(given)) > max(10, len(given) / 2) else "class"


def _nifti_below(folder: Path, pattern: str, leave: Path | None) -> tuple[dict[str, Path], int]:
    """NIfTI files below ``folder`` by relative name, without the folder ``leave``; and the number of other files."""
    found, others = {}, 0
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in NOT_RAW and Path(place, name) != leave)
        for name in sorted(names):
            path = Path(place, name)
            if nifti.is_nifti(path) and path.match(pattern):
                found[path.relative_to(folder).as_posix()] = path
            else:
                others += 1
    return found, others


def _stem(name: str) -> str:
    """``b`` of ``a/b.nii.gz``."""
    return re.sub(r"\.nii(\.gz)?$", "", Path(name).name, flags=re.IGNORECASE)
