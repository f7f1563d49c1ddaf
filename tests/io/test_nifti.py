"""NIfTI in and out: bytes that repeat, values that survive, and hostile headers that cost nothing."""

import gzip
import struct
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import pytest

from medsynth.errors import UnreadableImage
from medsynth.io.nifti import read, read_header, write

AFFINE = np.array([[0.0, -2.0, 0.0, 7.0], [1.5, 0.0, 0.0, -3.0], [0.0, 0.0, 4.0, 11.0], [0.0, 0.0, 0.0, 1.0]])


def code_of(path, **settings) -> str:
    with pytest.raises(UnreadableImage) as refused:
        read(path, **settings)
    return refused.value.code


def peak() -> int:
    """The most bytes held at once since tracemalloc was started, which this ends."""
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


@pytest.fixture
def image(tmp_path):
    """A valid file whose raw bytes tests may spoil: header at 0, voxels at 352, float32."""
    path = tmp_path / "image.nii"
    write(path, np.arange(60, dtype=np.float32).reshape(3, 4, 5) + 0.5, AFFINE, integer=False)
    return path


def spoil(path, offset, form, *values):
    data = bytearray(path.read_bytes())
    struct.pack_into("<" + form, data, offset, *values)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("integer", [True, False])
def test_what_is_written_is_read_back_exactly(tmp_path, name, integer):
    rng = np.random.default_rng(0)
    array = rng.integers(-1000, 3000, (5, 6, 7)).astype(np.float32) if integer else rng.normal(size=(5, 6, 7)).astype(np.float32)
    write(tmp_path / name, array, AFFINE, integer)
    back, affine, whole = read(tmp_path / name)
    assert whole is integer
    assert back.shape == (1, 5, 6, 7)
    assert back.dtype == np.float32
    np.testing.assert_array_equal(back[0], array)
    np.testing.assert_allclose(affine, AFFINE, atol=1e-6)
    other = nib.load(tmp_path / name)  # another reader sees the same
    np.testing.assert_array_equal(other.get_fdata(), array)
    np.testing.assert_allclose(other.affine, AFFINE, atol=1e-6)
    np.testing.assert_allclose(other.get_qform(), AFFINE, atol=1e-5)
    assert other.get_data_dtype() == (np.int16 if integer else np.float32)


def test_same_voxels_give_the_same_bytes_wherever_and_whenever_they_are_written(tmp_path):
    array = np.random.default_rng(1).normal(size=(6, 6, 6))
    (tmp_path / "Smith_John").mkdir()
    write(tmp_path / "Smith_John" / "Smith.nii.gz", array, AFFINE, integer=False)
    write(tmp_path / "b.nii.gz", array, AFFINE, integer=False)
    one = (tmp_path / "Smith_John" / "Smith.nii.gz").read_bytes()
    assert one == (tmp_path / "b.nii.gz").read_bytes()
    assert one[3:8] == bytes(5)  # RFC 1952: no file name, no time
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Smith_John", "b.nii.gz"]  # nothing partial stays


def test_no_free_text_is_written(tmp_path):
    write(tmp_path / "a.nii", np.zeros((2, 2, 2)), AFFINE, integer=True)
    header = nib.load(tmp_path / "a.nii").header
    assert not header.extensions
    assert all(not bytes(header[field]).strip(b"\0") for field in ("descrip", "aux_file", "intent_name", "db_name"))


def test_whole_numbers_beyond_int16_stay_exact(tmp_path):
    array = np.array([0.0, 1.7e6, -40000.0, 65535.0]).reshape(2, 2, 1)
    write(tmp_path / "a.nii.gz", array, AFFINE, integer=True)
    np.testing.assert_array_equal(read(tmp_path / "a.nii.gz")[0][0], array)


def test_slope_and_intercept_are_applied(tmp_path):
    stored = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    image = nib.Nifti1Image(stored, AFFINE)
    image.header.set_slope_inter(0.25, -7.0)
    raw = tmp_path / "a.nii"
    nib.save(image, raw)
    spoil(raw, 112, "ff", 0.25, -7.0)  # nibabel rescales on writing: set what the header says, keep what is stored
    data = bytearray(raw.read_bytes())
    data[352:] = stored.tobytes(order="F")
    raw.write_bytes(data)
    array, _, whole = read(raw)
    np.testing.assert_array_equal(array[0], stored * 0.25 - 7)
    assert not whole


@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("dtype", [">i2", "<u1", "<f8", ">f4"])
def test_every_byte_order_and_both_versions_agree_with_nibabel(tmp_path, kind, dtype):
    array = np.random.default_rng(2).integers(0, 200, (4, 3, 2)).astype(dtype)
    image = kind(array, AFFINE, header=kind.header_class(endianness=dtype[0]))
    image.set_data_dtype(array.dtype)
    nib.save(image, tmp_path / "a.nii.gz")
    back, affine, _ = read(tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(back[0], nib.load(tmp_path / "a.nii.gz").get_fdata())
    np.testing.assert_allclose(affine, AFFINE, atol=1e-6)


def test_one_time_point_is_a_volume_and_two_are_refused(tmp_path):
    for count in (1, 2):
        nib.save(nib.Nifti1Image(np.ones((3, 3, 3, count), np.float32), AFFINE), tmp_path / f"{count}.nii.gz")
    assert read(tmp_path / "1.nii.gz")[0].shape == (1, 3, 3, 3)
    assert code_of(tmp_path / "2.nii.gz") == "several-frames"


def test_lengths_in_metres_or_microns_become_millimetres(image):
    spoil(image, 123, "B", 1)  # xyzt_units: metre; 1.5 "metres" are then too far apart, so shrink the axes
    data = nib.Nifti1Header(image.read_bytes()[:348], check=False)
    rows = np.stack([data[row] for row in ("srow_x", "srow_y", "srow_z")]) / 1000
    spoil(image, 280, "12f", *rows.ravel())
    np.testing.assert_allclose(read(image)[1], AFFINE, atol=1e-4)


def test_a_bomb_is_refused_from_its_header_alone(tmp_path):
    header = nib.Nifti1Header(endianness="<")
    header.set_data_dtype(np.float32)
    header["dim"] = [3, 30000, 30000, 30000, 1, 1, 1, 1]
    header["magic"], header["vox_offset"] = b"n+1", 352
    header.set_sform(np.eye(4), code=1)
    path = tmp_path / "bomb.nii.gz"
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + bytes(1 << 22)))
    tracemalloc.start()
    assert code_of(path) == "too-large"
    with pytest.raises(UnreadableImage, match=r"source\.max_bytes"):
        read_header(path)
    assert peak() < 10 << 20


def test_a_bomb_behind_a_modest_header_is_not_unpacked(tmp_path):
    image, packed = tmp_path / "image.nii", tmp_path / "tail.nii.gz"
    write(image, np.ones((20, 20, 20)), AFFINE, integer=False)
    with gzip.open(packed, "wb") as file:
        file.write(image.read_bytes())
        for _ in range(300):
            file.write(bytes(1 << 20))
    tracemalloc.start()
    assert read(packed)[0].shape == (1, 20, 20, 20)
    assert peak() < 10 << 20


def test_packed_members_one_after_the_other_are_one_file(image, tmp_path):
    data = image.read_bytes()
    (tmp_path / "two.nii.gz").write_bytes(gzip.compress(data[:400]) + gzip.compress(data[400:]))
    np.testing.assert_array_equal(read(tmp_path / "two.nii.gz")[0], read(image)[0])


@pytest.mark.parametrize(
    ("offset", "form", "values", "code"),
    [
        (352, "f", (np.nan,), "not-finite"),
        (356, "f", (np.inf,), "not-finite"),
        (280, "f", (np.nan,), "bad-geometry"),
        (280, "4f", (0.0, 0.0, 0.0, 0.0), "bad-geometry"),
        (280, "4f", (1e8, -2.0, 0.0, 7.0), "bad-geometry"),
        (280, "4f", (1.5, -2.0, 0.0, 7.0), "bad-geometry"),  # sheared
        (42, "h", (0,), "bad-geometry"),
        (42, "h", (-4,), "bad-geometry"),
        (40, "h", (99,), "not-nifti"),
        (70, "h", (128,), "not-scalar"),
        (70, "h", (32,), "not-scalar"),
        (70, "h", (77,), "not-nifti"),
        (108, "f", (1e9,), "not-nifti"),
        (108, "f", (np.nan,), "not-nifti"),
        (344, "3s", (b"abc",), "not-nifti"),
        (0, "i", (999,), "not-nifti"),
    ],
)
def test_each_lie_of_a_header_has_its_code(image, offset, form, values, code):
    assert code_of(spoil(image, offset, form, *values)) == code


@pytest.mark.parametrize("keep", [0, 100, 348, 352, 400])
def test_a_file_that_ends_early_is_truncated_packed_or_not(image, tmp_path, keep):
    data = image.read_bytes()[:keep]
    image.write_bytes(data)
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(data))
    assert code_of(image) == code_of(tmp_path / "a.nii.gz") == "truncated"


def test_a_flipped_bit_or_a_cut_in_packed_voxels_is_found(tmp_path):
    path = tmp_path / "a.nii.gz"
    write(path, np.random.default_rng(0).normal(size=(16, 16, 16)), AFFINE, integer=False)
    data = path.read_bytes()
    for place in range(400, len(data), 1500):
        path.write_bytes(data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :])
        assert code_of(path) in ("damaged", "truncated"), place
    path.write_bytes(data[: len(data) // 2])
    assert code_of(path) == "truncated"
    path.write_bytes(b"\x1f\x8bnonsense")
    assert code_of(path) == "damaged"


def test_spoilt_bytes_raise_only_our_error_and_no_message_quotes_the_file(image, tmp_path):
    data = image.read_bytes()
    rng = np.random.default_rng(3)
    path = tmp_path / "SMITH_JOHN.nii"
    refused = []
    for _ in range(1500):
        mutant = bytearray(data)
        for place in rng.integers(0, 352, rng.integers(1, 6)):
            mutant[place] = rng.integers(0, 256)
        mutant[148:158] = b"SMITH^JOHN"
        path.write_bytes(mutant)
        try:
            read(path, max_bytes=1 << 24)
        except UnreadableImage as error:
            refused.append(error)
    assert not any("SMITH" in str(error) or error.__cause__ for error in refused)
    seen = {error.code for error in refused}
    assert {"bad-geometry", "not-nifti"} <= seen


def test_free_text_of_a_header_is_reported_for_the_search_for_identifiers(image):
    spoil(image, 148, "10s", b"SMITH^JOHN")
    assert read_header(image).texts == ("SMITH^JOHN",)


def test_no_header_text_reaches_a_packed_stream(tmp_path):
    write(tmp_path / "a.nii.gz", np.zeros((4, 4, 4)), AFFINE, integer=True)
    assert zlib.decompress((tmp_path / "a.nii.gz").read_bytes(), 31)[148:228] == bytes(80)


def test_damage_that_makes_a_packed_file_longer_is_found(tmp_path):
    path = tmp_path / "image.nii.gz"
    write(path, np.zeros((4, 5, 6)), np.eye(4), True)
    content = gzip.decompress(path.read_bytes())
    longer = gzip.compress(content + bytes(200_000))
    path.write_bytes(longer)
    read(path)
    path.write_bytes(longer[:-8] + bytes(4) + longer[-4:])
    with pytest.raises(UnreadableImage) as caught:
        read(path)
    assert caught.value.code == "damaged"
