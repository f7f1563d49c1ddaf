"""A cohort with one exact copy of a training case in it never leaves; the cohort as the model drew it is not accused of one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from medsynth.cohort import Cohort, sha256_of
from medsynth.io import nifti
from medsynth.io.pseudonyms import load_key
from medsynth.receipt import RECEIPT, Receipt
from tests.pipelines.conftest import CHECKS, Chain

PLANTED = 7  # which synthetic case is replaced


def plant_copy(root: Path, key: Path) -> tuple[str, str]:
    """Put a training case in the place of a synthetic one, as if the model had drawn it. Returns the ids of the copy and of the case."""
    real = Cohort.read(root / "prepare" / "cohort.jsonl").split("train")
    synthetic = Cohort.read(root / "sample" / "cohort.jsonl")
    case, copy = real.cases[3], synthetic.cases[PLANTED]
    path = root / "sample" / copy.path
    nifti.write(path, real.stored(case), synthetic.header.affine, synthetic.header.integer)
    cases = [replace(each, sha256=sha256_of(path)) if each is copy else each for each in synthetic]
    synthetic.where(tuple(cases)).write(root / "sample" / "cohort.jsonl")
    receipt = Receipt.read(root / "sample" / RECEIPT)
    receipt = replace(receipt, outputs={"cohort.jsonl": sha256_of(root / "sample" / "cohort.jsonl")})
    receipt.sealed(load_key(key)).write(root / "sample" / RECEIPT)
    return copy.id, case.id


def memorization(root: Path) -> dict:
    findings = json.loads((root / "audit" / "findings.json").read_text())["findings"]
    return next(finding for finding in findings if finding["check"] == "memorization")


@pytest.mark.slow
def test_a_planted_copy_fails_the_audit_and_shuts_the_release(chain: Chain, tmp_path: Path):
    leaky = chain.copied(tmp_path / "runs", *CHECKS)
    copy, case = plant_copy(leaky.root, leaky.key)
    refused = leaky.medsynth("run")

    assert refused.returncode == 3, refused.stderr[-4000:]
    assert "The release is refused" in refused.stderr
    assert "failed-check: memorization" in refused.stderr
    assert "Traceback" not in refused.stderr
    finding = memorization(leaky.root)
    assert finding["verdict"] == "fail"
    nearest = finding["details"]["pairs"][0]
    assert (nearest["synthetic"], nearest["train"], nearest["hard_copy"]) == (copy, case, True)
    assert finding["details"]["hard_copies"]["count"] == 1
    # the report stands, and says it; no release does, nor what was staged of one
    assert (leaky.root / "report" / "index.html").is_file()
    assert json.loads((leaky.root / "audit" / "findings.json").read_text())["verdict"] == "fail"
    assert not [path.name for path in leaky.root.iterdir() if "release" in path.name]


def test_what_the_model_drew_itself_holds_no_hard_copy(chain: Chain):
    finding = memorization(chain.root)
    assert finding["details"]["hard_copies"]["count"] == 0
    assert finding["verdict"] != "fail"
    assert not any(pair["hard_copy"] for pair in finding["details"]["pairs"])
