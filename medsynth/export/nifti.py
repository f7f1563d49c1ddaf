"""A synthetic cohort as NIfTI files with a table of its cases: the files that the audit saw, byte for byte."""

import csv
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from medsynth.cohort import Case, Cohort


def write(cohort: Cohort, case: Case, folder: Path) -> list[Path]:
    """Copy one case's image, and its label map where it has one, into ``folder/images`` and ``folder/masks``, named by the case's id."""
    files = []
    for kind, source in (("images", case.path), ("masks", case.mask)):
        if source is None:
            continue
        target = folder / kind / (case.id + "".join(Path(source).suffixes[-2:] if source.endswith(".gz") else Path(source).suffixes[-1:]))
        target.parent.mkdir(parents=True, exist_ok=True)
        # contents alone: neither times nor rights travel
        files.append(Path(shutil.copyfile(cohort.folder / source, target)))
    return files


def write_table(cohort: Cohort, files: Mapping[str, Sequence[Path]], folder: Path) -> Path:
    """Write ``folder/cases.tsv``: one row a case with its seed, what was asked of it, and its NIfTI files; ``n/a`` where there is none.

    ``files`` maps a case's id to its files below ``folder``.
    """
    attributes = sorted({name for case in cohort for name in case.condition})
    path = folder / "cases.tsv"
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(["id", "seed", "modality", *attributes, "image", "mask"])
        for case in cohort:
            named = {file.parent.name: file.relative_to(folder).as_posix() for file in files[case.id] if ".nii" in file.suffixes}
            given = [case.condition.get(name) for name in attributes]
            row = [case.id, case.seed, case.modality, *given, named.get("images"), named.get("masks")]
            table.writerow(["n/a" if value is None else value for value in row])
    return path
