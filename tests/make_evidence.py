"""Evidence for tests of the audit: subjects of one anatomy with a texture of their own, and synthetic cases that are nobody or somebody.

Tests say ``from tests.make_evidence import make_evidence, subject_image`` (the root of the checkout is on pytest's path).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.special import softmax

from medsynth.audit.finding import Evidence, Finding, Model
from medsynth.audit.level import LEVELS, Level, level_named
from medsynth.cohort import Case, Cohort, Header, sha256_of
from medsynth.rng import generator_for


def subject_image(shape: Sequence[int], seed: int, subject: str) -> np.ndarray:
    """``(*shape)``, float32 within about -1..+1: a soft ball that all subjects share, and a texture that is the subject's own."""
    generator = generator_for(seed, "subject image", subject)
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    centre = generator.uniform(-0.08, 0.08, len(shape))
    ball = 1 / (1 + np.exp(12 * (sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True)) - 0.7)))
    texture = gaussian_filter(generator.standard_normal(shape), 1.5)
    image = ball * (1 + 0.5 * texture / texture.std()) - 0.8 + 0.01 * generator.standard_normal(shape)
    return image.astype(np.float32)


def images_of(shape: Sequence[int], names: Sequence[str], seed: int = 0) -> np.ndarray:
    return np.stack([subject_image(shape, seed, name) for name in names])


def cohort_of(folder: Path, split: str, images: np.ndarray, subjects: Sequence[str] | None = None) -> Cohort:
    """A cohort of these images ``(case, *space)``, one subject each unless named."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / f"{split}.npy", images[:, None])
    shape = images.shape[1:]
    subjects = subjects or [f"{split}-{i:04d}" for i in range(len(images))]
    header = Header(
        kind="synthetic" if split == "synthetic" else "real",
        unit="subject",
        source={"name": "test"},
        shape=shape,
        spacing=(1.0,) * len(shape),
        affine=tuple(map(tuple, np.eye(4).tolist())),
        scale=(-1.0, 1.0),
        integer=False,
        modality="OT",
    )
    cases = tuple(
        Case(
            id=f"{split}-{i:06d}",
            subject=subjects[i],
            split=split,
            path=f"{split}.npy",
            sha256=sha256_of(images[i].tobytes()),
            shape=shape,
            spacing=header.spacing,
            modality="OT",
            scale=(-1.0, 1.0),
            row=i,
        )
        for i in range(len(images))
    )
    return Cohort(header, cases, folder)


def make_evidence(
    folder: Path,
    *,
    shape: Sequence[int] = (20, 20),
    n_train: int = 60,
    n_holdout: int = 40,
    n_synthetic: int = 60,
    planted: np.ndarray | None = None,
    level: str | Level = "demo",
    seed: int = 0,
) -> Evidence:
    """Train, holdout and synthetic cases of different subjects; ``planted`` images take the place of the first synthetic ones."""
    train, holdout, synthetic = (
        images_of(shape, [f"{name} {i}" for i in range(n)]) if n else np.zeros((0, *shape), np.float32)
        for name, n in (("train", n_train), ("holdout", n_holdout), ("nobody", n_synthetic))
    )
    if planted is not None:
        synthetic = np.concatenate([planted, synthetic[len(planted) :]])
    return Evidence(
        train=cohort_of(folder, "train", train),
        holdout=cohort_of(folder, "holdout", holdout),
        synthetic=cohort_of(folder, "synthetic", synthetic),
        level=level_named(level) if isinstance(level, str) else level,
        seed=seed,
    )


def learned_by_heart(images: np.ndarray, share: float = 1.0) -> Model:
    """The best denoiser of a training set of these images ``(n, *space)``, in closed form: their mean, weighted by their likelihood.

    ``share`` of its output is that, and the rest the noised image, shrunk towards nothing.
    """
    rows = images.reshape(len(images), -1).astype(np.float64)

    def denoise(x: np.ndarray, sigma: np.ndarray, condition: Mapping[str, object]) -> np.ndarray:
        wide = sigma.astype(np.float64)[:, None]
        flat = x.reshape(len(x), -1).astype(np.float64)
        likely = softmax(-((flat[:, None] - rows) ** 2).sum(2) / (2 * wide**2), axis=1)
        return (share * likely @ rows + (1 - share) * flat / (1 + wide**2)).reshape(x.shape).astype(np.float32)

    return Model(denoise=denoise, levels=(0.1, 0.3, 0.9))


def audit_result() -> dict:
    """What ``findings.json`` holds after a pass of one check."""
    finding = Finding(check="memorization", verdict="pass", value=0.0, interval=(0.0, 0.01), control=0.01, limit=0.02, why="Nothing.")
    result = {"level": LEVELS["demo"].as_json(), "verdict": "pass", "unit": "subject", "seed": 1, "findings": [finding.as_json()]}
    return json.loads(json.dumps(result | {name: letter * 64 for name, letter in (("synthetic", "a"), ("train", "b"), ("holdout", "c"))}))


def shuffled(cohort: Cohort, seed: int) -> Cohort:
    """The same cases in another order."""
    order = generator_for(seed, "shuffle").permutation(len(cohort))
    return replace(cohort, cases=tuple(cohort.cases[i] for i in order))
