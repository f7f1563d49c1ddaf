"""Bad input through the command line: a message that fits a screen, or a row in ``rejected.jsonl`` with its reason; nothing is lost."""

import gzip
import json
import zlib
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from medsynth import cli
from medsynth.errors import MedsynthError
from tests.make_dicom import save, slices
from tests.pipelines.conftest import medsynth

SCREEN = 24  # lines
GIB = 1 << 30
LIMITED = (  # the command line with so much address space
    "-c",
    f"import resource, sys; resource.setrlimit(resource.RLIMIT_AS, ({3 * GIB},) * 2); from medsynth.cli import main; sys.exit(main())",
)


@pytest.fixture
def prepare(tmp_path_factory: pytest.TempPathFactory, tracked: str):
    """`medsynth prepare` within this process, so that an exception which the command line lets through fails the test as it is."""
    place = tmp_path_factory.mktemp("run")

    def run(*overrides: str) -> tuple[int, Path]:
        return cli.main(["prepare", *run.settings, *overrides]), run.folder

    run.settings = [f"paths.runs={place}/runs", "run.name=bad", f"paths.key={place}/key", "data.workers=1", tracked]
    run.folder = place / "runs" / "bad" / "prepare"
    return run


def rejected(folder: Path) -> dict[str, int]:
    """Files by the code of their rejection."""
    rows = [json.loads(line) for line in (folder / "rejected.jsonl").read_text().splitlines()]
    assert all(row["reason"] for row in rows)
    return {code: sum(row["files"] for row in rows if row["code"] == code) for code in {row["code"] for row in rows}}


def assert_plain(text: str) -> None:
    assert "Traceback" not in text
    assert 0 < len([line for line in text.splitlines() if "it/s" not in line]) <= SCREEN


def nifti(path: Path, array: np.ndarray) -> bytes:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0])), path)
    return path.read_bytes()


def header(shape: tuple[int, ...], dtype: type) -> bytes:
    made = nib.Nifti1Header()
    made.set_data_dtype(dtype)
    made.set_data_shape(shape)
    made["magic"], made["vox_offset"] = b"n+1", 352
    return made.binaryblock + bytes(4)


def inflating(begin: bytes, megabytes: int) -> bytes:
    """A gzip stream of zeros that takes a thousandth of its size: one packed piece, repeated."""
    pack = zlib.compressobj(9, zlib.DEFLATED, 31)
    first = pack.compress(begin) + pack.flush(zlib.Z_FULL_FLUSH)
    piece = pack.compress(bytes(1 << 24)) + pack.flush(zlib.Z_FULL_FLUSH)
    return first + piece * (megabytes // 16)


def good_folder(root: Path, count: int = 6) -> np.random.Generator:
    """So many images with masks that are in order."""
    generator = np.random.default_rng(0)
    for k in range(count):
        nifti(root / "images" / f"good{k}.nii.gz", generator.normal(100, 20, (8, 8, 8)).astype(np.float32))
        nifti(root / "labels" / f"good{k}.nii.gz", generator.integers(0, 2, (8, 8, 8)).astype(np.uint8))
    return generator


# ------------------------------------------------------------------------------------------------------------------- nothing to read


@pytest.mark.parametrize("source", ["dicom_tree", "folder", "medmnist"])
def test_an_empty_folder_is_said_to_be_empty(source: str, prepare, tmp_path: Path, capsys):
    code, folder = prepare(f"source={source}", f"source.root={tmp_path}")
    told = capsys.readouterr().err
    assert code == 2
    assert str(tmp_path) in told
    assert_plain(told)
    assert not (folder / "receipt.json").exists()


@pytest.mark.parametrize("source", ["dicom_tree", "folder", "medmnist"])
def test_a_folder_without_images_is_counted(source: str, prepare, tmp_path: Path, capsys):
    (tmp_path / "images").mkdir()
    for name in ("images/readme.txt", "images/list.csv", "images/scan.pdf"):
        (tmp_path / name).write_text("not an image\n" * 40)
    code, _ = prepare(f"source={source}", f"source.root={tmp_path}")
    told = capsys.readouterr().err
    assert code == 2
    assert "holds nothing to train on: 3 files, of which 3 are no images." in told or source == "medmnist"
    assert_plain(told)


@pytest.mark.parametrize("source", ["dicom_tree", "folder", "medmnist"])
def test_a_root_that_is_not_there_is_named(source: str, prepare, tmp_path: Path, capsys):
    code, _ = prepare(f"source={source}", f"source.root={tmp_path}/nowhere")
    told = capsys.readouterr().err
    assert code == 2
    assert f"source.root={tmp_path}/nowhere" in told
    assert_plain(told)


def test_after_a_wrong_root_the_right_one_needs_no_cleaning_up(prepare, tmp_path: Path, capsys):
    good_folder(tmp_path / "right")
    (tmp_path / "wrong" / "images").mkdir(parents=True)
    assert prepare("source=folder", f"source.root={tmp_path}/wrong", "data.size=[8,8]")[0] == 2
    code, folder = prepare("source=folder", f"source.root={tmp_path}/right", "data.size=[8,8]")
    assert code == 0, capsys.readouterr().err
    assert (folder / "receipt.json").is_file()


def test_where_all_is_rejected_the_rows_are_kept(prepare, tmp_path: Path, capsys):
    (tmp_path / "cut.dcm").write_bytes(Path(save(slices(1), tmp_path / "whole")[0]).read_bytes()[:-40])
    (tmp_path / "whole" / "IM0000").unlink()
    code, folder = prepare("source=dicom_tree", f"source.root={tmp_path}")
    assert code == 2
    assert "rejected: 1 truncated" in capsys.readouterr().err
    assert rejected(folder) == {"truncated": 1}


# ------------------------------------------------------------------------------------------------------------------- some that is bad


def test_bad_dicom_files_and_series_are_rejected_and_the_others_prepared(prepare, tmp_path: Path, capsys):
    for k in range(6):
        save(slices(8, series=f"1.2.3.{k}", patient=f"P{k}"), tmp_path / f"good{k}")
    save(slices(1, series="1.2.4.1", patient="P6"), tmp_path / "one-slice")
    cut = Path(save(slices(8, series="1.2.4.2", patient="P7"), tmp_path / "cut")[3])
    cut.write_bytes(cut.read_bytes()[:-50])
    (tmp_path / "note.txt").write_text("no image")
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "noise.dcm").write_bytes(np.random.default_rng(0).bytes(3000))
    (tmp_path / "begins-like.dcm").write_bytes(bytes(128) + b"DICM" + bytes(range(256)) * 4)

    code, folder = prepare("source=dicom_tree", f"source.root={tmp_path}", "data.dims=3", "data.size=[8,8,8]")
    told = capsys.readouterr().err
    assert code == 0, told
    assert "Traceback" not in told
    found = rejected(folder)
    assert found == {"single-slice": 1, "truncated": 2, "incomplete": 7, "empty-file": 1}
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["cases"] == 6
    every = sum(path.is_file() for path in tmp_path.rglob("*"))
    assert summary["files"] == every == 6 * 8 + sum(found.values()) + summary["other_files"]
    assert not any(name in (folder / "rejected.jsonl").read_text() for name in ("P6", "P7", "one-slice", "1.2.4"))


def test_bad_nifti_files_are_rejected_and_the_others_prepared(prepare, tmp_path: Path, capsys):
    draw = good_folder(tmp_path)
    images, labels = tmp_path / "images", tmp_path / "labels"
    holed = draw.normal(100, 20, (8, 8, 8)).astype(np.float32)
    holed[3, 3, 3] = np.nan
    nifti(images / "nan.nii.gz", holed)
    nifti(images / "strange.nii.gz", np.nan_to_num(holed))
    nifti(labels / "strange.nii.gz", np.full((8, 8, 8), 7, np.uint8))
    nifti(labels / "alone.nii.gz", np.ones((8, 8, 8), np.uint8))
    (images / "cut.nii.gz").write_bytes((images / "good0.nii.gz").read_bytes()[:500])
    (images / "text.nii.gz").write_text("no image")
    (images / "text.nii").write_text("no image")
    (images / "empty.nii.gz").touch()
    (images / "declares.nii.gz").write_bytes(gzip.compress(header((4096, 4096, 4096), np.int16) + bytes(1000)))
    (images / "goes-on.nii.gz").write_bytes(inflating(header((8, 8, 8), np.uint8), 4096))

    code, folder = prepare("source=folder", f"source.root={tmp_path}", "data.dims=3", "data.size=[8,8,8]", "source.labels=[1]")
    told = capsys.readouterr().err
    assert code == 0, told
    assert "Traceback" not in told
    found = rejected(folder)
    assert found == {
        "not-finite": 1,
        "unknown-label": 2,
        "mask-without-image": 1,
        "truncated": 3,
        "damaged": 1,
        "too-large": 1,
        "constant": 1,
    }
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["cases"] == 6
    every = sum(path.is_file() for path in tmp_path.rglob("*"))
    assert summary["files"] == every == 6 * 2 + sum(found.values()) + summary["other_files"]


@pytest.mark.slow
def test_a_decompression_bomb_costs_neither_the_memory_nor_the_other_images(prepare, tmp_path: Path):
    """Kilobytes that declare or unpack to gigabytes, where there are three of them for everything."""
    good_folder(tmp_path)
    bombs = {
        "declares.nii.gz": gzip.compress(header((4096, 4096, 4096), np.int16) + bytes(1000)),
        "unpacks.nii.gz": inflating(header((780, 780, 780), np.uint8), 480),  # below source.max_bytes, but not below what there is
        "goes-on.nii.gz": inflating(header((8, 8, 8), np.uint8), 4096),
    }
    for name, data in bombs.items():
        (tmp_path / "images" / name).write_bytes(data)
        assert len(data) < 5e6
    done = medsynth(
        "prepare", *prepare.settings, "source=folder", f"source.root={tmp_path}", "data.size=[8,8]", "data.spacing=[2,2,2]", start=LIMITED
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert rejected(prepare.folder) == {"too-large": 1, "no-memory": 1, "constant": 1}
    assert len(set(json.loads(line)["subject"] for line in (prepare.folder / "cohort.jsonl").read_text().splitlines()[1:])) == 6


@pytest.mark.parametrize("error", [MemoryError(), BrokenProcessPool(), MedsynthError("All is well.")])
def test_want_of_memory_ends_in_one_message_wherever_it_comes(error: Exception, capsys):
    def settings():
        raise error

    assert cli._guarded("train", settings) == 2
    told = capsys.readouterr().err
    assert told.startswith("medsynth train: ")
    assert len(told.splitlines()) == 1
