"""What a finished stage was made from: skip, resume, or refuse.

A stage's folder holds ``receipt.json`` once it is finished, written last and by rename, and ``started.json`` from its
first moment. The fingerprint is a hash of the settings that can change the result and of the inputs' hashes; never of
worker counts, devices or addresses. Same fingerprint: nothing is done. No receipt: the work resumes in place. Another
fingerprint: an error that names what changed, and the two ways out.
"""

import fcntl
import hashlib
import hmac
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from medsynth.cohort import sha256_of
from medsynth.errors import MedsynthError, StageConflict
from medsynth.io.pseudonyms import keyed_hash

RECEIPT = "receipt.json"
STARTED = "started.json"


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """``settings`` are flat (``"fit.steps": 2000``); ``inputs`` maps a stage to the fingerprint of what it made;
    ``outputs`` maps a file to its SHA-256; ``seal`` is a keyed hash of all of it, which nobody makes without the key of the pseudonyms."""

    stage: str
    settings: Mapping[str, Any]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    tracking_run: str | None = None
    seal: str = ""

    @property
    def fingerprint(self) -> str:
        """Hash of stage, settings and inputs."""
        return _digest({"stage": self.stage, "settings": self.settings, "inputs": self.inputs})

    @property
    def made(self) -> str:
        """Hash of the outputs: what the next stage's inputs refer to."""
        return _digest(dict(self.outputs))

    def sealed(self, key: bytes | None) -> "Receipt":
        """The same receipt with its seal; without one where there is no key."""
        return replace(self, seal=self._seal(key) if key else "")

    def is_sealed(self, key: bytes) -> bool:
        """Whether somebody who holds the key wrote it, just so."""
        return hmac.compare_digest(str(self.seal).encode(), self._seal(key).encode())

    def _seal(self, key: bytes) -> str:
        return keyed_hash(key, "receipt", _digest({name: value for name, value in asdict(self).items() if name != "seal"}))

    def write(self, path: Path) -> None:
        partial = path.with_name(f".{path.name}.partial")
        with partial.open("w", encoding="utf-8") as file:
            json.dump(asdict(self) | {"fingerprint": self.fingerprint}, file, indent=1, sort_keys=True)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    @classmethod
    def read(cls, path: Path) -> "Receipt | None":
        """The receipt at ``path``, or None where there is none. A forged or damaged one is an error."""
        if not path.is_file():
            return None
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
            fingerprint = fields.pop("fingerprint")
            receipt = cls(**fields)
        except (ValueError, TypeError, KeyError) as error:
            raise StageConflict(f"{path} is damaged. Delete the folder {path.parent} to redo the stage.") from error
        if receipt.fingerprint != fingerprint:
            raise StageConflict(f"{path} was changed after it was written. Delete the folder {path.parent} to redo the stage.")
        return receipt


def run_once(
    folder: Path,
    planned: Receipt,
    work: Callable[[Path], None],
    *,
    outputs: Sequence[str],
    grows: Sequence[str] = (),
    tracking_run: Callable[[], str | None] = lambda: None,
    key: Callable[[], bytes | None] = lambda: None,
    leads: bool = True,
    whole: bool = False,
    anew: bool = False,
) -> tuple[Receipt, bool]:
    """Do ``work`` unless ``folder`` already holds its result; returns the receipt and whether anything was done.

    ``planned`` has no outputs yet. ``grows`` names settings whose larger value continues a finished stage instead of
    contradicting it. ``key`` gives what seals the receipt. Of several processes that share the work only the one that
    ``leads`` writes. A ``whole`` stage makes its folder itself, by rename: none is there where it refuses. Work that
    begins ``anew`` uses nothing of an unfinished attempt, so it does not matter what that was made from.
    """
    kept = Receipt.read(folder / RECEIPT)
    begun = kept if kept or anew else Receipt.read(folder / STARTED)
    if begun is not None and begun.fingerprint != planned.fingerprint:
        changed = _changes(begun, planned)
        if not all(name in grows and planned.settings[name] >= begun.settings[name] for name in changed):
            raise StageConflict(_conflict(folder, planned.stage, begun, planned, changed, finished=kept is not None))
        kept = None
    if kept is not None:
        return kept, False
    if leads and not whole:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECEIPT).unlink(missing_ok=True)
        planned.write(folder / STARTED)
    work(folder)
    made = {name: sha256_of(folder / name) for name in outputs}
    receipt = Receipt(stage=planned.stage, settings=planned.settings, inputs=planned.inputs, outputs=made, tracking_run=tracking_run())
    if leads:
        receipt.sealed(key()).write(folder / RECEIPT)
        (folder / STARTED).unlink(missing_ok=True)
    return receipt, True


def _changes(old: Receipt, new: Receipt) -> list[str]:
    names = [name for name in {**old.settings, **new.settings} if old.settings.get(name) != new.settings.get(name)]
    return names + [f"inputs.{name}" for name in {**old.inputs, **new.inputs} if old.inputs.get(name) != new.inputs.get(name)]


def _conflict(folder: Path, stage: str, old: Receipt, new: Receipt, changed: list[str], *, finished: bool) -> str:
    lines = []
    for name in changed:
        if name.startswith("inputs."):
            lines.append(f"  {name.removeprefix('inputs.')}: its result has changed since")
        else:
            lines.append(f"  {name}: {old.settings.get(name)!r} there, {new.settings.get(name)!r} now")
    state = "a finished" if finished else "an unfinished"
    return (
        f"{folder} holds {state} '{stage}' stage made from something else:\n" + "\n".join(lines) + "\n"
        f"Give the same settings (or experiment=) again, pick another run.name, or delete the folder {folder} to redo it."
    )


def _digest(fields: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(fields, sort_keys=True, default=list).encode()).hexdigest()


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Make the run's folder, private to its owner (0700), and keep other writers out while the block runs."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o700)
        file = (root / ".lock").open("w")
    except OSError as error:
        raise MedsynthError(
            f"The run folder {root} cannot be written ({error.strerror}). Choose another paths.runs or mend its rights."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise StageConflict(f"Another process is writing {root}. Wait for it, or pick another run.name.") from error
        yield


def discard(folder: Path, keep: Sequence[str] = ()) -> None:
    """Remove what an interrupted attempt left, keeping the mark that it was begun and the files of these names."""
    for path in folder.iterdir():
        if path.name not in (STARTED, RECEIPT, *keep):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
