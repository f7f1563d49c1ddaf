"""What an audit looks at, and what it says.

A check is a callable ``check(evidence) -> Finding``: an attack with a control, an interval, a limit, and a verdict that may be
"inconclusive".
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from medsynth.audit.level import Level
from medsynth.canaries import CanarySet
from medsynth.cohort import Cohort
from medsynth.conditions import Value

Verdict = Literal["pass", "fail", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Model:
    """The trained denoiser, as an attack uses it without knowing what it is made of.

    ``denoise(x, sigma, condition)`` gives the expected images where ``x = image + sigma * noise``, both float32 ``(n, channel, *space)`` in
    model units, with ``sigma`` ``(n,)`` and the condition of the one case that all of ``x`` is about. ``levels`` are noise levels that it
    was trained at, rising. It may be called from as many threads as ``workers`` says, within a ``session()``. ``leaves``: it is to be
    released with the cohort.
    """

    denoise: Callable[[np.ndarray, np.ndarray, Mapping[str, Value]], np.ndarray]
    levels: tuple[float, ...]
    workers: int = 1
    session: Callable[[], AbstractContextManager[Any]] = nullcontext
    leaves: bool = False


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Everything a check may look at. ``holdout`` holds subjects that no training step ever saw.

    ``folders`` are all folders whose bytes would leave (or have already left) the prepared folder; ``identifiers`` is the prepared
    folder's file of keyed hashes of every identifier value that ``prepare`` saw, with ``key`` their key (None: values cannot be
    matched). ``canaries`` are what training was given beside the training cases. ``level`` is how much proof is asked for, chosen before
    the look. ``model`` is what made the synthetic cohort, None where nobody has it.
    """

    train: Cohort
    holdout: Cohort
    synthetic: Cohort
    level: Level
    seed: int
    folders: tuple[Path, ...] = ()
    identifiers: Path | None = None
    key: bytes | None = None
    canaries: CanarySet | None = None
    model: Model | None = None


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One check's result with its doubt.

    ``value`` is a rate in 0..1 or a count; ``interval`` its 95 % interval; ``control`` the same number on data that cannot leak;
    ``limit`` what ``value`` (or the interval's upper end, as ``why`` says) may not exceed. ``details`` are aggregate numbers and pairs
    of case ids for the report, JSON-serialisable.
    """

    check: str
    verdict: Verdict
    value: float | None
    interval: tuple[float, float] | None
    control: float | None
    limit: float | None
    why: str
    required: bool = True
    details: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict:
        return asdict(self)


def tested(finding: Mapping[str, Any]) -> bool:
    """False where a check that decides nothing had nothing to look at: no canaries, no model. Such a one is not undecided."""
    return finding.get("required", True) or finding["verdict"] != "inconclusive" or finding["value"] is not None


class Check(Protocol):
    """Fires on a planted leak, is quiet on the control, and repeats under its seed (tests/contracts)."""

    def __call__(self, evidence: Evidence) -> Finding: ...


def rounded(value: Any) -> Any:
    """Six digits: the last bits of a matrix product depend on the processor, a finding must not."""
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(rounded(item) for item in value)
    return round(float(value), 6) if isinstance(value, float) else value
