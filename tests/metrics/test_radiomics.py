import numpy as np
import pytest

from medsynth.metrics.embedding import LIMIT, standardised, whitened
from medsynth.metrics.radiomics import Radiomics, TextureEffects, effects
from medsynth.metrics.score import Sample


def textured(features: np.ndarray, names=()) -> Sample:
    subjects = [str(i) for i in range(len(features))]
    return Sample(
        images=np.zeros((len(features), 1, 2, 2)),
        features={"texture": features},
        subjects=subjects,
        spacing=(1, 1),
        names={"texture": names},
    )


def test_the_effect_of_a_shift_is_the_shift_in_standard_deviations():
    x = np.random.default_rng(0).standard_normal((500, 3)) * [1, 5, 0.1]
    assert effects(x, x + np.array([0.5, 0, -0.1])) == pytest.approx(np.array([0.5, 0, -0.1]) / x.std(axis=0, ddof=1), rel=1e-9)


def test_the_feature_that_moved_is_named_first_though_a_constant_column_stands_before_it():
    generator = np.random.default_rng(0)
    real, train = generator.standard_normal((2, 80, 6))
    real[:, 1] = train[:, 1] = 7.0
    names = ("mean", "constant", "p10", "entropy", "contrast", "energy")
    shifted = real + np.array([0, 0, 0, 0, 1.5, 0])
    details = Radiomics(top=2)(textured(train, names), textured(real), textured(shifted)).details(np.arange(80), np.arange(80, 160))
    assert details["shifted"][0]["feature"] == "contrast"
    assert details["shifted"][0]["d"] == pytest.approx(1.5, abs=0.4)
    assert len(details["shifted"]) == 2


def test_texture_effects_grow_with_the_shift():
    train, real = np.random.default_rng(0).standard_normal((2, 60, 5))
    rows = np.arange(60), np.arange(60, 120)
    values = [TextureEffects()(textured(train), textured(real), textured(real + c)).value(*rows) for c in (0, 0.2, 0.8)]
    assert values[0] == pytest.approx(0, abs=1e-12)
    assert values[0] < values[1] < values[2]


def test_the_scale_is_the_training_cases_and_an_undefined_number_is_far_away():
    train = np.random.default_rng(0).standard_normal((50, 4)) * [1, 100, 1, 0] + [0, 3, 0, 2]
    train[3, 2] = np.nan
    broken = train.copy()
    broken[:, 1] = np.inf
    broken[0, 1] = np.nan
    fixed, pool, kept = standardised(textured(train), [textured(broken)], "texture")
    assert kept.tolist() == [0, 1]  # one column is undefined in training, one constant
    assert fixed.mean(axis=0) == pytest.approx(0, abs=1e-12)
    assert fixed.std(axis=0) == pytest.approx(1)
    assert (pool[:, 1] == LIMIT).all()


def test_whitened_training_cases_have_unit_variance_along_every_axis():
    generator = np.random.default_rng(0)
    train = textured(generator.standard_normal((90, 3)) @ generator.standard_normal((3, 40)) + 0.1 * generator.standard_normal((90, 40)))
    fixed, pool = whitened(train, [train], "texture")
    assert fixed.shape == (90, 15)
    assert np.cov(fixed.T, bias=True) == pytest.approx(np.eye(15), abs=0.02)
    assert pool == pytest.approx(fixed)
