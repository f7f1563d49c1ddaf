"""A folder of NIfTI: subjects by name, masks that fit, tables that lie, files that bomb."""

import os
import struct

import nibabel as nib
import numpy as np
import pytest

from medsynth.data.sources.folder import Folder
from medsynth.data.transforms import scale_of, to_grid, to_model, to_stored
from medsynth.errors import MedsynthError, SettingsError, UnreadableImage
from medsynth.io.nifti import write

AFFINE = np.diag([1.0, 2.0, 3.0, 1.0])
SHAPE = (6, 5, 4)


def image(path, seed=0, affine=AFFINE, shape=SHAPE):
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, np.random.default_rng(seed).normal(size=shape), affine, integer=False)
    return path


def label_map(path, values=(0, 1, 2), affine=AFFINE, shape=SHAPE):
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, np.random.default_rng(1).choice(values, shape), affine, integer=False)
    return path


def source(root, **settings) -> Folder:
    return Folder(str(root), licence="CC0", terms="test", **settings)


def codes(scan) -> dict[str, str]:
    return {row.key: row.code for row in scan.rejected}


def test_images_find_their_masks_by_name_nested_or_not(tmp_path):
    image(tmp_path / "images/a.nii.gz")
    image(tmp_path / "images/deep/b.nii", seed=1)
    label_map(tmp_path / "labels/deep/b.nii")
    (tmp_path / "images/notes.txt").write_text("no image")
    (tmp_path / "images/._a.nii.gz").write_bytes(b"what macOS leaves beside a file")
    folder = source(tmp_path)
    scan = folder.scan(workers=1)
    assert [(item.key, item.subject, bool(item.mask)) for item in scan.items] == [
        ("a.nii.gz", "a.nii.gz", False),
        ("deep/b.nii", "deep/b.nii", True),
    ]
    assert (scan.files, scan.other, scan.rejected) == (5, 2, ())
    assert folder.unit == "image"
    volume = folder.open(scan.items[1])
    np.testing.assert_allclose(volume.array[0], np.random.default_rng(1).normal(size=SHAPE), atol=1e-6)
    np.testing.assert_array_equal(volume.mask, np.random.default_rng(1).choice((0, 1, 2), SHAPE))
    np.testing.assert_allclose(volume.affine, AFFINE)


def test_names_tell_the_subjects_of_bids_and_of_ones_own_pattern(tmp_path):
    for name in ("sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz"):
        image(tmp_path / name)
    image(tmp_path / "sub-02/func/sub-02_bold.nii.gz")
    image(tmp_path / "derivatives/sub-03_T1w.nii.gz")
    image(tmp_path / ".git/annex/sub-04_T1w.nii.gz")
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tsex\nsub-01\t34\tF\nsub-02\tn/a\tM\n")
    bids = source(tmp_path, images=".", masks="", files="*_T1w.nii.gz", table="participants.tsv")
    scan = bids.scan(workers=1)
    assert bids.unit == "subject"
    assert [item.subject for item in scan.items] == ["sub-01", "sub-01", "sub-02"]
    assert [dict(item.condition) for item in scan.items] == [{"age": 34.0, "sex": "F"}, {"age": 34.0, "sex": "F"}, {"sex": "M"}]
    own = source(tmp_path, images=".", masks="", files="*_T1w.nii.gz", subject_pattern=r"sub-(\d+)_")
    assert {item.subject for item in own.scan(workers=1).items} == {"01", "02"}


def test_where_one_name_tells_no_subject_claims_are_about_images(tmp_path):
    image(tmp_path / "images/sub-01.nii.gz")
    image(tmp_path / "images/other.nii.gz")
    assert source(tmp_path).unit == "image"
    assert [item.subject for item in source(tmp_path).scan(workers=1).items] == ["other.nii.gz", "sub-01"]


def test_a_table_gives_numbers_and_classes_and_withholds_what_tells_people_apart(tmp_path):
    rows = ["case,age,class,name"]
    for number in range(12):
        image(tmp_path / f"images/case_{number:02d}.nii", seed=number)
        rows.append(f"case_{number:02d},{20 + number},{'ab'[number % 2]},Smith {number}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    items = source(tmp_path, table="table.csv").scan(workers=1).items
    assert [dict(item.condition) for item in items] == [{"age": 20.0 + k, "class": "ab"[k % 2]} for k in range(12)]
    assert all(f"Smith {k}" in item.identifiers and item.key.removesuffix(".nii") in item.identifiers for k, item in enumerate(items))


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ("case,age\nSMITH,3\na,4\n", r"line 2: the first column \(case\) names no image"),
        ("case,age\na,3\na,4\n", "lines 2 and 3: two rows"),
        ("case,age\na,3,9\n", "line 2: it has not 2 cells"),
        ("", "is no table"),
    ],
)
def test_a_wrong_table_is_refused_by_line_and_without_its_values(tmp_path, table, says):
    image(tmp_path / "images/a.nii")
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(MedsynthError, match=says) as refused:
        source(tmp_path, table="t.csv").scan(workers=1)
    assert "SMITH" not in str(refused.value)


def test_what_cannot_be_used_is_rejected_with_its_code_and_stops_nothing(tmp_path):
    image(tmp_path / "images/good.nii.gz")
    label_map(tmp_path / "labels/alone.nii.gz")
    image(tmp_path / "images/shifted.nii.gz")
    label_map(tmp_path / "labels/shifted.nii.gz", affine=np.diag([1.0, 2.0, 3.3, 1.0]))
    image(tmp_path / "images/small.nii.gz")
    label_map(tmp_path / "labels/small.nii.gz", shape=(6, 5, 3))
    (tmp_path / "images/empty.nii").touch()
    bomb = image(tmp_path / "images/bomb.nii")
    data = bytearray(bomb.read_bytes())
    struct.pack_into("<3h", data, 42, 30000, 30000, 30000)
    bomb.write_bytes(data)
    os.mkfifo(tmp_path / "images/pipe.nii")
    (tmp_path / "images/gone.nii").symlink_to(tmp_path / "nowhere.nii")
    outside = image(tmp_path.parent / f"{tmp_path.name}_outside.nii")
    (tmp_path / "images/outside.nii").symlink_to(outside)
    (tmp_path / "images/inside.nii.gz").symlink_to(tmp_path / "images/good.nii.gz")
    scan = source(tmp_path).scan(workers=1)
    assert {item.key for item in scan.items} == {"good.nii.gz", "inside.nii.gz"}
    assert codes(scan) == {
        "labels/alone.nii.gz": "mask-without-image",
        "shifted.nii.gz": "mask-grid",
        "small.nii.gz": "mask-grid",
        "empty.nii": "truncated",
        "bomb.nii": "too-large",
        "pipe.nii": "not-a-file",
        "gone.nii": "not-a-file",
        "outside.nii": "link-outside",
    }
    assert scan.files == len(scan.items) + sum(row.files for row in scan.rejected) + scan.other
    assert not any(row.key.split(".")[0] in row.reason for row in scan.rejected)


@pytest.mark.parametrize(
    ("values", "code"), [((0, 1, 5), "unknown-label"), ((0, 0.5), "mask-values"), ((0, -1), "mask-values"), ((0, 300), "mask-values")]
)
def test_a_mask_that_holds_no_allowed_labels_is_refused_on_opening(tmp_path, values, code):
    image(tmp_path / "images/a.nii")
    label_map(tmp_path / "labels/a.nii", values)
    folder = source(tmp_path, labels=[1, 2])
    with pytest.raises(UnreadableImage) as refused:
        folder.open(folder.scan(workers=1).items[0])
    assert refused.value.code == code


def test_nan_voxels_are_refused_on_opening(tmp_path):
    array = np.zeros(SHAPE, np.float32)
    array[1, 1, 1] = np.nan
    (tmp_path / "images").mkdir()
    nib.save(nib.Nifti1Image(array, AFFINE), tmp_path / "images/a.nii.gz")
    folder = source(tmp_path)
    with pytest.raises(UnreadableImage) as refused:
        folder.open(folder.scan(workers=1).items[0])
    assert refused.value.code == "not-finite"


def test_free_text_of_headers_is_handed_over_as_identifiers(tmp_path):
    path = image(tmp_path / "images/ward7/a.nii")
    data = bytearray(path.read_bytes())
    data[148:158] = b"SMITH^JOHN"
    path.write_bytes(data)
    assert set(source(tmp_path).scan(workers=1).items[0].identifiers) == {"SMITH^JOHN", "a", "ward7"}


def test_missing_folders_and_tables_are_named_and_an_empty_folder_holds_nothing(tmp_path):
    with pytest.raises(SettingsError, match="nowhere is not a folder"):
        source(tmp_path / "nowhere").scan(workers=1)
    with pytest.raises(SettingsError, match=r"source\.images"):
        source(tmp_path).scan(workers=1)
    (tmp_path / "images").mkdir()
    assert source(tmp_path).scan(workers=1).items == ()
    (tmp_path / "images/readme.txt").write_text("nothing")
    scan = source(tmp_path).scan(workers=1)
    assert (scan.files, scan.other) == (1, 1)
    with pytest.raises(SettingsError, match=r"source\.table"):
        source(tmp_path, table="none.csv").scan(workers=1)
    image(tmp_path / "images/a.nii")
    with pytest.raises(SettingsError, match=r"source\.subject_pattern"):
        source(tmp_path, subject_pattern="(").scan(workers=1)
    (tmp_path / "images").mkdir(exist_ok=True)
    with pytest.raises(SettingsError, match="no folder 'lable'"):
        source(tmp_path, masks="lable").scan(workers=1)


@pytest.mark.real
def test_real_hippocampi_are_all_read_and_scaled_though_their_ranges_differ_by_ten_thousand(shared_data):
    folder = source(shared_data / "hippocampus_mr", labels=[1, 2])
    scan = folder.scan(workers=1)
    assert (len(scan.items), scan.rejected, folder.unit) == (200, (), "image")
    assert all(item.mask for item in scan.items)
    tops = []
    for item in scan.items:
        volume = folder.open(item)
        reference = nib.load(item.files[0])
        np.testing.assert_array_equal(volume.array[0], reference.get_fdata().astype(np.float32))
        np.testing.assert_allclose(volume.affine, reference.affine, atol=1e-5)
        tops.append(volume.array.max())
        array, mask = to_grid(volume, size=(16, 24, 16), spacing=(2.4, 2.4, 2.4))
        scale = scale_of(array)
        model = to_model(array, scale)
        assert 0.2 < model.std() < 0.8
        assert mask.any()
        back = to_stored(model, scale)
        inside = (array > scale[0]) & (array < scale[1])
        np.testing.assert_allclose(back[inside], array[inside], rtol=1e-4, atol=(scale[1] - scale[0]) * 1e-6)
    assert (min(tops) < 200, max(tops) > 1e6) == (True, True)
