"""A real archive on this machine: Debian's Orthanc with its DICOMweb plugin, started by the tests and gone with them."""

import json
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
STARTS = 60  # seconds


@dataclass(frozen=True, kw_only=True)
class Orthanc:
    """``rest`` is its own interface, for looking at it from the side."""

    title: str
    dicom: int
    http: int
    listen: int  # where it sends what a C-MOVE to MEDSYNTH asks for

    @property
    def dimse(self) -> str:
        return f"dicom://{self.title}@127.0.0.1:{self.dicom}"

    @property
    def web(self) -> str:
        return f"http://127.0.0.1:{self.http}/dicom-web"

    def rest(self, path: str, method: str = "GET") -> object:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}/{path}", method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def file(self, instance: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/instances/{instance}/file", timeout=30) as answer:
            return answer.read()

    def empty(self) -> None:
        for patient in self.rest("patients"):
            self.rest(f"patients/{patient}", "DELETE")


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="session")
def start_orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Orthanc]]:
    """Start one with further settings; skips where it is not installed."""
    program = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/bin")
    if program is None or not PLUGIN.exists():
        pytest.skip("Orthanc is not installed (Debian's packages orthanc and orthanc-dicomweb)")
    running: list[subprocess.Popen] = []

    def start(answers: Callable[[Orthanc], object] = lambda orthanc: orthanc.rest("system"), **settings: object) -> Orthanc:
        folder = tmp_path_factory.mktemp("orthanc")
        orthanc = Orthanc(title="ORTHANC", dicom=free_port(), http=free_port(), listen=free_port())
        base = {
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "HttpPort": orthanc.http,
            "DicomPort": orthanc.dicom,
            "DicomAet": orthanc.title,
            "DicomCheckCalledAet": True,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomModalities": {"medsynth": ["MEDSYNTH", "127.0.0.1", orthanc.listen]},
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        (folder / "orthanc.json").write_text(json.dumps(base | settings))
        log = (folder / "log").open("wb")
        running.append(subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=log, cwd=folder))
        for _ in range(STARTS * 5):
            try:
                answers(orthanc)
                return orthanc
            except OSError:
                assert running[-1].poll() is None, (folder / "log").read_text()[-2000:]
                time.sleep(0.2)
        raise AssertionError((folder / "log").read_text()[-2000:])

    yield start
    for process in running:
        process.terminate()
        process.wait(timeout=30)
