"""Every command of the README is executed: the stages on a small folder of NIfTI, the make targets as far as make itself goes."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medsynth.io.nifti import write
from tests.make_cohort import blobs

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
COMMANDS = [line for block in BLOCKS for line in block.splitlines() if line.strip()]
OWN_DATA = [command for command in COMMANDS if "/data/mr" in command]
# Sizes for a test; what is tested is that the command is right.
SMALL = [
    "network=unet_tiny",
    "fit.global_batch=4",
    "sampling.steps=2",
    "evaluate.subsamples=8",
    "evaluate.permutations=9",
    "audit.level=demo",
]


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_readme_is_short_and_names_the_two_commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 200
    assert {"make demo", "make test"} <= set(COMMANDS)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("make ")])
def test_every_make_target_exists(command: str):
    out = run([*shlex.split(command), "--dry-run"], ROOT)
    assert out.returncode == 0, out.stderr


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("medsynth") and "=" not in c])
def test_commands_that_only_tell_answer(command: str):
    out = run([sys.executable, "-m", "medsynth.cli", *shlex.split(command)[1:]], ROOT)
    assert out.returncode == 0, out.stderr
    assert out.stdout


@pytest.mark.parametrize("command", [c for c in COMMANDS if "experiment=" in c])
def test_every_experiment_composes(command: str):
    from medsynth.config import compose

    compose(shlex.split(command)[2:])


def test_cohorts_of_other_generators_are_compared(tmp_path):
    for name, count in (("real", 24), ("gan", 10), ("diffusion", 12)):
        (tmp_path / name).mkdir()
        for number in range(count):
            image, _ = blobs((12, 12, 8), 0, f"{name} {number}")
            write(
                tmp_path / name / f"scan_{number:02d}.nii.gz", (image * 500 + 500).astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]), True
            )
    (command,) = (c for c in COMMANDS if "/data/gan" in c)
    out = run([sys.executable, "-m", "medsynth.cli", *shlex.split(command.replace("/data", str(tmp_path)))[1:], *SMALL[-3:-1]], tmp_path)
    assert out.returncode == 0, out.stderr
    assert "real against real" in out.stdout
    assert (tmp_path / "leaderboard" / "index.html").is_file()


@pytest.mark.slow
def test_your_own_data_in_five_lines(tmp_path):
    images = tmp_path / "mr" / "images"
    images.mkdir(parents=True)
    for number in range(30):
        image, _ = blobs((20, 20, 20), 0, str(number))
        write(images / f"scan_{number:02d}.nii.gz", (image * 500 + 500).astype(np.float32), np.diag([2.0, 2.0, 2.0, 1.0]), True)
    assert len(OWN_DATA) == 3
    for command in OWN_DATA:
        settings = shlex.split(command.replace("/data/mr", str(tmp_path / "mr")).replace("[32,32,32]", "[8,8,8]"))[1:]
        settings = [re.sub(r"^(fit\.steps|sampling\.cases)=.*", r"\1=12", s) for s in settings]
        out = run([sys.executable, "-m", "medsynth.cli", *settings, *SMALL, f"paths.key={tmp_path / 'key'}"], tmp_path)
        assert out.returncode in (0, 3), out.stderr  # 3: a dozen cases after a dozen steps prove nothing, so the release is refused
        assert "Traceback" not in out.stderr
    assert (tmp_path / "runs" / "mr" / "report" / "index.html").is_file()
    assert out.returncode == 3
