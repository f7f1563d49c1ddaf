"""Injected defects: each is what it says, and a badge follows from the stated rule."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest

from medsynth.metrics.defects import DEFECTS, Material, collapse, copies, displaced, dropped_class, material, mirrored
from medsynth.metrics.intensity import Intensity, Spectrum
from medsynth.metrics.kernel import KernelDistance
from medsynth.metrics.learned import Qualified, middle, qualify, told
from medsynth.metrics.manifold import Authenticity, Manifold
from medsynth.metrics.sanity import badges, cases_of, sees
from medsynth.metrics.score import Sample, Score
from medsynth.rng import generator_for
from tests.make_cohort import blobs

BY_NAME = {defect.name: defect for defect in DEFECTS}


def described(what: str, images: np.ndarray) -> Mapping[str, np.ndarray]:
    """Coarse grey values: a plain feature space."""
    return {"coarse": images[:, 0].reshape(len(images), 4, 6, 4, 6).mean(axis=(2, 4)).reshape(len(images), -1).astype(float)}


def sample(split: str, count: int) -> Sample:
    found = [blobs((24, 24), 0, f"{split}{i}") for i in range(count)]
    images = np.stack([image for image, _ in found])[:, None]
    return Sample(
        images=images,
        features=described("", images),
        subjects=[f"{split}{i}" for i in range(count)],
        spacing=(1.0, 1.0),
        conditions=[{"class": "ab"[i % 3 == 0]} for i in range(count)],
        masks=np.stack([mask for _, mask in found]),
    )


@pytest.fixture(scope="module")
def stuff() -> Material:
    return material(sample("train", 120), sample("holdout", 60), 60, described, seed=0)


def test_reference_held_out_and_copied_cases_are_different_people(stuff):
    people = [set(part.subjects) for part in (stuff.reference, stuff.clean, stuff.copied)]
    assert [len(each) for each in people] == [60, 60, 60]
    assert not set.union(*people) - set.union(*people)
    assert not people[0] & people[1] | people[0] & people[2] | people[1] & people[2]


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.name)
def test_nothing_is_nothing_and_a_severity_is_the_same_twice(stuff, defect):
    nothing, spoilt = defect.make(stuff, defect.nothing), defect.make(stuff, defect.severities[-1])
    again = defect.make(stuff, defect.severities[-1])
    assert (spoilt.images == again.images).all()
    assert list(spoilt.conditions) == list(again.conditions)
    assert len(nothing) == len(spoilt)
    clean = {image.tobytes() for image in stuff.clean.images}
    assert all(image.tobytes() in clean for image in nothing.images)


def test_a_dropped_class_is_missing_and_without_the_defect_it_has_its_share(stuff):
    def share(severity: float) -> float:
        return np.mean([condition["class"] == "b" for condition in dropped_class(stuff, severity).conditions])

    assert share(1.0) == 0
    assert share(0.0) == pytest.approx(1 / 3, abs=0.03)
    assert stuff.forgotten == "class=b"


def test_collapse_and_copies_hold_as_many_cases_as_they_say(stuff):
    assert len(np.unique(collapse(stuff, 8).images, axis=0)) == 8
    copied = {image.tobytes() for image in stuff.copied.images}
    assert sum(image.tobytes() in copied for image in copies(stuff, 0.25).images) == 15


def test_a_displaced_structure_keeps_its_size_and_leaves_its_place(stuff):
    image, mask = stuff.clean.images[0, 0], stuff.clean.masks[0]
    moved, there = displaced(image, mask, generator_for(0))
    assert (there > 0).sum() == (mask > 0).sum()
    assert np.abs(np.subtract(*(np.mean(np.nonzero(m), axis=1) for m in (mask, there)))).max() > 1
    assert sorted(moved[there > 0]) == sorted(image[mask > 0])


def test_a_mirrored_region_changes_the_middle_and_not_the_border(stuff):
    image = stuff.clean.images[0, 0]
    turned = mirrored(image, generator_for(0))
    assert np.abs(turned - image).max() > 0.05
    assert (turned[0] == image[0]).all()


def test_badges_tell_who_sees_what(stuff):
    metrics = {
        "spectrum": Spectrum(),
        "intensity": Intensity(),
        "kid": KernelDistance(features="coarse"),
        "coverage": Manifold(share="coverage", features="coarse"),
        "authenticity": Authenticity(features="coarse"),
    }
    rows = {(row["name"], row["defect"]): row for row in badges(metrics, stuff, {}, "small")}
    assert len(rows) == len(metrics) * len(DEFECTS)
    for seen in (("spectrum", "blur"), ("intensity", "gain"), ("coverage", "collapse")):
        assert rows[seen]["sees"] is True, rows[seen]
    assert rows["authenticity", "copies"]["values"][0] < rows["authenticity", "copies"]["null"] - 0.1
    for blind in (("spectrum", "copies"), ("intensity", "swapped labels"), ("kid", "swapped labels"), ("kid", "copies")):
        assert rows[blind]["sees"] is False, rows[blind]
    assert rows["kid", "blur"]["null"] == pytest.approx(rows["kid", "noise"]["null"])


def test_without_classes_a_label_cannot_be_swapped_and_a_cluster_is_dropped():
    with_classes = (sample("train", 90), sample("h", 40))
    bare = [replace(part, conditions=[{}] * len(part)) for part in with_classes]
    rows = badges({"intensity": Intensity()}, material(*bare, 40, described, seed=0), {}, "small")
    by_defect = {row["defect"]: row for row in rows}
    assert by_defect["swapped labels"]["sees"] is None
    assert "no classes" in by_defect["swapped labels"]["reason"]
    assert by_defect["dropped class"]["sees"] is not None


def test_a_value_that_falls_back_is_not_seen():
    measured = {"clearly_worse": True, "null": 0.0, "null_interval": (-0.1, 0.1), "values": [1.0, 0.5, 2.0]}
    assert not sees("low", measured)
    assert sees("low", {**measured, "values": [0.5, 0.45, 2.0]})
    assert not sees("low", {**measured, "values": [0.5, 1.0, 2.0], "clearly_worse": False})


def test_a_space_that_knows_nobody_is_not_qualified(stuff):
    def noise(count: int, seed: int) -> np.ndarray:
        return generator_for(seed).normal(size=(count, 4))

    real = {name: getattr(stuff, name) for name in ("train", "reference", "clean", "copied")}
    parts = {name: replace(part, features={"blind": noise(len(part), k)}) for k, (name, part) in enumerate(real.items())}
    trial = qualify("blind", replace(stuff, **parts), noise(60, 9))
    assert not trial.passed
    assert "knows" in trial.reason
    assert "dropped class" in trial.reason


def test_the_median_is_taken_of_seeds_that_passed_and_none_is_unqualified():
    scores = {f"encoder {k}": Score(name="it", value=float(v)) for k, v in enumerate((5, 1, 3))}
    trial = {True: Qualified(passed=True, reason="", told={}), False: Qualified(passed=False, reason="blind", told={})}
    passed = dict(zip(scores, (trial[False], trial[True], trial[True]), strict=True))
    assert middle(scores, passed) == "encoder 1"
    assert told("encoder 1", scores["encoder 1"], scores, passed).details["spread"] == [1.0, 3.0]
    none = dict.fromkeys(scores, trial[False])
    assert middle(scores, none) == "encoder 2"
    assert told("encoder 2", scores["encoder 2"], scores, none).status == "unqualified"


def test_large_volumes_are_tried_on_fewer_subjects_unless_all_is_asked_for():
    assert [cases_of(level, 64**2) for level in ("small", "quick", "full")] == [60, 100, 400]
    assert [cases_of(level, 64**3) for level in ("small", "quick", "full")] == [60, 60, 400]
