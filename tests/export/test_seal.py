"""A sealed folder: every change is found, and nobody else can seal it in the signer's name."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from medsynth.cli import main
from medsynth.export.seal import SIGNATURE, SUMS, seal, signer, verify
from tests.make_evidence import audit_result

SECRET = bytes(range(32))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    release = tmp_path / "release"
    (release / "nifti").mkdir(parents=True)
    (release / "audit.json").write_text(json.dumps(audit_result()))
    (release / "nifti" / "a.nii.gz").write_bytes(bytes(1000))
    seal(release, SECRET)
    return release


def test_the_signature_is_that_of_openssl(folder: Path):
    """An independent program takes the key and the signature."""
    content = json.loads((folder / SIGNATURE).read_text())
    # RFC 8410: the 12 bytes that name an Ed25519 key stand before it
    der = bytes.fromhex("302a300506032b6570032100" + content["public_key"])
    (folder.parent / "key.der").write_bytes(der)
    (folder.parent / "signature").write_bytes(bytes.fromhex(content["signature"]))
    check = ["openssl", "pkeyutl", "-verify", "-pubin", "-keyform", "DER", "-inkey", folder.parent / "key.der", "-rawin"]
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    subprocess.run([*check, "-in", folder / SUMS, "-sigfile", folder.parent / "signature"], check=True, capture_output=True)
    public = bytes.fromhex(content["public_key"])
    assert signer(folder) == "SHA256:" + base64.b64encode(hashlib.sha256(public).digest()).decode().rstrip("=")


@pytest.mark.parametrize("name", ["audit.json", "nifti/a.nii.gz"])
def test_one_changed_byte_is_found(folder: Path, name: str):
    kept = (folder / name).read_bytes()
    (folder / name).write_bytes(bytes([kept[0] ^ 1]) + kept[1:])
    assert verify(folder) == [f"changed {name}"]
    (folder / name).write_bytes(kept)
    assert verify(folder) == []


def test_missing_extra_and_linked_files_are_found(folder: Path):
    (folder / "nifti" / "a.nii.gz").unlink()
    (folder / "more").write_bytes(b"")
    shutil.move(folder / "audit.json", folder.parent / "elsewhere.json")
    (folder / "audit.json").symlink_to(folder.parent / "elsewhere.json")
    assert verify(folder) == ["changed audit.json", "extra more", "missing nifti/a.nii.gz"]


def test_sums_written_anew_do_not_fit_the_signature(folder: Path):
    (folder / "audit.json").write_text('{"verdict": "pass"}')
    sums = (folder / SUMS).read_text()
    changed = hashlib.sha256((folder / "audit.json").read_bytes()).hexdigest()
    (folder / SUMS).write_text(re.sub(r"^\w{64}(?=  audit)", changed, sums, flags=re.MULTILINE))
    assert verify(folder) == [f"forged {SIGNATURE}"]


@pytest.mark.parametrize("damage", ["", "[]", '{"public_key": "zz", "signature": ""}', '{"public_key": "", "signature": ""}'])
def test_a_damaged_signature_is_none(folder: Path, damage: str):
    (folder / SIGNATURE).write_text(damage)
    assert verify(folder) == [f"forged {SIGNATURE}"]
    (folder / SIGNATURE).unlink()
    (folder / SUMS).unlink()
    assert verify(folder) == [f"missing {SUMS}", f"missing {SIGNATURE}"]


def test_nothing_hides_beside_the_seal(folder: Path):
    (folder / "receipt.json").write_text('{"fingerprint": "ab", "stage": "release"}')
    assert verify(folder) == []
    (folder / "receipt.json").write_bytes(bytes(128) + b"DICM")
    assert verify(folder) == ["extra receipt.json"]
    (folder / "receipt.json").unlink()
    (folder / "receipt.json").symlink_to(folder / SUMS)
    assert verify(folder) == ["extra receipt.json"]
    (folder / "receipt.json").unlink()
    content = json.loads((folder / SIGNATURE).read_text())
    (folder / SIGNATURE).write_text(json.dumps(content | {"patient": "DOE^JANE"}, indent=1, sort_keys=True) + "\n")
    assert verify(folder) == [f"forged {SIGNATURE}"]


def test_an_audit_that_breaks_its_schema_is_refused_though_it_was_signed(folder: Path, capsys: pytest.CaptureFixture):
    (folder / "audit.json").write_text('{"verdict": "pass"}')
    seal(folder, SECRET)
    assert main(["verify", str(folder)]) == 3
    assert "'findings' is a required property" in capsys.readouterr().err


def test_whoever_seals_it_anew_has_another_fingerprint(folder: Path, capsys: pytest.CaptureFixture):
    honest = signer(folder)
    assert main(["verify", str(folder), f"trusted={honest}"]) == 0
    assert "(trusted)" in capsys.readouterr().out
    (folder / "audit.json").write_text(json.dumps(audit_result() | {"seed": 2}))
    assert main(["verify", str(folder)]) == 3
    assert "changed audit.json" in capsys.readouterr().err
    seal(folder, bytes(32))
    assert main(["verify", str(folder)]) == 0
    assert "another way" in capsys.readouterr().out
    (folder.parent / "trusted.txt").write_text(f"radiology {honest}\n")
    assert main(["verify", str(folder), f"trusted={folder.parent}/trusted.txt"]) == 3
    assert honest in capsys.readouterr().err
