"""The seal of a release: a hash of every file, and a signature of these hashes.

``SHA256SUMS`` is what ``sha256sum -c`` reads. ``signature.json`` holds an Ed25519 signature (RFC 8032) of its bytes and the public key, so
that a release is checked with nothing but itself. This shows that nothing was changed since it was signed; *who* signed it is shown by the
key's fingerprint alone, compared with one that came another way.
"""

import base64
import hashlib
import json
import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from medsynth.cohort import sha256_of

SUMS, SIGNATURE = "SHA256SUMS", "signature.json"
_OUTSIDE = (SUMS, SIGNATURE, "receipt.json")


def files_of(folder: Path) -> dict[str, Path]:
    """All files that the sums cover, by their name in the release: not the seal, nor the receipt that is written after it."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    return {name: found[name] for name in sorted(found) if name not in _OUTSIDE}


def seal(folder: Path, secret: bytes) -> str:
    """Write both files; the first 32 bytes of ``secret`` are the Ed25519 private key. Returns the key's fingerprint."""
    _write(folder / SUMS, "".join(f"{sha256_of(path)}  {name}\n" for name, path in files_of(folder).items()))
    key = Ed25519PrivateKey.from_private_bytes(secret[:32])
    public = key.public_key().public_bytes_raw()
    content = {"algorithm": "Ed25519", "public_key": public.hex(), "signature": key.sign((folder / SUMS).read_bytes()).hex(), "of": SUMS}
    _write(folder / SIGNATURE, json.dumps(content, indent=1, sort_keys=True) + "\n")
    return fingerprint(public)


def fingerprint(public: bytes) -> str:
    """Of a public key, in the form that OpenSSH prints: ``SHA256:`` and 43 characters."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(public).digest()).decode().rstrip("=")


def verify(folder: Path) -> list[str]:
    """Hash a release again and check its signature. Returns what is ``changed``, ``missing``, ``extra`` or ``forged``, each with the file's
    name; nothing where it is whole."""
    if missing := [f"missing {name}" for name in (SUMS, SIGNATURE) if not (folder / name).is_file()]:
        return missing
    try:
        public, signature = _signature(folder)
        Ed25519PublicKey.from_public_bytes(public).verify(signature, (folder / SUMS).read_bytes())
        expected = dict(reversed(line.split("  ", 1)) for line in (folder / SUMS).read_text(encoding="utf-8").splitlines())
    except (InvalidSignature, ValueError, KeyError, TypeError):
        return [f"forged {SIGNATURE}"]
    found = files_of(folder)
    problems = [f"missing {name}" for name in expected if name not in found]
    problems += [f"extra {name}" for name in found if name not in expected]
    # a link may point anywhere: it is no file of the release, whatever it points to
    problems += [
        f"changed {name}" for name, path in found.items() if name in expected and (path.is_symlink() or sha256_of(path) != expected[name])
    ]
    return sorted(problems)


def signer(folder: Path) -> str:
    """The fingerprint of the key that a verified release was signed with."""
    return fingerprint(_signature(folder)[0])


def _signature(folder: Path) -> tuple[bytes, bytes]:
    content = json.loads((folder / SIGNATURE).read_text(encoding="utf-8"))
    return bytes.fromhex(content["public_key"]), bytes.fromhex(content["signature"])


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
