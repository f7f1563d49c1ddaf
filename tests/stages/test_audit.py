"""The stage audit: one level, all checks, one verdict; real pixels stay in its folder."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medsynth.audit.finding import Evidence, Finding
from medsynth.audit.ledger import LEDGER
from medsynth.audit.level import LEVELS
from medsynth.audit.memorization import Memorization
from medsynth.cohort import Cohort
from medsynth.config import AuditSettings, PathSettings, ReleaseSettings
from medsynth.diffusion.checkpoint import save_denoiser
from medsynth.diffusion.denoiser import Denoiser
from medsynth.diffusion.process import EDM
from medsynth.errors import SettingsError
from medsynth.io.pseudonyms import load_key
from medsynth.receipt import RECEIPT, Receipt
from medsynth.stages import Run
from medsynth.stages.audit import verdict_of, work
from tests.make_cohort import make_cohort
from tests.make_evidence import cohort_of, images_of
from tests.make_run import TINY, make_run


def finding(check: str, verdict: str, required: bool = True) -> Finding:
    return Finding(check=check, verdict=verdict, value=0.1, interval=(0.0, 0.2), control=0.1, limit=0.3, why=f"{check}.", required=required)


class Watching:
    """A check that keeps its evidence and gives a fixed verdict."""

    def __init__(self, check: str, verdict: str) -> None:
        self.check, self.verdict, self.seen = check, verdict, []

    def __call__(self, evidence: Evidence) -> Finding:
        self.seen.append(evidence)
        return finding(self.check, self.verdict)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    root = tmp_path / "ct"
    real = make_cohort(root / "prepare", n_train=12, n_validation=4, n_holdout=8)
    shape = real.header.shape
    cohort_of(root / "sample", "synthetic", images_of(shape, [str(i) for i in range(6)])).write(root / "sample" / "cohort.jsonl")
    (root / "train" / "denoiser").mkdir(parents=True)
    (root / "train" / "checkpoints").mkdir()
    (root / "logs").mkdir()
    (root / "logs" / "train.tracking.jsonl").write_text("{}\n")
    (root / "logs" / "audit.tracking.jsonl").write_text("{}\n")
    key = tmp_path / "pseudonym.key"
    load_key(key)
    base = make_run(root)
    settings = replace(base.settings, audit=AuditSettings(level="demo"), paths=PathSettings(runs=str(tmp_path), key=str(key)))
    (root / "audit").mkdir()
    return replace(base, settings=settings, objects={"check": {}})


def findings_of(run: Run) -> dict:
    work(run, run.folder("audit"))
    return json.loads((run.folder("audit") / "findings.json").read_text())


def test_checks_see_train_and_holdout_and_never_the_validation_subjects(run: Run) -> None:
    check = Watching("one", "pass")
    found = findings_of(replace(run, objects={"check": {"one": check}}))
    (evidence,) = check.seen
    assert {case.split for case in evidence.train} == {"train"}
    assert {case.split for case in evidence.holdout} == {"holdout"}
    assert (len(evidence.train), len(evidence.holdout), len(evidence.synthetic)) == (12, 8, 6)
    assert evidence.level == LEVELS["demo"]
    names = [path.relative_to(run.root).as_posix() for path in evidence.folders]
    assert names == ["sample", "train/denoiser", "logs/train.tracking.jsonl"]
    assert (evidence.identifiers.name, len(evidence.key)) == ("identifiers.json", 32)
    real = Cohort.read(run.folder("prepare") / "cohort.jsonl")
    assert found["train"] == real.split("train").digest
    assert found["holdout"] == real.split("holdout").digest
    assert found["synthetic"] == Cohort.read(run.folder("sample") / "cohort.jsonl").digest
    assert found["level"]["claim"] == LEVELS["demo"].claim
    assert (found["verdict"], found["unit"]) == ("pass", "subject")


def test_canaries_are_those_of_the_training_that_was_done(run: Run) -> None:
    check = Watching("one", "pass")
    findings_of(replace(run, objects={"check": {"one": check}}))
    settings = {"train.canaries": 3, "run.seed": 5}
    Receipt(stage="train", settings=settings, inputs={}, outputs={}).write(run.folder("train") / RECEIPT)
    findings_of(replace(run, objects={"check": {"one": check}}))
    first, second = (evidence.canaries for evidence in check.seen)
    assert first is None
    assert (second.count, second.seed, second.train.digest) == (3, 5, check.seen[1].train.digest)


def test_the_attacks_get_the_runs_own_denoiser_and_only_weights_that_leave_must_pass(run: Run) -> None:
    check = Watching("one", "pass")
    run = replace(run, objects={"check": {"one": check}})
    findings_of(run)
    with torch.random.fork_rng():
        denoiser = Denoiser(TINY.build(2, 1, 0), EDM())
    save_denoiser(run.folder("train") / "denoiser", denoiser, {})
    findings_of(run)
    findings_of(replace(run, settings=replace(run.settings, release=ReleaseSettings(model=True))))
    without, with_model, leaving = (evidence.model for evidence in check.seen)
    assert without is None
    assert (with_model.leaves, leaving.leaves) == (False, True)
    assert list(with_model.levels) == sorted(with_model.levels)
    x, sigma = np.random.default_rng(0).standard_normal((5, 1, 16, 16)).astype(np.float32), np.full(5, 0.5, np.float32)
    with torch.inference_mode():
        expected = denoiser(torch.from_numpy(x), torch.from_numpy(sigma)).numpy()
    np.testing.assert_allclose(with_model.denoise(x, sigma, {}), expected, atol=1e-6)


def test_a_missing_key_is_not_replaced_by_a_new_one(run: Run, tmp_path: Path) -> None:
    check = Watching("one", "pass")
    (tmp_path / "pseudonym.key").unlink()
    findings_of(replace(run, objects={"check": {"one": check}}))
    assert check.seen[0].key is None
    assert not (tmp_path / "pseudonym.key").exists()


@pytest.mark.parametrize(
    ("verdicts", "overall"),
    [(["pass", "pass"], "pass"), (["pass", "inconclusive"], "inconclusive"), (["inconclusive", "fail"], "fail"), ([], "inconclusive")],
)
def test_one_failure_fails_and_one_doubt_is_doubt(verdicts: list[str], overall: str) -> None:
    assert verdict_of([finding(str(i), verdict) for i, verdict in enumerate(verdicts)]) == overall


def test_a_check_that_is_not_required_decides_nothing() -> None:
    assert verdict_of([finding("a", "pass"), finding("b", "fail", required=False)]) == "pass"
    assert verdict_of([finding("b", "pass", required=False)]) == "inconclusive"


def test_a_failing_verdict_does_not_stop_the_stage_and_is_tracked_in_numbers_alone(run: Run) -> None:
    found = findings_of(replace(run, objects={"check": {"a": Watching("a", "fail"), "b": Watching("b", "pass")}}))
    assert found["verdict"] == "fail"
    ((_, tracked),) = run.tracker.recorded
    assert tracked["audit/verdict"] == -1
    assert tracked["audit/b/verdict"] == 1
    assert tracked["audit/a/high"] == 0.2
    assert all(isinstance(value, float) for value in tracked.values())


def test_an_unknown_level_is_an_error_before_anything_is_looked_at(run: Run) -> None:
    check = Watching("one", "pass")
    wrong = replace(run, settings=replace(run.settings, audit=AuditSettings(level="stern")), objects={"check": {"one": check}})
    with pytest.raises(SettingsError, match="stern"):
        findings_of(wrong)
    assert not check.seen


def test_the_nearest_pairs_are_drawn_and_the_findings_are_the_same_bytes_again(run: Run) -> None:
    run = replace(run, objects={"check": {"memorization": Memorization()}})
    found = findings_of(run)
    assert len(found["findings"][0]["details"]["pairs"]) == 6
    with Image.open(run.folder("audit") / "pairs" / "memorization.png") as picture:
        assert picture.width >= 3 * 16
    first = (run.folder("audit") / "findings.json").read_bytes()
    findings_of(run)
    assert (run.folder("audit") / "findings.json").read_bytes() == first


def test_the_look_is_written_down_before_it_is_taken(run: Run) -> None:
    path = run.root.parent / LEDGER

    def broken(evidence: Evidence) -> Finding:
        (line,) = path.read_text().splitlines()
        assert json.loads(line)["limits"]["name"] == "demo"
        assert json.loads(line)["sizes"]["holdout"] == {"cases": 8, "subjects": 8}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        findings_of(replace(run, objects={"check": {"one": broken}}))
    findings_of(replace(run, objects={"check": {"one": Watching("one", "pass")}}))
    looks = json.loads((run.folder("audit") / "looks.json").read_text())
    assert [(look["checks"], look["verdict"]) for look in looks] == [(["one"], ""), (["one"], "pass")]
