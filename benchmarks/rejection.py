"""``python -m benchmarks.rejection [--tiny]``: are a model's own copies found, and gone after rejection? The judge is another search.

Small denoisers are trained on slices of so many of the phantom hospital's people, and cohorts are drawn from them. A *true copy* is an
image that a plain full search calls one: its correlation with a training image, in every flip, quarter turn and shift by up to two voxels,
is beyond that of every one of the people whom no model saw. The judge shares no code with the audit. Beside its count stand what the
audit's search names, what is left once copies are drawn anew (`medsynth.stages.rejection`), and the kernel distance before and after.

Few people and no augmentation make a model overfit on purpose; the last row is a well-fitted one. ``--tiny`` writes nothing.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np

from benchmarks.small_model import drawn, kid, slices, trained
from benchmarks.table import Row, Table, alone
from medsynth.audit.memorization import Memorization
from medsynth.cohort import Case, Cohort
from medsynth.config import AuditSettings, PathSettings, Settings
from medsynth.diffusion.denoiser import Denoiser
from medsynth.metrics.score import Score
from medsynth.rng import seed_for
from medsynth.stages import Run, rejection
from medsynth.training.allocator import keep_freed_memory
from tests.make_evidence import cohort_of
from tests.make_run import NoTracker

REACH = 2  # voxels


def measure(tiny: bool) -> list[Table]:
    if tiny:
        return tables(size=16, few=(10,), many=20, unseen=60, draws=30, steps=4, level="demo")
    return tables(size=16, few=(16,), many=1000, unseen=240, draws=200, steps=2500, level="demo")


def tables(*, size: int, few: Sequence[int], many: int, unseen: int, draws: int, steps: int, level: str) -> list[Table]:
    keep_freed_memory()
    others, rows = slices(range(10**6, 10**6 + unseen), size), []
    for people in (*few, many):
        members = slices(range(people), size)
        flips = [0] if people == many else []
        denoiser = trained(members, steps=steps, batch=16, flips=flips, overrides=["optimizer.lr=2.0e-3"])
        rows.append({"trained on": f"{people} people" + ", augmented" * bool(flips)} | _row(denoiser, members, others, draws, level))
        print(rows[-1], file=sys.stderr, flush=True)
    note = (
        f"Axial slices of {size}x{size}, a person each; {steps} steps of batch 16. {draws} images drawn, {unseen} people whom no model "
        f"saw; audited at level {level}. True copies are the judge's, “found” the share of them that the audit's search names. Left: after "
        f"rejection, of the images that could be kept. KID on random-convolution features with its 95 % interval."
    )
    return [Table(title="Copies that models make themselves, before and after rejection", note=note, rows=rows)]


def _row(denoiser: Denoiser, members: np.ndarray, others: np.ndarray, draws: int, level: str) -> Row:
    shape = members.shape[1:]
    images = drawn(denoiser, draws, shape)
    line = likeness(others, members).max()
    with tempfile.TemporaryDirectory() as folder:
        run = _run(Path(folder), members, others, level)
        cohort = cohort_of(run.folder("sample"), "synthetic", images)

        def anew(cases: Sequence[Case], turn: int) -> list[Case]:
            np.save(cohort.folder / f"{turn}.npy", drawn(denoiser, len(cases), shape, seed=seed_for(0, "anew", turn))[:, None])
            return [replace(case, id=f"{case.id}r{turn}", path=f"{turn}.npy", row=row) for row, case in enumerate(cases)]

        kept = rejection.without_copies(run, cohort, anew)
        left = np.stack([kept.pixels(case)[0] for case in kept])
        (finding,) = json.loads((cohort.folder / rejection.VERDICT).read_text())["findings"]
    true = likeness(images, members) > line
    named = np.isin([case.id for case in cohort], finding["details"].get("copies", ()))
    after = int((likeness(left, members) > line).sum())
    return {
        "verdict": finding["verdict"],
        "true copies": f"{true.sum()} of {draws}",
        "found": f"{named[true].mean():.0%}" if true.any() else "-",
        "named": int(named.sum()),
        "left": f"{after} of {len(left)}",
        "removed": f"{1 - after / true.sum():.0%}" if true.any() else "-",
        "KID before": _told(kid(others, images)),
        "KID after": _told(kid(others, left)),
    }


def _told(score: Score) -> str:
    return "too few" if score.value is None else f"{score.value:.2g} ({score.interval[0]:.2g} to {score.interval[1]:.2g})"


def _run(root: Path, members: np.ndarray, others: np.ndarray, level: str) -> Run:
    """A run whose preparation holds these people, with the search for copies as its only check."""
    train, holdout = (cohort_of(root / "run/prepare", split, images) for split, images in (("train", members), ("holdout", others)))
    Cohort(train.header, (*train, *holdout), train.folder).write(train.folder / "cohort.jsonl")
    settings = Settings(audit=AuditSettings(level=level), paths=PathSettings(runs=str(root), key=str(root / "key")))
    return Run(settings=settings, objects={"check": {"memorization": Memorization()}}, root=root / "run", tracker=NoTracker())


def likeness(images: np.ndarray, members: np.ndarray) -> np.ndarray:
    """Best correlation of each image with any member, in every flip, quarter turn and shift, ``(image,)``."""
    size = members.shape[1]
    inner = slice(REACH, size - REACH)
    known = _unit(members[:, inner, inner])
    best = np.full(len(images), -1.0, np.float32)
    for turned in (np.rot90(flipped, turns, (1, 2)) for flipped in (images, images[:, ::-1]) for turns in range(4)):
        for x, y in product(range(2 * REACH + 1), repeat=2):
            moved = _unit(turned[:, x : x + size - 2 * REACH, y : y + size - 2 * REACH])
            np.maximum(best, (moved @ known.T).max(1), out=best)
    return best


def _unit(images: np.ndarray) -> np.ndarray:
    rows = images.reshape(len(images), -1)
    rows = rows - rows.mean(1, keepdims=True)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-6)


if __name__ == "__main__":
    sys.exit(alone("rejection", measure, sys.argv[1:]))
