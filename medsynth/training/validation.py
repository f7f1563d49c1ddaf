"""The loss on cases that training never sees, by noise level, with the averaged weights.

One number would hide what matters: low noise levels make texture, high ones anatomy, and they over-fit at different times. The levels
are fixed, and so is the noise of each case at each level (common random numbers), so that two validations differ by the weights alone.

Lightning's own validation loop is not used: a checkpoint that it takes half-way through a validation holds loop states that resume in
other ways than an undisturbed run. Here a validation belongs to its step: it is over before that step is saved.
"""

from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from medsynth import distributed
from medsynth.data.loader import CohortData
from medsynth.diffusion.process import Process
from medsynth.rng import seed_for
from medsynth.training.ema import EMA
from medsynth.training.module import DiffusionModule

LEVELS = 6
CASES = 64  # of the validation split, at most: the first of its order, which the cohort drew by seed

Record = Callable[[int, Mapping[str, Any]], None]


def noise_levels(process: Process) -> Tensor:
    """Middles of `LEVELS` equally likely parts of the process' training noise levels, float32 ``(LEVELS,)``, rising."""
    drawn = process.draw_sigma(LEVELS * 100 + 50, torch.Generator().manual_seed(0)).sort().values
    return drawn[(torch.arange(LEVELS) * 2 + 1) * len(drawn) // (2 * LEVELS)]


class Validation(L.Callback):
    """Validates every ``every`` steps and at the last, and stops training after ``patience`` validations without a lower mean loss."""

    def __init__(self, *, every: int, ema: EMA, seed: int, record: Record, patience: int | None = None) -> None:
        self.every, self.ema, self.seed, self.record, self.patience = every, ema, seed, record, patience
        self.best, self.waited = float("inf"), 0

    def on_train_start(self, trainer: L.Trainer, pl_module: DiffusionModule) -> None:
        trainer.should_stop = self._exhausted()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: DiffusionModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        due = step % self.every == 0 or step == trainer.max_steps
        if not batch["last"] or not due or not len(trainer.datamodule.validation):
            return
        with trainer.precision_plugin.forward_context():
            losses = self.losses(pl_module, trainer.datamodule)
        mean = sum(losses.values()) / len(losses)
        self.best, self.waited = (mean, 0) if mean < self.best else (self.best, self.waited + 1)
        trainer.should_stop = self._exhausted()
        self.record(step, {"validation": losses, "validation_loss": mean})

    def _exhausted(self) -> bool:
        return self.patience is not None and self.waited >= self.patience

    @torch.no_grad()
    def losses(self, module: DiffusionModule, data: CohortData) -> dict[str, float]:
        """Mean loss over the validation cases of all ranks, by noise level ("0.045")."""
        denoiser, cases = module.denoiser, data.validation.cohort.cases
        levels = noise_levels(denoiser.process)
        mine = distributed.shard(range(min(len(cases), CASES)), data.rank, data.layout.world_size)
        size = data.layout.device_batch or data.layout.global_batch
        sums, count = torch.zeros(LEVELS, dtype=torch.float64), len(mine)
        with self.ema.swapped(denoiser):
            denoiser.eval()
            for start in range(0, len(mine), size):
                indices = mine[start : start + size]
                batch = data.validation.batch(indices)
                x = batch["x"].float()
                condition = None if batch["condition"] is None else batch["condition"].to(module.device)
                seeds = [seed_for(self.seed, "validation", index) for index in indices]
                noise = torch.stack([torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds])
                x, noise = x.to(module.device), noise.to(module.device)
                for number, level in enumerate(levels.tolist()):
                    losses = denoiser.loss(x, torch.full((len(x),), level, device=x.device), noise, condition)
                    sums[number] += losses.double().sum().cpu()
        shares = distributed.gather((sums.tolist(), count))
        total = sum(count for _, count in shares)
        return {f"{level:.2g}": sum(part[k] for part, _ in shares) / total for k, level in enumerate(levels.tolist())}

    def state_dict(self) -> dict[str, Any]:
        # plain numbers; infinity (nothing validated yet) is left out, since a checkpoint holds finite numbers only
        return {"waited": self.waited} | ({"best": self.best} if self.best < float("inf") else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.waited = state_dict.get("best", float("inf")), state_dict["waited"]
