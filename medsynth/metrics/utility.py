"""What a cohort is worth for training another model: small classifiers and segmenters, trained on it and tested on real held-out people.

Every net is alike and takes the same number of optimiser steps, whatever it is trained on: more images must not buy more training. And
what synthetic images add is held against as many *duplicates* of real ones, so that a longer list is not taken for new knowledge.
(Synthetic images that beat no augmentation at all have been beaten by this control: Pink and Sykes 2026, PMLR 318.) Nets run on one
thread, so that a number depends on its seed alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from monai.losses import DiceCELoss
from monai.networks.nets import Classifier, UNet
from torch import nn

from medsynth.rng import generator_for, seed_for

Kind = Literal["classification", "segmentation"]
Rows = np.ndarray  # indices into the pool of cases; a duplicate is an index that stands twice


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a net is trained: ``steps`` of AdamW on ``batch`` cases, a cosine from ``rate`` to 0; ``width`` channels at first."""

    steps: int
    batch: int = 32
    width: int = 12
    rate: float = 5e-3


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """``images`` (case, 1, *space) in model units; ``targets`` are classes ``(case,)``, 0 to ``classes`` - 1, or maps ``(case, *space)`` of
    them with 0 as background."""

    kind: Kind
    images: np.ndarray
    targets: np.ndarray
    classes: int


@dataclass(frozen=True, kw_only=True)
class Arm:
    """What a net is trained on: a share of the real subjects, ``added`` further cases (times the number of all real ones), and of what kind
    these are."""

    name: str
    share: float = 0.0
    added: float = 0.0
    kind: Literal["synthetic", "duplicates", ""] = ""


REAL, SYNTHETIC = "real", "synthetic"  # trained on all real cases (TRTR), and on synthetic ones alone (TSTR)


def arms(shares: Sequence[float], mixtures: Sequence[float]) -> list[Arm]:
    """All arms: the learning curve of real data, with and without the largest mixture, and the smaller mixtures with all real data. Each
    mixture has its control of duplicates."""
    found = [Arm(name=SYNTHETIC, added=1.0, kind="synthetic")]
    for share in sorted({*shares, 1.0}):
        real = REAL if share == 1 else f"{100 * share:g} % real"
        found.append(Arm(name=real, share=share))
        for ratio in sorted(mixtures) if share == 1 else [max(mixtures)]:
            more = "" if ratio == max(mixtures) else f"{ratio:g} x "
            found += [Arm(name=f"{real} + {more}{kind}", share=share, added=ratio, kind=kind) for kind in ("synthetic", "duplicates")]
    return found


def rows_of(arm: Arm, real: Rows, subjects: Sequence[str], synthetic: Rows, *, seed: int) -> Rows:
    """The cases of an arm. ``subjects`` are those of the real rows: a share is one of people. Shares of one seed are nested."""
    order = generator_for(seed, "subjects").permutation(sorted(set(subjects)))
    chosen = set(order[: max(1, round(arm.share * len(order)))] if arm.share else [])
    kept = np.array([row for row, subject in zip(real, subjects, strict=True) if subject in chosen], int)
    count = min(round(arm.added * len(real)), len(synthetic))  # duplicates are as many as there are synthetic ones to add
    source = kept if arm.kind == "duplicates" else generator_for(seed, "synthetic").permutation(synthetic)
    return np.concatenate([kept, np.resize(source, count)]).astype(int) if count else kept


def outcome(task: Task, rows: Rows, tests: Mapping[str, Rows], recipe: Recipe, *, seed: int) -> dict[str, np.ndarray]:
    """Train a net on ``rows`` and test it on each set of rows: right (1) or wrong (0) a case, or the Dice coefficient, mean over labels.

    A label that a case does not have counts 1 where the net finds none either, else 0.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        net = _trained(task, rows, recipe, seed)
        return {name: _judged(task, net, np.asarray(some), recipe.batch) for name, some in tests.items()}
    finally:
        torch.set_num_threads(threads)


def _trained(task: Task, rows: Rows, recipe: Recipe, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "weights"))
        net = _net(task, recipe.width)
    loss = nn.CrossEntropyLoss() if task.kind == "classification" else DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.rate)
    generator = generator_for(seed, "batches")
    waiting = np.zeros(0, int)
    for step in range(recipe.steps):
        while len(waiting) < recipe.batch:
            waiting = np.concatenate([waiting, generator.permutation(rows)])
        batch, waiting = waiting[: recipe.batch], waiting[recipe.batch :]
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate * (1 + math.cos(math.pi * step / recipe.steps)) / 2
        targets = torch.from_numpy(task.targets[batch].astype(np.int64))
        optimizer.zero_grad()
        loss(net(_read(task, batch)), targets if task.kind == "classification" else targets[:, None]).backward()
        optimizer.step()
    return net.eval()


def _net(task: Task, width: int) -> nn.Module:
    space = task.images.shape[2:]
    depth = int(np.clip(math.log2(min(space) / 4), 1, 3))
    channels = [width * 2**level for level in range(depth + 1)]
    if task.kind == "classification":
        return Classifier(in_shape=(1, *space), classes=task.classes, channels=channels, strides=[2] * depth + [1], num_res_units=1)
    return _Padded(UNet(len(space), 1, task.classes, channels=channels, strides=[2] * depth, num_res_units=1), 2**depth)


class _Padded(nn.Module):
    """A net that needs sides of multiples of ``step``: images are continued at their far edges, and the result is cut."""

    def __init__(self, net: nn.Module, step: int) -> None:
        super().__init__()
        self.net, self.step = net, step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        space = x.shape[2:]
        padding = [n for size in reversed(space) for n in (0, -size % self.step)]
        return self.net(nn.functional.pad(x, padding, mode="replicate"))[(..., *(slice(size) for size in space))]


def _read(task: Task, rows: Rows) -> torch.Tensor:
    return torch.from_numpy(np.array(task.images[rows], np.float32))


def _judged(task: Task, net: nn.Module, rows: Rows, batch: int) -> np.ndarray:
    with torch.inference_mode():
        parts = np.array_split(rows, max(1, -(-len(rows) // batch)))
        found = np.concatenate([net(_read(task, part)).argmax(1).numpy() for part in parts])
    truth = np.asarray(task.targets[rows])
    return (found == truth).astype(float) if task.kind == "classification" else dice(found, truth, task.classes)


def dice(found: np.ndarray, truth: np.ndarray, classes: int) -> np.ndarray:
    """Mean Dice coefficient of labels 1 to ``classes`` - 1 of each case, ``(case, *space) -> (case,)``; 1 for a label that neither has."""
    found, truth = (maps.reshape(len(maps), -1) for maps in (found, truth))
    scores = []
    for label in range(1, classes):
        a, b = found == label, truth == label
        total = a.sum(1) + b.sum(1)
        scores.append(np.where(total, 2 * (a & b).sum(1) / np.maximum(total, 1), 1.0))
    return np.mean(scores, axis=0)


# ------------------------------------------------------------------------------------------------------------------------ with their doubt


@dataclass(frozen=True, kw_only=True, eq=False)
class Doubt:
    """Draws of subjects and of nets, the same for all arms: so two arms are compared on the same people, drawn again and again.

    ``strata`` are groups of cases that count alike whatever their size: the classes, for balanced accuracy; one, for Dice.
    """

    cases: np.ndarray  # (draw, case): how often each case's subject was drawn; the first row is 1: the estimate itself
    nets: np.ndarray  # (draw, net): shares that sum to 1
    strata: np.ndarray  # (case,)

    @classmethod
    def of(cls, subjects: Sequence[str], strata: np.ndarray, nets: int, *, draws: int, seed: int) -> "Doubt":
        generator = generator_for(seed, "doubt")
        names, place = np.unique(np.asarray(subjects), return_inverse=True)
        people = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
        shares = generator.multinomial(nets, np.full(nets, 1 / nets), size=draws) / nets
        everybody, all_nets = np.ones((1, len(names)), int), np.full((1, nets), 1 / nets)
        return cls(cases=np.concatenate([everybody, people])[:, place], nets=np.concatenate([all_nets, shares]), strata=np.asarray(strata))

    def drawn(self, values: np.ndarray) -> np.ndarray:
        """``(net, case)`` to ``(draw,)``: the mean over strata of the mean over cases. A stratum that a draw lacks is left out of it."""
        means = []
        for stratum in np.unique(self.strata):
            weights = self.cases[:, self.strata == stratum]
            total = weights.sum(axis=1, keepdims=True)
            mean = weights @ values[:, self.strata == stratum].T / np.maximum(total, 1)
            means.append(np.where(total, mean, np.nan))
        return (np.nanmean(means, axis=0) * self.nets).sum(axis=1)


def told(drawn: np.ndarray) -> dict[str, object]:
    """The estimate and its 95 % interval (percentiles), from `Doubt.drawn` or a difference of two."""
    low, high = np.percentile(drawn[1:], (2.5, 97.5))
    return {"value": float(drawn[0]), "interval": [float(low), float(high)]}
