"""A cohort as a BIDS dataset: the validator has nothing to say, every sidecar says what it is, and what BIDS cannot name is refused."""

import csv
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medsynth.cohort import Cohort
from medsynth.errors import MedsynthError, SettingsError
from medsynth.export import bids
from tests.export.test_export_dicom import ramp

SHAPE = (8, 10, 3)


def cohort_of(synthetic, *conditions: dict, mask: bool = True, shape: tuple[int, ...] = SHAPE) -> Cohort:
    """One case a condition, all of the same image."""
    labels = (ramp(shape) > 0).astype(np.uint8) if mask else None
    cohort = synthetic(ramp(shape), "MR", id="synthetic000001", mask=labels, labels=(1,) if mask else ())
    return cohort.where(replace(cohort.cases[0], id=f"synthetic{n:06d}", condition=given) for n, given in enumerate(conditions, start=1))


def written(cohort: Cohort, folder: Path, made_by, suffix: str = "", spite: str = "") -> Path:
    folder.mkdir()
    for case in cohort:
        bids.write(cohort, case, folder, made_by, suffix=suffix)
    bids.write_dataset(cohort, folder, made_by, name="brain", spite=spite)
    return folder


def issues(folder: Path) -> list[str]:
    """Codes of every error and warning."""
    validator = shutil.which("bids-validator-deno", path=Path(sys.executable).parent)
    if validator is None:
        pytest.skip("bids-validator-deno is not installed (extra 'peers')")
    run = subprocess.run([validator, str(folder), "--json"], capture_output=True, text=True)
    return [issue["code"] for issue in json.loads(run.stdout)["issues"]["issues"]]


@pytest.mark.slow
def test_the_validator_finds_nothing_wrong(synthetic, made_by, tmp_path) -> None:
    everybody = [{"sex": "F", "age": 61.5, "class": "T1"}, {"sex": "M", "age": 90.0, "class": "FLAIR"}, {"class": "T2w", "site": "a\tb\n"}]
    assert issues(written(cohort_of(synthetic, *everybody), tmp_path / "masks", made_by, spite="a written\nreason")) == []
    assert issues(written(cohort_of(synthetic, {}, {"age": 0.5}, mask=False), tmp_path / "none", made_by, suffix="T1w")) == []
    assert issues(written(cohort_of(synthetic, {}, mask=False, shape=(8, 10)), tmp_path / "slices", made_by, suffix="T2w")) == []


@pytest.mark.slow
def test_the_validator_would_find_a_wrong_name_and_a_missing_key(synthetic, made_by, tmp_path) -> None:
    folder = written(cohort_of(synthetic, {}), tmp_path / "out", made_by, suffix="T1w")
    (image,) = folder.glob("sub-*/anat/*_T1w.nii")
    image.rename(image.with_name(image.name.replace("T1w", "T9w")))
    (folder / "dataset_description.json").write_text("{}")
    assert {"NOT_INCLUDED", "JSON_KEY_REQUIRED"} <= set(issues(folder))


def test_images_are_the_cohorts_own_and_every_sidecar_says_that_they_are_synthetic(synthetic, made_by, tmp_path) -> None:
    cohort = cohort_of(synthetic, {"class": "T1", "age": 40.0})
    folder = written(cohort, tmp_path / "out", made_by)
    (case,) = cohort
    place = folder / "sub-synthetic000001" / "anat"
    assert (place / "sub-synthetic000001_T1w.nii").read_bytes() == (cohort.folder / case.path).read_bytes()
    assert (place / "sub-synthetic000001_dseg.nii").read_bytes() == (cohort.folder / case.mask).read_bytes()
    sidecars = [json.loads(path.read_text()) for path in sorted(place.glob("*.json"))]
    assert [sidecar["SyntheticData"] for sidecar in sidecars] == ["YES", "YES"]
    assert all((sidecar["Seed"], sidecar["Requested"]) == (7, {"class": "T1", "age": 40.0}) for sidecar in sidecars)
    assert made_by.weights in sidecars[0]["Description"]
    described = json.loads((folder / "dataset_description.json").read_text())
    assert (described["DatasetType"], described["GeneratedBy"][0]["Version"], described["License"]) == ("derivative", "1.2.3", "CC0-1.0")


def test_participants_are_what_was_asked_for(synthetic, made_by, tmp_path) -> None:
    folder = written(cohort_of(synthetic, {"sex": "female", "age": 61.5}, {"age": 90.0, "class": "x\ty"}), tmp_path / "out", made_by, "T1w")
    with (folder / "participants.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    assert rows == [
        {"participant_id": "sub-synthetic000001", "synthetic": "yes", "age": "61.5", "sex": "F", "class": "n/a"},
        {"participant_id": "sub-synthetic000002", "synthetic": "yes", "age": "89", "sex": "n/a", "class": "x y"},
    ]
    assert set(rows[0]) - {"participant_id"} < json.loads((folder / "participants.json").read_text()).keys()


def test_a_release_in_spite_of_its_evidence_says_so_at_the_top(synthetic, made_by, tmp_path) -> None:
    text = (written(cohort_of(synthetic, {}), tmp_path / "out", made_by, "T1w", spite="for a\n# test") / "README.md").read_text()
    assert "RELEASED IN SPITE OF ITS EVIDENCE, for this written reason: for a # test\n" in text


def test_what_bids_has_no_name_for_is_refused(synthetic, made_by, tmp_path) -> None:
    image = synthetic(ramp(SHAPE), "CT")
    with pytest.raises(MedsynthError, match="no name for CT"):
        bids.write(image, image.cases[0], tmp_path / "ct", made_by, suffix="T1w")
    for condition, suffix in (({}, ""), ({"class": "adult"}, ""), ({"first": "T1", "second": "T2"}, ""), ({"class": "T1"}, "T9w")):
        cohort = cohort_of(synthetic, condition)
        with pytest.raises(SettingsError, match=r"release\.bids_suffix, one of T1w"):
            bids.write(cohort, cohort.cases[0], tmp_path / "mr", made_by, suffix=suffix)
