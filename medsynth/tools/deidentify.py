"""``medsynth deidentify``: the cleaned DICOM and NIfTI themselves, for those who want only that."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args, get_origin

from medsynth.deidentify import burned_in as text_in_pixels
from medsynth.deidentify.folder import JOURNAL, counts, deidentify
from medsynth.deidentify.image import Cleaner
from medsynth.deidentify.profile import EDITION, Options
from medsynth.errors import SettingsError
from medsynth.io.pseudonyms import load_key


def _setting(default: str, text: str) -> str:
    return field(default=default, metadata={"help": text})


@dataclass
class Settings:
    path: str = field(metadata={"help": "the folder of DICOM and NIfTI files, any names, any depth"})
    out: str = field(metadata={"help": "a new folder for the cleaned files; an interrupted run goes on"})
    key: str = _setting("~/.config/medsynth/pseudonym.key", "the secret of the pseudonyms, outside of out; made where there is none")
    dates: str = _setting("remove", "remove, or shift: all of a person's dates by the same number of days (113107)")
    descriptors: str = _setting("remove", "remove, or clean: keep the words of a medical vocabulary (113105)")
    graphics: str = _setting("remove", "remove, or clean: keep overlays in which no text is seen (113103)")
    private: str = _setting("remove", "remove, or safe: keep numbers that PS3.15 lists as safe (113111)")
    patient: str = _setting("remove", "remove, or keep: sex, age (at most 90 years), size, weight (113108)")
    burned_in: str = _setting("reject", "images that show text: reject, mask (113101), or keep")
    faces: str = _setting("reject", "CT, MR and PET of a head, and NIfTI volumes: reject, or keep (marked as recognisable)")
    mapping: str = _setting("", "a new file for the way back, readable by you alone; none is written unless asked")
    workers: int = field(default=2, metadata={"help": "processes"})


def run(settings: Settings) -> None:
    """Clean the folder and print the table of verdicts. Raises SettingsError, MedsynthError."""
    mistakes = [
        f"{name}={getattr(settings, name)}: it is one of {', '.join(choices)}."
        for name, choices in _choices().items()
        if getattr(settings, name) not in choices
    ]
    out, key = Path(settings.out).expanduser(), Path(settings.key).expanduser()
    if key.resolve().is_relative_to(out.resolve()):
        mistakes.append(f"key={key} lies in out: who gets the files would get the key. Keep it elsewhere.")
    if mistakes:
        raise SettingsError("\n".join(mistakes))
    options = {name: getattr(settings, name) for name in Options.__annotations__}
    cleaner = Cleaner(key=load_key(key), options=Options(**options), burned_in=settings.burned_in, faces=settings.faces)
    if not text_in_pixels.is_installed() and settings.burned_in != "keep":
        print("tesseract is not installed: text in pixels is judged by attributes alone, and no image is declared clean (0028,0301).")
    mapping = Path(settings.mapping).expanduser() if settings.mapping else None
    verdicts = deidentify(Path(settings.path).expanduser(), out, cleaner, workers=settings.workers, mapping=mapping)
    rows = [(str(count), verdict, code) for (verdict, code), count in sorted(counts(verdicts).items(), key=lambda item: -item[1])]
    print("\n".join(f"{count:>8}  {verdict:<9} {code}".rstrip() for count, verdict, code in [("files", "verdict", "reason"), *rows]))
    print(f"PS3.15 {EDITION}, rebuilt by allow-list. Why each file was left out: {out / JOURNAL}")


def _choices() -> dict[str, tuple[str, ...]]:
    """The values that each setting may have, as the domain states them."""
    annotated = {**Options.__annotations__, "burned_in": Cleaner.__annotations__["burned_in"], "faces": Cleaner.__annotations__["faces"]}
    return {name: get_args(kind) for name, kind in annotated.items() if get_origin(kind) is Literal}
