"""Nine ways in which a synthetic cohort may be bad, injected into real images on purpose, each at five severities.

A defect turns real cases into what a generator with that fault would have drawn; everything else about them stays. So whether a metric
sees a defect on these data is a measurement and no opinion (`medsynth.metrics.sanity`).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from medsynth.metrics.embedding import squared_distances
from medsynth.metrics.intervals import spread
from medsynth.metrics.score import NotApplicable, Sample, one_each
from medsynth.rng import generator_for

CLUSTERS = 3  # of training images, where there are no classes
COMPONENTS = 8


Described = Callable[[str, np.ndarray], Mapping[str, np.ndarray]]  # what images are, and the images, to their features


@dataclass(frozen=True, kw_only=True)
class Material:
    """What defects are made of. ``clean`` are held-out cases into which they go, ``reference`` training cases with which these are then
    compared, ``copied`` others; one case a subject each. ``train`` is the whole training sample, which fixes a metric's scale. ``kind``
    is the class of each clean case, ``dropped`` the class that a generator forgets, called ``forgotten``, and ``usual`` the share that it
    has in training."""

    train: Sample
    reference: Sample
    copied: Sample
    clean: Sample
    kind: np.ndarray
    dropped: int
    forgotten: str
    usual: float
    described: Described
    seed: int

    def draws(self, *what: str | int) -> np.random.Generator:
        return generator_for(self.seed, "defect", *what)


def material(train: Sample, holdout: Sample, cases: int, described: Described, *, seed: int) -> Material:
    """Of at most so many subjects on each side."""
    clean, all_train = (one_of_each(s, spread(s.subjects, len(s), seed=seed)) for s in (holdout, train))
    clean = clean.take(np.arange(min(len(clean), cases)))
    size = min(len(all_train), len(clean))
    others = np.arange(size, len(all_train))
    copied = all_train.take(others if 2 * len(others) >= size else np.arange(len(all_train))[::-1])
    kind, dropped, forgotten, usual = kinds_of(train, clean, seed=seed)
    return Material(
        train=train,
        reference=all_train.take(np.arange(size)),
        copied=copied,
        clean=clean,
        kind=kind,
        dropped=dropped,
        forgotten=forgotten,
        usual=usual,
        described=described,
        seed=seed,
    )


def one_of_each(sample: Sample, rows: np.ndarray) -> Sample:
    """These rows, less every further case of a subject."""
    return sample.take(one_each(np.asarray(sample.subjects), rows))


@dataclass(frozen=True, kw_only=True)
class Defect:
    """``make(material, severity)`` is the spoilt sample, of as many cases as at severity ``nothing``; ``severities`` rise."""

    name: str
    severities: tuple[float, ...]
    unit: str
    make: Callable[[Material, float], Sample]
    plain: str  # what a reader is told that it is
    nothing: float = 0.0  # the severity of no defect


# ------------------------------------------------------------------------------------------------------------------------------------
# What spoils every image


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    return ndimage.gaussian_filter(image, sigma, mode="nearest")


def gain(image: np.ndarray, share: float) -> np.ndarray:
    """Grey values from the lower bound of the window upwards times ``1 + share``."""
    return (image + 1) * (1 + share) - 1


def noise(image: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """White noise; its standard deviation is a share of the window, which is 2 wide."""
    return image + generator.normal(0, 2 * share, image.shape)


def bias_field(image: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Grey values from the lower bound upwards times a smooth field between ``1 - share`` and ``1 + share``."""
    signs = generator.choice((-1.0, 1.0), image.ndim)
    axes = [sign * np.cos(np.pi * (np.arange(n) + 0.5) / n) for sign, n in zip(signs, image.shape, strict=True)]  # half a period each
    slope = sum(np.meshgrid(*axes, indexing="ij"))
    return (image + 1) * (1 + share * slope / image.ndim) - 1


def _every(change: Callable[..., np.ndarray], *, drawn: bool) -> Callable[[Material, float], Sample]:
    """The defect that changes every image by ``change(image, severity[, generator])``."""

    def make(material: Material, severity: float) -> Sample:
        if not severity:
            return material.clean
        images = [
            change(image[0], severity, *([material.draws(change.__name__, i)] if drawn else []))[None]
            for i, image in enumerate(material.clean.images)
        ]
        return _with_images(material, f"{change.__name__}-{severity:g}", np.stack(images).astype(np.float32))

    return make


def _with_images(material: Material, what: str, images: np.ndarray, masks: np.ndarray | None = None) -> Sample:
    masks = material.clean.masks if masks is None else masks
    return replace(material.clean, images=images, features=material.described(what, images), masks=masks)


# ------------------------------------------------------------------------------------------------------------------------------------
# What spoils the cohort


def dropped_class(material: Material, share: float) -> Sample:
    """So much of one class is missing, of the share that it has in training. Of equally many cases whatever the share: distances depend
    on numbers."""
    draws = material.draws("dropped")
    mine = material.kind == material.dropped
    of_class, others = draws.permutation(np.flatnonzero(mine)), draws.permutation(np.flatnonzero(~mine))
    if not len(of_class) or not len(others):
        raise NotApplicable("there is no class, and no cluster of training images, that could be missing")
    cases = min(len(others), int(len(of_class) / material.usual))
    some = of_class[: round((1 - share) * material.usual * cases)]
    return material.clean.take(np.concatenate([some, others[: cases - len(some)]]))


def collapse(material: Material, repeats: float) -> Sample:
    """Every remaining case so many times."""
    count = len(material.clean)
    order = material.draws("collapse").permutation(count)[: max(1, round(count / repeats))]
    rows = np.resize(order, count)
    return replace(material.clean.take(rows), subjects=_strangers(count))


def copies(material: Material, share: float) -> Sample:
    """So many cases are exact copies of training cases."""
    clean, train = material.clean, material.copied
    count = round(share * len(clean))
    if count > len(train):
        raise NotApplicable("there are too few training cases")
    order = material.draws("copies")
    new, kept = order.permutation(len(train))[:count], order.permutation(len(clean))[count:]
    taken, rest = train.take(new), clean.take(kept)
    return Sample(
        images=np.concatenate([taken.images, rest.images]),
        features={name: np.concatenate([taken.features[name], rest.features[name]]) for name in rest.features},
        subjects=_strangers(len(clean)),
        spacing=clean.spacing,
        conditions=[*taken.conditions, *rest.conditions],
        masks=None if rest.masks is None or taken.masks is None else np.concatenate([taken.masks, rest.masks]),
        names=clean.names,
    )


def _strangers(count: int) -> list[str]:
    """A generator does not say whom it copies."""
    return [f"synthetic {i}" for i in range(count)]


def wrong_anatomy(material: Material, share: float) -> Sample:
    """In so many cases a structure lies elsewhere: with masks the labelled ones a quarter of the image away, else a region is mirrored."""
    clean, draws = material.clean, material.draws("anatomy")
    rows = draws.permutation(len(clean))[: round(share * len(clean))]
    if not len(rows):
        return clean
    images, masks = np.array(clean.images), None if clean.masks is None else np.array(clean.masks)
    for row in rows:
        if masks is not None and masks[row].any():
            images[row, 0], masks[row] = displaced(images[row, 0], masks[row], material.draws("anatomy", int(row)))
        else:
            images[row, 0] = mirrored(images[row, 0], material.draws("anatomy", int(row)))
    return _with_images(material, f"anatomy-{share:g}", images, masks)


def displaced(image: np.ndarray, mask: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Everything labelled a quarter of the image away along one axis, over a border if need be; its place is filled with its
    surroundings' median."""
    hole = mask > 0
    around = ndimage.binary_dilation(hole, iterations=2) & ~hole
    filled = np.where(hole, np.median(image[around]) if around.any() else image.min(), image)
    axis = int(generator.integers(image.ndim))
    step = int(generator.choice((-1, 1))) * max(1, image.shape[axis] // 4)
    there = np.roll(mask, step, axis)
    return np.where(there > 0, np.roll(image, step, axis), filled).astype(image.dtype), there


def mirrored(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A ball of half the image's width somewhere in its middle, mirrored along one axis, with a soft rim."""
    shape = np.array(image.shape)
    centre = shape * generator.uniform(0.4, 0.6, image.ndim) - 0.5
    axis = int(generator.integers(image.ndim))
    grid = np.indices(image.shape)
    away = np.sqrt(sum(((g - c) / (n / 4)) ** 2 for g, c, n in zip(grid, centre, shape, strict=True)))
    source = [2 * centre[axis] - g if k == axis else g for k, g in enumerate(grid)]
    turned = ndimage.map_coordinates(image, source, order=1, mode="nearest")
    weight = np.clip((1.2 - away) / 0.4, 0, 1)
    return (weight * turned + (1 - weight) * image).astype(image.dtype)


def swapped_labels(material: Material, share: float) -> Sample:
    """So many cases show another class than they were asked for."""
    clean, draws = material.clean, material.draws("labels")
    names = sorted({name for condition in clean.conditions for name, value in condition.items() if isinstance(value, str)})
    pools = {name: sorted({str(c[name]) for c in clean.conditions if name in c}) for name in names}
    if not any(len(values) > 1 for values in pools.values()):
        raise NotApplicable("the cases have no classes (data.conditions)")
    conditions = [dict(condition) for condition in clean.conditions]
    for row in draws.permutation(len(clean))[: round(share * len(clean))]:
        for name, values in pools.items():
            if name in conditions[row] and len(values) > 1:
                other = [value for value in values if value != str(conditions[row][name])]
                conditions[row][name] = other[int(draws.integers(len(other)))]
    return replace(clean, conditions=conditions)


DEFECTS: Sequence[Defect] = (
    Defect(
        name="blur",
        severities=(0.5, 0.75, 1.0, 1.25, 1.5),
        unit="voxels",
        make=_every(blur, drawn=False),
        plain="fine detail is smeared",
    ),
    Defect(
        name="noise",
        severities=(0.005, 0.01, 0.02, 0.04, 0.08),
        unit="of the grey-value window",
        make=_every(noise, drawn=True),
        plain="grain that the scanner does not have",
    ),
    Defect(
        name="gain",
        severities=(0.02, 0.05, 0.1, 0.15, 0.2),
        unit="brighter",
        make=_every(gain, drawn=False),
        plain="grey values are too bright",
    ),
    Defect(
        name="bias field",
        severities=(0.1, 0.15, 0.2, 0.3, 0.4),
        unit="brighter on one side, darker on the other",
        make=_every(bias_field, drawn=True),
        plain="shading across the image",
    ),
    Defect(
        name="dropped class",
        severities=(0.2, 0.4, 0.6, 0.8, 1.0),
        unit="of the class missing",
        make=dropped_class,
        plain="one kind of patient never occurs",
    ),
    Defect(
        name="collapse",
        severities=(2, 3, 4, 8, 16),
        unit="times the same",
        make=collapse,
        plain="the same few images again and again",
        nothing=1.0,
    ),
    Defect(
        name="copies",
        severities=(0.05, 0.1, 0.2, 0.35, 0.5),
        unit="of the cases",
        make=copies,
        plain="training patients, copied",
    ),
    Defect(
        name="wrong anatomy",
        severities=(0.05, 0.1, 0.25, 0.4, 0.5),
        unit="of the cases",
        make=wrong_anatomy,
        plain="a structure in the wrong place",
    ),
    Defect(
        name="swapped labels",
        severities=(0.1, 0.2, 0.3, 0.4, 0.5),
        unit="of the cases",
        make=swapped_labels,
        plain="images that do not show the class that was asked for",
    ),
)


def kinds_of(train: Sample, clean: Sample, *, seed: int) -> tuple[np.ndarray, int, str, float]:
    """The class of each clean case, which of them is dropped, its name and its share in training: of the first class condition the
    commonest value that at most half of the training cases have; without classes, the cluster of training images (k-means of their leading
    principal components) that comes nearest to a third of them."""
    names = sorted({name for condition in train.conditions for name, value in condition.items() if isinstance(value, str)})
    for name in names:
        values, counts = np.unique([str(c.get(name)) for c in train.conditions], return_counts=True)
        fitting = np.flatnonzero(counts <= len(train) / 2)
        if len(values) > 1 and len(fitting):
            dropped = int(fitting[counts[fitting].argmax()])
            place = {value: k for k, value in enumerate(values)}
            kind = np.array([place.get(str(c.get(name)), -1) for c in clean.conditions])
            return kind, dropped, f"{name}={values[dropped]}", float(counts[dropped] / len(train))
    fixed, of_clean = _components(train.images, clean.images)
    centres = clusters(fixed, seed=seed)
    if centres is None:
        return np.full(len(clean), -1), 0, "", 0.0
    sizes = np.bincount(squared_distances(fixed, centres).argmin(axis=1), minlength=len(centres))
    dropped = int(np.abs(sizes - len(train) / CLUSTERS).argmin())
    kind = squared_distances(of_clean, centres).argmin(axis=1)
    return kind, dropped, "a cluster of similar images", float(sizes[dropped] / len(train))


def clusters(points: np.ndarray, *, seed: int, rounds: int = 20) -> np.ndarray | None:
    """Centres ``(CLUSTERS, dimension)`` by Lloyd's algorithm from k-means++ (Arthur and Vassilvitskii 2007), or None if there are too few
    different points."""
    generator = generator_for(seed, "clusters")
    centres = points[[generator.integers(len(points))]] if len(points) else points
    while 0 < len(centres) < CLUSTERS:
        near = squared_distances(points, centres).min(axis=1)
        if not near.sum() > 0:
            return None
        centres = np.concatenate([centres, points[[generator.choice(len(points), p=near / near.sum())]]])
    for _ in range(rounds if len(centres) else 0):
        nearest = squared_distances(points, centres).argmin(axis=1)
        centres = np.stack([points[nearest == k].mean(axis=0) if (nearest == k).any() else centres[k] for k in range(CLUSTERS)])
    return centres if len(centres) else None


def _components(train: np.ndarray, clean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both along the leading principal components of the training images, which are halved until they are small."""

    def flat(images: np.ndarray) -> np.ndarray:
        step = [max(1, n // 16) for n in images.shape[2:]]
        small = [ndimage.uniform_filter(image[0], step)[tuple(slice(None, None, s) for s in step)].ravel() for image in images]
        return np.array(small, np.float64).reshape(len(images), -1)

    fixed = flat(train)
    mean = fixed.mean(axis=0)
    _, _, axes = np.linalg.svd(fixed - mean, full_matrices=False)
    return (fixed - mean) @ axes[:COMPONENTS].T, (flat(clean) - mean) @ axes[:COMPONENTS].T
