"""Sending to archives that refuse, are short of something, or break off: small ones that live in this process."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pydicom
import pytest
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage
from pynetdicom import AE, evt

from medsynth.errors import MedsynthError
from medsynth.export.dicom import write
from medsynth.pacs.connection import Address, Connection, Unreachable
from medsynth.pacs.dimse import Dimse
from medsynth.pacs.transfer import Journal, push
from tests.export.conftest import made_by, synthetic  # noqa: F401
from tests.export.test_export_dicom import ramp


@pytest.fixture
def series(synthetic, made_by, tmp_path) -> list[Path]:  # noqa: F811
    cohort = synthetic(ramp((8, 10, 5)), "MR")
    return write(cohort, cohort.cases[0], tmp_path / "series", made_by)


@pytest.fixture
def listening() -> Iterator[Callable[..., Address]]:
    """Start an archive that takes MR and CT; ``answer`` is given each event and returns a status."""
    servers = []

    def start(answer: Callable[[evt.Event], int], **rules: object) -> Address:
        entity = AE("ARCHIVE")
        for sop_class in (MRImageStorage, CTImageStorage):
            entity.add_supported_context(sop_class, ExplicitVRLittleEndian)
        for name, value in rules.items():
            setattr(entity, name, value)
        servers.append(entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=[(evt.EVT_C_STORE, answer)]))
        return Address.of(f"dicom://ARCHIVE@127.0.0.1:{servers[-1].server_address[1]}")

    yield start
    for server in servers:
        server.shutdown()


def test_each_file_arrives_as_it_is(listening, series, tmp_path) -> None:
    arrived = {}

    def answer(event: evt.Event) -> int:
        arrived[event.request.AffectedSOPInstanceUID] = event.encoded_dataset(include_meta=False)
        return 0

    address = listening(answer)
    push(series, Dimse(address, Connection()), address.url, Journal(tmp_path / "journal"), 0)
    assert len(arrived) == 5
    for file in series:
        assert file.read_bytes().endswith(arrived[pydicom.dcmread(file).SOPInstanceUID])


def test_a_class_that_the_archive_does_not_take_is_an_error_before_the_first_file(listening, series, synthetic, made_by, tmp_path) -> None:  # noqa: F811
    taken = []
    address = listening(lambda event: taken.append(event) or 0)
    cohort = synthetic(ramp((8, 10, 5)), "MR")
    enhanced = write(cohort, cohort.cases[0], tmp_path / "enhanced", made_by, form="enhanced")
    with pytest.raises(MedsynthError, match=rf"{EnhancedMRImageStorage.name} as Explicit VR Little Endian: 1 files\nNothing was sent"):
        push([*series, *enhanced], Dimse(address, Connection()), address.url, Journal(tmp_path / "journal"), 0)
    assert taken == []
    with pytest.raises(MedsynthError, match="None of what is to be sent"):
        push(enhanced, Dimse(address, Connection()), address.url, Journal(tmp_path / "journal"), 0)


def test_a_caller_that_the_archive_does_not_know_is_told_so(listening, series, tmp_path) -> None:
    address = listening(lambda event: 0, require_calling_aet=["SOMEBODY"])
    with pytest.raises(MedsynthError, match="rejects calling=MEDSYNTH") as caught:
        push(series, Dimse(address, Connection()), address.url, Journal(tmp_path / "journal"), 0)
    assert not isinstance(caught.value, Unreachable)


def test_out_of_resources_is_another_try_and_not_understood_is_not(listening, series, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("medsynth.pacs.transfer.pause", lambda seconds: None)
    statuses = iter([0, 0xA700, 0, 0xC000, 0xB000, 0])
    address = listening(lambda event: next(statuses))
    with pytest.raises(MedsynthError, match=r"refused 1 of 5 files:\n  00003\.dcm: status 0xC000"):
        push(series, Dimse(address, Connection()), address.url, Journal(tmp_path / "journal"), 1)
    assert next(statuses, "all were used") == "all were used"


def test_an_archive_that_breaks_off_gets_the_rest_in_another_association(listening, series, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("medsynth.pacs.transfer.pause", lambda seconds: None)
    arrived = []

    def answer(event: evt.Event) -> int:
        if len(arrived) == 2:
            arrived.append("broke off")
            event.assoc.abort()
            return 0
        arrived.append(event.request.AffectedSOPInstanceUID)
        return 0

    address = listening(answer)
    assert push(series, Dimse(address, Connection()), address.url, Journal(tmp_path / "journal"), 2) == 5
    instances = [pydicom.dcmread(file).SOPInstanceUID for file in series]
    assert arrived == [*instances[:2], "broke off", *instances[2:]]


def test_nobody_there_is_worth_another_try_and_then_said(series, tmp_path) -> None:
    address = Address.of("dicom://ARCHIVE@127.0.0.1:1")
    with pytest.raises(MedsynthError, match=r"ARCHIVE at 127.0.0.1:1 makes no association.*0 of 5 files have arrived"):
        push(series, Dimse(address, Connection(timeout=2)), address.url, Journal(tmp_path / "journal"), 0)
