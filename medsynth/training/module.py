"""One training step: loss and optimiser, nothing else. Averages, previews, checkpoints and bars are callbacks.

Every random number of a step comes from a generator seeded by what it is for: the run's seed, the step, and the case's row in the
global batch. So a step is the same whichever rank, part or restart computes it.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor
from torch.optim import Optimizer

from medsynth.data.loader import Batch, Layout
from medsynth.diffusion.denoiser import Denoiser
from medsynth.rng import seed_for
from medsynth.training.guard import Guard

GUARD_EVERY = {"cpu": 1, "cuda": 10}  # steps; reading a number back makes a GPU wait


class DiffusionModule(L.LightningModule):
    """Trains ``denoiser``; ``optimizer(parameters)`` makes the optimiser.

    ``warmup`` is in steps, ``clip`` the largest gradient norm (0: none), ``dropout`` the share of cases that train without their condition,
    ``flips`` the spatial axes along which a case is mirrored half of the time.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        optimizer: Callable[[Iterable[Tensor]], Optimizer],
        *,
        layout: Layout,
        seed: int,
        warmup: int,
        clip: float,
        dropout: float,
        flips: Sequence[int],
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.optimizer = optimizer
        self.layout, self.seed, self.warmup, self.clip, self.dropout, self.flips = layout, seed, warmup, clip, dropout, tuple(flips)
        self.guard = Guard(denoiser)
        self.step_loss: Tensor | None = None  # this rank's share of the step's mean loss, summed over its parts

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        x, condition, sigma, noise = self.draw(batch)
        total = self.denoiser.loss(x, sigma, noise, condition).sum() / self.layout.global_batch
        self.step_loss = total.detach() if self.step_loss is None else self.step_loss + total.detach()
        # Lightning divides by a rank's parts and averages over ranks: this is the mean over the global batch, also where parts are uneven
        return total * self.layout.parts

    def draw(self, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Augmented images, conditions with some dropped, noise levels and noise of these rows of this step."""
        x, condition, step, rows = batch["x"].float(), batch["condition"], batch["step"], batch["rows"]
        chances, noise = [], []
        for row in rows:
            generator = torch.Generator().manual_seed(seed_for(self.seed, "row", step, row))
            chances.append(torch.rand(1 + len(self.flips), generator=generator))
            noise.append(torch.randn(x.shape[1:], generator=generator))
        chance = torch.stack(chances)
        for column, axis in enumerate(self.flips, start=1):
            mirrored = (chance[:, column] < 0.5).to(x.device).reshape(-1, *[1] * (x.ndim - 1))
            x = torch.where(mirrored, x.flip(2 + axis), x)
        if condition is not None:
            condition = condition * (chance[:, 0] >= self.dropout).to(x.device)[:, None]
        return x, condition, self.levels(step, rows).to(x.device), torch.stack(noise).to(x.device)

    def levels(self, step: int, rows: Sequence[int]) -> Tensor:
        """Noise levels of these rows, drawn for the whole step at once: a process may spread them evenly over the batch."""
        generator = torch.Generator().manual_seed(seed_for(self.seed, "sigma", step))
        return self.denoiser.process.draw_sigma(self.layout.global_batch, generator)[list(rows)]

    def configure_gradient_clipping(self, optimizer: Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None) -> None:
        """Scale all gradients down to a norm of ``clip``, and let the guard see each tensor's own norm on the way."""
        gradients = [parameter.grad for parameter in self.denoiser.parameters() if parameter.grad is not None]
        norms = torch.stack(torch._foreach_norm(gradients))
        self.guard.watch(self.global_step + 1, self.step_loss, norms)
        if (self.global_step + 1) % GUARD_EVERY.get(self.device.type, 1) == 0:
            self.guard.check()
        if self.clip:
            total = torch.linalg.vector_norm(norms)
            torch._foreach_mul_(gradients, (self.clip / (total + 1e-6)).clamp(max=1.0))

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = self.optimizer(self.denoiser.parameters())
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / max(self.warmup, 1)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # Lightning counts parts, and steps when their number divides evenly: a resumed run may be cut into other parts than the saved one
        parts = checkpoint["global_step"] * self.layout.accumulate
        for counts in ("total", "current"):
            checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"][counts] |= {
                "ready": parts,
                "started": parts,
                "processed": parts,
                "completed": parts - 1,  # saved within the last part's callbacks
            }

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        if batch["last"]:  # Lightning calls the callbacks first: they have seen it
            self.step_loss = None
