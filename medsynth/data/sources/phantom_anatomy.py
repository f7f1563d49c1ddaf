"""Anatomy of the phantom hospital's people: what is true of them, how it looks, and how to read it from a picture again.

Lengths in millimetres, RAS+ around the body's centre: an ellipse of fat and soft tissue, a large organ on the patient's right (+x), a small
one on the left that shrinks with age, a vertebra at the back, and in some a lesion in the large organ, as likely as the diagnosis makes it.
`measure` reads real and synthetic pictures alike, so a synthetic cohort can be held against the distributions below.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy import ndimage

from medsynth.rng import generator_for

# The population. Pairs are mean and standard deviation of a normal distribution, drawn within two standard deviations.
FIELD_OF_VIEW = 288.0  # mm
BODY_WIDTH = {"F": (205.0, 12.0), "M": (225.0, 12.0)}  # mm, left to right
BODY_DEPTH = (0.72, 0.04)  # share of the width, back to front
AGES = (20, 89)  # years, uniform
FAT = (11.0, 2.0)  # mm below the skin
ORGAN_CONTRAST = {"CT": (60.0, 10.0), "MR": (0.6, 0.08)}  # large organ above soft tissue: HU; share of it
KIDNEY_RADIUS = (26.0, 1.5)  # mm at 50 years
KIDNEY_PER_YEAR = -0.12  # mm
DIAGNOSES = {"healthy": (0.5, 0.05), "cyst": (0.3, 0.7), "tumour": (0.2, 0.9)}  # prevalence, lesion rate
LESION_RADIUS = (18.0, 1.5)  # mm
SECOND_STUDY = 0.2  # share of patients
TISSUE = {"CT": 30.0, "MR": 400.0}
LEVELS = {  # relative to soft tissue: CT adds HU, MR multiplies
    "CT": {"air": -1030.0, "fat": -130.0, "kidney": 130.0, "bone": 320.0, "lesion": -75.0},
    "MR": {"air": 0.02, "fat": 1.7, "kidney": 1.5, "bone": 0.25, "lesion": 1.6},
}
NOISE = {"CT": 9.0, "MR": 10.0}  # HU; arbitrary units

# Where things lie: share of the body's width and depth
LARGE_ORGAN, LARGE_SIZE = (0.20, 0.04), (0.19, 0.24)
KIDNEY = (-0.23, -0.02)
SPINE, SPINE_RADIUS = (0.0, -0.29), 17.0
LESION = (0.065, -0.05)  # from the large organ's centre


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """The truth about one patient; lengths in mm, contrasts as in `ORGAN_CONTRAST`."""

    age: int
    sex: str
    diagnosis: str
    width: float
    depth: float
    fat: float
    contrast: Mapping[str, float]
    kidney: float
    lesion: float  # radius, 0 where there is none
    shift: tuple[float, float]  # of the large organ from its usual place


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What a picture shows, as far as `measure` can tell; lengths in mm, contrast as in `ORGAN_CONTRAST`."""

    width: float
    depth: float
    contrast: float
    kidney: float
    lesion: bool


def truth(seed: int, patient: int) -> Anatomy:
    """What is true of a patient of the hospital of this seed."""
    draw = generator_for(seed, "phantom", "anatomy", patient)
    normal = partial(_within_two, draw)
    sex, age = str(draw.choice(["F", "M"])), int(draw.integers(AGES[0], AGES[1] + 1))
    diagnosis = str(draw.choice(list(DIAGNOSES), p=[prevalence for prevalence, _ in DIAGNOSES.values()]))
    width = normal(*BODY_WIDTH[sex])
    return Anatomy(
        age=age,
        sex=sex,
        diagnosis=diagnosis,
        width=width,
        depth=width * normal(*BODY_DEPTH),
        fat=normal(*FAT),
        contrast={modality: normal(*ORGAN_CONTRAST[modality]) for modality in sorted(ORGAN_CONTRAST)},
        kidney=normal(*KIDNEY_RADIUS) + KIDNEY_PER_YEAR * (age - 50),
        lesion=normal(*LESION_RADIUS) if draw.random() < DIAGNOSES[diagnosis][1] else 0.0,
        shift=(normal(0.0, 2.0), normal(0.0, 2.0)),
    )


def lesion_rate() -> float:
    """Share of patients with a lesion, over all diagnoses."""
    return sum(prevalence * rate for prevalence, rate in DIAGNOSES.values())


def measure(image: np.ndarray, spacing: Sequence[float], modality: str) -> Measured | None:
    """Read a picture: ``image`` (x, y), or (x, y, z) of which the middle slice is read, RAS+, in stored units; ``spacing`` in mm.

    None where there is no body to see.
    """
    if image.ndim == 3:
        image = image[:, :, image.shape[2] // 2]
    pixel = float(spacing[0]) * float(spacing[1])
    # CT: between fat and the -200 HU at which a narrow window cuts air. ``share`` of a voxel must be body for it to count
    threshold, share = (-150.0, 0.94) if modality == "CT" else (0.3 * np.percentile(image, 90), 0.3)
    parts, count = ndimage.label(ndimage.binary_fill_holes(image > threshold))
    if not count:
        return None
    body = parts == 1 + int(np.argmax(ndimage.sum_labels(np.ones_like(parts), parts, np.arange(1, count + 1))))
    x, y = (axis * step for axis, step in zip(np.indices(image.shape), spacing, strict=False))
    x, y = x - x[body].mean(), y - y[body].mean()
    # a solid ellipse of half-axis a has the variance a^2 / 4 along it; a threshold beyond half a voxel cuts both its edges
    width, depth = (
        float(4 * np.sqrt(np.mean(axis[body] ** 2))) + (2 * share - 1) * float(step) for axis, step in zip((x, y), spacing, strict=False)
    )
    if min(width, depth) < 40:
        return None

    def disc(place: tuple[float, float], radius: float) -> np.ndarray:
        inside = (x - place[0] * width) ** 2 + (y - place[1] * depth) ** 2 <= radius**2
        return inside if inside.any() else body

    tissue = float(np.median(image[disc((-0.04, 0.27), 0.06 * width)]))
    organ = float(np.median(image[disc((LARGE_ORGAN[0] - 0.05, LARGE_ORGAN[1] + 0.09), 0.05 * width)]))
    seen = disc((LARGE_ORGAN[0] + LESION[0], LARGE_ORGAN[1] + LESION[1]), 20.0)
    bright = disc(KIDNEY, 40.0) & (x < -0.08 * width)
    if modality == "CT":
        contrast = organ - tissue
        abnormal = seen & (image < organ + LEVELS["CT"]["lesion"] / 2)
        bright &= image > tissue + LEVELS["CT"]["kidney"] / 2
    else:
        contrast = organ / tissue - 1 if tissue > 0 else 0.0
        abnormal = seen & (image > organ * (1 + LEVELS["MR"]["lesion"]) / 2)
        bright &= image > tissue * (1 + LEVELS["MR"]["kidney"]) / 2
    return Measured(
        width=width,
        depth=depth,
        contrast=float(contrast),
        kidney=float(np.sqrt(bright.sum() * pixel / np.pi)),
        lesion=bool(abnormal.sum() * pixel > 0.35 * np.pi * LESION_RADIUS[0] ** 2),
    )


def _within_two(draw: np.random.Generator, mean: float, deviation: float) -> float:
    return float(mean + deviation * np.clip(draw.standard_normal(), -2, 2))


def image_of(anatomy: Anatomy, modality: str, *, size: int, slices: int, thickness: float, seed: int) -> np.ndarray:
    """A picture of a patient, float32 (x, y, z) RAS+, HU or arbitrary MR units, over `FIELD_OF_VIEW` and ``slices`` x ``thickness`` mm.

    ``seed`` is of what differs between two pictures of one patient: noise, texture, gain, pose.
    """
    draw = generator_for(seed, "picture")
    pixel = FIELD_OF_VIEW / size
    x, y = ((np.arange(size) - (size - 1) / 2) * pixel + move for move in draw.uniform(-6, 6, 2))
    z = (np.arange(slices) - (slices - 1) / 2) * thickness
    x, y, z = x[:, None, None], y[None, :, None], z[None, None, :]
    taper = 1 - 0.08 * (z / 120) ** 2

    def solid(place: tuple[float, float], half: tuple[float, float], along: float) -> np.ndarray:
        """Share of each voxel that lies in an ellipsoid: soft by one voxel at the edge."""
        distance = np.sqrt(((x - place[0]) / half[0]) ** 2 + ((y - place[1]) / half[1]) ** 2 + (z / along) ** 2)
        return np.clip(0.5 - (distance - 1) * min(half) / pixel, 0, 1)

    width, depth = anatomy.width, anatomy.depth
    half = (width / 2 * taper, depth / 2 * taper)
    distance = np.sqrt((x / half[0]) ** 2 + (y / half[1]) ** 2)
    shrunk = np.sqrt((x / (half[0] - anatomy.fat)) ** 2 + (y / (half[1] - anatomy.fat)) ** 2)
    organ_at = (LARGE_ORGAN[0] * width + anatomy.shift[0], LARGE_ORGAN[1] * depth + anatomy.shift[1])
    ratio, contrast = LEVELS[modality], anatomy.contrast[modality]
    level = {"organ": contrast if modality == "CT" else 1 + contrast} | ratio
    level["lesion"] = level["organ"] + ratio["lesion"] if modality == "CT" else level["organ"] * ratio["lesion"]
    layers = [
        ("fat", np.clip(0.5 - (distance - 1) * depth / 2 / pixel, 0, 1)),
        ("tissue", np.clip(0.5 - (shrunk - 1) * (depth / 2 - anatomy.fat) / pixel, 0, 1)),
        ("organ", solid(organ_at, (LARGE_SIZE[0] * width, LARGE_SIZE[1] * depth), 90.0)),
        ("kidney", solid((KIDNEY[0] * width, KIDNEY[1] * depth), (anatomy.kidney, anatomy.kidney), 80.0)),
        ("bone", solid((SPINE[0] * width, SPINE[1] * depth), (SPINE_RADIUS * 1.15, SPINE_RADIUS), 1e6)),
    ]
    if anatomy.lesion:
        place = (organ_at[0] + LESION[0] * width, organ_at[1] + LESION[1] * depth)
        # long along z, so that most slices of a patient with a lesion show it
        layers.append(("lesion", solid(place, (anatomy.lesion, anatomy.lesion), 70.0)))
    level["tissue"] = 0.0 if modality == "CT" else 1.0
    array = np.full((size, size, slices), level["air"])
    for name, share in layers:
        array = array + share * (level[name] - array)

    texture = ndimage.gaussian_filter(draw.standard_normal(array.shape), (1.5, 1.5, 0.8))
    texture /= texture.std()
    noise = draw.standard_normal((2, *array.shape)) * NOISE[modality]
    body = layers[0][1]
    if modality == "CT":
        return (TISSUE["CT"] + array + 4.0 * texture * body + noise[0]).astype(np.float32)
    gain = TISSUE["MR"] * np.exp(0.3 * np.clip(draw.standard_normal(), -2, 2))
    shading = 1 + 0.06 * np.cos(np.pi * (x + y) / FIELD_OF_VIEW + draw.uniform(0, 2 * np.pi))
    array = gain * shading * (array + 0.02 * texture * body)
    return np.hypot(array + noise[0], noise[1]).astype(np.float32)  # magnitude of a complex signal: Rician
