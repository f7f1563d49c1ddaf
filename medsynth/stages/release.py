"""release: the only way out, and it is shut unless the evidence opens it.

Reads what every stage left and refuses, with all reasons at once, unless the audit is finished, untouched, about this very cohort and
model, at the level that was asked for, and every required finding passes. Then all that leaves is staged beside the final folder, its bytes
are searched for every identifier that ``prepare`` saw, and it arrives by one rename. A written ``release.override`` lifts a verdict, and
stands at the top of the release; it lifts nothing else, since evidence about another cohort is no evidence, and an identifier is never a
matter of judgement.
"""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from tqdm import tqdm

from medsynth import __version__
from medsynth.audit import ledger
from medsynth.audit.schema import faults_of, validated
from medsynth.audit.together import share_of, together
from medsynth.cohort import Case, Cohort, sha256_of
from medsynth.config import ReleaseSettings
from medsynth.diffusion.checkpoint import DESCRIPTION, WEIGHTS
from medsynth.errors import MedsynthError, Refused
from medsynth.export import bids, datasheet, dicom, nifti, seal, segmentation
from medsynth.export.croissant import croissant
from medsynth.export.model_card import model_card
from medsynth.export.scorecard import scorecard
from medsynth.io.identifiers import WEAK
from medsynth.io.pseudonyms import existing_key, load_key
from medsynth.io.search import find
from medsynth.metrics.schema import validated as valid_metrics
from medsynth.receipt import RECEIPT, Receipt
from medsynth.stages import STAGES, Run, privacy, weights_of
from medsynth.stages.audit import ledger_of
from medsynth.stages.rejection import VERDICT
from medsynth.stages.viewer import packed_library
from medsynth.tracking import PRIVATE

log = logging.getLogger(__name__)

SMALL_CELL = 11  # numbers about fewer real people than this stay inside (the customary bound of 9 % risk)
REQUIRED = frozenset({"identifiers", "linkage", "membership_cohort", "memorization", "pixels"})  # checks without which nothing leaves
CONFIRMING = frozenset({"confirmation"})  # and without these nothing whose copies were rejected: what rejected them cannot judge
SEALED = ("audit", "report")  # receipts that the key of the pseudonyms must have sealed
EVIDENCE = ("prepare", "train", "sample", "audit", "evaluate", "report")


@dataclass(frozen=True)
class Objection:
    """Why a release is refused: a short code, and a sentence that says the way out. ``liftable``: a written override may set it aside."""

    code: str
    why: str
    liftable: bool = False

    def __str__(self) -> str:
        return f"{self.code}: {self.why}"


def work(run: Run, folder: Path) -> None:
    reason = run.settings.release.override.strip()
    objections = objections_to(run)
    if objections and not (reason and all(objection.liftable for objection in objections)):
        raise _refusal(objections, reason)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of an attempt that was killed
    partial.mkdir()
    try:
        cohort = Cohort.read(run.folder("sample") / "cohort.jsonl")
        written = _stage(run, cohort, partial, reason if objections else "", objections)
        if leaks := leaks_in(run, partial):
            raise _refusal(leaks, reason)
        # Last, as they add nothing but hashes, and of a hundred thousand of these some hold the digits of somebody's birthday.
        _write_manifest(cohort, written, partial)
        fingerprint = seal.seal(partial, load_key(_signing_key(run), setting="paths.signing_key"))
        _count(run, cohort)
        shutil.rmtree(folder, ignore_errors=True)  # it arrived before, but its receipt did not
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    run.tracker.dataset("released", cohort.digest, len(cohort), "release")
    run.tracker.artifact(folder / "datasheet.md", "release")
    if not objections:
        run.tracker.alias(weights_of(run.root), "champion")
    in_spite = ", IN SPITE OF ITS EVIDENCE (release.override)" if objections else ""
    log.info("release: %d cases%s, signed by %s", len(cohort), in_spite, fingerprint)


def _count(run: Run, cohort: Cohort) -> None:
    """Into the ledger, before the release is there: of cohorts that left none is forgotten, though its run folder may be."""
    findings = json.loads((run.folder("audit") / "findings.json").read_text(encoding="utf-8"))
    share = share_of(cohort.digest, len(cohort), findings["findings"])
    path, witness = ledger_of(run)
    ledger.write(path, {"train": findings["train"], "synthetic": cohort.digest, "released": share}, witness)


def _together(run: Run, cohort: Cohort, findings: Mapping[str, Any]) -> dict[str, Any]:
    """All cohorts released from this training set, this one included."""
    (path, witness), train = ledger_of(run), findings["train"]
    earlier = [share for share in ledger.releases(path, train, witness) if share["synthetic"] != cohort.digest]
    shares = [*earlier, share_of(cohort.digest, len(cohort), findings["findings"])]
    return together(shares, told=len(ledger.looks(path, train, witness)), taken=ledger.taken(path, train, witness))


def _signing_key(run: Run) -> Path:
    paths = run.settings.paths
    return Path(paths.signing_key or Path(paths.key).with_name("signing.key"))


def _refusal(objections: Sequence[Objection], reason: str) -> Refused:
    lines = "\n".join(f"  {objection}" for objection in objections)
    if all(objection.liftable for objection in objections):
        ways = (
            "A person who takes the responsibility can release it with release.override='the written reason', which stays in the release."
        )
    else:
        ways = "release.override lifts verdicts only" + (", and not what stands here." if reason else "; it does not lift all of this.")
    return Refused(f"The release is refused:\n{lines}\n{ways}")


# ---------------------------------------------------------------------------------------------------------------------------- evidence


def objections_to(run: Run) -> list[Objection]:
    """Everything in the run's evidence that stands against a release. First that it is whole and about this cohort, then what it says."""
    receipts = {stage: Receipt.read(run.folder(stage) / RECEIPT) for stage in EVIDENCE}
    missing = [
        Objection("missing-stage", f"'{stage}' is not finished. Run 'medsynth {stage}'.")
        for stage, receipt in receipts.items()
        if receipt is None
    ]
    if missing:
        return missing
    broken = [*_changed(run, receipts), *_unrelated(receipts)]
    if key := existing_key(run.settings.paths.key):
        broken += _unsealed(receipts, key)
    else:
        broken.append(Objection("no-key", "paths.key is no file; without the key of prepare nothing can be searched for identifiers."))
    if broken:
        return broken
    try:
        findings = json.loads((run.folder("audit") / "findings.json").read_text(encoding="utf-8"))
    except ValueError:
        findings = None
    if faults := faults_of(findings):
        return [
            Objection("unreadable-findings", f"audit/findings.json is not what the audit writes ({faults[0]}). Run 'medsynth audit' again.")
        ]
    return [
        *_page_changed(run),
        *_about_others(run, findings),
        *_filtered_unseen(run, receipts["sample"]),
        *_cut_ledger(run, findings),
        *_verdicts(run, findings),
    ]


def _changed(run: Run, receipts: Mapping[str, Receipt]) -> Iterable[Objection]:
    for stage, receipt in receipts.items():
        if set(receipt.outputs) != set(STAGES[stage].outputs):
            yield Objection(
                "tampered", f"{stage}/{RECEIPT} does not name what '{stage}' makes. Delete the folder and run 'medsynth {stage}'."
            )
        for name, sha256 in receipt.outputs.items():
            path = run.folder(stage) / name
            if not path.is_file() or sha256_of(path) != sha256:
                yield Objection(
                    "tampered", f"{stage}/{name} is not what '{stage}' wrote. Delete the folder {stage} and run 'medsynth {stage}'."
                )


def _unsealed(receipts: Mapping[str, Receipt], key: bytes) -> Iterable[Objection]:
    """The audit and the report run where the key is. Their receipts name what all other stages made, which may run where it is not."""
    for stage, receipt in receipts.items():
        if (stage in SEALED or receipt.seal) and not receipt.is_sealed(key):
            yield Objection(
                "forged",
                f"{stage}/{RECEIPT} does not bear the seal of paths.key: it was written by hand, or without that key. Delete the folder "
                f"{stage} and run 'medsynth {stage}'.",
            )


def _cut_ledger(run: Run, findings: Mapping[str, Any]) -> Iterable[Objection]:
    """The ledger still tells every look that the audit told, and as many lines as the witness beside the key has seen."""
    path, witness = ledger_of(run)
    told = json.loads((run.folder("audit") / "looks.json").read_text(encoding="utf-8"))
    try:
        known = ledger.looks(path, findings["train"], witness)
    except MedsynthError as error:
        yield Objection("ledger", str(error))
        return
    if known[: len(told)] != told:
        yield Objection(
            "ledger",
            f"audit/looks.json tells looks that {path.name} does not. Restore that, or delete the folder audit and run 'medsynth audit'.",
        )


def _page_changed(run: Run) -> Iterable[Objection]:
    path = run.folder("report") / "shareable.html"
    if (expected := _page_sha256(run)) and (not path.is_file() or sha256_of(path) != expected):
        yield Objection("tampered", f"report/{path.name} is not what 'report' wrote. Delete the folder report and run 'medsynth report'.")


def _page_sha256(run: Run) -> str | None:
    """Of the page that the report made to leave, which there is where the audit passed: no output of the stage, but one of it names it."""
    return json.loads((run.folder("report") / "report.json").read_text(encoding="utf-8")).get("shareable_sha256")


def _unrelated(receipts: Mapping[str, Receipt]) -> Iterable[Objection]:
    for stage, receipt in receipts.items():
        for need in STAGES[stage].needs:
            if receipt.inputs.get(need) != receipts[need].made:
                code = "other-cohort" if need == "sample" else "other-inputs"
                yield Objection(
                    code,
                    f"'{stage}' was made from another '{need}' than the one here. Delete the folder {stage} and run 'medsynth {stage}'.",
                )


def _about_others(run: Run, findings: Mapping[str, Any]) -> Iterable[Objection]:
    """The findings name the cohorts that they are about by their digests."""
    again = "Delete the folder audit and run 'medsynth audit'."
    if findings["synthetic"] != Cohort.read(run.folder("sample") / "cohort.jsonl").digest:
        yield Objection("other-cohort", f"the findings are about another synthetic cohort than sample/cohort.jsonl. {again}")
    real = Cohort.read(run.folder("prepare") / "cohort.jsonl")
    if findings["train"] != real.split("train").digest:
        yield Objection("other-training-set", f"the findings compare with another training set than prepare/cohort.jsonl. {again}")
    if findings["holdout"] != real.split("holdout").digest:
        yield Objection("other-holdout", f"the findings rest on other held-out subjects than those of prepare/cohort.jsonl. {again}")
    if not real.split("holdout").cases:
        yield Objection("no-holdout", "nobody was held out, so nothing says what is near by chance. Prepare with data.splits.holdout.")
    if findings["level"]["name"] != run.settings.audit.level:
        yield Objection(
            "other-level",
            f"the findings are at level {findings['level']['name']!r}, and audit.level={run.settings.audit.level!r} is asked for. {again}",
        )


def _filtered_unseen(run: Run, sampled: Receipt) -> Iterable[Objection]:
    """Copies may be rejected only after the cohort with them was judged, and that verdict stays."""
    header = Cohort.read(run.folder("sample") / "cohort.jsonl").header
    verdict = run.folder("sample") / VERDICT
    told = header.made_with.get("unfiltered")
    if not told and not header.rejected and not sampled.settings.get("sampling.reject"):
        return
    if not told or not verdict.is_file() or sha256_of(verdict) != told:
        yield Objection(
            "no-unfiltered-verdict",
            f"copies were rejected, and sample/{VERDICT} is not the verdict on the cohort before. Delete the folder sample and run "
            "'medsynth run' again.",
        )


def _verdicts(run: Run, findings: Mapping[str, Any]) -> Iterable[Objection]:
    required = [finding for finding in findings["findings"] if finding["required"]]
    if not required:
        yield Objection("nothing-required", "the audit holds no required finding, so nothing was proven. Add checks (check=[...]).")
    filtered = Cohort.read(run.folder("sample") / "cohort.jsonl").header.rejected
    needed = REQUIRED | (CONFIRMING if filtered else set()) | ({"membership_model"} if run.settings.release.model else set())
    absent = sorted(needed - {finding["check"] for finding in required})
    if required and absent:
        yield Objection("missing-check", f"the audit was done without {', '.join(absent)}. Audit with all checks.", liftable=True)
    codes = {"fail": "failed-check", "inconclusive": "inconclusive-check"}
    for finding in required:
        if finding["verdict"] != "pass":
            yield Objection(codes[finding["verdict"]], f"{finding['check']}: {finding['why']}", liftable=True)
    if findings["verdict"] != "pass" and all(finding["verdict"] == "pass" for finding in required):
        yield Objection(
            "contradiction", f"the audit's verdict is {findings['verdict']!r}, though every required finding passes. Run it again."
        )


# ---------------------------------------------------------------------------------------------------------------------------- staging


def _stage(run: Run, cohort: Cohort, folder: Path, reason: str, objections: Sequence[Objection]) -> dict[str, list[Path]]:
    """Write everything but the lists of hashes; returns each case's files."""
    real = Cohort.read(run.folder("prepare") / "cohort.jsonl")
    receipts = {stage: Receipt.read(run.folder(stage) / RECEIPT) for stage in EVIDENCE}
    made_by = dicom.Provenance(
        weights=receipts["train"].outputs["denoiser/weights.safetensors"], fingerprint=receipts["sample"].fingerprint, version=__version__
    )
    settings, written = run.settings.release, {}
    for case in tqdm(cohort, desc="release", unit="case"):
        _check_case(cohort, case)
        written[case.id] = _write_case(cohort, case, folder, made_by, settings)
    nifti.write_table(cohort, written, folder)
    if settings.model:
        (folder / "model").mkdir()
        for name in (WEIGHTS, DESCRIPTION):
            shutil.copyfile(run.folder("train") / "denoiser" / name, folder / "model" / name)
    if "bids" in settings.formats:
        bids.write_dataset(cohort, folder / "bids", made_by, name=run.settings.run.name, spite=reason)

    people = _names_of(real)
    findings = json.loads((run.folder("audit") / "findings.json").read_text(encoding="utf-8"))
    audit = without_people(findings, people)
    metrics = without_people(json.loads((run.folder("evaluate") / "metrics.json").read_text(encoding="utf-8")), people)
    looks = json.loads((run.folder("audit") / "looks.json").read_text(encoding="utf-8"))
    audit["looks"] = [{name: look[name] for name in ("synthetic", "level", "seed", "checks", "verdict")} for look in looks]
    if cohort.header.rejected:
        unfiltered = json.loads((run.folder("sample") / VERDICT).read_text(encoding="utf-8"))
        audit["rejected"] = {"cases": dict(cohort.header.rejected), "unfiltered": without_people(unfiltered, people)}
    released = {"reason": reason, "objections": [str(objection) for objection in objections]}
    audit["releases"] = _together(run, cohort, findings)
    audit |= {"released_in_spite_of": released} if reason else {}
    _write_json(folder / "audit.json", validated(audit))
    metrics["groups"] = [row for row in metrics.get("groups", []) if row["subjects_real"] >= SMALL_CELL]
    _write_json(folder / "metrics.json", valid_metrics(metrics))
    settings_told = {
        name: value
        for stage in ("train", "sample")
        for name, value in receipts[stage].settings.items()
        if not name.startswith(PRIVATE) and os.sep not in str(value)
    }
    train = real.split("train")
    text = datasheet.datasheet(
        cohort,
        name=run.settings.run.name,
        source=real.header.source,
        made_by=made_by,
        audit=audit,
        metrics=metrics,
        settings=settings_told,
        training={"cases": len(train), "subjects": len(set(train.subjects))},
        formats=[*settings.formats, *(["model"] if settings.model else [])],
        privacy=_model(run).get("description", {}).get("privacy"),
        override=reason,
        objections=[str(objection) for objection in objections],
    )
    (folder / "datasheet.md").write_text(text, encoding="utf-8")
    _write_cards(run, cohort, real, folder, made_by, audit, metrics)
    counts = {"made": len(cohort)} | {name: len(set(real.split(name).subjects)) for name in ("train", "holdout")}
    (folder / "audit.html").write_text(privacy.page(audit, name=run.settings.run.name, counts=counts), encoding="utf-8")
    if _page_sha256(run):
        shutil.copyfile(run.folder("report") / "shareable.html", folder / "report.html")
    return written


def _model(run: Run) -> Mapping[str, Any]:
    """What the denoiser says of itself."""
    return OmegaConf.to_container(OmegaConf.load(run.folder("train") / "denoiser" / "denoiser.yaml"))


def _write_cards(
    run: Run, cohort: Cohort, real: Cohort, folder: Path, made_by: dicom.Provenance, audit: Mapping[str, Any], metrics: Mapping[str, Any]
) -> None:
    """What beside the datasheet is read before the images are: the scorecard, the model card, and the description for machines."""
    name, source, train = run.settings.run.name, real.header.source, real.split("train")
    (folder / "scorecard.md").write_text(scorecard(cohort, name=name, audit=audit, metrics=metrics), encoding="utf-8")
    training = {"cases": len(train), "subjects": len(set(train.subjects))}
    card = model_card(cohort, name=name, source=source, made_by=made_by, audit=audit, model=_model(run), training=training)
    (folder / "model_card.md").write_text(card, encoding="utf-8")
    formats = run.settings.release.formats
    _write_json(
        folder / "croissant.json",
        croissant(cohort, folder, name=name, source=source, audit=audit, formats=formats, version=made_by.version),
    )


def _check_case(cohort: Cohort, case: Case) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,47}", case.id):
        raise MedsynthError(
            "A case's id is not made of up to 48 letters, digits, '.', '_' and '-', and so cannot name a file or a patient."
        )
    for what, path, sha256 in (("image", case.path, case.sha256), ("mask", case.mask, case.mask_sha256)):
        if path is not None and sha256_of(cohort.folder / path) != sha256:
            raise Refused(
                f"The release is refused:\n  tampered: the {what} of {case.id} is not the one that was drawn. Delete the folder sample and "
                "run 'medsynth run' again."
            )


def _write_case(cohort: Cohort, case: Case, folder: Path, made_by: dicom.Provenance, settings: ReleaseSettings) -> list[Path]:
    files = []
    if "nifti" in settings.formats:
        files += nifti.write(cohort, case, folder / "nifti")
    if "dicom" in settings.formats:
        into = folder / "dicom" / case.id
        images = dicom.write(cohort, case, into / "image", made_by, body_part=settings.body_part, form=settings.dicom)
        files += images
        if case.mask is not None:
            files.append(segmentation.write(cohort, case, images, into / "segmentation.dcm", made_by))
    if "bids" in settings.formats:
        files += bids.write(cohort, case, folder / "bids", made_by, suffix=settings.bids_suffix)
    return files


def _write_manifest(cohort: Cohort, written: Mapping[str, Sequence[Path]], folder: Path) -> None:
    with (folder / "manifest.jsonl").open("w", encoding="utf-8") as file:
        for case in cohort:
            files = {path.relative_to(folder).as_posix(): sha256_of(path) for path in written[case.id]}
            row = {"id": case.id, "seed": case.seed, "modality": case.modality, "conditions": dict(case.condition), "files": files}
            file.write(json.dumps(row, sort_keys=True) + "\n")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------------------ real people


def _names_of(real: Cohort) -> frozenset[str]:
    """Pseudonyms of the real cases and subjects: none of them leaves, though they name nobody without the key."""
    return frozenset(name for case in real for name in (case.id, case.subject))


def without_people(value: Any, people: frozenset[str]) -> Any:
    """``value`` without pairs and paths, and without every entry that names a real case or subject: aggregate numbers alone are left.

    Numbers keep six digits, which is more than any interval here is worth, and too few to spell a date or an id.
    """
    if isinstance(value, Mapping):
        kept = {
            k: v for k, v in value.items() if k not in ("pairs", "path", "paths") and not _mentions(k, people) and not _mentions(v, people)
        }
        return {k: without_people(v, people) for k, v in kept.items()}
    if isinstance(value, list):
        return [without_people(v, people) for v in value if not _mentions(v, people)]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _mentions(value: Any, people: frozenset[str]) -> bool:
    if not isinstance(value, str):
        return False
    # a name stands between anything that is no letter or digit: in sub-1a2b_T1w too
    words = re.findall(r"[0-9A-Za-z]+(?:[-.][0-9A-Za-z]+)*", value)
    parts = (word.split("-") for word in words)
    return not people.isdisjoint(words) or any(not people.isdisjoint(_runs(part)) for part in parts if len(part) > 1)


def _runs(parts: Sequence[str]) -> Iterable[str]:
    """All neighbouring parts, joined again: of ``pre-sub-1a`` also ``sub-1a``."""
    return ("-".join(parts[a:b]) for a in range(len(parts)) for b in range(a + 1, len(parts) + 1))


def leaks_in(run: Run, folder: Path) -> list[Objection]:
    """What the staged bytes hold of real people: a pseudonym in a text, or an identifier that ``prepare`` saw in anything."""
    people = _names_of(Cohort.read(run.folder("prepare") / "cohort.jsonl"))
    found = []
    for name, path in seal.files_of(folder).items():
        if path.suffix in (".json", ".jsonl", ".tsv", ".md", ".html", ".yaml") and _mentions(path.read_text(encoding="utf-8"), people):
            found.append(Objection("real-case", f"{name} names a real case or subject by its pseudonym."))
    hits = find(run.folder("prepare") / "identifiers.json", load_key(run.settings.paths.key), [folder], own=packed_library().encode())
    kinds: dict[str, set[str]] = {}
    for hit in hits:
        if hit.kind not in WEAK:  # a plain word proves nothing: a patient may be called Brown, or Case
            kinds.setdefault(hit.file, set()).add(hit.kind)
    for name, of_file in kinds.items():
        why = "cannot be searched" if of_file == {"unscanned"} else f"holds an identifier that prepare saw ({', '.join(sorted(of_file))})"
        found.append(Objection("identifier", f"{name} {why}."))
    return found
