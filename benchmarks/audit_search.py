"""The search for the nearest training case, the costly part of the audit: seconds and memory. There is no peer that does the same."""

import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from scipy import ndimage

from benchmarks.table import Table
from medsynth.audit.nearest import VIEWS, References, nearest
from medsynth.rng import generator_for


def measure(tiny: bool) -> list[Table]:
    synthetic, training, size = (6, 20, 16) if tiny else (200, 2000, 64)
    real, drawn = (images(name, count, size) for name, count in (("training", training), ("synthetic", synthetic)))
    copies = min(5, synthetic)
    drawn[:copies] = real[:copies]
    subjects = References(images=real, groups=np.zeros(training, int), subjects=np.arange(training))
    before, cpu, wall = reset_peak(), time.process_time(), time.perf_counter()
    found = nearest(drawn, subjects)
    cpu, wall, peak = time.process_time() - cpu, time.perf_counter() - wall, memory("VmHWM")
    assert (found.row[:, :copies, 0] == np.arange(copies)).all(), "a copy was not found"
    row = {
        "synthetic": synthetic,
        "training": training,
        "CPU s": cpu,
        "wall s": wall,
        "CPU us a pair": 1e6 * cpu / (synthetic * training),
        "peak MiB": peak,
        "of it above the images MiB": max(peak - before, 0.0),  # Linux counts pages in batches
    }
    note = (
        f"{synthetic} synthetic against {training} training images of {size}x{size}, a subject each, in {len(VIEWS)} views; one run. An "
        "audit adds held-out subjects and planted copies to both sides. Memory is the whole process' (Linux VmHWM), libraries included."
    )
    return [Table(title="Audit: nearest training cases", note=note, rows=[row])]


def images(name: str, count: int, size: int) -> np.ndarray:
    """Smooth random images around a common mean, float32 ``(count, size, size)``."""
    own = ndimage.gaussian_filter(generator_for(0, name).standard_normal((count, size, size), np.float32), (0, 3, 3))
    return own / own.std() + 2 * np.outer(np.hanning(size), np.hanning(size)).astype(np.float32)


def reset_peak() -> float:
    """Begin a new peak of this process' memory; MiB now."""
    with suppress(OSError):  # a container may forbid it; in a process of its own the peak before is low anyway
        Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def memory(name: str) -> float:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(f"{name}:")).split()[1]) / 1024
