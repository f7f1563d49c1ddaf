"""Checkpoints that survive a crash: written beside their place and renamed, with a digest, at least two of them, and none that is not
finite.

A checkpoint ``step-00000500.ckpt`` has its SHA-256 in ``step-00000500.ckpt.sha256``, which is written first; ``last.ckpt`` is a link to
the newest. One that does not verify is passed over for the one before. Files hold tensors and plain containers, and are loaded with
``weights_only=True``: loading one never runs code.
"""

import logging
import os
import pickle
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import lightning.pytorch as L
import torch
from lightning.pytorch.plugins.io import CheckpointIO
from torch import Tensor

from medsynth import distributed
from medsynth.cohort import sha256_of
from medsynth.errors import Interrupted, MedsynthError, TrainingDiverged
from medsynth.training.guard import REMEDY, non_finite
from medsynth.training.module import DiffusionModule

log = logging.getLogger(__name__)

LAST = "last.ckpt"
KEPT = 2
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)  # USR1: what schedulers send before they preempt
AGREE_EVERY = 10  # steps between two votes of several ranks on whether to stop


class SafeCheckpointIO(CheckpointIO):
    """How Lightning's checkpoints reach the disk and come back."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Raises TrainingDiverged, and leaves the disk as it is, if a number in ``checkpoint`` is not finite."""
        path = Path(path)
        if name := non_finite(dict(_tensors(checkpoint))):
            raise TrainingDiverged(f"Step {checkpoint['global_step']}: {name} is not finite, so no checkpoint was written. {REMEDY}")
        path.parent.mkdir(parents=True, exist_ok=True)
        # same folder: a rename across file systems is a copy, and a copy can end half-way
        partial = path.with_name(f".{path.name}.partial")
        try:
            with partial.open("wb") as file:
                _serialise(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            write_durably(digest_of(path), sha256_of(partial).encode())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        _link(path.parent / LAST, path.name)
        found = sorted(path.parent.glob("step-*.ckpt"))
        past = found[: found.index(path) + 1]
        for stale in [*past[:-KEPT], *found[len(past) :]]:  # a later step is from before a fall-back: its run is no longer this one
            self.remove_checkpoint(stale)
        sync_folder(path.parent)

    def load_checkpoint(self, path: str | Path, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Always ``weights_only``. Raises MedsynthError if the file does not have its recorded digest."""
        path = Path(path)
        if not verifies(path):
            raise MedsynthError(
                f"The checkpoint {path} does not have its recorded digest: it was damaged or changed. Delete it to resume from the one "
                "before."
            )
        try:
            return torch.load(path, map_location=map_location or "cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise MedsynthError(
                f"The checkpoint {path} holds more than tensors and plain containers, and is not loaded: delete it."
            ) from error

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)
        digest_of(Path(path)).unlink(missing_ok=True)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that verifies, or None where there is none at all. One that is passed over is said.

    Raises MedsynthError if there are checkpoints and every one is damaged: starting anew in silence would lose days.
    """
    found = sorted(folder.glob("step-*.ckpt"), reverse=True)
    for path in found:
        if verifies(path):
            return path
        log.warning("The checkpoint %s does not verify (damaged or changed); falling back to the one before.", path.name)
    if found:
        raise MedsynthError(
            f"None of the {len(found)} checkpoints in {folder} verifies. Restore one from a backup, or delete {folder} to train from "
            "the start."
        )
    return None


def step_of(path: Path) -> int:
    """The step after which a checkpoint was written, from its name."""
    return int(path.stem.removeprefix("step-"))


def _serialise(checkpoint: dict[str, Any], file: BinaryIO) -> None:
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):  # torch closes its archive after the disk was full, and so hides it
            raise error.__context__ from None
        raise


def verifies(path: Path) -> bool:
    """Whether a checkpoint has the digest that was recorded when it was written."""
    recorded = digest_of(path.resolve())
    return path.is_file() and recorded.is_file() and recorded.read_text() == sha256_of(path)


def digest_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def write_durably(path: Path, data: bytes) -> None:
    """Write by rename, on the disk when this returns."""
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def sync_folder(folder: Path) -> None:
    """Make renames in ``folder`` durable: they are entries of the folder, not of the files."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _link(link: Path, target: str) -> None:
    partial = link.with_name(f".{link.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    partial.replace(link)


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping | list | tuple):
        for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
            yield from _tensors(item, f"{name}.{key}" if name else str(key))


class Checkpoints(L.Callback):
    """Saves every ``every`` steps, at the last step, and when a signal asks the process to stop.

    It must be the last callback: what the others did at a step is then part of that step's checkpoint.
    """

    def __init__(self, folder: Path, every: int) -> None:
        self.folder, self.every = folder, every
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: DiffusionModule) -> None:
        if threading.current_thread() is threading.main_thread():
            # after Lightning's own handlers, which save nothing and speak to other ranks from within a signal
            self._handlers = {number: signal.signal(number, self._stop) for number in STOP_SIGNALS}

    def _stop(self, number: int, frame: Any) -> None:
        if self._signal is not None:  # asked twice: at once, then
            raise KeyboardInterrupt
        self._signal = number

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: DiffusionModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not batch["last"]:
            return
        step, stopped = trainer.global_step, self._asked_to_stop(trainer)
        if step % self.every == 0 or step == trainer.max_steps or trainer.should_stop or stopped:
            pl_module.guard.check()
            trainer.save_checkpoint(self.folder / f"step-{step:08d}.ckpt")
        if stopped:
            raise Interrupted(
                f"Training was asked to stop by {signal.Signals(stopped).name}. Step {step} is saved; the same command goes on from there."
            )

    def _asked_to_stop(self, trainer: L.Trainer) -> int:
        if trainer.world_size == 1:
            return self._signal or 0
        # a signal reaches ranks at different steps, and a save needs all of them
        return max(distributed.gather(self._signal or 0)) if trainer.global_step % AGREE_EVERY == 0 else 0

    def teardown(self, trainer: L.Trainer, pl_module: DiffusionModule, stage: str) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
