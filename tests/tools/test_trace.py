"""A person is found in every run that used them, under the key that named them, and nobody else is."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from medsynth.audit import ledger
from medsynth.cli import main
from medsynth.cohort import Cohort
from medsynth.io.pseudonyms import load_key, pseudonym
from tests.make_cohort import make_cohort

PERSON = "MRN 0815@HOSPITAL"


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Of three runs the first trained on the person, the second held them out, the third never saw them."""
    name = pseudonym(load_key(tmp_path / "key"), "subject", PERSON)
    for run, split in (("a", "train"), ("b", "holdout"), ("c", None)):
        folder = tmp_path / "runs" / run / "prepare"
        cohort = make_cohort(folder, n_train=3, n_validation=2, n_holdout=2)
        whose = next((case.subject for case in cohort if case.split == split), None)
        cases = tuple(replace(case, subject=name) if case.subject == whose else case for case in cohort)
        Cohort(cohort.header, cases, folder).write(folder / "cohort.jsonl")
    (tmp_path / "runs" / "a" / "train").mkdir()
    (tmp_path / "runs" / "a" / "train" / "receipt.json").touch()
    return tmp_path / "runs"


def test_the_runs_of_a_person_are_named_with_their_use(runs: Path, capsys: pytest.CaptureFixture):
    train = Cohort.read(runs / "a/prepare/cohort.jsonl").split("train").digest
    for cohort, cases in (("A", 30), ("B", 12)):  # released, of runs whose folders are gone
        ledger.write(runs / ledger.LEDGER, {"train": train, "synthetic": cohort, "released": {"cases": cases}})
    assert main(["trace", PERSON, f"runs={runs}", f"key={runs.parent}/key"]) == 0
    said = capsys.readouterr().out
    assert f"{runs}/a: 1 case, train" in said
    assert "made from it: train\n  of this training set in all: 2 released cohorts, 42 cases\n" in said
    assert f"{runs}/b: 1 case, holdout" in said
    assert f"{runs}/c" not in said


def test_a_person_is_found_under_a_name_that_counts_as_another(runs: Path, capsys: pytest.CaptureFixture):
    cohort = Cohort.read(runs / "c/prepare/cohort.jsonl")
    name = pseudonym(load_key(runs.parent / "key"), "subject", PERSON)
    row = {"subject": name, "counts_as": cohort.split("train").subjects[0]}
    (runs / "c/prepare/merged.jsonl").write_text(json.dumps(row) + "\n")
    assert main(["trace", PERSON, f"runs={runs}", f"key={runs.parent}/key"]) == 0
    assert f"{runs}/c: 1 case, train" in capsys.readouterr().out


def test_another_person_or_another_key_finds_nobody(runs: Path, capsys: pytest.CaptureFixture):
    assert main(["trace", "MRN 0816@HOSPITAL", f"runs={runs}", f"key={runs.parent}/key"]) == 2
    assert "No run holds" in capsys.readouterr().err
    load_key(runs.parent / "other")
    assert main(["trace", PERSON, f"runs={runs}", f"key={runs.parent}/other"]) == 2
    assert "No run holds" in capsys.readouterr().err
    assert main(["trace", PERSON, f"runs={runs}", f"key={runs.parent}/none"]) == 2
    assert "key=FILE" in capsys.readouterr().err
