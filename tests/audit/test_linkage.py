"""The table of attributes: what is handed on is found, what is only like it is not, and a risk has its closed form."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medsynth.audit.finding import Evidence, Finding
from medsynth.audit.level import LEVELS
from medsynth.audit.linkage import Linkage
from medsynth.audit.rates import residual_risk
from medsynth.cohort import Cohort
from medsynth.rng import generator_for
from tests.make_evidence import cohort_of, shuffled

Draw = Callable[[np.random.Generator, int], dict]


def people(generator: np.random.Generator, number: int) -> dict:
    """Sex, an age that depends on nothing, and a class that depends on the age."""
    age = float(generator.integers(20, 90))
    return {"age": age, "class": "sick" if generator.random() < age / 110 else "well", "sex": "MF"[generator.integers(2)]}


def table(folder: Path, split: str, count: int, draw: Draw, seed: int = 0, per_subject: int = 1) -> Cohort:
    cohort = cohort_of(folder, split, np.zeros((count, 2, 2), np.float32), [f"{split}-{i // per_subject:04d}" for i in range(count)])
    generator = generator_for(seed, "people", split)
    return cohort.where(replace(case, condition=draw(generator, i)) for i, case in enumerate(cohort))


def evidence(folder: Path, synthetic: Sequence[dict] | Draw, *, draw: Draw = people, n: int = 300, level: str = "standard") -> Evidence:
    train = table(folder, "train", n, draw)
    made = synthetic if callable(synthetic) else lambda _, i: synthetic[i % len(synthetic)]
    return Evidence(
        train=train,
        holdout=table(folder, "holdout", n // 2, draw),
        synthetic=table(folder, "synthetic", n, made),
        level=LEVELS[level],
        seed=0,
    )


def attacks(finding: Finding) -> dict:
    return finding.details["attacks"]


def test_a_table_of_other_people_of_the_same_kind_tells_nothing(tmp_path: Path) -> None:
    finding = Linkage()(evidence(tmp_path, people))
    assert finding.verdict == "pass", finding.why
    assert finding.details["rare"]["cases"] == 0
    assert all(row["interval"][0] <= 0 <= row["interval"][1] for row in attacks(finding).values())
    sex = attacks(finding)["inference of sex"]
    assert sex["leaked"] > sex["naive"] + 0.1  # it could have told: the same attack on the training table does


def test_a_table_that_hands_training_records_on_is_found_by_every_attack(tmp_path: Path) -> None:
    def fine(generator: np.random.Generator, number: int) -> dict:
        return people(generator, number) | {"weight": round(generator.uniform(40, 120), 3)}

    quiet = Linkage()(evidence(tmp_path, fine, draw=fine))
    assert quiet.verdict == "pass", quiet.why
    train = [case.condition for case in table(tmp_path, "train", 300, fine)]
    finding = Linkage()(evidence(tmp_path, train, draw=fine))
    assert finding.verdict == "fail"
    risks = {name: row["risk"] for name, row in attacks(finding).items()}
    assert risks["inference of sex"] > 0.8
    assert risks["inference of weight"] > 0.3
    assert risks["singling out"] > 0.2
    assert all(row["risk"] == pytest.approx(attacks(finding)[name]["leaked"], abs=0.5) for name, row in attacks(finding).items())
    assert not finding.details["rare"]["cases"]  # classes are common here: the attacks found it, not the rule


def test_files_are_joined_over_a_table_that_holds_both_halves(tmp_path: Path) -> None:
    def numbers(generator: np.random.Generator, number: int) -> dict:
        return {name: round(generator.uniform(0, 100), 2) for name in "abcd"}

    assert Linkage()(evidence(tmp_path, numbers, draw=numbers)).verdict == "pass"
    train = [case.condition for case in table(tmp_path, "train", 300, numbers)]
    row = attacks(Linkage()(evidence(tmp_path, train, draw=numbers)))["linkability"]
    assert row["training"][0] > 290
    assert row["control"][0] < 15
    assert row["naive"] < 0.05


@pytest.mark.parametrize(("count", "verdict"), [(1, "fail"), (4, "fail"), (5, "pass")])
def test_a_combination_of_classes_needs_k_training_subjects(tmp_path: Path, count: int, verdict: str) -> None:
    """Five at this level; that they have several images each makes them no more."""
    made = evidence(tmp_path, people)
    first = made.train.cases[0]
    rare = {"age": 50.0, "class": "odd", "sex": "F"}
    extra = [replace(first, id=f"train-odd-{i}", subject=f"train-odd-{i // 2}", condition=rare) for i in range(2 * count)]
    held = [replace(case, condition=rare) if i < 3 else case for i, case in enumerate(made.holdout)]
    given = [replace(case, condition=rare) if i < 2 else case for i, case in enumerate(made.synthetic)]
    train = made.train.where([*made.train.cases, *extra])
    finding = Linkage()(replace(made, train=train, holdout=made.holdout.where(held), synthetic=made.synthetic.where(given)))
    assert finding.verdict == verdict, finding.why
    assert finding.details["rare"] == {"cases": 2 if verdict == "fail" else 0, "combinations": int(verdict == "fail"), "of": 5, "k": 5}
    assert "odd" not in json.dumps(finding.as_json())  # how many, never who


def test_a_combination_that_no_training_subject_has_is_traced_to_nobody(tmp_path: Path) -> None:
    made = evidence(tmp_path, people)
    synthetic = [replace(case, condition={"age": 50.0, "class": "new", "sex": "F"}) for case in made.synthetic.cases[:3]]
    finding = Linkage()(replace(made, synthetic=made.synthetic.where([*synthetic, *made.synthetic.cases[3:]])))
    assert finding.verdict == "pass"


def test_without_attributes_no_table_leaves(tmp_path: Path) -> None:
    made = evidence(tmp_path, people)
    bare = made.synthetic.where(replace(case, condition={}) for case in made.synthetic)
    finding = Linkage()(replace(made, synthetic=bare, holdout=made.holdout.where(())))
    assert (finding.verdict, finding.value, finding.details) == ("pass", 0.0, {"attributes": []})
    assert "0 attributes" in finding.why


def test_too_few_subjects_are_told_with_how_many_would_do(tmp_path: Path) -> None:
    finding = Linkage()(evidence(tmp_path, people, level="strict"))
    assert finding.verdict == "inconclusive"
    assert "needs 400" in finding.why
    strict = replace(LEVELS["standard"], linkage=0.15)
    finding = Linkage()(replace(evidence(tmp_path, people), level=strict))
    assert finding.verdict == "inconclusive"
    assert "held-out subjects would tell" in finding.why


def test_one_class_of_two_values_singles_nobody_out(tmp_path: Path) -> None:
    def lesions(generator: np.random.Generator, number: int) -> dict:
        return {"class": ("normal", "pneumonia")[generator.integers(2)]}

    finding = Linkage()(evidence(tmp_path, lesions, draw=lesions))
    assert finding.verdict == "pass"
    assert list(attacks(finding)) == ["singling out"]
    assert finding.value == 0


def test_values_that_are_missing_or_unknown_are_values_of_their_own(tmp_path: Path) -> None:
    def gaps(generator: np.random.Generator, number: int) -> dict:
        return {name: value for name, value in people(generator, number).items() if generator.random() < 0.8}

    assert Linkage()(evidence(tmp_path, gaps, draw=gaps)).verdict == "pass"


def test_order_and_number_of_a_subjects_images_do_not_matter(tmp_path: Path) -> None:
    made = evidence(tmp_path, people, n=120)
    first = Linkage()(made)
    twice = {
        name: cohort.where([*shuffled(cohort, 3), *(replace(case, id=f"{case.id}-b") for case in cohort)])
        for name, cohort in (("train", made.train), ("holdout", made.holdout))
    }
    assert Linkage()(replace(made, synthetic=shuffled(made.synthetic, 2), **twice)) == first


def test_the_blur_of_sampled_ages_is_enough_and_no_blur_is_not(tmp_path: Path) -> None:
    """Conditions as the stage `sample` draws them."""
    from medsynth.conditions import ConditionSchema
    from medsynth.stages.sample import plan

    def fine(generator: np.random.Generator, number: int) -> dict:
        return {name: people(generator, number)[name] for name in ("class", "sex")} | {"age": round(generator.uniform(20, 90), 3)}

    made = evidence(tmp_path, fine, draw=fine, n=400)
    schema = ConditionSchema.of(["age", "class", "sex"], [case.condition for case in made.train])
    train = replace(made.train, header=replace(made.train.header, conditions=schema))
    drawn = [each.condition for each in plan(train, cases=400, per_condition={}, seed=1)]
    sharp = [max(train, key=lambda case: -abs(case.condition["age"] - each["age"])).condition for each in drawn]
    for conditions, verdict in ((drawn, "pass"), (sharp, "fail")):
        synthetic = made.synthetic.where(replace(case, condition=conditions[i]) for i, case in enumerate(made.synthetic))
        assert Linkage()(replace(made, synthetic=synthetic)).verdict == verdict


def test_the_residual_risk_has_its_closed_forms() -> None:
    assert residual_risk(50, 100, 0, 100)[0] == pytest.approx(0.5)
    assert residual_risk(75, 100, 50, 100)[0] == pytest.approx(0.5)
    assert residual_risk(30, 100, 30, 100)[0] == pytest.approx(0)
    risk, (low, high) = residual_risk(60, 100, 30, 200)
    assert low < risk < high
    assert residual_risk(100, 100, 30, 100)[1][1] == 1
    assert residual_risk(5, 10, 10, 10) == (0.0, (-np.inf, 1.0))
    # of a control that is known for certain it is Wilson's interval of the failures, rescaled
    from medsynth.audit.rates import wilson

    low, high = wilson(40, 100)
    assert residual_risk(60, 100, 5 * 10**7, 10**8)[1] == pytest.approx((1 - 2 * high, 1 - 2 * low), abs=1e-3)


def test_the_interval_of_the_residual_risk_covers_what_it_says() -> None:
    generator = generator_for(0, "risk coverage")
    for attack, control in ((0.5, 0.3), (0.02, 0.02), (0.9, 0.85), (0.3, 0.3)):
        truth = (attack - control) / (1 - control)
        hits, controls = generator.binomial(120, attack, 2000), generator.binomial(60, control, 2000)
        intervals = [residual_risk(int(a), 120, int(c), 60)[1] for a, c in zip(hits, controls, strict=True)]
        assert np.mean([low <= truth <= high for low, high in intervals]) > 0.93
