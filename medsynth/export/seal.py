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
RECEIPT = "receipt.json"  # of the stage; written after the seal


def files_of(folder: Path) -> dict[str, Path]:
    """All files that the sums cover, by their name in the release: not the seal, nor the receipt that is written after it."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}
    return {name: found[name] for name in sorted(found) if name not in (SUMS, SIGNATURE, RECEIPT)}


def seal(folder: Path, secret: bytes) -> str:
    """Write both files; the first 32 bytes of ``secret`` are the Ed25519 private key. Returns the key's fingerprint."""
    _write(folder / SUMS, "".join(f"{sha256_of(path)}  {name}\n" for name, path in files_of(folder).items()))
    key = Ed25519PrivateKey.from_private_bytes(secret[:32])
    public = key.public_key().public_bytes_raw()
    content = {"algorithm": "Ed25519", "public_key": public.hex(), "signature": key.sign((folder / SUMS).read_bytes()).hex(), "of": SUMS}
    _write(folder / SIGNATURE, _as_text(content))
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
    except (InvalidSignature, ValueError, KeyError, TypeError, RecursionError):
        return [f"forged {SIGNATURE}"]
    found = files_of(folder)
    receipt = folder / RECEIPT
    stranger = receipt.is_symlink() or (receipt.exists() and not _is_receipt(receipt))
    problems = [f"extra {RECEIPT}"] * stranger
    problems += [f"missing {name}" for name in expected if name not in found]
    problems += [f"extra {name}" for name in found if name not in expected]
    # a link may point anywhere: it is no file of the release, whatever it points to
    problems += [
        f"changed {name}"
        for name, path in found.items()
        if name in expected and (path.is_symlink() or not path.is_file() or sha256_of(path) != expected[name])
    ]
    return sorted(problems)


def signer(folder: Path) -> str:
    """The fingerprint of the key that a verified release was signed with."""
    return fingerprint(_signature(folder)[0])


def _signature(folder: Path) -> tuple[bytes, bytes]:
    text = (folder / SIGNATURE).read_text(encoding="utf-8")
    content = json.loads(text)
    if set(content) != {"algorithm", "of", "public_key", "signature"} or text != _as_text(content):
        raise ValueError("more than a signature")
    return bytes.fromhex(content["public_key"]), bytes.fromhex(content["signature"])


def _as_text(content: dict[str, str]) -> str:
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def _is_receipt(path: Path) -> bool:
    """Whether it is the stage's own note, that is no evidence and that nothing reads: JSON with a fingerprint, and no image."""
    try:
        return path.is_file() and "fingerprint" in json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, RecursionError):
        return False


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
