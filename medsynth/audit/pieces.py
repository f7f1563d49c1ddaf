"""Images compared piece by piece: for what no single move of the whole undoes, and for what was pasted into another image.

An image is cut into overlapping windows, a quarter of each axis wide. Each is compared with the same window of every reference along the
main ways in which subjects differ there, each given equal weight, and may move by one voxel. A window in which everybody is alike must
not outvote one that tells people apart: so its correlations are counted in standard deviations of those between different subjects.

*Pieces* is the mean over all windows: each finds its own small move, so a turn of a few degrees or an elastic warp costs little.
*Piece* is the best single window: a part of a training image, pasted where it was.
"""

from itertools import product

import numpy as np

from medsynth.audit.rates import fisher

SHARE = 0.25  # of an axis that a window covers; a pasted block of half an axis holds several whole ones
FEWEST = 3  # voxels along an axis of a window
COARSE, FINE = 40, 80  # ways: a warp spoils the finer ones first, a small part needs them; at most one for every three subjects
STRANGERS = 100  # subjects of the basis whose likeness to the others sets a window's scale
EMPTY = 0.05  # of an image's standard deviation: a window that varies less shows nothing


class Pieces:
    """References ``(n, *space)`` in windows; ``basis`` are rows of them, one a subject, whose differences are decomposed."""

    def __init__(self, references: np.ndarray, basis: np.ndarray) -> None:
        self.references = _standard(references)
        chosen = self.references[basis]
        dims = references.ndim - 1
        whole = product((-1, 0, 1), repeat=dims)
        # in 3-D along one axis at a time: 7 steps instead of 27
        self.steps = [step for step in whole if dims == 2 or sum(map(abs, step)) <= 1]
        self.windows = [Window(place, chosen, self.steps) for place in windows(references.shape[1:])]

    def compare(self, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """By all pieces and by the best one: standard deviations above a pair of different subjects, both ``(query, reference)``."""
        queries = _standard(queries)
        mean = np.zeros((len(queries), len(self.references)), np.float32)
        best = np.full_like(mean, -np.inf)
        for window in self.windows:
            coarse, fine = window.compare(queries, self.references, self.steps)
            mean += coarse / np.float32(len(self.windows))
            np.maximum(best, fine, out=best)
        return mean, best


class Window:
    """One place of all images, and the main ways in which the subjects of the basis differ there."""

    def __init__(self, place: tuple[slice, ...], basis: np.ndarray, steps: list[tuple[int, ...]]) -> None:
        self.place = place
        flat, seen = self._flat(basis)
        self.mean = flat.mean(0)
        flat = (flat - self.mean) * seen
        power, ways = np.linalg.eigh(flat.T.astype(np.float64) @ flat / len(flat))
        count = min(FINE, max(1, len(flat) // 3), max(1, len(power) - 1))
        power, ways = np.maximum(power[::-1], 1e-9), ways[:, ::-1]
        # Equal weight above the floor that the first way left out sets: ways of noise are not blown up.
        floor = max(power[count], 1e-6) if count < len(power) else 1e-6
        self.weights = (ways[:, :count] / np.sqrt(power[:count] + floor)).astype(np.float32)
        self.counts = sorted({min(COARSE, count), count})
        self.scales = [(0.0, 1.0)] * 2
        apart = ~np.eye(len(basis), dtype=bool)[:STRANGERS]
        if apart.any():
            pairs = [score[apart] for score in self.compare(basis[:STRANGERS], basis, steps)]
            self.scales = [(float(each.mean()), max(float(each.std()), 1e-3)) for each in pairs]

    def compare(self, queries: np.ndarray, references: np.ndarray, steps: list[tuple[int, ...]]) -> tuple[np.ndarray, np.ndarray]:
        """Fisher's z along the coarse ways and along all, best over the steps, on the scale of different subjects."""
        known = self._described(references)
        best = [np.full((len(queries), len(references)), -np.inf, np.float32) for _ in self.counts]
        for step in steps:
            moved = self._described(queries, step)
            for own, other, score in zip(moved, known, best, strict=True):
                np.maximum(score, own @ other.T, out=score)
        coarse, fine = best[0], best[-1]
        (middle, spread), (middle_fine, spread_fine) = self.scales
        return (fisher(coarse) - middle) / spread, (fisher(fine) - middle_fine) / spread_fine

    def _described(self, images: np.ndarray, step: tuple[int, ...] | None = None) -> list[np.ndarray]:
        """Unit coordinates along the ways, ``(image, way)``, for each count of ways; zero where the window shows nothing."""
        flat, seen = self._flat(images, step)
        along = ((flat - self.mean) @ self.weights) * seen
        return [part / (np.linalg.norm(part, axis=1, keepdims=True) + 1e-6) for part in (along[:, :count] for count in self.counts)]

    def _flat(self, images: np.ndarray, step: tuple[int, ...] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The window, moved by a step, less its mean, ``(image, voxel)``, and whether it shows anything, ``(image, 1)``."""
        place = self.place
        if step is not None:
            # at the border a window stays where it is
            place = tuple(
                slice(part.start + move, part.stop + move) if part.start + move >= 0 and part.stop + move <= size else part
                for part, move, size in zip(place, step, images.shape[1:], strict=True)
            )
        flat = images[(slice(None), *place)].reshape(len(images), -1)
        flat = flat - flat.mean(1, keepdims=True)
        return flat, flat.std(1, keepdims=True) > EMPTY


def windows(space: tuple[int, ...]) -> list[tuple[slice, ...]]:
    """Windows that cover a grid and overlap by half or more."""
    along = []
    for size in space:
        width = min(size, max(FEWEST, round(SHARE * size)))
        count = 1 + -(-(size - width) // max(1, width // 2))
        along.append([slice(start, start + width) for start in np.linspace(0, size - width, count).round().astype(int).tolist()])
    return list(product(*along))


def _standard(images: np.ndarray) -> np.ndarray:
    axes = tuple(range(1, images.ndim))
    centred = images - images.mean(axes, keepdims=True)
    return centred / (centred.std(axes, keepdims=True) + 1e-6)
