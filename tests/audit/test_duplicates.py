"""Near-duplicates within a cohort are found, one of each is kept, and nobody else is named."""

from pathlib import Path

import numpy as np
import pytest

from medsynth.audit import duplicates
from medsynth.audit.duplicates import near_duplicates
from tests.make_evidence import cohort_of, images_of


def found(folder: Path, images: np.ndarray) -> dict[int, int]:
    twins = near_duplicates(cohort_of(folder, "train", images.astype(np.float32)))
    return {int(case.partition("-")[2]): int(twin.partition("-")[2]) for case, twin in twins.items()}


@pytest.mark.parametrize("shape", [(24, 24), (12, 10, 8), (100, 100)])
def test_a_copy_with_a_little_noise_is_found_and_people_are_left_alone(tmp_path: Path, shape: tuple[int, ...], monkeypatch):
    monkeypatch.setattr(duplicates, "BLOCK", 7)  # pairs across blocks too
    people = images_of(shape, [f"person {i}" for i in range(40)])
    assert found(tmp_path / "people", people) == {}
    noise = np.random.default_rng(0).normal(0, 0.01, (3, *shape))
    images = np.concatenate([people, people[[3, 3, 20]] * 1.2 - 0.1 + noise])
    assert found(tmp_path / "copies", images) == {40: 3, 41: 3, 42: 20}


def test_of_a_chain_only_neighbours_of_what_is_kept_are_named(tmp_path: Path, monkeypatch):
    """Each image is near the next, the first is not near the last: the third stays, since the second, which is near it, is gone."""
    monkeypatch.setattr(duplicates, "LINE", 0.85)
    rest = np.random.default_rng(1).standard_normal((60, 20, 20))
    a, b = rest[:2]
    chain = [np.cos(angle) * a + np.sin(angle) * b for angle in (0.0, 0.4, 0.8)]
    assert found(tmp_path, np.stack([*chain, *rest[2:]])) == {1: 0}


def test_empty_slices_are_nobodys_duplicates(tmp_path: Path):
    images = np.concatenate([images_of((16, 16), [f"person {i}" for i in range(6)]), np.full((4, 16, 16), -1.0)])
    images[6:] += np.random.default_rng(0).normal(0, 1e-4, (4, 16, 16))
    assert found(tmp_path, images) == {}
