"""The rebuild of one data set: each row of PS3.15 Table E.1-1 gets its action, everything that nobody allowed is gone."""

import re
from copy import deepcopy
from datetime import date

import numpy as np
import pytest
from pydicom.datadict import dictionary_VM, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from medsynth.deidentify import profile
from medsynth.deidentify.dataset import REMOVED, Rebuilder
from medsynth.deidentify.profile import Options
from medsynth.errors import UnreadableImage
from medsynth.io.identifiers import identifying_values
from medsynth.io.pseudonyms import days_back, is_new_uid, new_uid
from tests.make_dicom import slices

KEY = b"k" * 32
CANARY = "Zyxwander"
PLANTS = {
    **dict.fromkeys(["LO", "SH", "LT", "ST", "UT", "UC", "PN"], CANARY),
    "AE": "ZYXWANDER",
    "CS": "ZYXWANDER",
    "AS": "047Y",
    "DA": "20210304",
    "TM": "101112",
    "DT": "20210304101112",
    "UI": "1.2.3.77.88",
    "UR": f"http://{CANARY}/",
    "OB": CANARY.encode() + b" ",
    "UN": CANARY.encode() + b" ",
    "DS": "47.25",
    "IS": "47",
    "FD": 47.25,
    "FL": 47.25,
    "SL": 47,
    "SS": 47,
    "UL": 47,
    "US": 47,
    "OW": CANARY.encode() + b" ",
    "OB or OW": CANARY.encode() + b" ",
}
ON = [
    Options(),
    Options(dates="shift"),
    Options(descriptors="clean"),
    Options(graphics="clean"),
    Options(private="safe"),
    Options(patient="keep"),
    Options(dates="shift", descriptors="clean", graphics="clean", private="safe", patient="keep"),
]
KNOWN = [row for row in profile.table() if re.fullmatch("[0-9A-F]{8}", row["tag"])]


def plant(tag: Tag) -> DataElement:
    try:
        vr = dictionary_VR(tag)
    except KeyError:  # newer than pydicom's dictionary
        return DataElement(tag, "LO", CANARY)
    if vr == "SQ":
        item = Dataset()
        item.PatientName, item.ReferencedSOPInstanceUID = CANARY, "1.2.3.77.88"
        item.add_new(0x00091010, "LO", CANARY)
        return DataElement(tag, vr, [item])
    value = PLANTS[vr]
    return DataElement(tag, vr, [value, value] if vr == "DS" and dictionary_VM(tag) == "2" else value)


def texts(data: Dataset) -> str:
    """Everything that a data set says, binary values too."""
    return re.sub(r"\W+", " ", str(data)) + " ".join(
        element.value.decode("latin-1") for element in data.iterall() if isinstance(element.value, bytes)
    )


def base(**values) -> Dataset:
    return slices(1, SOPInstanceUID="1.2.3.4.5.1", StudyDate="20210310", PatientName="Doe^Jane", **values)[0]


def rebuild(data: Dataset, options: Options = Options()) -> Dataset:  # noqa: B008 (frozen)
    return Rebuilder(key=KEY, options=options)(data)


def test_the_table_is_whole():
    rows = profile.table()
    assert len(rows) == 656  # 652 attributes, 3 rows of curves and overlays, and the row of private attributes
    assert len({row["tag"] for row in rows}) == len(rows)
    assert {row["basic"] for row in rows} == {"X", "Z", "D", "U", "X/Z", "X/D", "Z/D", "X/Z/D", "X/Z/U*"}
    named = {int(row["tag"], 16) for row in KNOWN}
    assert not named & profile.allowed(), "an attribute of the table is the table's"


@pytest.mark.parametrize("options", ON, ids=lambda options: "+".join(options.columns) or "basic")
def test_every_row_of_the_table_gets_its_action(options: Options):
    rows = [row for row in KNOWN if 8 <= int(row["tag"][:4], 16) < 0xFFFA]  # commands, file meta, padding, signatures are never copied
    alone = [[row] for row in rows if row["tag"] in ("00080018", "00100020", "00100021", "0020000D")]  # these decide whose it is
    together = [row for row in rows if [row] not in alone]
    for planted in (*alone, *(together[start : start + 50] for start in range(0, len(together), 50))):
        data = base()
        for row in planted:
            data[Tag(int(row["tag"], 16))] = plant(Tag(int(row["tag"], 16)))
        built = rebuild(data, options)
        assert CANARY.casefold() not in texts(built).casefold(), planted
        for row in planted:
            tag, action = Tag(int(row["tag"], 16)), profile.actions(options)[row["tag"]]
            assert conforms(built.get(tag), plant(tag), action, row["basic"]), (row, action, built.get(tag))


def conforms(after: DataElement | None, before: DataElement, action: str, basic: str) -> bool:
    """Table E.1-1a: X absent; Z empty or a dummy; D a dummy; U another UID, the same each time; K as it was; C cleaned or as without."""
    if action == "K":
        same = after is not None and str(after.value) == str(before.value)
        return same or conforms(after, before, basic, basic)
    if action == "C":
        days = days_back(KEY, "P-0001")
        if before.VR == "DA":
            return (date(2021, 3, 4) - date.fromisoformat(after.value)).days == days
        if before.VR == "DT":
            return (date(2021, 3, 4) - date.fromisoformat(after.value[:8])).days == days and after.value[8:] == "101112"
        if before.VR == "TM":
            return after.value == "101112"
        return conforms(after, before, basic, basic) or (before.VR == "SQ" and after is not None)
    return any(_one(after, before, part) for part in action.split("/"))


def _one(after: DataElement | None, before: DataElement, action: str) -> bool:
    if action == "X":
        return after is None
    if after is None:
        return False
    if action == "Z":
        return after.is_empty or (before.VR != "SQ" and after.value != before.value)
    if action == "D":
        return not after.is_empty and (before.VR == "SQ" or after.value != before.value)
    if before.VR == "SQ":
        return after.value[0].ReferencedSOPInstanceUID == new_uid(KEY, "1.2.3.77.88")
    return after.value == new_uid(KEY, "1.2.3.77.88")


def test_what_nobody_allowed_is_gone_at_any_depth():
    data = base()
    deep = Dataset()
    deep.PatientName, deep.ImageComments, deep.FrameComments = CANARY, CANARY, CANARY
    deep.add_new(0x00291010, "OB", CANARY.encode())
    for _ in range(5):
        outer = Dataset()
        outer.ReferencedImageSequence, outer.ReferencedSOPInstanceUID = [deep], "1.2.3"
        deep = outer
    data.SharedFunctionalGroupsSequence = [deep]
    data.private_block(0x0029, CANARY, create=True).add_new(0x10, "UN", CANARY.encode())
    data.add_new(0x50000010, "US", 1)
    data.add_new(0x50003000, "OW", CANARY.encode() + b" ")
    data.add_new(0x60000010, "US", 4)
    data.add_new(0x60000022, "LO", CANARY)
    data.add_new(0x60003000, "OW", CANARY.encode() + b" ")
    data.add_new(0xFFFCFFFC, "OB", CANARY.encode() + b" ")
    data.add_new(0x00080005, "CS", "ISO_IR 192")
    data.add_new(0x00189999, "UN", CANARY.encode() + b" ")  # no attribute of PS3.6
    data.Manufacturer, data.SeriesDescription, data.WindowCenterWidthExplanation = CANARY, CANARY, CANARY
    data.ContrastBolusAgent, data.ReconstructionMethod = CANARY, CANARY
    built = rebuild(data)
    assert CANARY not in texts(built)
    assert built.Manufacturer == REMOVED
    assert all(tag.group % 2 == 0 and tag.group < 0x5000 for tag in built.keys() if tag.group != 0x5200)  # noqa: SIM118
    assert built.SharedFunctionalGroupsSequence[0].ReferencedImageSequence[0].ReferencedSOPInstanceUID == new_uid(KEY, "1.2.3")


def test_values_of_the_wrong_kind_do_not_pass():
    data = base()
    for keyword, vr, value in (("BodyPartExamined", "LO", "knee of Zyx"), ("ScanOptions", "CS", "Jane Doe 1970"), ("KVP", "LO", CANARY)):
        data.add(DataElement(Tag(keyword), vr, value))
    data.BodyPartExamined = "DOE"  # three letters are no identifier, a name of four is
    data.PatientName, data.ImageType = "Winter^Jane", ["ORIGINAL", "PRIMARY", "WINTER"]
    built = rebuild(data)
    assert built.ScanOptions == REMOVED
    assert "KVP" not in built
    assert list(built.ImageType) == ["ORIGINAL", "PRIMARY", REMOVED]


def test_coded_strings_say_what_the_standard_defines_and_no_more():
    data = base(PatientID="4711")
    data.PatientName, data.Modality, data.LossyImageCompressionMethod, data.QualityControlImage = (
        "DOE^JANE",
        "DOE JANE",
        "DOE JANE",
        "12345678",
    )
    data.ImageType, data.BodyPartExamined = ["ORIGINAL", "PRIMARY", "MRN12345678", "JANEDOE1979", "CT_SOM5 SPI"], "PAT12345678"
    data.PatientOrientation, data.ScanOptions, data.CorrectedImage = ["L", "PH"], ["FAST_GEMS", "FS"], ["DECY", "ATTN"]
    built = rebuild(data)
    assert built.Modality == built.BodyPartExamined == REMOVED
    assert "LossyImageCompressionMethod" not in built
    assert "QualityControlImage" not in built
    assert list(built.ImageType) == ["ORIGINAL", "PRIMARY", REMOVED, REMOVED, "CT_SOM5 SPI"]
    for keyword in ("PatientOrientation", "ScanOptions", "CorrectedImage"):
        assert built[keyword].value == data[keyword].value


@pytest.mark.parametrize("bits", [8, 16])
def test_lookup_tables_end_where_their_descriptors_say(bits):
    data, table = base(), bytes(range(4 * bits // 8))
    for colour in ("Red", "Green"):
        data[f"{colour}PaletteColorLookupTableData"] = DataElement(
            Tag(f"{colour}PaletteColorLookupTableData"), "OW", table + CANARY[:3].encode()
        )
    data.RedPaletteColorLookupTableDescriptor = [4, 0, bits]
    data.BluePaletteColorLookupTableDescriptor = [4, 0, 16]
    segments = np.array([0, 1, 7, 1, 3, 10, 0, 2, 4711, 4712], "<u2")  # one value, a line of three, and what lies behind
    data.add_new(Tag("SegmentedBluePaletteColorLookupTableData"), "OW", segments.tobytes())
    item = Dataset()
    item.add_new(Tag("LUTDescriptor"), "US", [2, 0, 16])
    item.add_new(Tag("LUTData"), "US", [1, 2, 4711])
    data.VOILUTSequence = [item]
    built = rebuild(data)
    assert built.RedPaletteColorLookupTableData == table
    assert "GreenPaletteColorLookupTableData" not in built
    assert list(np.frombuffer(built.BluePaletteColorLookupTableData, "<u2")) == [7, 8, 9, 10]
    assert "SegmentedBluePaletteColorLookupTableData" not in built
    assert list(built.VOILUTSequence[0].LUTData) == [1, 2]


def test_codes_are_those_of_the_standard_with_its_own_words():
    def item(value: str, scheme: str) -> Dataset:
        code = Dataset()
        code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, scheme, CANARY
        return code

    data = base()
    data.AnatomicRegionSequence = [item("69536005", "SCT"), item("T-D1100", "SRT"), item(CANARY, "99LOCAL")]
    known, old, other = rebuild(data).AnatomicRegionSequence
    assert (known.CodeValue, known.CodeMeaning[:4]) == ("69536005", "Head")
    assert (old.CodeValue, old.CodingSchemeDesignator, old.CodeMeaning[:4]) == ("T-D1100", "SRT", "Head")
    assert (other.CodeValue, other.CodeMeaning) == (REMOVED, REMOVED)


def test_geometry_and_numbers_are_copied_to_the_letter():
    data = base(WindowCenter="40.500", SliceThickness="2.5", EchoTime="1e-1")
    built = rebuild(data)
    for keyword in (
        "ImageOrientationPatient",
        "ImagePositionPatient",
        "PixelSpacing",
        "WindowCenter",
        "SliceThickness",
        "EchoTime",
        "Rows",
    ):
        assert str(built[keyword].value) == str(data[keyword].value), keyword


def test_cleaned_descriptions_keep_known_words_alone():
    data = base(SeriesDescription="T2 FLAIR axial, Mrs Doe (Zyxwander)", StudyDescription="for Dr Miller")
    built = rebuild(data, Options(descriptors="clean"))
    assert built.SeriesDescription == "T2 FLAIR axial"
    assert "StudyDescription" not in built
    named = base(SeriesDescription="axial knee")
    named.PatientName = "Knee^Axial"
    assert "SeriesDescription" not in rebuild(named, Options(descriptors="clean"))


def test_dates_move_together_and_intervals_stay():
    data = base(SeriesDate="20210311", PatientBirthDate="19700214", AcquisitionDateTime="20210311235959.5+0100", ContentTime="235959")
    built = rebuild(data, Options(dates="shift"))
    assert (date.fromisoformat(built.SeriesDate) - date.fromisoformat(built.StudyDate)).days == 1
    assert built.AcquisitionDateTime[8:] == "235959.5+0100"
    assert built.LongitudinalTemporalInformationModified == "MODIFIED"
    assert not built.PatientBirthDate
    other = base(PatientID="P-0002")
    assert rebuild(other, Options(dates="shift")).StudyDate != built.StudyDate
    assert rebuild(data).LongitudinalTemporalInformationModified == "REMOVED"


def test_ages_above_ninety_become_ninety():
    assert rebuild(base(PatientAge="097Y"), Options(patient="keep")).PatientAge == "090Y"
    assert rebuild(base(PatientAge="011M", PatientSex="F"), Options(patient="keep")).PatientSex == "F"
    assert "PatientAge" not in rebuild(base(PatientAge="050Y"))


def test_safe_private_numbers_stay_and_their_neighbours_go():
    data = base()
    block = data.private_block(0x2001, "Philips Imaging DD 001", create=True)
    block.add_new(0x03, "FL", 1000.0)
    block.add_new(0x04, "LO", CANARY)
    data.private_block(0x0019, "GEMS_ACQU_01", create=True).add_new(0x23, "UN", b"12.5")
    built = rebuild(data, Options(private="safe"))
    assert built.private_block(0x2001, "Philips Imaging DD 001")[0x03].value == 1000.0
    assert built.private_block(0x0019, "GEMS_ACQU_01")[0x23].value == 12.5
    assert CANARY not in texts(built)
    assert not [tag for tag in rebuild(data).keys() if tag.group % 2]  # noqa: SIM118


def test_what_was_done_is_said():
    built = rebuild(base(), Options(dates="shift", patient="keep"))
    assert built.PatientIdentityRemoved == "YES"
    assert [item.CodeValue for item in built.DeidentificationMethodCodeSequence] == ["113100", "113107", "113108"]
    assert all(len(text) <= 64 for text in built.DeidentificationMethod)


def test_de_identified_twice_is_de_identified_once():
    data = base(SeriesDescription="T2 axial of Jane", PatientAge="050Y", AcquisitionDateTime="20210311235959")
    for options in ON:
        once = rebuild(data, options)
        assert rebuild(deepcopy(once), options) == once


def test_uids_are_the_same_under_one_key_and_others_under_another():
    assert new_uid(KEY, "1.2.3") == new_uid(KEY, "1.2.3") == new_uid(KEY, new_uid(KEY, "1.2.3"))
    assert new_uid(KEY, "1.2.3") != new_uid(b"j" * 32, "1.2.3")
    assert not is_new_uid(b"j" * 32, new_uid(KEY, "1.2.3"))
    assert len(new_uid(KEY, "1.2.3")) <= 44
    assert rebuild(base()).SOPClassUID == base().SOPClassUID


def test_only_uids_of_the_standard_stay_and_never_an_instance():
    data = base(
        StudyInstanceUID="1.2.840.10008.77.4711", FrameOfReferenceUID="1.2.840.10008.1.4.1.1", SOPClassUID="1.2.840.10008.5.1.4.1.1.9999"
    )
    built = rebuild(data)
    for keyword in ("StudyInstanceUID", "FrameOfReferenceUID", "SOPClassUID"):
        assert built[keyword].value == new_uid(KEY, data[keyword].value)
    assert "1.2.840.10008.77.4711" in identifying_values(data)
    assert "1.2.840.10008.5.1.4.1.1.4" not in identifying_values(base())


@pytest.mark.slow
def test_a_million_uids_do_not_collide():
    numbers = np.array([int(new_uid(KEY, f"1.2.840.{n}").removeprefix("2.25.")) >> 64 for n in range(10**6)], np.uint64)
    assert len(np.unique(numbers)) == 10**6


def test_nobody_is_nobody():
    data = base()
    del data.PatientID, data.StudyInstanceUID
    with pytest.raises(UnreadableImage, match="neither a patient id"):
        rebuild(data)
