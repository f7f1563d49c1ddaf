"""A small prepared cohort, as the stage `prepare` would leave it: smooth blobs whose shape belongs to a subject, in memory-mapped arrays.

Tests say ``from tests.make_cohort import make_cohort`` (the root of the checkout is on pytest's path).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from medsynth.cohort import Case, Cohort, Header, sha256_of
from medsynth.conditions import ConditionSchema
from medsynth.rng import generator_for

SCALE = (-1000.0, 1000.0)  # stored units that map to -1 and +1
SPACING = 2.0  # mm


def blobs(shape: Sequence[int], seed: int, subject: str) -> tuple[np.ndarray, np.ndarray]:
    """An image in -1..+1, float32, and its label map, uint8: three soft ellipsoids that belong to the subject. Both ``(*shape)``."""
    generator = generator_for(seed, "blobs", subject)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    axis = (slice(None), *[None] * len(shape))
    image = np.full(shape, -1.0)
    mask = np.zeros(shape, np.uint8)
    for label in (0, 1, 2):
        centre = generator.uniform(-0.5, 0.5, len(shape))
        radius = generator.uniform(0.25, 0.7, len(shape))
        distance = (((grid - centre[axis]) / radius[axis]) ** 2).sum(axis=0)
        image += generator.uniform(0.3, 0.9) * np.exp(-distance)
        if label == 1:
            mask[distance < 0.5] = 1
    return np.clip(image, -1, 1).astype(np.float32), mask


def make_cohort(
    folder: Path,
    n_train: int = 24,
    n_validation: int = 6,
    n_holdout: int = 8,
    shape: Sequence[int] = (16, 16),
    conditions: Mapping[str, Sequence] | None = None,
    seed: int = 0,
    joint_mask: bool = False,
    images_per_subject: int = 1,
) -> Cohort:
    """Write ``cohort.jsonl`` and ``volumes/<split>.npy`` (with ``-mask.npy`` if joint) under ``folder``, and return the cohort.

    ``conditions`` names attributes and the values to draw from: strings are classes, and two numbers the ends of a continuous attribute.
    ``n_*`` count images; each run of ``images_per_subject`` is one subject with one blob that is slightly changed.
    """
    shape, conditions = tuple(shape), dict(conditions or {})
    (folder / "volumes").mkdir(parents=True, exist_ok=True)
    cases = []
    for split, count in (("train", n_train), ("validation", n_validation), ("holdout", n_holdout)):
        images, masks = np.zeros((count, 1, *shape), np.float32), np.zeros((count, *shape), np.uint8)
        for row in range(count):
            subject = f"{split}-{row // images_per_subject:04d}"
            generator = generator_for(seed, "case", split, row)
            images[row, 0], masks[row] = blobs(shape, seed, subject)
            images[row] = np.clip(images[row] + generator.normal(0, 0.01, (1, *shape)), -1, 1)
            condition = {
                name: str(values[generator.integers(len(values))])
                if isinstance(values[0], str)
                else round(float(generator.uniform(values[0], values[1])), 3)
                for name, values in conditions.items()
            }
            cases.append(
                Case(
                    id=f"{split}-{row:06d}",
                    subject=subject,
                    split=split,
                    path=f"volumes/{split}.npy",
                    sha256=sha256_of(images[row].tobytes()),
                    shape=shape,
                    spacing=(SPACING,) * len(shape),
                    modality="OT",
                    scale=SCALE,
                    condition=condition,
                    row=row,
                    mask=f"volumes/{split}-mask.npy" if joint_mask else None,
                )
            )
        np.save(folder / f"volumes/{split}.npy", images)
        if joint_mask:
            np.save(folder / f"volumes/{split}-mask.npy", masks)
    train = [case.condition for case in cases if case.split == "train"]
    header = Header(
        kind="real",
        unit="subject",
        source={"name": "blobs", "licence": "none", "terms": "made by a test"},
        shape=shape,
        spacing=(SPACING,) * len(shape),
        affine=tuple(tuple(float(v) for v in row) for row in np.diag([SPACING, SPACING, SPACING, 1.0])),
        scale=SCALE,
        integer=True,
        modality="OT",
        labels=(1,) if joint_mask else (),
        joint_mask=joint_mask,
        conditions=ConditionSchema.of(list(conditions), train),
    )
    cohort = Cohort(header, tuple(cases), folder)
    cohort.write(folder / "cohort.jsonl")
    return cohort
