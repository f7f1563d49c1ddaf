import logging

import pytest
import torch

from medsynth.cohort import sha256_of
from medsynth.errors import MedsynthError, TrainingDiverged
from medsynth.training.checkpoint import SafeCheckpointIO, digest_of, newest, step_of, verifies


def save(folder, step: int, value: float = 1.0):
    path = folder / f"step-{step:08d}.ckpt"
    SafeCheckpointIO().save_checkpoint({"global_step": step, "state_dict": {"w": torch.full((3,), value)}, "callbacks": [{"k": 1}]}, path)
    return path


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_comes_back_and_the_newest_two_are_kept(tmp_path):
    for step in (5, 10, 15):
        save(tmp_path, step, step / 5)
    assert names(tmp_path) == [
        "last.ckpt",
        "step-00000010.ckpt",
        "step-00000010.ckpt.sha256",
        "step-00000015.ckpt",
        "step-00000015.ckpt.sha256",
    ]
    loaded = SafeCheckpointIO().load_checkpoint(tmp_path / "last.ckpt")
    assert loaded["global_step"] == 15
    assert torch.equal(loaded["state_dict"]["w"], torch.full((3,), 3.0))
    assert step_of(newest(tmp_path)) == 15
    assert newest(tmp_path / "nowhere") is None


def test_a_single_flipped_bit_is_found_and_the_one_before_is_taken(tmp_path, caplog):
    save(tmp_path, 5)
    last = save(tmp_path, 10)
    content = bytearray(last.read_bytes())
    content[-200] ^= 4
    last.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert step_of(newest(tmp_path)) == 5
    assert "step-00000010.ckpt does not verify" in caplog.text
    with pytest.raises(MedsynthError, match="does not have its recorded digest"):
        SafeCheckpointIO().load_checkpoint(last)


def test_after_a_fall_back_the_damaged_future_is_removed_and_not_the_good_past(tmp_path):
    for step in (5, 10):
        save(tmp_path, step)
    (tmp_path / "step-00000010.ckpt").write_bytes(b"damaged")
    save(tmp_path, 7)
    assert [path for path in names(tmp_path) if path.endswith(".ckpt")] == ["last.ckpt", "step-00000005.ckpt", "step-00000007.ckpt"]


def test_training_does_not_start_anew_in_silence_when_every_checkpoint_is_damaged(tmp_path):
    for step in (5, 10):
        digest_of(save(tmp_path, step)).unlink()
    with pytest.raises(MedsynthError, match="None of the 2 checkpoints"):
        newest(tmp_path)


def test_numbers_that_are_not_finite_are_never_saved_over_good_ones(tmp_path):
    path = save(tmp_path, 5)
    before = path.read_bytes()
    with pytest.raises(TrainingDiverged, match=r"Step 5: state_dict.w is not finite"):
        save(tmp_path, 5, float("nan"))
    assert path.read_bytes() == before
    assert verifies(path)


def test_a_full_disk_leaves_the_old_checkpoints_and_no_half_one(tmp_path, monkeypatch):
    save(tmp_path, 5)
    before = names(tmp_path)

    def full(value, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, 10)
    assert names(tmp_path) == before
    assert step_of(newest(tmp_path)) == 5


def test_a_pickle_that_runs_code_is_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",)

    path = tmp_path / "step-00000005.ckpt"
    torch.save({"state_dict": Hostile()}, path)
    digest_of(path).write_text(sha256_of(path))
    with pytest.raises(MedsynthError, match="more than tensors"):
        SafeCheckpointIO().load_checkpoint(path)
    assert not (tmp_path / "ran").exists()
