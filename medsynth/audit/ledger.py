"""Every look at a cohort, written down before it is taken, so that nobody draws and audits until one passes and shows that one alone.

One file stands for all runs of a place, ``audit-ledger.jsonl`` beside their folders. A look is two lines: what will be judged and by which
limits, and later the verdict; a release is a third. Each line holds the hash of the one before, so that none can be taken out unseen. That
the end is not cut is known by a *witness*: a small file beside the key of the pseudonyms, outside the reach of who holds the runs alone,
that remembers how long each ledger was, and how often cohorts of a training set were looked at in all.
"""

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from medsynth.errors import MedsynthError

LEDGER = "audit-ledger.jsonl"


def witness_of(key: Path | str) -> Path | None:
    """The witness that belongs to a key; None where there is no key, and so no place that is out of reach."""
    key = Path(key).expanduser()
    return key.with_name(f"{key.name}.looks") if key.is_file() else None


def write(path: Path, line: Mapping[str, Any], witness: Path | None = None) -> None:
    """Append one line, as a whole and on the disk, after the lines of other processes. Raises MedsynthError where a line was changed."""
    with _locked(path) as file, _remembered(witness) as memory:
        text = file.read()
        lines = _checked(path, text, memory)
        if not text.endswith("\n"):
            file.truncate(len(text.encode()) - len(text.rpartition("\n")[2].encode()))  # half a line, of a process that was killed
        # a nonce tells ledgers apart that begin with the same look
        row = {**line, "before": _hash(lines[-1])} if lines else {**line, "before": _hash(""), "ledger": secrets.token_hex(8)}
        lines.append(json.dumps(row, sort_keys=True))
        file.write(lines[-1] + "\n")
        file.flush()
        os.fsync(file.fileno())
        memory["ledgers"][_hash(lines[0])] = [len(lines), _hash(lines[-1])]
        if not {"verdict", "released"} & line.keys():
            memory["looks"][line["train"]] = memory["looks"].get(line["train"], 0) + 1


def looks(path: Path, train: str, witness: Path | None = None) -> list[dict[str, Any]]:
    """The looks at cohorts of the training set of digest ``train``, in their order; ``verdict`` is "" where none was reached.

    A verdict belongs to the last look before it at the same cohort, by the same checks. Raises MedsynthError where a line was changed, or
    one that the ``witness`` knows is not there.
    """
    found: list[dict[str, Any]] = []
    for row in _rows(path, train, witness):
        if "released" in row:
            continue
        if "verdict" not in row:
            found.append({**row, "verdict": ""})
            continue
        own = (look for look in reversed(found) if all(look.get(name) == value for name, value in row.items() if name != "verdict"))
        if (look := next(own, None)) is not None:
            look["verdict"] = row["verdict"]
    return found


def taken(path: Path, train: str, witness: Path | None = None) -> int:
    """How many looks were taken at cohorts of this training set: by this ledger, or by the witness where that knows of more."""
    with _remembered(witness) as memory:
        known = memory["looks"].get(train, 0)
    return max(known, len(looks(path, train, witness)))


def releases(path: Path, train: str, witness: Path | None = None) -> list[dict[str, Any]]:
    """What was released of this training set, in its order, as `write` was given it under ``released``: each cohort once."""
    rows = [row for row in _rows(path, train, witness) if "released" in row]
    return [row["released"] for row in {row["synthetic"]: row for row in rows}.values()]


def _rows(path: Path, train: str, witness: Path | None) -> list[dict[str, Any]]:
    with _remembered(witness) as memory:
        lines = _checked(path, path.read_text(encoding="utf-8") if path.is_file() else "", memory)
    rows = [json.loads(line) for line in lines]
    return [{name: value for name, value in row.items() if name not in ("before", "ledger")} for row in rows if row["train"] == train]


def _checked(path: Path, text: str, memory: Mapping[str, Any]) -> list[str]:
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
    known, last = memory["ledgers"].get(_hash(lines[0]), (0, "")) if lines else (0, "")
    if known and (len(lines) < known or _hash(lines[known - 1]) != last):
        raise MedsynthError(
            f"{path} had {known} lines, and its end was cut or written anew. Restore the file from a backup; without it no audit can say "
            "how often was looked."
        )
    return lines


@contextmanager
def _locked(path: Path) -> Iterator[TextIO]:
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        yield file


@contextmanager
def _remembered(witness: Path | None) -> Iterator[dict[str, Any]]:
    """What the witness knows; what the block changes of it is kept."""
    memory: dict[str, Any] = {"ledgers": {}, "looks": {}}
    if witness is None:
        yield memory
        return
    with _locked(witness) as file:
        text = file.read()
        try:
            memory |= json.loads(text) if text else {}
        except (ValueError, TypeError):
            raise MedsynthError(
                f"{witness} is damaged. Restore it from a backup, or remove it: then nobody knows of earlier looks."
            ) from None
        yield memory
        if (changed := json.dumps(memory, sort_keys=True) + "\n") != text:
            file.truncate(0)  # in place: others wait for this very file's lock
            file.write(changed)
            file.flush()
            os.fsync(file.fileno())


def _hash(line: str) -> str:
    return hashlib.sha256(line.encode()).hexdigest()
