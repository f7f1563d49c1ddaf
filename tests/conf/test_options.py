"""Every option of every group, and every experiment, composes and binds to its constructor."""

from pathlib import Path

import pytest

from medsynth.config import OBJECTS, compose
from medsynth.errors import SettingsError

CONF = Path(__file__).parents[2] / "conf"
OPTIONS = sorted((path.parent.name, path.stem) for path in CONF.glob("*/*.yaml"))


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_option_of_every_group_composes(group: str, option: str):
    several = group in ("check", "metric")
    root = ["source.root=anywhere"] if group == "source" else []
    compose([f"{group}=[{option}]" if several else f"{group}={option}", *root])


def test_every_group_of_objects_has_options():
    assert {group for group, _ in OPTIONS} == {*OBJECTS, "experiment"}


def test_all_mistakes_are_reported_at_once_with_the_nearest_name():
    with pytest.raises(SettingsError) as caught:
        compose(["fit.stpes=10", "sampler=huen", "sampling.cases=many", "experment=phantom_2d"])
    message = str(caught.value)
    for expected in ("Did you mean fit.steps?", "Did you mean heun?", "sampling.cases=many", "Did you mean experiment?"):
        assert expected in message


def test_a_misspelt_setting_of_an_object_is_named_without_building_it():
    with pytest.raises(SettingsError, match=r"process\.sigma_dat.*Did you mean sigma_data"):
        compose(["+process.sigma_dat=0.5"])


@pytest.mark.parametrize(
    "target", ["os.system", "torch.load", "torch.optim.optimizer.torch.load", "medsynth.config.importlib.import_module", "subprocess.run"]
)
def test_a_target_outside_the_allow_list_is_refused_by_name_and_by_what_it_resolves_to(target: str):
    with pytest.raises(SettingsError, match=r"not allowed|cannot be imported"):
        compose([f"process._target_={target}"])


def test_a_misspelt_target_gets_the_nearest_name():
    with pytest.raises(SettingsError, match="Did you mean EDM"):
        compose(["process._target_=medsynth.diffusion.process.EDMM"])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("fit.steps=0", "at least 1"),
        ("data.dims=4", "must be 2"),
        ("data.size=[8,8,8]", "needs 2 numbers"),
        ("data.splits.train=0.9", "sum to 1"),
        ("run.name=../up", "names a folder"),
        ("release.formats=[nift]", "Did you mean nifti"),
        ("evaluate.weights=[/a/net,/b/net]", "two folders are called net"),
        ("evaluate.weights=[/a/texture]", "a folder called 'texture' cannot name a feature space"),
    ],
)
def test_a_value_out_of_range_is_refused(override: str, message: str):
    with pytest.raises(SettingsError, match=message):
        compose([override])
