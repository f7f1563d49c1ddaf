"""``python -m benchmarks [--tiny] [NAME ...]``: all benchmarks in full, or those named; ``--tiny`` writes nothing.

Each runs in a fresh process with one compute thread, so that none sees another's memory or threads. A full run of all is written to
results/ and to the end of README.md.
"""

import argparse
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from benchmarks import BENCHMARKS, measure
from benchmarks.table import Table, processor, write

README = Path(__file__).parent / "README.md"
LATEST = "## Latest\n"  # the heading in README.md below which a run is written


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--tiny", action="store_true", help="run small and write nothing")
    chosen = parser.parse_args(arguments)
    if unknown := [name for name in chosen.names if name not in BENCHMARKS]:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    # before the processes start: a library reads them when it is loaded
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"))
    load = [_load()]
    tables: list[Table] = []
    for name in chosen.names or BENCHMARKS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            measured = pool.submit(measure, name, chosen.tiny).result()
        print("\n".join(table.markdown() for table in measured), flush=True)
        tables += measured
        load.append(_load())
    if not chosen.tiny and not chosen.names:
        conditions = {
            "Compute threads": "1",
            "CPUs": str(os.cpu_count()),
            "System load": f"{min(load):.1f} to {max(load):.1f}, the benchmark's own 1 included",
        }
        path = write(tables, hardware=processor(), conditions=conditions)
        head, _, _ = README.read_text().partition(LATEST)
        README.write_text(f"{head}{LATEST}\n{path.read_text()}")
        print(f"written to {path}", file=sys.stderr)
    return 0


def _load() -> float:
    return os.getloadavg()[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
