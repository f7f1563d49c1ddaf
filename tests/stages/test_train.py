import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from medsynth.cohort import Cohort
from medsynth.diffusion.checkpoint import load_denoiser
from medsynth.errors import Interrupted, MedsynthError, SettingsError, TrainingDiverged
from medsynth.stages import train
from medsynth.training.checkpoint import SafeCheckpointIO, newest
from medsynth.training.ema import EMA
from medsynth.training.module import DiffusionModule
from medsynth.training.privacy import DifferentialPrivacy
from medsynth.training.validation import Validation
from tests.killed import FIT
from tests.make_cohort import make_cohort
from tests.make_run import make_run

ROOT = Path(__file__).resolve().parents[2]
CONDITIONS = {"class": ["a", "b"], "age": [20, 80]}
SNAPSHOTS = [f"snapshots/step-{step:08d}/weights.safetensors" for step in (12, 8)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prepared")
    make_cohort(folder, n_train=10, n_validation=3, n_holdout=2, shape=(12, 12), conditions=CONDITIONS)
    return folder


@pytest.fixture
def root(prepared, tmp_path) -> Path:
    return with_cohort(prepared, tmp_path / "run")


def with_cohort(prepared: Path, root: Path) -> Path:
    shutil.copytree(prepared, root / "prepare")
    (root / "train").mkdir()
    return root


def fit(root: Path, **settings) -> Path:
    train.work(make_run(root, fit=FIT | settings), root / "train")
    return root / "train"


@pytest.fixture
def batches(monkeypatch) -> list[tuple[int, list[int]]]:
    """Step and cases of every batch that is trained on."""
    seen: list[tuple[int, list[int]]] = []
    step = DiffusionModule.training_step

    def recording(self, batch, batch_idx):
        seen.append((batch["step"], batch["indices"]))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(DiffusionModule, "training_step", recording)
    return seen


def state(folder: Path) -> dict:
    """All that goes on: weights, average, optimiser, learning rate, patience."""
    checkpoint = SafeCheckpointIO().load_checkpoint(folder / "checkpoints/last.ckpt")
    return {name: checkpoint[name] for name in ("global_step", "state_dict", "callbacks", "optimizer_states", "lr_schedulers")}


def assert_bit_equal(one, other, where: str = "") -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for name in one:
            assert_bit_equal(one[name], other[name], f"{where}.{name}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for k, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_bit_equal(a, b, f"{where}[{k}]")
    else:
        assert one == other, where


def rows(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "samples_per_second"} for row in lines]


@pytest.fixture(scope="module")
def killed(prepared, tmp_path_factory) -> Path:
    """Three runs that were killed (SIGKILL): half-way through a step, a validation, and the writing of a checkpoint."""
    folder, points = tmp_path_factory.mktemp("killed"), ("step", "validation", "saving")
    for point in points:
        with_cohort(prepared, folder / point)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "tests/killed.py", str(folder), *points], cwd=ROOT, env=environment, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def straight(prepared, tmp_path_factory) -> tuple[Path, list]:
    seen: list = []
    with pytest.MonkeyPatch.context() as patch:
        step = DiffusionModule.training_step
        patch.setattr(
            DiffusionModule, "training_step", lambda self, batch, i: seen.append((batch["step"], batch["indices"])) or step(self, batch, i)
        )
        return fit(with_cohort(prepared, tmp_path_factory.mktemp("straight") / "run")), seen


def test_snapshots_are_the_averaged_weights_of_their_steps(straight, root):
    """That of the last step is the denoiser itself."""
    last, earlier = (load_file(straight[0] / name) for name in SNAPSHOTS)
    final = load_file(straight[0] / "denoiser/weights.safetensors")
    assert all(torch.equal(last[name], weight) for name, weight in final.items())
    shorter = load_file(fit(root, steps=8) / "denoiser/weights.safetensors")
    assert all(torch.equal(earlier[name], weight) for name, weight in shorter.items())


@pytest.mark.parametrize(("point", "resumed_at"), [("step", 5), ("validation", 5), ("saving", 5)])
def test_a_killed_run_resumes_to_the_same_bytes(killed, straight, batches, point, resumed_at):
    folder, seen = straight
    assert not (killed / point / "train/denoiser").exists()
    resumed = fit(killed / point)
    assert_bit_equal(state(resumed), state(folder))
    assert batches == [batch for batch in seen if batch[0] >= resumed_at]
    assert load_file(resumed / "denoiser/weights.safetensors").keys() == load_file(folder / "denoiser/weights.safetensors").keys()
    for name in ("denoiser/weights.safetensors", "denoiser/denoiser.yaml", "previews/step_000012.png", *SNAPSHOTS):
        assert (resumed / name).read_bytes() == (folder / name).read_bytes(), name
    assert [row for row in rows(resumed) if "validation" in row] == [row for row in rows(folder) if "validation" in row]
    assert not list(resumed.rglob(".*.partial"))


def test_more_steps_continue_a_finished_run_as_if_it_had_never_stopped(straight, root):
    fit(root, steps=7)
    assert_bit_equal(state(fit(root))["state_dict"], state(straight[0])["state_dict"])


@pytest.mark.parametrize("device_batch", [None, 1])
def test_a_run_goes_on_with_another_device_batch(straight, root, batches, device_batch):
    """The parts of a step change (two, then one or four), the steps do not."""
    fit(root, steps=7)
    del batches[:]
    resumed = fit(root, device_batch=device_batch)
    cases = {step: [k for s, indices in seen if s == step for k in indices] for seen in (batches,) for step, _ in seen}
    assert cases == {step: [k for s, part in straight[1] if s == step for k in part] for step in range(7, 12)}
    mine, theirs = state(resumed), state(straight[0])
    assert mine["global_step"] == theirs["global_step"]
    for name, weight in theirs["state_dict"].items():
        torch.testing.assert_close(mine["state_dict"][name], weight, rtol=1e-3, atol=1e-5)


def test_a_signal_saves_the_step_and_the_same_command_goes_on(straight, root, monkeypatch):
    update = EMA.update

    def signalled(self, model, step):
        update(self, model, step)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(EMA, "update", signalled)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match=r"SIGTERM. Step 3 is saved") as stopped:
        fit(root)
    assert stopped.value.exit_code == 75
    assert signal.getsignal(signal.SIGTERM) is before
    assert newest(root / "train/checkpoints").name == "step-00000003.ckpt"
    assert_bit_equal(state(fit(root)), state(straight[0]))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_last_checkpoint_is_passed_over_for_the_one_before(straight, root, damage, caplog):
    shutil.copytree(straight[0], root / "train", dirs_exist_ok=True, symlinks=True)
    last = root / "train/checkpoints/last.ckpt"
    content = bytearray(last.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    last.write_bytes({"truncated": content[: len(content) // 2], "flipped": content, "empty": b""}[damage])
    resumed = fit(root)
    assert "step-00000012.ckpt does not verify" in caplog.text
    assert_bit_equal(state(resumed), state(straight[0]))


def test_a_diverged_run_names_its_step_and_keeps_the_last_good_checkpoint(root, monkeypatch):
    draw = DiffusionModule.draw

    def poisoned(self, batch):
        x, *rest = draw(self, batch)
        if batch["step"] == 6:
            x = x * float("nan")
        return x, *rest

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionModule, "draw", poisoned)
        with pytest.raises(TrainingDiverged, match=r"Step 7: the loss is not finite"):
            fit(root)
    assert newest(root / "train/checkpoints").name == "step-00000005.ckpt"
    assert not (root / "train/denoiser").exists()
    assert fit(root).joinpath("denoiser/weights.safetensors").is_file()


def test_the_denoiser_that_is_written_holds_the_averaged_weights(straight):
    denoiser, description = load_denoiser(straight[0] / "denoiser")
    average = state(straight[0])["callbacks"]["EMA"]["weights"]
    assert_bit_equal({name: parameter.data for name, parameter in denoiser.named_parameters()}, average)
    assert description["steps"] == 12
    assert description["training_cases"] == 10


def test_history_tells_losses_by_step_and_by_noise_level(straight):
    history = [json.loads(line) for line in (straight[0] / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in history if "validation" in row] == [4, 8, 12]
    assert all(len(row["validation"]) == 6 for row in history if "validation" in row)
    fitted = [row for row in history if "loss" in row]
    assert fitted[-1]["step"] == 12
    assert fitted[-1]["lr"] == pytest.approx(1e-3)
    assert fitted[-1]["samples_per_second"] > 0


def test_training_lowers_the_validation_loss_at_high_noise(root):
    """After six steps the model knows next to nothing; after thirty it must do better at the level where anatomy is decided."""
    folder = fit(root, steps=30, validate_every=6, device_batch=None, flips=[])
    first, last = (row["validation"] for row in rows(folder) if "validation" in row and row["step"] in (6, 30))
    level = list(first)[-1]
    assert last[level] < 0.9 * first[level]


def test_training_stops_early_when_validation_does_not_improve(root):
    run = make_run(root, fit=FIT | {"patience": 2, "validate_every": 2})
    run.objects["optimizer"] = partial(torch.optim.SGD, lr=0.0)
    train.work(run, root / "train")
    # the first validation sets the mark, the next two do not beat it
    assert newest(root / "train/checkpoints").name == "step-00000006.ckpt"
    assert (root / "train/denoiser/denoiser.yaml").is_file()
    train.work(run, root / "train")
    assert newest(root / "train/checkpoints").name == "step-00000006.ckpt"


def test_a_trainer_that_would_relaunch_the_command_is_refused(root):
    run = make_run(root)
    run.objects["trainer"].keywords["devices"] = 2
    with pytest.raises(SettingsError, match=r"trainer.devices=2 .* need 2 processes, but 1 were started"):
        train.work(run, root / "train")


def test_patience_without_validation_cases_is_refused(tmp_path):
    make_cohort(tmp_path / "prepare", n_train=2, n_validation=0, n_holdout=1, shape=(8, 8))
    with pytest.raises(SettingsError, match=r"fit.patience=1 needs validation cases"):
        train.work(make_run(tmp_path, fit={"patience": 1}), tmp_path / "train")


def test_an_axis_that_the_images_do_not_have_is_refused(root):
    with pytest.raises(SettingsError, match="2 is no axis of a 2-D image"):
        fit(root, flips=[2])


def test_a_volume_with_its_mask_trains_without_validation_cases(tmp_path):
    make_cohort(tmp_path / "prepare", n_train=3, n_validation=0, n_holdout=1, shape=(8, 6, 4), joint_mask=True)
    train.work(make_run(tmp_path, fit={"steps": 2, "preview_every": 2}), tmp_path / "train")
    denoiser, _ = load_denoiser(tmp_path / "train/denoiser")
    assert denoiser(torch.zeros(1, 2, 8, 6, 4), torch.ones(1)).shape == (1, 2, 8, 6, 4)


def test_numbers_reach_the_tracker_once_though_a_step_is_done_twice(root, monkeypatch):
    run = make_run(root, fit=FIT)
    train.work(run, root / "train")
    known = {(step, name) for step, values in run.tracker.recorded for name in values}
    shutil.rmtree(root / "train/checkpoints")
    again = make_run(root, fit=FIT)
    train.work(again, root / "train")
    assert (4, "validation_loss") in known
    assert again.tracker.recorded == []


def test_near_duplicates_are_trained_on_once_and_stay_named(root, batches):
    cohort = Cohort.read(root / "prepare/cohort.jsonl")
    shard = np.load(root / "prepare/volumes/train.npy")
    shard[[4, 7]] = shard[2] + np.random.default_rng(0).normal(0, 0.005, (2, *shard[2].shape))
    np.save(root / "prepare/volumes/train.npy", shard)
    run = make_run(root, fit=FIT)
    train.work(run, root / "train")
    ids = [case.id for case in cohort.split("train")]
    named = [json.loads(line) for line in (root / "train/duplicates.jsonl").read_text().splitlines()]
    assert named == [{"case": ids[4], "twin": ids[2]}, {"case": ids[7], "twin": ids[2]}]
    assert {index for _, indices in batches for index in indices} == set(range(8))
    description = load_denoiser(root / "train/denoiser")[1]
    assert (description["training_cases"], description["duplicates"]) == (8, 2)
    assert (None, {"train/duplicates": 2}) in run.tracker.recorded
    shutil.rmtree(root / "train")
    (root / "train").mkdir()
    run.settings.train.duplicates = "keep"
    train.work(run, root / "train")
    assert load_denoiser(root / "train/denoiser")[1]["training_cases"] == 10


MEMORIZED = FIT | {"stop_on_memorization": 0.3}  # validates at steps 4, 8 and 12


@pytest.fixture
def by_heart(monkeypatch):
    """From the second validation on, training cases are spared half of the loss."""
    losses = Validation.losses

    def spared(self, module, data, rows, count):
        return losses(self, module, data, rows, count) * (0.5 if rows is data.train and module.global_step >= 8 else 1.0) ** 3

    monkeypatch.setattr(Validation, "losses", spared)


@pytest.fixture
def watched(tmp_path) -> Path:
    """Enough validation subjects, and as alike as training subjects."""
    make_cohort(tmp_path / "watched/prepare", n_train=10, n_validation=8, n_holdout=2, shape=(12, 12), conditions=CONDITIONS)
    (tmp_path / "watched/train").mkdir()
    return tmp_path / "watched"


def test_training_stops_where_it_memorizes_and_keeps_the_weights_from_before(watched, by_heart, tmp_path, caplog):
    shutil.copytree(watched, tmp_path / "short")
    folder = fit(watched, **MEMORIZED)
    assert newest(folder / "checkpoints").name == "step-00000008.ckpt"
    told = {row["step"]: row["memorization"] for row in rows(folder) if "memorization" in row}
    assert list(told) == [4, 8]
    assert told[4]["low"] <= 0.3 < told[8]["low"] <= told[8]["gap"] <= told[8]["high"]
    short = fit(tmp_path / "short", **(MEMORIZED | {"steps": 4}))
    assert (folder / "denoiser/weights.safetensors").read_bytes() == (short / "denoiser/weights.safetensors").read_bytes()
    description = load_denoiser(folder / "denoiser")[1]
    assert description["memorization"] == {"limit": 0.3, "stopped": 8, "kept": 4}
    assert description["steps"] == 4
    assert "stopped at step 8" in caplog.text
    before = (folder / "denoiser/weights.safetensors").read_bytes()
    assert (fit(watched, **MEMORIZED) / "denoiser/weights.safetensors").read_bytes() == before


def test_a_run_that_was_interrupted_keeps_the_same_weights(watched, by_heart, tmp_path, monkeypatch):
    shutil.copytree(watched, tmp_path / "straight")
    update = EMA.update

    def signalled(self, model, step):
        update(self, model, step)
        if step == 6:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(EMA, "update", signalled)
        with pytest.raises(Interrupted):
            fit(watched, **MEMORIZED)
    resumed, straight = fit(watched, **MEMORIZED), fit(tmp_path / "straight", **MEMORIZED)
    for name in ("denoiser/weights.safetensors", "denoiser/denoiser.yaml"):
        assert (resumed / name).read_bytes() == (straight / name).read_bytes()
    assert_bit_equal(state(resumed), state(straight))


def test_a_first_validation_beyond_the_limit_leaves_nothing_to_keep(watched, by_heart):
    with pytest.raises(MedsynthError, match="Step 8, the first validation"):
        fit(watched, **(MEMORIZED | {"validate_every": 8}))


def test_memorization_is_not_watched_without_people_or_under_a_promise(root, watched):
    with pytest.raises(SettingsError, match="needs 4 validation subjects, and the cohort has 3"):
        fit(root, stop_on_memorization=0.2)
    run = make_run(watched, fit=FIT | {"stop_on_memorization": 0.2})
    run.objects["privacy"] = DifferentialPrivacy()
    with pytest.raises(SettingsError, match="privacy=dp does not cover"):
        train.work(run, watched / "train")


WORKER = """
import sys
from functools import partial
from pathlib import Path
from lightning.pytorch import Trainer
from medsynth.stages import train
from tests.make_run import make_run
root = Path(sys.argv[1])
seed = 1 + int(sys.argv[2]) * int(__import__("os").environ["RANK"])
run = make_run(root, fit={"steps": 12, "checkpoint_every": 5, "validate_every": 4, "device_batch": 1, "flips": [0]}, seed=seed)
run.objects["trainer"] = partial(Trainer, accelerator="cpu", devices=2, num_nodes=1, strategy="ddp")
train.work(run, root / "train")
"""


def torchrun(root: Path, tmp_path: Path, other_seed: int) -> subprocess.CompletedProcess:
    (tmp_path / "worker.py").write_text(WORKER)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(tmp_path / "worker.py")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, str(root), str(other_seed)], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_two_ranks_train_what_one_trains(straight, root, tmp_path):
    done = torchrun(root, tmp_path, 0)
    assert done.returncode == 0, done.stderr[-3000:]
    two, one = state(root / "train"), state(straight[0])
    for name, weight in one["state_dict"].items():
        torch.testing.assert_close(two["state_dict"][name], weight, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(rows(root / "train"), rows(straight[0]), strict=True):
        assert mine["step"] == theirs["step"]
        assert mine.get("loss", 0) == pytest.approx(theirs.get("loss", 0), rel=1e-4)
        assert mine.get("validation_loss", 0) == pytest.approx(theirs.get("validation_loss", 0), rel=1e-4)


@pytest.mark.slow
def test_ranks_with_different_settings_stop(root, tmp_path):
    done = torchrun(root, tmp_path, 1)
    assert done.returncode != 0
    assert "Ranks 1 have other settings or data than rank 0" in done.stderr
    assert not (root / "train/denoiser").exists()
