"""Does another kind of detector see a copy? What rejected a cohort's copies is blind to those that it left.

The search for copies (`medsynth.audit.nearest`) compares grey values. This one compares outlines alone: the directions of the grey values'
gradients, of every synthetic case with every real one, in every mirrored and turned position and small shift. It shares no score, no
threshold and no code with the other, and it is simple on purpose.

A copy lies beyond a line that all cases of a clean cohort together cross with a probability of 5 %. Where the line lies is read from two
groups that hold no copy, held-out subjects before the training set and synthetic cases before the held-out subjects: the nearest of many
follows Gumbel's law (Fisher and Tippett 1928), whose two numbers are taken from quartiles, so that a few odd pairs do not move it.

It is required of a cohort whose copies were rejected while it was drawn, and for information elsewhere.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from medsynth.audit.finding import Evidence, Finding, Verdict
from medsynth.audit.plants import kinds
from medsynth.audit.rates import clopper_pearson
from medsynth.cohort import Cohort
from medsynth.rng import generator_for, seed_for

FEWEST = 8  # held-out subjects: fewer have no quartiles
PLANTED = ("exact", "noise", "blur", "gain", "flip_x", "shift")  # kinds that outlines can show, and that need no other image
FAMILY = 0.05  # probability that any case of a clean cohort lies beyond the line
REACH = 0.06  # share of an axis by which an image is moved, at least one voxel
DIGITS = 4  # of a score: the last bits of a matrix product depend on the processor, a finding must not


@dataclass(frozen=True, kw_only=True)
class Confirmation:
    """The check. Images are averaged down to at most ``voxels``."""

    voxels: int = 1728

    def __call__(self, evidence: Evidence) -> Finding:
        train, holdout, synthetic = (cohort.ordered() for cohort in (evidence.train, evidence.holdout, evidence.synthetic))
        level = evidence.level
        required = bool(synthetic.header.rejected)
        subjects = len(set(holdout.subjects))
        if subjects < FEWEST or not len(train) or not len(synthetic) or len({c.header.shape for c in (train, holdout, synthetic)}) > 1:
            why = (
                f"Nothing can be confirmed with {len(train)} training cases, {len(synthetic)} synthetic cases and {subjects} held-out "
                f"subjects; {FEWEST} of these are needed, and one grid."
            )
            return _finding("inconclusive", why, level.excess, required)
        members, others, cases = (self._images(cohort) for cohort in (train, holdout, synthetic))
        unseen = others[_one_a_subject(holdout, evidence.seed)]
        planted = _planted(members, level.plants, evidence.seed)

        queries = Outlines(np.concatenate([cases, unseen, planted]))
        to_train, to_holdout = (queries.nearest(images) for images in (members, others))
        n, ends = len(cases), (len(cases), len(cases) + len(unseen))
        line = max(
            _line(to_train[ends[0] : ends[1]], n, 1.0),
            _line(to_holdout[:n], n, len(train) / len(holdout)),
        )
        copies = [i for i in range(n) if to_train[i] > line and to_train[i] > to_holdout[i]]
        found = to_train[ends[1] :] > line
        recall = clopper_pearson(int(found.sum()), len(found))
        alarms = int((to_train[ends[0] : ends[1]] > line).sum())
        interval = clopper_pearson(len(copies), n)

        verdict: Verdict = "pass"
        why = f"By outlines alone none of {n} synthetic cases is a copy, in a search that finds at least {recall[0]:.0%} of planted copies."
        if recall[0] < level.recall:
            verdict = "inconclusive"
            why = f"{found.sum()} of {len(found)} plants were found by outlines, at least {recall[0]:.0%}; {level.recall:.0%} must be."
        if not copies and interval[1] / max(recall[0], 1e-6) > level.excess:
            verdict = "inconclusive"
            why = f"None of {n} synthetic cases is a copy by outlines, so up to {interval[1]:.1%} may be; {level.excess:.0%} is allowed."
        if copies:
            verdict = "fail"
            why = f"{len(copies)} of {n} synthetic cases have the outlines of a training case, as no unseen subject has."
        details = {
            "line": round(line, DIGITS),
            "named": [synthetic.cases[i].id for i in copies],
            "planted": {"found": int(found.sum()), "planted": len(found), "interval": recall},
            "false_alarm": {"flagged": alarms, "n": len(unseen)},
        }
        return _finding(verdict, why, level.excess, required, len(copies) / n, interval, alarms / len(unseen), details)

    def _images(self, cohort: Cohort) -> np.ndarray:
        """``(case, *space)``, every ``factor``-th voxel of a mean over as many."""
        factor = max(1, math.ceil((np.prod(cohort.header.shape) / self.voxels) ** (1 / cohort.header.dims)))
        return np.stack([_averaged(cohort.pixels(case)[0], factor) for case in cohort])


class Outlines:
    """The outlines of images ``(n, *space)``, moved and mirrored in every way, to be compared with those of others."""

    def __init__(self, images: np.ndarray) -> None:
        self.images, self.space = images, images.shape[1:]
        self.reach = tuple(max(1, round(REACH * size)) for size in self.space)

    def nearest(self, others: np.ndarray) -> np.ndarray:
        """Fisher's z of the best correlation of each image with any of ``others``, ``(n,)``."""
        known = self._core(_directions(others), (0,) * len(self.space))
        best = np.full(len(self.images), -1.0, np.float32)
        for image in self._mirrored():
            directions = _directions(image)
            for step in product(*(range(-reach, reach + 1) for reach in self.reach)):
                np.maximum(best, (self._core(directions, step) @ known.T).max(1), out=best)
        return np.round(np.arctanh(np.clip(best, -1 + 1e-5, 1 - 1e-5)).astype(np.float64), DIGITS)

    def _core(self, directions: np.ndarray, step: Sequence[int]) -> np.ndarray:
        """What lies at least the reach from every border after a move by ``step``; rows of unit norm."""
        inside = tuple(slice(reach + s, size - reach + s) for reach, s, size in zip(self.reach, step, self.space, strict=True))
        rows = directions[(slice(None), slice(None), *inside)].reshape(len(directions), -1)
        return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-6)

    def _mirrored(self) -> Iterator[np.ndarray]:
        """Every flip; of square images every quarter turn too."""
        square = len(self.space) == 2 and self.space[0] == self.space[1]
        for images in (self.images, self.images.swapaxes(1, 2)) if square else (self.images,):
            for flips in product((False, True), repeat=len(self.space)):
                yield np.flip(images, [axis for axis, flip in enumerate(flips, start=1) if flip])


def _directions(images: np.ndarray) -> np.ndarray:
    """Gradients ``(n, axis, *space)``, their lengths brought near to one: a faint outline counts like a strong one, noise does not."""
    axes = tuple(range(1, images.ndim))
    gradients = np.stack(np.gradient(images, axis=axes), axis=1).astype(np.float32)
    length = np.sqrt((gradients**2).sum(1, keepdims=True))
    return gradients / (length + length.mean(tuple(range(1, length.ndim)), keepdims=True) + 1e-6)


def _line(scores: np.ndarray, n: int, weight: float) -> float:
    """The score that the best of ``n`` such cases exceeds with probability `FAMILY`, among ``weight`` times as many references.

    Gumbel's law ``exp(-exp(-(score - place) / width))`` through the quartiles of ``scores``, each the best of many.
    """
    low, middle, high = np.quantile(scores, [0.25, 0.5, 0.75])
    width = (high - low) / (math.log(math.log(4)) - math.log(math.log(4 / 3)))
    place = middle + width * math.log(math.log(2))
    return float(place + width * (math.log(weight) - math.log(-math.log1p(-FAMILY / n))))


def _planted(members: np.ndarray, count: int, seed: int) -> np.ndarray:
    """``count`` copies of each of the `PLANTED` kinds, of training cases drawn by the seed."""
    made = kinds(members.shape[1:])
    order = generator_for(seed, "confirmation").permutation(len(members))
    copies = []
    for kind in PLANTED:
        for number in range(count):
            image = members[order[number % len(order)]]
            copies.append(np.asarray(made[kind](image, image, generator_for(seed, "confirmation", kind, number)), np.float32))
    return np.stack(copies)


def _one_a_subject(cohort: Cohort, seed: int) -> list[int]:
    """Rows of one case a subject, drawn by the seed."""
    rows: dict[str, list[int]] = {}
    for row, case in enumerate(cohort):
        rows.setdefault(case.subject, []).append(row)
    return [min(own, key=lambda row: seed_for(seed, "confirmation", cohort.cases[row].id)) for _, own in sorted(rows.items())]


def _averaged(image: np.ndarray, factor: int) -> np.ndarray:
    """Means over blocks; the rest of an axis that no block fills is left out."""
    for axis, size in enumerate(image.shape):
        step = min(factor, size)
        image = np.add.reduceat(np.take(image, range(size // step * step), axis), range(0, size // step * step, step), axis) / step
    return image


def _finding(
    verdict: Verdict,
    why: str,
    limit: float,
    required: bool,
    value: float | None = None,
    interval: tuple[float, float] | None = None,
    control: float | None = None,
    details: dict[str, Any] | None = None,
) -> Finding:
    return Finding(
        check="confirmation",
        verdict=verdict,
        value=value,
        interval=interval,
        control=control,
        limit=limit,
        why=why,
        required=required,
        details=details or {},
    )
