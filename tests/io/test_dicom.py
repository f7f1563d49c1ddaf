import os
import random
import zlib
from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_file_meta_info
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from medsynth.errors import UnreadableImage
from medsynth.io import dicom
from medsynth.volume import Geometry
from tests.make_dicom import AXIAL, CORONAL, OBLIQUE, SAGITTAL, coloured, enhanced, ramp_error, save, slices, store, stored


def found(folder: Path) -> tuple[list[dicom.Stack], dict[str, int]]:
    """Stacks of a folder, and the number of files refused by code."""
    scan = dicom.scan(folder)
    stacks, refusals = dicom.stacks(scan.headers, scan.refusals)
    codes: dict[str, int] = {}
    for refusal in (*scan.refusals, *refusals):
        codes[refusal.code] = codes.get(refusal.code, 0) + len(refusal.files)
        assert refusal.code in dicom.REASONS
    assert scan.files == sum(len(stack.files) for stack in stacks) + sum(codes.values()) + scan.other, (
        "a file is accounted for twice or never"
    )
    return stacks, codes


def only(folder: Path) -> dicom.Stack:
    stacks, codes = found(folder)
    assert len(stacks) == 1, codes
    assert not codes
    return stacks[0]


# ------------------------------------------------------------------------------------------------------------------ geometry


@pytest.mark.parametrize("orientation", [AXIAL, CORONAL, SAGITTAL, OBLIQUE], ids=["axial", "coronal", "sagittal", "oblique"])
def test_every_voxel_lies_where_its_header_says(tmp_path, orientation):
    save(slices(orientation=orientation), tmp_path)
    stack = only(tmp_path)
    volume = dicom.read_series(stack.files)
    assert volume.array.shape == (1, 10, 12, 8)
    assert volume.array.dtype == np.float32
    assert ramp_error(volume) <= 0.51
    assert stack.geometry.spacing == pytest.approx((1.0, 1.5, 2.0), abs=1e-6)
    assert volume.geometry.is_close(stack.geometry)


def _no_number(data: Dataset, number: int) -> None:
    del data.InstanceNumber


def _reversed_number(data: Dataset, number: int) -> None:
    data.InstanceNumber = 100 - number


def _equal_number(data: Dataset, number: int) -> None:
    data.InstanceNumber = 1


@pytest.mark.parametrize("edit", [_no_number, _reversed_number, _equal_number])
def test_order_comes_from_positions_not_from_names_or_numbers(tmp_path, edit):
    series = slices()
    for number, data in enumerate(series):
        edit(data, number)
    order = random.Random(1).sample(range(8), 8)
    save(series, tmp_path, name=lambda number: f"{order[number]}/file {order[number]}.jpg")
    assert ramp_error(dicom.read_series(only(tmp_path).files)) <= 0.51


def test_the_order_of_the_files_given_does_not_matter(tmp_path):
    files = save(slices(orientation=OBLIQUE), tmp_path)
    one, other = dicom.read_series(files), dicom.read_series(files[::-1])
    assert np.array_equal(one.array, other.array)
    assert np.array_equal(one.affine, other.affine)


def test_rounded_positions_of_a_long_oblique_stack_do_not_add_up(tmp_path):
    series = slices(60, orientation=OBLIQUE, gap=0.7)
    for data in series:
        data.ImagePositionPatient = [f"{float(v):.3f}" for v in data.ImagePositionPatient]
    save(series, tmp_path)
    assert ramp_error(dicom.read_series(only(tmp_path).files)) <= 0.6


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (lambda s: s.pop(4), "missing-slice"),
        (lambda s: [s.pop(4), s.pop(4)], "missing-slice"),
        (lambda s: [s.pop(1), s.pop(2), s.pop(3)], "missing-slice"),
        (lambda s: setattr(s[3], "ImagePositionPatient", [-10, -20, 11.3]), "uneven-spacing"),
        (lambda s: setattr(s[3], "ImagePositionPatient", [-9, -20, 11]), "uneven-spacing"),
        (lambda s: setattr(s[3], "ImagePositionPatient", s[2].ImagePositionPatient), "duplicate-position"),
        (lambda s: setattr(s[3], "SOPInstanceUID", s[2].SOPInstanceUID), "duplicate-instance"),
        (lambda s: s.extend(slices(8, series="1.2.3.4.5", PatientID="P-0002")), "mixed-subject"),
        (lambda s: [setattr(d, "EchoNumbers", 1 + (d is s[7])) for d in s], "mixed-attribute"),
        (lambda s: [setattr(d, "FrameOfReferenceUID", f"1.2.{1 + (d is s[7])}") for d in s], "mixed-frame"),
        (lambda s: setattr(s[3], "PixelSpacing", [1.5, 1.01]), "mixed-size"),
        (lambda s: [setattr(s[7], "Rows", 6), store(s[7], stored(s[6])[:6])], "mixed-size"),
        (lambda s: setattr(s[7], "ImageOrientationPatient", [0.9998, 0.02, 0, -0.02, 0.9998, 0]), "mixed-orientation"),
        (lambda s: s.__delitem__(slice(1, None)), "single-slice"),
        (lambda s: s[2].__delattr__("ImagePositionPatient"), "missing-geometry"),
        (lambda s: s[2].__delattr__("PixelSpacing"), "missing-geometry"),
        (lambda s: [d.__delattr__("ImageOrientationPatient") for d in s], "missing-geometry"),
        (lambda s: [setattr(d, "ImageOrientationPatient", [1, 0, 0, 1, 0, 0]) for d in s], "bad-geometry"),
        (lambda s: [setattr(d, "PixelSpacing", [0, 0]) for d in s], "bad-geometry"),
        (lambda s: [setattr(d, "ImagePositionPatient", ["1e30", "0", "0"]) for d in s], "bad-geometry"),
        (lambda s: [d.__delattr__("SeriesInstanceUID") for d in s], "missing-uid"),
        (lambda s: [setattr(d, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]) for d in s], "localizer"),
        (lambda s: setattr(s[2], "RescaleSlope", 2), "bad-rescale"),
        (lambda s: [setattr(d, "RescaleSlope", 0) for d in s], "bad-rescale"),
    ],
)  # fmt: skip
def test_a_damaged_series_is_refused_by_name_and_none_of_it_is_used(tmp_path, edit, code):
    series = slices()
    edit(series)
    files = save(series, tmp_path)
    stacks, codes = found(tmp_path)
    assert not stacks
    assert codes == {code: len(files)}
    with pytest.raises(UnreadableImage) as error:
        dicom.read_series(files)
    assert error.value.code == code


def test_a_tilted_gantry_is_refused_for_its_shear(tmp_path):
    files = save(slices(modality="CT", shear=(0, 2.0 * np.tan(np.radians(15)), 0)), tmp_path)
    assert found(tmp_path)[1] == {"gantry-tilt": len(files)}


def test_two_series_and_a_localizer_of_one_folder_stay_apart(tmp_path):
    save(slices(series="1.2.1"), tmp_path, name="a{}".format)
    save(slices(5, series="1.2.2", orientation=CORONAL), tmp_path, name="b{}".format)
    save(slices(3, series="1.2.3", gap=30, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), tmp_path, name="c{}".format)
    stacks, codes = found(tmp_path)
    assert [(stack.key, len(stack.files)) for stack in stacks] == [("1.2.1", 8), ("1.2.2", 5)]
    assert codes == {"localizer": 3}
    assert max(ramp_error(dicom.read_series(stack.files)) for stack in stacks) <= 0.51


@pytest.mark.parametrize("named", [True, False])
def test_a_localizer_inside_a_series_is_set_aside(tmp_path, named):
    scout = slices(1, orientation=SAGITTAL, shape=(20, 20))
    scout[0].SOPInstanceUID = "1.2.77"
    if named:
        scout[0].ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    save(slices() + scout, tmp_path)
    stacks, codes = found(tmp_path)
    assert [len(stack.files) for stack in stacks] == [8]
    assert codes == {"localizer" if named else "single-slice": 1}
    assert ramp_error(dicom.read_series(stacks[0].files)) <= 0.51


@pytest.mark.parametrize("attribute", ["EchoNumbers", "TemporalPositionIdentifier", "DiffusionBValue", "EchoTime", "AcquisitionNumber"])
def test_repeated_positions_are_split_by_the_attribute_that_differs(tmp_path, attribute):
    first, second = slices(), slices()
    for one, other in zip(first, second, strict=True):
        setattr(one, attribute, 1)
        setattr(other, attribute, 2)
        other.SOPInstanceUID += ".2"
        store(other, stored(other) + 1000)
    save(first + second, tmp_path)
    stacks, codes = found(tmp_path)
    assert not codes
    assert [stack.key for stack in stacks] == ["1.2.3.4.5", "1.2.3.4.5#2"]
    one, other = (dicom.read_series(stack.files) for stack in stacks)
    assert ramp_error(one) <= 0.51
    assert np.array_equal(other.array, one.array + 1000)


def test_a_time_point_that_lost_a_slice_at_its_end_is_not_shortened(tmp_path):
    second = slices(7, TemporalPositionIdentifier=2)
    for data in second:
        data.SOPInstanceUID += ".2"
    save(slices(8, TemporalPositionIdentifier=1) + second, tmp_path)
    assert found(tmp_path) == ([], {"uneven-stacks": 15})


def test_files_of_two_series_are_not_one_volume(tmp_path):
    files = save(slices(series="1.2.1"), tmp_path / "a") + save(slices(series="1.2.2", origin=(-10, -20, 21)), tmp_path / "b")
    with pytest.raises(UnreadableImage, match="more than one volume"):
        dicom.read_series(files)


# ------------------------------------------------------------------------------------------------------------------ pixels


@pytest.mark.parametrize(
    "syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian], ids=["implicit", "big", "deflated"]
)
def test_the_encoding_of_a_file_does_not_matter(tmp_path, syntax):
    series = slices()
    if syntax == ExplicitVRBigEndian:
        for data in series:
            data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
    save(series, tmp_path, syntax=syntax)
    assert ramp_error(dicom.read_series(only(tmp_path).files)) <= 0.51


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, "1.2.840.10008.1.2.1"], ids=["implicit", "explicit"])
def test_files_without_preamble_and_meta_are_read(tmp_path, syntax):
    save(slices(), tmp_path, meta=False, syntax=syntax)
    assert ramp_error(dicom.read_series(only(tmp_path).files)) <= 0.51


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless, JPEGLSLossless], ids=["rle", "j2k", "jpegls"])
def test_lossless_compression_changes_nothing(tmp_path, syntax):
    series = slices(3, shape=(64, 48))
    save(series, tmp_path)
    plain = dicom.read_series(only(tmp_path).files)
    for data in series:
        data.compress(syntax, generate_instance_uid=False)
    save(series, tmp_path, syntax=syntax)
    assert np.array_equal(dicom.read_series(only(tmp_path).files).array, plain.array)


@pytest.mark.parametrize(
    ("dtype", "bits", "offset"),
    [("u1", 8, 1900), ("u2", 12, 0), ("i2", 16, 5000), ("i2", 13, 2000), ("u4", 32, 0), ("i4", 32, 5000), ("i1", 8, 2000)],
)
def test_integers_of_any_width_and_sign_are_read(tmp_path, dtype, bits, offset):
    series = slices(4, spacing=(0.5, 0.5), origin=(0, 0, 0))
    for data in series:
        store(data, stored(data) - offset, dtype, bits)
        data.RescaleSlope, data.RescaleIntercept = 1, offset
    save(series, tmp_path)
    assert ramp_error(dicom.read_series(only(tmp_path).files)) <= 0.51


def test_rescale_of_large_integers_loses_nothing(tmp_path):
    series = slices(2, RescaleIntercept=-(2**19))
    for data in series:
        store(data, 2**24 + np.arange(120).reshape(12, 10), "u4")
    save(series, tmp_path)
    assert np.array_equal(dicom.read_series(only(tmp_path).files).array[0, :, :, 1].T, 2**24 - 2**19 + np.arange(120).reshape(12, 10))


def test_bits_above_those_stored_are_no_pixel_values(tmp_path):
    series = slices(4)
    for data in series:
        store(data, stored(data) + 0x8000, "u2", 12)  # an overlay bit
    save(series, tmp_path)
    assert ramp_error(dicom.read_series(only(tmp_path).files)) <= 0.51


def test_each_slice_is_rescaled_by_its_own_slope(tmp_path):
    series = slices()
    for number, data in enumerate(series):
        data.RescaleSlope, data.RescaleIntercept = 0.5 / (1 + number), 10 * number
        store(data, (stored(data) - 10 * number) * 2 * (1 + number))
    save(series, tmp_path)
    assert ramp_error(dicom.read_series(only(tmp_path).files)) <= 0.51


@pytest.mark.parametrize(("dtype", "top"), [("u2", 4095), ("i2", -1)])
def test_monochrome1_is_turned_about_the_middle_of_its_bits_before_rescale(tmp_path, dtype, top):
    series = slices(PhotometricInterpretation="MONOCHROME1", RescaleSlope=2, RescaleIntercept=1000)
    for data in series:
        store(data, top - (stored(data) - 1000) / 2, dtype, 12 if top > 0 else 16)
    save(series, tmp_path)
    assert ramp_error(dicom.read_series(only(tmp_path).files)) <= 1.01


def test_monochrome1_in_hounsfield_units_is_refused(tmp_path):
    save(slices(modality="CT", PhotometricInterpretation="MONOCHROME1"), tmp_path)
    assert found(tmp_path) == ([], {"inverted-units": 8})


def test_radiographs_of_one_series_are_images_of_one_slice(tmp_path):
    series = slices(2, modality="CR", ImagerPixelSpacing=[0.2, 0.1])
    for data in series:
        del data.ImagePositionPatient, data.ImageOrientationPatient, data.PixelSpacing
    save(series, tmp_path)
    stacks, codes = found(tmp_path)
    assert not codes
    assert [stack.geometry.shape for stack in stacks] == [(10, 12, 1)] * 2
    assert stacks[0].geometry.spacing == pytest.approx((0.1, 0.2, 1.0))
    assert np.array_equal(dicom.read_series(stacks[0].files).array[0, :, :, 0], stored(series[0]).T)


def test_an_enhanced_object_is_placed_by_its_functional_groups(tmp_path):
    save([enhanced()], tmp_path)
    stack = only(tmp_path)
    assert ramp_error(dicom.read_series(stack.files)) <= 0.51


def test_an_enhanced_object_with_a_frame_that_nobody_placed_is_refused(tmp_path):
    data = enhanced()
    del data.PerFrameFunctionalGroupsSequence[3].PlanePositionSequence
    save([data], tmp_path)
    assert found(tmp_path) == ([], {"enhanced-multiframe": 1})


# ---------------------------------------------------------------------------------------------------- hostile and broken files


def test_what_is_no_image_is_told_apart_from_what_is_broken(tmp_path):
    (good,) = save(slices(1, modality="CR"), tmp_path)
    whole = Path(good).read_bytes()
    (tmp_path / "notes.txt").write_text("DICOM " * 100)
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1" + bytes(200))
    (tmp_path / "empty.dcm").touch()
    (tmp_path / "cut in the pixels").write_bytes(whole[:-20])
    (tmp_path / "cut in the header").write_bytes(whole[:400])
    (tmp_path / "preamble alone").write_bytes(whole[:132])
    report = slices(1, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")[0]
    del report.PixelData, report.Rows
    save([report], tmp_path / "reports")
    save(coloured(slices(1, series="1.2.5")), tmp_path / "colour")
    lost = slices(1)[0]
    del lost.PixelData
    save([lost], tmp_path / "lost")
    mpeg = save(slices(1), tmp_path / "film")[0]
    Path(mpeg).write_bytes(Path(mpeg).read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0"))
    directory = slices(1, SOPClassUID="1.2.840.10008.1.3.10")
    save(directory, tmp_path, name=lambda _: "DICOMDIR")
    scan = dicom.scan(tmp_path)
    codes = {Path(refusal.key).relative_to(tmp_path.resolve()).as_posix(): refusal.code for refusal in scan.refusals}
    assert codes == {
        "empty.dcm": "empty-file",
        "cut in the pixels": "truncated",
        "cut in the header": "truncated",
        "preamble alone": "not-an-image",
        "reports/IM0000": "not-an-image",
        "lost/IM0000": "truncated",
        "film/IM0000": "unsupported-transfer-syntax",
    }
    assert scan.other == 3
    assert scan.files == 12
    stacks, refusals = dicom.stacks(scan.headers)
    assert [stack.files for stack in stacks] == [(str(Path(good).resolve()),)]
    assert [(refusal.code, Path(refusal.files[0]).parent.name) for refusal in refusals] == [("colour", "colour")]


def test_a_truncated_slice_refuses_the_file_and_so_the_series(tmp_path):
    files = save(slices(), tmp_path)
    Path(files[4]).write_bytes(Path(files[4]).read_bytes()[:-30])
    stacks, codes = found(tmp_path)
    assert not stacks
    assert codes == {"truncated": 1, "incomplete": 7}


def test_a_truncated_slice_at_the_end_does_not_shorten_the_series(tmp_path):
    files = save(slices(), tmp_path)
    Path(files[7]).write_bytes(Path(files[7]).read_bytes()[:-30])
    stacks, codes = found(tmp_path)
    assert not stacks
    assert codes == {"truncated": 1, "incomplete": 7}


def test_links_out_of_the_tree_pipes_and_loops_are_not_followed(tmp_path):
    save(slices(), tmp_path / "archive")
    save(slices(series="1.2.9"), tmp_path / "outside")
    root = tmp_path / "archive"
    (root / "out").symlink_to(tmp_path / "outside")
    (root / "out.dcm").symlink_to(tmp_path / "outside" / "IM0000")
    (root / "nowhere").symlink_to(tmp_path / "gone")
    (root / "again.dcm").symlink_to(root / "IM0000")
    (root / "loop").symlink_to(root)
    os.mkfifo(root / "pipe")
    stacks, codes = found(root)
    assert [len(stack.files) for stack in stacks] == [8]
    assert codes == {"link-outside": 3, "not-a-file": 1}


def _deflated(content: bytes) -> bytes:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    buffer = DicomBytesIO()
    write_file_meta_info(buffer, meta, enforce_standard=False)
    packer = zlib.compressobj(9, wbits=-15)
    return b"\0" * 128 + b"DICM" + buffer.getvalue() + packer.compress(content) + packer.flush()


def test_a_deflate_bomb_is_refused_before_it_expands(tmp_path, monkeypatch):
    import tracemalloc

    monkeypatch.setattr(dicom.files, "INFLATE_LIMIT", 2**20)
    path = tmp_path / "bomb"
    path.write_bytes(_deflated(bytes(2**27)))
    assert path.stat().st_size < 2**18
    tracemalloc.start()
    with pytest.raises(UnreadableImage) as error:
        dicom.read_headers(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.value.code == "too-large"
    assert peak < 2**23


def test_pixels_that_would_not_fit_are_refused_from_the_header(tmp_path):
    files = save(slices(1, Rows=65535, Columns=65535), tmp_path)
    assert found(tmp_path) == ([], {"too-large": 1})
    assert os.path.getsize(files[0]) < 4000


def test_a_codestream_larger_than_its_header_says_is_not_decoded(tmp_path, monkeypatch):
    series = slices(2, shape=(64, 48))
    save(series, tmp_path)
    for data in series:
        data.compress(JPEG2000Lossless, generate_instance_uid=False)
        at = data.PixelData.index(b"\xff\x4f\xff\x51")
        data.PixelData = data.PixelData[: at + 8] + (60000).to_bytes(4, "big") * 2 + data.PixelData[at + 16 :]
    files = save(series, tmp_path, syntax=JPEG2000Lossless)
    monkeypatch.setattr(Dataset, "pixel_array", property(lambda data: pytest.fail("decoded")))
    with pytest.raises(UnreadableImage) as error:
        dicom.read_series(files)
    assert error.value.code == "undecodable"


def test_sequences_nested_without_end_are_one_unreadable_file(tmp_path):
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff"
    sequence = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff"
    (tmp_path / "deep").write_bytes(b"\0" * 128 + b"DICM" + (sequence + item) * 3000)
    assert found(tmp_path) == ([], {"unreadable": 1})


def test_mutated_files_are_read_or_refused_and_nothing_else(tmp_path):
    series = [enhanced(3), *slices(1, RescaleSlope=1, RescaleIntercept=0)]
    originals = [Path(path).read_bytes() for path in save(series, tmp_path)]
    chance = random.Random(3)
    target = tmp_path / "mutant"
    codes = set()
    for number in range(400):
        content = bytearray(originals[number % 2])
        for _ in range(chance.randint(1, 8)):
            at = chance.randrange(128, len(content) - 200)
            content[at] = chance.randrange(256)
        target.write_bytes(content[: chance.choice([len(content), chance.randrange(140, len(content))])])
        try:
            headers = dicom.read_headers(target)
            if headers:
                stacks, _ = dicom.stacks(headers)
                for stack in stacks:
                    dicom.read_series(stack.files)
        except UnreadableImage as error:
            codes.add(error.code)
    assert codes <= set(dicom.REASONS)


def test_no_refusal_quotes_the_file(tmp_path, caplog, recwarn):
    for number, keyword in enumerate(["PatientName", "SeriesDescription", "Modality", "TransferSyntaxUID"]):
        data = slices(1, series=f"1.2.{number}")[0]
        if keyword in ("PatientName", "SeriesDescription"):
            setattr(data, keyword, "CANARY")
        save([data], tmp_path / "CANARY", name=f"CANARY{number}{{}}".format)
    path = save(slices(1, series="1.2.8", PatientName="CANARY", PatientAge="CANARY"), tmp_path, name="CANARY{}".format)[0]
    Path(path).write_bytes(Path(path).read_bytes().replace(b"DS", b"DA"))
    save(slices(1, series="1.2.7", StudyInstanceUID="CANARY/../.."), tmp_path, name="uid{}".format)
    recwarn.clear()  # of the writing above
    scan = dicom.scan(tmp_path, keywords=["PatientAge"])
    _, refusals = dicom.stacks(scan.headers)
    said = (
        " ".join(refusal.code + refusal.reason for refusal in (*scan.refusals, *refusals))
        + caplog.text
        + str([str(w.message) for w in recwarn])
    )
    assert "CANARY" not in said


def test_processes_find_what_one_process_finds(tmp_path, monkeypatch):
    save(slices(4) + slices(3, series="1.2.7"), tmp_path)
    monkeypatch.setattr(dicom.files, "WORTH_PROCESSES", 2)
    assert dicom.scan(tmp_path, workers=2) == dicom.scan(tmp_path, workers=1)


# ------------------------------------------------------------------------------------------------------------------ real files


@pytest.mark.real
def test_real_series_agree_with_an_independent_reader(shared_data):
    import SimpleITK as sitk

    folder = shared_data / "brain_mr_dicom"
    stacks, codes = found(folder)
    assert not codes
    assert sum(len(stack.files) for stack in stacks) == 326
    assert len(stacks) == 14
    for stack in stacks:
        volume = dicom.read_series(stack.files)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), stack.key))
        image = reader.Execute()
        affine = np.eye(4)
        affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
        other = Geometry(image.GetSize(), np.diag([-1, -1, 1, 1]) @ affine)
        assert np.abs(volume.affine - other.affine).max() <= 1e-4
        assert volume.geometry.is_close(other, 2e-4)  # corners: the mask's direction cosines are rounded to six digits
        assert np.array_equal(volume.array[0], sitk.GetArrayFromImage(image).transpose(2, 1, 0).astype(np.float32))
