"""``python pipelines/VERB.py`` is the same as ``medsynth VERB``, as a program of Hydra's own."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from medsynth.cli import VERBS
from tests.pipelines.conftest import ROOT


def program(verb: str, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, str(ROOT / "pipelines" / f"{verb}.py"), *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )


def test_there_is_one_for_every_verb_and_they_differ_by_it_alone():
    texts = {path.stem: path.read_text() for path in (ROOT / "pipelines").glob("[a-z]*.py")}
    assert texts.keys() == VERBS.keys()
    assert {text.replace(f"medsynth {verb}", "").replace(f'"{verb}"', "") for verb, text in texts.items()} == {
        texts["train"].replace("medsynth train", "").replace('"train"', "")
    }


def test_it_prints_the_settings_as_they_are_composed(tmp_path: Path):
    told = program("train", "--cfg", "job", "fit.steps=7", "experiment=phantom_2d", cwd=tmp_path)
    assert told.returncode == 0, told.stderr
    settings = yaml.safe_load(told.stdout)
    assert settings["fit"]["steps"] == 7
    assert settings["audit"]["level"] == "demo"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["train", "release"])
def test_it_refuses_what_is_misspelt_and_names_the_nearest(verb: str, tmp_path: Path):
    told = program(verb, "fit.stpes=3", "samplr=heun", "sampling.cases=0", "source=folder", "source.tabel=x.csv", cwd=tmp_path)
    assert told.returncode != 0
    for nearest in ("Did you mean fit.steps?", "Did you mean sampler?", "Did you mean source.table?"):
        assert nearest in told.stderr
    assert "Traceback" not in told.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_it_refuses_what_is_missing_or_out_of_range_all_at_once(tmp_path: Path):
    told = program("sample", "sampling.cases=0", "data.size=[8]", "source=dicom_tree", "+sampler.eta=1", cwd=tmp_path)
    assert told.returncode != 0
    for mistake in (
        "sampling.cases=0: must be at least 1",
        "data.size=[8]: needs 2 numbers",
        "source.root: a value is missing",
        "sampler.eta",
    ):
        assert mistake in told.stderr
    assert "Traceback" not in told.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_refusal_of_the_stage_itself_is_the_exit_code(tmp_path: Path):
    told = program("train", f"paths.runs={tmp_path}", "run.name=none")
    assert told.returncode == 2
    assert "Run 'medsynth prepare' first" in told.stderr
    assert "Traceback" not in told.stderr
