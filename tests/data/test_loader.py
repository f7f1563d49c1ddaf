from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch

from medsynth.cohort import Cohort
from medsynth.data.loader import CohortData, Layout, Rows, StepSampler, step_indices
from medsynth.errors import SettingsError
from medsynth.io import nifti
from tests.make_cohort import make_cohort

STEPS, CASES = 7, 10


def order(layout: Layout, first: int = 0) -> dict[int, dict[int, int]]:
    """Step to row of the global batch to case, as all ranks together go through them."""
    seen: dict[int, dict[int, int]] = {}
    for rank in range(layout.world_size):
        sampler = StepSampler(cases=CASES, layout=layout, rank=rank, seed=3, first=lambda: first)
        for part in islice(sampler, (STEPS - first) * layout.accumulate):
            for row, index in zip(part.rows, part.indices, strict=True):
                assert row not in seen.setdefault(part.step, {})
                seen[part.step][row] = int(index)
    return seen


@pytest.mark.parametrize("device_batch", [None, 1, 2, 3])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_and_parts_share_one_global_order(world_size, device_batch):
    layout = Layout(global_batch=8, world_size=world_size, device_batch=device_batch)
    assert order(layout) == order(Layout(global_batch=8))
    assert max(len(layout.rows(part)) for part in range(layout.parts)) <= (device_batch or 8)


def test_every_part_ends_a_step_exactly_once():
    layout = Layout(global_batch=6, world_size=2, device_batch=1)
    parts = list(islice(StepSampler(cases=CASES, layout=layout, rank=1, seed=0, first=lambda: 0), 9))
    assert [part.last for part in parts] == [False, False, True] * 3


def test_an_epoch_shows_each_case_once_though_batches_cross_its_border():
    sequence = np.concatenate([step_indices(step, cases=CASES, global_batch=4, seed=0) for step in range(5)])
    assert sorted(sequence[:CASES]) == sorted(sequence[CASES:]) == list(range(CASES))
    assert list(sequence[:CASES]) != list(sequence[CASES:])


def test_a_batch_may_be_larger_than_the_cohort():
    assert sorted(step_indices(0, cases=3, global_batch=6, seed=0)) == [0, 0, 1, 1, 2, 2]


def test_skipping_to_a_step_gives_what_walking_to_it_gives():
    layout = Layout(global_batch=4, device_batch=3)
    walked = order(layout)
    assert order(layout, first=5) == {step: rows for step, rows in walked.items() if step >= 5}


def test_another_seed_is_another_order():
    assert list(step_indices(0, cases=50, global_batch=8, seed=0)) != list(step_indices(0, cases=50, global_batch=8, seed=1))


@pytest.mark.parametrize("joint_mask", [False, True])
def test_a_batch_holds_the_cohort_s_own_pixels_and_conditions(tmp_path, joint_mask):
    cohort = make_cohort(tmp_path, 5, 2, 2, shape=(6, 4, 3), conditions={"class": ["a", "b"], "age": [1, 9]}, joint_mask=joint_mask)
    assert_batches_are_pixels(cohort.split("train"), [3, 0, 3, 4])


def test_cases_of_several_arrays_and_of_a_narrower_precision_are_gathered_alike(tmp_path):
    cohort = make_cohort(tmp_path, 4, 4, 2, shape=(6, 5))
    for split in ("train", "validation"):
        path = tmp_path / f"volumes/{split}.npy"
        np.save(path, np.load(path).astype(np.float16))
    assert_batches_are_pixels(cohort.split("train", "validation"), [1, 6, 0, 7])
    assert Rows(cohort.split("train")).pixels([0, 1]).dtype == torch.float16


def test_cases_with_a_file_of_their_own_are_read_too(tmp_path):
    cohort = make_cohort(tmp_path, 3, 1, 1, shape=(6, 5, 4)).split("train")
    for case in cohort:
        nifti.write(tmp_path / f"{case.id}.nii.gz", cohort.stored(case), np.eye(4), False)
    own = cohort.where(replace(case, path=f"{case.id}.nii.gz", row=None) for case in cohort)
    assert_batches_are_pixels(own, [2, 0])
    np.testing.assert_allclose(Rows(own).pixels([2, 0]), Rows(cohort).pixels([2, 0]), atol=1e-6)


def assert_batches_are_pixels(cohort: Cohort, indices: list[int]) -> None:
    batch = Rows(cohort).batch(indices)
    expected = np.stack([cohort.pixels(cohort.cases[i]) for i in indices])
    assert np.array_equal(batch["x"].float().numpy(), expected)
    if cohort.header.conditions.size:
        encoded = torch.tensor([cohort.header.conditions.encode(cohort.cases[i].condition) for i in indices])
        assert torch.equal(batch["condition"], encoded)
    else:
        assert batch["condition"] is None


def test_settings_that_leave_a_device_without_work_are_refused():
    with pytest.raises(SettingsError, match=r"fit.global_batch=2 leaves some of 3 devices"):
        Layout(global_batch=2, world_size=3)
    with pytest.raises(SettingsError, match=r"fit.device_batch=0"):
        Layout(global_batch=2, device_batch=0)
    with pytest.raises(SettingsError, match="Take a multiple of 4"):
        Layout(global_batch=6, world_size=4, device_batch=1)


def test_a_cohort_without_training_cases_is_refused(tmp_path):
    cohort = make_cohort(tmp_path, 1, 1, 1, shape=(4, 4)).split("holdout")
    with pytest.raises(SettingsError, match="no training case"):
        CohortData(cohort, layout=Layout(global_batch=1), rank=0, seed=0)
