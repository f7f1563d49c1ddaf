"""CPU time of variants that take turns, so that what else the machine does falls on all of them alike.

The primary figure is the process' CPU time with one compute thread: on a quiet machine it is the wall time, on a shared one it hardly
moves. Ratios are taken within a round and their median is given, with the lowest and highest, so that no slow minute favours a side.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from statistics import median

from benchmarks.table import Row
from medsynth.training.allocator import keep_freed_memory

Seconds = tuple[float, float]  # CPU, wall


@dataclass(frozen=True, kw_only=True)
class Variant:
    """``make()`` gives the work, a function that is called once a round. ``tuned`` runs it in a process of its own whose allocator keeps
    freed memory, as training and sampling set it; the others run in the caller's, as the system's library has it."""

    name: str
    make: Callable[[], Callable[[], object]]
    tuned: bool = False


def alternated(variants: Sequence[Variant], rounds: int) -> dict[str, list[Seconds]]:
    """Seconds of each variant in each round, in turn forwards and backwards, after one uncounted call each."""
    with ExitStack() as stack:
        _made.clear()
        stack.callback(_made.clear)
        elsewhere = None
        if any(variant.tuned for variant in variants):
            pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=keep_freed_memory)
            elsewhere = stack.enter_context(pool)

        def seconds(variant: Variant) -> Seconds:
            return elsewhere.submit(_seconds, variant).result() if variant.tuned else _seconds(variant)

        found: dict[str, list[Seconds]] = {variant.name: [] for variant in variants}
        for variant in variants:
            seconds(variant)
        for number in range(rounds):
            for variant in variants if number % 2 == 0 else reversed(variants):
                found[variant.name].append(seconds(variant))
    return found


_made: dict[str, Callable[[], object]] = {}  # of this process: a model is built once, not once a round


def _seconds(variant: Variant) -> Seconds:
    if variant.name not in _made:
        _made[variant.name] = variant.make()
    work = _made[variant.name]
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def against(found: Mapping[str, Sequence[Seconds]], peer: str) -> list[Row]:
    """A row a variant: median seconds, and how many times as fast as ``peer`` it is (median, lowest and highest over the rounds)."""
    rows: list[Row] = []
    for name, seconds in found.items():
        ratios = [theirs[0] / mine[0] for theirs, mine in zip(found[peer], seconds, strict=True)]
        rows.append(
            {
                "variant": name,
                "CPU s": median(cpu for cpu, _ in seconds),
                "wall s": median(wall for _, wall in seconds),
                "times the peer": median(ratios),
                "lowest": min(ratios),
                "highest": max(ratios),
            }
        )
    return rows
