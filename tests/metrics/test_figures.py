import numpy as np
import pytest

from medsynth.metrics import figures
from medsynth.metrics.intensity import bins_of, histograms, wasserstein
from medsynth.metrics.score import Sample


def cubes(sides: list[int]) -> Sample:
    """Masks with one cube a case."""
    masks = np.zeros((len(sides), 20, 20, 20), np.uint8)
    for mask, side in zip(masks, sides, strict=True):
        mask[:side, :side, :side] = 1
    return Sample(
        images=np.zeros((len(sides), 0)), features={}, subjects=[str(i) for i in range(len(sides))], spacing=(2, 2, 2), masks=masks
    )


def test_violins_of_structures_show_no_single_person(tmp_path):
    usual = [8, 9, 10, 11, 12] * 6
    drawn = []
    for name, sides in (("usual", usual), ("one giant", [*usual[:-1], 20]), ("all larger", [side + 1 for side in usual])):
        figures.structures({"train": cubes(sides), "holdout": cubes(usual), "synthetic": cubes(usual)}, tmp_path / f"{name}.png")
        drawn.append((tmp_path / f"{name}.png").read_bytes())
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_the_area_of_the_cdf_difference_is_the_distance_and_darker_is_above_zero():
    generator = np.random.default_rng(0)
    images = {"holdout": generator.uniform(-0.5, 0.9, (9, 1, 16, 16)), "train": generator.uniform(-0.5, 0.9, (5, 1, 16, 16))}
    images["synthetic"] = images["holdout"] - 0.25
    samples = [Sample(images=each, features={}, subjects=[str(i) for i in range(len(each))], spacing=(1, 1)) for each in images.values()]
    edges = bins_of(samples, 1000)
    shares = {name: histograms(each, edges).mean(axis=0) for name, each in images.items()}
    found, width = figures.beyond_holdout(shares), edges[1] - edges[0]
    assert set(found) == {"train", "synthetic"}
    for name, difference in found.items():
        assert np.abs(difference).sum() * width == pytest.approx(wasserstein(shares["holdout"], shares[name], width), rel=1e-9)
    assert (found["synthetic"] > -1e-9).all()
    assert found["synthetic"].sum() * width == pytest.approx(0.25, abs=0.01)


def test_tissues_are_drawn_in_the_order_of_their_distance(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    masks = np.stack([np.arange(256).reshape(16, 16) // 64] * 6).astype(np.uint8)
    images = generator.normal(0, 0.1, (6, 1, 16, 16))
    moved = images + np.array([0.0, 0.3, 0.05, 0.6])[masks][:, None]

    def sample(images: np.ndarray) -> Sample:
        return Sample(images=images, features={}, subjects=list("abcdef"), spacing=(1, 1), masks=masks)

    drawn = []
    monkeypatch.setattr(figures, "_grey_values", lambda rows, edges, path: drawn.append(rows))
    figures.tissue_histograms({"train": sample(images), "holdout": sample(images), "synthetic": sample(moved)}, [0, 1, 2, 3, 9], tmp_path)
    assert list(drawn[0]) == ["Label 3", "Label 1", "Label 2", "Outside of all labels"]
    assert drawn[0]["Label 1"]["train"].sum() == pytest.approx(1)
