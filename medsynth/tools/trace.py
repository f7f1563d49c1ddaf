"""trace: into which runs and releases did a person go, for example one who withdraws consent."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from medsynth.audit import ledger
from medsynth.cohort import SPLITS, Cohort
from medsynth.errors import MedsynthError
from medsynth.io.pseudonyms import load_key, pseudonym

USE = {
    "train": "a model was trained on them: its weights and every cohort drawn from it go back to this person too",
    "validation": "watched during training, and may have chosen a checkpoint",
    "holdout": "control of the audit, reference of the quality; no model saw them",
}


@dataclass
class Settings:
    subject: str = field(
        metadata={"help": "the person's id in the archive: PatientID, or PatientID@issuer; the file's name without folders"}
    )
    runs: str = field(default="runs", metadata={"help": "folder of the runs"})
    key: str = field(default="~/.config/medsynth/pseudonym.key", metadata={"help": "key of the pseudonyms that prepare used"})


def run(settings: Settings) -> None:
    """Print each run that holds the person, what they were used for, and whether a release came of it."""
    runs, key = Path(settings.runs).expanduser(), Path(settings.key).expanduser()
    if not key.is_file():
        raise MedsynthError(f"{key} is no file. Without the key that prepare used nobody can be recognised; give key=FILE.")
    manifests = sorted(runs.glob("*/prepare/cohort.jsonl"))
    if not manifests:
        raise MedsynthError(f"{runs} holds no prepared run. Give runs=FOLDER.")
    name = pseudonym(load_key(key), "subject", settings.subject)
    print(f"pseudonym {name}, looked for in {len(manifests)} runs")
    found = 0
    for manifest in manifests:
        cohort, known_as = Cohort.read(manifest), _counts_as(manifest.with_name("merged.jsonl"), name)
        counts = {split: sum(case.subject == known_as for case in cohort.split(split)) for split in SPLITS}
        for split, count in counts.items():
            if count:
                found += 1
                _tell(manifest.parents[1], split, count)
    if not found:
        raise MedsynthError(
            f"No run holds {name}. The id must be the archive's own, to the letter (of a NIfTI file its name with .nii.gz), and key=FILE "
            "the key that prepare used: another id or key gives another pseudonym."
        )


def _counts_as(path: Path, name: str) -> str:
    """The pseudonym under which the run knows this one: another's, where they share an equal image."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {row["subject"]: row["counts_as"] for row in map(json.loads, lines)}.get(name, name)


def _tell(root: Path, split: str, count: int) -> None:
    print(f"\n{root}: {count} {'case' if count == 1 else 'cases'}, {split} ({USE[split]})")
    done = [stage for stage in ("train", "sample", "release") if (root / stage / "receipt.json").is_file()]
    print(f"  made from it: {', '.join(done) or 'nothing yet'}")
    if "release" in done:
        cohort = Cohort.read(root / "sample" / "cohort.jsonl")
        print(f"  released: {root / 'release'}, {len(cohort)} synthetic cases, cohort {cohort.digest[:12]}")
    train = Cohort.read(root / "prepare" / "cohort.jsonl").split("train").digest
    if shares := ledger.releases(root.parent / ledger.LEDGER, train):
        print(f"  of this training set in all: {len(shares)} released cohorts, {sum(share['cases'] for share in shares)} cases")
