"""The moving average of the weights: what a diffusion model is sampled with.

Its memory is a half-life in steps, which keeps its meaning when the batch or the run's length changes. Early in a run it is shorter, a
share of the steps so far, so that the first weights, which are noise, are soon forgotten (Karras et al. 2024, Section 3.1).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor, nn

from medsynth.training.module import DiffusionModule

RAMP = 0.1  # the half-life never exceeds this share of the steps so far


def new_share(step: int, halflife: float) -> float:
    """Share of the new weights in the average after ``step`` (the first is 1)."""
    return 1.0 - 0.5 ** (1.0 / min(halflife, RAMP * step))


class EMA(L.Callback):
    """Updates the average after every step; its state is part of the checkpoint."""

    def __init__(self, halflife: float) -> None:
        self.halflife = halflife
        self.weights: dict[str, Tensor] = {}

    def setup(self, trainer: L.Trainer, pl_module: DiffusionModule, stage: str) -> None:
        self.start(pl_module.denoiser)

    def start(self, model: nn.Module) -> None:
        self.weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}

    def on_fit_start(self, trainer: L.Trainer, pl_module: DiffusionModule) -> None:
        self.weights = {name: tensor.to(pl_module.device) for name, tensor in self.weights.items()}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: DiffusionModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch["last"]:
            self.update(pl_module.denoiser, trainer.global_step)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        torch._foreach_lerp_(list(self.weights.values()), list(model.parameters()), new_share(step, self.halflife))

    @contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """Inside, ``model`` has the averaged weights; afterwards its own again, bit for bit."""
        parameters = dict(model.named_parameters())
        own = {name: parameter.data for name, parameter in parameters.items()}
        training = model.training
        try:
            for name, parameter in parameters.items():
                parameter.data = self.weights[name]
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = own[name]
            model.train(training)

    def state_dict(self) -> dict[str, Any]:
        return {"halflife": float(self.halflife), "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.weights = {name: tensor.clone() for name, tensor in state_dict["weights"].items()}
