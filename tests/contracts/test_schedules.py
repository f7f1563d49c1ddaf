"""What every schedule in conf/schedule promises. A new one is held to this by lying there."""

from pathlib import Path

import pytest
import torch
import yaml
from hydra.utils import instantiate

from medsynth.errors import SettingsError

OPTIONS = sorted((Path(__file__).resolve().parents[2] / "conf/schedule").glob("*.yaml"))


@pytest.fixture(params=OPTIONS, ids=lambda path: path.stem)
def schedule(request):
    return instantiate(yaml.safe_load(request.param.read_text()))


@pytest.mark.parametrize("steps", [1, 2, 3, 8, 20, 30, 250, 1000])
@pytest.mark.parametrize("ends", [(0.002, 80.0), (0.01, 150.0)])
def test_levels_fall_from_the_highest_to_zero(schedule, steps, ends):
    sigmas = schedule(steps, *ends)
    assert sigmas.shape == (steps + 1,)
    assert sigmas.dtype == torch.float64
    assert sigmas[0] == ends[1]
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize("steps", [2, 20, 1000])
def test_the_last_evaluation_is_at_the_lowest_level_that_training_saw(schedule, steps):
    assert schedule(steps, 0.002, 80.0)[-2] == pytest.approx(0.002, rel=1e-9)


@pytest.mark.parametrize("steps", [0, -1])
def test_no_steps_is_the_user_s_mistake(schedule, steps):
    with pytest.raises(SettingsError, match=r"sampling\.steps"):
        schedule(steps, 0.002, 80.0)
