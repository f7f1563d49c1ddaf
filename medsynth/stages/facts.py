"""What a run has left, and what its report says of it: numbers and words, never a pixel.

`read` takes the stages' files once; `facts_of` turns them into one JSON-serialisable mapping, which is ``report.json`` and fills the page.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from medsynth import __version__
from medsynth.audit import ledger
from medsynth.audit.finding import tested
from medsynth.audit.level import LEVELS
from medsynth.audit.together import share_of, together
from medsynth.cohort import SPLITS, Cohort, sha256_of
from medsynth.conditions import Attribute
from medsynth.errors import MedsynthError
from medsynth.metrics.defects import DEFECTS
from medsynth.metrics.embedding import squared_distances, standardised
from medsynth.metrics.score import NotApplicable, Sample, clearly_worse
from medsynth.receipt import RECEIPT, Receipt
from medsynth.stages.rejection import VERDICT
from medsynth.tracking import PRIVATE

STAGES = ("prepare", "train", "sample", "audit", "evaluate")
ASIDE = ("utility", "sweep")
REQUIRED = (
    ("prepare", "cohort.jsonl"),
    ("sample", "cohort.jsonl"),
    ("audit", "findings.json"),
    ("audit", "looks.json"),
    ("evaluate", "metrics.json"),
)
USE = {
    "train": "the model learned from them",
    "validation": "watched during training",
    "holdout": "control of the audit, reference of the quality",
}
SHOWN = ("pairs", "recall", "histogram", "short", "copies")  # details that the page tells in other ways than by their numbers
SHOWN_AS = ("fail", "inconclusive", "pass", "untested")  # what forbids a release first
EXTREMES = {2: 12, 3: 4}  # worst and best cases shown, by dimensions
LIBRARIES = ("torch", "monai", "lightning", "numpy", "scipy", "scikit-learn", "pydicom", "nibabel")


@dataclass(frozen=True, kw_only=True)
class Story:
    """What the run has left, read once. ``plots`` are the evaluation's own figures: sums over cases."""

    root: Path
    real: Cohort
    synthetic: Cohort
    findings: Mapping[str, Any]
    looks: Sequence[Mapping[str, Any]]
    released: Sequence[Mapping[str, Any]]  # earlier, of the same training set
    metrics: Mapping[str, Any]
    receipts: Mapping[str, Receipt]
    rejected: Sequence[Mapping[str, Any]] = ()
    prepared: Mapping[str, Any] = field(default_factory=dict)  # the counts of `prepare`
    history: Sequence[Mapping[str, Any]] = ()
    model: Mapping[str, Any] = field(default_factory=dict)
    previews: Sequence[Path] = ()
    plots: Sequence[Path] = ()
    aside: Mapping[str, Path] = field(default_factory=dict)  # figures of the stages that are done when asked for: utility_segmentation
    way: Mapping[str, np.ndarray] = field(default_factory=dict)  # what a sampler saw, see medsynth.stages.sample
    unfiltered: Mapping[str, Any] | None = None  # the findings on the cohort before its copies were rejected

    @property
    def verdict(self) -> str:
        return self.findings["verdict"]

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All stages' settings, less those that may name a place on disk."""
        found = {name: value for receipt in self.receipts.values() for name, value in receipt.settings.items()}
        return {name: value for name, value in found.items() if not name.startswith(PRIVATE) and not _is_path(value)}


def read(root: Path) -> Story:
    """Read what the stages left in a run folder. An unfinished stage, or a result that was changed since, is an error that names it."""
    receipts = {stage: receipt for stage in STAGES if (receipt := Receipt.read(root / stage / RECEIPT))}
    for stage, name in REQUIRED:
        path = root / stage / name
        if stage not in receipts or not path.is_file():
            raise MedsynthError(f"The report needs {path}. Run 'medsynth {stage}' first (or 'medsynth run' for all stages).")
        digest = sha256_of(path)
        if receipts[stage].outputs.get(name, digest) != digest:
            raise MedsynthError(
                f"{path} was changed after '{stage}' had finished. Delete the folder {path.parent} and run 'medsynth {stage}' again."
            )
    denoiser = root / "train" / "denoiser" / "denoiser.yaml"
    summary = root / "prepare" / "summary.json"
    findings = json.loads((root / "audit" / "findings.json").read_text(encoding="utf-8"))
    return Story(
        root=root,
        real=Cohort.read(root / "prepare" / "cohort.jsonl"),
        synthetic=Cohort.read(root / "sample" / "cohort.jsonl"),
        findings=findings,
        looks=json.loads((root / "audit" / "looks.json").read_text(encoding="utf-8")),
        released=ledger.releases(root.parent / ledger.LEDGER, findings["train"]),
        metrics=json.loads((root / "evaluate" / "metrics.json").read_text(encoding="utf-8")),
        receipts=receipts,
        unfiltered=_unfiltered(root / "sample"),
        rejected=_rows(root / "prepare" / "rejected.jsonl"),
        prepared=json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else {},
        history=_rows(root / "train" / "history.jsonl"),
        model=OmegaConf.to_container(OmegaConf.load(denoiser)) if denoiser.is_file() else {},
        previews=sorted((root / "train" / "previews").glob("*.png")),
        plots=sorted((root / "evaluate" / "figures").glob("*.png")),
        aside={f"{stage}_{path.stem}": path for stage in ASIDE for path in sorted((root / stage / "figures").glob("*.png"))},
        way=_arrays(root / "sample" / "trajectory.npz"),
    )


def facts_of(story: Story, seed: int) -> dict[str, Any]:
    """Everything the page says in words and numbers."""
    header, level, verdict = story.real.header, story.findings["level"], story.verdict
    findings = [_finding(row) for row in story.findings["findings"]]
    scores = [_score(row) for row in story.metrics["scores"]]
    extremes = _extremes(story)
    required = [finding["verdict"] for finding in findings if finding["required"]]
    compared = [score["as_good"] for score in scores if score["as_good"] is not None]
    # The demo level shows that the machinery runs: nobody may mistake the page for protection.
    weak = level["name"] == "demo"
    return {
        "run": story.root.name,
        "seed": seed,
        "verdict": verdict,
        "tone": "inconclusive" if verdict == "pass" and weak else verdict,
        "level": level,
        "weak": weak,
        "strictest": "" if level["name"] == "strict" else LEVELS["strict"].claim,
        "unit": header.unit,
        "dims": header.dims,
        "shape": list(header.shape),
        "spacing": [f"{s:.3g}" for s in header.spacing[: header.dims]],
        "modality": header.modality,
        "labels": list(header.labels) if header.joint_mask else [],
        "window": [f"{v:.4g}" for v in header.scale],
        "counts": {"made": len(story.synthetic), "asked": story.settings.get("sampling.cases")}
        | {name: _count(story.real, name) for name in SPLITS},
        "tally": {v: required.count(v) for v in ("pass", "fail", "inconclusive")} | {"total": len(required)},
        "quality": {"inside": sum(compared), "total": len(compared)},
        "findings": findings,
        "filtered": _filtered(story),
        "looks": [
            {"digest": look["synthetic"][:12], **{name: look[name] for name in ("level", "checks", "verdict")}} for look in story.looks
        ],
        "released": _released(story),
        "scores": scores,
        "groups": [_score(row) for row in story.metrics.get("groups", [])],
        "baselines": _baselines(story.metrics.get("baselines", []), scores),
        "sanity": _sanity(story.metrics.get("sanity", [])),
        "extremes": extremes,
        "steps": _steps(story.way),
        "utility": _utility(story.root),
        "sweep": _sweep(story),
        "not_computed": _not_computed(story, extremes),
        "conditions": _conditions(story),
        # its description repeats the cohort's header, with the training set's extreme values
        "model": _flat({name: part for name, part in story.model.items() if name != "description"}),
        "training": _training(story),
        "privacy": story.model.get("description", {}).get("privacy"),
        "memorization": _memorization(story),
        "same": {
            "people": story.prepared.get("merged_subjects", 0),
            "moved": story.prepared.get("moved_cases", 0),
            "cases": story.model.get("description", {}).get("duplicates", 0),
        },
        "source": [[name, value] for name, value in header.source.items() if value],
        "splits": [{"name": name, "use": USE[name], **_count(story.real, name)} for name in SPLITS],
        "rejected": _rejected(story.rejected),
        "digest": story.synthetic.digest,
        "findings_hash": sha256_of(story.root / "audit" / "findings.json"),
        "receipts": [{"stage": s, "fingerprint": r.fingerprint, "outputs": sorted(r.outputs.items())} for s, r in story.receipts.items()],
        "settings": _settings(story),
        "versions": [["medsynth", __version__], *([name, found] for name in LIBRARIES if (found := _version(name)))],
    }


def _unfiltered(folder: Path) -> dict[str, Any] | None:
    """The verdict on the cohort before its copies were rejected. The manifest says whether there is one, and its hash."""
    told = Cohort.read(folder / "cohort.jsonl").header.made_with.get("unfiltered")
    if told is None:
        return None
    path = folder / VERDICT
    if not path.is_file() or sha256_of(path) != told:
        raise MedsynthError(f"{path} is not the verdict that the cohort names. Delete the folder {folder} and run 'medsynth sample' again.")
    return json.loads(path.read_text(encoding="utf-8"))


def _filtered(story: Story) -> dict[str, Any] | None:
    """What was rejected, and what was found before."""
    if story.unfiltered is None:
        return None
    rows = [
        {name: finding[name] for name in ("check", "verdict", "why", "required")} | {"shown": _shown(finding)}
        for finding in story.unfiltered["findings"]
    ]
    return {"rejected": len(story.synthetic.header.rejected), "verdict": story.unfiltered["verdict"], "findings": rows}


def _released(story: Story) -> dict[str, Any]:
    """With this cohort, if it is released: all that will have left of this training set."""
    shares = [share for share in story.released if share["synthetic"] != story.synthetic.digest]
    shares.append(share_of(story.synthetic.digest, len(story.synthetic), story.findings["findings"]))
    return together(shares, told=len(story.looks), taken=len(story.looks))


def _finding(row: Mapping[str, Any]) -> dict[str, Any]:
    numbers = [n for n in (row["value"], row["control"], row["limit"], *(row["interval"] or ())) if n is not None]
    details = row.get("details") or {}
    return {
        **row,
        "required": row.get("required", True),
        "shown": _shown(row),
        "urgency": (not row.get("required", True), SHOWN_AS.index(_shown(row))),
        "counts": bool(numbers) and all(isinstance(n, int) for n in numbers),  # a count is written as an integer, a rate as a float
        "strip": strip(row["value"], row["interval"], control=row["control"], limit=row["limit"]),
        "power": [{"kind": kind, **planted} for kind, planted in (details.get("recall") or {}).items()],
        "details": details,
        "numbers": [[name, value] for name, value in _flat(details) if name.partition(".")[0] not in SHOWN],
    }


def _shown(row: Mapping[str, Any]) -> str:
    """The verdict, or "untested" for a check that had nothing to look at and decides nothing."""
    return row["verdict"] if tested(row) else SHOWN_AS[-1]


def _score(row: Mapping[str, Any]) -> dict[str, Any]:
    as_good = _as_good(row) if row["status"] == "ok" else None
    anchor_low = row["anchor_interval"][0] if row["anchor_interval"] else row["anchor"]
    # An unbiased distance may be zero or less between real and real: a ratio to that says nothing.
    divisible = row["best"] != "anchor" and row["value"] is not None and row["anchor"] is not None and anchor_low > 0
    reading = {
        True: "no clear difference from real against real",
        False: "clearly worse than real against real",
        None: row.get("reason", ""),
    }
    return {
        **row,
        "as_good": as_good,
        "reading": reading[as_good],
        "ratio": row["value"] / row["anchor"] if divisible else None,
        "strip": strip(row["value"], row["interval"], control=row["anchor"], control_interval=row["anchor_interval"]),
    }


def _as_good(row: Mapping[str, Any]) -> bool | None:
    """Whether the score is not clearly worse than real against real; None: there is nothing to compare with."""
    value, anchor = row["value"], row["anchor"]
    if value is None or anchor is None:
        return None
    return not clearly_worse(row["best"], value, row["interval"] or (value,) * 2, anchor, row["anchor_interval"] or (anchor,) * 2, row["p"])


def strip(
    value: float | None,
    interval: Sequence[float] | None,
    *,
    control: float | None = None,
    control_interval: Sequence[float] | None = None,
    limit: float | None = None,
) -> dict[str, Any] | None:
    """Places of these numbers on a bar of 200 units that spans all of them and zero; None where there is nothing to compare."""
    numbers = [n for n in (value, control, limit, *(interval or ()), *(control_interval or ())) if n is not None and math.isfinite(n)]
    low, high = min((0, *numbers)), max((0, *numbers))
    if value is None or len(numbers) < 2 or high == low:
        return None

    def place(n: float | None) -> float | None:
        return None if n is None else round(4 + 192 * (min(max(n, low), high) - low) / (high - low), 2)

    return {
        "value": place(value),
        "interval": [place(n) for n in interval] if interval else None,
        "control": place(control),
        "control_interval": [place(n) for n in control_interval] if control_interval else None,
        "limit": place(limit),
    }


def _baselines(rows: Sequence[Mapping[str, Any]], scores: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """One row a score, one column a stand-in."""
    names = list(dict.fromkeys(row["baseline"] for row in rows))
    cells = {(row["baseline"], row["name"], row.get("features", "")): row["value"] for row in rows}
    table = [
        {
            "name": score["name"],
            "features": score["features"],
            "value": score["value"],
            "cells": [cells.get((name, score["name"], score["features"])) for name in names],
        }
        for score in scores
        if any((name, score["name"], score["features"]) in cells for name in names)
    ]
    return {"names": names, "rows": table} if table else None


def _sanity(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """One row a score, one column a defect that was injected; the cells say whether the score sees it."""
    defects = list(dict.fromkeys(row["defect"] for row in rows))
    sees = {(row["name"], row["features"], row["defect"]): row["sees"] for row in rows}
    scores = list(dict.fromkeys((row["name"], row["features"]) for row in rows))
    table = [{"name": name, "features": space, "cells": [sees.get((name, space, d)) for d in defects]} for name, space in scores]
    plain = {defect.name: defect.plain for defect in DEFECTS if defect.name in defects}
    seen = {d for (_, _, d), verdict in sees.items() if verdict}
    tested = [d for d in defects if any(verdict is not None for (_, _, name), verdict in sees.items() if name == d)]
    unseen = [d for d in tested if d not in seen]
    return {"defects": defects, "rows": table, "plain": plain, "unseen": unseen} if table else None


def _extremes(story: Story) -> dict[str, Any] | None:
    """The synthetic cases farthest from and nearest to a real one, by the distance to their nearest held-out case in the evaluation's first
    feature space: to people that the model has not seen, so that a copy is no best case. ``usual`` is a training case's median distance.
    """
    kept = _arrays(story.root / "evaluate" / "features.npz")
    spaces = sorted({name.partition("/")[0] for name in kept if "/" in name} - {"cases"})
    if not spaces or "cases/synthetic" not in kept or not len(kept["cases/holdout"]) or not len(kept["cases/train"]):
        return None
    samples = {
        cohort: Sample(
            images=np.zeros((len(kept[f"cases/{cohort}"]), 0)), features={"": values}, subjects=kept[f"cases/{cohort}"], spacing=()
        )
        for cohort in ("train", "holdout", "synthetic")
        for values in [kept[f"{spaces[0]}/{cohort}"]]
    }
    try:
        train, pool, _ = standardised(samples["train"], [samples["holdout"], samples["synthetic"]], "")
    except NotApplicable:
        return None
    holdout, synthetic = np.split(pool, [len(samples["holdout"])])
    usual = float(np.median(_nearest(train, holdout)))
    distance = _nearest(synthetic, holdout) / max(usual, 1e-12)
    order = np.argsort(distance, kind="stable")
    count = min(EXTREMES[story.real.header.dims], len(order) // 2)

    def rows(chosen: np.ndarray) -> list[dict[str, Any]]:
        return [{"case": str(kept["cases/synthetic"][i]), "distance": float(f"{distance[i]:.4g}")} for i in chosen]

    return {"features": spaces[0], "worst": rows(order[::-1][:count]), "best": rows(order[:count])}


def _nearest(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Each row's distance to its nearest of ``y``."""
    return np.sqrt(squared_distances(x, y).min(axis=1))


def _steps(way: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Numbers of sampling steps, and by how much of the window the images differ from those of twice the steps that were taken."""
    return [{"steps": int(n), "error": float(e) / 2} for n, e in zip(way["steps"], way["errors"], strict=True)] if way else []


def _utility(root: Path) -> list[dict[str, Any]]:
    """What nets that were trained on the cohort can do, if somebody asked (``medsynth utility``)."""
    path = root / "utility" / "utility.json"
    return json.loads(path.read_text(encoding="utf-8"))["tasks"] if path.is_file() else []


def _sweep(story: Story) -> dict[str, Any] | None:
    """What other settings would give (``medsynth sweep``), if it was measured on the weights of this run."""
    path = story.root / "sweep" / "sweep.json"
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    return found if found and found["weights"] == story.synthetic.header.made_with.get("weights") else None


def _not_computed(story: Story, extremes: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """Everything that this page could show and does not, with the reason."""
    rows = [row if isinstance(row, Mapping) else {"name": str(row), "reason": ""} for row in story.metrics.get("not_computed", [])]
    rows += [
        {"name": f"{score['name']}{' on ' + score['features'] if score['features'] else ''}", "reason": score["reason"]}
        for score in story.metrics["scores"]
        if score["status"] == "absent"
    ]
    sweep = _sweep(story)
    steps = (
        "the sampler draws fresh noise at every step, so other steps give other images"
        if story.way
        else "the sampling kept no record of it"
    )
    for name, there, reason in (
        ("worst and best cases", extremes, "the evaluation kept no features of single cases, or nobody was held out"),
        ("what each score can see", story.metrics.get("sanity"), "the evaluation injected no defects into held-out images"),
        (
            "utility for another model",
            (story.root / "utility" / "utility.json").is_file(),
            "no classifier or segmenter was trained on the cohort",
        ),
        ("the sampler's way", len(story.way), "the sampling kept no record of it"),
        ("images against sampling steps", _steps(story.way), steps),
        (
            "quality against training steps, sampling steps and guidance",
            sweep,
            "no cases were drawn in other settings (medsynth sweep), or with other weights; section 7 has the loss at every step",
        ),
    ):
        if not there and name not in {row["name"] for row in rows}:
            rows.append({"name": name, "reason": reason})
    return rows + (sweep["not_computed"] if sweep else [])


def _conditions(story: Story) -> list[dict[str, Any]]:
    """How often each class occurs, or the quarter points of a continuous attribute, in training and in the synthetic cohort."""
    tables = []
    for attribute in story.real.header.conditions.attributes:
        train = story.real.split("train")
        real = [case.condition.get(attribute.name) for case in train]
        synthetic = [case.condition.get(attribute.name) for case in story.synthetic]
        if attribute.values:
            counted = Counter(map(str, real)), Counter(map(str, synthetic))
            people = {
                value: {case.subject for case in train if str(case.condition.get(attribute.name)) == value} for value in attribute.values
            }
            rows = [
                {"value": value, "real": counted[0][value], "subjects": len(people[value]), "synthetic": counted[1][value]}
                for value in attribute.values
            ]
        else:
            edges = [attribute.low + (attribute.high - attribute.low) * k / 4 for k in range(5)]
            people = {(case.subject, quarter) for case in train for quarter in _quarters([case.condition.get(attribute.name)], attribute)}
            quarters = [Counter(_quarters(values, attribute)) for values in (real, synthetic)]
            rows = [
                {
                    "value": f"{low:.4g} to {high:.4g}",
                    "real": quarters[0][k],
                    "subjects": sum(quarter == k for _, quarter in people),
                    "synthetic": quarters[1][k],
                }
                for k, (low, high) in enumerate(pairwise(edges))
            ]
        tables.append({"name": attribute.name, "rows": rows})
    return tables


def _quarters(values: Iterable[Any], attribute: Attribute) -> list[int]:
    """In which quarter of the attribute's range each value lies, of those that lie in it; the upper end belongs to the last."""
    low, high = attribute.low, attribute.high
    inside = (float(value) for value in values if value is not None and low <= float(value) <= high)
    return [min(3, int(4 * (value - low) / ((high - low) or 1))) for value in inside]


def _training(story: Story) -> dict[str, Any] | None:
    if not story.history:
        return None
    speeds = [row["samples_per_second"] for row in story.history if row.get("samples_per_second")]
    return {"steps": max(row["step"] for row in story.history), "speed": median(speeds) if speeds else None}


def _memorization(story: Story) -> dict[str, Any] | None:
    """What training cases were spared of the loss at the last validation, and where training stopped for it."""
    watched = [row["memorization"] for row in story.history if row.get("memorization")]
    return {**watched[-1], "stop": story.model.get("description", {}).get("memorization")} if watched else None


def _rejected(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"code": code, "count": count} for code, count in Counter(row["code"] for row in rows).most_common()]


def _settings(story: Story) -> list[dict[str, Any]]:
    stages: dict[tuple[str, str], list[str]] = {}
    for stage, receipt in story.receipts.items():
        for name, value in receipt.settings.items():
            if name in story.settings:
                stages.setdefault((name, json.dumps(value, default=list)), []).append(stage)
    return [{"name": name, "value": value, "stages": used} for (name, value), used in sorted(stages.items())]


def _count(cohort: Cohort, split: str) -> dict[str, int]:
    part = cohort.split(split)
    return {"cases": len(part), "subjects": len(set(part.subjects))}


def _flat(tree: Any, prefix: str = "") -> list[list[str]]:
    """Names and values of a nested mapping, as text; long lists are cut."""
    if isinstance(tree, Mapping):
        return [row for name, value in tree.items() for row in _flat(value, f"{prefix}.{name}" if prefix else str(name))]
    text = f"{tree:.6g}" if isinstance(tree, float) else json.dumps(tree) if isinstance(tree, list) else str(tree)
    return [[prefix, text if len(text) <= 300 else f"{text[:300]} …"]]


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and (value.startswith(("/", "~", "\\")) or value[1:3] in (":\\", ":/"))


def _rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()] if path.is_file() else []


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as kept:
        return {name: kept[name] for name in kept.files}


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None
