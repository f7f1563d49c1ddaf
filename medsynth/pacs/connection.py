"""How an archive is reached: its address, TLS, the secrets, and what counts as worth another try.

An address is ``dicom://AET@host:port`` (DIMSE), ``dicoms://AET@host:port`` (DIMSE over TLS) or ``https://host/path`` (DICOMweb).
"""

import os
import re
import ssl
import stat
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from medsynth.errors import MedsynthError, SettingsError

PASSWORD = "MEDSYNTH_PACS_PASSWORD"  # the environment's variable


class Unreachable(MedsynthError):
    """The archive did not answer, broke off, or is short of something: another try may succeed."""


@dataclass
class Connection:
    """What both directions need to know about the way to an archive."""

    calling: str = field(default="MEDSYNTH", metadata={"help": "own AE title (DIMSE)"})
    user: str = field(default="", metadata={"help": f"user (DICOMweb); its password is read from ${PASSWORD} or password_file"})
    password_file: str = field(default="", metadata={"help": "a file with the password, readable by you alone"})
    ca: str = field(default="", metadata={"help": "certificates that the archive's is checked against; none: the system's"})
    certificate: str = field(default="", metadata={"help": "own certificate (PEM), where the archive asks for one"})
    private_key: str = field(default="", metadata={"help": "the key of own certificate (PEM)"})
    timeout: float = field(default=60.0, metadata={"help": "seconds to wait for an answer"})
    retries: int = field(default=5, metadata={"help": "tries after a failure, with pauses of 1, 2, 4, ... seconds"})


@dataclass(frozen=True)
class Address:
    """An archive's address, taken apart. ``title`` is its AE title; empty for DICOMweb, whose ``url`` is all there is."""

    url: str
    host: str
    port: int
    title: str
    secure: bool

    @classmethod
    def of(cls, url: str) -> "Address":
        """Raises SettingsError where it is none."""
        parts = urlsplit(url)
        try:
            host, port = parts.hostname or "", parts.port
        except ValueError:
            host, port = "", None
        web = parts.scheme in ("http", "https")
        whole = bool(host) and (web or (port is not None and re.fullmatch(r"[\x21-\x7e]{1,16}", parts.username or "")))
        if parts.scheme not in ("dicom", "dicoms", "http", "https") or not whole or (web and parts.username is not None):
            raise SettingsError(
                f"{parts._replace(netloc=parts.netloc.rpartition('@')[2]).geturl()!r} is no archive's address. Give "
                "dicom://AET@host:port, dicoms://AET@host:port (TLS) or https://host/path (DICOMweb; a user by user=...)."
            )
        return cls(
            url=url, host=host, port=port or 0, title="" if web else parts.username or "", secure=parts.scheme in ("dicoms", "https")
        )

    @property
    def local(self) -> bool:
        """Whether it is this very machine."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


def password_of(connection: Connection) -> str:
    """The password of ``connection.user``. Raises SettingsError where there is none, or where others can read it."""
    if not connection.password_file:
        if PASSWORD in os.environ:
            return os.environ[PASSWORD]
        raise SettingsError(f"user={connection.user} needs a password. Set ${PASSWORD} or password_file=...; never the command line.")
    path = Path(connection.password_file).expanduser()
    try:
        status, password = path.stat(), path.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise SettingsError(f"password_file={path} cannot be read ({error.strerror}).") from error
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise SettingsError(f"password_file={path} is open to others. Run: chmod 600 {path}")
    return password


def tls(connection: Connection, purpose: ssl.Purpose = ssl.Purpose.SERVER_AUTH) -> ssl.SSLContext:
    """Certificates are always checked: there is no setting that turns it off."""
    try:
        context = ssl.create_default_context(purpose, cafile=connection.ca or None)
        if connection.certificate:
            context.load_cert_chain(connection.certificate, connection.private_key or None)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"ca, certificate or private_key cannot be used: {error.strerror or error}.") from error
    return context


def missing_extra(error: ImportError) -> MedsynthError:
    """What to say where the libraries are not installed."""
    return MedsynthError(f"{error.name} is not installed. Archives need the extra 'pacs': pip install 'medsynth-diffusion[pacs]'.")
