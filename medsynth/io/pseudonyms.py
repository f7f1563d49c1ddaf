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


def load_key(path: Path | str) -> bytes:
    """The secret of the pseudonyms; a new one of 32 random bytes, readable by its owner alone, where there is none.

    Whoever loses it cannot match old pseudonyms to new ones; whoever publishes it publishes the pseudonyms' meaning.
    """
    path = Path(path).expanduser()
    try:
        if not path.exists():
            _create_key(path)
        status = path.stat()
        key = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
    except OSError as error:
        raise MedsynthError(
            f"The key file {path} cannot be read or made ({error.strerror}). Set paths.key to a file of your own."
        ) from error
    if status.st_mode & 0o077:
        raise MedsynthError(f"The key file {path} is open to others (mode {status.st_mode & 0o777:03o}). Run: chmod 600 {path}")
    if len(key) < KEY_BYTES:
        raise MedsynthError(
            f"The key file {path} holds {len(key)} bytes, not {KEY_BYTES}. Restore it, or remove it to start with a new key."
        )
    return key


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
    return f"{ {'subject': 'sub'}.get(kind, kind) }-{_digest(key, kind, value)[:12]}"


def _digest(key: bytes, kind: str, value: str) -> str:
    return hmac.digest(key, f"{kind}\x1f{value}".encode("utf-8", "surrogateescape"), "sha256").hex()
