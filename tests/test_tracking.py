import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from medsynth.tracking import Tracker, tracking_uri


def tracker(folder: Path, uri: str, *, audited: bool = False, stage: str = "train") -> Tracker:
    return Tracker(uri=uri, experiment="medsynth", run_name="ct", stage=stage, logs=folder / "ct" / "logs", audited=audited)


def client(uri: str):
    import mlflow

    return mlflow.MlflowClient(tracking_uri=uri)


def runs(uri: str) -> list:
    store = client(uri)
    return store.search_runs([store.get_experiment_by_name("medsynth").experiment_id])


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_metrics_settings_and_cohorts_arrive_under_one_parent(tmp_path):
    uri = tracking_uri("", tmp_path)
    for stage in ("train", "sample"):
        one = tracker(tmp_path, uri, stage=stage)
        one.parameters({"fit.steps": 10, "source.root": "/secret/DOE^JANE", "paths.key": "/secret"})
        for step in range(3):
            one.metrics({"loss": 1.0 / (step + 1), "broken": float("inf")}, step=step)
        one.dataset("real", "d" * 64, 12, "training")
        one.close(succeeded=True, patience=60)
    found = {run.info.run_name: run for run in runs(uri)}
    assert set(found) == {"ct", "ct/train", "ct/sample"}
    train = found["ct/train"]
    assert train.data.tags["mlflow.parentRunId"] == found["ct"].info.run_id
    assert train.data.params == {"fit.steps": "10"}
    assert "broken" not in train.data.metrics
    history = client(uri).get_metric_history(train.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(0, 1.0), (1, 0.5), (2, 1 / 3)]
    assert train.inputs.dataset_inputs[0].dataset.name == "real"
    assert train.info.status == "FINISHED"


def test_a_server_that_is_down_costs_no_point(tmp_path):
    down = tracker(tmp_path, f"http://127.0.0.1:{closed_port()}")
    for step in range(50):
        down.metrics({"loss": float(step)}, step=step)
    down.close(succeeded=True, patience=5)
    uri = tracking_uri("", tmp_path)
    up = tracker(tmp_path, uri)
    up.metrics({"loss": 50.0}, step=50)
    up.close(succeeded=True, patience=60)
    (train,) = [run for run in runs(uri) if run.info.run_name == "ct/train"]
    assert [m.value for m in client(uri).get_metric_history(train.info.run_id, "loss")] == [float(step) for step in range(51)]


def test_a_resumed_stage_continues_its_run(tmp_path):
    uri = tracking_uri("", tmp_path)
    for value in (1.0, 2.0):
        one = tracker(tmp_path, uri)
        one.parameters({"fit.steps": int(value)})  # MLflow refuses to change a parameter
        one.metrics({"loss": value}, step=int(value))
        one.close(succeeded=True, patience=60)
    (train,) = [run for run in runs(uri) if run.info.run_name == "ct/train"]
    assert len(client(uri).get_metric_history(train.info.run_id, "loss")) == 2


def test_weights_and_pictures_leave_only_after_the_audit_passed(tmp_path):
    uri = tracking_uri("", tmp_path)
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"weights")
    for audited in (False, True):
        one = tracker(tmp_path, uri, audited=audited, stage=f"release{audited}")
        one.artifact(weights, "model")
        one.figure("grid", weights, synthetic=True)
        one.figure("pairs", weights, synthetic=False)
        one.close(succeeded=True, patience=60)
    stored = sorted(path.parent.name for path in (tmp_path / "mlflow-artifacts").rglob("*") if path.is_file())
    assert stored == ["grid", "model"]


def test_no_telemetry_even_outside_pytest_and_ci(tmp_path):
    code = (
        "from medsynth.tracking import Tracker; import mlflow.telemetry.utils as u, json, os;"
        "print(json.dumps([os.environ['MLFLOW_DISABLE_TELEMETRY'], u.is_telemetry_disabled()]))"
    )
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "PYTEST_CURRENT_TEST", "MLFLOW_DISABLE_TELEMETRY")}
    out = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert json.loads(out.stdout.splitlines()[-1]) == ["true", True]


def test_numbers_of_a_model_stand_on_its_entry_and_a_table_is_no_second_one_when_sent_again(tmp_path):
    uri, weights = tracking_uri("", tmp_path), "a" * 64
    train = tracker(tmp_path, uri)
    train.model(weights)
    train.close(succeeded=True, patience=60)
    for _ in range(2):
        one = tracker(tmp_path, uri, stage="evaluate")
        one.metrics({"kid/random_convolution": 0.25}, model=weights)
        one.table("scores", [{"name": "kid", "value": 0.25, "reason": ""}, {"name": "mmd", "value": None, "reason": "too few"}])
        one.close(succeeded=True, patience=60)
    store = client(uri)
    (model,) = store.search_logged_models([store.get_experiment_by_name("medsynth").experiment_id])
    assert model.tags["medsynth.weights"] == weights
    assert model.status == "READY"
    assert {(metric.key, metric.value) for metric in model.metrics} == {("kid/random_convolution", 0.25)}
    (table,) = (tmp_path / "mlflow-artifacts").rglob("scores.json")
    assert json.loads(table.read_text())["data"] == [["kid", 0.25, ""], ["mmd", None, "too few"]]


def test_the_registry_names_a_model_only_after_its_audit_passed(tmp_path):
    uri = tracking_uri("", tmp_path)
    refused = tracker(tmp_path, uri, stage="report", audited=False)
    refused.alias("a" * 64, "candidate")
    refused.close(succeeded=True, patience=60)
    assert not client(uri).search_registered_models()
    for weights, stage, alias in (("a", "report", "candidate"), ("a", "release", "champion"), ("b", "report", "candidate")):
        one = tracker(tmp_path, uri, stage=stage, audited=True)
        one.alias(weights * 64, alias)
        one.close(succeeded=True, patience=60)
    named = {alias: client(uri).get_model_version_by_alias("ct", alias) for alias in ("candidate", "champion")}
    assert {alias: version.tags["medsynth.weights"] for alias, version in named.items()} == {"candidate": "b" * 64, "champion": "a" * 64}
    assert len(client(uri).search_model_versions("name = 'ct'")) == 2
