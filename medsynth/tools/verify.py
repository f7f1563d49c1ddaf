"""verify: is a release whole, and who signed it. It needs nothing but the release."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from medsynth.audit.schema import faults_of
from medsynth.errors import MedsynthError, Refused
from medsynth.export.seal import files_of, signer, verify

SHOWN = 20  # problems named one by one


@dataclass
class Settings:
    path: str = field(metadata={"help": "a release folder"})
    trusted: str = field(default="any", metadata={"help": "fingerprint of the key that must have signed it, or a file that holds it"})


def run(settings: Settings) -> None:
    """Print the verdict. Raises Refused where a file is not what was signed, or another key signed it than the trusted one."""
    folder = Path(settings.path)
    if not folder.is_dir():
        raise MedsynthError(f"{folder} is not a folder. Give the folder that holds SHA256SUMS and signature.json.")
    if problems := verify(folder):
        more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise Refused("This is not the release that was signed:\n  " + "\n  ".join(problems[:SHOWN]) + more)
    found, trusted = signer(folder), "" if settings.trusted == "any" else _fingerprint(settings.trusted)
    if trusted and found != trusted:
        raise Refused(f"The release is whole, but {found} signed it, not the trusted {trusted}.")
    if (audit := folder / "audit.json").is_file() and (faults := _faults(audit)):
        raise Refused("The release is whole, but its audit.json is none:\n  " + "\n  ".join(faults[:SHOWN]))
    print(f"whole: {len(files_of(folder))} files are as they were signed")
    print(f"signed by {found}" + (" (trusted)" if trusted else ": compare it with the fingerprint that the sender gave you another way"))


def _faults(path: Path) -> list[str]:
    try:
        return faults_of(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError):
        return ["it cannot be read as JSON"]


def _fingerprint(trusted: str) -> str:
    if trusted.startswith("SHA256:"):
        return trusted
    path = Path(trusted).expanduser()
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    found = next((word for word in text.split() if word.startswith("SHA256:")), "")
    if not found:
        raise MedsynthError(f"trusted={trusted} is neither a fingerprint (SHA256:...) nor a file that holds one.")
    return found
