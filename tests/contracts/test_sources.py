"""What every source promises, whatever it reads: each of conf/source, on a small archive made here."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from medsynth.data.source import Source
from medsynth.data.sources.dicom_tree import DicomTree
from medsynth.data.sources.folder import Folder
from medsynth.data.sources.medmnist import MedMNIST
from medsynth.data.sources.phantom import Phantom
from medsynth.data.transforms import placed, scale_of, to_model
from medsynth.io.nifti import read, write

TERMS = {"licence": "CC0-1.0", "terms": "made for a test"}
SMALL = {"patients": 4, "size": 16, "slices": 4}


def dicom_tree(root: Path) -> Source:
    Phantom(str(root / "archive"), **SMALL).write()
    return DicomTree(str(root / "archive"), **TERMS)


def folder(root: Path) -> Source:
    (root / "images").mkdir()
    (root / "labels").mkdir()
    rng = np.random.default_rng(0)
    for number in range(4):
        affine = np.diag([-1.0, 2.0, 3.0, 1.0]) + np.eye(4, k=3) * number
        write(root / f"images/sub-{number:02d}.nii.gz", rng.normal(size=(5, 6, 7)), affine, integer=False)
        write(root / f"labels/sub-{number:02d}.nii.gz", rng.integers(0, 3, (5, 6, 7)), affine, integer=True)
    return Folder(str(root), **TERMS)


def medmnist(root: Path) -> Source:
    rng = np.random.default_rng(0)
    np.savez(root / "a.npz", train_images=rng.integers(0, 256, (5, 9, 9), dtype=np.uint8), train_labels=np.array([[0], [1], [0], [1], [0]]))
    return MedMNIST(str(root), **TERMS)


def phantom(root: Path) -> Source:
    return Phantom(str(root / "archive"), **SMALL)


MADE: dict[str, Callable[[Path], Source]] = {"dicom_tree": dicom_tree, "folder": folder, "medmnist": medmnist, "phantom": phantom}
NAMES = sorted(path.stem for path in (Path(__file__).parents[2] / "conf/source").glob("*.yaml"))


@pytest.fixture(scope="module", params=NAMES)
def source(request, tmp_path_factory) -> Source:
    assert request.param in MADE, f"conf/source/{request.param}.yaml has no small archive in this test: add one to MADE"
    return MADE[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def scan(source):
    return source.scan(workers=1)


@pytest.mark.parametrize("name", NAMES)
def test_its_settings_name_the_class_that_the_test_makes(name, tmp_path):
    target = yaml.safe_load((Path(__file__).parents[2] / f"conf/source/{name}.yaml").read_text())["_target_"]
    made = type(MADE[name](tmp_path))
    assert target == f"{made.__module__}.{made.__qualname__}"


def test_keys_are_unique_and_every_file_is_accounted_for(source, scan):
    assert scan.items
    assert len({item.key for item in scan.items}) == len(scan.items)
    used = {file for item in scan.items for file in (*item.files, *item.mask)}
    assert scan.files == len(used) + sum(row.files for row in scan.rejected) + scan.other


def test_a_scan_is_repeatable_and_does_not_depend_on_the_number_of_processes(source, scan):
    assert source.scan(workers=1) == scan
    assert source.scan(workers=2) == scan


def test_it_says_what_it_is_about(source, scan):
    assert source.unit in ("subject", "image")
    assert source.licence
    assert source.terms
    assert all(item.subject and item.modality in ("CT", "MR", "DX", "OT") for item in scan.items)


def test_items_open_in_any_order_and_in_another_process(source, scan):
    elsewhere = pickle.loads(pickle.dumps(source))
    for item in reversed(scan.items):
        one, other = source.open(item), elsewhere.open(pickle.loads(pickle.dumps(item)))
        np.testing.assert_array_equal(one.array, other.array)
        np.testing.assert_array_equal(one.affine, other.affine)
        assert one.array.dtype == np.float32
        assert one.array.shape[0] == 1
        assert (one.mask is None) == (not item.mask)


def test_geometry_and_values_survive_a_round_trip_through_the_grid_and_nifti(source, scan, tmp_path):
    for item in scan.items:
        volume = source.open(item)
        array, mask, affine = placed(volume, size=(None, None, None), spacing=(1, 1, 1))
        write(tmp_path / "a.nii.gz", array, affine, integer=False)
        back, where, _ = read(tmp_path / "a.nii.gz")
        np.testing.assert_array_equal(back[0], array)
        np.testing.assert_allclose(where, affine, atol=1e-3)
        # each voxel's place in the world is the same before and after
        index = np.argwhere(volume.array[0] == volume.array[0].max())[0]
        world = volume.affine @ [*index, 1]
        found = np.rint(np.linalg.inv(affine) @ world)[:3].astype(int)
        assert array[tuple(found)] == volume.array.max()
        assert mask is None or sorted(mask.ravel()) == sorted(volume.mask.ravel())
        assert np.ptp(to_model(array, scale_of(array))) > 1
