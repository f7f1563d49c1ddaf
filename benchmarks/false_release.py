"""How often does the audit err? Cohorts of a model's own samples that it does not pass, and cohorts with planted copies that it does.

A small model is trained on phantoms with a texture of their own, as organs have. A large pool of its samples, and copies of training cases
of every kind, are audited together at level strict. From the pool cohorts of 1,000 cases are drawn: clean ones, and ones in which 1 to 5 %
of the cases are copies. Each is judged as the product judges it; the search, which looks at every case by itself, is done once a division
of the holdout. Cohorts of one division share its held-out subjects, so the rates are those of several places, not of a hundred independent
ones.

``python -m benchmarks.false_release`` writes the table to results/privacy/.
"""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.small_model import drawn, trained
from benchmarks.table import Row, Table, alone
from medsynth.audit.finding import Evidence
from medsynth.audit.level import LEVELS
from medsynth.audit.memorization import Looked, Memorization, judge, sharpness
from medsynth.audit.plants import kinds
from medsynth.audit.rates import clopper_pearson
from medsynth.rng import generator_for
from tests.make_evidence import cohort_of, images_of

SHARES = (0.0, 0.01, 0.02, 0.03, 0.04, 0.05)


def measure(tiny: bool) -> list[Table]:
    subjects, held_out, pool, copies, steps, cohorts, divisions = (40, 24, 40, 2, 3, 2, 1) if tiny else (1000, 400, 4000, 20, 2000, 20, 5)
    level = LEVELS["demo"] if tiny else LEVELS["strict"]
    space = (16, 16) if tiny else (24, 24)
    real = images_of(space, [f"subject {number}" for number in range(subjects + held_out)])
    members, strangers = real[:subjects], real[subjects:]
    samples = drawn(trained(members, steps=steps, batch=32), pool, space, steps=2 if tiny else 20)
    planted = _copies(members, samples, copies)
    everything = np.concatenate([samples, planted])
    verdicts = {share: {"pass": 0, "inconclusive": 0, "fail": 0} for share in SHARES}
    with tempfile.TemporaryDirectory() as folder:
        train, holdout, synthetic = (
            cohort_of(Path(folder), split, images)
            for split, images in (("train", members), ("holdout", strangers), ("synthetic", everything))
        )
        for division in range(divisions):
            evidence = Evidence(train=train, holdout=holdout, synthetic=synthetic, level=level, seed=division)
            looked, detail = Memorization().look(evidence), sharpness(everything) / sharpness(members)
            for share in SHARES:
                for number in range(cohorts):
                    generator = generator_for(division, "cohort", str(share), number)
                    rows = _rows(pool, len(planted), min(level.synthetic, pool), share, generator)
                    verdicts[share][judge(part(looked, rows, detail), level, division).verdict] += 1
    rows = [_row(share, verdicts[share]) for share in SHARES]
    note = (
        f"{cohorts * divisions} cohorts of {min(level.synthetic, pool)} cases a row, {divisions} divisions of {held_out} held-out "
        f"subjects, a model of {steps} steps on {subjects} subjects, {space[0]}x{space[1]}, level {level.name}. Copies are of "
        f"{len(kinds(space))} kinds in equal parts. A cohort leaves only where the verdict is pass."
    )
    return [Table(title="Audit: cohorts that are passed", note=note, rows=rows)]


def part(looked: Looked, rows: np.ndarray, detail: float) -> Looked:
    """The same look, had the cohort held these cases alone."""
    synthetic = looked.synthetic.where(looked.synthetic.cases[row] for row in rows)
    return replace(looked, synthetic=synthetic, score=looked.score[rows], row=looked.row[rows], sharpness=detail)


def _copies(members: np.ndarray, samples: np.ndarray, count: int) -> np.ndarray:
    """``count`` copies of each kind, of training cases drawn by chance."""
    made = []
    for name, plant in kinds(members.shape[1:]).items():
        for number in range(count):
            generator = generator_for("false release", name, number)
            image, other = members[generator.integers(len(members))], samples[generator.integers(len(samples))]
            made.append(np.ascontiguousarray(plant(image, other, generator), np.float32))
    return np.stack(made)


def _rows(pool: int, planted: int, cases: int, share: float, generator: np.random.Generator) -> np.ndarray:
    """Which cases of the pool a cohort holds; copies lie behind the samples."""
    copies = round(share * cases)
    own = generator.choice(pool, cases - copies, replace=False)
    return np.concatenate([own, pool + generator.choice(planted, min(copies, planted), replace=False)])


def _row(share: float, verdicts: dict[str, int]) -> Row:
    total = sum(verdicts.values())
    low, high = clopper_pearson(verdicts["pass"], total)
    return {"copies planted": f"{share:.0%}", "cohorts": total} | verdicts | {"passed, low": low, "passed, high": high}


if __name__ == "__main__":
    sys.exit(alone("false-release", measure, sys.argv[1:]))
