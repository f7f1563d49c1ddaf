"""The audit of anybody's cohort, without a model of ours: three paths go in, a verdict with its evidence comes out.

``medsynth audit synthetic=PATH train=PATH holdout=PATH``. The checks are those of the stage `medsynth.stages.audit`, at a level that is
chosen before the look, and each look is counted in a ledger beside ``out``. Checks that need more than these images, such as the model, are
not done and named as such; the search for copies always decides. What is written names training images and shows them: it stays inside.
"""

import csv
import json
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from medsynth import config
from medsynth.audit import ledger
from medsynth.audit.finding import Check, Evidence, Finding, tested
from medsynth.audit.level import level_named
from medsynth.errors import Refused, SettingsError
from medsynth.io.identifiers import write_identifiers
from medsynth.rng import seed_for
from medsynth.stages import privacy
from medsynth.stages.anyfolder import Reading, read_cohorts, refuse_overlap
from medsynth.stages.audit import examine, verdict_of
from medsynth.stages.report import pairs_of
from medsynth.tools import READING, folder_for, parse

TAKEN = ("audit.", "check", "data.", "run.seed")  # of the settings of stages, these mean something here
DECIDES = "memorization"  # required whatever can be done
WORD = {"pass": "PASSED", "fail": "FAILED", "inconclusive": "UNDECIDED"}


@dataclass
class Settings:
    synthetic: str = field(
        default=MISSING, metadata={"help": "the cohort to be judged: a folder of NIfTI or DICOM, .npy, .npz or a cohort.jsonl"}
    )
    train: str = field(default=MISSING, metadata={"help": "the real images that its generator learned from, all of them"})
    holdout: str = field(default=MISSING, metadata={"help": "real images of people that it never saw, of the same kind"})
    out: str = field(default="", metadata={"help": "folder for findings.json, index.html, pairs/; none: ./audit-NAME"})
    subjects: str = field(
        default="", metadata={"help": "whose images they are: a CSV (image, subject), 'folders', a pattern; none: sub-XXX in the path"}
    )
    place: str = field(default="space", metadata={"help": "space: millimetres are trusted; box: whole images were resized"})


def perform(arguments: Sequence[str]) -> None:
    """Read the command line, audit, print the verdict. Raises Refused unless it is "pass"."""
    own = [argument for argument in arguments if argument.partition("=")[0] in {field.name for field in fields(Settings)}]
    names = ", ".join(field.name for field in fields(Settings))
    others = [argument for argument in arguments if argument not in own]
    if strange := [argument for argument in others if not argument.startswith(TAKEN)]:
        raise SettingsError(
            f"{strange[0]}: an audit of folders takes {names}, audit.level, check, data.* and run.seed. See medsynth audit --help."
        )
    settings = parse(Settings, own)
    given = [argument.partition("=")[0] for argument in others]
    follows = ["data.size=[1,1,1]"] if "data.dims=3" in others and "data.size" not in given else []  # from the images; a stage would ask
    cfg = config.compose([*others, *follows])
    run(settings, config.values(cfg), config.build(cfg, ["check"])["check"], given)


def run(settings: Settings, values: config.Settings, checks: Mapping[str, Check], given: Sequence[str] = ()) -> None:
    """Audit and tell. ``values`` are the settings of stages, of which ``given`` names those that the user chose."""
    level = level_named(values.audit.level)
    if DECIDES not in checks:
        raise SettingsError(f"check={sorted(checks)}: without {DECIDES} nothing can pass. Add it.")
    paths = {"train": settings.train, "holdout": settings.holdout, "synthetic": settings.synthetic}
    out = _folder(settings)
    with tempfile.TemporaryDirectory(dir=out, prefix=READING) as scratch:
        reading = read_cohorts(
            paths, values.data, Path(scratch), reference="train", given=given, place=settings.place, subjects=settings.subjects
        )
        refuse_overlap(reading.cohorts["train"], reading.cohorts["holdout"])
        hashes, key = Path(scratch) / "identifiers.json", secrets.token_bytes(32)
        seen = [value for name in ("train", "holdout") for value in reading.identifiers[name]]
        if seen:
            write_identifiers(hashes, key, seen)
        evidence = Evidence(
            **reading.cohorts,
            level=level,
            seed=seed_for(values.run.seed, "audit"),
            folders=(_leaving(settings.synthetic),),
            identifiers=hashes,
            key=key,
        )
        headers = reading.kinds["train"] == "DicomTree"
        findings = examine(
            evidence,
            checks,
            out,
            out.parent / ledger.LEDGER,
            judged=lambda finding: _judged(finding, headers),
            told={"preprocessing": dict(reading.preprocessing)},
        )
        _write_files(out / "cases.tsv", reading)
        page = _page(out, evidence)
    (out / "index.html").write_text(page, encoding="utf-8")
    _tell(findings, reading, evidence, out)


def _folder(settings: Settings) -> Path:
    """``out``, made for its owner alone; refused where it holds something else than an audit."""
    root = Path(settings.synthetic).expanduser().resolve()
    name = root.parent.name if root.name == "cohort.jsonl" else root.name.partition(".")[0]
    out = Path(settings.out).expanduser() if settings.out else Path(f"audit-{name}")
    return folder_for(out, "an audit", ("findings.json", "looks.json", "pairs", "cases.tsv", "index.html"))


def _leaving(path: str) -> Path:
    root = Path(path).expanduser()
    return root.parent if root.name == "cohort.jsonl" else root


def _judged(finding: Finding, headers: bool) -> Finding:
    """What could not be done for want of more than images decides nothing; nor do names of files, which are counted alike everywhere."""
    undone = finding.verdict == "inconclusive" and finding.value is None
    counted = finding.check == "identifiers" and not headers
    return replace(finding, required=False) if finding.check != DECIDES and (undone or counted) else finding


def _write_files(path: Path, reading: Reading) -> None:
    """Whose file each case is: what leads the curator from a pair to the image."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(("case", "subject", "file"))
        writer.writerows((case.id, case.subject, reading.files[case.id]) for cohort in reading.cohorts.values() for case in cohort)


def _page(out: Path, evidence: Evidence) -> str:
    audit, looks = (json.loads((out / name).read_text(encoding="utf-8")) for name in ("findings.json", "looks.json"))
    real = replace(evidence.train, cases=(*evidence.train.cases, *evidence.holdout.cases))
    counts = {"made": len(evidence.synthetic)}
    counts |= {name: len(set(getattr(evidence, name).subjects)) for name in ("train", "holdout")}
    pairs = pairs_of(audit, real, evidence.synthetic)
    return privacy.page(audit | {"looks": looks}, name=out.name.removeprefix("audit-"), counts=counts, pairs=pairs)


def _tell(findings: Sequence[Finding], reading: Reading, evidence: Evidence, out: Path) -> None:
    verdict = verdict_of(findings)
    for name, cohort in reading.cohorts.items():
        lost = f"; unreadable: {', '.join(f'{n} {code}' for code, n in reading.rejected[name].items())}" if reading.rejected[name] else ""
        people = f" of {len(set(cohort.subjects))} subjects" if cohort.header.unit == "subject" and name != "synthetic" else ""
        print(f"{name:<10}{len(cohort)} images{people}{lost}")
    grid: Mapping[str, Any] = reading.preprocessing
    size, spacing = (" x ".join(f"{n:g}" for n in grid[part]) for part in ("size", "spacing"))
    print(f"{'grid':<10}{size} at {spacing} mm, {grid['intensity']}")
    if evidence.train.header.unit == "image":
        print("Every claim is about images, not people: nothing tells whose they are (subjects=).")
    print()
    for finding in sorted(findings, key=lambda finding: not finding.required):
        said = WORD[finding.verdict].lower() + ("" if finding.required else ", for information") if tested(vars(finding)) else "not tested"
        print(f"{finding.check}: {said}. {'Within every limit.' if finding.why == evidence.level.claim else finding.why}")
    print(f"\n{WORD[verdict]} at level {evidence.level.name}: {out / 'index.html'} (shows real images: do not pass on)")
    if verdict != "pass":
        raise Refused(f"this cohort did not pass at level {evidence.level.name}.")
