"""Snapshots stay few and evenly spaced, and depend on the step alone: so a resumed training has the same ones."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from medsynth.training.snapshots import MOST, Snapshots


def trained(steps: range, every: int, there: dict[int, str]) -> dict[int, str]:
    """What lies in the folder after these steps."""
    snapshots = Snapshots(
        every=every,
        ema=SimpleNamespace(swapped=lambda model: nullcontext()),
        saved=list(there),
        save=lambda step, model: there.update({step: model}),
        forget=there.pop,
    )
    for step in steps:
        model = SimpleNamespace(denoiser=f"after {step}")
        snapshots.on_train_batch_end(SimpleNamespace(global_step=step, is_global_zero=True), model, None, {"last": True}, 0)
    return there


@pytest.mark.parametrize("end", [9, 80, 81, 95, 333, 1000])
def test_they_are_evenly_spaced_and_few(end):
    found = trained(range(1, end + 1), 10, {})
    assert found == {step: f"after {step}" for step in found}
    apart = min(found, default=0)
    assert list(found) == [apart * (k + 1) for k in range(len(found))]
    assert len(found) == end // 10 if end < 90 else MOST // 2 <= len(found) <= MOST


def test_a_resumed_training_has_the_same_ones():
    straight = trained(range(1, 334), 10, {})
    assert trained(range(100, 334), 10, trained(range(1, 127), 10, {})) == straight
