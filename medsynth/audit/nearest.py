"""The nearest real subject of every image, by six views that forgive what a copy may have gone through.

*Pixels*: correlation of whole images, lightly smoothed. It forgives gain, bias, noise and blur.
*Ranks*: correlation of the ranks of their grey values. It forgives every monotone change of grey values, such as gamma.
*Residual*: correlation of what is a subject's own. Registered anatomy makes everybody near everybody; so an image is laid over the mean
image, the mean and a local mean are subtracted, and the rest is compared. It sees texture, and forgives moves.
*Modes*: correlation along the main ways in which subjects differ, each given equal weight, as in a Mahalanobis distance. It sees shape and
proportion where there is little texture, and forgives noise.
*Pieces* and *piece*: windows of the image, each for itself, all together and the best alone (`medsynth.audit.pieces`). They forgive small
turns and warps, and see a part that was pasted into another image.

The residual and the modes look under every flip (in 2-D also quarter turns), several zooms and small shifts. The residual view works in
two stages: coarse correlation of all pairs picks a few candidates, and an exact cross-correlation by FFT decides among these. 2-D and 3-D
are the same code. Memory is bounded by the references' reduced grid and one block of queries.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy import fft, ndimage
from scipy.stats import rankdata
from tqdm import tqdm

from medsynth.audit.pieces import Pieces
from medsynth.audit.rates import fisher
from medsynth.cohort import Cohort
from medsynth.errors import MedsynthError

VIEWS = ("pixels", "ranks", "residual", "modes", "pieces", "piece")
ZOOMS = (1.0, 0.94, 0.89, 0.85, 0.81, 1.06, 1.13)  # of the query; 0.85 undoes a crop to 85 % that was resized to full size
REACH = 0.12  # share of an axis within which an image may be moved to lie over the mean
WOBBLE = 0.1  # share of an axis searched around that place, at least one voxel
BLOCK = 1024  # queries searched together
SMOOTH = 1.0  # voxels: standard deviation of the Gaussian before pixels are compared
WINDOW = 0.1  # share of an axis to either side over which the local mean is taken
CHUNK = 64  # images transformed together
MODES = 80  # main ways in which subjects differ; at most one for every three subjects
BASIS = 300  # subjects whose differences are decomposed
PIECES = {2: 48, 3: 24}  # voxels along an axis: a finer grid is averaged down before it is cut into pieces
NOBODY = -10.0  # score where there is no reference: below every other


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Best reference of each group for each query and view, both ``(view, query, group)``.

    ``score`` is Fisher's z of a correlation (of pieces: standard deviations), ``row`` the reference's; `NOBODY` and -1 where a group has no
    allowed reference.
    """

    score: np.ndarray
    row: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class References:
    """Real cases ``(n, *space)``, the group (from 0) and the subject (a number) of each. A subject is in one group."""

    images: np.ndarray
    groups: np.ndarray
    subjects: np.ndarray

    def __post_init__(self) -> None:
        order = np.argsort(self.subjects, kind="stable")
        numbers, starts = np.unique(self.subjects[order], return_index=True)
        object.__setattr__(self, "order", order)
        object.__setattr__(self, "starts", starts)
        object.__setattr__(self, "numbers", numbers)
        object.__setattr__(self, "group_of", self.groups[order][starts])

    def some(self, count: int) -> np.ndarray:
        """Rows of one case of each of at most ``count`` subjects, evenly from all groups."""
        firsts = self.order[self.starts]
        return firsts[np.linspace(0, len(firsts) - 1, min(count, len(firsts))).round().astype(int)]

    def by_subject(self, table: np.ndarray, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The best case of each subject, ``(query, subject)``: score and row. A query's own subject gets minus infinity.

        Where nothing varies, as in a mode of a volume of a few slices, there is no correlation (NaN), and the score is 0.
        """
        table = np.where(np.isnan(table), 0.0, table)[:, self.order]
        best = np.maximum.reduceat(table, self.starts, axis=1)
        counts = np.diff([*self.starts, len(self.order)])
        place = np.where(table == np.repeat(best, counts, axis=1), np.arange(len(self.order)), len(self.order))
        row = self.order[np.minimum.reduceat(place, self.starts, axis=1)]
        return np.where(self.numbers == own[:, None], -np.inf, best), row


def nearest(queries: np.ndarray, references: References, *, own: np.ndarray | None = None, candidates: int = 16) -> Matches:
    """The nearest reference of every group.

    ``queries`` is ``(n, *space)`` on the references' grid; ``own`` is the subject of each, whom it may not match, or -1. ``candidates`` is
    how many subjects of a group are compared exactly.
    """
    assert queries.shape[1:] == references.images.shape[1:], (queries.shape, references.images.shape)
    own = np.full(len(queries), -1) if own is None else own
    anatomy = Anatomy(references)
    pieces = Pieces(_coarser(references.images), references.some(BASIS))
    pixels, ranks = _pixels(references.images), _ranks(references.images)
    score, row = [], []
    for start in range(0, len(queries), BLOCK):
        part = slice(start, start + BLOCK)
        block = queries[part]
        deep = anatomy.compare(block, own[part], candidates)
        whole = (fisher(view(block) @ known.T) for view, known in ((_pixels, pixels), (_ranks, ranks)))
        whole, cut = ([references.by_subject(table, own[part]) for table in tables] for tables in (whole, pieces.compare(_coarser(block))))
        read = [_read(table, rows, references.group_of) for table, rows in (*whole, *deep, *cut)]
        score.append(np.stack([values for values, _ in read]))
        row.append(np.stack([rows for _, rows in read]))
    return Matches(score=np.concatenate(score, axis=1), row=np.concatenate(row, axis=1))


def _read(table: np.ndarray, rows: np.ndarray, group_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The best subject a group from scores ``(query, subject)``: score and row, ``(query, group)``."""
    count = group_of.max() + 1
    score, row = np.full((len(table), count), NOBODY), np.full((len(table), count), -1)
    for group in range(count):
        members = np.flatnonzero(group_of == group)
        if len(members) == 0:
            continue
        first = members[table[:, members].argmax(1)]
        value = table[np.arange(len(table)), first]
        possible = np.isfinite(value)
        score[possible, group] = value[possible]
        row[possible, group] = rows[np.arange(len(table)), first][possible]
    return score, row


class Anatomy:
    """References seen through the mean of all of them: what each has of its own, ready to be compared."""

    def __init__(self, known: References) -> None:
        references = known.images
        self.known = known
        self.space = references.shape[1:]
        self.axes = tuple(range(1, references.ndim))
        everywhere = np.ones(self.space, np.float32)
        self.mean = _standard(references, everywhere).mean(0)
        self.references = np.concatenate([self._laid(part, everywhere) for part in _chunks(references)])
        # A grid fine enough to hold the local residual, and coarse enough that all pairs are cheap.
        self.pool = tuple(max(1, -(-size // 32)) if len(self.space) == 2 else min(2, size) for size in self.space)
        self.wobble = tuple(max(1, round(WOBBLE * size)) for size in self.space)

    def compare(self, queries: np.ndarray, own: np.ndarray, candidates: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """By residual and by modes: Fisher's z with each subject, and its best case's row, all ``(query, subject)``.

        The residual one is exact for the likeliest subjects, and minus infinity with the others.
        """
        coarse, variant, modes = self._coarse(queries)
        best, rows = self.known.by_subject(coarse, own)
        pairs = []
        for group in np.unique(self.known.group_of):
            members = np.flatnonzero(self.known.group_of == group)
            # stable, so that equal references keep their order
            order = np.argsort(-best[:, members], axis=1, kind="stable")[:, :candidates]
            query, subject = np.repeat(np.arange(len(queries)), order.shape[1]), members[order].ravel()
            pairs.append(np.stack([query, subject])[:, np.isfinite(best[query, subject])])
        query, subject = np.concatenate(pairs, axis=1)
        row = rows[query, subject]
        table = np.full(best.shape, -np.inf)
        table[query, subject] = fisher(self._exact(queries, query, row, variant[query, row]))
        return (table, rows), self.known.by_subject(fisher(modes), own)

    def _coarse(self, queries: np.ndarray) -> tuple[np.ndarray, ...]:
        """Best coarse residual correlation of every pair over all variants, which variant it was, and best correlation by modes.

        All ``(query, reference)``.
        """
        best = np.full((len(queries), len(self.references)), -np.inf, np.float32)
        which = np.zeros(best.shape, np.int16)
        alike = best.copy()
        ways = self._ways()
        parts = list(_parts(len(self.references), 4 * CHUNK))
        progress = tqdm(total=len(ZOOMS) * (len(ways) + len(parts)), desc="comparing residuals", leave=False)
        for z, zoom in enumerate(ZOOMS):
            enlarged, valid = zoomed(queries, zoom)
            core = self._core(valid)
            middle = self._moved(self.mean[None], valid, subtract=False)[:, 0]
            modes = Modes(self, core)
            seen = []  # the queries, in every way: small beside the references moved by every step, of which one part is held at a time
            for way in ways:
                for part in _parts(len(queries), CHUNK):
                    laid = self._laid(_turned(enlarged[part], way), valid)
                    np.maximum(alike[part], modes.alike(laid), out=alike[part])
                    own = self._pooled(self._fine(laid, valid) * core)
                    # norm of (own - middle), for every step of the middle
                    energy = (own**2).sum(1) - 2 * middle @ own.T + (middle**2).sum(1)[:, None]
                    seen.append((way, part, own, np.sqrt(np.maximum(energy, 1e-12))[:, :, None]))
                progress.update()
            for known in parts:
                moved = self._moved(self.references[known], valid)
                for way, part, own, norm in seen:
                    score = self._over_steps(own, middle, norm, moved)
                    better = score > best[part, known]
                    best[part, known][better] = score[better]
                    which[part, known][better] = z * len(ways) + ways.index(way)
                progress.update()
        progress.close()
        return best, which, alike

    def _moved(self, images: np.ndarray, valid: np.ndarray, subtract: bool = True) -> np.ndarray:
        """Coarse residuals (or images, not less the mean) moved by every step, ``(step, n, coarse voxel)``.

        A query moved by a step against a reference and the mean is the query itself against both moved back: so only these move, once.
        """
        core = self._core(valid)
        images = self._residual(images, valid) if subtract else self._fine(images, valid)
        moved = [self._pooled(np.roll(images, step, self.axes) * core) for step in self._steps()]
        return np.stack([_unit(rows, centre=False) if subtract else rows for rows in moved])

    @staticmethod
    def _over_steps(own: np.ndarray, middle: np.ndarray, norm: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Best correlation of (own - middle) with known over all steps, ``(query, reference)``."""
        inner = own @ known.swapaxes(1, 2) - (known @ middle[:, :, None]).swapaxes(1, 2)
        return (inner / norm).max(0)

    def _exact(self, queries: np.ndarray, query: np.ndarray, row: np.ndarray, variant: np.ndarray) -> np.ndarray:
        """Full-resolution residual correlation of these pairs under these variants, best over the wobble."""
        ways = self._ways()
        result = np.empty(len(query), np.float32)
        near = tuple(np.ix_(*(np.arange(-reach, reach + 1) for reach in self.wobble)))
        for v in np.unique(variant):
            at = np.flatnonzero(variant == v)
            for members in np.array_split(at, -(-len(at) // CHUNK)):
                enlarged, valid = zoomed(queries[query[members]], ZOOMS[v // len(ways)])
                own = self._fine(self._laid(_turned(enlarged, ways[v % len(ways)]), valid), valid)
                core = self._core(valid)
                middle = self._fine(self.mean[None], valid) * core
                known = self._residual(self.references[row[members]], valid) * core
                known /= np.sqrt((known**2).sum(self.axes, keepdims=True)) + 1e-6
                # Squared norm of (own moved - middle) inside the core, and its inner product with known, for every move at once
                shape = (len(members), *[1] * len(self.space))
                power = self._every_move(own**2, core[None]) + (middle**2).sum()
                energy = power - 2 * self._every_move(own, middle)
                inner = self._every_move(own, known) - (known * middle).sum(self.axes).reshape(shape)
                correlation = inner / np.sqrt(np.maximum(energy, 1e-12))
                result[members] = correlation[(slice(None), *near)].reshape(len(members), -1).max(1)
        return result

    def _core(self, valid: np.ndarray) -> np.ndarray:
        """Where images are compared: inside ``valid`` by the wobble, so that one moved as far brings no border with it."""
        return ndimage.minimum_filter(valid, [2 * reach + 1 for reach in self.wobble], mode="constant")

    def _laid(self, images: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """Images moved by whole voxels to where they correlate best with the mean image."""
        correlation = self._every_move(_standard(images, valid), _standard(self.mean[None], valid))
        reach = [round(REACH * size) for size in self.space]
        near = np.ix_(*(np.arange(-r, r + 1) for r in reach))
        window = correlation[(slice(None), *near)].reshape(len(images), -1)
        moves = np.stack(np.unravel_index(window.argmax(1), [2 * r + 1 for r in reach]), axis=1) - reach
        return np.stack([np.roll(image, -move, range(len(self.space))) for image, move in zip(images, moves, strict=True)])

    def _every_move(self, images: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Inner products of images, moved (in a circle) by minus the index, with others; ``(n, *space)``."""
        spectrum = fft.rfftn(images, axes=self.axes) * fft.rfftn(others, axes=self.axes).conj()
        return fft.irfftn(spectrum, s=self.space, axes=self.axes)

    def _residual(self, images: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """What an image has beyond the mean image and beyond its own local mean, unit norm, zero where not valid."""
        own = self._fine(images, valid) - self._fine(self.mean[None], valid)
        return own / (np.sqrt((own**2).sum(self.axes, keepdims=True)) + 1e-6)

    def _fine(self, images: np.ndarray, valid: np.ndarray) -> np.ndarray:
        """An image of unit variance without its local mean (over about a fifth of each axis), zero where not valid."""
        own = _standard(images, valid)
        window = tuple(2 * max(1, round(WINDOW * size)) + 1 for size in self.space)
        weight = ndimage.uniform_filter(valid, window, mode="constant")
        return (own - ndimage.uniform_filter(own, (1, *window), mode="constant") / np.maximum(weight, 1e-3)) * valid

    def _pooled(self, residuals: np.ndarray) -> np.ndarray:
        return pooled(residuals, self.pool).reshape(len(residuals), -1)

    def _ways(self) -> list[tuple[tuple[int, ...], bool]]:
        """Axes to mirror, and whether to swap the two axes: with mirrors, the swap makes the quarter turns of a square image."""
        dims = len(self.space)
        swaps = (False, True) if dims == 2 and self.space[0] == self.space[1] else (False,)
        return [(tuple(a for a in range(dims) if flips[a]), swap) for swap in swaps for flips in product((0, 1), repeat=dims)]

    def _steps(self) -> list[tuple[int, ...]]:
        """A small step, or none, along every axis at once."""
        return list(product(*[(0, -step, step) for step in (max(1, round(WOBBLE / 2 * size)) for size in self.space)]))


class Modes:
    """The references along the main ways in which subjects differ, in a valid region."""

    def __init__(self, anatomy: Anatomy, valid: np.ndarray) -> None:
        self.anatomy, self.valid = anatomy, valid
        basis = self._flat(anatomy.references[anatomy.known.some(BASIS)])
        self.mean = basis.mean(0)
        basis = basis - self.mean
        power, vectors = np.linalg.eigh(basis.astype(np.float64) @ basis.T / len(basis))
        count = min(MODES, max(1, len(basis) // 3))
        # Equal weight above the floor that the first mode left out sets: modes of noise are not blown up.
        floor = max(power[-count - 1], 1e-9) if count < len(power) else 1e-9
        power, vectors = np.maximum(power[-count:], 1e-9), vectors[:, -count:]
        scale = np.sqrt(len(basis) * power * (power + floor))
        self.weights = (basis.T @ (vectors / scale).astype(np.float32)).astype(np.float32)
        self.references = np.concatenate([self._project(part) for part in _chunks(anatomy.references)])

    def alike(self, images: np.ndarray) -> np.ndarray:
        """Correlation of images with all references, best over a voxel to and fro along every axis at once, ``(query, reference)``."""
        steps = product((0, -1, 1), repeat=len(self.anatomy.space))
        score = np.full((len(images), len(self.references)), -np.inf, np.float32)
        for step in steps:
            np.maximum(score, self._project(np.roll(images, step, self.anatomy.axes)) @ self.references.T, out=score)
        return score

    def _project(self, images: np.ndarray) -> np.ndarray:
        return _unit((self._flat(images) - self.mean) @ self.weights, centre=False)

    def _flat(self, images: np.ndarray) -> np.ndarray:
        return _standard(images, self.valid).reshape(len(images), -1)


def zoomed(images: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Images ``(n, *space)`` magnified about their centre by linear interpolation, and where they come from inside, ``(*space)``.

    Outside the border is repeated.
    """
    space = images.shape[1:]
    valid = np.ones(space, np.float32)
    if factor == 1:
        return images, valid
    for axis, size in enumerate(space):
        source = (np.arange(size) - (size - 1) / 2) / factor + (size - 1) / 2
        inside = (source >= 0) & (source <= size - 1)
        source = np.clip(source, 0, size - 1)
        below = np.minimum(source.astype(int), max(size - 2, 0))
        share = (source - below).astype(np.float32).reshape([-1 if a == axis + 1 else 1 for a in range(images.ndim)])
        above = np.minimum(below + 1, size - 1)
        images = np.take(images, below, axis + 1) * (1 - share) + np.take(images, above, axis + 1) * share
        valid = valid * inside.reshape([-1 if a == axis else 1 for a in range(len(space))])
    return images, valid


def pooled(images: np.ndarray, factors: tuple[int, ...]) -> np.ndarray:
    """Block averages of ``(n, *space)``; the rest of an axis that no block fills is left out."""
    for axis, factor in enumerate(factors, start=1):
        if factor == 1:
            continue
        end = images.shape[axis] // factor * factor
        before = (slice(None),) * axis
        # strided slices: NumPy's mean over a short axis is many times slower
        images = sum(images[(*before, slice(start, end, factor))] for start in range(factor)) / np.float32(factor)
    return images


def reduced(cohort: Cohort, voxels: int) -> np.ndarray:
    """All images of a cohort, ``(case, *space)``, averaged down to at most ``voxels`` each; one full image in memory at a time."""
    factors = reduction(cohort.header.shape, voxels)
    images = np.concatenate([pooled(cohort.pixels(case)[:1], factors) for case in cohort])
    if not np.isfinite(images).all():
        raise MedsynthError(f"A {cohort.header.kind} image holds values that are not finite. Make the cohort again.")
    return images


def reduction(shape: tuple[int, ...], voxels: int) -> tuple[int, ...]:
    """Block sizes, the same along every axis that allows it, that bring a grid down to at most ``voxels``."""
    factor = 1
    while np.prod([max(size // factor, 1) for size in shape]) > voxels:
        factor += 1
    return tuple(min(factor, size) for size in shape)


def _turned(images: np.ndarray, way: tuple[tuple[int, ...], bool]) -> np.ndarray:
    flips, swap = way
    images = images.swapaxes(1, 2) if swap else images
    return np.flip(images, tuple(axis + 1 for axis in flips)) if flips else images


def _standard(images: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Zero mean and unit variance inside ``valid``, zero outside."""
    axes = tuple(range(1, images.ndim))
    count = valid.sum()
    centred = (images - (images * valid).sum(axes, keepdims=True) / count) * valid
    return centred / (np.sqrt((centred**2).sum(axes, keepdims=True) / count) + 1e-6)


def _coarser(images: np.ndarray) -> np.ndarray:
    """Averaged down to the grid of the pieces."""
    return pooled(images, tuple(-(-size // PIECES[images.ndim - 1]) for size in images.shape[1:]))


def _pixels(images: np.ndarray) -> np.ndarray:
    smooth = ndimage.gaussian_filter(images, (0, *[SMOOTH] * (images.ndim - 1)), mode="nearest")
    return _unit(smooth.reshape(len(images), -1))


def _ranks(images: np.ndarray) -> np.ndarray:
    return np.concatenate([_unit(rankdata(part.reshape(len(part), -1), axis=1).astype(np.float32)) for part in _chunks(images)])


def _unit(rows: np.ndarray, centre: bool = True) -> np.ndarray:
    rows = rows - rows.mean(1, keepdims=True) if centre else rows
    return rows / (np.linalg.norm(rows, axis=1, keepdims=True) + 1e-6)


def _chunks(images: np.ndarray) -> Iterator[np.ndarray]:
    return (images[part] for part in _parts(len(images), CHUNK))


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))
