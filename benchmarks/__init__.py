"""How fast and how exact, against a named peer in the same run. See README.md.

A benchmark is a module with ``measure(tiny) -> list[Table]``. It first makes sure that both sides do the same work, then counts. No figure
is asserted anywhere: the tests run each benchmark tiny, so that it cannot rot, and nobody's machine fails for being slow.
"""

import importlib

from benchmarks.table import Table

BENCHMARKS = (
    "training_step",
    "sampling_quality",
    "dicom_series",
    "dicom_archive",
    "nifti_to_grid",
    "audit_search",
    "copies",
    "evaluation",
    "utility",
    "sanity",
    "deidentification",
)


def measure(name: str, tiny: bool) -> list[Table]:
    """The tables of one benchmark, whose libraries are loaded now and no sooner."""
    return importlib.import_module(f"benchmarks.{name}").measure(tiny)
