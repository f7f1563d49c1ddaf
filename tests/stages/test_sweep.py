"""A sweep tells good settings from bad ones, asks nothing of the holdout, and leaves no image behind."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medsynth.cohort import Cohort
from medsynth.diffusion.checkpoint import save_denoiser
from medsynth.diffusion.guidance import Guidance
from medsynth.errors import MedsynthError
from medsynth.stages import STAGES, VERBS, Run, sample, sweep, train
from tests.make_cohort import blobs, make_cohort
from tests.make_run import make_run


class Kept:
    """Takes what the stage tracks."""

    def __init__(self) -> None:
        self.seen: dict = {}

    def metrics(self, values: dict, step: int) -> None:
        self.seen |= {(name, step): value for name, value in values.items()}

    def table(self, name: str, rows: list[dict]) -> None:
        self.seen[name] = rows


def run_of(root: Path, *, scale: float = 1.0, n_train: int = 110, n_validation: int = 6, conditions=None, steps=(1, 8)) -> Run:
    """A prepared cohort, and an untrained denoiser that calls itself trained for 12 steps, with a snapshot of step 4."""
    make_cohort(root / "prepare", n_train=n_train, n_validation=n_validation, n_holdout=8, conditions=conditions)
    run = make_run(root, sampling={"steps": 2})
    run.settings.sweep.cases, run.settings.sweep.steps, run.settings.sweep.scales = 50, list(steps), [1.0, 4.0]
    run.settings.sweep.subsamples = 10
    header = Cohort.read(root / "prepare/cohort.jsonl").header
    for name, trained in (("denoiser", 12), ("snapshots/step-00000004", 4), ("snapshots/step-00000012", 12)):
        save_denoiser(root / "train" / name, train.new_denoiser(run, header), {"steps": trained})
    (root / "sweep").mkdir()
    return replace(run, objects=run.objects | {"guidance": Guidance(scale=scale)}, tracker=Kept())


def result_of(run: Run) -> dict:
    sweep.work(run, run.folder("sweep"))
    return json.loads((run.folder("sweep") / "sweep.json").read_text())


def curves_of(result: dict) -> dict[str, dict[float, dict]]:
    return {curve["name"]: {row["at"]: row for row in curve["points"]} for curve in result["curves"]}


def noisy_blobs(drawn: list):
    """Stands in for the sampler: real-looking images, with noise that falls with the steps, and after less training or strong guidance."""

    def each_batch(job: sample.Job, use) -> list:
        amount = 0.4 / job.steps + (0.3 if "step-" in job.denoiser.name else 0) + (0.3 if job.guidance.scale > 3 else 0)
        drawn.append((job.denoiser.name, job.steps, job.guidance.scale))
        noise = np.random.default_rng(0).standard_normal((len(job.plans), *job.header.shape))
        images = np.stack([blobs(job.header.shape, 0, each.id)[0] for each in job.plans]) + amount * noise
        return [use(job.plans, images[:, None].astype(np.float32))]

    return each_batch


@pytest.fixture
def drawn(monkeypatch) -> list:
    drawn: list = []
    monkeypatch.setattr(sweep, "each_batch", noisy_blobs(drawn))
    return drawn


def test_the_noisier_setting_is_worse_and_the_runs_own_is_in_every_curve(tmp_path, drawn, capsys):
    run = run_of(tmp_path, scale=2.0, conditions={"class": ["a", "b"]})
    found = curves_of(result_of(run))
    value = {name: [row["value"] for row in rows.values()] for name, rows in found.items()}
    assert {name: list(rows) for name, rows in found.items()} == {"training": [4, 12], "steps": [1, 2, 8], "guidance": [1, 2, 4]}
    assert value["steps"] == sorted(value["steps"], reverse=True)
    assert value["training"][0] > value["training"][1]
    assert value["guidance"][2] > value["guidance"][0]
    assert [at for rows in found.values() for at, row in rows.items() if row["own"]] == [12, 2, 2]
    assert found["training"][12]["value"] == found["steps"][2]["value"] == found["guidance"][2]["value"]
    best = found["steps"][8]
    assert best["interval"][0] <= best["value"] <= best["interval"][1]
    assert abs(best["floor"]) < found["steps"][1]["value"] / 5
    assert len(drawn) == len(set(drawn)) == 6  # what stands in several curves is drawn once
    assert run.tracker.seen["sweep/steps", 8] == best["value"]
    assert "this run" in capsys.readouterr().out


def test_the_holdout_takes_no_part_and_an_interrupted_sweep_draws_nothing_twice(tmp_path, drawn):
    run = run_of(tmp_path, n_train=12, n_validation=55)
    first = result_of(run)
    assert first["reference"] == {"split": "validation", "subjects": 55}
    assert {row["name"] for row in first["not_computed"]} == {"quality against guidance"}
    (tmp_path / "prepare/volumes/holdout.npy").unlink()
    del drawn[:]
    assert result_of(run) == first
    assert drawn == []


def test_without_a_validation_split_half_of_the_training_subjects_are_the_reference(tmp_path, drawn):
    assert result_of(run_of(tmp_path / "run"))["reference"] == {"split": "half of train", "subjects": 55}
    with pytest.raises(MedsynthError, match=r"50 for validation \(there are 6\) or 100 for training \(there are 99\)"):
        result_of(run_of(tmp_path / "few", n_train=99))


def test_images_that_are_not_finite_have_no_value_and_stop_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep, "each_batch", lambda job, use: [use(job.plans, np.full((50, 1, 16, 16), np.nan if job.steps < 8 else 0.5))])
    found = curves_of(result_of(run_of(tmp_path)))["steps"]
    assert found[1]["value"] is None
    assert found[8]["value"] is not None


def test_what_is_drawn_is_the_samplers_and_no_image_stays(tmp_path, monkeypatch):
    run = run_of(tmp_path, steps=(2,))
    real = Cohort.read(tmp_path / "prepare/cohort.jsonl")
    plans = sample.plan(real, cases=3, per_condition={}, seed=5)
    (tmp_path / "volumes").mkdir()
    job = sample.job_of(run, real.header, plans, tmp_path / "volumes")
    (images,) = sample.each_batch(job, lambda batch, images: images)
    sample.draw(job, lambda _: None)
    low, high = real.header.scale
    for each, image in zip(plans, images, strict=True):
        stored = sample.nifti.read(tmp_path / "volumes" / f"{each.id}.nii.gz")[0].reshape(image[0].shape)
        assert stored == pytest.approx((np.clip(image[0], -1, 1) + 1) * (high - low) / 2 + low, abs=0.51)
    result_of(run)
    left = {path.name for path in run.folder("sweep").rglob("*") if path.is_file()}
    assert left == {"sweep.json", "quality.png", "denoiser-2-1.npz", "step-00000004-2-1.npz"}
    with np.load(run.folder("sweep") / "points/denoiser-2-1.npz", allow_pickle=False) as kept:
        assert kept["features"].shape[0] == 50
        assert kept["features"].ndim == 2


def test_it_is_done_when_asked_for_and_by_no_run():
    assert STAGES["sweep"].aside
    assert "sweep" not in VERBS
    assert "sample" not in STAGES["sweep"].needs
