"""A disk that is full or cannot be written: one message, and the same command goes on from there once the disk is mended.

Small file systems in memory stand for the disks; to mount one takes root.
"""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from medsynth import cli
from medsynth.receipt import RECEIPT, Receipt
from medsynth.stages import VERBS
from tests.pipelines.conftest import OVERRIDE, Chain
from tests.pipelines.test_bad_input import assert_plain, good_folder

FULL = "The disk is full. Free some space and run the same command again: finished work is kept."


def mount(*arguments: object) -> None:
    subprocess.run(["mount", *map(str, arguments)], check=True, capture_output=True, text=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An empty disk of 64 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        mount("-t", "tmpfs", "-o", "size=64m", "tmpfs", place)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here ({getattr(error, 'stderr', error)})")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)  # lazy: a connection to the tracking database may still be open


def fill(disk: Path, but: int) -> Path:
    """A file that leaves so many bytes."""
    state, ballast = os.statvfs(disk), disk / "ballast"
    ballast.write_bytes(bytes(state.f_bavail * state.f_frsize - but))
    return ballast


def test_preparing_on_a_full_disk_is_said_and_done_again(disk: Path, tmp_path: Path, tracked: str, capsys):
    good_folder(tmp_path / "source")
    where = [
        f"paths.runs={disk}",
        f"paths.key={tmp_path}/key",
        "source=folder",
        f"source.root={tmp_path}/source",
        "data.size=[8,8]",
        tracked,
    ]
    ballast = fill(disk, but=0)
    assert cli.main(["prepare", *where]) == 2
    told = capsys.readouterr().err
    assert "No space left on device" in told or FULL in told
    assert_plain(told)
    ballast.unlink()
    assert cli.main(["prepare", *where]) == 0, capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "left"), [("prepare", 60_000), ("train", 300_000), ("sample", 60_000), ("evaluate", 30_000), ("release", 60_000)]
)
def test_a_stage_on_a_full_disk_loses_nothing(chain: Chain, disk: Path, stage: str, left: int):
    """Once there is space it ends with the bytes that a run has which never met a full disk."""
    run = chain.copied(disk / "runs", *VERBS[VERBS.index(stage) :])
    ballast = fill(disk, but=left)
    stopped = run.medsynth(stage, OVERRIDE)
    assert stopped.returncode == 2, stopped.stderr[-4000:]
    assert f"\nmedsynth {stage}: {FULL}\n" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert Receipt.read(run.root / stage / RECEIPT) is None
    drawn = {path: path.stat().st_mtime_ns for path in (run.root / "sample" / "volumes").glob("*.nii.gz")}

    ballast.unlink()
    again = run.medsynth(stage, OVERRIDE)
    assert again.returncode == 0, again.stderr[-4000:]
    if stage in ("prepare", "train", "sample"):
        assert Receipt.read(run.root / stage / RECEIPT).outputs == Receipt.read(chain.root / stage / RECEIPT).outputs
    assert {path: path.stat().st_mtime_ns for path in drawn} == drawn
    assert drawn or stage in ("prepare", "train")


def test_a_read_only_run_folder_is_named(disk: Path, tmp_path: Path, capsys):
    good_folder(tmp_path / "source")
    (disk / "run").mkdir()
    mount("-o", "remount,ro", disk)
    where = [f"paths.runs={disk}", f"paths.key={tmp_path}/key", "source=folder", f"source.root={tmp_path}/source", "data.size=[8,8]"]
    assert cli.main(["prepare", *where]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"medsynth prepare: The run folder {disk}/run cannot be written (Read-only file system).")
    assert_plain(told)
    assert not list((disk / "run").iterdir())


@pytest.mark.parametrize("place", ["/proc/runs", "/dev/null", "/dev/null/runs"])
def test_a_place_that_no_folder_can_have_is_named(place: str, tmp_path: Path, capsys):
    good_folder(tmp_path)
    assert cli.main(["prepare", f"paths.runs={place}", f"paths.key={tmp_path}/key", "source=folder", f"source.root={tmp_path}"]) == 2
    told = capsys.readouterr().err
    assert f"The run folder {place}/run cannot be written" in told
    assert_plain(told)


@pytest.mark.parametrize("setting", ["paths.key", "source.root"])
def test_other_places_that_cannot_be_written_are_named(setting: str, tmp_path: Path, tracked: str, capsys):
    where = {"paths.runs": f"{tmp_path}/runs", "paths.key": f"{tmp_path}/key", "source.root": f"{tmp_path}/hospital"} | {
        setting: "/proc/here"
    }
    assert cli.main(["prepare", "source.patients=4", tracked, *(f"{name}={value}" for name, value in where.items())]) == 2
    told = capsys.readouterr().err
    assert setting in told
    assert "/proc/here" in told
    assert_plain(told)
