"""JSON Schemas (2020-12) that the package publishes: what is written is checked against them, and any program can check it again."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator, ValidationError

from medsynth.errors import MedsynthError


@dataclass(frozen=True)
class Schema:
    """The schema in the file ``path``; ``what`` is what breaks it, and what mends it, as one sentence each."""

    path: Path
    what: str
    mend: str

    def faults_of(self, result: Any) -> list[str]:
        """What in a result breaks the schema: the place and its fault, quoting no value. Empty where it is valid."""
        found = sorted(self._validator.iter_errors(result), key=lambda error: error.json_path)
        return [f"{error.json_path}: {_told(error)}" for error in found]

    def validated(self, result: Mapping[str, Any]) -> Mapping[str, Any]:
        """The result itself. Raises MedsynthError where it breaks the schema: what is written must be readable by others."""
        if faults := self.faults_of(result):
            raise MedsynthError(f"{self.what} is not what {self.path.name} says: {'; '.join(faults[:3])}. {self.mend}")
        return result

    @cached_property
    def _validator(self) -> Draft202012Validator:
        return Draft202012Validator(json.loads(self.path.read_text(encoding="utf-8")))


def _told(error: ValidationError) -> str:
    if error.validator == "required":
        return error.message  # names the schema's own word
    rule = json.dumps({error.validator: error.validator_value})
    return f"breaks {rule if len(rule) <= 80 else f'{rule[:80]} …'}"
