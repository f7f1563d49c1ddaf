"""MedMNIST files: pictures the right way up, classes by name, no objects unpacked."""

import zipfile

import numpy as np
import pytest

from medsynth.data.sources.medmnist import MedMNIST
from medsynth.errors import MedsynthError, SettingsError


def arrays(count=4, shape=(5, 7), seed=0):
    rng = np.random.default_rng(seed)
    parts = {f"{part}_images": rng.integers(0, 256, (count, *shape), dtype=np.uint8) for part in ("train", "val", "test")}
    return parts | {f"{part}_labels": rng.integers(0, 2, (count, 1), dtype=np.uint8) for part in ("train", "val", "test")}


def source(path, **settings) -> MedMNIST:
    return MedMNIST(str(path), licence="CC0", terms="test", **settings)


def test_every_part_is_read_and_classes_have_their_names(tmp_path):
    made = arrays()
    np.savez(tmp_path / "a.npz", **made)
    scan = source(tmp_path / "a.npz", labels={0: "normal", 1: "pneumonia"}).scan(workers=1)
    assert len(scan.items) == len({item.key for item in scan.items}) == 12
    expected = np.concatenate([made[f"{part}_labels"].ravel() for part in ("train", "val", "test")])
    assert [item.condition["class"] for item in scan.items] == [("normal", "pneumonia")[k] for k in expected]
    assert {item.split for item in scan.items} == {None}
    assert {item.condition["class"] for item in source(tmp_path).scan(workers=1).items} == {"0", "1"}


def test_the_picture_stands_upright_in_space(tmp_path):
    made = arrays()
    np.savez(tmp_path / "a.npz", **made)
    medmnist = source(tmp_path)
    item = medmnist.scan(workers=1).items[1]
    volume = medmnist.open(item)
    picture = made["train_images"][1]
    assert volume.array.shape == (1, 7, 5, 1)
    for row, column in np.ndindex(picture.shape):
        assert volume.array[0, column, 5 - 1 - row, 0] == picture[row, column]
    np.testing.assert_array_equal(volume.array[0, :, :, 0].T[::-1], picture)  # drawn with y up
    assert volume.geometry.spacing == (1.0, 1.0, 1.0)


def test_an_image_that_occurs_twice_has_one_subject_so_it_never_stands_on_two_sides(tmp_path):
    made = arrays()
    made["test_images"][2] = made["train_images"][0]
    np.savez(tmp_path / "a.npz", **made)
    items = source(tmp_path).scan(workers=1).items
    assert items[0].subject == items[10].subject
    assert len({item.subject for item in items}) == 11


def test_an_unknown_class_is_rejected_and_the_rest_goes_on(tmp_path):
    made = arrays()
    made["val_labels"][1] = 7
    np.savez(tmp_path / "a.npz", **made)
    scan = source(tmp_path, labels={0: "a", 1: "b"}).scan(workers=1)
    assert [(row.key, row.code) for row in scan.rejected] == [("a.npz/val/1", "unknown-label")]
    assert len(scan.items) == 11


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({"train_images": np.array([{}], dtype=object), "train_labels": np.zeros(1)}, "objects"),
        (arrays(shape=(5, 7, 3)), "grey 2-D"),
        ({"x": np.zeros(3)}, "is no MedMNIST file"),
        (arrays() | {"train_labels": np.zeros((4, 14))}, "Several labels"),
        (arrays(count=400), "source.max_bytes"),
    ],
)
def test_files_that_are_not_what_they_should_be_are_refused_with_the_reason(tmp_path, made, says):
    np.savez_compressed(tmp_path / "a.npz", **made)
    with pytest.raises(MedsynthError, match=says):
        source(tmp_path, max_bytes=10_000).scan(workers=1)


def test_a_header_that_declares_gigabytes_costs_nothing(tmp_path):
    header = {"descr": "|u1", "fortran_order": False, "shape": (1 << 20, 1 << 10, 1 << 10)}
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("train_images.npy", "w") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(MedsynthError, match=r"source\.max_bytes"):
        source(tmp_path).scan(workers=1)


def test_damaged_and_missing_files_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", **arrays(count=1000))  # longer than what reading a header takes in
    data = (tmp_path / "a.npz").read_bytes()
    for cut in (10, len(data) // 2):
        (tmp_path / "a.npz").write_bytes(data[:cut])
        with pytest.raises(MedsynthError, match=r"no readable \.npz"):
            source(tmp_path).scan(workers=1)
    flipped = bytearray(data)
    flipped[data.index(b"train_images.npy") + 30_000] ^= 1
    (tmp_path / "a.npz").write_bytes(flipped)
    with pytest.raises(MedsynthError, match="Download it again"):
        source(tmp_path).scan(workers=1)
    with pytest.raises(SettingsError, match=r"source\.root"):
        source(tmp_path / "none").scan(workers=1)


def test_an_empty_folder_holds_nothing(tmp_path):
    (tmp_path / "readme.txt").write_text("nothing")
    scan = source(tmp_path).scan(workers=1)
    assert (scan.items, scan.files, scan.other) == ((), 1, 1)


@pytest.mark.real
def test_real_chest_radiographs_are_all_read_with_their_classes(shared_data):
    medmnist = source(shared_data / "chest_xray/pneumoniamnist.npz", labels={0: "normal", 1: "pneumonia"})
    scan = medmnist.scan(workers=1)
    assert len(scan.items) == 5030
    assert not scan.rejected
    share = np.mean([item.condition["class"] == "pneumonia" for item in scan.items])
    assert share == pytest.approx(0.8495, abs=1e-3)  # counted in the file's labels
    # a standing chest: dark lungs in the middle, a bright abdomen below
    mean = np.mean([medmnist.open(item).array[0, :, :, 0] for item in scan.items[:200]], axis=0)
    assert mean[:, :4].mean() > mean[:, 12:20].mean()
