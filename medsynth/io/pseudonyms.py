"""Names that cannot be turned back.

A pseudonym is an HMAC-SHA256 under a key that lives outside every run: the same person has the same name in each run of one site, and
nobody without the key can test a guess.
"""

import hmac
import os
import secrets
import stat
from pathlib import Path

from medsynth.errors import MedsynthError

KEY_BYTES = 32


def load_key(path: Path | str, *, setting: str = "paths.key") -> bytes:
    """The 32 secret bytes that ``setting`` names; new random ones, readable by the owner alone, where there are none.

    Whoever loses the key of the pseudonyms cannot match old ones to new ones; whoever publishes it publishes their meaning.
    """
    path = Path(path).expanduser()
    try:
        if not path.exists():
            _create_key(path)
        status = path.stat()
        key = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
    except OSError as error:
        raise MedsynthError(
            f"The key file {path} cannot be read or made ({error.strerror}). Set {setting} to a file of your own."
        ) from error
    if status.st_mode & 0o077:
        raise MedsynthError(f"The key file {path} is open to others (mode {status.st_mode & 0o777:03o}). Run: chmod 600 {path}")
    if len(key) < KEY_BYTES:
        raise MedsynthError(
            f"The key file {path} holds {len(key)} bytes, not {KEY_BYTES}. Restore it, or remove it to start with a new key."
        )
    return key


def existing_key(path: Path | str) -> bytes | None:
    """The same, but None where there is none: a new one would recognise nothing."""
    path = Path(path).expanduser()
    return load_key(path) if path.is_file() else None


def _create_key(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        # a link, not a rename: of two processes that start together, one key wins and both read it
        os.link(partial, path)
    except FileExistsError:
        pass
    finally:
        partial.unlink(missing_ok=True)


def pseudonym(key: bytes, kind: str, value: str) -> str:
    """A short name for ``value``, such as ``sub-1a2b3c4d5e6f``: 48 bits, so that of a million names two agree with a chance of 1 in 560."""
    return f"{ {'subject': 'sub'}.get(kind, kind) }-{keyed_hash(key, kind, value)[:12]}"


def keyed_hash(key: bytes, kind: str, value: str) -> str:
    """HMAC-SHA256 of ``value``, hexadecimal; hashes of one ``kind`` say nothing about those of another."""
    return hmac.digest(key, f"{kind}\x1f{value}".encode("utf-8", "surrogateescape"), "sha256").hex()


def new_uid(key: bytes, uid: str) -> str:
    """The UID that stands for ``uid``, below ``2.25`` (PS3.5 B.2). The same key gives the same UID on every machine and in every run.

    96 bits are a keyed hash of ``uid``: of a million UIDs two agree with a chance of 1 in 10^17. The other 32 are a keyed hash of these 96,
    so that a UID made here is known again (`is_new_uid`) and stands for itself: what is de-identified twice is de-identified once.
    """
    if is_new_uid(key, uid):
        return uid
    name = hmac.digest(key, f"uid\x1f{uid}".encode(), "sha256")[:12]
    return f"2.25.{int.from_bytes(name + _seal(key, name), 'big')}"


def is_new_uid(key: bytes, uid: str) -> bool:
    """Whether `new_uid` made this UID under this key; for another it holds by chance once in four billion."""
    number = uid.removeprefix("2.25.")
    if number == uid or not number.isdecimal() or int(number) >= 1 << 128:
        return False
    value = int(number).to_bytes(16, "big")
    return hmac.compare_digest(value[12:], _seal(key, value[:12]))


def _seal(key: bytes, name: bytes) -> bytes:
    return hmac.digest(key, b"seal\x1f" + name, "sha256")[:4]


def days_back(key: bytes, subject: str) -> int:
    """By how many days a subject's dates move into the past: 1 to 3650, the same for all of its dates, so that intervals stay."""
    return 1 + int(keyed_hash(key, "days", subject)[:15], 16) % 3650
