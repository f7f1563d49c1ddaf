"""Scanning an archive of many small files: headers a second and memory a file, in one process and in several.

Both grow with the number of files and with nothing else, so that 20,000 tell what 100,000 take.
"""

import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks.dicom_series import write_series
from benchmarks.table import Row, Table
from medsynth.io import dicom

SLICES = 100  # of a series


def measure(tiny: bool) -> list[Table]:
    files = 200 if tiny else 20_000
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_archive(root, files)
        rows = [_elsewhere(root, files, workers) for workers in (1, max(2, os.cpu_count() or 1))]
    note = (
        f"{files} CT slices of 16x16 in series of {SLICES}, 30 private elements a file, in the page cache; scan and verdicts, no pixels. "
        "Memory is what the process holds at its peak above what it held before."
    )
    return [Table(title="Scanning an archive", note=note, rows=rows)]


def write_archive(root: Path, files: int) -> None:
    """One series, its files written again and again under other UIDs of the same length."""
    write_series(root / "0000", SLICES, 16)
    first = [path.read_bytes() for path in sorted((root / "0000").iterdir())]
    for series in range(1, files // SLICES):
        folder = root / f"{series:04d}"
        folder.mkdir()
        for number, content in enumerate(first):
            (folder / f"{number:04d}.dcm").write_bytes(content.replace(b"1.2.840.555.1000", f"1.2.840.555.{1000 + series}".encode()))


def _elsewhere(root: Path, files: int, workers: int) -> Row:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:  # memory of its own
        return pool.submit(_scan, root, files, workers).result()


def _scan(root: Path, files: int, workers: int) -> Row:
    before, start = _peak(), time.perf_counter()
    found = dicom.scan(root, workers=workers)
    stacks, refusals = dicom.stacks(found.headers, found.refusals)
    seconds = time.perf_counter() - start
    assert (len(stacks), len(refusals), found.files) == (files // SLICES, 0, files)
    memory = _peak() - before
    return {"processes": str(workers), "files a second": files / seconds, "MiB": memory / 2**20, "bytes a file": memory / files}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
