"""The whole chain, run once a session through the command line, as small as it can be; tests of its parts work on copies of it."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from medsynth.audit.ledger import LEDGER

ROOT = Path(__file__).parents[2]
PATIENTS = 70  # 21 of them held out, where level demo asks for 24: the verdict is doubt, and the override does its part
CHECKS = ("audit", "evaluate", "report", "release")
TINY = (
    "experiment=phantom_2d",
    f"source.patients={PATIENTS}",
    "source.size=32",
    "source.slices=6",
    "data.size=[16,16]",
    "data.spacing=[16.25,16.25,8.0]",
    "network.channels=[8,16]",
    "network.attention_levels=[false,true]",
    "network.head_channels=8",
    "network.norm_groups=4",
    "fit.steps=60",
    "fit.global_batch=8",
    "fit.warmup=5",
    "fit.ema_halflife=10",
    "fit.validate_every=30",
    "fit.checkpoint_every=60",
    "fit.preview_every=60",
    "sampling.cases=60",
    "sampling.steps=4",
    "evaluate.subsamples=10",
    "evaluate.permutations=19",
)
OVERRIDE = "release.override='sixty steps make no model; a test of the way out'"


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A run and how to go on with it. ``folder`` holds the hospital, the key lies beside ``runs``, and ``first`` is the command that made
    it."""

    folder: Path
    runs: Path
    name: str
    first: subprocess.CompletedProcess

    @property
    def root(self) -> Path:
        return self.runs / self.name

    @property
    def key(self) -> Path:
        return self.runs.with_name("key")

    def settings(self, *overrides: str) -> list[str]:
        return settings(self.folder, self.runs, self.name, *overrides)

    def medsynth(self, verb: str, *overrides: str, **options: object) -> subprocess.CompletedProcess:
        return medsynth(verb, *self.settings(*overrides), **options)

    def copied(self, runs: Path, *without: str) -> "Chain":
        """The same run in another place, without these stages; with its tracking, its key and its ledger, which has a witness."""
        copy = replace(self, runs=runs)
        shutil.copytree(self.root, copy.root, ignore=lambda folder, names: without if Path(folder) == self.root else ())
        for path in (self.runs / "mlflow.db", self.runs / LEDGER, *self.key.parent.glob(f"{self.key.name}*")):
            shutil.copy(path, runs if path.parent == self.runs else runs.parent)
        return copy


def settings(folder: Path, runs: Path, name: str, *overrides: str) -> list[str]:
    """The tiny run's settings."""
    return [
        *TINY,
        f"run.name={name}",
        f"paths.runs={runs}",
        f"paths.key={runs.with_name('key')}",
        f"source.root={folder}/hospital",
        *overrides,
    ]


def medsynth(verb: str, *overrides: str, start: Sequence[str] = ("-m", "medsynth.cli"), **options: object) -> subprocess.CompletedProcess:
    """The command line in a process of its own."""
    command = [sys.executable, *start, verb, *overrides]
    options = {"env": os.environ | {"OMP_NUM_THREADS": "1"}} | options
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False, **options)


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """All seven stages; a written override lets the cohort leave, as what sixty steps make convinces no audit."""
    folder = tmp_path_factory.mktemp("chain")
    first = medsynth("run", *settings(folder, folder / "runs", "tiny", OVERRIDE))
    assert first.returncode == 0, first.stderr[-4000:]
    return Chain(folder=folder, runs=folder / "runs", name="tiny", first=first)


@pytest.fixture(scope="session")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One tracking database for the runs of many tests: making an empty one takes longer than most of them."""
    return f"tracking.uri=sqlite:///{tmp_path_factory.mktemp('tracked')}/mlflow.db"
