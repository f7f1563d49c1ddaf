"""Averaged weights of a few steps on the way, so that what the model could draw can be told against how long it was trained."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as L

from medsynth.diffusion.denoiser import Denoiser
from medsynth.training.ema import EMA
from medsynth.training.module import DiffusionModule

MOST = 8

Save = Callable[[int, Denoiser], None]  # keeps the denoiser of a step
Forget = Callable[[int], None]


def spacing(step: int, every: int) -> int:
    """Steps between two snapshots once training has come to ``step``: ``every``, doubled until there are at most `MOST`."""
    while step // every > MOST:
        every *= 2
    return every


class Snapshots(L.Callback):
    """Saves the averaged denoiser every ``every`` steps, and forgets every other one where they become more than `MOST`.

    ``saved`` are the steps that are there already: a resumed training goes on with them.
    """

    def __init__(self, *, every: int, ema: EMA, saved: Sequence[int], save: Save, forget: Forget) -> None:
        self.every, self.ema, self.saved, self.save, self.forget = every, ema, set(saved), save, forget

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: DiffusionModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if not batch["last"] or not trainer.is_global_zero or step % self.every:
            return
        apart = spacing(step, self.every)
        if step % apart == 0:
            with self.ema.swapped(pl_module.denoiser):
                self.save(step, pl_module.denoiser)
            self.saved.add(step)
        for old in sorted(step for step in self.saved if step % apart):
            self.forget(old)
            self.saved.remove(old)
