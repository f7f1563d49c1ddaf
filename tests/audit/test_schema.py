"""What the audit writes keeps to its published schema, and what does not keep to it is named without a value."""

import json
from copy import deepcopy
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from medsynth.audit.level import LEVELS
from medsynth.audit.schema import SCHEMA, faults_of, validated
from medsynth.errors import MedsynthError
from tests.make_evidence import audit_result

RESULT = audit_result()


def test_the_schema_is_one_and_every_level_and_finding_keeps_to_it() -> None:
    Draft202012Validator.check_schema(json.loads(SCHEMA.read_text()))
    for level in LEVELS.values():
        assert faults_of(RESULT | {"level": json.loads(json.dumps(level.as_json()))}) == []


BREAK = {
    "$.verdict": lambda result: result.update(verdict="MERLE"),
    "$.train": lambda result: result.update(train="MERLE"),
    "$.findings[0].interval": lambda result: result["findings"][0].update(interval=[0.1]),
    "$.findings[0].value": lambda result: result["findings"][0].update(value="MERLE"),
    "$.findings[0]": lambda result: result["findings"][0].pop("why"),
    "$.level": lambda result: result["level"].pop("claim"),
    "$": lambda result: result.update(patient="MERLE"),
}


@pytest.mark.parametrize("place", BREAK)
def test_a_fault_is_named_by_its_place_and_quotes_no_value(place: str) -> None:
    result = deepcopy(RESULT)
    BREAK[place](result)
    (fault,) = faults_of(result)
    assert fault.startswith(f"{place}: ")
    assert "MERLE" not in fault
    with pytest.raises(MedsynthError, match=r"audit\.schema\.json"):
        validated(result)


def test_the_schema_is_in_the_package() -> None:
    assert '"medsynth.audit" = ["*.json"]' in (Path(__file__).parents[2] / "pyproject.toml").read_text()
