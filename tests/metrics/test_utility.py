import numpy as np
import pytest
import torch

from medsynth.metrics.utility import Doubt, Recipe, Task, arms, dice, outcome, rows_of, told
from medsynth.rng import generator_for

RECIPE = Recipe(steps=40, batch=16, width=4, rate=1e-2)
FEW = Recipe(steps=6, batch=8, width=4)


def squares(n: int, shape: tuple[int, ...], kind: str) -> Task:
    """A bright box on noise, on the left (class 0) or on the right (class 1) of the middle: easy to tell, and to outline."""
    generator = generator_for("squares", n, *shape)
    classes, targets = np.arange(n) % 2, np.zeros((n, *shape), int)
    for i in range(n):
        middle = shape[0] // 4 + classes[i] * shape[0] // 2
        targets[i, middle - 1 : middle + 2, 2:-2] = 1
    images = targets + generator.normal(0, 0.2, targets.shape) - 0.5
    return Task(kind=kind, images=images[:, None].astype(np.float32), targets=classes if kind == "classification" else targets, classes=2)


@pytest.mark.parametrize("shape", [(13, 10), (9, 8, 8)])
@pytest.mark.parametrize("kind", ["classification", "segmentation"])
def test_a_net_learns_what_is_there_on_any_grid(kind, shape):
    task = squares(80, shape, kind)
    found = outcome(task, np.arange(48), {"holdout": np.arange(48, 80)}, RECIPE, seed=1)["holdout"]
    assert found.shape == (32,)
    assert found.mean() > 0.9


def test_a_net_follows_from_its_seed_and_from_no_number_of_threads():
    task = squares(60, (12, 12), "segmentation")
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(outcome(task, np.arange(40), {"h": np.arange(40, 60)}, FEW, seed=3)["h"])
        assert torch.get_num_threads() == threads
    torch.set_num_threads(1)
    other = outcome(task, np.arange(40), {"h": np.arange(40, 60)}, FEW, seed=4)["h"]
    assert (found[0] == found[1]).all()
    assert (found[0] != other).any()


def test_dice_is_twice_the_overlap_by_the_sizes():
    truth = np.zeros((3, 4, 4), int)
    truth[:, :2] = 1  # 8 voxels
    found = truth.copy()
    found[1, 0] = 0  # 4 of 8: 2 * 4 / 12
    found[2] = 2  # wrong everywhere; label 2 is not there
    assert dice(found, truth, 2) == pytest.approx([1, 2 / 3, 0])
    assert dice(found[:1], truth[:1], 3) == pytest.approx([1])  # nobody has label 2


def test_shares_are_of_people_and_nested_and_duplicates_are_as_many_as_synthetic_cases():
    subjects = [f"s{i // 3}" for i in range(60)]
    real, synthetic = np.arange(60), np.arange(100, 140)
    every = {arm.name: rows_of(arm, real, subjects, synthetic, seed=5) for arm in arms((0.1, 0.5), (0.5, 1.0))}
    assert set(every) == {
        "synthetic", "10 % real", "10 % real + synthetic", "10 % real + duplicates", "50 % real", "50 % real + synthetic",
        "50 % real + duplicates", "real", "real + 0.5 x synthetic", "real + 0.5 x duplicates", "real + synthetic", "real + duplicates",
    }  # fmt: skip
    assert [len(every[name]) for name in ("real", "10 % real", "50 % real")] == [60, 6, 30]
    assert set(every["10 % real"]) <= set(every["50 % real"])
    assert len({subjects[row] for row in every["10 % real"]}) == 2
    for name in ("10 % real", "50 % real", "real"):
        both = every[f"{name} + synthetic"], every[f"{name} + duplicates"]
        assert len(both[0]) == len(both[1]) == len(every[name]) + 40
        assert set(both[1]) == set(every[name])
        assert set(both[0]) > set(every[name])
    assert sorted(every["synthetic"]) == list(range(100, 140))
    assert len(every["real + 0.5 x synthetic"]) == 90


def test_intervals_are_about_people_and_differences_are_paired():
    """The width is that of a mean over subjects, however many images each has; and an arm does not differ from itself."""
    people = generator_for("people").normal(0.7, 0.1, 200)
    values = np.repeat(people, 5)[None]
    doubt = Doubt.of([f"s{i // 5}" for i in range(1000)], np.zeros(1000), 1, draws=2000, seed=0)
    found = told(doubt.drawn(values))
    low, high = found["interval"]
    assert found["value"] == pytest.approx(people.mean())
    assert (high - low) / 2 == pytest.approx(1.96 * people.std() / np.sqrt(200), rel=0.1)
    assert told(doubt.drawn(values + 0.05) - doubt.drawn(values))["interval"] == pytest.approx([0.05, 0.05])


def test_balanced_accuracy_counts_classes_alike_and_nets_are_drawn_too():
    right = np.array([[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0]], float)
    doubt = Doubt.of([str(i) for i in range(8)], np.array([0] * 6 + [1] * 2), 2, draws=500, seed=0)
    assert doubt.drawn(right)[0] == pytest.approx((5 / 6 + 0) / 2)
    apart = np.stack([np.ones(8), np.zeros(8)])  # two nets that agree on nothing: half of the draws hold one of them twice
    drawn = doubt.drawn(apart)
    assert drawn[0] == 0.5
    assert np.mean((drawn[1:] == 0) | (drawn[1:] == 1)) == pytest.approx(0.5, abs=0.1)
