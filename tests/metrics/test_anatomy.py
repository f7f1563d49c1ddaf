import numpy as np
import pytest

from medsynth.metrics.anatomy import Implausible, LabelVolumes, label_volumes, structures
from medsynth.metrics.intensity import TissueIntensity
from medsynth.metrics.score import NotApplicable, Sample
from medsynth.rng import generator_for


def test_volumes_of_labels_are_in_millilitres():
    masks = np.zeros((1, 10, 10, 10), np.uint8)
    masks[0, :5] = 2
    assert label_volumes(masks, np.array([1, 2]), (1.0, 2.0, 3.0)).tolist() == [[0.0, 500 * 6 / 1000]]


def test_organs_of_the_wrong_size_are_found():
    def sample(sizes):
        masks = np.zeros((len(sizes), 32, 32), np.uint8)
        for mask, size in zip(masks, sizes, strict=True):
            mask[:size, :10] = 1
        return Sample(
            images=np.zeros((len(sizes), 1, 2, 2)), features={}, subjects=[str(i) for i in range(len(sizes))], spacing=(1, 1), masks=masks
        )

    generator = np.random.default_rng(0)
    train, real, good = (sample(generator.integers(10, 20, 60)) for _ in range(3))
    bad = sample(np.concatenate([generator.integers(10, 20, 45), np.full(15, 30)]))
    rows = np.arange(60), np.arange(60, 120)
    right, wrong = (LabelVolumes()(train, real, other) for other in (good, bad))
    assert wrong.value(*rows) > 3 * right.value(*rows)


def test_images_without_masks_have_no_volumes():
    sample = Sample(images=np.zeros((5, 1, 2, 2)), features={}, subjects=list("abcde"), spacing=(1, 1))
    for metric in (LabelVolumes(), Implausible(), TissueIntensity()):
        with pytest.raises(NotApplicable, match="no masks"):
            metric(sample, sample, sample)


def organs(seed: str, cases: int, wrong: float = 0.0, lesions: float = 1 / 3) -> Sample:
    """Two kidneys of the right place and size, and in a share of the cases a lesion. Wrong: a kidney is missing, doubled, twice as wide, or
    on the other's side."""
    generator = generator_for(0, "organs", seed)
    grid = np.stack(np.meshgrid(np.arange(64), np.arange(64), indexing="ij"))

    def blob(centre, radius):
        return (((grid - np.array(centre)[:, None, None]) / np.array(radius)[:, None, None]) ** 2).sum(axis=0) < 1

    masks = np.zeros((cases, 64, 64), np.uint8)
    for number, mask in enumerate(masks):
        sides = [generator.normal((34, column), 2.0) for column in (18, 46)]
        sizes = [generator.normal((9, 6), 0.7) for _ in range(2)]
        fault = number % 4 if number < wrong * cases else None
        for side in (0, 1):
            if not (fault == 0 and side == 0):
                mask[blob(sides[side], sizes[side] * (2 if fault == 2 and side == 0 else 1))] = side + 1
        if fault == 1:
            mask[blob(generator.normal((10, 32), 2.0), sizes[0] * 0.7)] = 1
        if fault == 3:
            mask[:] = np.choose(mask, [0, 2, 1])
        if generator.random() < lesions:
            mask[blob(generator.uniform(15, 50, 2), generator.uniform(1.5, 3, 2))] = 3
    return Sample(
        images=np.zeros((cases, 1, 2, 2)), features={}, subjects=[f"{seed}{i}" for i in range(cases)], spacing=(1, 1), masks=masks
    )


@pytest.mark.parametrize("cases", [60, 160])
def test_wrong_anatomy_is_flagged_and_real_anatomy_is_not(cases):
    rows = np.arange(400), np.arange(400, 600)
    found = [Implausible()(organs(f"t{k}", cases), organs(f"h{k}", 400), organs(f"s{k}", 200, 0.25)).details(*rows) for k in range(3)]
    assert np.mean([each["synthetic"] for each in found]) >= 0.12
    assert np.mean([each["real"] for each in found]) <= 0.03


def test_a_structure_that_few_cases_have_does_not_hide_wrong_anatomy():
    """A lesion in one case of 40: these cases lay so far from all others that nothing else was flagged."""
    rows = np.arange(200), np.arange(200, 300)
    found = [
        Implausible()(*(organs(name + str(k), *how, lesions=1 / 40) for name, *how in (("t", 60), ("h", 200), ("s", 100, 0.25)))).details(
            *rows
        )
        for k in range(4)
    ]
    assert min(each["synthetic"] for each in found) >= 0.12
    assert np.mean([each["real"] for each in found]) <= 0.03


def test_training_masks_without_a_frequent_structure_flag_nothing():
    masks = np.zeros((60, 8, 8), np.uint8)
    masks[:3, 2:4, 2:4] = 1
    few = Sample(images=np.zeros((60, 1, 2, 2)), features={}, subjects=[str(i) for i in range(60)], spacing=(1, 1), masks=masks)
    assert Implausible()(few, few).value(np.arange(0), np.arange(60)) == 0


def test_structures_count_parts_and_find_centres_and_widths():
    mask = np.zeros((1, 11, 21), np.uint8)
    mask[0, 5, 4:7] = mask[0, 5, 14:17] = 1
    wide = np.std([4, 5, 6, 14, 15, 16]) / 20
    assert np.allclose(structures(mask, np.array([1]))[0, 0], [6 / 231, 2.0, 0.5, 0.5, 0.0, wide])
    assert np.isnan(structures(mask, np.array([2]))[0, 0, 2:]).all()


def test_a_shift_of_grey_values_in_one_organ_is_found_there():
    masks = np.zeros((40, 8, 8), np.uint8)
    masks[:, 2:4, 2:4] = 1
    images = np.random.default_rng(0).uniform(-0.8, 0.2, (40, 1, 8, 8)).astype(np.float32)
    shifted = images + 0.3 * (masks[:, None] == 1).astype(np.float32)

    def sample(images):
        return Sample(images=images, features={}, subjects=[str(i) for i in range(40)], spacing=(1, 1), masks=masks)

    comparison = TissueIntensity()(sample(images), sample(images), sample(shifted))
    rows = np.arange(40), np.arange(40, 80)
    first, second = (tissue["distance"] for tissue in comparison.details(*rows)["tissues"])
    assert first == 0
    assert second == pytest.approx(0.3 / 2, abs=1e-3)
    assert comparison.value(*rows) == pytest.approx(0.3 / 4, abs=1e-3)
