"""What every metric of conf/metric/ promises.

Best between equal cohorts, worse when one is spoilt, an interval that holds its value, and the same under its seed.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf
from scipy.ndimage import gaussian_filter

from medsynth.encoder import Encoder, Learner
from medsynth.metrics.intervals import score
from medsynth.metrics.score import Metric, Sample, Score
from medsynth.rng import generator_for
from medsynth.stages.evaluate import EXTRACTORS
from tests.make_cohort import blobs

FOLDER = Path(__file__).resolve().parents[2] / "conf" / "metric"
FILES = sorted(path for path in FOLDER.glob("*.yaml") if "_target_" in path.read_text())  # the others are lists of these
CASES = 64


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def metric(request: pytest.FixtureRequest) -> Metric:
    return instantiate(OmegaConf.load(request.param))


def asked(images: np.ndarray) -> list[dict[str, str | float]]:
    """A class and a number that an image shows."""
    brightness = images.mean(axis=(1, 2, 3))
    return [{"class": "bright" if value > -0.72 else "dark", "brightness": float(value)} for value in brightness]


@cache
def learned() -> dict[str, Encoder]:
    """The two kinds of learned spaces, of the training images."""
    images = np.stack([blobs((24, 24), 0, f"train{i}")[0] for i in range(CASES)])[:, None]
    subjects, classes = [str(i) for i in range(CASES)], [int(c["class"] == "bright") for c in asked(images)]
    return {
        "encoder": Learner(steps=20).fit(images, subjects, "train"),
        "classifier": Learner(steps=20, classes="class").fit(images, subjects, "train", classes),
    }


def sample(images: np.ndarray, masks: np.ndarray, conditions: list[dict[str, str | float]]) -> Sample:
    features = {name: extractor(images) for name, extractor in {**EXTRACTORS, **learned()}.items()}
    features["weights"] = features["random_convolution"]  # as a network from elsewhere would
    subjects = [str(i) for i in range(len(images))]
    return Sample(images=images, features=features, subjects=subjects, spacing=(1.0, 1.0), masks=masks, conditions=conditions)


@pytest.fixture(scope="module")
def cohorts() -> dict[str, Sample]:
    """Training, held-out, further real cases, and four ways to spoil the held-out ones."""

    def draw(split: str) -> tuple[np.ndarray, np.ndarray]:
        found = [blobs((24, 24), 0, f"{split}{i}") for i in range(CASES)]
        noise = generator_for(0, split).normal(0, 0.05, (CASES, 1, 24, 24))
        images = np.stack([image for image, _ in found])[:, None] + noise
        return images.astype(np.float32), np.stack([mask for _, mask in found])

    def whole(split: str) -> Sample:
        images, masks = draw(split)
        return sample(images, masks, asked(images))

    images, masks = draw("holdout")
    one = np.zeros(CASES, int)
    spoilt = {
        "blur": (np.stack([gaussian_filter(image[0], 1.0)[None] for image in images]), masks),
        "noise": (images + generator_for(0, "noise").normal(0, 0.2, images.shape).astype(np.float32), masks),
        "collapse": (images[one], masks[one]),
        "small organs": (images, np.where(np.arange(24) < 12, masks, 0).astype(np.uint8)),
    }
    return {
        "train": whole("train"),
        "holdout": sample(images, masks, asked(images)),
        "real": whole("further"),
        **{name: sample(*pair, asked(images)) for name, pair in spoilt.items()},
    }


def scored(metric: Metric, cohorts: dict[str, Sample], synthetic: str, seed: int = 0) -> Score:
    found = score("it", metric, cohorts["train"], cohorts["holdout"], cohorts[synthetic], seed=seed, subsamples=20, permutations=19)
    assert found.status == "ok", found.reason
    return found


def test_equal_cohorts_are_best_and_a_spoilt_one_is_worse(metric, cohorts):
    equal = scored(metric, cohorts, "holdout").value

    def badness(value: float) -> float:
        return {"low": value - equal, "high": equal - value, "anchor": abs(value - equal)}[metric.best]

    worse = {name: badness(scored(metric, cohorts, name).value) for name in ("blur", "noise", "collapse", "small organs")}
    real = badness(scored(metric, cohorts, "real").value)
    assert min(*worse.values(), real) >= -1e-9
    assert max(worse.values()) > max(1.5 * real, 1e-3), worse


def test_the_interval_holds_the_value_and_the_anchor_is_real_against_real(metric, cohorts):
    found = scored(metric, cohorts, "real")
    assert found.interval[0] <= found.value <= found.interval[1]
    assert found.anchor_interval[0] <= found.anchor <= found.anchor_interval[1]
    assert found.interval[0] <= found.anchor_interval[1]
    assert found.anchor_interval[0] <= found.interval[1]
    low, high = metric.bounds
    assert low <= found.interval[0]
    assert found.interval[1] <= high
    assert (found.p is not None) == metric.tested


def test_a_spoilt_cohort_is_told_from_a_real_one(metric, cohorts):
    """At least one kind of damage lies outside of what real cases among themselves show; else the metric says nothing."""

    def told(found: Score) -> bool:
        (low, high), (floor, ceiling) = found.interval, found.anchor_interval
        return {"low": low > ceiling, "high": high < floor, "anchor": low > ceiling or high < floor}[metric.best]

    assert any(told(scored(metric, cohorts, name)) for name in ("blur", "noise", "collapse", "small organs"))


def test_the_same_seed_gives_the_same_score(metric, cohorts):
    assert scored(metric, cohorts, "real") == scored(metric, cohorts, "real")


def test_the_order_of_the_cases_means_nothing(metric, cohorts):
    if hasattr(metric, "pairs"):
        pytest.skip("its value is about pairs that a seed draws")
    order = np.random.default_rng(0).permutation(CASES)
    shuffled = {**cohorts, "real": cohorts["real"].take(order)}
    assert scored(metric, shuffled, "real").value == pytest.approx(scored(metric, cohorts, "real").value, rel=1e-8, abs=1e-12)


def test_few_subjects_are_an_answer_and_no_crash(metric, cohorts):
    few = {name: cohorts[name].take(np.arange(6)) for name in ("train", "holdout", "real")}
    found = score("it", metric, few["train"], few["holdout"], few["real"], seed=0, subsamples=20, permutations=19)
    assert found.status == "absent"
    assert "6 held out" in found.reason
    assert found.value is None


def test_an_empty_cohort_is_an_answer_and_no_crash(metric, cohorts):
    empty = cohorts["real"].take(np.arange(0))
    assert score("it", metric, cohorts["train"], empty, empty, seed=0, subsamples=20, permutations=19).status == "absent"
