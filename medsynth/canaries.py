"""Canaries: pictures of nobody that training is given on purpose, to see how strongly a model repeats a single case.

A canary looks like the training set's mean with a smooth pattern of its own, as strong as people differ. Canaries come in pairs: a coin
decides which of the two is inserted into training, and the other never is, so that whoever tells them apart has seen the training, and
nothing else (Carlini et al. 2019, "The Secret Sharer"; Steinke et al. 2023, "Privacy auditing with one (1) training run").

They are a function of the training set, their number and the run's seed, drawn anew wherever they are needed: nothing of them is written,
and no cohort holds them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.ndimage import gaussian_filter

from medsynth.cohort import Cohort
from medsynth.conditions import Value
from medsynth.rng import generator_for

MEASURED = 200  # training cases whose mean and spread a canary has, at most
STRENGTH = 2.0  # of a pattern, in standard deviations between cases
FAINTEST = 0.05  # standard deviation, in model units, where cases do not differ
COARSE = 12  # patterns are as smooth as a Gaussian of this part of the grid


@dataclass(frozen=True)
class CanarySet:
    """``count`` pairs for this training set. A canary is a number; pair ``i`` holds ``2 i`` and ``2 i + 1``."""

    train: Cohort
    count: int
    seed: int

    @cached_property
    def inserted(self) -> tuple[int, ...]:
        """Of each pair the one that training is given, as a coin fell."""
        return tuple(2 * pair + int(generator_for(self.seed, "canary coin", pair).integers(2)) for pair in range(self.count))

    @property
    def withheld(self) -> tuple[int, ...]:
        """The other one of each pair."""
        return tuple(number ^ 1 for number in self.inserted)

    def references(self, count: int) -> range:
        """Further canaries, of which none is inserted."""
        return range(2 * self.count, 2 * self.count + count)

    @cached_property
    def mean(self) -> np.ndarray:
        """Of the training images, float32 ``(channel, *space)`` in model units."""
        return self._measured.mean(axis=0)

    @cached_property
    def _spread(self) -> np.ndarray:
        return np.maximum(self._measured.std(axis=0), FAINTEST)

    @cached_property
    def _measured(self) -> np.ndarray:
        chosen = generator_for(self.seed, "canary look").permutation(len(self.train))[:MEASURED]
        return np.stack([self.train.pixels(self.train.cases[row]) for row in sorted(chosen)])

    def image(self, number: int) -> np.ndarray:
        """float32 ``(channel, *space)`` in model units. Masks have no pattern: they are empty where most cases have no label."""
        space = self.mean.shape[1:]
        noise = generator_for(self.seed, "canary", number).standard_normal(space)
        pattern = gaussian_filter(noise, [max(size / COARSE, 1.0) for size in space], mode="nearest")
        image = np.where(self.mean > 0, 1.0, -1.0).astype(np.float32)
        image[0] = np.clip(self.mean[0] + STRENGTH * self._spread[0] * (pattern - pattern.mean()) / pattern.std(), -1, 1)
        return image

    def condition(self, number: int) -> Mapping[str, Value]:
        """That of a training case; both of a pair have the same."""
        return self.train.cases[int(generator_for(self.seed, "canary condition", number // 2).integers(len(self.train)))].condition
