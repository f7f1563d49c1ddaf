"""The story: seven stages that read files and write files.

Every stage is a module with ``work(run, folder)``. `perform` wraps it in the run's lock, its receipt and its
tracking. `STAGES` says which settings can change a stage's result and which earlier stages it reads: only these enter
its fingerprint.
"""

import importlib
import json
import logging
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from medsynth import config, distributed
from medsynth.cohort import sha256_of
from medsynth.config import Settings
from medsynth.errors import MedsynthError
from medsynth.io.pseudonyms import existing_key
from medsynth.receipt import RECEIPT, Receipt, locked, run_once
from medsynth.tracking import Tracker, tracking_uri

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """``settings`` are the blocks and settings in the fingerprint, less those in ``neutral``; ``rejecting`` are further ones where copies
    are rejected; ``objects`` the groups that are built; ``needs`` the stages that it reads, ``folders`` a setting that names folders
    whose weights it reads."""

    settings: tuple[str, ...]
    outputs: tuple[str, ...]
    needs: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    folders: str = ""
    neutral: tuple[str, ...] = ()
    grows: tuple[str, ...] = ()
    rejecting: tuple[str, ...] = ()
    whole: bool = False  # makes its folder by rename, or none at all
    aside: bool = False  # done when asked for, and by no ``run``
    anew: bool = False  # an unfinished attempt is thrown away, so it may have been another one: a wrong source.root


STAGES: Mapping[str, Stage] = {
    "prepare": Stage(
        settings=("run.seed", "source", "data"),
        neutral=("data.workers",),
        objects=("source",),
        outputs=("cohort.jsonl", "rejected.jsonl", "identifiers.json"),
        anew=True,
    ),
    "train": Stage(
        settings=("run.seed", "network", "process", "optimizer", "privacy", "train", "fit"),
        neutral=("fit.device_batch", "fit.preview_every", "fit.checkpoint_every"),
        grows=("fit.steps",),
        needs=("prepare",),
        objects=("network", "process", "optimizer", "privacy", "trainer", "schedule", "sampler", "guidance"),
        outputs=("denoiser/weights.safetensors", "denoiser/denoiser.yaml"),
    ),
    "sample": Stage(
        settings=("run.seed", "schedule", "sampler", "guidance", "sampling"),
        neutral=("sampling.batch", "sampling.processes"),
        rejecting=("audit", "check"),
        needs=("prepare", "train"),
        objects=("schedule", "sampler", "guidance", "check"),
        outputs=("cohort.jsonl",),
    ),
    "audit": Stage(
        settings=("run.seed", "audit", "check", "release.model"),  # what is to leave decides what has to pass
        needs=("prepare", "train", "sample"),
        objects=("check",),
        outputs=("findings.json", "looks.json"),
    ),
    "evaluate": Stage(
        settings=("run.seed", "evaluate", "metric"),
        needs=("prepare", "train", "sample"),
        folders="evaluate.weights",
        objects=("metric",),
        outputs=("metrics.json",),
    ),
    "utility": Stage(
        settings=("run.seed", "utility"),
        neutral=("utility.workers",),
        needs=("prepare", "train", "sample"),
        outputs=("utility.json",),
        aside=True,
    ),
    "sweep": Stage(
        settings=("run.seed", "schedule", "sampler", "guidance", "sampling.steps", "sweep"),
        needs=("prepare", "train"),
        objects=("schedule", "sampler", "guidance"),
        outputs=("sweep.json",),
        aside=True,
    ),
    "report": Stage(settings=(), needs=("prepare", "train", "sample", "audit", "evaluate"), outputs=("index.html", "report.json")),
    "release": Stage(
        settings=("release", "audit.level"),
        needs=("prepare", "train", "sample", "audit", "evaluate", "report"),
        outputs=("SHA256SUMS", "signature.json"),
        whole=True,
    ),
}
VERBS = tuple(verb for verb, stage in STAGES.items() if not stage.aside)


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a stage is given: the settings' values, the built objects by group, the run's folder and a tracker for this stage."""

    settings: Settings
    objects: Mapping[str, Any]  # "source", "network", ... as named by the groups; "check" and "metric" are mappings name -> object
    root: Path  # runs/<run.name>
    tracker: Tracker

    def folder(self, stage: str) -> Path:
        return self.root / stage


def perform(verb: str, cfg: DictConfig) -> Path:
    """Do one stage, or nothing if it is done already; returns its folder. ``run`` does all of them in order."""
    root = Path(cfg.paths.runs).expanduser() / cfg.run.name
    if distributed.rank() > 0:
        return _perform(verb, cfg, root)
    with locked(root):
        if verb != "run":
            return _perform(verb, cfg, root)
        for each in VERBS:
            folder = _perform(each, cfg, root)
        print(f"report:  {root / 'report' / 'index.html'}\nrelease: {folder}")
        return folder


def _perform(verb: str, cfg: DictConfig, root: Path) -> Path:
    stage, folder = STAGES[verb], root / verb
    planned = Receipt(
        stage=verb,
        settings=_fingerprinted(cfg, verb),
        inputs={need: _receipt(root, need).made for need in stage.needs} | _weights(cfg, stage.folders),
        outputs={},
    )
    leads = distributed.rank() == 0
    tracker: Tracker | None = None

    def work(folder: Path) -> None:
        nonlocal tracker
        objects = config.build(cfg, stage.objects)
        resolved = _write_resolved(cfg, root / "logs" / f"{verb}.yaml") if leads else None
        if resolved is not None and (command := _launcher(cfg, verb, resolved)):
            if subprocess.run(command, check=False).returncode != 0:
                raise MedsynthError(
                    f"{verb}: a process failed; its message stands above. Mend it and run the same command again: it resumes."
                )
            return
        tracker = rank_tracker(cfg, root, verb)
        entry: Callable[[Run, Path], None] = importlib.import_module(f"medsynth.stages.{verb}").work
        entry(Run(settings=config.values(cfg), objects=objects, root=root, tracker=tracker), folder)

    succeeded = False
    try:
        _, done = run_once(
            folder,
            planned,
            work,
            outputs=stage.outputs,
            grows=stage.grows,
            whole=stage.whole,
            anew=stage.anew,
            leads=leads,
            tracking_run=lambda: tracker.run_id if tracker else None,
            key=lambda: existing_key(cfg.paths.key),
        )
        succeeded = True
    finally:
        if tracker is not None:
            tracker.close(succeeded=succeeded)
    if leads:
        log.info("%s: %s", verb, folder if done else f"{folder} (already done)")
    return folder


def _fingerprinted(cfg: DictConfig, verb: str) -> dict[str, Any]:
    stage = STAGES[verb]
    names = stage.settings + (stage.rejecting if cfg.sampling.reject else ())
    return {name: value for name, value in config.flat(cfg, names).items() if name not in stage.neutral}


def _weights(cfg: DictConfig, setting: str) -> dict[str, str]:
    """What the folders of this setting hold, by their names: other weights under the same path are another input."""
    folders = [Path(folder).expanduser() for folder in OmegaConf.select(cfg, setting)] if setting else []
    if not folders:
        return {}
    from medsynth.pretrained import digest_of  # it brings networks along, which other stages need not wait for

    return {f"{setting} {folder.name}": digest_of(folder) for folder in folders}


def _receipt(root: Path, stage: str) -> Receipt:
    receipt = Receipt.read(root / stage / RECEIPT)
    if receipt is None:
        raise MedsynthError(f"{root / stage} is not finished. Run 'medsynth {stage}' first (or 'medsynth run' for all stages).")
    return receipt


class _Silent(Tracker):
    """The tracker of every process but the first."""

    run_id = None

    def __init__(self) -> None:
        self.audited = False

    def _append(self, record: Mapping[str, Any]) -> None: ...

    def close(self, *, succeeded: bool, patience: float = 0.0) -> None: ...


def rank_tracker(cfg: DictConfig, root: Path, verb: str) -> Tracker:
    """The tracker of this process: only the first one records."""
    if distributed.rank() > 0:
        return _Silent()
    tracker = Tracker(
        uri=tracking_uri(cfg.tracking.uri, Path(cfg.paths.runs).expanduser()),
        experiment=cfg.tracking.experiment,
        run_name=cfg.run.name,
        stage=verb,
        logs=root / "logs",
        audited=verb in ("report", "release") and passed(root),
    )
    tracker.parameters({**_fingerprinted(cfg, verb), "run.name": cfg.run.name})
    return tracker


def passed(root: Path) -> bool:
    """Whether the run's audit is finished and its verdict is "pass"."""
    findings = root / "audit" / "findings.json"
    return (root / "audit" / RECEIPT).is_file() and json.loads(findings.read_text(encoding="utf-8"))["verdict"] == "pass"


def weights_of(root: Path) -> str:
    """SHA-256 of the trained weights: what the tracked model is told by."""
    return sha256_of(root / "train" / "denoiser" / "weights.safetensors")


def _write_resolved(cfg: DictConfig, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(OmegaConf.to_yaml(cfg, resolve=True))
    return path


def _launcher(cfg: DictConfig, verb: str, resolved: Path) -> list[str] | None:
    """The torchrun command that shares a stage among several devices, unless torchrun or srun has started us already."""
    devices = OmegaConf.select(cfg, "trainer.devices")
    if distributed.launcher() or verb != "train" or not isinstance(devices, int) or devices < 2:
        return None
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}", "--max-restarts=3"]
    return [*run, "-m", "medsynth.worker", verb, str(resolved)]


def verb_function(verb: str) -> Callable[..., Path]:
    """``medsynth.train("run.name=ct", "fit.steps=100")``: the verb as a function of the same overrides."""

    def function(*overrides: str) -> Path:
        return perform(verb, config.compose(overrides))

    function.__name__ = verb
    function.__doc__ = f"Run ``medsynth {verb}`` with these Hydra overrides; returns the stage's folder."
    return function
