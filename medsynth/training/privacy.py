"""Differential privacy: weights that would be almost as likely had any one subject stayed away (DP-SGD, Abadi et al. 2016, Algorithm 1).

Each step draws every subject with the same small chance, takes one case of each, clips that case's gradient to a norm of ``clip``, and adds
normal noise of ``noise * clip`` to the sum. One subject is one record: however many slices or visits there are of a person, they move the
sum by at most ``clip``. What the noise is worth is counted by Opacus' accountant. Averages of the weights, and whatever is drawn from them,
cost nothing more.

The noise and the draw of subjects must be unknown to whoever attacks, so their generator is seeded by the secret key of the pseudonyms and
not by the run's seed alone: the same run gives the same bytes, and nobody without the key can take the noise off again.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from medsynth.data.loader import Batch
from medsynth.diffusion.denoiser import Denoiser
from medsynth.errors import SettingsError
from medsynth.rng import seed_for
from medsynth.training.module import DiffusionModule

AT_ONCE = {"cpu": 4}  # records whose gradients are computed together; on a CPU more are slower (measured: 16 take 7 times as long)


@dataclass(frozen=True, kw_only=True)
class DifferentialPrivacy:
    """What is promised: (``epsilon``, ``delta``) for any one record; ``delta`` None is a tenth of one over the number of records.

    ``clip`` is the norm to which a record's gradient is clipped.
    """

    epsilon: float = 8.0
    delta: float | None = None
    clip: float = 1.0

    def __post_init__(self) -> None:
        if self.epsilon <= 0 or self.clip <= 0:
            raise SettingsError(f"privacy.epsilon={self.epsilon} and privacy.clip={self.clip}: both must be above 0.")

    def budget(self, *, records: int, batch: int, steps: int) -> "Budget":
        """The noise that keeps the promise for so many ``steps`` of an expected ``batch``. Raises SettingsError where none can."""
        delta = 0.1 / records if self.delta is None else self.delta
        if not 0 < delta < 1 / records:
            raise SettingsError(f"privacy.delta={delta}: must be below one over the number of training subjects, 1/{records}.")
        if batch > records:
            raise SettingsError(
                f"fit.global_batch={batch} is more than the {records} training subjects, of whom each step draws some: make it smaller."
            )
        find = _opacus().accountants.utils.get_noise_multiplier
        with _no_advice():
            noise = find(target_epsilon=self.epsilon, target_delta=delta, sample_rate=batch / records, steps=steps, accountant="prv")
        return Budget(noise=noise, rate=batch / records, delta=delta, clip=self.clip, records=records)


@dataclass(frozen=True, kw_only=True)
class Budget:
    """``noise`` is in units of ``clip``; ``rate`` the chance of each of ``records`` at each step."""

    noise: float
    rate: float
    delta: float
    clip: float
    records: int

    def spent(self, steps: int) -> float:
        """Epsilon after so many steps (Gopi et al. 2021, numerical composition of the subsampled Gaussian mechanism)."""
        accountant = _opacus().accountants.create_accountant("prv")
        accountant.history = [(self.noise, self.rate, steps)]
        with _no_advice():
            return float(accountant.get_epsilon(self.delta))

    def statement(self, steps: int, unit: str) -> dict[str, Any]:
        """What may be said of weights after so many steps, in plain values. ``unit`` is what a record is: subject or image."""
        return {
            "epsilon": round(self.spent(steps), 4),
            "delta": self.delta,
            "record": unit,
            "records": self.records,
            "noise": self.noise,
            "clip": self.clip,
            "rate": self.rate,
            "steps": steps,
        }


class PrivateModule(DiffusionModule):
    """Trains by DP-SGD under a ``budget``; ``secret`` seeds the noise. The other settings are those of `DiffusionModule`.

    Raises SettingsError for a network that mixes the cases of a batch: then no gradient belongs to one record.
    """

    def __init__(self, denoiser: Denoiser, *args: Any, budget: Budget, secret: int, **settings: Any) -> None:
        super().__init__(denoiser, *args, **settings)
        self.budget, self.secret = budget, secret
        faults = _opacus().validators.ModuleValidator.validate(denoiser.train(), strict=False)
        if faults:
            raise SettingsError(
                f"privacy=dp: {len(faults)} layers of the network do not keep the cases of a batch apart, or cannot be shown to: "
                f"{str(faults[0]).splitlines()[0]} Take a network without them (such as unet_small), or privacy=none."
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """A loss whose gradient is the sum of the records' clipped gradients, over the expected batch."""
        parameters = list(self.denoiser.parameters())
        if len(batch["rows"]):
            losses, gradients = self.gradients(batch)
            norms = torch.stack([each.flatten(1).norm(dim=1) for each in gradients]).norm(dim=0)
            share = (self.budget.clip / norms.clamp(min=1e-12)).clamp(max=1.0)
            clipped = [torch.tensordot(share, each, 1) for each in gradients]
        else:  # nobody was drawn: this step is noise alone
            losses, clipped = torch.zeros(1, device=self.device), [torch.zeros_like(each) for each in parameters]
        loss = losses.detach().sum() / self.layout.global_batch
        self.step_loss = loss if self.step_loss is None else self.step_loss + loss
        total = sum((parameter * each).sum() for parameter, each in zip(parameters, clipped, strict=True))
        return total / self.layout.global_batch * self.layout.parts

    def gradients(self, batch: Batch) -> tuple[Tensor, list[Tensor]]:
        """Losses ``(n,)`` and gradients ``(n, *parameter)`` of each record of a batch, as if it stood alone."""
        x, condition, sigma, noise = self.draw(batch)
        model = _Loss(self.denoiser)
        weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

        def loss(weights: dict[str, Tensor], x: Tensor, sigma: Tensor, noise: Tensor, condition: Tensor | None) -> Tensor:
            one = [value if value is None else value[None] for value in (x, sigma, noise, condition)]
            return functional_call(model, weights, tuple(one))

        each = vmap(
            grad_and_value(loss),
            in_dims=(None, 0, 0, 0, None if condition is None else 0),
            chunk_size=AT_ONCE.get(self.device.type),
        )
        # fused attention has no rule for records apart, and would go through them one by one
        with sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext():
            gradients, losses = each(weights, x, sigma, noise, condition)
        return losses, list(gradients.values())

    def levels(self, step: int, rows: Sequence[int]) -> Tensor:
        # each record's own: levels that are spread evenly over a batch would tell each record of the others
        generators = (torch.Generator().manual_seed(seed_for(self.seed, "sigma", step, row)) for row in rows)
        return torch.cat([self.denoiser.process.draw_sigma(1, generator) for generator in generators])

    def configure_gradient_clipping(self, optimizer: Optimizer, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None) -> None:
        """Add the step's noise, the same on every rank; what comes after it (`fit.clip`, the optimiser) costs no privacy."""
        generator = torch.Generator().manual_seed(seed_for(self.secret, "noise", self.global_step))
        deviation = self.budget.noise * self.budget.clip / self.layout.global_batch
        for parameter in self.denoiser.parameters():
            parameter.grad += deviation * torch.randn(parameter.shape, generator=generator).to(parameter.grad)
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["noise"] = self.budget.noise

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if checkpoint["noise"] != self.budget.noise:
            raise SettingsError(
                f"The training began with a noise of {checkpoint['noise']:.4g}, and for these fit.steps and this promise it is "
                f"{self.budget.noise:.4g}. A promise cannot be stretched: delete the folder train, or set what it began with."
            )


class _Loss(nn.Module):
    """The mean loss as a module's ``forward``, which is what functional calls take."""

    def __init__(self, denoiser: Denoiser) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, sigma: Tensor, noise: Tensor, condition: Tensor | None) -> Tensor:
        return self.denoiser.loss(x, sigma, noise, condition).mean()


@contextmanager
def _no_advice() -> Iterator[None]:
    """Without the accountant's remarks on its own bounds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _opacus() -> Any:
    """The library, asked for where it is needed: an optional extra."""
    try:
        import opacus.accountants.utils
        import opacus.validators
    except ImportError as error:
        raise SettingsError("privacy=dp needs Opacus: pip install 'medsynth-diffusion[dp]', or set privacy=none.") from error
    return opacus
