"""The membership attacks: they find who was learned by heart, are fooled by nothing else, and say when they cannot know."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medsynth.audit.finding import Evidence, Finding, Model
from medsynth.audit.level import LEVELS
from medsynth.audit.membership import MembershipCohort, MembershipModel, People
from medsynth.rng import generator_for
from tests.make_evidence import cohort_of, images_of, learned_by_heart, make_evidence, shuffled

FLAT = (16, 16)
TRAIN = [f"train {i}" for i in range(60)]
NOBODY = [f"somebody {i}" for i in range(60)]


def bytes_of(finding: Finding) -> str:
    return json.dumps(finding.as_json(), sort_keys=True, allow_nan=False)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    return make_evidence(tmp_path_factory.mktemp("clean"), shape=FLAT)


@pytest.fixture(scope="module")
def leaky(evidence: Evidence) -> Evidence:
    return replace(evidence, model=learned_by_heart(images_of(FLAT, TRAIN)))


def test_a_model_that_learned_its_training_set_by_heart_is_told(leaky: Evidence) -> None:
    finding = MembershipModel()(leaky)
    assert finding.verdict == "fail"
    assert finding.interval[0] > 0.9
    assert finding.details["adversary"] == "holds the released model"


def test_a_model_that_learned_other_people_by_heart_knows_nobody_here(evidence: Evidence) -> None:
    """It is as leaky, and the attack as strong: but about people who were not asked."""
    finding = MembershipModel()(replace(evidence, model=learned_by_heart(images_of(FLAT, NOBODY))))
    assert finding.verdict == "pass"
    assert finding.interval[0] == 0.5


def test_an_attack_that_is_always_wrong_is_one_that_is_always_right(evidence: Evidence) -> None:
    """Held-out people denoised worst and members worst of all: what counts is that they differ."""
    finding = MembershipModel()(replace(evidence, model=learned_by_heart(evidence.holdout.images()[:, 0])))
    assert finding.verdict == "fail"
    assert max(finding.details["loss_by_level"].values()) < 0.2


def test_each_adversary_sees_a_half_of_the_members_in_a_cohort_or_a_model(evidence: Evidence, tmp_path: Path) -> None:
    """A leak of every second member is told in three quarters of pairs: those are certain, the rest are guessed."""
    known = images_of(FLAT, TRAIN[::2])
    drawn = cohort_of(tmp_path, "synthetic", np.concatenate([known, images_of(FLAT, [f"nobody {i}" for i in range(30)])]))
    for check in (MembershipCohort(), MembershipModel()):
        finding = check(replace(evidence, synthetic=drawn, model=learned_by_heart(known)))
        assert 0.65 < finding.value < 0.9
        assert finding.interval[0] > 0.5


def test_where_members_and_others_differ_in_themselves_nothing_is_known(leaky: Evidence, tmp_path: Path) -> None:
    brighter = cohort_of(tmp_path, "holdout", leaky.holdout.images()[:, 0] * 1.5)
    for check in (MembershipModel(), MembershipCohort()):
        finding = check(replace(leaky, holdout=brighter))
        assert finding.verdict == "inconclusive"
        assert "differ in their images alone" in finding.why
        assert finding.control > 0.9
        assert finding.details["baseline"]["p"] < 0.01


def test_the_attack_on_a_cohort_guesses_where_nobody_leaked(tmp_path: Path) -> None:
    """Over fifteen clean cohorts the mean is one half, and hardly an interval leaves it out."""
    told, out = [], 0
    for seed in range(15):
        images = generator_for(seed, "clean").standard_normal((90, 4, 4), dtype=np.float32)
        train, holdout, drawn = (
            cohort_of(tmp_path / str(seed), name, part)
            for name, part in zip(("train", "holdout", "synthetic"), np.split(images, 3), strict=True)
        )
        found = MembershipCohort()(Evidence(train=train, holdout=holdout, synthetic=drawn, level=LEVELS["demo"], seed=seed))
        people = People.of(train, holdout, 16)
        told.append([people.told(scores) for scores in people.crowded_by(drawn.images()[:, 0]).values()])
        out += found.interval[0] > 0.5
    assert np.abs(np.mean(told, axis=0) - 0.5).max() < 3 * 0.075 / np.sqrt(15)
    assert out <= 1


def test_same_seed_same_bytes_in_any_order_and_by_any_number_of_workers(leaky: Evidence) -> None:
    other = replace(leaky, **{name: shuffled(getattr(leaky, name), 3) for name in ("train", "holdout", "synthetic")})
    other = replace(other, model=replace(leaky.model, workers=3))
    for check in (MembershipModel(subjects=30), MembershipCohort()):
        first = bytes_of(check(leaky))
        assert bytes_of(check(other)) == first
        assert bytes_of(check(replace(leaky, seed=1))) != first


def test_a_case_is_asked_about_with_all_its_channels_and_its_own_condition(evidence: Evidence) -> None:
    seen = set()

    def denoise(x: np.ndarray, sigma: np.ndarray, condition: dict) -> np.ndarray:
        assert x.shape[1:] == (1, *FLAT)
        assert len(x) == len(sigma)
        seen.add(condition["class"])
        return x

    train = evidence.train.where(replace(case, condition={"class": "ill"}) for case in evidence.train)
    holdout = evidence.holdout.where(replace(case, condition={"class": "well"}) for case in evidence.holdout)
    MembershipModel()(replace(evidence, train=train, holdout=holdout, model=Model(denoise=denoise, levels=(0.1, 1.0))))
    assert seen == {"ill", "well"}


def test_a_blind_attack_gives_no_verdict(evidence: Evidence, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault in the audit itself: the planted leak is missed, and that is said."""
    monkeypatch.setattr(People, "crowded_by", lambda self, drawn: {"nearest": np.arange(100) % 7.0})
    finding = MembershipCohort()(evidence)
    assert finding.verdict == "inconclusive"
    assert "a planted leak is not found" in finding.why


def test_many_slices_of_a_person_are_one(evidence: Evidence, tmp_path: Path) -> None:
    owners = [f"person {i // 3}" for i in range(60)]
    finding = MembershipCohort()(replace(evidence, train=cohort_of(tmp_path, "train", images_of(FLAT, TRAIN), owners)))
    assert finding.details["counts"] == {"members": 20, "others": 40, "real_cases": 100}


def test_true_positives_are_told_where_there_are_enough_others_and_else_the_number_that_would_do(
    evidence: Evidence, tmp_path: Path
) -> None:
    few = MembershipCohort()(evidence).details["attacks"]["nearest"]["named_at"]
    assert few == {"1.0%": {"needs": 100}, "0.1%": {"needs": 1000}}
    many = make_evidence(tmp_path, shape=FLAT, n_holdout=100, planted=images_of(FLAT, TRAIN[:30]))
    row = MembershipCohort()(many).details["attacks"]["nearest"]["named_at"]["1.0%"]
    assert row["of"] == 60
    assert row["named"] >= 28
    assert row["interval"][0] < row["named"] / 60 < row["interval"][1]


def test_only_a_model_that_leaves_has_to_pass(leaky: Evidence) -> None:
    assert MembershipCohort()(leaky).required
    assert not MembershipModel(subjects=20)(leaky).required
    assert MembershipModel(subjects=20)(replace(leaky, model=replace(leaky.model, leaves=True))).required


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda e: {"model": None}, "is not here to be attacked"),
        (lambda e: {"holdout": e.holdout.where(e.holdout.cases[:5])}, "5 held-out subjects, and 10 are the fewest"),
        (lambda e: {"train": e.train.where(())}, "0 training subjects"),
    ],
)
def test_what_is_missing_is_said(leaky: Evidence, change, said: str) -> None:
    finding = MembershipModel()(replace(leaky, **change(leaky)))
    assert (finding.verdict, finding.value) == ("inconclusive", None)
    assert said in finding.why


def test_too_few_subjects_for_a_level_are_named_with_how_many_would_do(evidence: Evidence) -> None:
    finding = MembershipCohort()(replace(evidence, level=LEVELS["strict"]))
    assert finding.verdict == "inconclusive"
    assert "40 held-out subjects were asked about, 400 are needed" in finding.why
    assert "held-out subjects beside" in finding.why
