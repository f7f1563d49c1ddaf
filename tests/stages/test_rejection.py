"""Copies are rejected after the verdict on all that was drawn, drawn anew, and told."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from medsynth.audit import ledger
from medsynth.audit.finding import Evidence, Finding
from medsynth.cohort import Cohort, sha256_of
from medsynth.diffusion.checkpoint import save_denoiser
from medsynth.errors import MedsynthError
from medsynth.stages import Run, sample, train
from tests.make_cohort import make_cohort
from tests.make_run import TINY, make_run

CONDITIONS = {"class": ["a", "b"], "age": [20, 80]}


@dataclass(frozen=True)
class Accuser:
    """A check that takes cases of these ids for copies."""

    copies: tuple[str, ...]
    asked: list[list[str]] = field(default_factory=list)

    def __call__(self, evidence: Evidence) -> Finding:
        ids = [case.id for case in evidence.synthetic]
        self.asked.append(ids)
        named = [name for name in ids if name in self.copies]
        verdict = "fail" if named else "pass"
        return Finding(
            check="accuser", verdict=verdict, value=len(named), interval=None, control=None, limit=0, why=".", details={"copies": named}
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("run")
    cohort = make_cohort(root / "prepare", 8, 2, 2, shape=(8, 8), conditions=CONDITIONS)
    torch.manual_seed(0)
    denoiser = train.new_denoiser(make_run(root), cohort.header)
    for parameter in denoiser.parameters():  # the last convolution starts at zero: every image would be the same
        parameter.data += 0.05 * torch.randn_like(parameter)
    (root / "train").mkdir()
    save_denoiser(root / "train/denoiser", denoiser, {})
    return root


@pytest.fixture
def root(trained: Path, tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    for stage in ("prepare", "train"):
        (tmp_path / "run" / stage).symlink_to(trained / stage)
    return tmp_path / "run"


def drawn(root: Path, copies: tuple[str, ...], **sampling) -> tuple[Cohort, Accuser]:
    run = make_run(root, sampling={"cases": 5, "reject": True} | sampling, network=TINY)
    accuser = Accuser(copies)
    run = Run(settings=run.settings, objects={**run.objects, "check": {"accuser": accuser}}, root=root, tracker=run.tracker)
    sample.work(run, root / "sample")
    return Cohort.read(root / "sample/cohort.jsonl"), accuser


def test_copies_are_drawn_anew_until_none_is_left_and_stay_named(root: Path):
    cohort, accuser = drawn(root, ("synthetic000002", "synthetic000004", "synthetic000004r1"))
    assert [case.id for case in cohort] == [
        "synthetic000001",
        "synthetic000002r1",
        "synthetic000003",
        "synthetic000004r2",
        "synthetic000005",
    ]
    assert cohort.header.rejected == dict.fromkeys(["synthetic000002", "synthetic000004", "synthetic000004r1"], "accuser")
    # the whole first, then only what was drawn anew
    assert accuser.asked == [[f"synthetic00000{n}" for n in range(1, 6)], ["synthetic000002r1", "synthetic000004r1"], ["synthetic000004r2"]]


def test_the_cases_that_stay_are_those_of_a_cohort_without_rejection(root: Path, tmp_path: Path):
    cohort, _ = drawn(root, ("synthetic000002",))
    sample.work(make_run(root, sampling={"cases": 5}), tmp_path / "plain")
    plain = Cohort.read(tmp_path / "plain/cohort.jsonl")
    assert [case for case in cohort if case.id in {each.id for each in plain}] == [plain.cases[i] for i in (0, 2, 3, 4)]
    before, after = plain.cases[1], cohort.cases[1]
    assert (after.condition, after.seed == before.seed, after.sha256 == before.sha256) == (before.condition, False, False)
    assert Cohort.read(root / "sample/unfiltered.jsonl").cases == plain.cases


def test_the_verdict_on_what_was_drawn_is_kept_and_bound_to_the_manifest(root: Path):
    cohort, _ = drawn(root, ("synthetic000002",))
    unfiltered = json.loads((root / "sample/unfiltered/findings.json").read_text())
    assert unfiltered["verdict"] == "fail"
    assert unfiltered["synthetic"] == Cohort.read(root / "sample/unfiltered.jsonl").digest
    assert cohort.header.made_with["unfiltered"] == sha256_of(root / "sample/unfiltered/findings.json")
    looks = ledger.looks(root.parent / ledger.LEDGER, unfiltered["train"])
    assert [(look["synthetic"], look["verdict"]) for look in looks] == [(unfiltered["synthetic"], "fail")]


def test_a_clean_cohort_stays_as_it_is(root: Path):
    cohort, accuser = drawn(root, ())
    assert cohort.cases == Cohort.read(root / "sample/unfiltered.jsonl").cases
    assert cohort.header.rejected == {}
    assert len(accuser.asked) == 1


def test_an_interrupted_rejection_ends_in_the_same_bytes_without_a_second_look(root: Path):
    copies = ("synthetic000001", "synthetic000001r1")
    expected, _ = drawn(root, copies)
    (root / "sample/cohort.jsonl").unlink()
    next((root / "sample/volumes").glob("*r2.nii.gz")).unlink()
    again, accuser = drawn(root, copies)
    assert again.digest == expected.digest
    assert len(accuser.asked[0]) == 1, "the unfiltered cohort was looked at twice"


def test_a_place_of_nothing_but_copies_stays_empty(root: Path, caplog):
    copies = ("synthetic000003", *(f"synthetic000003r{round}" for round in range(1, 20)))
    cohort, _ = drawn(root, copies)
    assert [case.id[-1] for case in cohort] == ["1", "2", "4", "5"]
    assert len(cohort.header.rejected) == 11
    assert "goes on without" in caplog.text


def test_a_model_that_gives_nothing_but_copies_is_told_so(root: Path):
    copies = tuple(f"synthetic00000{n}{tail}" for n in (1, 2) for tail in ("", *(f"r{round}" for round in range(1, 20))))
    with pytest.raises(MedsynthError, match="Each of the 2 cases is a copy"):
        drawn(root, copies, cases=2)


def test_the_level_and_the_checks_belong_to_the_fingerprint_of_a_filtered_cohort_alone():
    from medsynth.config import compose
    from medsynth.stages import _fingerprinted

    plain, filtered = (_fingerprinted(compose([f"sampling.reject={value}"]), "sample") for value in ("false", "true"))
    assert {name for name in plain if name.startswith(("audit", "check"))} == set()
    assert {"audit.level", "check.memorization.voxels"} <= set(filtered)
