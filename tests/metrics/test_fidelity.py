import numpy as np
import pytest

from medsynth.metrics.fidelity import ConditionFidelity, PredictedLabels
from medsynth.metrics.manifold import Authenticity
from medsynth.metrics.score import NotApplicable, Sample

CENTRES = np.array([[0.0, 0, 0, 0], [3, 0, 0, 0], [0, 3, 0, 0]])


def patients(seed: int, cases: int = 300, classes=(0, 1, 2), swapped: float = 0.0, noise: float = 0.5) -> Sample:
    """Features that show a class and an age; ``swapped`` of the cases were asked for another class than they show; a site shows nowhere."""
    generator = np.random.default_rng(seed)
    shown = generator.choice(classes, cases)
    age = generator.uniform(20, 80, cases)
    features = CENTRES[shown] + noise * generator.standard_normal((cases, 4))
    features[:, 3] = (age - 50) / 20 + 0.2 * generator.standard_normal(cases)
    asked = np.where(generator.random(cases) < swapped, (shown + 1) % 3, shown)
    conditions = [{"class": "abc"[k], "age": float(a), "site": "xy"[generator.integers(2)]} for k, a in zip(asked, age, strict=True)]
    return Sample(
        images=np.zeros((cases, 1, 2, 2)),
        features={"features": features},
        subjects=[f"{seed}-{i}" for i in range(cases)],
        spacing=(1, 1),
        conditions=conditions,
    )


ROWS = np.arange(300), np.arange(300, 600)


def told(synthetic: Sample) -> dict[str, dict]:
    comparison = ConditionFidelity(features="features")(patients(0), patients(1), synthetic)
    return {each["attribute"]: each for each in comparison.details(*ROWS)["attributes"]}


def test_every_attribute_that_can_be_read_is_told_and_the_others_are_named():
    comparison = ConditionFidelity(features="features")(patients(0), patients(1), patients(2))
    details = comparison.details(*ROWS)
    assert [each["attribute"] for each in details["attributes"]] == ["age", "class"]
    assert list(details["not_readable"]) == ["site"]
    age, label = details["attributes"]
    assert age["synthetic"]["mean_absolute_error"] < 8
    assert label["real"]["accuracy"] > 0.95
    assert comparison.value(*ROWS) > 0.95


def test_a_fifth_of_swapped_labels_costs_a_fifth_of_the_accuracy():
    honest, swapped = told(patients(2))["class"], told(patients(2, swapped=0.2))["class"]
    assert 0.15 <= honest["synthetic"]["accuracy"] - swapped["synthetic"]["accuracy"] <= 0.25
    assert swapped["real"] == honest["real"]


def test_a_dropped_class_is_its_own_share():
    metric = PredictedLabels(features="features")
    dropped, whole = (metric(patients(0), patients(1), patients(2, classes=c)).value(*ROWS) for c in ((0, 1), (0, 1, 2)))
    assert dropped == pytest.approx(1 / 3, abs=0.05)
    assert whole < 0.08


def test_training_cases_are_read_by_a_reader_that_does_not_know_them():
    """Noise alone, in more columns than subjects: known by heart, a training case would be read without a fault."""

    def sample(seed):
        generator = np.random.default_rng(seed)
        return Sample(
            images=np.zeros((80, 1, 2, 2)),
            features={"features": generator.standard_normal((80, 200))},
            subjects=[f"{seed}-{i}" for i in range(80)],
            spacing=(1, 1),
            conditions=[{"class": "ab"[generator.integers(2)]} for _ in range(80)],
        )

    with pytest.raises(NotApplicable, match="no attribute can be read from real cases"):
        ConditionFidelity(features="features")(sample(0), sample(0), sample(1), sample(2))


def test_cases_of_which_nothing_was_asked_have_no_fidelity(cohort_of):
    sample = cohort_of(np.random.default_rng(0).standard_normal((60, 3)))
    with pytest.raises(NotApplicable, match="nothing was asked"):
        ConditionFidelity(features="features")(sample, sample, sample)


def test_copies_are_not_authentic_and_other_persons_are_as_authentic_as_training_cases_among_themselves(cohort_of):
    metric, shares, floors = Authenticity(features="features"), [], []
    for seed in range(5):
        generator = np.random.default_rng(seed)
        train = cohort_of(generator.standard_normal((300, 8)), [f"t{i}" for i in range(300)])
        other = cohort_of(generator.standard_normal((300, 8)), [f"s{i}" for i in range(300)])
        copies = cohort_of(train.features["features"], [f"c{i}" for i in range(300)])
        comparison = metric(train, train, other, copies)
        floor, share, copied = (comparison.value(np.arange(1), np.arange(300) + 300 * k) for k in range(3))
        assert copied == 0
        shares.append(share)
        floors.append(floor)
    assert np.mean(shares) == pytest.approx(np.mean(floors), abs=0.03)
