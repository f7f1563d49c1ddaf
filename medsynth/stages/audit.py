"""The stage that attacks the cohort: every check looks at the same evidence, at a level of proof that was chosen before.

Reads the cohorts of `prepare` and `sample`. Writes the look into the ledger before it is taken, then ``findings.json``, ``looks.json``
with all looks at cohorts of this training set and, for eyes inside the building, ``pairs/``: synthetic cases beside their nearest training
and held-out cases. A failing verdict is no failure of the stage: the report shows it, and the release refuses.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from medsynth.audit import ledger
from medsynth.audit.finding import Check, Evidence, Finding, Model, Verdict
from medsynth.audit.level import level_named
from medsynth.audit.schema import validated
from medsynth.canaries import CanarySet
from medsynth.cohort import Cohort, Header
from medsynth.conditions import ConditionSchema, Value
from medsynth.diffusion.checkpoint import WEIGHTS, load_denoiser
from medsynth.diffusion.denoiser import Denoiser
from medsynth.io.pseudonyms import existing_key
from medsynth.receipt import RECEIPT, Receipt
from medsynth.rng import seed_for
from medsynth.stages import Run
from medsynth.stages.figures import mosaic, picture
from medsynth.training.hardware import device_for, one_thread_each
from medsynth.training.validation import noise_levels

log = logging.getLogger(__name__)

ASKED = 2**18  # voxels that the denoiser is asked about together


def work(run: Run, folder: Path) -> None:
    evidence = evidence_of(run, Cohort.read(run.folder("sample") / "cohort.jsonl"))
    findings = examine(evidence, run.objects["check"], folder, *ledger_of(run))
    run.tracker.metrics(_tracked(findings, verdict_of(findings)))


def ledger_of(run: Run) -> tuple[Path, Path | None]:
    """The ledger of the place where the run lies, and its witness beside the key."""
    return run.root.parent / ledger.LEDGER, ledger.witness_of(run.settings.paths.key)


def evidence_of(run: Run, synthetic: Cohort) -> Evidence:
    """This cohort, before the real cases of the run."""
    real = Cohort.read(run.folder("prepare") / "cohort.jsonl")
    return Evidence(
        train=real.split("train"),
        # validation cases chose the checkpoint: they are neither members nor controls
        holdout=real.split("holdout"),
        synthetic=synthetic,
        level=level_named(run.settings.audit.level),
        seed=seed_for(run.settings.run.seed, "audit"),
        folders=_leaving(run),
        identifiers=run.folder("prepare") / "identifiers.json",
        key=existing_key(run.settings.paths.key),
        canaries=_canaries(run, real.split("train")),
        model=_model(run, real.header),
    )


def examine(
    evidence: Evidence,
    checks: Mapping[str, Check],
    folder: Path,
    path: Path,
    witness: Path | None = None,
    *,
    judged: Callable[[Finding], Finding] = lambda finding: finding,
    told: Mapping[str, Any] | None = None,
) -> list[Finding]:
    """Take one look with all checks and write it into ``folder``; ``path`` and ``witness`` are the ledger's.

    ``judged`` has the last word on each finding; ``told`` are further entries of ``findings.json``.
    """
    look = {"train": evidence.train.digest, "synthetic": evidence.synthetic.digest, "level": evidence.level.name, "seed": evidence.seed}
    look |= {"checks": sorted(checks)}
    cohorts = {"train": evidence.train, "holdout": evidence.holdout, "synthetic": evidence.synthetic}
    sizes = {name: {"cases": len(cohort), "subjects": len(set(cohort.subjects))} for name, cohort in cohorts.items()}
    ledger.write(path, look | {"limits": evidence.level.as_json(), "sizes": sizes}, witness)
    findings: list[Finding] = []
    for name in (progress := tqdm(sorted(checks), desc="audit", unit="check")):
        progress.set_postfix_str(name)
        findings.append(judged(checks[name](evidence)))
        log.info("%s: %s. %s", name, findings[-1].verdict, findings[-1].why)
    verdict = verdict_of(findings)
    ledger.write(path, look | {"verdict": verdict}, witness)
    _write(folder / "looks.json", json.dumps(ledger.looks(path, evidence.train.digest, witness), indent=1, sort_keys=True) + "\n")
    _draw_pairs(evidence, findings, folder / "pairs")
    result = {
        "level": evidence.level.as_json(),
        "verdict": verdict,
        "unit": evidence.train.header.unit,
        "synthetic": evidence.synthetic.digest,
        "train": evidence.train.digest,
        "holdout": evidence.holdout.digest,
        "seed": evidence.seed,
        "findings": [finding.as_json() for finding in findings],
        **(told or {}),
    }
    result = json.loads(json.dumps(result, allow_nan=False))
    _write(folder / "findings.json", json.dumps(validated(result), indent=1, sort_keys=True) + "\n")
    return findings


def verdict_of(findings: Sequence[Finding]) -> Verdict:
    """Of all required findings: one failure fails, one doubt is doubt, and without any nothing is known."""
    verdicts = {finding.verdict for finding in findings if finding.required}
    if "fail" in verdicts:
        return "fail"
    return "pass" if verdicts == {"pass"} else "inconclusive"


def _leaving(run: Run) -> tuple[Path, ...]:
    """What leaves, or may: the synthetic cohort, what training made of the model (checkpoints stay), and what was sent to tracking."""
    trained = run.folder("train")
    made = sorted(path for path in trained.iterdir() if path.name != "checkpoints") if trained.is_dir() else []
    sent = sorted(path for path in (run.root / "logs").glob("*.tracking.jsonl") if not path.name.startswith("audit."))
    return (run.folder("sample"), *made, *sent)


def _canaries(run: Run, train: Cohort) -> CanarySet | None:
    """Those of the training that was done, whatever is asked for now."""
    receipt = Receipt.read(run.folder("train") / RECEIPT)
    count = receipt.settings.get("train.canaries", 0) if receipt else 0
    return CanarySet(train, count, receipt.settings["run.seed"]) if count else None


def _model(run: Run, header: Header) -> Model | None:
    """The run's denoiser for the attacks; None where the cohort came from elsewhere."""
    folder = run.folder("train") / "denoiser"
    if not (folder / WEIGHTS).is_file():
        return None
    device = device_for((run.settings.trainer or {}).get("accelerator", "auto"))
    return model_of(load_denoiser(folder)[0], header.conditions, device, leaves=run.settings.release.model)


def model_of(denoiser: Denoiser, conditions: ConditionSchema, device: torch.device, *, leaves: bool = False) -> Model:
    """A denoiser as the attacks take it."""
    denoiser.to(device)

    @torch.inference_mode()
    def denoise(x: np.ndarray, sigma: np.ndarray, condition: Mapping[str, Value]) -> np.ndarray:
        encoded = torch.tensor([conditions.encode(condition)]).to(device) if conditions.size else None
        most = max(1, ASKED // math.prod(x.shape[1:]))  # a case's own size: its parts are the same wherever it is asked about
        parts = []
        for part in (slice(start, start + most) for start in range(0, len(x), most)):
            images, levels = (torch.from_numpy(np.ascontiguousarray(each[part])).to(device) for each in (x, sigma))
            parts.append(denoiser(images, levels, None if encoded is None else encoded.expand(len(images), -1)).cpu().numpy())
        return np.concatenate(parts)

    workers = torch.get_num_threads() if device.type == "cpu" else 1
    levels = tuple(noise_levels(denoiser.process).tolist())
    return Model(denoise=denoise, levels=levels, workers=workers, session=partial(one_thread_each, device), leaves=leaves)


def _draw_pairs(evidence: Evidence, findings: Sequence[Finding], folder: Path) -> None:
    """One picture a check that lists pairs: rows of a synthetic case, its nearest training case and its nearest held-out case."""
    cohorts = {"synthetic": evidence.synthetic, "train": evidence.train, "holdout": evidence.holdout}
    cases = {name: {case.id: case for case in cohort} for name, cohort in cohorts.items()}
    spacing = evidence.train.header.spacing
    for finding in findings:
        shown = [
            picture(cohort.pixels(cases[name][pair[name]])[0], spacing)
            for pair in finding.details.get("pairs", ())
            for name, cohort in cohorts.items()
        ]
        if shown:
            folder.mkdir(exist_ok=True)
            _write(folder / f"{finding.check}.png", mosaic(shown, columns=len(cohorts)))


def _tracked(findings: Sequence[Finding], verdict: Verdict) -> dict[str, float]:
    """Aggregate numbers alone: pass 1, inconclusive 0, fail -1."""
    sign = {"pass": 1.0, "inconclusive": 0.0, "fail": -1.0}
    values = {"audit/verdict": sign[verdict]}
    for finding in findings:
        numbers: dict[str, Any] = {"verdict": sign[finding.verdict], "value": finding.value, "control": finding.control}
        if finding.interval:
            numbers |= {"low": finding.interval[0], "high": finding.interval[1]}
        values |= {f"audit/{finding.check}/{name}": float(number) for name, number in numbers.items() if number is not None}
    return values


def _write(path: Path, content: str | bytes) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
