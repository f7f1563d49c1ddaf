"""A real archive takes what a release holds and gives it back as it was: by DIMSE and by DICOMweb, in the clear and over TLS."""

import contextlib
import socket
import socketserver
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import numpy as np
import pydicom
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from medsynth.cohort import Cohort
from medsynth.data.sources.phantom import Phantom
from medsynth.errors import MedsynthError
from medsynth.export import dicom, segmentation
from medsynth.pacs.connection import Address, Connection
from medsynth.pacs.transfer import Journal, archive_at, pull, push
from tests.export.conftest import made_by, synthetic  # noqa: F401
from tests.export.test_export_dicom import WRITTEN, ramp
from tests.pacs.conftest import Orthanc
from tests.pipelines.conftest import OVERRIDE, TINY, medsynth

pytestmark = pytest.mark.slow
PROTOCOLS = ["dimse", "web"]


@pytest.fixture(scope="session")
def running(start_orthanc) -> Orthanc:
    return start_orthanc()


@pytest.fixture
def orthanc(running: Orthanc) -> Orthanc:
    running.empty()
    return running


@pytest.fixture
def written(synthetic: Callable[..., Cohort], made_by: dicom.Provenance, tmp_path: Path) -> list[Path]:  # noqa: F811
    """Every modality in every form, with a mask each."""
    files = []
    for number, (modality, shape, form) in enumerate(WRITTEN):
        mask = (ramp(shape) > 0).astype(np.uint8)
        condition = {"sex": "F", "age": 61.0}
        cohort = synthetic(ramp(shape), modality, id=f"synthetic{number:06d}", mask=mask, labels=(1,), condition=condition)
        images = dicom.write(cohort, cohort.cases[0], tmp_path / f"out{number}", made_by, form=form)
        files += [*images, segmentation.write(cohort, cohort.cases[0], images, tmp_path / f"mask{number}.dcm", made_by)]
    return files


def by_instance(files: Sequence[Path]) -> dict[str, pydicom.Dataset]:
    return {str(image.SOPInstanceUID): image for image in map(pydicom.dcmread, files)}


def differences(ours: Sequence[Path], theirs: Sequence[Path]) -> list[str]:
    """Instances that only one side has, and attributes whose values are not the same; pixels by their bytes."""
    mine, found = by_instance(ours), by_instance(theirs)
    assert len(mine) == len(ours)
    lacking = [f"{uid}: on one side only" for uid in mine.keys() ^ found.keys()]
    return lacking + [
        f"{uid}: {element.keyword}"
        for uid in mine.keys() & found.keys()
        for element in [*mine[uid], *(element for element in found[uid] if element.tag not in mine[uid])]
        if element.tag not in found[uid] or element.tag not in mine[uid] or found[uid][element.tag] != mine[uid][element.tag]
    ]


@pytest.mark.parametrize("there", PROTOCOLS)
@pytest.mark.parametrize("back", [*PROTOCOLS, "move"])
def test_everything_that_is_written_comes_back_with_no_attribute_changed(orthanc, written, tmp_path, there, back) -> None:
    to = getattr(orthanc, there)
    assert push(written, archive_at(Address.of(to), Connection()), to, Journal(tmp_path / "journal"), 0) == len(written)
    source = orthanc.dimse if back == "move" else getattr(orthanc, back)
    archive = archive_at(Address.of(source), Connection(), listen=orthanc.listen if back == "move" else 0)
    series, files = pull({"PatientID": "synthetic*"}, archive, source, tmp_path / "in", 0)
    assert files == len(written)
    assert series == 2 * len(WRITTEN)
    assert differences(written, list((tmp_path / "in").rglob("*.dcm"))) == []


def test_the_archive_holds_the_very_bytes(orthanc, written, tmp_path) -> None:
    """Stored over the web, whole files are the same; by C-STORE, the file meta information is the archive's own (PS3.10 7.1)."""
    sent = {file.read_bytes() for file in written}
    push(written, archive_at(Address.of(orthanc.web), Connection()), "web", Journal(tmp_path / "journal"), 0)
    assert {orthanc.file(instance) for instance in orthanc.rest("instances")} == sent
    orthanc.empty()
    push(written, archive_at(Address.of(orthanc.dimse), Connection()), "dimse", Journal(tmp_path / "journal"), 0)
    there = [orthanc.file(instance) for instance in orthanc.rest("instances")]
    assert {data_set(content) for content in there} == {data_set(content) for content in sent}


def data_set(content: bytes) -> bytes:
    """A file's bytes behind the file meta information, whose length stands in its first element."""
    return content[144 + int.from_bytes(content[140:144], "little") :]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    ("query", "matches"),
    [
        ({"Modality": "SEG"}, 12),
        ({"PatientID": "synthetic000001"}, 2),
        ({"Modality": "CT", "PatientID": "synthetic*"}, 4),
        ({"StudyDate": "1900-"}, 0),
    ],
)
def test_a_query_finds_what_it_asks_for(orthanc, written, tmp_path, protocol, query, matches) -> None:
    push(written, archive_at(Address.of(orthanc.web), Connection()), "web", Journal(tmp_path / "journal"), 0)
    found = archive_at(Address.of(getattr(orthanc, protocol)), Connection()).find(query)
    assert len({series.uid for series in found}) == len(found) == matches


@pytest.fixture(scope="module")
def authority(tmp_path_factory) -> Path:
    """A certificate for this machine that is its own authority, with its key in the same file."""
    key, name = rsa.generate_private_key(65537, 2048), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - timedelta(days=1), now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
    return path


@pytest.fixture(scope="module")
def guarded(start_orthanc, authority) -> Orthanc:
    """An archive that speaks DIMSE over TLS only, with a certificate on both sides, and DICOMweb to who knows the password."""

    def answers(orthanc: Orthanc) -> None:
        with contextlib.suppress(urllib.error.HTTPError):  # it asks for the password
            orthanc.rest("system")

    pem = str(authority)
    dimse = {"DicomTlsEnabled": True, "DicomTlsCertificate": pem, "DicomTlsPrivateKey": pem, "DicomTlsTrustedCertificates": pem}
    return start_orthanc(answers, AuthenticationEnabled=True, RegisteredUsers={"me": "very secret"}, **dimse)


@pytest.fixture
def https(guarded, authority) -> Iterator[str]:
    """The address of its DICOMweb behind a server that ends TLS, as many are: under HTTPS, Debian's Orthanc itself ends with SIGSEGV."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority)

    class Forward(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with context.wrap_socket(self.request, server_side=True) as near, socket.create_connection(("127.0.0.1", guarded.http)) as far:
                back = threading.Thread(target=_pour, args=(far, near))
                back.start()
                _pour(near, far)
                back.join()

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Forward) as server:
        server.daemon_threads, server.handle_error = True, lambda *_: None  # a client that does not trust us hangs up
        threading.Thread(target=server.serve_forever).start()
        yield f"https://127.0.0.1:{server.server_address[1]}/dicom-web"
        server.shutdown()


def _pour(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def test_over_tls_with_certificates_checked_on_both_sides(guarded, written, authority, tmp_path) -> None:
    url = guarded.dimse.replace("dicom://", "dicoms://")
    known = Connection(ca=str(authority), certificate=str(authority), timeout=5)
    assert push(written, archive_at(Address.of(url), known), url, Journal(tmp_path / "journal"), 0) == len(written)
    pull({"PatientID": "synthetic*"}, archive_at(Address.of(url), known), url, tmp_path / "in", 0)
    assert differences(written, list((tmp_path / "in").rglob("*.dcm"))) == []
    for other, where in ((Connection(ca=str(authority), timeout=5), url), (Connection(timeout=5), url), (known, guarded.dimse)):
        with pytest.raises(MedsynthError, match="makes no association"):
            push(written, archive_at(Address.of(where), other), "again", Journal(tmp_path / "journal"), 0)


def test_over_https_with_a_password(https, written, authority, tmp_path, monkeypatch) -> None:
    url = https
    monkeypatch.setenv("MEDSYNTH_PACS_PASSWORD", "very secret")
    me = Connection(user="me", ca=str(authority))
    assert push(written, archive_at(Address.of(url), me), url, Journal(tmp_path / "journal"), 0) == len(written)
    with pytest.raises(MedsynthError, match="certificate"):
        archive_at(Address.of(url), Connection(user="me")).find({"Modality": "CT"})
    monkeypatch.setenv("MEDSYNTH_PACS_PASSWORD", "guessed")
    with pytest.raises(MedsynthError, match=r"HTTP 401\. Check user and password"):
        archive_at(Address.of(url), me).find({"Modality": "CT"})


@pytest.fixture(scope="module")
def hospital(tmp_path_factory) -> Path:
    """The phantom hospital's archive: its images alone, as a PACS would hold them."""
    root = tmp_path_factory.mktemp("hospital") / "archive"
    Phantom(root=str(root), patients=70, size=32, slices=6, modalities=["CT"]).write(workers=1)
    return root


@pytest.mark.timeout(1500)
def test_from_an_archive_to_a_release_and_back_into_the_archive(orthanc, hospital, tmp_path) -> None:
    images = [path for path in hospital.rglob("*") if path.is_file() and path.read_bytes()[128:132] == b"DICM"]
    for path in images:
        url = f"http://127.0.0.1:{orthanc.http}/instances"
        urllib.request.urlopen(urllib.request.Request(url, path.read_bytes(), method="POST"), timeout=30)
    held = len(orthanc.rest("instances"))

    done = medsynth("pull", str(tmp_path / "pulled"), f"source={orthanc.dimse}", "query={Modality: CT}")
    assert done.returncode == 0, done.stderr
    pulled = list((tmp_path / "pulled").rglob("*.dcm"))
    assert 400 < len(pulled) <= held
    assert [row for row in differences(pulled, images) if "one side" not in row] == []

    own = [setting for setting in TINY if not setting.startswith("source.")]
    place = [
        f"source.root={tmp_path}/pulled",
        "source.licence=CC0-1.0",
        "source.terms=nobody",
        "run.name=ct",
        f"paths.runs={tmp_path}/runs",
    ]
    more = [f"paths.key={tmp_path}/key", "release.dicom=enhanced", OVERRIDE]
    done = medsynth("run", *own, "source=dicom_tree", *place, *more)
    assert done.returncode == 0, done.stderr[-4000:]
    release = tmp_path / "runs" / "ct" / "release"
    sent = list((release / "dicom").rglob("*.dcm"))
    for to, protocol in ((orthanc.web, PROTOCOLS[0]), (orthanc.dimse, PROTOCOLS[1])):
        done = medsynth("push", str(release), f"to={to}")
        assert done.returncode == 0, done.stderr
        assert f"{len(sent)} files sent now" in done.stderr
        assert "IN SPITE OF ITS EVIDENCE" in done.stderr
        assert len(orthanc.rest("instances")) == held + len(sent)
        again = medsynth("push", str(release), f"to={to}")
        assert "0 files sent now" in again.stderr
        back = tmp_path / protocol
        done = medsynth("pull", str(back), f"source={getattr(orthanc, protocol)}", "query={PatientID: synthetic*}")
        assert done.returncode == 0, done.stderr
        assert differences(sent, list(back.rglob("*.dcm"))) == []
        for patient in orthanc.rest("patients"):
            if orthanc.rest(f"patients/{patient}")["MainDicomTags"]["PatientID"].startswith("synthetic"):
                orthanc.rest(f"patients/{patient}", "DELETE")
