"""``python -m benchmarks.dp [--tiny]``: what differential privacy costs in quality.

The same small model is trained by `medsynth train` on slices of the phantom hospital's people, plainly and with `privacy=dp` at several
epsilons, equally long; the kernel distance of what each draws to people whom no model saw says what the promise costs. The floor is real
against real. Steps and batch are the same for all, as a user would first try it: none of them is tuned to its noise. ``--tiny`` writes
nothing.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.small_model import drawn, kid, slices
from benchmarks.table import Row, Table, alone
from medsynth.config import PathSettings
from medsynth.diffusion.checkpoint import load_denoiser
from medsynth.diffusion.networks import UNetSettings
from medsynth.stages import Run, train
from medsynth.training.allocator import keep_freed_memory
from medsynth.training.privacy import DifferentialPrivacy
from tests.make_evidence import cohort_of
from tests.make_run import make_run

NETWORK = UNetSettings(channels=(8, 16), attention_levels=(False, False), res_blocks=1, head_channels=8, norm_groups=4)


def measure(tiny: bool) -> list[Table]:
    if tiny:
        return tables(size=16, people=40, unseen=120, draws=60, steps=2, batch=4, epsilons=(8.0,))
    return tables(size=16, people=1000, unseen=400, draws=200, steps=1000, batch=32, epsilons=(8.0, 1.0))


def tables(*, size: int, people: int, unseen: int, draws: int, steps: int, batch: int, epsilons: Sequence[float]) -> list[Table]:
    keep_freed_memory()
    others, rows = slices(range(10**6, 10**6 + unseen), size), []
    with tempfile.TemporaryDirectory() as folder:
        cohort = cohort_of(Path(folder) / "prepare", "train", slices(range(people), size))
        cohort.write(cohort.folder / "cohort.jsonl")
        for epsilon in (None, *epsilons):
            rows.append(_row(Path(folder), epsilon, others, draws, steps, batch))
            print(rows[-1], file=sys.stderr, flush=True)
    note = (
        f"Axial slices of {size}x{size} of {people} people, one each; {steps} steps of {batch} for every model, clipping norm 1, delta a "
        f"tenth of one over the people. {draws} images of each against {unseen // 2} people whom no model saw. Noise is in clipping norms; "
        "the interval is 95 %, and the floor is the same distance between real images."
    )
    return [Table(title="Differential privacy: kernel distance by epsilon", note=note, rows=rows)]


def _row(root: Path, epsilon: float | None, others: np.ndarray, draws: int, steps: int, batch: int) -> Row:
    started = time.process_time()
    promise = DifferentialPrivacy(epsilon=epsilon) if epsilon else None
    name = f"epsilon {epsilon:g}" if epsilon else "no promise"
    once = {"steps": steps, "global_batch": batch, "warmup": 50, "ema_halflife": max(1, steps // 10), "checkpoint_every": steps}
    run = make_run(root, fit=once | {"preview_every": steps}, network=NETWORK)
    objects = {**run.objects, "privacy": promise, "optimizer": partial(torch.optim.AdamW, lr=2e-3, fused=True)}
    settings = replace(run.settings, paths=PathSettings(key=str(root / "key")))
    train.work(Run(settings=settings, objects=objects, root=root, tracker=run.tracker), root / "train")
    (root / "train").rename(root / name)
    denoiser, told = load_denoiser(root / name / "denoiser")
    minutes = (time.process_time() - started) / 60
    score = kid(others, drawn(denoiser.eval(), draws, others.shape[1:]))
    low, high = score.interval or (None, None)
    numbers = {"KID": score.value, "low": low, "high": high, "floor": score.anchor}
    return (
        {"training": name, "noise": told["privacy"]["noise"] if promise else 0.0}
        | {key: "-" if value is None else value for key, value in numbers.items()}
        | {"CPU minutes to train": minutes}
    )


if __name__ == "__main__":
    sys.exit(alone("dp", measure, sys.argv[1:]))
