"""A whole run asks nobody anything: no connection and no name look-up beyond this machine, from any of its processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pipelines.conftest import OVERRIDE, ROOT, medsynth, settings

# Audit events come from the interpreter itself (PEP 578), so no library gets past them by its own copy of a function.
WATCH = """
import os, sys

def _watch(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        family, address = arguments[0].family, arguments[1]
        outside = family != 1 and address is not None and str(address[0]).split("%")[0] not in ("127.0.0.1", "::1", "localhost")
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        address = arguments[0]
        outside = address not in (None, "", b"", "localhost", b"localhost", "127.0.0.1", "::1")
    else:
        return
    if outside:
        file = os.open(os.environ["NETWORK_RECORD"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(file, f"{event} {address!r}\\n".encode())
        os.close(file)
        raise OSError(f"no network here: {event} {address!r}")

sys.addaudithook(_watch)
"""
TOLD_TO_BE_QUIET = ("CI", "MLFLOW_", "DO_NOT_TRACK", "PYTEST", "GITHUB_", "HF_", "TRANSFORMERS_")


@pytest.fixture
def alone(tmp_path: Path) -> dict[str, str]:
    """The environment of a user's own shell, where nothing says that this is a test, with every Python process under watch."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    (tmp_path / "home").mkdir()
    mine = {name: value for name, value in os.environ.items() if not name.startswith(TOLD_TO_BE_QUIET)}
    paths = {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(tmp_path / "watch"), "NETWORK_RECORD": str(tmp_path / "record")}
    return mine | paths | {"OMP_NUM_THREADS": "1"}


def record(environment: dict[str, str]) -> str:
    path = Path(environment["NETWORK_RECORD"])
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize(
    ("attempt", "seen"),
    [
        ("import socket; socket.create_connection(('192.0.2.1', 9), 1)", "192.0.2.1"),
        ("import _socket; _socket.socket().connect_ex(('192.0.2.1', 9))", "192.0.2.1"),
        ("import urllib.request as u; u.urlopen('http://example.org', timeout=1)", "example.org"),
        ("import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('192.0.2.1', 53))", "192.0.2.1"),
        (
            "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import socket; socket.gethostbyname(\"example.org\")'])",
            "example",
        ),
        ("import threading, socket; threading.Thread(target=lambda: socket.create_connection(('192.0.2.1', 9))).start()", "192.0.2.1"),
    ],
)
def test_the_watch_sees_every_way_out(attempt: str, seen: str, alone: dict[str, str]):
    subprocess.run([sys.executable, "-c", attempt], env=alone, capture_output=True, check=False)
    assert seen in record(alone)


def test_the_watch_lets_processes_of_one_machine_talk(alone: dict[str, str]):
    talk = "import socket; a = socket.create_server(('127.0.0.1', 0)); b = socket.create_connection(a.getsockname()); socket.socketpair()"
    assert subprocess.run([sys.executable, "-c", talk], env=alone, capture_output=True, check=False).returncode == 0
    assert record(alone) == ""


@pytest.mark.slow
def test_a_whole_run_makes_no_attempt_to_reach_the_network(alone: dict[str, str], tmp_path: Path):
    done = medsynth("run", *settings(tmp_path, tmp_path / "runs", "alone", OVERRIDE), env=alone)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "runs" / "alone" / "release" / "SHA256SUMS").is_file()
    assert record(alone) == ""
    helped = subprocess.run(
        [sys.executable, "-m", "medsynth.cli", "--help"], env=alone, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert helped.returncode == 0
    assert record(alone) == ""
