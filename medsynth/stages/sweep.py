"""How good the images would be after less training, in other numbers of sampling steps, or under other guidance. Not part of ``medsynth
run``: it needs `train` alone, so it can choose ``sampling.steps`` before a cohort is drawn.

Every setting draws the same few cases, from the same noise and conditions, so that two settings differ by the setting alone. They are
scored by the kernel distance on random convolutions from real cases of the validation split, or, where that has too few subjects, of half
of the training subjects; the (other) training subjects tell what real cases score. The holdout takes no part: a setting that was chosen
on it would be flattered by it for ever. No image is written, since none was audited: ``points/`` holds features, for an interrupted sweep.

Writes ``sweep.json`` and ``figures/``.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from tqdm import tqdm

from medsynth.cohort import Cohort, sha256_of
from medsynth.errors import MedsynthError
from medsynth.features import extract, identity
from medsynth.metrics.intervals import score, spread
from medsynth.metrics.kernel import KernelDistance
from medsynth.metrics.score import Sample
from medsynth.rng import seed_for
from medsynth.stages import Run, figures, weights_of
from medsynth.stages.evaluate import EXTRACTORS, MOST, cached, rounded
from medsynth.stages.sample import Job, each_batch, job_of, name_of, plan
from medsynth.training.checkpoint import step_of

SPACE = "random_convolution"
METRIC = KernelDistance(features=SPACE)
LABELS = {"training": "training steps", "steps": "sampling steps", "guidance": "guidance scale"}  # the curves, and what they run over


@dataclass(frozen=True, kw_only=True)
class Point:
    """A setting of the three."""

    denoiser: Path
    steps: int
    scale: float


def work(run: Run, folder: Path) -> None:
    settings, seed = run.settings.sweep, seed_for(run.settings.run.seed, "sweep")
    real = Cohort.read(run.folder("prepare") / "cohort.jsonl")
    split, train, reference = _reals(real, seed)
    plans = plan(real, cases=settings.cases, per_condition={}, seed=seed)
    job = job_of(run, real.header, plans, folder)
    own = Point(denoiser=job.denoiser, steps=job.steps, scale=job.guidance.scale)
    curves, missing = _curves(own, run, real)
    (folder / "points").mkdir(exist_ok=True)
    told: dict[Point, dict[str, Any]] = {}
    for point in tqdm({point: None for curve in curves.values() for point in curve.values()}, desc="sweep", unit="setting"):
        features, seconds = _drawn(job, point, folder / "points")
        told[point] = {"seconds": seconds, **_scored(train, reference, features, settings.subsamples, seed)}
    result = {
        "metric": "kid",
        "features": identity(EXTRACTORS[SPACE]),
        "weights": weights_of(run.root),
        "reference": {"split": split, "subjects": reference.n_subjects},
        "cases": settings.cases,
        "curves": [
            {"name": name, "points": [{"at": at, "own": point == own, **told[point]} for at, point in curve.items()]}
            for name, curve in curves.items()
        ],
        "not_computed": missing,
        "seed": seed,
    }
    result = rounded(result)
    (folder / "figures").mkdir(exist_ok=True)
    (folder / "figures" / "quality.png").write_bytes(_figure(result))
    partial = folder / ".sweep.json.partial"
    partial.write_text(json.dumps(result, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(folder / "sweep.json")
    rows = [{"curve": curve["name"], **row} for curve in result["curves"] for row in curve["points"]]
    for row in rows:
        run.tracker.metrics({f"sweep/{row['curve']}": row["value"]}, round(row["at"]))
    run.tracker.table("sweep", rows)
    print("\n".join(_lines(result)))


def _reals(real: Cohort, seed: int) -> tuple[str, Sample, Sample]:
    """What the reference is called, the training subjects that set scales and floor, and the reference."""
    train, validation = real.split("train"), real.split("validation")
    if len(set(validation.subjects)) >= METRIC.least:
        split = "validation"
    else:
        split, people = "half of train", sorted(set(train.subjects))
        if len(people) < 2 * METRIC.least:
            raise MedsynthError(
                f"sweep: the kernel distance needs {METRIC.least} subjects on each side: {METRIC.least} for validation (there are "
                f"{len(set(validation.subjects))}) or {2 * METRIC.least} for training (there are {len(people)}). Read more, or raise "
                "data.splits.validation. The holdout is not used for choosing."
            )
        half = {people[i] for i in np.random.default_rng(seed).permutation(len(people))[::2]}
        validation = train.where(case for case in train if case.subject in half)
        train = train.where(case for case in train if case.subject not in half)
    few = [cohort.where(cohort.cases[i] for i in spread(cohort.subjects, MOST, seed=seed)) for cohort in (train, validation)]
    train, validation = (_sample(extract(EXTRACTORS[SPACE], cohort), cohort.subjects) for cohort in few)
    return split, train, validation


def _scored(train: Sample, reference: Sample, features: np.ndarray, subsamples: int, seed: int) -> dict[str, Any]:
    """The score and what real cases score, both None where an image was not finite."""
    names = ("value", "interval", "floor", "floor_interval")
    if not np.isfinite(features).all():
        return dict.fromkeys(names)
    made = _sample(features, [str(i) for i in range(len(features))])
    found = score("kid", METRIC, train, reference, made, seed=seed, subsamples=subsamples, permutations=0)
    return dict(zip(names, (found.value, found.interval, found.anchor, found.anchor_interval), strict=True))


def _sample(features: np.ndarray, subjects: Sequence[str]) -> Sample:
    return Sample(images=np.zeros((len(features), 0)), features={SPACE: features}, subjects=subjects, spacing=())


def _curves(own: Point, run: Run, real: Cohort) -> tuple[dict[str, dict[float, Point]], list[dict[str, str]]]:
    """The points of each curve by what it runs over, the run's own among them; and the curves that there are not, with the reason."""
    settings, trained = run.settings.sweep, OmegaConf.load(own.denoiser / "denoiser.yaml").description.steps
    snapshots = {step_of(path): path for path in sorted((run.folder("train") / "snapshots").glob("step-*"))}
    curves = {
        "training": {step: replace(own, denoiser=path) for step, path in snapshots.items() if step < trained} | {trained: own},
        "steps": {steps: replace(own, steps=steps) for steps in sorted({*settings.steps, own.steps})},
        "guidance": {scale: replace(own, scale=scale) for scale in sorted({*settings.scales, own.scale})},
    }
    missing = []
    if len(curves["training"]) < 2:
        missing.append({"name": "quality against training steps", "reason": "training kept no weights on the way (fit.validate_every)"})
        del curves["training"]
    if not real.header.conditions.size or own.scale == 1:
        reason = "guidance=none" if real.header.conditions.size else "the model has no conditions"
        missing.append({"name": "quality against guidance", "reason": reason})
        del curves["guidance"]
    return curves, missing


def _drawn(job: Job, point: Point, folder: Path) -> tuple[np.ndarray, float]:
    """The features of what a point draws, and the seconds that a case took on this machine."""
    job = replace(job, denoiser=point.denoiser, steps=point.steps, guidance=replace(job.guidance, scale=point.scale))
    made_from = [
        identity(EXTRACTORS[SPACE]), sha256_of(job.denoiser / "weights.safetensors"), name_of(job.sampler), repr(job.schedule),
        *(f"{each.id} {each.seed} {sorted(each.condition.items())}" for each in job.plans),
    ]  # fmt: skip

    def drawn() -> dict[str, np.ndarray]:
        start = time.perf_counter()
        images = np.concatenate(each_batch(job, lambda _, images: images[:, :1]))
        seconds = (time.perf_counter() - start) / len(images)
        return {"features": EXTRACTORS[SPACE](np.clip(images, -1, 1)), "seconds": np.array(seconds)}

    found = cached(folder / f"{job.denoiser.name}-{point.steps}-{point.scale:g}.npz", made_from, drawn)
    return found["features"], float(found["seconds"])


def _figure(result: Mapping[str, Any]) -> bytes:
    panels = []
    for curve in result["curves"]:
        rows = [(f"{row['at']:g}", row["value"], row["interval"], row["own"]) for row in curve["points"] if row["value"] is not None]
        floor = next((row["floor_interval"] for row in curve["points"] if row["value"] is not None), None)
        panels.append((f"Against {LABELS[curve['name']]}", LABELS[curve["name"]], "kernel distance", rows, floor))
    return figures.settings(panels)


def _lines(result: Mapping[str, Any]) -> list[str]:
    lines = []
    for curve in result["curves"]:
        lines += ["", f"kernel distance (lower is better) against {LABELS[curve['name']]}, {result['cases']} cases each:"]
        for row in curve["points"]:
            low, high = row["interval"] or (None, None)
            value = "not finite" if row["value"] is None else f"{row['value']:.3g}   {low:.3g} to {high:.3g}"
            lines.append(f"  {row['at']:<8g}{value:<34}{row['seconds']:.2g} s a case{'   this run' if row['own'] else ''}")
    floor = next((row for curve in result["curves"] for row in curve["points"] if row["value"] is not None), None)
    if floor:
        lines += ["", f"real against real: {floor['floor']:.3g}   {floor['floor_interval'][0]:.3g} to {floor['floor_interval'][1]:.3g}"]
    return [*lines, *(f"{row['name']}: not computed, {row['reason']}" for row in result["not_computed"])]
