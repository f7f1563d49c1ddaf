"""Batches for training, as a function of the step: nothing here remembers what was drawn before.

The cases of step ``s`` follow from the seed and ``s`` alone. So a run that resumes at ``s``, or is shared among other ranks, goes
through the data in the same global order, and skipping to any step costs nothing.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from medsynth.canaries import CanarySet
from medsynth.cohort import Case, Cohort
from medsynth.errors import SettingsError
from medsynth.rng import generator_for

Batch = dict[str, Any]
Shards = dict[str, np.ndarray | None]


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a step's global batch is cut: among ranks, and within a rank into parts that fit on a device, whose gradients are accumulated."""

    global_batch: int
    world_size: int = 1
    device_batch: int | None = None  # largest part; None: all of a rank's share

    def __post_init__(self) -> None:
        if self.global_batch < self.world_size:
            raise SettingsError(
                f"fit.global_batch={self.global_batch} leaves some of {self.world_size} devices without a case. Make it larger."
            )
        if self.device_batch is not None and self.device_batch < 1:
            raise SettingsError(f"fit.device_batch={self.device_batch}: must be at least 1, or null for no limit.")
        if self.parts > self.global_batch:
            raise SettingsError(
                f"fit.global_batch={self.global_batch} cannot be cut into {self.accumulate} parts for each of {self.world_size} devices. "
                f"Take a multiple of {self.world_size}, or another fit.device_batch."
            )

    @property
    def accumulate(self) -> int:
        """Parts a rank goes through before the optimiser steps."""
        share = -(-self.global_batch // self.world_size)
        return -(-share // (self.device_batch or share))

    @property
    def parts(self) -> int:
        """Parts of a step over all ranks."""
        return self.accumulate * self.world_size

    def rows(self, part: int) -> range:
        """Rows of the global batch in this part; parts differ by one row at most."""
        return range(self.global_batch * part // self.parts, self.global_batch * (part + 1) // self.parts)


@dataclass(frozen=True)
class Part:
    """One device's share of one step: ``indices`` into the cases, ``rows`` of the global batch that they are."""

    step: int
    rows: Sequence[int]
    indices: np.ndarray
    last: bool  # the optimiser steps after it


def step_indices(step: int, *, cases: int, global_batch: int, seed: int) -> np.ndarray:
    """The cases of this step's global batch, ``(global_batch,)``.

    All steps together are one sequence of permutations: each case comes once an epoch, and a batch may reach over the border of two.
    """
    positions = np.arange(step * global_batch, (step + 1) * global_batch)
    return np.array([_epoch(int(position // cases), cases, seed)[position % cases] for position in positions])


@lru_cache(maxsize=4)
def _epoch(epoch: int, cases: int, seed: int) -> np.ndarray:
    return generator_for(seed, "epoch", epoch).permutation(cases)


class StepSampler(Sampler[Part]):
    """This rank's parts of every step from ``first()`` on, without an end: the trainer knows when it is done."""

    def __init__(self, *, cases: int, layout: Layout, rank: int, seed: int, first: Callable[[], int]) -> None:
        self.cases, self.layout, self.rank, self.seed, self.first = cases, layout, rank, seed, first

    def __iter__(self) -> Iterator[Part]:
        step = self.first()
        while True:
            indices = step_indices(step, cases=self.cases, global_batch=self.layout.global_batch, seed=self.seed)
            for turn in range(self.layout.accumulate):
                rows = self.layout.rows(turn * self.layout.world_size + self.rank)
                yield Part(step, rows, indices[rows.start : rows.stop], last=turn == self.layout.accumulate - 1)
            step += 1


class SubjectSampler(Sampler[Part]):
    """Parts of steps that draw every subject with the same chance, and one case of each (Poisson sampling, for differential privacy).

    A step has ``layout.global_batch`` subjects on average, and may have none. Rows of a part are the subjects' numbers. Who is drawn
    follows from ``secret`` and the step.
    """

    def __init__(self, *, subjects: Sequence[str], layout: Layout, rank: int, secret: int, first: Callable[[], int]) -> None:
        self.cases: dict[str, list[int]] = {subject: [] for subject in sorted(set(subjects))}
        for index, subject in enumerate(subjects):
            self.cases[subject].append(index)
        self.layout, self.rank, self.secret, self.first = layout, rank, secret, first

    def __iter__(self) -> Iterator[Part]:
        step, cases = self.first(), list(self.cases.values())
        while True:
            drawn = np.flatnonzero(generator_for(self.secret, "subjects", step).random(len(cases)) < self.layout.global_batch / len(cases))
            parts = np.array_split(drawn, self.layout.parts)
            for turn in range(self.layout.accumulate):
                rows = parts[turn * self.layout.world_size + self.rank].tolist()
                indices = [cases[row][generator_for(self.secret, "case", step, row).integers(len(cases[row]))] for row in rows]
                yield Part(step, rows, np.array(indices, dtype=int), last=turn == self.layout.accumulate - 1)
            step += 1


class Rows(Dataset):
    """Whole batches of a cohort, read at once: rows of the cache by one fancy index of the memory map, anything else case by case.

    Canaries, if any, follow the cohort's cases as if they were some more.
    """

    def __init__(self, cohort: Cohort, canaries: CanarySet | None = None) -> None:
        self.cohort = cohort
        added = canaries.inserted if canaries else ()
        conditions = [*(case.condition for case in cohort), *(canaries.condition(number) for number in added)]
        self.conditions = np.array([cohort.header.conditions.encode(condition) for condition in conditions], np.float32)
        self.added = np.stack([canaries.image(number) for number in added]) if added else np.zeros(0, np.float32)
        self.shards = _shards(cohort.cases, lambda case: case.path)
        self.masks = _shards(cohort.cases, lambda case: case.mask) if cohort.header.joint_mask else None

    def __len__(self) -> int:
        return len(self.cohort) + len(self.added)

    def pixels(self, indices: Sequence[int] | np.ndarray) -> torch.Tensor:
        """``(n, channel, *space)`` in model units, in the cache's precision; the same values as `Cohort.pixels`."""
        indices = np.asarray(indices)
        beyond = indices - len(self.cohort)
        if (beyond < 0).all():
            return self._stored(indices)
        images = torch.from_numpy(self.added[np.maximum(beyond, 0)])
        if (beyond < 0).any():
            images[torch.from_numpy(beyond < 0)] = self._stored(indices[beyond < 0]).to(images.dtype)
        return images

    def _stored(self, indices: np.ndarray) -> torch.Tensor:
        cases = [self.cohort.cases[i] for i in indices]
        if not cases:
            return torch.zeros((0, self.cohort.header.channels, *self.cohort.header.shape))
        if any(case.row is None for case in cases):
            return torch.from_numpy(np.stack([self.cohort.pixels(case) for case in cases]))
        images = self._gather(self.shards, "path", cases)
        if self.masks is not None:
            masks = self._gather(self.masks, "mask", cases)
            images = np.concatenate(
                [images, *(np.where(masks == n, 1, -1).astype(images.dtype) for n in self.cohort.header.labels)], axis=1
            )
        return torch.from_numpy(images)

    def _gather(self, shards: Shards, name: str, cases: Sequence[Case]) -> np.ndarray:
        where = [getattr(case, name) for case in cases]
        rows = np.array([case.row for case in cases])
        shape = (1, *self.cohort.header.shape)
        if len(set(where)) == 1:
            return self._open(shards, where[0])[rows].reshape(len(cases), *shape)
        return np.stack([self._open(shards, path)[row].reshape(shape) for path, row in zip(where, rows, strict=True)])

    def _open(self, shards: Shards, path: str) -> np.ndarray:
        if shards.get(path) is None:
            shards[path] = np.load(self.cohort.folder / path, mmap_mode="r", allow_pickle=False)
        return shards[path]

    def batch(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """``x`` (n, channel, *space) and ``condition`` (n, size), or None where the cohort has no conditions."""
        conditions = torch.from_numpy(self.conditions[np.asarray(indices)]) if self.conditions.shape[1] else None
        return {"x": self.pixels(indices), "condition": conditions}

    def __getitem__(self, part: Part) -> Batch:
        return self.batch(part.indices) | {"step": part.step, "rows": part.rows, "last": part.last, "indices": part.indices.tolist()}


def _shards(cases: Sequence[Case], name: Callable[[Case], str | None]) -> Shards:
    """Places for the memory maps, opened at their first use: a worker process opens its own."""
    return {path: None for case in cases if case.row is not None and (path := name(case)) is not None}


class CohortData(L.LightningDataModule):
    """The training cases of a prepared cohort, with canaries if there are any, and its validation cases.

    With a ``secret``, which seeds it, subjects are drawn by chance (`SubjectSampler`); each canary is then one more.
    """

    def __init__(
        self, cohort: Cohort, *, layout: Layout, rank: int, seed: int, canaries: CanarySet | None = None, secret: int | None = None
    ) -> None:
        super().__init__()
        self.train, self.validation = Rows(cohort.split("train"), canaries), Rows(cohort.split("validation"))
        self.layout, self.rank, self.seed, self.secret = layout, rank, seed, secret
        if not len(self.train):
            raise SettingsError(
                "The prepared cohort has no training case. Give the source more subjects, or data.splits.train a larger share."
            )

    @property
    def subjects(self) -> list[str]:
        """The subject of each training row; a canary is one of its own."""
        return [*self.train.cohort.subjects, *(f"canary {number}" for number in range(len(self.train.added)))]

    def train_dataloader(self) -> DataLoader:
        place = {"layout": self.layout, "rank": self.rank, "first": lambda: self.trainer.global_step}
        if self.secret is None:
            sampler: Sampler[Part] = StepSampler(cases=len(self.train), seed=self.seed, **place)
        else:
            sampler = SubjectSampler(subjects=self.subjects, secret=self.secret, **place)
        # no workers: a fancy index of a memory map takes less time than handing a batch from one process to another
        return DataLoader(self.train, sampler=sampler, batch_size=None)
