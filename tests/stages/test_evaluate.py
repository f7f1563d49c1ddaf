import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits

from medsynth import features
from medsynth.cohort import Cohort, sha256_of
from medsynth.config import Settings
from medsynth.diffusion.checkpoint import save_denoiser
from medsynth.encoder import Learner
from medsynth.errors import MedsynthError
from medsynth.metrics import baselines
from medsynth.metrics.classifier import TwoSample
from medsynth.metrics.fidelity import ConditionFidelity
from medsynth.metrics.frechet import FrechetDistance
from medsynth.metrics.intensity import Intensity, Spectrum
from medsynth.metrics.intervals import score
from medsynth.metrics.kernel import KernelDistance
from medsynth.metrics.radiomics import Radiomics
from medsynth.metrics.schema import faults_of
from medsynth.stages import Run, evaluate, likelihood, train
from tests.make_cohort import make_cohort
from tests.make_run import make_run
from tests.test_pretrained import networks

METRICS = {"kid": KernelDistance(features="random_convolution"), "radiomics": Radiomics(), "intensity": Intensity()}


def run_of(root: Path, n: int = 60, metrics=METRICS, shape=(16, 16), synthetic_shape=None, **changed) -> tuple[Run, dict]:
    """A run folder with a prepared and a sampled cohort, and where its numbers are tracked."""
    for stage in ("prepare", "sample", "evaluate"):
        (root / stage).mkdir(parents=True)
    make_cohort(root / "prepare", n_train=2 * n, n_validation=1, n_holdout=n, shape=shape, conditions={"class": ["a", "b"]})
    made = make_cohort(
        root / "sample", n_train=n, n_validation=1, n_holdout=1, shape=synthetic_shape or shape, conditions={"class": ["a", "b"]}, seed=9
    )
    replace(made, cases=tuple(replace(case, split="synthetic", id=f"s{i}") for i, case in enumerate(made.split("train")))).write(
        root / "sample" / "cohort.jsonl"
    )
    settings = Settings()
    settings.evaluate.subsamples, settings.evaluate.permutations, settings.evaluate.sanity = 10, 9, "off"
    for name, value in changed.items():
        setattr(settings.evaluate, name, value)
    (root / "train" / "denoiser").mkdir(parents=True)
    (root / "train" / "denoiser" / "weights.safetensors").write_bytes(b"weights")
    tracked: dict = {}
    tracker = SimpleNamespace(
        metrics=lambda values, model: tracked.update(values),
        dataset=lambda *what: None,
        table=lambda name, rows: tracked.update({name: rows}),
    )
    return Run(settings=settings, objects={"metric": metrics}, root=root, tracker=tracker), tracked


def result_of(run: Run) -> dict:
    evaluate.work(run, run.folder("evaluate"))
    return json.loads((run.folder("evaluate") / "metrics.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict, dict]:
    """A run, its ``metrics.json`` and what was tracked. Tests must not change it."""
    run, tracked = run_of(tmp_path_factory.mktemp("finished") / "run")
    return run, result_of(run), tracked


def test_every_metric_has_its_row_with_interval_and_anchor_and_every_stand_in_too(finished):
    run, result, tracked = finished
    assert sorted(row["name"] for row in result["scores"]) == ["intensity", "kid", "radiomics"]
    for row in result["scores"]:
        assert row["interval"][0] <= row["value"] <= row["interval"][1]
        assert row["anchor"] is not None
    rivals = {(row["baseline"], row["name"]) for row in result["baselines"]}
    assert rivals == {(baseline, metric) for baseline in ("blurred", "gaussian") for metric in ("kid", "radiomics")}
    assert result["n"]["holdout"] == {"cases": 60, "subjects": 60, "cases_used": 60}
    rows = {row["name"]: row for row in result["scores"]}
    assert rows["radiomics"]["details"]["shifted"][0]["feature"] in evaluate.EXTRACTORS["texture"].names
    assert tracked["kid/random_convolution"] == pytest.approx(rows["kid"]["value"], rel=1e-8)
    assert faults_of(json.loads((run.folder("evaluate") / "metrics.json").read_text())) == []
    assert {path.name for path in (run.folder("evaluate") / "figures").iterdir()} == {"intensity.png", "power_spectrum.png", "scores.png"}


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(finished, tmp_path):
    names = ("metrics.json", "features.npz", "figures/intensity.png", "figures/power_spectrum.png", "figures/scores.png")

    def bytes_of(run: Run) -> list[bytes]:
        return [(run.folder("evaluate") / name).read_bytes() for name in names]

    again, _ = run_of(tmp_path / "again")
    result_of(again)
    assert bytes_of(again) == bytes_of(finished[0])
    other, _ = run_of(tmp_path / "other", seed=1)
    result_of(other)
    assert bytes_of(other)[0] != bytes_of(finished[0])[0]


def test_features_are_taken_once(finished, monkeypatch):
    run, first, _ = finished
    monkeypatch.setattr(evaluate, "extract", lambda *_: pytest.fail("the features were there"))
    assert result_of(run) == first


def test_scores_are_taken_once_and_only_a_new_metric_is_computed(finished, tmp_path, monkeypatch):
    run, first, _ = finished
    again = replace(run, root=shutil.copytree(run.root, tmp_path / "again"))
    asked = []
    monkeypatch.setattr(evaluate, "score", lambda name, *given, **named: asked.append(name) or score(name, *given, **named))
    assert result_of(again) == first
    assert asked == []
    more = replace(again, objects={"metric": {**METRICS, "spectrum": Spectrum()}})
    assert [row for row in result_of(more)["scores"] if row["name"] != "spectrum"] == first["scores"]
    assert asked == ["spectrum"]


def test_nothing_is_taken_over_from_another_version(finished, tmp_path, monkeypatch):
    run, first, _ = finished
    again = replace(run, root=shutil.copytree(run.root, tmp_path / "again"))
    asked = []
    for name in ("score", "extract"):
        slow = getattr(evaluate, name)
        monkeypatch.setattr(evaluate, name, lambda *given, slow=slow, name=name, **named: asked.append(name) or slow(*given, **named))
    monkeypatch.setattr(features, "_package", lambda: "another")
    assert result_of(again) == first
    assert (asked.count("score"), asked.count("extract")) == (
        7,
        6,
    )  # three metrics, two on stand-ins; two spaces, three cohorts


def test_features_of_another_cohort_are_not_taken_for_this_ones(tmp_path):
    run, _ = run_of(tmp_path, metrics={"kid": METRICS["kid"]})
    first = result_of(run)
    cohort = make_cohort(tmp_path / "sample", n_train=60, n_validation=1, n_holdout=1, conditions={"class": ["a", "b"]}, seed=10)
    replace(cohort, cases=cohort.split("train").cases).write(tmp_path / "sample" / "cohort.jsonl")
    assert result_of(run)["scores"][0]["value"] != first["scores"][0]["value"]


def test_fewer_than_fifty_held_out_subjects_leave_reasons_and_the_simple_scores(tmp_path):
    run, tracked = run_of(tmp_path, n=20)
    rows = {row["name"]: row for row in result_of(run)["scores"]}
    assert rows["kid"]["status"] == "absent"
    assert "20 held out" in rows["kid"]["reason"]
    assert rows["intensity"]["status"] == "ok"
    assert "kid/random_convolution" not in tracked


def test_the_model_tells_what_real_and_synthetic_cases_cost_it_if_it_is_asked(finished, tmp_path):
    assert {"name": "likelihood", "reason": "not asked for: evaluate.likelihood=0"} in finished[1]["not_computed"]
    run, _ = run_of(tmp_path, n=10, metrics={"intensity": METRICS["intensity"]}, likelihood=8, likelihood_steps=2)
    header = Cohort.read(run.folder("prepare") / "cohort.jsonl").header
    denoiser = train.new_denoiser(make_run(tmp_path), header)
    (tmp_path / "train").mkdir(exist_ok=True)
    save_denoiser(tmp_path / "train" / "denoiser", denoiser, {})
    rows = {row["name"]: row for row in result_of(run)["scores"]}
    for name in ("likelihood_bound", "likelihood_flow"):
        row = rows[name]
        assert (row["status"], row["n_synthetic"], row["n_real"]) == ("ok", 8, 8)
        assert row["interval"][0] <= row["value"] <= row["interval"][1]
        bits = row["details"]["bits_per_dimension"]
        assert row["value"] == pytest.approx(bits["synthetic"] - bits["real"], rel=1e-6)
        assert row["details"]["noise_floor"] == 0.01


def test_attributes_that_nobody_can_see_are_named_with_the_reason_for_every_stand_in_too(tmp_path):
    """The classes of this cohort are thrown like a coin."""
    run, _ = run_of(tmp_path, metrics={"condition_fidelity": ConditionFidelity(features="texture")})
    result = result_of(run)
    assert "no attribute can be read from real cases: of 0.7 needed, class" in result["scores"][0]["reason"]
    assert [row["status"] for row in result["baselines"]] == ["absent", "absent"]


def test_what_a_case_costs_depends_on_the_case_alone(tmp_path):
    run, _ = run_of(tmp_path, n=2)
    cohort = Cohort.read(run.folder("prepare") / "cohort.jsonl")
    denoiser = train.new_denoiser(make_run(tmp_path), cohort.header)
    (tmp_path / "train").mkdir(exist_ok=True)
    save_denoiser(tmp_path / "train" / "denoiser", denoiser, {})
    first, second = (
        likelihood.costs(run, {"it": cohort.where(cases)}, 2, seed=0)[0]["it"] for cases in (cohort.cases[:2], cohort.cases[1::-1])
    )
    assert np.isfinite(first).all()
    assert (first == second[::-1]).all()
    assert first[0].tolist() != first[1].tolist()


def test_learned_spaces_are_tried_on_injected_defects_and_every_score_has_its_badges(tmp_path, monkeypatch):
    metrics = {"frechet_encoder": FrechetDistance(features="encoder"), "intensity": Intensity()}
    metrics["frechet_classifier"] = FrechetDistance(features="classifier")
    run, _ = run_of(tmp_path, metrics=metrics, sanity="small", encoder_steps=2)
    result = result_of(run)
    assert {row["name"] for row in result["sanity"]} == set(metrics)
    assert {row["defect"] for row in result["sanity"] if row["name"] == "intensity" and row["sees"]} >= {"gain"}
    assert not any(trial["passed"] for space, trial in result["qualified"].items() if space.startswith("classifier"))
    rows = {row["name"]: row for row in result["scores"]}
    assert rows["frechet_classifier"]["status"] == "unqualified"
    assert "AUROC" in rows["frechet_classifier"]["reason"]
    assert len(rows["frechet_encoder"]["details"]["seeds"]) == 3
    monkeypatch.setattr(Learner, "fit", lambda *_: pytest.fail("the encoders were there"))
    assert result_of(run) == result


@pytest.mark.slow
def test_the_number_of_threads_moves_no_digit_of_the_result_and_no_byte_of_an_encoder(tmp_path):
    """Two threads sum a convolution's gradients and a matrix product in another order than one."""
    metrics = {**METRICS, "frechet_encoder": FrechetDistance(features="encoder"), "c2st": TwoSample(features="texture")}
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2):
            run, _ = run_of(tmp_path / str(threads), metrics=metrics, shape=(40, 40), sanity="small", encoder_steps=5)
            torch.set_num_threads(threads)
            with threadpool_limits(threads):
                result_of(run)
            names = ("metrics.json", "encoders/encoder-0.safetensors", "encoders/encoder-2.safetensors")
            found.append([(run.folder("evaluate") / name).read_bytes() for name in names])
    finally:
        torch.set_num_threads(before)
    assert found[0] == found[1]


def test_figures_of_tissues_leave_out_what_few_people_have(tmp_path):
    few, many = evaluate.PEOPLE - 1, evaluate.PEOPLE
    cohort = make_cohort(tmp_path, n_train=many, n_validation=1, n_holdout=many, joint_mask=True)
    samples = {name: evaluate.sample_of(cohort.split(name), {}, {}) for name in ("train", "holdout")}
    masks = np.ones_like(samples["holdout"].masks)
    masks[:few, 0, 0], masks[0, 1, 1] = 2, 0
    for name in samples:
        samples[name] = replace(samples[name], masks=masks)
    assert evaluate._common(samples) == [1]
    masks[few, 0, 0] = 2
    assert evaluate._common(samples) == [1, 2]


def test_a_network_from_elsewhere_is_a_space_of_its_own_and_one_that_is_not_there_leaves_its_reason(tmp_path, monkeypatch):
    folders = networks(tmp_path / "nets", monkeypatch)
    metrics = {"kid": METRICS["kid"], "frechet_weights": FrechetDistance(features="weights")}
    run, tracked = run_of(tmp_path / "run", metrics=metrics, weights=folders, sanity="small")
    result = result_of(run)
    rows = {row["name"]: row for row in result["scores"]}
    assert set(rows) == {"kid", "frechet_net", "frechet_gone"}
    assert (rows["frechet_net"]["features"], rows["frechet_net"]["status"]) == ("net", "ok")
    assert (rows["frechet_gone"]["features"], rows["frechet_gone"]["status"]) == ("gone", "absent")
    assert rows["frechet_gone"]["reason"] == "there is no such folder"
    assert rows["frechet_gone"]["value"] is None
    assert "frechet_net/net" in tracked
    assert "frechet_gone/gone" not in tracked
    assert {row["name"] for row in result["baselines"]} == set(rows)
    sees = {(row["name"], row["defect"]): row["sees"] for row in result["sanity"]}
    assert sees["frechet_net", "gain"]
    assert sees["frechet_gone", "gain"] is None
    assert sha256_of(Path(folders[0]) / "weights.safetensors") in result["features"]["net"]
    assert set(result["features"]) == {"random_convolution", "net"}
    assert str(tmp_path) not in json.dumps(result)
    again, _ = run_of(tmp_path / "again", metrics=metrics, weights=folders, sanity="small")
    result_of(again)
    for name in ("metrics.json", "weights-net.npz"):
        assert (again.folder("evaluate") / name).read_bytes() == (run.folder("evaluate") / name).read_bytes()


def test_metrics_on_weights_without_weights_and_weights_without_metrics_are_told(tmp_path):
    run, _ = run_of(tmp_path / "a", n=8, metrics={"intensity": METRICS["intensity"], "kid_weights": KernelDistance(features="weights")})
    result = result_of(run)
    assert [row["name"] for row in result["scores"]] == ["intensity"]
    assert {"name": "scores on weights", "reason": "not asked for: evaluate.weights=[]"} in result["not_computed"]
    run, _ = run_of(tmp_path / "b", n=8, metrics={"intensity": METRICS["intensity"]}, weights=["/nets/net"])
    assert {"name": "scores on net", "reason": "no metric of the panel looks at weights"} in result_of(run)["not_computed"]


def test_other_weights_under_the_same_path_are_another_input_of_the_stage(tmp_path):
    from medsynth.config import compose
    from medsynth.stages import _weights

    cfg = compose([f"evaluate.weights=[{tmp_path / 'net'}]"])
    found = [_weights(cfg, "evaluate.weights")]
    (tmp_path / "net").mkdir()
    for content in (b"a", b"b"):
        (tmp_path / "net/weights.pth").write_bytes(content)
        found.append(_weights(cfg, "evaluate.weights"))
    assert len({each["evaluate.weights net"] for each in found}) == 3
    assert _weights(cfg, "") == {}


def test_no_real_case_is_named(finished):
    text = (finished[0].folder("evaluate") / "metrics.json").read_text()
    assert "holdout-0" not in text
    assert "train-0" not in text


def test_small_classes_are_named_as_not_computed_and_large_ones_are_scored(finished, tmp_path):
    assert finished[1]["groups"] == []
    assert {"name": "scores by class", "reason": "fewer than 50 subjects on one side: a, b"} in finished[1]["not_computed"]
    result = result_of(run_of(tmp_path / "large", n=130, metrics={"kid": METRICS["kid"]})[0])
    assert {row["group"] for row in result["groups"]} == {"class=a", "class=b"}


def test_images_of_another_size_are_refused_with_both_sizes(tmp_path):
    run, _ = run_of(tmp_path, n=10, synthetic_shape=(20, 20))
    with pytest.raises(MedsynthError, match=r"\(20, 20\) voxels, the real ones \(16, 16\)"):
        evaluate.work(run, run.folder("evaluate"))


def test_the_gaussian_stand_in_has_the_mean_and_covariance_of_the_images(monkeypatch):
    monkeypatch.setattr(baselines, "VOXELS", 5)  # voxels drawn apart are of one case all the same
    generator = np.random.default_rng(0)
    images = (generator.standard_normal((50, 3)) @ generator.standard_normal((3, 16))).reshape(50, 1, 4, 4)
    images[0, 0, 0, 0], images[1, 0, 0, 0] = -19, 19  # extremes, so that nothing is cut
    drawn = baselines.gaussian(images, 40_000, seed=0).reshape(-1, 16)
    flat = images.reshape(50, 16)
    assert drawn.mean(axis=0) == pytest.approx(flat.mean(axis=0), abs=0.08)
    assert np.cov(drawn.T) == pytest.approx(np.cov(flat.T), abs=0.4)


def test_the_blur_is_in_millimetres_along_every_axis():
    point = np.zeros((1, 1, 65, 33))
    point[0, 0, 32, 16] = 1
    blurred = baselines.blurred(point, (1.0, 2.0), millimetres=3.0)[0, 0]
    for axis, spacing in enumerate((1.0, 2.0)):
        profile = blurred.sum(axis=1 - axis)
        at = (np.arange(len(profile)) - len(profile) // 2) * spacing
        assert np.sqrt((profile * at**2).sum()) == pytest.approx(3.0, rel=0.02)


def test_what_is_tracked_follows_again_from_the_run_folder(tmp_path):
    """MLflow's numbers are those of ``metrics.json``, and both come out of the run folder again without what was cached."""
    from mlflow import MlflowClient

    from medsynth.tracking import Tracker, tracking_uri

    run, _ = run_of(tmp_path / "run", metrics={"kid": METRICS["kid"]})
    uri = tracking_uri("", tmp_path)
    tracker = Tracker(uri=uri, experiment="medsynth", run_name="run", stage="evaluate", logs=tmp_path / "run/logs", audited=False)
    first = result_of(replace(run, tracker=tracker))
    tracker.close(succeeded=True, patience=60)
    written = (run.folder("evaluate") / "metrics.json").read_bytes()
    for kept in ("features.npz", "metrics.json"):
        (run.folder("evaluate") / kept).unlink()
    assert result_of(run) == first
    assert (run.folder("evaluate") / "metrics.json").read_bytes() == written

    client = MlflowClient(tracking_uri=uri)
    (stage,) = (each for each in client.search_runs(["1"]) if each.info.run_name == "run/evaluate")
    row = next(row for row in first["scores"] if row["name"] == "kid")
    assert stage.data.metrics["kid/random_convolution"] == pytest.approx(row["value"], rel=1e-8)
    assert stage.data.metrics["kid/random_convolution/ci_hi"] == pytest.approx(row["interval"][1], rel=1e-8)
    synthetic = Cohort.read(run.folder("sample") / "cohort.jsonl")
    inputs = {each.dataset.name: each.dataset.digest for each in stage.inputs.dataset_inputs}
    assert inputs["synthetic"] == synthetic.digest[:36]
    assert set(inputs) == {"holdout", "synthetic"}
    (model,) = client.search_logged_models(["1"])
    assert {metric.key for metric in model.metrics} >= {"kid/random_convolution", "kid/random_convolution/anchor"}
