"""``python -m benchmarks.quality RUN ...``: how good the cohorts of finished runs are, beside what needs no model.

The figures are those of each run's own evaluation and audit, in one table: KID on random-convolution features, its real-against-real
floor, and the two stand-ins, training cases blurred by 3 mm and draws from a Gaussian fitted to the training cases. A run of the phantom
hospital also shows how far the known anatomy is found again in the synthetic images. Nothing is trained here; the chain is
``medsynth run experiment=NAME``, and its minutes are those between the receipts.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.table import RESULTS, Row, Table, processor, write
from medsynth.cohort import Cohort
from medsynth.data.sources.phantom_anatomy import Measured, measure
from medsynth.stages import VERBS

ANATOMY = ("width", "depth", "contrast", "kidney", "lesion")


def main(runs: Sequence[str]) -> int:
    if not runs:
        print("usage: python -m benchmarks.quality runs/NAME ...", file=sys.stderr)
        return 2
    tables = [table for run in runs for table in tables_of(Path(run))]
    print("\n".join(table.markdown() for table in tables))
    name = "-".join(Path(run).name for run in runs)
    path = write(tables, hardware=processor(), conditions={"CPUs": os.cpu_count()}, folder=RESULTS / "quality", name=name)
    print(f"written to {path}", file=sys.stderr)
    return 0


def tables_of(run: Path) -> list[Table]:
    """The tables of one finished run. A score that the run could not compute is left out, and the note says why."""
    metrics = json.loads((run / "evaluate" / "metrics.json").read_text())
    findings = json.loads((run / "audit" / "findings.json").read_text())
    settings = json.loads((run / "train" / "receipt.json").read_text())["settings"]
    rows = [_row("synthetic", row) for row in metrics["scores"] if row["name"] == "kid"]
    rows += [_row(row["baseline"], row) for row in metrics["baselines"] if row["name"] == "kid"]
    counts = metrics["n"]
    checks = "; ".join(f"{finding['check']} {finding['verdict']}" for finding in findings["findings"])
    note = (
        f"{counts['synthetic']['cases']} synthetic cases against {counts['holdout']['subjects']} held-out subjects; "
        f"{settings['fit.steps']} training steps on {counts['train']['subjects']} subjects; {_minutes(run):.0f} minutes from prepare's "
        f"receipt to the last, pauses included. Audit at level {findings['level']['name']}: {findings['verdict']} ({checks}). "
        "Intervals are 95 %, by half-subsampling of subjects; the floor is real against real."
    )
    tables = [Table(title=f"{run.name}: KID on random-convolution features", note=note, rows=rows)] if rows else []
    if Cohort.read(run / "prepare" / "cohort.jsonl").header.source["name"].casefold() == "phantom":
        tables.append(_recovered(run))
    if (run / "utility" / "utility.json").is_file():
        tables += _utility(run)
    return tables


def _row(name: str, row: dict) -> Row:
    low, high = row["interval"] or (None, None)
    cells = {"KID": row["value"], "low": low, "high": high, "floor": row["anchor"]}
    return {"cohort": name} | {key: "-" if value is None else value for key, value in cells.items()}


def _minutes(run: Path) -> float:
    ends = [(run / stage / "receipt.json").stat().st_mtime for stage in VERBS if (run / stage / "receipt.json").is_file()]
    return (max(ends) - min(ends)) / 60


def recovered(run: Path) -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and standard deviation of each known quantity (mm; contrast in stored units; share with a lesion) by cohort."""
    real = Cohort.read(run / "prepare" / "cohort.jsonl")
    cohorts = {
        "training": real.split("train"),
        "held out": real.split("holdout"),
        "synthetic": Cohort.read(run / "sample" / "cohort.jsonl"),
    }
    found = {}
    for name, cohort in cohorts.items():
        seen = [measure(cohort.stored(case), case.spacing, case.modality) for case in cohort]
        bodies: list[Measured] = [one for one in seen if one is not None]
        assert len(bodies) > 0.95 * len(seen), f"{len(seen) - len(bodies)} of {len(seen)} {name} images show no body"
        values = {quantity: np.array([getattr(body, quantity) for body in bodies], float) for quantity in ANATOMY}
        found[name] = {quantity: (float(value.mean()), float(value.std())) for quantity, value in values.items()}
    return found


def _recovered(run: Path) -> Table:
    rows: list[Row] = [
        {"cohort": name} | {f"{quantity} {what}": pair[k] for quantity, pair in each.items() for k, what in enumerate(("mean", "sd"))}
        for name, each in recovered(run).items()
    ]
    note = (
        "As `phantom_anatomy.measure` reads them from the images: body and kidney in mm, the organ's contrast in HU, share with a lesion."
    )
    return Table(title=f"{run.name}: known anatomy found again", note=note, rows=rows)


def _utility(run: Path) -> list[Table]:
    found = json.loads((run / "utility" / "utility.json").read_text())
    return [_worth(f"{run.name}: worth for training, {task['task']}", task, found["settings"]) for task in found["tasks"]]


def _worth(title: str, task: dict, settings: dict) -> Table:
    rows: list[Row] = [_arm(task["measure"], arm["name"], arm) for arm in task["arms"]]
    rows.append(_arm(task["measure"], "real, tested on synthetic (TRTS)", task["trts"]))
    rows += [_arm(task["measure"], f"{row['of']} less {row['from']}", row) for row in task["differences"]]
    note = (
        f"{settings['nets']} nets of {settings['steps']} steps each, tested on {task['n']['holdout']['subjects']} held-out subjects that "
        "no model saw. `real` is TRTR, `synthetic` TSTR. Intervals are 95 %, over subjects and nets; differences are paired."
    )
    return Table(title=title, note=note, rows=rows)


def _arm(measure: str, name: str, found: dict) -> Row:
    low, high = found["interval"]
    return {"trained on": name, "cases": found.get("cases", "-"), measure: found["value"], "low": low, "high": high}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
