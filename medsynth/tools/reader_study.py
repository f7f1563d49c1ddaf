"""reader-study: can a reader tell real images from synthetic ones? A blinded pack to look at, and later the answers against the key.

What could give the truth away is taken out: names are numbers in random order, all images have one grid, one window and one number of grey
levels, their files hold nothing but pixels, and the key lies outside the pack. Real images are of held-out people, one each: a likeness to
a training image is the audit's business. The pack shows patients, so it stays inside.
"""

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader

from medsynth.audit.rates import clopper_pearson
from medsynth.cohort import Case, Cohort
from medsynth.errors import MedsynthError, SettingsError
from medsynth.rng import generator_for
from medsynth.stages import figures
from medsynth.stages.viewer import nifti

FORM = ("number", "real or synthetic", "confidence 1 to 5", "comment")
KEY = ("number", "truth", "case")


@dataclass
class Settings:
    path: str = field(default=MISSING, metadata={"help": "the folder of a run whose cohort is drawn: runs/NAME"})
    out: str = field(default=MISSING, metadata={"help": "a new folder: out/pack for the readers, out/key.csv for nobody but you"})
    cases: int = field(default=40, metadata={"help": "images, half of them real"})
    seed: int = field(default=0, metadata={"help": "decides which cases, and their order"})
    answers: list[str] = field(
        default_factory=list, metadata={"help": "filled-in forms, [a.csv,b.csv]: score them against out/key.csv instead"}
    )


def run(settings: Settings) -> None:
    """Write the pack, or score forms. Raises SettingsError for impossible numbers, MedsynthError where a file is missing or not a form."""
    out = Path(settings.out)
    if settings.answers:
        key = {row["number"]: row["truth"] for row in _rows(out / "key.csv", KEY)}
        for path in map(Path, settings.answers):
            print(score(key, {row["number"]: row["real or synthetic"] for row in _rows(path, FORM)}, path.name))
        return
    if settings.cases < 2 or settings.cases % 2:
        raise SettingsError(f"cases={settings.cases}: give an even number, half of the images are real.")
    if out.exists() and any(out.iterdir()):
        raise MedsynthError(f"{out} is not empty, and a pack in use must not be changed. Give another out=DIR.")
    chosen = choose(Path(settings.path), settings.cases // 2, settings.seed)
    write(out, chosen)
    print(f"pack for readers: {out / 'pack'} ({len(chosen)} images; open index.html)")
    print(f"key: {out / 'key.csv'}; keep it from the readers")
    print("The pack shows real patients: it must not leave the institution.")


def choose(root: Path, each: int, seed: int) -> list[tuple[str, Cohort, Case]]:
    """``each`` real and as many synthetic cases in random order, with their truth."""
    manifests = {truth: root / stage / "cohort.jsonl" for truth, stage in (("real", "prepare"), ("synthetic", "sample"))}
    for path in manifests.values():
        if not path.is_file():
            raise MedsynthError(f"There is no {path}. A reader study needs a run whose cohort is drawn (medsynth sample).")
    chosen = []
    for truth, path in manifests.items():
        cohort = Cohort.read(path)
        cohort = cohort.split("holdout") if truth == "real" else cohort
        order = generator_for(seed, "reader study", truth).permutation(len(cohort))
        people = {}
        for i in order:
            people.setdefault(cohort.cases[i].subject, cohort.cases[i])
        if len(people) < each:
            who = "held-out people" if truth == "real" else "synthetic cases"
            raise SettingsError(f"There are {len(people)} {who}: cases can be at most {2 * len(people)}.")
        chosen += [(truth, cohort, case) for case in list(people.values())[:each]]
    return [chosen[i] for i in generator_for(seed, "reader study", "order").permutation(len(chosen))]


def write(out: Path, chosen: Sequence[tuple[str, Cohort, Case]]) -> None:
    """``out/key.csv``, and ``out/pack`` with images, volumes, instructions and the form."""
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    pack = out / "pack"
    (pack / "images").mkdir(parents=True)
    numbers = [f"{n:03d}" for n in range(1, len(chosen) + 1)]
    spacing = chosen[0][1].header.spacing  # one for all: pictures of other sizes would tell
    for number, (_, cohort, case) in zip(numbers, chosen, strict=True):
        image = cohort.pixels(case)[0]
        (pack / "images" / f"{number}.png").write_bytes(figures.png(figures.picture(image, spacing)))
        if image.ndim == 3:
            (pack / "volumes").mkdir(exist_ok=True)
            grey = np.clip((image + 1) * 127.5, 0, 255).round().astype(np.uint8)
            (pack / "volumes" / f"{number}.nii.gz").write_bytes(nifti(grey, spacing))
    template = Environment(loader=PackageLoader("medsynth", "tools"), autoescape=True).get_template("reader_study.html.j2")
    (pack / "index.html").write_text(template.render(numbers=numbers, volumes=len(spacing) == 3, columns=FORM), encoding="utf-8")
    _write(pack / "form.csv", FORM, [(number, "", "", "") for number in numbers])
    _write(out / "key.csv", KEY, [(number, truth, case.id) for number, (truth, _, case) in zip(numbers, chosen, strict=True)])
    os.chmod(out / "key.csv", 0o600)


def score(key: Mapping[str, str], answers: Mapping[str, str], reader: str) -> str:
    """One reader's line: how many were right, with the exact 95 % interval, and which way the errors went."""
    given = {number: answer.strip().lower() for number, answer in answers.items() if answer.strip()}
    if wrong := sorted({answer for answer in given.values()} - {"real", "synthetic"}):
        raise MedsynthError(f"{reader}: answers are “real” or “synthetic”, not {', '.join(wrong)}.")
    if unknown := sorted(given.keys() - key.keys()):
        raise MedsynthError(f"{reader}: the key has no number {', '.join(unknown)}. Is it the form of this pack?")
    right = sum(key[number] == answer for number, answer in given.items())
    low, high = clopper_pearson(right, len(given))
    verdict = "better than guessing" if low > 0.5 else "worse than guessing" if high < 0.5 else "not told from guessing"
    taken = [sum(key[n] == truth and a != truth for n, a in given.items()) for truth in ("synthetic", "real")]
    return (
        f"{reader}: {right} of {len(given)} right ({100 * low:.0f} to {100 * high:.0f} %, {verdict}); "
        f"{taken[0]} synthetic taken for real, {taken[1]} real taken for synthetic; {len(key) - len(given)} left open"
    )


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    if not path.is_file():
        raise MedsynthError(f"There is no {path}.")
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    if not rows or set(columns[:2]) - set(rows[0]):
        raise MedsynthError(f"{path} is not a table with the columns {', '.join(columns)}.")
    return [{**row, "number": row["number"].strip().zfill(3)} for row in rows]  # a spreadsheet makes 1 of 001


def _write(path: Path, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([columns, *rows])
