"""The evaluation of anybody's cohorts, without a model of ours: real images and any number of synthetic folders go in, a leaderboard comes
out.

``medsynth evaluate real=PATH synthetic=[A,B] [train=PATH]``. The metrics are those of the stage `medsynth.stages.evaluate`. The page shows
real images: it stays inside.
"""

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from medsynth import config
from medsynth.cohort import Cohort, split_subjects
from medsynth.errors import SettingsError
from medsynth.metrics.score import Metric
from medsynth.rng import seed_for
from medsynth.stages.anyfolder import REAL, read_cohorts, refuse_overlap
from medsynth.stages.leaderboard import FLOOR, MEANS, absent, board, number, page, place, title_of
from medsynth.tools import READING, folder_for, parse

TAKEN = ("evaluate.", "metric", "data.", "run.seed")  # of the settings of stages, these mean something here
RESULT = "leaderboard.json"


@dataclass
class Settings:
    real: str = field(
        default=MISSING, metadata={"help": "real images that no generator saw: a folder of NIfTI or DICOM, .npy, .npz or a cohort.jsonl"}
    )
    synthetic: list[str] = field(default_factory=list, metadata={"help": "the cohorts to be compared, named by their folders: [A,B,...]"})
    train: str = field(
        default="", metadata={"help": "real images for scales and for the floor; none: half of the real subjects, by run.seed"}
    )
    out: str = field(default="leaderboard", metadata={"help": "folder for leaderboard.json and index.html"})
    subjects: str = field(
        default="", metadata={"help": "whose images they are: a CSV (image, subject), 'folders', a pattern; none: sub-XXX in the path"}
    )
    place: str = field(default="space", metadata={"help": "space: millimetres are trusted; box: whole images were resized"})


def perform(arguments: Sequence[str]) -> None:
    """Read the command line, evaluate, print the leaderboard."""
    own = [argument for argument in arguments if argument.partition("=")[0] in {field.name for field in fields(Settings)}]
    names = ", ".join(field.name for field in fields(Settings))
    others = [argument for argument in arguments if argument not in own]
    if strange := [argument for argument in others if not argument.startswith(TAKEN)]:
        raise SettingsError(
            f"{strange[0]}: a comparison of folders takes {names}, evaluate.*, metric, data.* and run.seed. See medsynth evaluate --help."
        )
    own = [_listed(argument) if argument.startswith("synthetic=") else argument for argument in own]
    settings = parse(Settings, own)
    given = [argument.partition("=")[0] for argument in others]
    follows = ["data.size=[1,1,1]"] if "data.dims=3" in others and "data.size" not in given else []  # from the images; a stage would ask
    cfg = config.compose([*others, *follows])
    run(settings, config.values(cfg), config.build(cfg, ["metric"])["metric"], given)


def run(settings: Settings, values: config.Settings, metrics: Mapping[str, Metric], given: Sequence[str] = ()) -> None:
    """Evaluate and tell. ``values`` are the settings of stages, of which ``given`` names those that the user chose."""
    if not settings.synthetic:
        raise SettingsError("synthetic: a value is missing; give synthetic=PATH or synthetic=[A,B].")
    if values.evaluate.likelihood:
        raise SettingsError("evaluate.likelihood: a likelihood needs the model; folders have none. Leave it out.")
    seed = seed_for(values.run.seed if values.evaluate.seed is None else values.evaluate.seed, "evaluate")
    out = folder_for(Path(settings.out).expanduser(), "a leaderboard", (RESULT, "features", "index.html"))
    real = {"real": settings.real} | ({"train": settings.train} if settings.train else {})
    with tempfile.TemporaryDirectory(dir=out, prefix=READING) as scratch:
        reading = read_cohorts(
            real | _named(settings.synthetic),
            values.data,
            Path(scratch),
            reference="real",
            given=given,
            place=settings.place,
            subjects=settings.subjects,
            masks=True,
        )
        cohorts = {name: cohort for name, cohort in reading.cohorts.items() if name not in REAL}
        train, holdout, training = _roles(reading.cohorts, seed)
        told = board(
            train, holdout, cohorts, metrics, seed=seed, cache=out / "features",
            subsamples=values.evaluate.subsamples, permutations=values.evaluate.permutations,
            encoder_steps=values.evaluate.encoder_steps, sanity=values.evaluate.sanity, weights=values.evaluate.weights,
        )  # fmt: skip
        unreadable = {name: dict(lost) for name, lost in reading.rejected.items() if lost}
        told |= {"training": training, "preprocessing": dict(reading.preprocessing), "unreadable": unreadable}
        html = page(told, train, holdout, cohorts)
    (out / RESULT).write_text(json.dumps(told, indent=1, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8")
    (out / "index.html").write_text(html, encoding="utf-8")
    print("\n".join(_lines(told)))
    print(f"\n{out / 'index.html'} (shows real images: do not pass on)")


def _listed(argument: str) -> str:
    """One path needs no brackets: ``synthetic=A`` as ``synthetic=['A']``."""
    name, _, value = argument.partition("=")
    return argument if value.startswith("[") else f"{name}=['{value.replace(chr(39), 2 * chr(39))}']"


def _roles(cohorts: Mapping[str, Cohort], seed: int) -> tuple[Cohort, Cohort, str]:
    """Training cases, held-out cases, and a sentence that says where the former come from."""
    real = cohorts["real"]
    if "train" in cohorts:
        refuse_overlap(cohorts["train"], real, "real")
        return cohorts["train"], real, "Scales and the floor come from the training images that were given."
    halves = split_subjects(real.subjects, {"train": 0.5, "holdout": 0.5}, seed)
    train, holdout = (real.where(case for case in real if halves[case.subject] == name) for name in ("train", "holdout"))
    return train, holdout, "No training images were given: half of the real subjects, drawn by the seed, set the scales and the floor."


def _named(paths: Sequence[str]) -> dict[str, str]:
    """Paths by the names of their folders or files, a number behind those that stand twice."""
    named: dict[str, str] = {}
    for path in paths:
        root = Path(path).expanduser().resolve()
        root = root.parent if root.name in ("cohort.jsonl", "images", "volumes", "nifti", "dicom") else root
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", re.sub(r"\.(npy|npz|nii|nii\.gz)$", "", root.name)).strip("-") or "cohort"
        taken, number = {*named, *REAL}, 2
        if name in taken:
            while f"{name}-{number}" in taken:
                number += 1
            name = f"{name}-{number}"
        named[name] = path
    return named


def _lines(told: Mapping[str, Any]) -> list[str]:
    """The leaderboard for a terminal: what was read, then a block a metric, the floor first."""
    people = "subjects" if told["unit"] == "subject" else "images"
    wide = max(len(name) for name in (*told["order"], FLOOR))
    lines = [f"{name:<{wide}}  {n['cases']} images of {n['subjects']} {people}" for name, n in told["n"].items()]
    lines += [
        f"{name:<{wide}}  unreadable: {', '.join(f'{n} {code}' for code, n in lost.items())}" for name, lost in told["unreadable"].items()
    ]
    size, spacing = (" x ".join(f"{n:g}" for n in told["preprocessing"][part]) for part in ("size", "spacing"))
    lines += [f"{'grid':<{wide}}  {size} at {spacing} mm, {told['preprocessing']['intensity']}", told["training"]]
    lines += [f"{told['subjects_compared']} {people} of each cohort are compared, one image each."]
    if told["unit"] == "image":
        lines.append("Every interval is about images, not people: nothing tells whose they are (subjects=).")
    for row in (row for row in told["metrics"] if row["floor"]["value"] is not None):
        cohorts = {each["cohort"]: each for each in row["cohorts"]}
        lines += ["", f"{title_of(row)}: {MEANS[row['best']]}", _line("", FLOOR, row["floor"], wide)]
        lines += [_line(place(cohorts[name]["rank"]), name, cohorts[name], wide) for name in told["order"]]
    lines += ["", *(f"{names}: not computed: {reason}" for reason, names in absent(told).items())]
    return lines


def _line(rank: str, name: str, row: Mapping[str, Any], wide: int) -> str:
    if row["value"] is None:
        return f"  {rank:<4}{name:<{wide}}  {row['reason']}"
    low, high = row["interval"]
    return f"  {rank:<4}{name:<{wide}}  {number(row['value']):>9}   {number(low)} to {number(high)}"
