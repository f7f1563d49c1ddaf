"""Frozen features: what an image is described by depends on the image alone, and moves when the image is spoilt."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medsynth.features import RandomConvolution, Texture, code_of, extract, identity
from medsynth.rng import generator_for
from tests.make_cohort import make_cohort
from tests.make_evidence import images_of

EXTRACTORS = [RandomConvolution(), Texture()]
SHAPES = [(28, 28), (24, 17), (12, 14, 10)]


@pytest.fixture(params=EXTRACTORS, ids=lambda extractor: type(extractor).__name__)
def extractor(request: pytest.FixtureRequest) -> RandomConvolution | Texture:
    return request.param


@pytest.fixture(params=SHAPES, ids=str)
def images(request: pytest.FixtureRequest) -> np.ndarray:
    return images_of(request.param, [str(i) for i in range(6)])[:, None]


def test_features_are_finite_float64_of_one_length(extractor, images: np.ndarray) -> None:
    features = extractor(images)
    assert features.dtype == np.float64
    assert features.shape == (6, extractor(images[:0]).shape[1])
    assert np.isfinite(features).all()


def test_a_case_has_the_same_features_alone_and_among_others(extractor, images: np.ndarray) -> None:
    together = extractor(images)
    alone = np.concatenate([extractor(images[i : i + 1]) for i in range(len(images))])
    assert (together == alone).all()
    assert (extractor(images[::-1]) == together[::-1]).all()


def test_random_weights_belong_to_the_seed(images: np.ndarray) -> None:
    first = RandomConvolution(seed=3)(images)
    assert (RandomConvolution(seed=3)(images) == first).all()
    assert not np.allclose(RandomConvolution(seed=4)(images), first)


def test_a_blur_of_the_image_moves_the_features_beyond_the_spread_of_subjects(extractor, images: np.ndarray) -> None:
    blurred = np.stack([gaussian_filter(image[0], 1.0)[None] for image in images])
    clear, soft = extractor(images), extractor(blurred)
    shift = np.abs(soft.mean(0) - clear.mean(0)) / (clear.std(0) + 1e-9)
    assert np.quantile(shift, 0.9) > 1.5


def test_a_constant_image_has_defined_features(extractor) -> None:
    assert np.isfinite(extractor(np.full((1, 1, 16, 16), -1.0, np.float32))).all()
    assert np.isfinite(extractor(np.zeros((1, 1, 9, 8, 9), np.float32))).all()


@pytest.mark.parametrize(("contrast", "accurate"), [(1.0, 1e-6), (1e-3, 1e-6)])  # a flat image keeps the digits of its spread
def test_one_weight_bank_is_the_plain_convolution(contrast: float, accurate: float) -> None:
    """Slow path: mean and spread over space of the first layer's channels, by SciPy."""
    from scipy.ndimage import correlate

    extractor = RandomConvolution(seed=1, widths=(8,), octaves=1)
    image = (0.5 + contrast * images_of((12, 10), ["a"])).astype(np.float32)
    generator = generator_for(1, "random convolution", 2, 0)
    weight = generator.standard_normal((8, 1, 3, 3)) * np.sqrt(2 / 9)
    bias = generator.standard_normal(8) * 0.1
    channels = [np.maximum(correlate(image[0].astype(float), w[0], mode="nearest") + b, 0) for w, b in zip(weight, bias, strict=True)]
    expected = [c.mean() for c in channels] + [c.std() for c in channels]
    assert extractor(image[:, None])[0] == pytest.approx(expected, abs=accurate)


def test_stripes_have_the_texture_of_stripes() -> None:
    texture = Texture(levels=2, distances=(1, 2))
    stripes = np.broadcast_to(np.where(np.arange(16) % 2, 0.5, -0.5), (16, 16)).astype(np.float32)
    features = dict(zip(texture.names, texture(stripes[None, None])[0], strict=True))
    # of four directions, three cross a stripe (contrast 1) and one runs along it (contrast 0); two voxels on is the same stripe or the next
    assert features["cm_contrast_directions"] == pytest.approx(np.std([1, 1, 1, 0]))
    assert features["cm_contrast"] == pytest.approx((2 * 15 * 15 + 16 * 15) / (2 * 15 * 15 + 2 * 16 * 15))
    assert features["cm2_contrast"] == pytest.approx(0)
    assert features["stat_mean"] == pytest.approx(0)
    assert features["stat_var"] == pytest.approx(0.25)
    assert features["ih_entropy"] == pytest.approx(1)
    assert features["szm_z_perc"] == pytest.approx(16 / 256)
    assert features["rlm_r_perc"] == pytest.approx((16 + 3 * 256) / (4 * 256))


def test_texture_does_not_change_when_the_image_is_mirrored(images: np.ndarray) -> None:
    texture = Texture()
    assert texture(np.flip(images, 2)) == pytest.approx(texture(images), abs=1e-5)


def test_a_cohort_is_described_case_by_case_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cohort = make_cohort(tmp_path / "prepare").split("holdout")
    extractor = Texture()
    features = extract(extractor, cohort, tmp_path / "kept")
    assert (features == extractor(cohort.images())).all()
    monkeypatch.setattr(Texture, "__call__", lambda *_: pytest.fail("it was computed again"))
    assert (extract(extractor, cohort, tmp_path / "kept") == features).all()


def test_what_was_kept_is_not_taken_for_another_cohort_or_extractor(tmp_path: Path) -> None:
    real = make_cohort(tmp_path / "prepare")
    kept = tmp_path / "kept"
    holdout = extract(Texture(), real.split("holdout"), kept)
    assert extract(Texture(), real.split("validation"), kept).shape[0] == 6
    assert extract(Texture(levels=8), real.split("holdout"), kept).tolist() != holdout.tolist()
    assert identity(Texture()) != identity(Texture(levels=8))
    assert len(list(kept.iterdir())) == 3


def test_code_is_that_of_the_file_a_type_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two metrics of one name and the same settings are not one metric."""
    monkeypatch.syspath_prepend(str(tmp_path))
    found = []
    for name, value in (("one", 1), ("two", 2), ("three", 1)):
        (tmp_path / f"{name}_of_mine.py").write_text(f"class Mine:\n    value = {value}\n")
        found.append(code_of(importlib.import_module(f"{name}_of_mine").Mine()))
    assert found[0] == found[2] != found[1]
    assert code_of() not in found
