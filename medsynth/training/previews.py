"""A few images drawn while the model trains, always from the same noise and conditions: what changes from one to the next is the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from torch import Tensor

from medsynth.diffusion.denoiser import Denoiser
from medsynth.training.ema import EMA
from medsynth.training.module import DiffusionModule

Draw = Callable[[Denoiser, torch.device], Tensor]  # images (n, channel, *space) in model units
Show = Callable[[np.ndarray, Path], None]  # writes them as one picture


class Previews(L.Callback):
    """Every ``every`` steps the averaged model draws, and ``show`` writes ``step_000500.png`` into ``folder``."""

    def __init__(self, *, folder: Path, every: int, ema: EMA, draw: Draw, show: Show) -> None:
        self.folder, self.every, self.ema, self.draw, self.show = folder, every, ema, draw, show

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: DiffusionModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if not batch["last"] or not trainer.is_global_zero or (step % self.every and step != trainer.max_steps):
            return
        with self.ema.swapped(pl_module.denoiser), trainer.precision_plugin.forward_context():
            images = self.draw(pl_module.denoiser, pl_module.device)
        self.show(images.float().cpu().numpy(), self.folder / f"step_{step:06d}.png")
