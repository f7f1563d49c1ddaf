import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from medsynth.cohort import Cohort
from medsynth.config import Settings
from medsynth.errors import MedsynthError, SettingsError
from medsynth.stages import STAGES, VERBS, Run, utility
from tests.make_cohort import make_cohort

CLASSES = {"class": ["a", "b"]}


def run_of(root: Path, *, spoilt: bool = False, joint_mask: bool = True, conditions=CLASSES, **changed) -> tuple[Run, dict]:
    """A prepared and a sampled cohort of blobs. ``spoilt``: the synthetic masks lie beside their blobs."""
    (root / "utility").mkdir(parents=True)
    make_cohort(root / "prepare", n_train=40, n_validation=1, n_holdout=24, joint_mask=joint_mask, conditions=conditions)
    made = make_cohort(root / "sample", n_train=40, n_validation=1, n_holdout=1, joint_mask=joint_mask, conditions=conditions, seed=9)
    replace(made, cases=tuple(replace(case, split="synthetic") for case in made.split("train"))).write(root / "sample" / "cohort.jsonl")
    if spoilt:
        masks = np.load(root / "sample/volumes/train-mask.npy")
        np.save(root / "sample/volumes/train-mask.npy", masks[:, ::-1, ::-1])
    settings = Settings()
    small = {"steps": 40, "nets": 2, "shares": [1.0], "mixtures": [1.0], "draws": 200, "workers": 1, "batch": 16}
    for name, value in (small | changed).items():
        setattr(settings.utility, name, value)
    (root / "train" / "denoiser").mkdir(parents=True)
    (root / "train" / "denoiser" / "weights.safetensors").write_bytes(b"weights")
    tracked: dict = {}
    tracker = SimpleNamespace(
        metrics=lambda values, model: tracked.update(values),
        dataset=lambda name, digest, cases, context: tracked.update({name: (digest, cases)}),
        table=lambda name, rows: tracked.update({name: rows}),
    )
    return Run(settings=settings, objects={}, root=root, tracker=tracker), tracked


def result_of(run: Run) -> dict:
    utility.work(run, run.folder("utility"))
    return json.loads((run.folder("utility") / "utility.json").read_text())


def task_of(result: dict, name: str) -> dict:
    (task,) = (task for task in result["tasks"] if task["task"] == name)
    return task


def test_masks_that_lie_beside_their_organs_are_worth_less_than_right_ones(tmp_path, capsys):
    good, tracked = run_of(tmp_path / "good", conditions={})
    bad, _ = run_of(tmp_path / "bad", conditions={}, spoilt=True)
    told = {name: task_of(result_of(run), "segmentation") for name, run in (("good", good), ("bad", bad))}
    value = {name: {arm["name"]: arm for arm in task["arms"]} for name, task in told.items()}
    assert value["good"]["real"] == value["bad"]["real"]  # the real arms know nothing of the synthetic cohort
    assert value["bad"]["synthetic"]["interval"][1] < value["good"]["synthetic"]["interval"][0]
    (lost,) = (row for row in told["bad"]["differences"] if (row["of"], row["from"]) == ("synthetic", "real"))
    assert lost["interval"][1] < 0
    assert told["bad"]["trts"]["value"] < told["good"]["trts"]["value"]
    assert value["good"]["real + synthetic"]["cases"] == value["good"]["real + duplicates"]["cases"] == 80
    assert value["good"]["real + duplicates"]["different_cases"] == 40
    low, high = value["good"]["synthetic"]["interval"]
    assert tracked["utility/segmentation/synthetic"] == pytest.approx(value["good"]["synthetic"]["value"])
    assert (tracked["utility/segmentation/synthetic/ci_lo"], tracked["utility/segmentation/synthetic/ci_hi"]) == (low, high)
    assert tracked["utility/segmentation/ratio"] == told["good"]["ratio"]["value"]
    assert tracked["synthetic"] == (Cohort.read(good.folder("sample") / "cohort.jsonl").digest, 40)
    for name in ("segmentation", "segmentation_curve"):
        assert (good.folder("utility") / "figures" / f"{name}.png").is_file()
    assert not list(good.folder("utility").glob(".arrays*"))
    said = capsys.readouterr().out
    assert "segmentation: Dice coefficient on 24 held-out subjects" in said
    assert "real + synthetic less real + duplicates" in said


@pytest.mark.slow
def test_the_same_bytes_for_any_number_of_workers(tmp_path):
    small = {"steps": 6, "draws": 50}
    one, two = (run_of(tmp_path / str(n), workers=n, **small)[0] for n in (1, 2))
    found = [result_of(run) for run in (one, two)]
    for result in found:
        result["settings"].pop("workers")
    assert found[0] == found[1]
    assert "utility.workers" in STAGES["utility"].neutral


def test_what_has_no_labels_cannot_be_trained_on(tmp_path):
    run, _ = run_of(tmp_path / "run", joint_mask=False, steps=5, draws=20)
    assert [row["name"] for row in result_of(run)["not_computed"]] == ["segmentation"]
    run.settings.utility.attribute = "clas"
    with pytest.raises(SettingsError, match=r"utility\.attribute=clas: there is no class of that name. Known: class"):
        result_of(run)
    make_cohort(tmp_path / "run/prepare")
    run.settings.utility.attribute = ""
    with pytest.raises(MedsynthError, match="Nothing can be trained"):
        result_of(run)


def test_it_is_done_when_asked_for_and_by_no_run():
    assert "utility" in STAGES
    assert "utility" not in VERBS
