"""The prepared pixels: one memory-mapped array a split, a row a case, so that training reads as fast as memory.

float16 holds 11 bits over the scaled range -1..+1. Rows are appended as they come; the array's header is written last.
"""

import os
from pathlib import Path
from types import TracebackType

import numpy as np

from medsynth.cohort import sha256_of


class Shard:
    """Appends rows of one shape and dtype to a ``.npy`` file that appears under its name by rename, when the ``with`` block ends well."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        self.path, self.shape, self.dtype, self.rows = path, tuple(shape), np.dtype(dtype), 0
        self._partial = path.with_name(f".{path.name}.partial")

    def __enter__(self) -> "Shard":
        self._file = self._partial.open("wb")
        self._write_header()
        return self

    def append(self, array: np.ndarray) -> tuple[int, str]:
        """Add a row; returns its number and the SHA-256 of its bytes."""
        assert array.shape == self.shape, (array.shape, self.shape)
        data = np.ascontiguousarray(array, dtype=self.dtype).tobytes()
        self._file.write(data)
        self.rows += 1
        return self.rows - 1, sha256_of(data)

    def _write_header(self) -> None:
        # NumPy pads the header so that the first axis may grow in place (numpy.lib.format, GROWTH_AXIS_MAX_DIGITS)
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.rows, *self.shape)}
        np.lib.format.write_array_header_1_0(self._file, header)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._file:
            if kind is None:
                self._file.seek(0)
                self._write_header()
                self._file.flush()
                os.fsync(self._file.fileno())
        if kind is None and self.rows:
            self._partial.replace(self.path)
        else:
            self._partial.unlink(missing_ok=True)
