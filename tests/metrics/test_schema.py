"""What the evaluation writes keeps to its published schema, and what does not keep to it is named without a value."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from medsynth.errors import MedsynthError
from medsynth.metrics.schema import SCHEMA, faults_of, validated
from medsynth.metrics.score import Score

ROW = Score(name="kid", features="texture", value=0.1, interval=(0.0, 0.2), anchor=0.0, anchor_interval=(-0.1, 0.1), p=0.5, n_real=60)
SIZE = {"cases": 9, "subjects": 9, "cases_used": 9}
RESULT = json.loads(
    json.dumps(
        {
            "unit": "subject",
            "n": {"train": SIZE, "holdout": SIZE, "synthetic": SIZE},
            "features": {"texture": "Texture()"},
            "scores": [ROW.as_json(), Score(name="recall", status="absent", reason="too few subjects").as_json()],
            "baselines": [{"baseline": "blurred", **ROW.as_json()}],
            "groups": [replace(ROW, group="class=a").as_json()],
            "sanity": [{"name": "kid", "features": "texture", "defect": "blur", "sees": None}],
            "not_computed": [{"name": "utility", "reason": "no labels"}],
            "seed": 1,
        }
    )
)


def test_the_schema_is_one_and_scores_keep_to_it():
    Draft202012Validator.check_schema(json.loads(SCHEMA.read_text()))
    assert faults_of(RESULT) == []
    assert validated(RESULT) is RESULT


BREAK = {
    "$": lambda result: result.pop("not_computed"),
    "$.n": lambda result: result["n"].pop("holdout"),
    "$.scores[0].best": lambda result: result["scores"][0].update(best="MERLE"),
    "$.scores[0].value": lambda result: result["scores"][0].update(value=None),
    "$.scores[0].p": lambda result: result["scores"][0].update(p=1.5),
    "$.scores[1].reason": lambda result: result["scores"][1].update(reason=""),
    "$.baselines[0]": lambda result: result["baselines"][0].pop("baseline"),
    "$.groups[0].group": lambda result: result["groups"][0].update(group=""),
    "$.sanity[0].sees": lambda result: result["sanity"][0].update(sees="MERLE"),
}


@pytest.mark.parametrize("place", BREAK)
def test_a_fault_is_named_by_its_place_and_quotes_no_value(place):
    result = deepcopy(RESULT)
    BREAK[place](result)
    (fault,) = faults_of(result)
    assert fault.startswith(f"{place}: ")
    assert "MERLE" not in fault
    with pytest.raises(MedsynthError, match=r"metrics\.schema\.json"):
        validated(result)


def test_the_schema_is_in_the_package():
    assert '"medsynth.metrics" = ["*.json"]' in (Path(__file__).parents[2] / "pyproject.toml").read_text()
