"""MLflow, behind one door: the only import of mlflow, and the list of what may leave the machine.

What may leave: settings (never a path), aggregate numbers, digests of cohorts; and, only after the audit has passed,
synthetic pictures and the model. No real pixel, path, name or header value has a way in: `Tracker` takes numbers,
settings and files that the caller declares synthetic.

Everything is first appended to a spool beside the run, which is the truth; a thread ships it. A tracking server that
is down costs no time and loses nothing: what could not be sent is sent when the next stage starts.
"""

import json
import logging
import os
import re
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

# Before mlflow is imported anywhere: it would send a first-run event. DO_NOT_TRACK=1 does not stop it, this does.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DO_NOT_TRACK"] = "true"
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")

log = logging.getLogger(__name__)

PRIVATE = (
    "source.root",
    "source.images",
    "source.masks",
    "source.table",
    "paths.",
    "evaluate.weights",
    "tracking.",
)  # settings that may quote a path or a secret
WEIGHTS = "medsynth.weights"  # the tag that tells a model: its weights' SHA-256


class Tracker:
    """Records one stage. Calls return at once; `close` waits a bounded time for the rest to be sent.

    ``spool`` is a JSON Lines file, ``uri`` an MLflow tracking URI, ``audited`` whether pictures and weights may leave the run folder.
    """

    def __init__(self, *, uri: str, experiment: str, run_name: str, stage: str, logs: Path, audited: bool) -> None:
        self.uri, self.experiment, self.run_name, self.stage, self.audited = uri, experiment, run_name, stage, audited
        self._spool = logs / f"{stage}.tracking.jsonl"
        self._state = logs / f"{stage}.tracking.json"
        self._parent = logs / "tracking.json"
        logs.mkdir(parents=True, exist_ok=True)
        self._file = self._spool.open("a", encoding="utf-8")
        self._wake, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._ship, name="tracking", daemon=True)
        self._thread.start()

    @property
    def run_id(self) -> str | None:
        """The MLflow run of this stage, once the server has given one."""
        return _json(self._state).get("run")

    def parameters(self, settings: Mapping[str, Any]) -> None:
        """Settings, flat. Paths and addresses are left out."""
        kept = {name: str(value)[:500] for name, value in settings.items() if not name.startswith(PRIVATE)}
        self._append({"kind": "parameters", "values": kept})

    def metrics(self, values: Mapping[str, float], step: int | None = None, *, model: str | None = None) -> None:
        """Aggregate numbers, of the ``model`` whose weights have this SHA-256 if they are about one. A value that is not finite is left
        out: MLflow stores infinity as 1.8e308."""
        finite = {name: float(value) for name, value in values.items() if value is not None and abs(float(value)) < float("inf")}
        if finite:
            self._append({"kind": "metrics", "values": finite, "step": step or 0, "time": int(time.time() * 1000), "model": model})

    def table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Aggregate numbers and words of ours, a row each, all with the same keys. At most one table a stage."""
        self._append({"kind": "table", "name": name, "columns": list(rows[0]), "data": [[row[name] for name in rows[0]] for row in rows]})

    def model(self, weights: str) -> None:
        """The model whose weights have this SHA-256: an entry that later numbers refer to, without the weights."""
        self._append({"kind": "model", "weights": weights})

    def alias(self, weights: str, alias: str) -> None:
        """Name that model's version in the registry, as ``candidate`` or ``champion``; after the audit has passed."""
        if self.audited:
            self._append({"kind": "alias", "weights": weights, "alias": alias})

    def dataset(self, name: str, digest: str, cases: int, context: str) -> None:
        """A cohort as the run's input or output: its digest and size, no manifest."""
        self._append({"kind": "dataset", "name": name, "digest": digest, "cases": cases, "context": context})

    def figure(self, name: str, png: Path, *, synthetic: bool) -> None:
        """A picture of synthetic cases. It leaves only after the audit has passed; one with real pixels never does."""
        if synthetic and self.audited:
            self._append({"kind": "artifact", "path": str(png), "to": f"figures/{name}"})

    def artifact(self, path: Path, to: str) -> None:
        """A file or folder made of synthetic data or of weights; after the audit has passed."""
        if self.audited:
            self._append({"kind": "artifact", "path": str(path), "to": to})

    def close(self, *, succeeded: bool, patience: float = 20.0) -> None:
        """Send the rest, at most ``patience`` seconds; what remains is kept and said in one line."""
        self._append({"kind": "end", "status": "FINISHED" if succeeded else "FAILED"})
        self._closing.set()
        self._wake.set()
        self._thread.join(patience)
        self._file.close()
        unsent = self._spool.stat().st_size - _json(self._state).get("offset", 0)
        if unsent > 0:
            log.warning("Tracking at %s did not answer; %d bytes of records are kept in %s and sent at the next run of this stage.",
                        self.uri.split("://")[0], unsent, self._spool)  # fmt: skip

    def _append(self, record: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        self._wake.set()

    def _ship(self) -> None:
        """The thread: read complete lines beyond the offset, send them, move the offset."""
        store: _Store | None = None
        while True:
            self._wake.wait(5.0)
            self._wake.clear()
            closing = self._closing.is_set()
            try:
                store = store or _Store(self)
                self._send_new(store)
            except Exception as error:  # whatever the server or the database does, training goes on: the spool holds the records
                log.debug("tracking is not reachable: %s", type(error).__name__)
                store = None
            if closing:
                return

    def _send_new(self, store: "_Store") -> None:
        state = _json(self._state)
        offset = state.get("offset", 0)
        with self._spool.open("rb") as file:
            file.seek(offset)
            data = file.read()
        complete = data[: data.rfind(b"\n") + 1]
        if not complete:
            return
        store.send([json.loads(line) for line in complete.splitlines()])
        _write_json(self._state, {"run": store.run, "offset": offset + len(complete)})


class _Store:
    """One MLflow run for a stage, a child of the run of ``run.name``. Ids are kept on disk, so a resumed stage continues its run."""

    def __init__(self, tracker: Tracker) -> None:
        import mlflow  # over a second: not before something is to be sent

        for name in ("alembic", "mlflow"):
            # it would log an outage with its whole traceback; `Tracker.close` says it in one line
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self.mlflow, self.client = mlflow, mlflow.MlflowClient(tracking_uri=tracker.uri)
        experiment = self.client.get_experiment_by_name(tracker.experiment)
        identity = experiment.experiment_id if experiment else self._create(tracker)
        parent = self._known(_json(tracker._parent).get("run"))
        if parent is None:
            parent = self.client.create_run(identity, run_name=tracker.run_name).info.run_id
            _write_json(tracker._parent, {"run": parent})
        self.experiment, self.name = identity, re.sub(r"[^A-Za-z0-9_-]+", "-", tracker.run_name)
        self.run = self._known(_json(tracker._state).get("run"))
        if self.run is None:
            tags = {"mlflow.parentRunId": parent, "medsynth.stage": tracker.stage}
            self.run = self.client.create_run(identity, run_name=f"{tracker.run_name}/{tracker.stage}", tags=tags).info.run_id
            _write_json(tracker._state, {"run": self.run, "offset": _json(tracker._state).get("offset", 0)})
        self.client.update_run(self.run, status="RUNNING")

    def _create(self, tracker: Tracker) -> str:
        local = tracker.uri.startswith("sqlite:///")
        folder = Path(tracker.uri.removeprefix("sqlite:///")).parent / "mlflow-artifacts" if local else None
        return self.client.create_experiment(tracker.experiment, artifact_location=folder.as_uri() if folder else None)

    def _known(self, run: str | None) -> str | None:
        """The run's id if this store has it: a run folder may have been moved to another tracking address."""
        from mlflow.exceptions import MlflowException

        try:
            return self.client.get_run(run).info.run_id if run else None
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise

    def send(self, records: list[dict]) -> None:
        from mlflow.entities import Metric, Param

        metrics: list[Metric] = []
        for record in records:
            match record["kind"]:
                case "metrics":
                    about = self._model(record["model"]).model_id if record.get("model") else None
                    metrics += [
                        Metric(_key(name), value, record["time"], record["step"], model_id=about)
                        for name, value in record["values"].items()
                    ]
                case "parameters":
                    known = self.client.get_run(self.run).data.params
                    # MLflow refuses to change a parameter: a continued stage logs only what is new
                    new = [Param(_key(name), value) for name, value in record["values"].items() if _key(name) not in known]
                    for start in range(0, len(new), 100):
                        self.client.log_batch(self.run, params=new[start : start + 100])
                case "dataset":
                    self._log_dataset(record)
                case "model":
                    self._model(record["weights"])
                case "alias":
                    self._name(record["weights"], record["alias"])
                case "table":
                    # not log_table, which appends: a record may be sent twice
                    path = f"tables/{record['name']}.json"
                    self.client.log_dict(self.run, {"columns": record["columns"], "data": record["data"]}, path)
                    self.client.set_tag(self.run, "mlflow.loggedArtifacts", json.dumps([{"path": path, "type": "table"}]))
                case "artifact":
                    path = Path(record["path"])
                    log_one = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
                    log_one(self.run, str(path), record["to"])
                case "end":
                    self._flush(metrics)
                    metrics = []
                    self.client.set_terminated(self.run, record["status"])
        self._flush(metrics)

    def _flush(self, metrics: list) -> None:
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(self.run, metrics=metrics[start : start + 1000])

    def _model(self, weights: str) -> Any:
        """The LoggedModel of these weights, which is made once."""
        found = self.client.search_logged_models([self.experiment], filter_string=f"tags.`{WEIGHTS}` = '{weights}'")
        if not found:
            model = self.client.create_logged_model(self.experiment, self.name, self.run, tags={WEIGHTS: weights}, model_type="diffusion")
            self.client.finalize_logged_model(model.model_id, "READY")
            return model
        return found[0]

    def _name(self, weights: str, alias: str) -> None:
        """Point ``alias`` of the registered model of ``run.name`` to the version of these weights."""
        if not self.client.search_registered_models(f"name = '{self.name}'"):
            self.client.create_registered_model(self.name)
        versions = self.client.search_model_versions(f"name = '{self.name}'")
        version = next((version for version in versions if version.tags.get(WEIGHTS) == weights), None)
        if version is None:
            model = self._model(weights)
            # not models:/ID, which MLflow 3.17 looks up at its global address instead of at this one
            version = self.client.create_model_version(
                self.name, model.artifact_location, self.run, tags={WEIGHTS: weights}, await_creation_for=0, model_id=model.model_id
            )
        self.client.set_registered_model_alias(self.name, alias, version.version)

    def _log_dataset(self, record: Mapping[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        profile = json.dumps({"cases": record["cases"]})
        dataset = Dataset(record["name"], record["digest"][:36], "medsynth-cohort", "{}", profile=profile)
        self.client.log_inputs(self.run, [DatasetInput(dataset, [InputTag("mlflow.data.context", record["context"])])])


def tracking_uri(uri: str, runs: Path) -> str:
    """The address as asked for, or the embedded SQLite store under ``runs``. (MLflow 3.17's file store raises.)"""
    return uri or f"sqlite:///{(runs / 'mlflow.db').resolve()}"


def _key(name: str) -> str:
    """MLflow's alphabet for names."""
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in name)


def _json(path: Path) -> dict:
    return json.loads(path.read_text()) if path.is_file() else {}


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content))
    partial.replace(path)
