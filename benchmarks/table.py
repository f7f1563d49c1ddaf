"""What a benchmark says, and where it is kept: a dated JSON file and the same as Markdown, named by day and hardware."""

import json
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("medsynth-diffusion", "torch", "monai", "pydicom", "nibabel", "numpy", "scipy")

Row = Mapping[str, str | float | int]


@dataclass(frozen=True, kw_only=True)
class Table:
    """``note`` says what is compared with what, and what the figure does not show. Rows have the same keys."""

    title: str
    note: str
    rows: Sequence[Row]

    def markdown(self) -> str:
        columns = list(self.rows[0])
        lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *([_cell(row[column]) for column in columns] for row in self.rows)]
        return f"### {self.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{self.note}\n"


def _cell(value: str | float | int) -> str:
    if not isinstance(value, float):
        return str(value)
    return (
        f"{value:.0f}"
        if abs(value) >= 100
        else f"{value:.1f}"
        if abs(value) >= 10
        else f"{value:.2f}"
        if abs(value) >= 0.1
        else f"{value:.2g}"
    )


def processor() -> str:
    """The CPU's name and, since a name may say little, its family and model."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    facts = dict(re.findall(r"^([^:\t]+?)\s*:[ \t]*(.*)$", text, re.MULTILINE))
    if "model name" not in facts:
        return platform.machine()
    return f"{facts['model name']} family {facts.get('cpu family', '?')} model {facts.get('model', '?')}"


def write(tables: Sequence[Table], *, hardware: str, conditions: Mapping[str, object], folder: Path = RESULTS, name: str = "") -> Path:
    """``<name>-<date>-<hardware>.json`` and ``.md``; returns the latter. A second run of the day takes the first one's place."""
    date = datetime.now(UTC).date().isoformat()
    versions = {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}
    document = {"date": date, "hardware": hardware, "conditions": dict(conditions), "versions": versions}
    stem = f"{name}-" * bool(name) + f"{date}-{re.sub('[^a-z0-9]+', '-', hardware.lower()).strip('-')}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.json").write_text(json.dumps(document | {"tables": [asdict(table) for table in tables]}, indent=1) + "\n")
    head = f"{date}, {hardware}. " + ". ".join(f"{name}: {value}" for name, value in conditions.items()) + ".\n\n"
    head += ", ".join(f"{name} {value}" for name, value in versions.items()) + ".\n"
    path = folder / f"{stem}.md"
    path.write_text("\n".join([head, *(table.markdown() for table in tables)]))
    return path


def alone(name: str, measure: Callable[[bool], Sequence[Table]], arguments: Sequence[str]) -> int:
    """``python -m benchmarks.NAME [--tiny]``: the tables, on one thread; in full also written to results/privacy/."""
    torch.set_num_threads(1)
    tiny = "--tiny" in arguments
    tables = measure(tiny)
    print("\n".join(table.markdown() for table in tables))
    if not tiny:
        conditions = {"Compute threads": "1", "CPUs": str(os.cpu_count())}
        path = write(tables, hardware=processor(), conditions=conditions, folder=RESULTS / "privacy", name=name)
        print(f"written to {path}", file=sys.stderr)
    return 0
