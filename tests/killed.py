"""Runs stages that kill their own process (SIGKILL) at a point: ``python tests/killed.py ROOT POINT...``, each POINT in a forked child.

The parent imports the heavy libraries once and computes nothing, so that forking is safe. Points: ``step`` (7, half-way), ``validation``
(the second, at step 8) and ``saving`` (a checkpoint is half written), each in ``ROOT/<point>``; ``sample`` (a case is half written) in
``ROOT/sample``.
"""

import os
import signal
import sys
from pathlib import Path

import torch

from medsynth.io import nifti
from medsynth.stages import sample, train
from medsynth.training.ema import EMA
from medsynth.training.validation import Validation
from tests.make_run import make_run

FIT = {"steps": 12, "checkpoint_every": 5, "validate_every": 4, "device_batch": 3, "flips": [0]}


def die(*_args: object, **_kwargs: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after(calls: int, function, then=die):
    """``function``, but ``then`` from the ``calls``-th call on."""
    count = iter(range(1, 1 << 30))
    return lambda *args, **kwargs: (then if next(count) >= calls else function)(*args, **kwargs)


def half_then_die(value: object, file) -> None:
    file.write(b"half a checkpoint")
    file.flush()
    die()


def half_a_case(path: Path, *_args: object) -> None:
    path.with_name(f".{path.name}.partial").write_bytes(b"half a case")
    die()


def main(root: Path, point: str) -> None:
    if point == "sample":
        nifti.write = after(4, nifti.write, half_a_case)
        sample.work(make_run(root, sampling={"cases": 9, "batch": 2}), root / "sample")
        return
    if point == "step":
        EMA.update = after(7, EMA.update)
    elif point == "validation":
        Validation.losses = after(4, Validation.losses)  # twice a validation
    elif point == "saving":
        torch.save = after(2, torch.save, half_then_die)
    train.work(make_run(root / point, fit=FIT), root / point / "train")


if __name__ == "__main__":
    for each in sys.argv[2:]:
        child = os.fork()
        if child == 0:
            main(Path(sys.argv[1]), each)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            sys.exit(f"{each}: the child was not killed where it should be (status {status})")
