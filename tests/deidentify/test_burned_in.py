"""Text in pixels: how much of it is found, how often anatomy is taken for it, and what becomes of it."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from medsynth.audit.rates import clopper_pearson
from medsynth.data.sources.dicom_tree import DicomTree
from medsynth.deidentify import burned_in
from medsynth.deidentify.folder import deidentify
from medsynth.deidentify.image import Cleaner
from medsynth.errors import MedsynthError, UnreadableImage
from tests.make_dicom import save, slices, store
from tests.make_text import FONTS, SAID, burn, phantom

needs_tesseract = pytest.mark.skipif(not burned_in.is_installed(), reason="tesseract is not installed")


def written(seed: int, *, size: int, contrast: int, rim: bool = False) -> np.ndarray:
    side = (256, 512)[seed % 2]
    place = [(6, 6), (side // 4, side // 2), (8, side - 2 * size), (side // 3, 6)][seed % 4]
    return burn(phantom(side, seed, rim), SAID[seed % len(SAID)], size=size, contrast=contrast, place=place, font=FONTS[seed // 2 % 2])


@needs_tesseract
def test_text_is_found_where_it_stands():
    boxes = burned_in.find(burn(phantom(256, 0), "DOE^JANE 1970", size=16, contrast=150, place=(6, 6)))
    assert boxes
    assert min(box[1] for box in boxes) < 16
    assert min(box[0] for box in boxes) < 40


@pytest.mark.slow
@needs_tesseract
def test_text_is_masked_whole_though_only_a_part_is_read(tmp_path):
    data = slices(1, BodyPartExamined="KNEE")[0]
    data.Rows = data.Columns = 256
    burned = burn(phantom(256, 1), "DOE^JANE 1970", size=16, contrast=200, place=(6, 6))  # its number crosses a bright edge
    store(data, burned.astype(int))
    save([data], tmp_path / "in")
    (rejected,) = deidentify(tmp_path / "in", tmp_path / "reject", Cleaner(key=b"k" * 32))
    assert rejected.code == "burned-in-text"
    (kept,) = deidentify(tmp_path / "in", tmp_path / "mask", Cleaner(key=b"k" * 32, burned_in="mask"))
    clean = pydicom.dcmread(tmp_path / "mask" / kept.written)
    assert burned_in.find_in_frames(clean.pixel_array[None]) == []
    assert "113101" in [item.CodeValue for item in clean.DeidentificationMethodCodeSequence]
    text = burned != phantom(256, 1)
    assert (clean.pixel_array[text] == clean.pixel_array.min()).all()
    assert (clean.pixel_array != np.frombuffer(data.PixelData, "<u2").reshape(256, 256)).mean() < 0.1


def test_what_attributes_say():
    def said(**values: object) -> burned_in.Suspicion | None:
        data = Dataset()
        for keyword, value in values.items():
            setattr(data, keyword, value)
        return burned_in.suspicion(data)

    assert said(BurnedInAnnotation="YES").certain
    assert said(ImageType=["DERIVED", "SECONDARY", "SCREEN SAVE"]).certain
    assert said(ImageType="SCREEN SAVE").certain
    assert not said(Modality="US").certain
    assert not said(Modality="CT", ConversionType="SD").certain
    assert said(Modality="CT", ImageType=["ORIGINAL", "PRIMARY"]) is None


@needs_tesseract
def test_text_that_is_said_to_be_there_and_is_not_found_is_not_declared_gone(tmp_path):
    save(slices(1, shape=(64, 64), BodyPartExamined="KNEE", BurnedInAnnotation="YES"), tmp_path / "in")
    (verdict,) = deidentify(tmp_path / "in", tmp_path / "out", Cleaner(key=b"k" * 32, burned_in="mask"))
    assert (verdict.verdict, verdict.code) == ("rejected", "burned-in-text")


def test_the_screen_around_ultrasound_regions_is_masked():
    data, region = Dataset(), Dataset()
    data.Rows, data.Columns = 100, 200
    region.RegionLocationMinX0, region.RegionLocationMinY0, region.RegionLocationMaxX1, region.RegionLocationMaxY1 = 20, 30, 179, 89
    data.SequenceOfUltrasoundRegions = [region]
    image = np.ones((1, 100, 200), np.uint8)
    image[0, 0, 0] = 0
    inside = np.zeros((100, 200), bool)
    inside[30:90, 20:180] = True
    assert np.array_equal(burned_in.masked(image, burned_in.outside_regions(data))[0] == 1, inside)


def test_without_tesseract_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(burned_in, "is_installed", lambda: False)
    with pytest.raises(MedsynthError, match="not installed"):
        burned_in.find(np.zeros((8, 8), np.uint8))
    save(slices(1, BodyPartExamined="KNEE"), tmp_path / "in")
    with pytest.raises(MedsynthError, match="needs tesseract"):
        deidentify(tmp_path / "in", tmp_path / "out", Cleaner(key=b"k" * 32, burned_in="mask"))
    (verdict,) = deidentify(tmp_path / "in", tmp_path / "out", Cleaner(key=b"k" * 32))
    assert verdict.verdict == "written"


@pytest.mark.slow
@pytest.mark.timeout(1400)
@needs_tesseract
def test_recall_and_false_alarms(capsys):
    """Of text of ten pixels and more at a contrast of 80 of 255 and more that crosses no bright edge, the bound of recall is above 0.9."""

    def found(pictures: list[np.ndarray]) -> tuple[int, int]:
        with ThreadPoolExecutor(2) as pool:
            return sum(map(bool, pool.map(burned_in.find, pictures))), len(pictures)

    cells = [(size, contrast) for size in (10, 14, 20, 28) for contrast in (80, 160)]
    measured = {
        "text": found([written(100 + n, size=size, contrast=contrast) for size, contrast in cells for n in range(10)]),
        "text across a bright edge": found([written(200 + n, size=20, contrast=120, rim=True) for n in range(24)]),
        "text at a contrast of 40": found([written(300 + n, size=14, contrast=40) for n in range(24)]),
        "text of 8 pixels": found([written(400 + n, size=8, contrast=120) for n in range(24)]),
        "no text": found([phantom((256, 512)[n % 2], 500 + n) for n in range(60)]),
    }
    with capsys.disabled():
        for what, (hits, count) in measured.items():
            low, high = clopper_pearson(hits, count)
            print(f"\n| {what} | {hits} of {count} | {low:.2f} to {high:.2f} |", end="")
    assert clopper_pearson(*measured["text"])[0] >= 0.9
    assert clopper_pearson(*measured["no text"])[0] <= 0.02


@pytest.mark.slow
@pytest.mark.parametrize(("setting", "left"), [("keep", True), ("reject", None), ("mask", False)])
@needs_tesseract
def test_prepare_keeps_rejects_or_masks_text_by_setting(tmp_path, setting, left):
    found = slices(3, shape=(256, 256), BodyPartExamined="KNEE")
    for data in found:
        store(data, burn(phantom(256, 2), "DOE^JANE 1970", size=18, contrast=200, place=(6, 6)).astype(int))
    save(found, tmp_path / "in")
    source = DicomTree(root=str(tmp_path / "in"), licence="", terms="", burned_in=setting)
    (item,) = source.scan(workers=1).items
    if left is None:
        with pytest.raises(UnreadableImage, match="Text is seen"):
            source.open(item)
    else:
        assert bool(burned_in.find_in_frames(source.open(item).array[0].transpose(2, 1, 0))) == left


def test_prepare_rejects_by_what_attributes_say(tmp_path):
    for number, values in enumerate([{"BurnedInAnnotation": "YES"}, {"StudyDescription": "MR brain"}, {"BodyPartExamined": "KNEE"}]):
        save(slices(3, series=f"1.2.3.{number}.1", **values), tmp_path / "in" / str(number))
    source = DicomTree(root=str(tmp_path / "in"), licence="", terms="", burned_in="reject", faces="reject")
    scan = source.scan(workers=1)
    assert sorted(rejected.code for rejected in scan.rejected) == ["burned-in-text", "face"]
    assert len(scan.items) == 1
