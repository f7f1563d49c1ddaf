"""The loss on cases that training never sees, by noise level, with the averaged weights.

One number would hide what matters: low noise levels make texture, high ones anatomy, and they over-fit at different times. The levels
are fixed, and so is the noise of each case at each level (common random numbers), so that two validations differ by the weights alone.

Beside them as many training cases are asked, in the same noise: what they are spared of the loss is memorization while it grows, long
before a copy is drawn. It is told with an interval over subjects, and training may stop at a limit, with the averaged weights of the last
validation within it.

Lightning's own validation loop is not used: a checkpoint that it takes half-way through a validation holds loop states that resume in
other ways than an undisturbed run. Here a validation belongs to its step: it is over before that step is saved.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from scipy import stats
from torch import Tensor

from medsynth import distributed
from medsynth.data.loader import CohortData, Rows
from medsynth.diffusion.process import Process
from medsynth.errors import MedsynthError
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


def memorization(training: np.ndarray, validation: np.ndarray, learned: Sequence[str], unseen: Sequence[str]) -> dict[str, float]:
    """Share of the loss that training subjects are spared: mean over the levels of ``1 - training / validation``, with its 95 % interval.

    0 is a model that knows nobody, 1 one that knows them by heart. Losses are ``(case, level)``, ``learned`` and ``unseen`` the cases'
    subjects; the first subjects of both sides make pairs, and the interval is Student's over these. One pair has none, and is no evidence.
    """
    by_learned, by_unseen = _by_subject(training, learned), _by_subject(validation, unseen)
    pairs = min(len(by_learned), len(by_unseen))
    gaps = ((by_unseen[:pairs] - by_learned[:pairs]) / by_unseen[:pairs].mean(0)).mean(1)
    centre = float(gaps.mean())
    reach = float(stats.t.ppf(0.975, pairs - 1) * gaps.std(ddof=1) / pairs**0.5) if pairs > 1 else 1.0
    return {"gap": centre, "low": centre - reach, "high": centre + reach, "subjects": pairs}


def _by_subject(losses: np.ndarray, subjects: Sequence[str]) -> np.ndarray:
    """Mean losses of each subject, ``(subject, level)``, in the order of their first cases."""
    names = list(dict.fromkeys(subjects))
    return np.stack([losses[[name == subject for subject in subjects]].mean(0) for name in names])


class Validation(L.Callback):
    """Validates every ``every`` steps and at the last, and stops training after ``patience`` validations without a lower mean loss.

    With a ``limit`` it stops too where the lower end of `memorization` lies beyond it; ``kept`` are then the averaged weights of the last
    validation within the limit, and ``kept_step`` is its step.
    """

    def __init__(self, *, every: int, ema: EMA, seed: int, record: Record, patience: int | None = None, limit: float | None = None) -> None:
        self.every, self.ema, self.seed, self.record, self.patience, self.limit = every, ema, seed, record, patience, limit
        self.best, self.waited = float("inf"), 0
        self.kept: dict[str, Tensor] = {}
        self.kept_step = 0
        self.beyond = False

    def on_train_start(self, trainer: L.Trainer, pl_module: DiffusionModule) -> None:
        trainer.should_stop = self._done()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: DiffusionModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        due = step % self.every == 0 or step == trainer.max_steps
        data: CohortData = trainer.datamodule
        if not batch["last"] or not due or not len(data.validation):
            return
        unseen, learned = (rows.cohort.subjects[:CASES] for rows in (data.validation, data.train))
        with trainer.precision_plugin.forward_context():
            validation = self.losses(pl_module, data, data.validation, len(unseen))
            training = self.losses(pl_module, data, data.train, min(len(unseen), len(learned)))
        levels = [f"{level:.2g}" for level in noise_levels(pl_module.denoiser.process).tolist()]
        mean = float(validation.mean())
        self.best, self.waited = (mean, 0) if mean < self.best else (self.best, self.waited + 1)
        known = memorization(training, validation, learned[: len(training)], unseen)
        self._watch(step, known["low"])
        trainer.should_stop = self._done()
        told = {"validation": dict(zip(levels, validation.mean(0).tolist(), strict=True)), "validation_loss": mean}
        self.record(step, told | {"memorization": known})

    def _watch(self, step: int, low: float) -> None:
        """Keep the weights while they are within the limit."""
        if self.limit is None:
            return
        self.beyond = low > self.limit
        if not self.beyond:
            self.kept, self.kept_step = {name: tensor.clone() for name, tensor in self.ema.weights.items()}, step
        elif not self.kept:
            raise MedsynthError(
                f"Step {step}, the first validation: training cases are spared at least {low:.0%} of the loss, and "
                f"fit.stop_on_memorization={self.limit} allows {self.limit:.0%}, so there are no weights to keep. Validate more often "
                "(fit.validate_every), train on more subjects, or allow more."
            )

    def _done(self) -> bool:
        return self.beyond or (self.patience is not None and self.waited >= self.patience)

    @torch.no_grad()
    def losses(self, module: DiffusionModule, data: CohortData, rows: Rows, count: int) -> np.ndarray:
        """Losses of the first ``count`` cases of ``rows``, float64 ``(case, level)``, shared among the ranks. Case k has one noise in
        every split."""
        denoiser, levels = module.denoiser, noise_levels(module.denoiser.process).tolist()
        mine = distributed.shard(range(count), data.rank, data.layout.world_size)
        size = data.layout.device_batch or data.layout.global_batch
        found: dict[int, list[float]] = {}
        with self.ema.swapped(denoiser):
            denoiser.eval()
            for start in range(0, len(mine), size):
                indices = mine[start : start + size]
                batch = rows.batch(indices)
                x = batch["x"].float()
                condition = None if batch["condition"] is None else batch["condition"].to(module.device)
                seeds = [seed_for(self.seed, "validation", index) for index in indices]
                noise = torch.stack([torch.randn(x.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds])
                x, noise = x.to(module.device), noise.to(module.device)
                each = [denoiser.loss(x, torch.full((len(x),), level, device=x.device), noise, condition) for level in levels]
                found |= dict(zip(indices, torch.stack(each, dim=1).double().tolist(), strict=True))
        everybody = {index: row for part in distributed.gather(found) for index, row in part.items()}
        return np.array([everybody[index] for index in range(count)])

    def state_dict(self) -> dict[str, Any]:
        # plain numbers; infinity (nothing validated yet) is left out, since a checkpoint holds finite numbers only
        state: dict[str, Any] = {"waited": self.waited} | ({"best": self.best} if self.best < float("inf") else {})
        return state | ({"kept": self.kept, "kept_step": self.kept_step, "beyond": self.beyond} if self.limit is not None else {})

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.waited = state_dict.get("best", float("inf")), state_dict["waited"]
        self.kept = {name: tensor.clone() for name, tensor in state_dict.get("kept", {}).items()}
        self.kept_step, self.beyond = state_dict.get("kept_step", 0), state_dict.get("beyond", False)
