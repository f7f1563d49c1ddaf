"""What is seen of a training run while it goes: a bar with loss, throughput and time left, and a record every 50 steps.

Losses stay on the device until they are recorded: reading a number back at every step would make a GPU wait.
"""

import time
from typing import Any

import lightning.pytorch as L
import torch
from tqdm import tqdm

from medsynth import distributed
from medsynth.training.module import DiffusionModule
from medsynth.training.validation import Record

EVERY = 50  # steps


class Progress(L.Callback):
    """Must be the first callback: the time that the others take is then not counted as throughput."""

    def __init__(self, *, record: Record) -> None:
        self.record = record
        self._losses: list[torch.Tensor] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: DiffusionModule) -> None:
        self._since = time.perf_counter()
        self._bar = tqdm(
            total=trainer.max_steps,
            initial=trainer.global_step,
            desc="train",
            unit="step",
            disable=not trainer.is_global_zero,
            smoothing=0.1,
        )

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: DiffusionModule, batch: Any, batch_idx: int) -> None:
        if not self._losses:
            self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: DiffusionModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not batch["last"]:
            return
        self._losses.append(pl_module.step_loss)
        self._bar.update()
        step = trainer.global_step
        if step % EVERY == 0 or step == trainer.max_steps:
            pl_module.guard.check()
            loss = sum(distributed.gather(torch.stack(self._losses).mean().item()))  # ranks hold shares of one mean
            speed = pl_module.layout.global_batch * len(self._losses) / (time.perf_counter() - self._since)
            self._losses = []
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            self._bar.set_postfix_str(f"loss {loss:.4f}, {speed:.1f} images/s")
            self.record(step, {"loss": loss, "lr": rate, "samples_per_second": speed})

    def teardown(self, trainer: L.Trainer, pl_module: DiffusionModule, stage: str) -> None:
        if hasattr(self, "_bar"):
            self._bar.close()

    def on_exception(self, trainer: L.Trainer, pl_module: DiffusionModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")  # Lightning does not: the message would stand on the bar's line
