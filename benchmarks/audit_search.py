"""The search for the nearest training case, the costly part of the audit: seconds and memory. There is no peer that does the same.

``python -m benchmarks.audit_search`` takes the size that a limit is stated for, 1,000 volumes against 10,000 of 64x64x64, in an hour of a
core, and writes results/search/.
"""

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from scipy import ndimage

from benchmarks.table import RESULTS, Row, Table, processor, write
from medsynth.audit.memorization import Memorization
from medsynth.audit.nearest import VIEWS, References, nearest, pooled, reduction
from medsynth.rng import generator_for

PART = 50  # images made together


def main() -> int:
    found = table([(1000, 10000, (64, 64, 64))])
    print(found.markdown())
    print(f"written to {write([found], hardware=processor(), conditions={'CPUs': os.cpu_count()}, folder=RESULTS / 'search')}")
    return 0


def measure(tiny: bool) -> list[Table]:
    return [table([(6, 20, (16, 16))] if tiny else [(200, 2000, (64, 64)), (50, 500, (64, 64, 64))])]


def table(sizes: Sequence[tuple[int, int, tuple[int, ...]]]) -> Table:
    """Of so many synthetic and training images of a shape."""
    note = (
        f"A subject each, in {len(VIEWS)} views; one run. Volumes are averaged down to 32,768 voxels first, as by the audit: not in the "
        "figures. An audit adds held-out subjects and planted copies to both sides. Memory is the whole process' (Linux VmHWM), "
        "libraries included."
    )
    return Table(title="Audit: nearest training cases", note=note, rows=[_row(*size) for size in sizes])


def _row(synthetic: int, training: int, shape: tuple[int, ...]) -> Row:
    real, drawn = (images(name, count, shape) for name, count in (("training", training), ("synthetic", synthetic)))
    copies = min(5, synthetic)
    drawn[:copies] = real[:copies]
    subjects = References(images=real, groups=np.zeros(training, int), subjects=np.arange(training))
    before, cpu, wall = reset_peak(), time.process_time(), time.perf_counter()
    found = nearest(drawn, subjects)
    cpu, wall, peak = time.process_time() - cpu, time.perf_counter() - wall, memory("VmHWM")
    assert (found.row[:, :copies, 0] == np.arange(copies)).all(), "a copy was not found"
    return {
        "images": "x".join(map(str, shape)),
        "synthetic": synthetic,
        "training": training,
        "CPU s": cpu,
        "wall s": wall,
        "CPU us a pair": 1e6 * cpu / (synthetic * training),
        "peak MiB": peak,
        "of it above the images MiB": max(peak - before, 0.0),  # Linux counts pages in batches
    }


def images(name: str, count: int, shape: tuple[int, ...]) -> np.ndarray:
    """Smooth random images around a common mean, float32 ``(count, *shape)``, averaged down as the audit does."""
    factors = reduction(shape, Memorization().voxels)
    middle = 2 * np.prod(np.meshgrid(*map(np.hanning, shape), indexing="ij"), axis=0).astype(np.float32)
    found = []
    for start in range(0, count, PART):
        noise = generator_for(0, name, start).standard_normal((min(PART, count - start), *shape), np.float32)
        own = ndimage.gaussian_filter(noise, (0, *[3] * len(shape)))
        found.append(pooled(own / own.std() + middle, factors))
    return np.concatenate(found)


def reset_peak() -> float:
    """Begin a new peak of this process' memory; MiB now."""
    with suppress(OSError):  # a container may forbid it; in a process of its own the peak before is low anyway
        Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(f"{name}:")).split()[1]) / 1024


if __name__ == "__main__":
    sys.exit(main())
