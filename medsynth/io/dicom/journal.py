"""The journal of a scan: what was read of each file, so that an interrupted scan goes on where it stopped.

It lies in the run folder, which keeps nothing that identifies: each record is sealed (AES-GCM) with a key derived from the pseudonyms' key,
for this folder and these keywords. A record that does not open, such as a torn last one, or one made for something else, is as if it
were not there; a file that has changed since is read again.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from medsynth.io.dicom.headers import Header, Outcome
from medsynth.io.dicom.reasons import Refusal
from medsynth.io.dicom.segmentations import Segmentation

_NONCE = 12  # bytes, NIST SP 800-38D
_KINDS = {kind.__name__: kind for kind in (Header, Refusal, Segmentation)}


class Journal:
    """``key`` is secret; ``path`` is written anew or continued."""

    def __init__(self, path: Path, key: bytes) -> None:
        self.path = path
        self._cipher = AESGCM(hashlib.sha256(key + b"scan journal").digest())

    def read(self, root: Path, keywords: Sequence[str]) -> dict[str, Outcome]:
        """Outcomes by path, of those files that are as they were. What an interruption tore off is cut, so that `add` goes on behind it."""
        found: dict[str, Outcome] = {}
        whole = 0  # bytes up to the end of the last record that was written as a whole
        if not self.path.exists():
            return found
        with self.path.open("r+b") as file:
            while length := int.from_bytes(file.read(4), "big"):
                sealed = file.read(length)
                if len(sealed) < length:
                    break
                whole = file.tell()
                try:
                    record = json.loads(self._cipher.decrypt(sealed[:_NONCE], sealed[_NONCE:], _purpose(root, keywords)))
                except (InvalidTag, ValueError):
                    continue
                found.update({path: _restored(kept) for path, stamp, kept in record if stamp == _stamp(path)})
            file.truncate(whole)  # a torn end would swallow the beginning of what is added behind it
        return found

    def add(self, root: Path, keywords: Sequence[str], outcomes: Mapping[str, Outcome]) -> None:
        """One more record."""
        record = json.dumps([(path, _stamp(path), _plain(outcome)) for path, outcome in outcomes.items()]).encode()
        nonce = os.urandom(_NONCE)
        sealed = nonce + self._cipher.encrypt(nonce, record, _purpose(root, keywords))
        with self.path.open("ab") as file:
            file.write(len(sealed).to_bytes(4, "big") + sealed)


def _purpose(root: Path, keywords: Sequence[str]) -> bytes:
    return json.dumps([str(root), *keywords, *(field.name for field in fields(Header))]).encode()


def _stamp(path: str) -> list[int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _plain(outcome: Outcome) -> object:
    if outcome is None or isinstance(outcome, list):
        return outcome and [_plain(header) for header in outcome]
    return {"kind": type(outcome).__name__} | {name: sorted(v) if isinstance(v, frozenset) else v for name, v in asdict(outcome).items()}


def _restored(kept: object) -> Outcome:
    if kept is None or isinstance(kept, list):
        return kept and [_restored(header) for header in kept]
    kind = _KINDS[kept.pop("kind")]
    frozen = {name: tuple(v) if isinstance(v, list) else v for name, v in kept.items()}
    return kind(**frozen | ({"refers_to": frozenset(frozen["refers_to"])} if kind is Segmentation else {}))
