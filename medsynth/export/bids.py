"""A synthetic MR cohort as a BIDS dataset (1.10): a derivative, since it was made and not acquired; each sidecar says so.

BIDS has names for MR contrasts, and none for CT or radiographs: those cohorts are refused here and leave as NIfTI and DICOM.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from medsynth.cohort import Case, Cohort
from medsynth.errors import MedsynthError, SettingsError
from medsynth.export.dicom import SERIES_DESCRIPTION, Provenance, demographics, derivation

VERSION = "1.10.0"
SUFFIXES = ("T1w", "T2w", "PDw", "T2starw", "FLAIR", "T1rho", "PDT2", "angio")  # of one anatomical volume (BIDS, anatomy imaging data)
OLDEST = 89  # years: BIDS asks that higher ages are capped


def write(cohort: Cohort, case: Case, folder: Path, made_by: Provenance, *, suffix: str = "") -> list[Path]:
    """Write one case below ``folder``: the image as ``sub-ID/anat/sub-ID_SUFFIX.nii.gz``, its mask as ``_dseg``, each with a sidecar.

    ``suffix`` names the contrast; where it is empty, one of the case's conditions must. Raises MedsynthError for what BIDS has no name for.
    """
    label, name = subject(case), contrast(cohort, case, suffix)
    place = folder / label / "anat"
    place.mkdir(parents=True)
    told = {"SyntheticData": "YES", "Requested": dict(case.condition), "Seed": case.seed}
    of_image = {
        "Description": f"{SERIES_DESCRIPTION}. {derivation(case, made_by)}",
        "SkullStripped": False,  # nothing was taken out of what was drawn; what the source's images lack, these lack too
    }
    files = []
    for path, ending, more in ((case.path, name, of_image), (case.mask, "dseg", {"Manual": False})):
        if path is not None:
            image = place / f"{label}_{ending}{''.join(Path(path).suffixes)}"
            files.append(Path(shutil.copyfile(cohort.folder / path, image)))
            files.append(_json(place / f"{label}_{ending}.json", told | more))
    return files


def write_dataset(cohort: Cohort, folder: Path, made_by: Provenance, *, name: str, spite: str = "") -> list[Path]:
    """Write what describes the dataset in ``folder``: description, README, participants and labels. ``spite`` is what a person wrote who
    released it in spite of its evidence."""
    origin = cohort.header.source
    generated = {"Name": "medsynth", "Version": made_by.version, "Description": "Drawn from a diffusion model; no image was acquired."}
    description = {
        "Name": f"{name} (synthetic)",
        "BIDSVersion": VERSION,
        "DatasetType": "derivative",
        "GeneratedBy": [generated],
        "Authors": ["medsynth (the software that drew the images)", "the institution that releases them"],
        "License": origin.get("licence") or "not stated",
    }
    warning = f"\nRELEASED IN SPITE OF ITS EVIDENCE, for this written reason: {' '.join(spite.split())}\n" if spite else ""
    readme = (
        f"# {name}: synthetic {cohort.header.modality} images\n{warning}\n{SERIES_DESCRIPTION}. Every image was drawn from a diffusion "
        "model; the participants are nobody. Age and sex are what the model was asked to show. How the cohort was made, and what its audit "
        "found, stands in the release's datasheet.\n"
    )
    (folder / "README.md").write_text(readme, encoding="utf-8")
    files = [folder / "README.md", _json(folder / "dataset_description.json", description), *_participants(cohort, folder)]
    if any(case.mask for case in cohort):
        rows = ["index\tname", *(f"{label}\tlabel {label}" for label in (0, *cohort.header.labels))]
        (folder / "dseg.tsv").write_text("\n".join(rows).replace("label 0", "background") + "\n", encoding="utf-8")
        of_all = {"Description": f"{SERIES_DESCRIPTION}. Drawn with the image that it lies on", "SpatialReference": "orig"}
        of_all |= {"name": {"Description": "What the label stands for, as far as the source says"}}
        files += [folder / "dseg.tsv", _json(folder / "dseg.json", of_all)]
    return files


def subject(case: Case) -> str:
    """``sub-`` and the case's id, of which BIDS takes letters and digits."""
    return "sub-" + re.sub(r"[^A-Za-z0-9]", "", case.id)


def contrast(cohort: Cohort, case: Case, suffix: str) -> str:
    """The contrast's name in BIDS: ``suffix``, or the condition that is one, as ``T1`` or ``FLAIR`` are."""
    if cohort.header.modality != "MR":
        raise MedsynthError(f"BIDS has no name for {cohort.header.modality} images. Take bids out of release.formats.")
    known = {name.casefold().removesuffix("w"): name for name in SUFFIXES}
    named = [known[text] for value in case.condition.values() if (text := str(value).casefold().removesuffix("w")) in known]
    if suffix in SUFFIXES:
        return suffix
    if suffix or len(set(named)) != 1:
        raise SettingsError(f"BIDS names MR images by their contrast. Give release.bids_suffix, one of {', '.join(SUFFIXES)}.")
    return named[0]


def _participants(cohort: Cohort, folder: Path) -> list[Path]:
    """``participants.tsv`` and what its columns mean; ``n/a`` where nothing was asked for."""
    others = sorted({name for case in cohort for name in case.condition} - {"age", "sex"})
    columns = ["participant_id", "synthetic", "age", "sex", *others]
    rows = [[subject(case), "yes", *_person(case.condition), *(str(case.condition.get(name, "n/a")) for name in others)] for case in cohort]
    assert len({row[0] for row in rows}) == len(rows), "two ids that differ in signs alone"
    table = "".join("\t".join(" ".join(cell.split()) for cell in row) + "\n" for row in [columns, *rows])
    (folder / "participants.tsv").write_text(table, encoding="utf-8")
    meaning = {
        "Description": "Nobody: what the model was asked to show, case by case",
        "synthetic": {"Description": "Whether the participant is nobody", "Levels": {"yes": "Drawn from a model"}},
        "age": {"Description": "Age that the model was asked to show; 89 is 89 or more", "Units": "year"},
        "sex": {"Description": "Sex that the model was asked to show", "Levels": {"M": "male", "F": "female", "O": "other"}},
    } | {name: {"Description": f"{name} that the model was asked to show"} for name in others}
    return [folder / "participants.tsv", _json(folder / "participants.json", meaning)]


def _person(condition: Mapping[str, object]) -> tuple[str, str]:
    sex, age, _ = demographics(condition)
    years = float(condition["age"]) if age else None
    return "n/a" if years is None else f"{min(years, OLDEST):g}", sex or "n/a"


def _json(path: Path, content: Mapping[str, object]) -> Path:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path
