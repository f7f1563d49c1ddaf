"""Canaries: pictures of nobody in training, and nowhere else; their trace, against closed forms and in a model that repeats."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medsynth.audit.canaries import Canaries, epsilon, exposure
from medsynth.audit.finding import Evidence
from medsynth.audit.level import LEVELS
from medsynth.audit.rates import clopper_pearson
from medsynth.canaries import CanarySet
from medsynth.cohort import Cohort
from medsynth.config import TrainSettings
from medsynth.data.loader import CohortData, Layout, Rows
from medsynth.stages import STAGES, sample, train
from tests.make_cohort import make_cohort
from tests.make_evidence import cohort_of, images_of, make_evidence
from tests.make_run import make_run

PAIRS = 60


def evidence(folder: Path, repeated: int = 0, pairs: int = PAIRS) -> Evidence:
    """Synthetic cases of which ``repeated`` are noisy copies of inserted canaries."""
    made = make_evidence(folder, n_train=30, n_synthetic=80)
    canaries = CanarySet(made.train, pairs, 7)
    images = images_of((20, 20), [f"nobody {n}" for n in range(80)])
    for row, number in enumerate(canaries.inserted[:repeated]):
        images[row] = canaries.image(number)[0] + 0.1 * np.random.default_rng(row).standard_normal((20, 20))
    return replace(made, synthetic=cohort_of(folder / "made", "synthetic", images), canaries=canaries)


def test_exposure_has_its_closed_form() -> None:
    references = np.arange(1023) / 1023
    assert exposure(np.array([2.0, -1.0]), references) == pytest.approx([10, 0])
    assert exposure(np.array([np.median(references) + 1e-6]), references) == pytest.approx(1, abs=0.01)
    assert exposure(np.array([1.0]), np.array([1.0])) == pytest.approx(0)  # of equals it is the last
    # without a trace all ranks are as likely: log2(n + 1) less the mean of log2(rank)
    ranks = exposure(np.random.default_rng(0).permutation(references), references)
    assert ranks.mean() == pytest.approx(1 / math.log(2), abs=0.03)


def test_epsilon_is_the_log_odds_of_the_bound() -> None:
    assert epsilon(50, 50) == pytest.approx(math.log(0.05 ** (1 / 50) / (1 - 0.05 ** (1 / 50))))
    assert epsilon(25, 50) == epsilon(0, 50) == 0


def test_canaries_that_are_repeated_are_found_and_others_are_not(tmp_path: Path) -> None:
    quiet = Canaries()(evidence(tmp_path / "quiet"))
    assert (quiet.verdict, quiet.required) == ("pass", False), quiet.why
    assert quiet.interval == clopper_pearson(round(quiet.value * PAIRS), PAIRS)
    assert quiet.details["exposure_interval"][0] < 1 / math.log(2) < quiet.details["exposure_interval"][1]
    assert quiet.details["epsilon_at_least"] == 0
    loud = Canaries()(evidence(tmp_path / "loud", repeated=PAIRS))
    assert loud.verdict == "fail"
    assert loud.value > 0.95
    assert loud.details["exposure"] > 9
    assert loud.details["epsilon_at_least"] > 2
    assert abs(loud.details["exposure_of_withheld"] - 1 / math.log(2)) < 0.6


def test_without_canaries_or_with_few_nothing_is_known(tmp_path: Path) -> None:
    made = evidence(tmp_path, pairs=6)
    none = Canaries()(replace(made, canaries=None))
    assert (none.verdict, none.value, none.required) == ("inconclusive", None, False)
    assert "train.canaries=50" in none.why
    few = Canaries()(made)
    assert few.verdict == "inconclusive"
    assert "at least 18 canaries" in few.why
    assert clopper_pearson(9, 18)[1] <= 0.75 < clopper_pearson(8, 16)[1]


def test_a_coin_inserts_one_of_each_pair_and_the_seed_says_which(tmp_path: Path) -> None:
    cohort = make_cohort(tmp_path, n_train=12, conditions={"class": ["a", "b"]}).split("train")
    canaries = CanarySet(cohort, 200, 3)
    assert {number // 2 for number in canaries.inserted} == {number // 2 for number in canaries.withheld} == set(range(200))
    assert not {*canaries.inserted} & {*canaries.withheld}
    assert 70 < sum(number % 2 for number in canaries.inserted) < 130
    assert CanarySet(cohort, 200, 3).inserted == canaries.inserted != CanarySet(cohort, 200, 4).inserted
    assert min(canaries.references(5)) > max(*canaries.inserted, *canaries.withheld)
    first, again, other = canaries.image(0), CanarySet(cohort, 200, 3).image(0), canaries.image(1)
    assert np.array_equal(first, again)
    assert first.shape == (1, 16, 16)
    assert abs(np.corrcoef((first - canaries.mean).ravel(), (other - canaries.mean).ravel())[0, 1]) < 0.9
    assert canaries.condition(0) == canaries.condition(1)
    assert {canaries.condition(2 * pair)["class"] for pair in range(20)} == {"a", "b"}


@pytest.mark.parametrize("joint", [False, True])
def test_training_sees_each_canary_as_often_as_a_case_and_no_cohort_does(tmp_path: Path, joint: bool) -> None:
    cohort = make_cohort(tmp_path, n_train=10, conditions={"class": ["a", "b"]}, joint_mask=joint)
    digest, canaries = cohort.digest, CanarySet(cohort.split("train"), 3, 1)
    rows = Rows(cohort.split("train"), canaries)
    assert len(rows) == 13
    batch = rows.batch([11, 2, 12, 10])
    assert batch["x"].shape == (4, cohort.header.channels, 16, 16)
    for place, number in ((0, 1), (2, 2), (3, 0)):
        assert torch.equal(batch["x"][place], torch.from_numpy(canaries.image(canaries.inserted[number])))
    assert torch.equal(batch["x"][1], torch.tensor(cohort.pixels(cohort.split("train").cases[2])))
    assert torch.equal(Rows(cohort.split("train")).pixels([2]), rows.pixels([2]))
    assert batch["condition"].shape == (4, cohort.header.conditions.size)
    data = CohortData(cohort, layout=Layout(global_batch=4), rank=0, seed=0, canaries=canaries)
    assert (len(data.train), len(data.validation)) == (13, 6)
    assert Cohort.read(tmp_path / "cohort.jsonl").digest == digest


def test_the_number_of_canaries_is_part_of_what_training_is_made_from() -> None:
    assert "train" in STAGES["train"].settings


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_model_that_overfits_gives_its_canaries_away_and_no_output_holds_one(tmp_path: Path) -> None:
    root = tmp_path / "ct"
    make_cohort(root / "prepare", n_train=8, n_validation=2, n_holdout=4, shape=(12, 12))
    fit = {"steps": 2500, "global_batch": 20, "validate_every": 10**6, "checkpoint_every": 2500, "preview_every": 10**6, "ema_halflife": 50}
    run = make_run(root, fit=fit, sampling={"cases": 200, "steps": 12, "batch": 50})
    run = replace(run, settings=replace(run.settings, train=TrainSettings(canaries=12)))
    train.work(run, root / "train")
    sample.work(run, root / "sample")
    synthetic = Cohort.read(root / "sample" / "cohort.jsonl")
    made = evidence_of_run(run, synthetic)
    finding = Canaries()(made)
    assert finding.verdict == "fail", finding.why
    assert finding.value >= 11 / 12
    assert finding.details["exposure"] > 6
    other = Canaries()(replace(made, canaries=CanarySet(made.train, 12, 99)))  # the same model, other canaries
    assert other.details["exposure"] < 4
    for path in [*(root / "prepare").rglob("*"), *(root / "train" / "denoiser").rglob("*"), root / "sample" / "cohort.jsonl"]:
        assert not path.is_file() or b"canar" not in path.read_bytes()
    assert json.loads((root / "train" / "history.jsonl").read_text().splitlines()[-1])["step"] == 2500


def evidence_of_run(run, synthetic: Cohort) -> Evidence:
    real = Cohort.read(run.folder("prepare") / "cohort.jsonl")
    return Evidence(
        train=real.split("train"),
        holdout=real.split("holdout"),
        synthetic=synthetic,
        level=LEVELS["demo"],
        seed=0,
        canaries=CanarySet(real.split("train"), run.settings.train.canaries, run.settings.run.seed),
    )
