"""What an audit's JSON holds, as a JSON Schema (2020-12) that any program can check it against: ``audit.schema.json`` beside this file.

``audit/findings.json`` and the release's ``audit.json`` are both valid under it; the latter also tells the looks and the other releases.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError

from medsynth.errors import MedsynthError

SCHEMA = Path(__file__).with_name("audit.schema.json")


def faults_of(result: Mapping[str, Any]) -> list[str]:
    """What in an audit's result breaks the schema: the place and its fault, quoting no value. Empty where it is valid."""
    found = sorted(_validator().iter_errors(result), key=lambda error: error.json_path)
    return [f"{error.json_path}: {_told(error)}" for error in found]


def validated(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """The result itself. Raises MedsynthError where it breaks the schema: what is written must be readable by others."""
    if faults := faults_of(result):
        raise MedsynthError(
            f"A check's finding is not what audit.schema.json says: {'; '.join(faults[:3])}. Mend the check, and audit again."
        )
    return result


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(json.loads(SCHEMA.read_text(encoding="utf-8")))


def _told(error: ValidationError) -> str:
    if error.validator == "required":
        return error.message  # names the schema's own word
    rule = json.dumps({error.validator: error.validator_value})
    return f"breaks {rule if len(rule) <= 80 else f'{rule[:80]} …'}"
