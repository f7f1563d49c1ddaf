import re
import subprocess
import sys
from pathlib import Path

import pytest

from medsynth.cli import VERBS
from medsynth.config import OBJECTS, explained

ROOT = Path(__file__).parents[1]


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT, check=False, **options)


def test_help_names_verbs_experiments_and_examples_without_heavy_imports():
    out = run("-X", "importtime", "-m", "medsynth.cli", "--help")
    assert out.returncode == 0
    for expected in (*VERBS, "phantom_2d", "hippocampus_3d", "examples:"):
        assert expected in out.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in out.stderr.splitlines() if line.startswith("import time:")}
    assert not imported & {"torch", "monai", "lightning", "mlflow", "hydra", "numpy"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_of_its_own(verb: str):
    out = run("-m", "medsynth.cli", verb, "--help")
    assert out.returncode == 0, out.stderr
    assert VERBS[verb] in out.stdout
    assert "run.name=" in out.stdout


def test_a_verbs_help_tells_what_each_of_its_values_means():
    out = run("-m", "medsynth.cli", "train", "--help")
    for expected in (
        r"fit\.clip=1\.0 +gradient norm",
        r"fit\.device_batch=null +largest batch",
        r"network=\{unet_base, unet_small, unet_tiny\}",
    ):
        assert re.search(expected, out.stdout), expected
    assert [name for name, text in explained().items() if not text and name not in OBJECTS] == []


def test_help_of_a_chosen_object_tells_its_own_settings():
    out = run("-m", "medsynth.cli", "prepare", "source=folder", "source.root=/data/mr", "--help")
    assert out.returncode == 0, out.stderr
    for expected in (r"root=/data/mr +the folder that", r"licence=not stated +under", r"subject_pattern=sub-\S+ +searched"):
        assert len(re.findall(rf"source\.{expected}", out.stdout)) == 1, expected
    out = run("-m", "medsynth.cli", "evaluate", "metric=kid", "--help")
    assert "metric.kid.features=random_convolution" in out.stdout
    assert re.search(r"^  real= +real images", out.stdout, re.MULTILINE)
    out = run("-m", "medsynth.cli", "prepare", "source=foldr", "--help")
    assert (out.returncode, "Did you mean folder?" in out.stderr, "Traceback" in out.stderr) == (2, True, False)


def test_a_misspelt_verb_gets_the_nearest_one():
    out = run("-m", "medsynth.cli", "trian")
    assert out.returncode == 2
    assert "Did you mean train?" in out.stderr


@pytest.mark.parametrize("start", [["-m", "medsynth.cli", "train"], ["pipelines/train.py"]])
def test_mistakes_end_with_one_message_and_no_traceback(start: list[str], tmp_path):
    out = run(*start, "fit.stpes=3", "sampler=huen", f"paths.runs={tmp_path}")
    assert out.returncode != 0
    assert "fit.steps" in out.stderr
    assert "heun" in out.stderr
    assert "Traceback" not in out.stderr
    assert not list(tmp_path.iterdir())


def test_a_stage_whose_input_is_missing_names_the_stage_to_run(tmp_path):
    out = run("-m", "medsynth.cli", "train", f"paths.runs={tmp_path}")
    assert out.returncode == 2
    assert "medsynth prepare" in out.stderr
    assert "Traceback" not in out.stderr


def test_hydra_prints_the_composed_settings():
    out = run("-m", "medsynth.cli", "train", "--cfg", "job", "fit.steps=7")
    assert out.returncode == 0, out.stderr
    assert "steps: 7" in out.stdout
