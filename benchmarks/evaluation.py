"""What the stage `evaluate` costs, from volumes on disk to metrics.json, and what a second run costs whose features are kept. No peer.

``python -m benchmarks.evaluation`` takes the sizes that a limit is stated for, and writes results/evaluation/.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from scipy import ndimage

from benchmarks.audit_search import memory
from benchmarks.table import RESULTS, Row, Table, processor, write
from medsynth import config
from medsynth.metrics.frechet import frechet
from medsynth.rng import generator_for
from medsynth.stages import Run, evaluate
from tests.make_evidence import cohort_of

SPLITS = ("train", "holdout", "synthetic")
FULL = (((64, 64), 250, ("metric=fast",)), ((64, 64, 64), 200, ()), ((128, 128), 1000, ()))


def main() -> int:
    found = table(FULL)
    print(found.markdown())
    print(f"written to {write([found], hardware=processor(), conditions={'CPUs': os.cpu_count()}, folder=RESULTS / 'evaluation')}")
    return 0


def measure(tiny: bool) -> list[Table]:
    if tiny:
        return [table([((24, 24), 50, ("metric=fast",))]), distance(20, 64)]
    return [table([((64, 64), 250, ("metric=fast",)), ((128, 128), 100, ()), ((32, 32, 32), 50, ())]), distance(500, 2048)]


def distance(cases: int, dimensions: int) -> Table:
    """One Frechet distance in many dimensions, where the root of the covariances' product takes half a minute."""
    x, y = generator_for(0, "distance").standard_normal((2, cases, dimensions))
    frechet(x, y)
    cpu = time.process_time()
    assert np.isfinite(frechet(x, y))
    row = {"cases": cases, "dimensions": dimensions, "CPU s": time.process_time() - cpu}
    return Table(title="Frechet distance", note="Between as many cases again. Fewer cases than dimensions.", rows=[row])


def table(sizes: Sequence[tuple[tuple[int, ...], int, tuple[str, ...]]]) -> Table:
    """Of these shapes, cases of each of three cohorts, and overrides of the settings."""
    note = (
        "As many training, held-out and synthetic cases, smooth random images, a subject each; two stand-ins of the same size are scored "
        "too. The feature spaces that are learned are trained once, before, which is timed apart. Time is about linear in the cases up to "
        "some hundreds: features and pairs of images take most of it. Memory is the whole process' (Linux VmHWM), libraries included."
    )
    return Table(title="Evaluation", note=note, rows=[_row(*size) for size in sizes])


def _row(shape: tuple[int, ...], cases: int, overrides: Sequence[str]) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for stage in ("prepare", "sample", "evaluate"):
            (root / stage).mkdir()
        (root / "train" / "denoiser").mkdir(parents=True)
        (root / "train" / "denoiser" / "weights.safetensors").touch()  # their hash goes with the numbers
        train, holdout, synthetic = (
            cohort_of(root / ("sample" if split == "synthetic" else "prepare"), split, images(split, cases, shape)) for split in SPLITS
        )
        replace(train, cases=train.cases + holdout.cases).write(root / "prepare" / "cohort.jsonl")
        synthetic.write(root / "sample" / "cohort.jsonl")
        taught, first, again = (_alone(what, root, overrides) for what in (evaluate.taught, evaluate.work, evaluate.work))
        return {
            "images": "x".join(map(str, shape)),
            "cases": cases,
            "metrics": len(config.build(config.compose(overrides), ["metric"])["metric"]),
            "training, CPU s": taught[0],
            "CPU s": first[0],
            "wall s": first[1],
            "peak MiB": first[2],
            "again, CPU s": again[0],
        }


def _alone(what: Callable[[Run, Path], object], root: Path, overrides: Sequence[str]) -> tuple[float, float, float]:
    """CPU and wall seconds and peak memory, in MiB, in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_measured, what, root, overrides).result()


def _measured(what: Callable[[Run, Path], object], root: Path, overrides: Sequence[str]) -> tuple[float, float, float]:
    cfg = config.compose(overrides)
    run = Run(
        settings=config.values(cfg),
        objects=config.build(cfg, ["metric"]),
        root=root,
        tracker=SimpleNamespace(**dict.fromkeys(("metrics", "dataset", "table"), lambda *said, **named: None)),  # nothing is tracked
    )
    cpu, wall = time.process_time(), time.perf_counter()
    what(run, root / "evaluate")
    return time.process_time() - cpu, time.perf_counter() - wall, memory("VmHWM")


def images(name: str, count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Smooth random images, float32 ``(count, *shape)``, in -1..+1."""
    found = np.empty((count, *shape), np.float32)
    for number in range(count):
        smooth = ndimage.gaussian_filter(generator_for(0, name, number).standard_normal(shape), 2)
        found[number] = smooth / np.abs(smooth).max()
    return found


if __name__ == "__main__":
    sys.exit(main())
