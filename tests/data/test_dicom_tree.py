import itertools
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest

from medsynth.data.sources.dicom_tree import DicomTree, age_in_years
from medsynth.errors import SettingsError, UnreadableImage
from tests.make_dicom import OBLIQUE, ramp_error, save, slices, store, stored

CLASSES = {"T1": "T1", "T2": "T2", "FLAIR": "FLAIR"}
number = itertools.count()


def tree(root: Path, **settings: object) -> DicomTree:
    return DicomTree(root=str(root), licence="CC0", terms="none", **settings)


def put(root: Path, count: int = 4, **values: object) -> list[str]:
    """One more series, with UIDs of its own and study 1.2.3.4 unless told otherwise."""
    return save(slices(count, series=f"1.2.9.{next(number)}", **values), root / f"s{next(number)}")


def scanned(source: DicomTree):
    """The scan, with every file accounted for; rejections as code: files."""
    scan = source.scan(workers=1)
    codes: dict[str, int] = {}
    for rejected in scan.rejected:
        codes[rejected.code] = codes.get(rejected.code, 0) + rejected.files
    masks = {path for item in scan.items for path in item.mask}
    assert scan.files == sum(len(item.files) for item in scan.items) + len(masks) + sum(codes.values()) + scan.other
    assert len({item.key for item in scan.items}) == len(scan.items)
    return scan.items, codes


def test_demography_and_diagnosis_become_conditions(tmp_path):
    put(tmp_path, PatientAge="034Y", PatientSex="F", AdmittingDiagnosesDescription="Pneumonia", IssuerOfPatientID="H1")
    (item,), codes = scanned(tree(tmp_path))
    assert not codes
    assert item.condition == {"age": 34.0, "sex": "F", "diagnosis": "Pneumonia"}
    assert (item.subject, item.modality) == ("P-0001@H1", "MR")


def test_the_diagnosis_may_lie_in_another_attribute_or_in_none(tmp_path):
    put(tmp_path, AdmittingDiagnosesDescription="a", StudyDescription="b")
    assert scanned(tree(tmp_path, diagnosis_from="StudyDescription"))[0][0].condition == {"diagnosis": "b"}
    assert scanned(tree(tmp_path, diagnosis_from=""))[0][0].condition == {}


@pytest.mark.parametrize(
    ("values", "age"),
    [
        ({"PatientAge": "034Y"}, 34.0),
        ({"PatientAge": "006M"}, 0.5),
        ({"PatientAge": "026W"}, 0.5),
        ({"PatientAge": "101Y"}, 90.0),
        ({"PatientBirthDate": "19500615", "StudyDate": "20200614"}, 69.0),
        ({"PatientBirthDate": "19500615", "SeriesDate": "20200616"}, 70.0),
        ({"PatientBirthDate": "19000101", "StudyDate": "20000101"}, 90.0),
        ({"PatientBirthDate": "20210101", "StudyDate": "20200101"}, None),
        ({"PatientBirthDate": "19500000", "StudyDate": "20200101"}, None),
        ({"PatientBirthDate": "19500101"}, None),
        ({"PatientAge": "old"}, None),
        ({}, None),
    ],
)
def test_age_is_told_by_the_header_or_not_at_all(values, age):
    names = ("PatientAge", "PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate")
    assert age_in_years({name: values.get(name, "") for name in names}) == age


def test_the_class_is_what_exactly_one_pattern_tells(tmp_path):
    for text in ("ax t1 post", "FLAIR_reg", "T1 FLAIR", "DWI", ""):
        put(tmp_path, SeriesDescription=text)
    items, codes = scanned(tree(tmp_path, class_from="SeriesDescription", class_map=CLASSES))
    assert sorted(item.condition["class"] for item in items) == ["FLAIR", "T1"]
    assert codes == {"several-classes": 4, "no-class": 8}


def test_rules_that_cannot_be_applied_are_refused_with_their_names(tmp_path):
    with pytest.raises(SettingsError, match="class_map"):
        tree(tmp_path, class_from="SeriesDescription").scan(workers=1)
    with pytest.raises(SettingsError, match="SeriesDescripton"):
        tree(tmp_path, class_from="SeriesDescripton", class_map=CLASSES).scan(workers=1)
    with pytest.raises(SettingsError, match="regular expression"):
        tree(tmp_path, class_from="SeriesDescription", class_map={"a": "("}).scan(workers=1)


def test_unwanted_modalities_and_images_of_nobody_are_set_aside(tmp_path):
    put(tmp_path)
    put(tmp_path, modality="CT")
    put(tmp_path, patient="")
    items, codes = scanned(tree(tmp_path, modalities=["MR"]))
    assert len(items) == 1
    assert codes == {"modality": 4, "missing-subject": 4}


def mask(root: Path, values: np.ndarray | float = 1, **settings: object) -> list[str]:
    series = slices(4, series=f"1.2.9.{next(number)}", SeriesDescription="Mask_Tumor", **settings)
    for data in series:
        store(data, stored(data) * 0 + values)
        data.ImagePositionPatient = [f"{float(v) + 0.001:.3f}" for v in data.ImagePositionPatient]  # as another programme rounds
    return save(series, root / f"m{next(number)}")


def test_a_mask_joins_the_images_of_its_study_on_its_grid(tmp_path):
    put(tmp_path, SeriesDescription="T1")
    put(tmp_path, SeriesDescription="T2")
    put(tmp_path, SeriesDescription="T1", StudyInstanceUID="1.2.3.5")
    put(tmp_path, SeriesDescription="T2", gap=2.1)
    files = mask(tmp_path, np.arange(120).reshape(12, 10) % 3)
    source = tree(tmp_path, mask_series="^mask")
    items, codes = scanned(source)
    assert not codes
    assert sorted(len(item.mask) for item in items) == [0, 0, 4, 4]
    item = next(item for item in items if item.mask)
    assert set(item.mask) == {str(Path(path).resolve()) for path in files}
    volume = source.open(item)
    assert ramp_error(volume) <= 0.51
    assert volume.mask.dtype == np.uint8
    assert np.array_equal(volume.mask[:, :, 2], (np.arange(120).reshape(12, 10) % 3).T)


def test_masks_that_fit_nothing_or_compete_are_set_aside(tmp_path):
    put(tmp_path, SeriesDescription="T1")
    mask(tmp_path)
    mask(tmp_path)
    mask(tmp_path, gap=3.0)
    items, codes = scanned(tree(tmp_path, mask_series="Mask"))
    assert [len(item.mask) for item in items] == [0]
    assert codes == {"mask-unclear": 8, "mask-without-image": 4}


def test_a_mask_that_holds_no_labels_is_refused(tmp_path):
    put(tmp_path)
    mask(tmp_path, 300)
    source = tree(tmp_path, mask_series="Mask")
    (item,), _ = scanned(source)
    with pytest.raises(UnreadableImage) as error:
        source.open(item)
    assert error.value.code == "mask-values"


def segmentation(images: list[str], path: Path, labels: np.ndarray, **changes: object) -> Path:
    """highdicom's segmentation object of these images, ``labels`` (slice, row, column); its images come in the files' order."""
    code = highdicom.sr.CodedConcept("85756007", "SCT", "Tissue")
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number, segment_label=f"label {number}", segmented_property_category=code, segmented_property_type=code,
            algorithm_type="MANUAL",
        )
        for number in range(1, int(labels.max()) + 1)
    ]  # fmt: skip
    made = highdicom.seg.Segmentation(
        source_images=[complete(pydicom.dcmread(file)) for file in images],
        pixel_array=labels,
        segmentation_type=changes.pop("kind", "BINARY"),
        segment_descriptions=segments,
        series_instance_uid=f"1.2.9.{next(number)}",
        series_number=1,
        sop_instance_uid=f"1.2.9.{next(number)}",
        instance_number=1,
        manufacturer="m",
        manufacturer_model_name="m",
        software_versions="1",
        device_serial_number="1",
        series_description="Tumour",
    )
    for keyword, value in changes.items():
        setattr(made, keyword, value)
    made.save_as(path)
    return path


def complete(data: pydicom.Dataset) -> pydicom.Dataset:
    """With the attributes that highdicom copies from an image."""
    for keyword in ("PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate", "StudyTime"):
        if keyword not in data:
            setattr(data, keyword, "")
    data.SliceThickness = 2.0
    return data


LABELS = np.zeros((4, 12, 10), np.uint8)
LABELS[1, 2:5, 3:9], LABELS[2, 6:9, 1:3] = 1, 2


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_a_segmentation_object_is_the_mask_of_the_images_that_it_refers_to(tmp_path, kind):
    images = put(tmp_path, SeriesDescription="T1")
    put(tmp_path, SeriesDescription="T2")
    path = segmentation(images, tmp_path / "seg", LABELS, kind=kind)
    source = tree(tmp_path)
    items, codes = scanned(source)
    assert not codes
    assert sorted(item.mask for item in items) == [(), (str(path.resolve()),)]
    item = next(item for item in items if item.mask)
    assert [str(Path(file).resolve()) for file in images] == list(item.files)
    np.testing.assert_array_equal(source.open(item).mask, LABELS.transpose(2, 1, 0))


def test_a_segmentation_in_another_order_of_slices_is_turned_to_its_image(tmp_path):
    images = put(tmp_path, orientation=OBLIQUE)
    segmentation(images[::-1], tmp_path / "seg", LABELS)
    source = tree(tmp_path)
    (item,), codes = scanned(source)
    assert not codes
    np.testing.assert_array_equal(source.open(item).mask, LABELS[::-1].transpose(2, 1, 0))


def test_segmentations_that_fit_nothing_are_refused_and_the_image_is_kept(tmp_path):
    images = put(tmp_path)
    lost = put(tmp_path / "gone", StudyInstanceUID="1.2.3.6")
    segmentation(lost, tmp_path / "without image", LABELS)
    for path in lost:
        Path(path).unlink()
    smaller = slices(4, series=pydicom.dcmread(images[0]).SeriesInstanceUID, shape=(12, 10), spacing=(1.4, 1.0))
    segmentation(save(smaller, tmp_path / "other grid"), tmp_path / "on another grid", LABELS)
    for path in (tmp_path / "other grid").iterdir():
        path.unlink()
    fractional = tmp_path / "fractional"
    data = pydicom.dcmread(segmentation(images, fractional, LABELS))
    data.SegmentationType = "FRACTIONAL"
    data.save_as(fractional)
    segmentation(images, tmp_path / "unwanted", LABELS, SeriesDescription="Kidney")
    (item,), codes = scanned(tree(tmp_path, mask_series="tumour"))
    assert item.mask == ()
    assert codes == {"mask-without-image": 1, "mask-grid": 1, "fractional-segmentation": 1, "unwanted-mask": 1}


def test_two_segmentations_of_one_image_are_none(tmp_path):
    images = put(tmp_path)
    for name in ("a", "b"):
        segmentation(images, tmp_path / name, LABELS)
    (item,), codes = scanned(tree(tmp_path))
    assert item.mask == ()
    assert codes == {"mask-unclear": 2}


def test_repairs_are_done_where_the_settings_allow_them(tmp_path):
    put(tmp_path, shear=(0, 0.5, 0))
    assert scanned(tree(tmp_path))[1] == {"gantry-tilt": 4}
    source = tree(tmp_path, repairs=["gantry-tilt"])
    (item,), codes = scanned(source)
    assert not codes
    assert item.repairs == ("gantry-tilt",)
    assert source.open(item).array.shape == (1, 10, 13, 4)
    with pytest.raises(SettingsError, match="gantry-tilt"):
        tree(tmp_path, repairs=["gantry"]).scan(workers=1)


def test_identifiers_are_those_of_header_mask_and_folder_but_not_the_condition(tmp_path):
    values = {"PatientName": "Przybylski^Jane", "StudyDate": "20200101", "AccessionNumber": "acc-1"}
    put(tmp_path / "Ward 7" / "images", AdmittingDiagnosesDescription="chronic cough", **values)
    mask(tmp_path, ImageComments="drawn by Dr Who")
    (item,), _ = scanned(tree(tmp_path, mask_series="Mask"))
    assert {"Przybylski^Jane", "20200101", "acc-1", "P-0001", "drawn by Dr Who", "Ward 7"} <= set(item.identifiers)
    assert {f"{item.key}.{n}" for n in range(1, 5)} <= set(item.identifiers)
    assert {"1.2.3.4", "1.2.3.9", item.key} <= set(item.identifiers)
    assert not {"chronic cough", "images", "1.2.840.10008.5.1.4.1.1.4"} & set(item.identifiers)


def test_the_name_of_a_public_collection_is_no_identifier(tmp_path):
    put(tmp_path, ClinicalTrialProtocolName="Knees-Of-Europe", ClinicalTrialSiteName="Knees-Of-Bern")
    (item,), _ = scanned(DicomTree(str(tmp_path), licence="CC BY 4.0", terms="KNEES-of-Europe (Doe 2020)"))
    assert "Knees-Of-Bern" in item.identifiers
    assert "Knees-Of-Europe" not in item.identifiers


def test_no_reason_quotes_a_header_or_a_path(tmp_path):
    put(tmp_path / "CANARY", SeriesDescription="CANARY", PatientName="CANARY", count=1)
    put(tmp_path / "CANARY", SeriesDescription="CANARY", PatientID="CANARY")
    scan = tree(tmp_path, class_from="SeriesDescription", class_map=CLASSES).scan(workers=1)
    assert len(scan.rejected) == 2
    assert not any("CANARY" in rejected.reason + rejected.code for rejected in scan.rejected)


@pytest.mark.real
def test_a_real_export_is_read_whole_with_classes_and_masks(shared_data):
    source = tree(shared_data / "brain_mr_dicom", class_from="SeriesDescription", class_map=CLASSES, mask_series="mask")
    items, codes = scanned(source)
    assert not codes
    assert sorted(item.condition["class"] for item in items) == sorted(["T1", "T2", "FLAIR"] * 4)
    assert len({item.subject for item in items}) == 3
    assert sum(bool(item.mask) for item in items) == 6
    assert all(item.condition["age"] in (41.0, 51.0) for item in items)
    for item in items:
        volume = source.open(item)
        if volume.mask is not None:
            assert set(np.unique(volume.mask)) == {0, 1}


@pytest.mark.real
def test_an_archive_of_oddities_stops_nothing(shared_data):
    items, codes = scanned(tree(shared_data / "dicom_zoo"))
    assert len(items) + sum(codes.values()) == 46
