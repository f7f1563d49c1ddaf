"""What an archive answers over the web, and what is made of it: a small one that lives in this process."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from medsynth.errors import MedsynthError, SettingsError
from medsynth.export.dicom import write
from medsynth.pacs.connection import Address, Connection, Unreachable
from medsynth.pacs.transfer import Journal, push
from medsynth.pacs.web import PAGE, Web
from tests.export.conftest import made_by, synthetic  # noqa: F401
from tests.export.test_export_dicom import ramp

FAILED = {"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [0x0122]}}]}}
COERCED = {"00081199": {"vr": "SQ", "Value": [{"00081196": {"vr": "US", "Value": [0xB000]}}]}}


@pytest.fixture
def answering() -> Iterator[Callable[..., str]]:
    """Start an archive that gives these answers (status and JSON), one a request; returns its address."""
    servers = []

    def start(*answers: tuple[int, object], asked: list[str] | None = None) -> str:
        left = list(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def do_GET(self) -> None:
                if asked is not None:
                    asked.append(self.path)
                status, content = left.pop(0)
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/dicom+json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        servers.append(ThreadingHTTPServer(("127.0.0.1", 0), Handler))
        threading.Thread(target=servers[-1].serve_forever).start()
        return f"http://127.0.0.1:{servers[-1].server_address[1]}/dicom-web"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def files(synthetic, made_by, tmp_path, monkeypatch) -> list[Path]:  # noqa: F811
    monkeypatch.setattr("medsynth.pacs.transfer.pause", lambda seconds: None)
    cohort = synthetic(ramp((8, 10, 3)), "MR")
    return write(cohort, cohort.cases[0], tmp_path / "series", made_by)


def web(url: str, **options: object) -> Web:
    return Web(Address.of(url), Connection(**options))


def test_a_busy_archive_is_asked_again_and_what_it_refuses_is_named(answering, files, tmp_path, caplog) -> None:
    asked: list[str] = []
    url = answering((503, {}), (200, COERCED), (504, {}), (429, {}), (409, FAILED), (200, {}), asked=asked)
    with pytest.raises(MedsynthError, match=r"refused 1 of 3 files:\n  00002\.dcm: reason 0x0122"):
        push(files, web(url), url, Journal(tmp_path / "journal"), 2)
    assert asked == ["/dicom-web/studies"] * 6
    assert "changed 1 files on arrival: reason 0xB000" in caplog.text
    assert len((tmp_path / "journal").read_text().splitlines()) == 2


def test_a_conflict_without_reasons_is_a_refusal_too(answering, files, tmp_path) -> None:
    url = answering((409, "no"), (200, {}), (200, {}))
    with pytest.raises(MedsynthError, match="refused 1 of 3 files"):
        push(files, web(url), url, Journal(tmp_path / "journal"), 0)


@pytest.mark.parametrize(("status", "kind"), [(503, Unreachable), (404, MedsynthError), (403, MedsynthError)])
def test_an_error_tells_the_status_and_not_what_was_asked(answering, status, kind) -> None:
    with pytest.raises(kind, match=f"HTTP {status}") as caught:
        web(answering((status, {}))).find({"PatientID": "P-0815"})
    assert type(caught.value) is kind
    assert "0815" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_nobody_there_is_worth_another_try() -> None:
    with pytest.raises(Unreachable, match="does not answer"):
        web("http://127.0.0.1:1/dicom-web").find({"PatientID": "P-0815"})


def row(number: int) -> dict:
    uids = {"0020000D": {"vr": "UI", "Value": ["1.2"]}, "0020000E": {"vr": "UI", "Value": [f"1.2.{number}"]}}
    return uids | {"00201209": {"vr": "IS", "Value": [7]}}


def test_an_archive_that_ignores_the_offset_is_not_asked_for_ever(answering) -> None:
    page = [row(n) for n in range(PAGE)]
    assert len(web(answering((200, page), (200, page))).find({})) == PAGE


def test_of_an_answer_only_what_is_needed_is_read_and_nothing_is_quoted(answering, recwarn) -> None:
    named = {"00100010": {"vr": "PN", "Value": "DOE^JANE"}, "00100030": {"vr": "DA", "Value": ["DOE^JANE"]}}
    assert len(web(answering((200, [row(1) | named]))).find({})) == 1
    assert not recwarn.list
    for wrong in ({"00201209": {"vr": "IS", "Value": ["DOE^JANE"]}}, {"0020000E": {"vr": "UI"}}, {"0020000D": "DOE^JANE"}):
        with pytest.raises(MedsynthError, match="cannot be read") as caught:
            web(answering((200, [row(1) | wrong]))).find({})
        assert "DOE" not in str(caught.value)
        assert caught.value.__suppress_context__


def test_a_long_answer_is_asked_for_page_by_page(answering) -> None:
    asked: list[str] = []
    url = answering((200, [row(n) for n in range(PAGE)]), (200, [row(PAGE)]), asked=asked)
    found = web(url).find({"PatientID": "P-*"})
    assert [series.uid for series in found] == [f"1.2.{n}" for n in range(PAGE + 1)]
    assert {series.instances for series in found} == {7}
    assert "PatientID=P-*" in asked[0]
    assert f"offset={PAGE}" in asked[1]


def test_a_password_does_not_travel_in_the_clear(monkeypatch) -> None:
    monkeypatch.setenv("MEDSYNTH_PACS_PASSWORD", "very secret")
    with pytest.raises(SettingsError, match="in the clear"):
        web("http://pacs.example/dicom-web", user="me")
    assert web("https://pacs.example/dicom-web", user="me").client
    assert web("http://127.0.0.1/dicom-web", user="me").client
