import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from medsynth.cohort import Cohort
from medsynth.conditions import ConditionSchema
from medsynth.diffusion.checkpoint import save_denoiser
from medsynth.diffusion.networks import UNetSettings
from medsynth.errors import MedsynthError, SettingsError
from medsynth.io import nifti
from medsynth.stages import sample, train
from tests.make_cohort import SCALE, make_cohort
from tests.make_run import make_run

ROOT = Path(__file__).resolve().parents[2]
CONDITIONS = {"class": ["a", "b"], "age": [20, 80]}
# with attention over enough tokens and convolutions wide enough that kernels would be chosen by batch, and sums split over threads
WIDE = UNetSettings(channels=(32, 64), attention_levels=(False, True), res_blocks=1, head_channels=32, norm_groups=32)


def prepared(root: Path, network: UNetSettings, **cohort) -> Path:
    """A run with a prepared cohort and a denoiser of random weights."""
    make_cohort(root / "prepare", 8, 2, 2, **cohort)
    run = make_run(root, network=network)
    denoiser = train.new_denoiser(run, Cohort.read(root / "prepare/cohort.jsonl").header)
    torch.manual_seed(0)
    for parameter in denoiser.parameters():  # the last convolution starts at zero: every image would be the same
        parameter.data += 0.05 * torch.randn_like(parameter)
    (root / "train").mkdir()
    save_denoiser(root / "train/denoiser", denoiser, {})
    return root


@pytest.fixture(scope="module")
def flat(tmp_path_factory) -> Path:
    return prepared(tmp_path_factory.mktemp("flat"), WIDE, shape=(17, 15), conditions=CONDITIONS)


@pytest.fixture(scope="module")
def solid(tmp_path_factory) -> Path:
    return prepared(tmp_path_factory.mktemp("solid"), WIDE, shape=(9, 7, 5), joint_mask=True)


def drawn(root: Path, folder: Path, **sampling) -> Path:
    sample.work(make_run(root, sampling={"cases": 9} | sampling), folder)
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module", params=["flat", "solid"])
def one_by_one(request, tmp_path_factory) -> tuple[Path, dict[str, bytes]]:
    root = request.getfixturevalue(request.param)
    return root, content(drawn(root, tmp_path_factory.mktemp("one") / "sample", batch=1))


@pytest.mark.parametrize("batch", [3, 8])
def test_samples_do_not_depend_on_how_they_are_batched(one_by_one, tmp_path, batch):
    root, expected = one_by_one
    assert content(drawn(root, tmp_path / "sample", batch=batch)) == expected


def test_samples_do_not_depend_on_the_number_of_threads(one_by_one, tmp_path):
    root, expected = one_by_one
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert content(drawn(root, tmp_path / "sample", batch=2)) == expected
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_samples_do_not_depend_on_the_number_of_processes(one_by_one, tmp_path, processes):
    root, expected = one_by_one
    assert content(drawn(root, tmp_path / "sample", batch=2, processes=processes)) == expected


def test_the_watched_way_ends_at_the_case_that_was_drawn(flat, tmp_path):
    folder = drawn(flat, tmp_path / "sample", batch=4)
    cohort = Cohort.read(folder / "cohort.jsonl")
    with np.load(folder / "trajectory.npz") as way:
        assert way["noisy"].shape == way["expected"].shape == (1, len(way["sigmas"]), 17, 15)
        assert (np.diff(way["sigmas"]) < 0).all()
        image = np.clip(way["expected"][0, -1].astype(np.float32), -1, 1)
    low, high = cohort.header.scale
    # half a grey level of stored whole numbers, and half-precision numbers
    np.testing.assert_allclose(image, cohort.pixels(cohort.cases[0])[0], atol=1.1 / (high - low) + 1e-3)


def test_a_larger_cohort_begins_with_the_smaller_one(one_by_one, tmp_path):
    root, expected = one_by_one
    few = content(drawn(root, tmp_path / "sample", cases=4, batch=3))
    volumes = {name: data for name, data in few.items() if name.startswith("volumes")}
    assert volumes
    assert all(expected[name] == data for name, data in volumes.items())


def test_every_rank_draws_its_share_and_the_first_writes_the_manifest(flat, tmp_path, monkeypatch):
    whole = content(drawn(flat, tmp_path / "whole", batch=2))
    started = tmp_path / "shared"
    monkeypatch.setenv("WORLD_SIZE", "2")
    # rank 1 first, whose wait for the manifest is cut short; rank 0 then finds the others' cases there
    monkeypatch.setenv("RANK", "1")
    with monkeypatch.context() as patch:
        patch.setattr(sample, "_wait_for", lambda condition: None)
        drawn(flat, started, batch=2)
    assert len(list((started / "volumes").iterdir())) == 4
    assert not (started / "cohort.jsonl").exists()
    monkeypatch.setenv("RANK", "0")
    drawn(flat, started, batch=3)
    assert content(started) == whole


def test_a_killed_run_continues_with_no_gap_and_no_duplicate(flat, tmp_path):
    root = tmp_path / "run"
    root.mkdir()
    for stage in ("prepare", "train"):
        (root / stage).symlink_to(flat / stage)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "tests/killed.py", str(root), "sample"], cwd=ROOT, env=environment, check=True, capture_output=True)
    volumes = root / "sample/volumes"
    before = {path.name: path.stat().st_mtime_ns for path in volumes.glob("*.nii.gz")}
    assert len(before) == 3
    assert list(volumes.glob(".*.partial"))
    assert not (root / "sample/cohort.jsonl").exists()
    drawn(root, root / "sample", batch=4)
    assert {name: (volumes / name).stat().st_mtime_ns for name in before} == before, "finished cases were drawn again"
    assert content(root / "sample") == content(drawn(flat, tmp_path / "straight"))


def test_a_damaged_case_is_drawn_again(flat, tmp_path):
    folder = drawn(flat, tmp_path / "sample")
    expected = content(folder)
    victim = folder / "volumes/synthetic000003.nii.gz"
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 8
    victim.write_bytes(data)
    (folder / "volumes/synthetic000005.nii.gz").write_bytes(b"")
    nifti.write(folder / "volumes/synthetic000007.nii.gz", np.zeros((17, 15)), np.eye(4), True)  # on another grid
    nifti.write(folder / "volumes/synthetic000008.nii.gz", np.zeros((9, 9)), np.diag([2.0, 2, 2, 1]), True)
    assert content(drawn(flat, folder)) == expected


def test_a_finished_cohort_is_read_and_not_drawn(flat, tmp_path, monkeypatch):
    folder = drawn(flat, tmp_path / "sample")
    monkeypatch.setattr(sample, "load_denoiser", None)
    expected = content(folder)
    assert content(drawn(flat, folder)) == expected


def test_the_cohort_reads_back_on_the_canonical_grid_and_scale(solid, tmp_path):
    cohort = Cohort.read(drawn(solid, tmp_path / "sample") / "cohort.jsonl")
    real = Cohort.read(solid / "prepare/cohort.jsonl").header
    assert cohort.header.kind == "synthetic"
    assert (cohort.header.shape, cohort.header.affine, cohort.header.scale) == (real.shape, real.affine, real.scale)
    assert len({case.subject for case in cohort}) == len({case.seed for case in cohort}) == len(cohort) == 9
    for case in cohort:
        array, affine, integer = nifti.read(cohort.folder / case.path)
        assert array.shape == (1, 9, 7, 5)
        assert integer
        assert np.array_equal(affine, real.affine)
        assert SCALE[0] <= array.min() <= array.max() <= SCALE[1]
        pixels = cohort.pixels(case)
        assert pixels.shape == (2, 9, 7, 5)
        assert set(np.unique(pixels[1])) <= {-1.0, 1.0}
    images = cohort.images().reshape(9, -1)
    assert len({image.tobytes() for image in images}) == 9


def test_a_label_map_takes_the_largest_positive_channel():
    channels = np.array([[0.9, -0.2, -1.0, 0.1], [0.3, 0.4, -0.1, 0.2]])
    assert list(sample.labelled(channels, (3, 7))) == [3, 7, 0, 7]


def test_a_sampler_that_breaks_writes_no_case(flat, tmp_path):
    run = make_run(flat, sampling={"cases": 3})
    run.objects["sampler"] = lambda denoise, x, sigmas, noise=None: x * float("nan")
    with pytest.raises(MedsynthError, match=r"synthetic00000[123]: the sampler gave values that are not finite"):
        sample.work(run, tmp_path / "sample")
    assert not list((tmp_path / "sample").rglob("*.nii.gz"))


def plans(cohort: Cohort, cases: int = 400, seed: int = 1, **per_condition: int) -> list[sample.Plan]:
    return sample.plan(cohort, cases=cases, per_condition=per_condition, seed=seed)


@pytest.fixture(scope="module")
def people(tmp_path_factory) -> Cohort:
    """Class a is young, class b is old, in whole years."""
    cohort = make_cohort(tmp_path_factory.mktemp("people"), 40, 2, 4, shape=(4, 4), conditions=CONDITIONS)
    moved = [
        replace(case, condition={"class": "ab"[k % 2], "age": float([20 + k % 7, 70 + k % 9][k % 2])}) for k, case in enumerate(cohort)
    ]
    schema = ConditionSchema.of(["class", "age"], [case.condition for case in moved])
    return Cohort(replace(cohort.header, conditions=schema), tuple(moved), cohort.folder)


def test_conditions_follow_the_joint_training_distribution(people):
    drawn = [each.condition for each in plans(people)]
    assert np.mean([c["class"] == "a" for c in drawn]) == pytest.approx(0.5, abs=0.08)
    assert max(c["age"] for c in drawn if c["class"] == "a") < 45 < min(c["age"] for c in drawn if c["class"] == "b")


def test_continuous_conditions_are_moved_and_stay_in_their_range(people):
    ages = [each.condition["age"] for each in plans(people)]
    known = {case.condition["age"] for case in people.split("train")}
    attribute = people.header.conditions.attributes[1]
    assert min(ages) >= attribute.low
    assert max(ages) <= attribute.high
    assert all(age.is_integer() for age in ages)
    assert len(set(ages) - known) > 5, "ages that no training case has"
    fractional = people.where(replace(c, condition=c.condition | {"age": c.condition["age"] + 0.25}) for c in people)
    assert not {each.condition["age"] for each in plans(fractional)} & {c.condition["age"] for c in fractional}


def test_counts_a_condition_are_kept_and_the_rest_is_drawn_to_fit(people):
    drawn = plans(people, **{"class=b": 30, "class=a,age=33": 5})
    assert [each.condition["class"] for each in drawn] == ["b"] * 30 + ["a"] * 5
    assert all(each.condition["age"] > 45 for each in drawn[:30])
    assert {each.condition["age"] for each in drawn[30:]} == {33.0}
    assert [each.id for each in drawn] == [f"synthetic{k:06d}" for k in range(1, 36)]


def test_another_seed_draws_other_cases(people):
    one, other = plans(people, cases=20), plans(people, cases=20, seed=2)
    assert not {each.seed for each in one} & {each.seed for each in other}
    assert [each.condition for each in one] != [each.condition for each in other]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("clas=a", "names 'clas', which the model was not trained on .* Did you mean class?"),
        ("class=c", "class='c' is not among the training classes a, b"),
        ("age=old", "age is a number, not 'old'"),
    ],
)
def test_a_condition_that_the_model_does_not_know_is_refused(people, wanted, message):
    with pytest.raises(SettingsError, match=message):
        plans(people, **{wanted: 3})


@pytest.mark.slow
def test_a_killed_worker_is_said_and_its_work_is_finished_by_the_next_run(flat, tmp_path):
    script = tmp_path / "long.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom medsynth.stages import sample\nfrom tests.make_run import make_run\n"
        "if __name__ == '__main__':\n"
        "    run = make_run(Path(sys.argv[1]), sampling={'cases': 40, 'batch': 1, 'processes': 2, 'steps': 40})\n"
        "    sample.work(run, Path(sys.argv[2]))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    folder = tmp_path / "sample"
    with subprocess.Popen([sys.executable, script, flat, folder], cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True) as parent:
        while not list(folder.glob("volumes/*.nii.gz")):
            assert parent.poll() is None
            time.sleep(0.05)
        children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        os.kill(int(children[-1]), 9)
        message = parent.communicate(timeout=120)[1]
    assert parent.returncode != 0
    assert "one of its processes was killed" in message
    straight = drawn(flat, tmp_path / "straight", cases=40, batch=8, steps=40)
    assert content(drawn(flat, folder, cases=40, batch=8, steps=40)) == content(straight)
