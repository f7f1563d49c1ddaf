"""Checkpoints: what is saved comes back bit for bit, and nothing but that is ever built or run."""

from dataclasses import make_dataclass
from pathlib import Path

import pytest
import torch
import yaml

import medsynth.diffusion.checkpoint as checkpoint
from medsynth.cohort import sha256_of
from medsynth.diffusion.checkpoint import load_denoiser, save_denoiser
from medsynth.diffusion.denoiser import Denoiser
from medsynth.diffusion.networks import UNetSettings
from medsynth.diffusion.process import EDM, VariancePreserving
from medsynth.errors import MedsynthError

TINY = UNetSettings(channels=(16, 32), attention_levels=(False, True), res_blocks=1, head_channels=16, norm_groups=8)
FACTS = {"shape": [16, 16], "scale": [-1000.0, 400.0], "conditions": [{"name": "klasse", "values": ["gesund", "krank"]}]}


@pytest.fixture
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    return Denoiser(TINY.build(2, 1, 3), VariancePreserving(prediction="eps", beta_max=15.0))


@pytest.fixture
def folder(tmp_path, denoiser) -> Path:
    save_denoiser(tmp_path / "denoiser", denoiser, FACTS)
    return tmp_path / "denoiser"


def edit(folder: Path, change) -> None:
    path = folder / "denoiser.yaml"
    document = yaml.safe_load(path.read_text())
    change(document)
    path.write_text(yaml.safe_dump(document))


def test_what_is_saved_comes_back_bit_for_bit(folder, denoiser):
    loaded, description = load_denoiser(folder)
    assert description == FACTS
    assert loaded.process == denoiser.process
    assert loaded.network.settings == TINY
    assert not loaded.training
    x, sigma, condition = torch.randn(2, 1, 9, 9), torch.tensor([0.1, 5.0]), torch.rand(2, 3)
    with torch.no_grad():
        assert torch.equal(loaded(x, sigma, condition), denoiser.eval()(x, sigma, condition))


def test_loading_draws_no_random_numbers_of_the_caller(folder):
    before = torch.get_rng_state()
    load_denoiser(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_description_can_be_read_by_a_person(folder):
    text = (folder / "denoiser.yaml").read_text()
    assert "medsynth.diffusion.networks.UNetSettings" in text
    assert "prediction: eps" in text
    assert "!!" not in text, "plain YAML alone: no tags that name Python objects"


def test_saving_again_replaces_the_old_one_and_leaves_nothing_beside_it(folder, denoiser):
    save_denoiser(folder, Denoiser(denoiser.network, EDM()), {"second": True})
    loaded, description = load_denoiser(folder)
    assert (loaded.process, description) == (EDM(), {"second": True})
    assert [path.name for path in folder.parent.iterdir()] == ["denoiser"]
    assert sorted(path.name for path in folder.iterdir()) == ["denoiser.yaml", "weights.safetensors"]


def test_a_save_that_dies_leaves_the_old_one(folder, denoiser, monkeypatch):
    monkeypatch.setattr(checkpoint, "_flush", lambda path: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_denoiser(folder, denoiser, {"second": True})
    monkeypatch.undo()
    assert load_denoiser(folder)[1] == FACTS
    save_denoiser(folder, denoiser, {"third": True})  # over what the dead one left behind
    assert load_denoiser(folder)[1] == {"third": True}


HOSTILE = [
    "os.system",
    "torch.load",
    "builtins.exec",
    "medsynth.diffusion.checkpoint.shutil.rmtree",  # an allowed prefix before somebody else's function
    "medsynth.diffusion.checkpoint.save_denoiser",  # ours, but no settings
    "medsynth.diffusion.checkpoint.Denoiser",  # re-exported, and no dataclass
    "medsynth.diffusion.networks.UNet",  # a module takes memory before it is checked
    "medsynth.diffusion.sampling.CaseNoise",  # a dataclass, but not where it says
    "medsynth.diffusion.nowhere.Thing",
    "medsynth.diffusionevil.Thing",
    "medsynth.cohort.Cohort",
    "UNetSettings",
    "",
    ["os.system"],
    None,
]


@pytest.mark.parametrize("block", ["network", "process"])
@pytest.mark.parametrize("target", HOSTILE, ids=str)
def test_a_name_outside_the_list_is_refused(folder, block, target):
    edit(folder, lambda document: document[block].update(_target_=target))
    with pytest.raises(MedsynthError, match="refused"):
        load_denoiser(folder)


def test_a_settings_class_that_is_no_process_is_refused(folder):
    edit(folder, lambda document: document.update(process={"_target_": "medsynth.diffusion.guidance.Guidance", "scale": 2.0}))
    with pytest.raises(MedsynthError, match="no settings class"):
        load_denoiser(folder)


def test_a_foreign_class_that_an_allowed_module_imported_is_refused(folder, monkeypatch):
    """The prefix of a name says nothing about where the class comes from."""
    foreign = make_dataclass("Foreign", [], namespace={"scalings": lambda self, sigma: None})
    monkeypatch.setattr(checkpoint, "Foreign", foreign, raising=False)
    edit(folder, lambda document: document.update(process={"_target_": "medsynth.diffusion.checkpoint.Foreign"}))
    with pytest.raises(MedsynthError, match="no settings class"):
        load_denoiser(folder)


def test_a_user_s_own_package_is_refused_until_the_caller_allows_it(folder, tmp_path, monkeypatch):
    (tmp_path / "clinic_nets.py").write_text("from medsynth.diffusion.process import EDM\n\nclass Mine(EDM):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    edit(folder, lambda document: document.update(process={"_target_": "clinic_nets.Mine", "sigma_data": 0.4}))
    with pytest.raises(MedsynthError, match="clinic_nets"):
        load_denoiser(folder)
    loaded, _ = load_denoiser(folder, allow=(*checkpoint.ALLOWED, "clinic_nets."))
    assert loaded.process.sigma_data == 0.4


def test_a_tag_that_makes_yaml_run_code_is_refused(folder, tmp_path):
    (folder / "denoiser.yaml").write_text(f"!!python/object/apply:os.mkdir ['{tmp_path}/broken-in']")
    with pytest.raises(MedsynthError, match="YAML"):
        load_denoiser(folder)
    assert not (tmp_path / "broken-in").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document["network"].update(channels=[16, 64]),
        lambda document: document["network"].update(channels=[1 << 20, 1 << 20]),  # terabytes, were they built
        lambda document: document["network"].update(channels="many"),
        lambda document: document["network"].update(width=3),
        lambda document: document["network"].update(attention_levels=[False, False]),
        lambda document: document["build"].update(dims=3),
        lambda document: document["build"].update(condition_size=0),
        lambda document: document["build"].update(dims="x"),
        lambda document: document["build"].pop("channels"),
        lambda document: document["process"].update(prediction="epsilon"),
        lambda document: document["weights"].update(sha256="0" * 64),
        lambda document: document.pop("process"),
        lambda document: document.update(version=2),
    ],
)
def test_a_description_that_does_not_fit_is_refused(folder, change):
    edit(folder, change)
    with pytest.raises(MedsynthError):
        load_denoiser(folder)


def test_one_flipped_bit_is_refused(folder):
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(MedsynthError, match="hash"):
        load_denoiser(folder)


@pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"\x02\0\0\0\0\0\0\0[]", b"\x80\x04."])
def test_a_broken_weight_file_is_refused_even_with_its_hash(folder, content):
    path = folder / "weights.safetensors"
    path.write_bytes(content)
    edit(folder, lambda document: document["weights"].update(sha256=sha256_of(path)))
    with pytest.raises(MedsynthError):
        load_denoiser(folder)


def test_a_folder_without_a_denoiser_says_what_to_do(tmp_path):
    with pytest.raises(MedsynthError, match="run it first"):
        load_denoiser(tmp_path)
