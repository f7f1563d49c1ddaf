"""The stage that asks what the cohort is worth to somebody who trains on it. Not part of ``medsynth run``: it trains dozens of small nets.

The tasks are those that the cohort has labels for: a classifier where it has a class, a segmenter where it has masks. Each is trained on
real cases (TRTR), on synthetic ones (TSTR) and on mixtures, with duplicates of real cases as control, and tested on held-out people; the
nets trained on real cases are also tested on synthetic ones (TRTS). Writes ``utility.json`` and ``figures/``.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from medsynth.cohort import Case, Cohort
from medsynth.conditions import Attribute
from medsynth.config import UtilitySettings
from medsynth.errors import MedsynthError, SettingsError
from medsynth.metrics.utility import REAL, SYNTHETIC, Arm, Doubt, Kind, Recipe, Rows, Task, arms, outcome, rows_of, told
from medsynth.rng import seed_for
from medsynth.stages import Run, figures, weights_of
from medsynth.stages.evaluate import rounded

MEASURE = {"classification": "balanced accuracy", "segmentation": "Dice coefficient"}


def work(run: Run, folder: Path) -> None:
    settings, seed = run.settings.utility, seed_for(run.settings.run.seed, "utility")
    real, synthetic = (Cohort.read(run.folder(stage) / "cohort.jsonl") for stage in ("prepare", "sample"))
    result = utility(real.split("train"), real.split("holdout"), synthetic, settings, folder, seed=seed)
    partial_file = folder / ".utility.json.partial"
    partial_file.write_text(json.dumps(result, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
    partial_file.replace(folder / "utility.json")
    for name, cohort in (("holdout", real.split("holdout")), ("synthetic", synthetic)):
        run.tracker.dataset(name, cohort.digest, len(cohort), "utility")
    run.tracker.metrics(_tracked(result), model=weights_of(run.root))
    run.tracker.table("utility", [{"task": task["task"], **arm} for task in result["tasks"] for arm in task["arms"]])
    print("\n".join(_lines(result)))


def utility(train: Cohort, holdout: Cohort, synthetic: Cohort, settings: UtilitySettings, folder: Path, *, seed: int) -> dict[str, Any]:
    """What ``utility.json`` holds; figures are written below ``folder``. Raises MedsynthError where nothing can be trained."""
    found, missing = [], []
    tried: Sequence[tuple[Kind, Any]] = [("classification", partial(_class_of, attribute=_attribute(train, settings.attribute)))]
    tried = [*tried, ("segmentation", None)]
    for kind, label in tried:
        cohorts = {"train": train, "holdout": holdout, "synthetic": synthetic}
        usable = {name: _usable(cohort, kind, label) for name, cohort in cohorts.items()}
        short = [name for name, cohort in usable.items() if len(set(cohort.subjects)) < 2]
        if short:
            what = "a class among its conditions" if kind == "classification" else "masks"
            missing.append({"name": kind, "reason": f"fewer than two subjects of {', '.join(short)} have {what}"})
        else:
            found.append(_task(kind, usable, label, settings, folder, seed_for(seed, kind)))
    if not found:
        raise MedsynthError(
            f"Nothing can be trained: {'; '.join(row['reason'] for row in missing)}. "
            "A classifier needs data.conditions with a class, a segmenter data.joint_mask=true."
        )
    return rounded({"tasks": found, "not_computed": missing, "settings": asdict(settings), "seed": seed})


def _attribute(cohort: Cohort, name: str) -> Attribute | None:
    classes = {attribute.name: attribute for attribute in cohort.header.conditions.attributes if attribute.values}
    if name and name not in classes:
        raise SettingsError(f"utility.attribute={name}: there is no class of that name. Known: {', '.join(classes) or 'none'}.")
    return classes[name] if name else next(iter(classes.values()), None)


def _class_of(case: Case, attribute: Attribute | None) -> int | None:
    value = str(case.condition.get(attribute.name)) if attribute else None
    return attribute.values.index(value) if attribute and value in attribute.values else None


def _usable(cohort: Cohort, kind: Kind, label: Any) -> Cohort:
    if kind == "segmentation":
        return cohort.where(case for case in cohort if case.mask is not None)
    return cohort.where(case for case in cohort if label(case) is not None)


def _task(kind: Kind, cohorts: Mapping[str, Cohort], label: Any, settings: UtilitySettings, folder: Path, seed: int) -> dict[str, Any]:
    """Everything about one task: all arms with several nets each, and their differences."""
    starts = np.cumsum([0, *(len(cohort) for cohort in cohorts.values())])
    rows = {name: np.arange(starts[i], starts[i + 1]) for i, name in enumerate(cohorts)}
    labels = list(label.keywords["attribute"].values) if kind == "classification" else sorted(cohorts["train"].header.labels)
    classes = len(labels) + (kind == "segmentation")
    every, subjects = arms(settings.shares, settings.mixtures), cohorts["train"].subjects
    recipe = Recipe(steps=settings.steps, batch=settings.batch)
    tests = {"holdout": rows["holdout"]}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".arrays-") as scratch:
        _write_arrays(Path(scratch), kind, cohorts.values(), label, labels)
        jobs = []
        for arm in every:
            for net in range(settings.nets):
                own = seed_for(seed, net)  # nets of one number begin alike in all arms
                chosen = rows_of(arm, rows["train"], subjects, rows["synthetic"], seed=own)
                also = {"synthetic": rows["synthetic"]} if arm.name == REAL else {}
                jobs.append((chosen, tests | also, own))
        bar = tqdm(
            _each(partial(_job, Path(scratch), kind, classes, recipe), jobs, settings.workers), total=len(jobs), desc=kind, unit="net"
        )
        results = dict(zip([(arm.name, net) for arm in every for net in range(settings.nets)], bar, strict=True))
        targets = np.load(Path(scratch) / "targets.npy")
    values = {arm.name: np.stack([results[arm.name, net]["holdout"] for net in range(settings.nets)]) for arm in every}
    strata = targets if kind == "classification" else np.zeros(len(targets), int)
    doubt = Doubt.of(cohorts["holdout"].subjects, strata[rows["holdout"]], settings.nets, draws=settings.draws, seed=seed)
    drawn = {name: doubt.drawn(each) for name, each in values.items()}
    backwards = Doubt.of(cohorts["synthetic"].subjects, strata[rows["synthetic"]], settings.nets, draws=settings.draws, seed=seed)
    trts = np.stack([results[REAL, net]["synthetic"] for net in range(settings.nets)])
    counts = {arm.name: rows_of(arm, rows["train"], subjects, rows["synthetic"], seed=seed_for(seed, 0)) for arm in every}
    result = {
        "task": kind,
        "measure": MEASURE[kind],
        "attribute": label.keywords["attribute"].name if kind == "classification" else None,
        "labels": labels,
        "n": {name: {"cases": len(cohort), "subjects": len(set(cohort.subjects))} for name, cohort in cohorts.items()},
        "arms": [
            {
                "name": arm.name,
                "share": arm.share,
                "kind": arm.kind,
                "cases": len(counts[arm.name]),
                "different_cases": len(np.unique(counts[arm.name])),
                **told(drawn[arm.name]),
                "by_net": [float(doubt.drawn(np.stack([net] * settings.nets))[0]) for net in values[arm.name]],
            }
            for arm in every
        ],
        "trts": told(backwards.drawn(trts)),
        "ratio": told(drawn[SYNTHETIC] / np.maximum(drawn[REAL], 1e-9)),
        "differences": [{"of": one, "from": other, **told(drawn[one] - drawn[other])} for one, other in _pairs(every)],
    }
    _draw(result, folder / "figures")
    return result


def _pairs(every: Sequence[Arm]) -> list[tuple[str, str]]:
    """What is compared: synthetic with real, and each mixture with its control and with the real cases in it."""
    pairs = [(SYNTHETIC, REAL)]
    for arm in every:
        if arm.share and arm.kind == "synthetic":
            pairs += [(arm.name, arm.name.removesuffix("synthetic") + "duplicates"), (arm.name, arm.name.partition(" + ")[0])]
    return pairs


def _write_arrays(folder: Path, kind: Kind, cohorts: Any, label: Any, labels: Sequence[Any]) -> None:
    """All cases one behind the other, so that worker processes map one file."""
    cases = [(cohort, case) for cohort in cohorts for case in cohort]
    shape = cases[0][1].shape
    images = np.lib.format.open_memmap(folder / "images.npy", "w+", np.float32, (len(cases), 1, *shape))
    targets = np.lib.format.open_memmap(folder / "targets.npy", "w+", np.uint8, (len(cases), *(shape if kind == "segmentation" else ())))
    for row, (cohort, case) in enumerate(cases):
        images[row] = cohort.where([case]).images()[0]
        if kind == "classification":
            targets[row] = label(case)
        else:
            mask = cohort.mask(case)
            targets[row] = sum((np.uint8(k) * (mask == value) for k, value in enumerate(labels, 1)), np.zeros(shape, np.uint8))
    images.flush()
    targets.flush()


def _job(folder: Path, kind: Kind, classes: int, recipe: Recipe, job: tuple[Rows, Mapping[str, Rows], int]) -> dict[str, np.ndarray]:
    images, targets = (np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in ("images", "targets"))
    rows, tests, seed = job
    return outcome(Task(kind=kind, images=images, targets=targets, classes=classes), rows, tests, recipe, seed=seed)


def _each(function: Any, jobs: Sequence[Any], workers: int) -> Iterator[Any]:
    """Results in order, from several processes: a net's numbers depend on its seed alone, so on no number of workers."""
    if workers < 2:
        yield from map(function, jobs)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
        yield from pool.map(function, jobs)


def _draw(task: Mapping[str, Any], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    found = {arm["name"]: arm for arm in task["arms"]}
    order = [REAL, SYNTHETIC, *(name for name in found if name not in (REAL, SYNTHETIC))]
    rows = [(name, found[name]["value"], tuple(found[name]["interval"])) for name in order]
    title = f"Trained on ..., tested on {task['n']['holdout']['subjects']} held-out subjects"
    (folder / f"{task['task']}.png").write_bytes(figures.forest(title, task["measure"], rows, tuple(found[REAL]["interval"])))
    shares = sorted({arm["share"] for arm in task["arms"] if arm["share"]})
    lines = {}
    for kind, end in (("real", ""), ("+ synthetic", " + synthetic"), ("+ duplicates", " + duplicates")):
        names = [(REAL if share == 1 else f"{100 * share:g} % real") + end for share in shares]
        lines[kind] = ([100 * share for share in shares], [found[name]["value"] for name in names])
    (folder / f"{task['task']}_curve.png").write_bytes(
        figures.curves([("Learning curve", "% of the real subjects", task["measure"], lines)])
    )


def _tracked(result: Mapping[str, Any]) -> dict[str, float]:
    """``utility/segmentation/synthetic`` and its interval, for every arm, for what is tested backwards, and for the ratio to real."""
    rows = {}
    for task in result["tasks"]:
        for name, row in (*((arm["name"], arm) for arm in task["arms"]), ("trts", task["trts"]), ("ratio", task["ratio"])):
            ends = zip(("", "/ci_lo", "/ci_hi"), (row["value"], *row["interval"]), strict=True)
            rows |= {f"utility/{task['task']}/{name}{end}": value for end, value in ends}
    return rows


def _lines(result: Mapping[str, Any]) -> list[str]:
    lines = []
    for task in result["tasks"]:
        wide = max(len(arm["name"]) for arm in task["arms"])
        lines += ["", f"{task['task']}: {task['measure']} on {task['n']['holdout']['subjects']} held-out subjects, trained on"]
        lines += [
            f"  {arm['name']:<{wide}}  {arm['value']:.3f}  ({arm['interval'][0]:.3f} to {arm['interval'][1]:.3f}; {arm['cases']} cases)"
            for arm in task["arms"]
        ]
        lines += [f"  real, tested on synthetic: {task['trts']['value']:.3f}", "differences, paired by subject:"]
        lines += [
            f"  {row['of']} less {row['from']}: {row['value']:+.3f} ({row['interval'][0]:+.3f} to {row['interval'][1]:+.3f})"
            for row in task["differences"]
        ]
    return [*lines, *(f"{row['name']}: not done, {row['reason']}" for row in result["not_computed"])]
