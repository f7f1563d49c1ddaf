"""Every look at a cohort, written down before it is taken, so that nobody draws and audits until one passes and shows that one alone.

One file stands for all runs of a place, ``audit-ledger.jsonl`` beside their folders. A look is two lines: what will be judged and by which
limits, and later the verdict. Each line holds the hash of the one before, so that none can be taken out unseen.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from medsynth.errors import MedsynthError

LEDGER = "audit-ledger.jsonl"


def write(path: Path, line: Mapping[str, Any]) -> None:
    """Append one line, as a whole and on the disk, after the lines of other processes. Raises MedsynthError where a line was changed."""
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        text = file.read()
        lines = _checked(path, text)
        if not text.endswith("\n"):
            file.truncate(len(text.encode()) - len(text.rpartition("\n")[2].encode()))  # half a line, of a process that was killed
        file.write(json.dumps({**line, "before": _hash(lines[-1] if lines else "")}, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())


def looks(path: Path, train: str) -> list[dict[str, Any]]:
    """The looks at cohorts of the training set of digest ``train``, in their order; ``verdict`` is "" where none was reached.

    A verdict belongs to the last look before it at the same cohort, by the same checks.
    """
    if not path.is_file():
        return []
    found: list[dict[str, Any]] = []
    for row in map(json.loads, _checked(path, path.read_text(encoding="utf-8"))):
        row.pop("before")
        if row["train"] != train:
            continue
        if "verdict" not in row:
            found.append({**row, "verdict": ""})
            continue
        own = (look for look in reversed(found) if all(look.get(name) == value for name, value in row.items() if name != "verdict"))
        if (look := next(own, None)) is not None:
            look["verdict"] = row["verdict"]
    return found


def _checked(path: Path, text: str) -> list[str]:
    lines = text.split("\n")[:-1]  # what no line end closes was not written whole
    before = ""
    for number, line in enumerate(lines, 1):
        try:
            whole = json.loads(line)["before"] == _hash(before)
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            raise MedsynthError(
                f"{path}, line {number}: a look at a cohort was changed or taken out. Restore the file from a backup; without it no audit "
                "can say how often was looked."
            )
        before = line
    return lines


def _hash(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()
