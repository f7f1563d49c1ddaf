"""What a case is asked to show: attributes such as class, age or sex, and their way into a vector that a network reads.

A schema is found once, on the training split, and travels in the cohort's header, so that sampling and auditing never guess it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from medsynth.errors import SettingsError

Value = str | float


@dataclass(frozen=True, kw_only=True)
class Attribute:
    """One attribute: a class with its ``values``, or a continuous one between ``low`` and ``high``."""

    name: str
    values: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 1.0

    @property
    def size(self) -> int:
        """Length in the vector: one flag "is given", then one-hot or one scaled value."""
        return 1 + (len(self.values) or 1)

    def encode(self, value: Value | None) -> list[float]:
        """Flag and value; all zeros where the value is not given."""
        if value is None:
            return [0.0] * self.size
        if not self.values:
            span = self.high - self.low
            return [1.0, (float(value) - self.low) / span if span else 0.0]
        if str(value) not in self.values:
            raise SettingsError(f"{self.name}={value!r} is not among the training classes {', '.join(self.values)}.")
        return [1.0] + [float(str(value) == known) for known in self.values]


@dataclass(frozen=True)
class ConditionSchema:
    """The attributes that a model is conditioned on, in a fixed order. An empty schema is an unconditional model."""

    attributes: tuple[Attribute, ...] = ()

    @property
    def size(self) -> int:
        """Length of an encoded condition; the all-zero vector is the null condition of classifier-free guidance."""
        return sum(attribute.size for attribute in self.attributes)

    def encode(self, condition: Mapping[str, Value]) -> list[float]:
        """A condition as a vector of ``size`` numbers; attributes that are not given stay zero."""
        return [number for attribute in self.attributes for number in attribute.encode(condition.get(attribute.name))]

    def as_json(self) -> list[dict]:
        return [
            {"name": a.name, "values": list(a.values)} if a.values else {"name": a.name, "low": a.low, "high": a.high}
            for a in self.attributes
        ]

    @classmethod
    def from_json(cls, rows: Sequence[Mapping]) -> "ConditionSchema":
        return cls(tuple(Attribute(**{**row, "values": tuple(row.get("values", ()))}) for row in rows))

    @classmethod
    def of(cls, names: Sequence[str], conditions: Sequence[Mapping[str, Value]]) -> "ConditionSchema":
        """The schema of these attributes as they occur in ``conditions``: numbers are continuous, everything else a class."""
        return cls(tuple(_attribute(name, [c[name] for c in conditions if c.get(name) is not None]) for name in names))


def _attribute(name: str, found: list[Value]) -> Attribute:
    if not found:
        raise SettingsError(f"data.conditions names {name!r}, but no training case has it. Remove it, or give the source its attributes.")
    if all(isinstance(value, int | float) for value in found):
        low, high = float(min(found)), float(max(found))
        # outward to round numbers: the schema leaves with the model, and the oldest patient's age is that patient's
        step = 10.0 ** math.floor(math.log10(high - low)) if high > low else 1.0
        return Attribute(name=name, low=math.floor(low / step) * step, high=math.ceil(high / step) * step)
    return Attribute(name=name, values=tuple(sorted({str(value) for value in found})))
