"""People who share an equal image become one subject in one split; the cache and the manifest stay in step."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medsynth.cohort import Case, Cohort, sha256_of
from medsynth.config import DataSettings
from medsynth.data.sources.arrays import Arrays
from medsynth.data.sources.folder import Folder
from medsynth.io.nifti import write
from medsynth.stages import Run, prepare
from tests.make_run import make_run


def prepared(source: object, root: Path, **data) -> Cohort:
    run = make_run(root)
    settings = replace(run.settings, data=DataSettings(workers=0, **data), paths=replace(run.settings.paths, key=str(root / "key")))
    (root / "prepare").mkdir(parents=True)
    prepare.work(Run(settings=settings, objects={"source": source}, root=root, tracker=run.tracker), root / "prepare")
    return Cohort.read(root / "prepare/cohort.jsonl")


def pictures(path: Path, equal: int) -> Arrays:
    """30 images of nobody's, of which the first ``equal`` stand at the end once more, one of these with another gain."""
    images = np.random.default_rng(0).integers(0, 200, (30, 8, 8)).astype(np.float32)
    again = images[:equal].copy()
    again[:1] *= 2
    np.save(path, np.concatenate([images, again]))
    return Arrays(str(path), dims=2)


def test_people_with_an_equal_image_are_one_subject_in_one_split(tmp_path: Path, caplog):
    cohort = prepared(pictures(tmp_path / "a.npy", equal=8), tmp_path / "run", size=[8, 8])
    summary = json.loads((cohort.folder / "summary.json").read_text())
    assert (len(cohort), len(set(cohort.subjects)), summary["merged_subjects"]) == (38, 30, 8)
    assert 0 < summary["moved_cases"] <= 8
    for one in ("sha256", "subject"):
        splits = {getattr(case, one): set() for case in cohort}
        for case in cohort:
            splits[getattr(case, one)].add(case.split)
        assert all(len(found) == 1 for found in splits.values()), one
    assert "8 images have an image that is equal to one of another image" in caplog.text


def test_the_cache_of_moved_cases_holds_their_own_pixels(tmp_path: Path):
    cohort = prepared(pictures(tmp_path / "a.npy", equal=8), tmp_path / "run", size=[8, 8])
    for case in cohort:
        assert sha256_of(np.load(cohort.folder / case.path)[case.row].tobytes()) == case.sha256
    rows = {case.path: [c.row for c in cohort if c.path == case.path] for case in cohort}
    for path, found in rows.items():
        assert found == list(range(len(np.load(cohort.folder / path)))), "a row that no case names"
    assert sorted(path.name for path in (cohort.folder / "volumes").iterdir()) == [f"{s}.npy" for s in ("holdout", "train", "validation")]
    assert not (cohort.folder / "volumes.before").exists()


def test_nothing_moves_where_nothing_is_equal(tmp_path: Path):
    cohort = prepared(pictures(tmp_path / "a.npy", equal=0), tmp_path / "run", size=[8, 8])
    summary = json.loads((cohort.folder / "summary.json").read_text())
    assert (summary["merged_subjects"], summary["moved_cases"]) == (0, 0)
    assert (cohort.folder / "merged.jsonl").read_text() == ""


@pytest.mark.parametrize("masked", [False, True])
def test_blank_slices_make_nobody_the_same_person_and_one_common_slice_does(tmp_path: Path, masked: bool):
    """Every volume ends in a slice of zeros; the first six share a slice that shows something."""
    for folder in ("images", "labels"):
        (tmp_path / folder).mkdir()
    rng = np.random.default_rng(1)
    common = rng.integers(0, 100, (8, 8))
    for number in range(12):
        volume = rng.integers(1, 100, (8, 8, 4))
        volume[..., 3] = 0
        if number < 6:
            volume[..., 1] = common
        write(tmp_path / f"images/sub-{number:02d}.nii.gz", volume, np.eye(4), integer=True)
        if masked:
            write(tmp_path / f"labels/sub-{number:02d}.nii.gz", volume > 50, np.eye(4), integer=True)
    source = Folder(str(tmp_path), licence="none", terms="test")
    cohort = prepared(source, tmp_path / "run", size=[8, 8], window=[0.0, 100.0])
    assert len(set(cohort.subjects)) == 7
    assert json.loads((cohort.folder / "summary.json").read_text())["moved_cases"] > 0
    if masked:
        assert all(np.array_equal(cohort.mask(case) > 0, cohort.stored(case) > 50.5) for case in cohort)


def test_other_masks_of_the_same_images_are_another_cohort(tmp_path: Path):
    """All that follows knows its input by the manifest: training, audit and kept scores must not take one for the other."""
    found = []
    for threshold in (50, 60):
        rng = np.random.default_rng(1)
        for number in range(12):
            volume = rng.integers(1, 100, (8, 8, 1))
            for folder, array in (("images", volume), ("labels", volume > threshold)):
                (tmp_path / folder).mkdir(exist_ok=True)
                write(tmp_path / folder / f"sub-{number:02d}.nii.gz", array, np.eye(4), integer=True)
        shutil.rmtree(tmp_path / "run/prepare", ignore_errors=True)
        source = Folder(str(tmp_path), licence="none", terms="test")
        cohort = prepared(source, tmp_path / "run", size=[8, 8], window=[0.0, 100.0])
        assert all(case.mask_sha256 == sha256_of(cohort.mask(case).tobytes()) for case in cohort)
        found.append(([case.sha256 for case in cohort], cohort.digest))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]


def test_who_is_joined_over_others_is_one_person_by_the_first_of_them():
    case = make_cases([("a", 1), ("b", 2), ("c", 3), ("c", 2), ("d", 4), ("a", 3)])
    assert prepare.same_people(case) == {"b": "a", "c": "a"}


def make_cases(shown: list[tuple[str, int]]) -> list[Case]:
    fixed = {"split": "train", "path": "a.npy", "shape": (8, 8), "spacing": (1.0, 1.0), "modality": "OT", "scale": (-1.0, 1.0)}
    return [Case(id=str(number), subject=subject, sha256=str(image), **fixed) for number, (subject, image) in enumerate(shown)]
