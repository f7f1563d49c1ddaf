"""Levels of proof: their numbers can be reached with the data that they ask for."""

import math
from dataclasses import fields

import numpy as np
import pytest

from medsynth.audit.level import LEVELS, Level, level_named, shortage
from medsynth.audit.rates import (
    auc_interval,
    calibration_units,
    clopper_pearson,
    conformal_threshold,
    paired_difference,
    units_for_upper_bound,
)
from medsynth.cli import main
from medsynth.errors import SettingsError


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest) -> Level:
    return LEVELS[request.param]


def test_one_part_of_the_holdout_holds_alpha_another_can_bound_the_false_alarms_and_a_third_is_left(level: Level) -> None:
    calibration, test, reference = (share * level.holdout for share in level.division)
    assert calibration >= calibration_units(level.alpha)
    assert test >= units_for_upper_bound(level.false_alarm)
    assert reference >= 8
    assert calibration + test + reference == pytest.approx(level.holdout)


def test_all_plants_found_are_enough(level: Level) -> None:
    assert clopper_pearson(level.plants, level.plants)[0] >= level.recall


def test_a_cohort_without_a_hit_stays_within_the_excess(level: Level) -> None:
    n = level.synthetic
    high = max(paired_difference(0, 0, 0, n)[1], clopper_pearson(0, n)[1])
    assert high / clopper_pearson(level.plants, level.plants)[0] <= level.excess


def test_guessing_stays_within_the_limits_of_membership_at_the_fewest_subjects(level: Level) -> None:
    """Attacks two standard errors luckier than guessing, on as many members as others at the strict level and twice as many below."""
    members = level.holdout * (1 if level.name == "strict" else 2)
    lucky = 0.5 + 2 * math.sqrt((members + level.holdout + 1) / (12 * members * level.holdout))
    assert auc_interval(lucky, members, level.holdout, confidence=0.975)[1] <= level.membership
    if level.named < 1:
        assert clopper_pearson(round(2 * 0.01 * members), members, confidence=0.975)[1] <= level.named


def test_a_clean_phantom_hospital_stays_within_the_false_alarms_of_the_demo() -> None:
    """By counting: if too many of those that test alarm, few of the nearest to training calibrate."""
    demo, n = LEVELS["demo"], 20  # of each sort, of the 60 that `phantom_2d` holds out
    allowed = max(hits for hits in range(n) if clopper_pearson(hits, n)[1] <= demo.false_alarm)
    above = n - math.ceil((1 - demo.alpha) * (n + 1)) + 1  # the threshold is the subject of calibration that is so many from the nearest
    first = allowed + above  # allowed + 1 alarms, and above - 1 of the calibration
    chance = sum(math.comb(first, few) * math.comb(2 * n - first, n - few) for few in range(above)) / math.comb(2 * n, n)
    assert conformal_threshold(np.arange(n), demo.alpha)[0] == n - above
    assert chance < 0.001


def test_levels_are_ordered_by_every_limit() -> None:
    strict, standard, demo = (LEVELS[name] for name in ("strict", "standard", "demo"))
    for name in ("alpha", "false_alarm", "excess", "membership", "named", "linkage"):
        assert getattr(strict, name) <= getattr(standard, name) <= getattr(demo, name), name
    for name in ("plants", "recall", "unforeseen", "holdout", "synthetic", "attraction", "k"):
        assert getattr(strict, name) >= getattr(standard, name) >= getattr(demo, name), name
    assert len(fields(Level)) == 16  # a new limit belongs in the lists above


def test_the_claim_says_its_numbers_and_promises_no_anonymity(level: Level) -> None:
    for limit in (level.excess, level.recall, level.unforeseen, level.false_alarm, level.membership, level.linkage):
        assert f"{limit:.0%}" in level.claim
    assert "anonym" not in level.claim
    assert level.as_json()["needs"] == {"holdout": level.holdout, "synthetic": level.synthetic}


def test_an_unknown_level_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(SettingsError, match=r"audit\.level=stern .* strict, standard, demo"):
        level_named("stern")


@pytest.mark.parametrize(
    ("holdout", "synthetic", "fitting"),
    [(400, 1000, ""), (399, 1000, "standard, demo"), (400, 999, "standard, demo"), (24, 20, "reached: demo"), (3, 9, "No level")],
)
def test_a_level_out_of_reach_is_said_with_those_within(holdout: int, synthetic: int, fitting: str) -> None:
    said = shortage("strict", holdout, synthetic)
    assert bool(said) == bool(fitting)
    assert fitting in said
    assert (f"there are {holdout}" in said) == (holdout < 400)


def test_the_plan_tells_the_holdout_that_each_level_needs(capsys: pytest.CaptureFixture) -> None:
    assert main(["plan", "200", "holdout=0.3"]) == 0
    said = capsys.readouterr().out
    assert "200 subjects, 60 of them held out" in said
    assert "audit.level=strict: OUT OF REACH" in said
    assert "audit.level=standard: within reach" in said
    assert "400 are needed for the holdout alone" in said
    assert main(["plan", "100000", "cases=500"]) == 0
    assert "data.splits.holdout=0.20 or more, sampling.cases=1000 or more" in capsys.readouterr().out
    assert main(["plan", "2000", "holdout=0.1", "cases=1000"]) == 0
    assert "data.splits.holdout=0.20 or more" in capsys.readouterr().out
    assert main(["plan", "0"]) == 2
