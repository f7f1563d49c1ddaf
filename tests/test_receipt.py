import json
from pathlib import Path

import pytest

from medsynth.errors import MedsynthError, StageConflict
from medsynth.receipt import RECEIPT, Receipt, locked, run_once


def plan(**settings: object) -> Receipt:
    return Receipt(stage="train", settings={"fit.steps": 10, "seed": 0, **settings}, inputs={"prepare": "abc"}, outputs={})


def worker(calls: list[str]):
    def work(folder: Path) -> None:
        calls.append("worked")
        (folder / "made.txt").write_text("made")

    return work


def do(folder: Path, planned: Receipt, calls: list[str]) -> tuple[Receipt, bool]:
    return run_once(folder, planned, worker(calls), outputs=("made.txt",), grows=("fit.steps",))


def test_a_finished_stage_is_not_done_again(tmp_path):
    calls: list[str] = []
    first, done = do(tmp_path / "train", plan(), calls)
    again, done_again = do(tmp_path / "train", plan(), calls)
    assert (calls, done, done_again) == (["worked"], True, False)
    assert again == first


def test_other_settings_are_refused_with_what_changed_and_both_ways_out(tmp_path):
    calls: list[str] = []
    do(tmp_path / "train", plan(), calls)
    with pytest.raises(StageConflict, match=r"seed: 0 there, 1 now") as caught:
        do(tmp_path / "train", plan(seed=1), calls)
    assert "run.name" in str(caught.value)
    assert "delete the folder" in str(caught.value)
    assert calls == ["worked"]


def test_a_larger_growing_setting_continues_and_a_smaller_one_is_refused(tmp_path):
    calls: list[str] = []
    do(tmp_path / "train", plan(), calls)
    receipt, done = do(tmp_path / "train", plan(**{"fit.steps": 20}), calls)
    assert done
    assert receipt.settings["fit.steps"] == 20
    with pytest.raises(StageConflict, match=r"fit\.steps"):
        do(tmp_path / "train", plan(), calls)


def test_an_interrupted_stage_resumes_only_under_the_settings_it_began_with(tmp_path):
    def interrupted(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_once(tmp_path / "train", plan(), interrupted, outputs=())
    assert not (tmp_path / "train" / RECEIPT).exists()
    with pytest.raises(StageConflict, match="unfinished"):
        do(tmp_path / "train", plan(seed=1), [])
    _, done = do(tmp_path / "train", plan(), [])
    assert done
    assert (tmp_path / "train" / "half").read_text() == "half"


def test_a_changed_input_is_named(tmp_path):
    do(tmp_path / "train", plan(), [])
    changed = Receipt(stage="train", settings=plan().settings, inputs={"prepare": "other"}, outputs={})
    with pytest.raises(StageConflict, match="prepare: its result has changed"):
        do(tmp_path / "train", changed, [])


def test_a_forged_receipt_is_refused(tmp_path):
    do(tmp_path / "train", plan(), [])
    path = tmp_path / "train" / RECEIPT
    path.write_text(json.dumps(json.loads(path.read_text()) | {"settings": {"fit.steps": 99}}))
    with pytest.raises(StageConflict, match="changed after it was written"):
        do(tmp_path / "train", plan(), [])


def test_a_second_writer_is_kept_out_and_the_folder_is_private(tmp_path):
    with locked(tmp_path / "run"):
        assert (tmp_path / "run").stat().st_mode & 0o777 == 0o700
        with pytest.raises(StageConflict, match="Another process"), locked(tmp_path / "run"):
            pass
    with locked(tmp_path / "run"):
        pass


def test_a_place_that_cannot_be_written_is_said_plainly(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(MedsynthError, match=r"cannot be written .* paths\.runs"), locked(tmp_path / "file" / "run"):
        pass
