"""The only way out: shut unless the evidence is whole, about this cohort, and passes; and what leaves holds nobody."""

import csv
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pydicom
import pytest

from medsynth.audit import ledger
from medsynth.audit.level import LEVELS
from medsynth.audit.rates import clopper_pearson
from medsynth.cohort import Case, Cohort, sha256_of
from medsynth.config import Settings
from medsynth.errors import MedsynthError, Refused
from medsynth.export.seal import files_of, verify
from medsynth.io import nifti
from medsynth.io.identifiers import write_identifiers
from medsynth.io.pseudonyms import load_key
from medsynth.receipt import RECEIPT, Receipt
from medsynth.rng import generator_for
from medsynth.stages import STAGES, Run, release
from tests.make_cohort import make_cohort

CANARIES = ("CANARY^MERLE77", "PID-99-4711-X", "1.3.6.1.4.1.99999.7.7.7", "19630517", "Ward 7 Saint Elsewhere Hospital")


def finding(check: str, verdict: str = "pass", **fields) -> dict:
    row = {"check": check, "verdict": verdict, "value": 0.0041234567, "interval": [0.0, 0.0151], "control": 0.0125, "limit": 0.02}
    return {**row, "why": f"the words of {check}", "required": True, "details": {}, **fields}


class Lab:
    """A run folder as the stages before the release leave it, with receipts that fit; tests then break one thing."""

    def __init__(self, folder: Path, name: str = "mr") -> None:
        self.root, self.key = folder / "runs" / name, folder / "key"
        self.settings = Settings()
        self.settings.run.name = name
        self.settings.paths.key = str(self.key)
        self.settings.audit.level = "standard"
        self.sent: list[tuple] = []
        self.findings = [
            finding("memorization"),
            finding("identifiers"),
            finding("linkage"),
            finding("pixels"),
            finding("membership_cohort"),
            finding("burned_in", "inconclusive", required=False),
        ]
        self.level, self.verdict, self.page = "standard", "pass", "<p>the shareable page</p>"
        self.digests: dict[str, str] = {}
        self.terms, self.held_out, self.first_seed = "research only", 4, 1000
        self.rejected: dict[str, str] = {}

    def build(self) -> "Lab":
        """Write all stages in their order."""
        real = make_cohort(self.root / "prepare", n_train=6, n_validation=2, n_holdout=self.held_out, shape=(8, 8, 3))
        real = replace(real, header=replace(real.header, source={"name": "Archive", "licence": "CC BY-NC 4.0", "terms": self.terms}))
        real.write(self.root / "prepare" / "cohort.jsonl")
        write_identifiers(self.root / "prepare" / "identifiers.json", load_key(self.key), CANARIES)
        (self.root / "prepare" / "rejected.jsonl").write_text(json.dumps({"id": "case-x", "reason": CANARIES[0]}) + "\n")
        self.text("train/denoiser/weights.safetensors", "weights")
        self.text("train/denoiser/denoiser.yaml", "network: {}")
        self.synthetic = self.sample(real)
        pairs = [{"synthetic": "syn-aa00", "train": "train-000001", "note": CANARIES[1]}]
        self.findings[0]["details"] |= {"pairs": pairs, "threshold": 0.9123456789, "worst": "train-000003", "of": ["holdout-000001", 3]}
        self.findings[0]["details"] |= {"path": f"/archive/{CANARIES[0]}"}
        content = {"verdict": self.verdict, "level": LEVELS[self.level].as_json(), "unit": "subject", "findings": self.findings}
        content |= {"synthetic": self.synthetic.digest, "train": real.split("train").digest, "holdout": real.split("holdout").digest}
        content |= {"seed": 7} | self.digests
        self.text("audit/findings.json", json.dumps(content))
        self.look(real.split("train").digest, "fail")
        path, witness = self.ledger, ledger.witness_of(self.key)
        self.text("audit/looks.json", json.dumps(ledger.looks(path, real.split("train").digest, witness)))
        scores = {"name": "kid", "features": "texture", "value": 0.031, "interval": [0.02, 0.042], "anchor": 0.001}
        scores |= {
            "anchor_interval": [-0.002, 0.004],
            "best": "low",
            "status": "ok",
            "reason": "",
            "n_real": 4,
            "n_synthetic": 3,
            "group": "",
            "p": None,
        }
        groups = [{**scores, "group": "class=a", "n_real": 30, "subjects_real": 10}, {**scores, "group": "class=b", "subjects_real": 11}]
        sizes = {name: {"cases": 3, "subjects": 3, "cases_used": 3} for name in ("train", "holdout", "synthetic")}
        result = {"unit": "subject", "n": sizes, "features": {}, "baselines": [], "not_computed": [], "seed": 7}
        self.text("evaluate/metrics.json", json.dumps({**result, "scores": [scores], "groups": groups}))
        self.text("report/index.html", f"<p>inside: {CANARIES[0]}</p>")
        if self.page:
            self.text("report/shareable.html", self.page)
        self.text("report/report.json", json.dumps({"shareable_sha256": sha256_of(self.page.encode()) if self.page else None}))
        for stage in release.EVIDENCE:
            self.receipt(stage)
        return self

    @property
    def ledger(self) -> Path:
        return self.root.parent / ledger.LEDGER

    def look(self, train: str, verdict: str) -> None:
        look = {"train": train, "synthetic": "0" * 64, "level": "strict", "seed": 1, "checks": []}
        for line in ({**look, "limits": {}}, {**look, "verdict": verdict}):
            ledger.write(self.ledger, line, ledger.witness_of(self.key))

    def sample(self, real: Cohort) -> Cohort:
        folder = self.root / "sample"
        (folder / "volumes").mkdir(parents=True)
        affine, cases = np.diag([1.0, 1.5, 2.0, 1.0]), []
        for number, name in enumerate(("syn-aa00", "syn-bb11", "syn-cc22")):
            image, mask = folder / "volumes" / f"{name}.nii.gz", folder / "volumes" / f"{name}-mask.nii.gz"
            array = np.rint(generator_for("release", number).uniform(0, 900, (8, 8, 3)))
            nifti.write(image, array, affine, True)
            nifti.write(mask, array > 500, affine, True)
            case = Case(
                id=name,
                subject=name,
                split="synthetic",
                path=f"volumes/{image.name}",
                mask=f"volumes/{mask.name}",
                mask_sha256=sha256_of(mask),
                sha256=sha256_of(image),
                shape=(8, 8, 3),
                spacing=(1.0, 1.5, 2.0),
                modality="MR",
                scale=(0.0, 900.0),
                condition={"sex": "F", "age": 40.0 + number},
                seed=self.first_seed + number,
            )
            cases.append(case)
        affine = tuple(map(tuple, affine.tolist()))
        header = replace(
            real.header, kind="synthetic", modality="MR", affine=affine, spacing=(1.0, 1.5, 2.0), scale=(0.0, 900.0), labels=(1,)
        )
        header = replace(header, source={"name": "medsynth", "licence": real.header.source["licence"]})
        if self.rejected:
            unfiltered = {"verdict": "fail", "findings": [finding("memorization", "fail", details={"worst": "train-000001"})]}
            self.text("sample/unfiltered/findings.json", json.dumps(unfiltered))
            header = replace(header, rejected=self.rejected, made_with={"unfiltered": sha256_of(folder / "unfiltered/findings.json")})
        cohort = Cohort(header, tuple(cases), folder)
        cohort.write(folder / "cohort.jsonl")
        return cohort

    def text(self, name: str, content: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)

    def receipt(self, stage: str, key: Path | None = None) -> None:
        inputs = {need: Receipt.read(self.root / need / RECEIPT).made for need in STAGES[stage].needs}
        outputs = {name: sha256_of(self.root / stage / name) for name in STAGES[stage].outputs}
        settings = {"fit.steps": 2000, "source.root": "/archive/real"} if stage == "train" else {"sampling.steps": 20}
        receipt = Receipt(stage=stage, settings=settings, inputs=inputs, outputs=outputs)
        receipt.sealed(load_key(key or self.key)).write(self.root / stage / RECEIPT)

    def release(self) -> Path:
        tracker = SimpleNamespace(dataset=lambda *a: self.sent.append(("dataset", *a)), artifact=lambda *a: self.sent.append(a))
        tracker.alias = lambda *a: self.sent.append(("alias", *a))
        run = Run(settings=self.settings, objects={}, root=self.root, tracker=tracker)
        release.work(run, self.root / "release")
        return self.root / "release"

    def refused(self, code: str) -> str:
        """Ask for the release, and check that it is refused for this reason and leaves no trace."""
        with pytest.raises(Refused) as refusal:
            self.release()
        assert refusal.value.exit_code == 3
        assert f"  {code}: " in str(refusal.value)
        assert not (self.root / "release").exists()
        assert not list(self.root.glob(".release*"))
        return str(refusal.value)


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def released_bytes(folder: Path) -> bytes:
    return b"\n".join(path.name.encode() + path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


# ---------------------------------------------------------------------------------------------------------------------------- it opens


def test_a_cohort_whose_evidence_passes_leaves_whole(lab: Lab) -> None:
    folder = lab.build().release()
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "nifti",
        "dicom",
        "cases.tsv",
        "manifest.jsonl",
        "audit.json",
        "audit.html",
        "metrics.json",
        "datasheet.md",
        "scorecard.md",
        "model_card.md",
        "croissant.json",
        "report.html",
        "SHA256SUMS",
        "signature.json",
    }
    assert verify(folder) == []
    subprocess.run(["sha256sum", "-c", "--quiet", "--strict", "SHA256SUMS"], cwd=folder, check=True)
    assert json.loads((folder / "audit.json").read_text())["looks"] == [
        {"synthetic": "0" * 64, "level": "strict", "seed": 1, "checks": [], "verdict": "fail"}
    ]
    assert not list(lab.root.glob(".release*"))
    assert lab.sent[0] == ("dataset", "released", lab.synthetic.digest, 3, "release")


def test_the_manifest_names_every_file_of_every_case_and_nothing_else(lab: Lab) -> None:
    folder = lab.build().release()
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert [(row["id"], row["seed"], row["conditions"]["age"]) for row in rows] == [
        ("syn-aa00", 1000, 40.0),
        ("syn-bb11", 1001, 41.0),
        ("syn-cc22", 1002, 42.0),
    ]
    named = {name: sha for row in rows for name, sha in row["files"].items()}
    assert named == {name: sha256_of(path) for name, path in files_of(folder).items() if name.startswith(("nifti/", "dicom/"))}
    with (folder / "cases.tsv").open() as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    assert table[1] == {
        "id": "syn-bb11",
        "seed": "1001",
        "modality": "MR",
        "age": "41.0",
        "sex": "F",
        "image": "nifti/images/syn-bb11.nii.gz",
        "mask": "nifti/masks/syn-bb11.nii.gz",
    }


def test_the_images_that_leave_are_those_that_were_audited(lab: Lab) -> None:
    folder = lab.build().release()
    for case in lab.synthetic:
        assert (folder / f"nifti/images/{case.id}.nii.gz").read_bytes() == (lab.synthetic.folder / case.path).read_bytes()
        assert (folder / f"nifti/masks/{case.id}.nii.gz").read_bytes() == (lab.synthetic.folder / case.mask).read_bytes()
        image = pydicom.dcmread(folder / f"dicom/{case.id}/image/00003.dcm")
        assert (image.PatientID, image.PatientAge, image.SyntheticData) == (case.id, f"0{int(case.condition['age'])}Y", "YES")
        assert pydicom.dcmread(folder / f"dicom/{case.id}/segmentation.dcm").StudyInstanceUID == image.StudyInstanceUID


def test_only_the_formats_that_were_asked_for_are_written(lab: Lab) -> None:
    lab.settings.release.formats = ["nifti"]
    folder = lab.build().release()
    assert not (folder / "dicom").exists()
    assert verify(folder) == []


def test_bids_leaves_with_the_rest_and_is_listed(lab: Lab) -> None:
    lab.settings.release.formats, lab.settings.release.bids_suffix = ["dicom", "bids"], "T1w"
    lab.settings.release.dicom = "enhanced"
    folder = lab.build().release()
    assert verify(folder) == []
    first = json.loads((folder / "manifest.jsonl").read_text().splitlines()[0])["files"]
    assert {"bids/sub-synaa00/anat/sub-synaa00_T1w.nii.gz", "bids/sub-synaa00/anat/sub-synaa00_dseg.json"} < set(first)
    assert [name for name in first if name.startswith("dicom/")] == ["dicom/syn-aa00/image/00001.dcm", "dicom/syn-aa00/segmentation.dcm"]


def test_two_releases_of_one_run_are_the_same_bytes(lab: Lab) -> None:
    first = released_bytes(lab.build().release())
    (lab.root / "release").rename(lab.root / "first")
    assert released_bytes(lab.release()) == first


def test_what_a_killed_attempt_left_is_not_released(lab: Lab) -> None:
    lab.build().text(".release.partial/nifti/images/stale.nii.gz", "stale")
    folder = lab.release()
    assert not (folder / "nifti/images/stale.nii.gz").exists()
    assert not (lab.root / ".release.partial").exists()


def test_the_datasheet_says_terms_proof_doubt_and_making(lab: Lab) -> None:
    text = (lab.build().release() / "datasheet.md").read_text()
    assert "CC BY-NC 4.0" in text
    assert "| Source | Archive |" in text
    assert "research only" in text
    assert LEVELS["standard"].claim in text
    assert "| memorization | passed | 0.004123 | 0 to 0.0151 | 0.0125 | 0.02 | the words of memorization |" in text
    assert "| kid (texture) | 0.031 | 0.02 to 0.042 | 0.001 -0.002 to 0.004 |" in text
    assert "does not prove" in text
    assert sha256_of(lab.root / "train/denoiser/weights.safetensors") in text
    assert "sampling.steps = 20" in text
    assert "/archive" not in text
    assert not re.search(r"anonym", text, re.IGNORECASE)
    assert "IN SPITE" not in text


# ----------------------------------------------------------------------------------------------------------------------- it stays shut


def failing(lab: Lab) -> None:
    lab.findings[0]["verdict"], lab.verdict = "fail", "fail"


def undecided(lab: Lab) -> None:
    lab.findings[1]["verdict"], lab.verdict = "inconclusive", "inconclusive"


def without_the_search_for_copies(lab: Lab) -> None:
    lab.findings = [each for each in lab.findings if each["check"] != "memorization"]


def test_the_weights_stay_unless_they_are_asked_for_and_have_been_attacked(lab: Lab) -> None:
    assert not (lab.build().release() / "model").exists()
    lab.settings.release.model = True
    shutil.rmtree(lab.root / "release")
    assert "membership_model" in lab.refused("missing-check")


def test_weights_that_passed_leave_with_the_rest_and_are_listed(lab: Lab) -> None:
    lab.settings.release.model = True
    lab.findings.append(finding("membership_model"))
    folder = lab.build().release()
    assert (folder / "model" / "weights.safetensors").read_text() == "weights"
    assert {"model/weights.safetensors", "model/denoiser.yaml"} <= set(files_of(folder))
    assert verify(folder) == []
    told = (folder / "datasheet.md").read_text()
    assert "`model/`" in told
    assert "they are not released" not in told


def test_a_model_that_knows_its_people_stays(lab: Lab) -> None:
    lab.settings.release.model = True
    lab.findings.append(finding("membership_model", "fail"))
    lab.verdict = "fail"
    lab.build().refused("failed-check")


def without_checks(lab: Lab) -> None:
    lab.findings = [finding("memorization", required=False)]


def other_level(lab: Lab) -> None:
    lab.level = "demo"


def other_cohort(lab: Lab) -> None:
    lab.digests = {"synthetic": "0" * 64}


def other_training(lab: Lab) -> None:
    lab.digests = {"train": "0" * 64}


def other_holdout(lab: Lab) -> None:
    lab.digests = {"holdout": "0" * 64}


def contradicting(lab: Lab) -> None:
    lab.verdict = "fail"


@pytest.mark.parametrize(
    ("broken", "code"),
    [
        (failing, "failed-check"),
        (undecided, "inconclusive-check"),
        (without_checks, "nothing-required"),
        (without_the_search_for_copies, "missing-check"),
        (other_level, "other-level"),
        (other_cohort, "other-cohort"),
        (other_training, "other-training-set"),
        (other_holdout, "other-holdout"),
        (contradicting, "contradiction"),
    ],
)
def test_what_the_audit_says_can_shut_the_door(lab: Lab, broken: Callable[[Lab], None], code: str) -> None:
    broken(lab)
    lab.build().refused(code)


def filtered(lab: Lab) -> Lab:
    """A cohort of which one drawn case was rejected as a copy."""
    lab.rejected = {"syn-dd33": "memorization"}
    lab.findings.append(finding("confirmation"))
    return lab


def test_of_a_filtered_cohort_the_verdict_before_and_the_count_leave_with_it(lab: Lab) -> None:
    folder = filtered(lab).build().release()
    told = json.loads((folder / "audit.json").read_text())["rejected"]
    assert told["cases"] == {"syn-dd33": "memorization"}
    assert told["unfiltered"]["verdict"] == "fail"
    assert "train-000001" not in json.dumps(told)
    text = (folder / "datasheet.md").read_text()
    assert "with them in it: **FAILED**. 1 drawn cases" in text


def without_the_file(lab: Lab) -> None:
    (lab.root / "sample/unfiltered/findings.json").unlink()


def with_a_kinder_verdict(lab: Lab) -> None:
    lab.text("sample/unfiltered/findings.json", json.dumps({"verdict": "pass", "findings": []}))


@pytest.mark.parametrize("broken", [without_the_file, with_a_kinder_verdict])
def test_a_filtered_cohort_stays_without_the_verdict_on_the_unfiltered_one(lab: Lab, broken: Callable[[Lab], None]) -> None:
    broken(filtered(lab).build())
    lab.refused("no-unfiltered-verdict")


def test_a_filtered_cohort_needs_another_kind_of_detector(lab: Lab) -> None:
    filtered(lab).findings.pop()
    assert "confirmation" in lab.build().refused("missing-check")


@pytest.mark.parametrize("stage", release.EVIDENCE)
def test_every_stage_must_have_finished(lab: Lab, stage: str) -> None:
    lab.build()
    (lab.root / stage / RECEIPT).unlink()
    assert f"'{stage}'" in lab.refused("missing-stage")


@pytest.mark.parametrize(
    "name",
    [
        "audit/findings.json",
        "sample/cohort.jsonl",
        "prepare/cohort.jsonl",
        "prepare/identifiers.json",
        "train/denoiser/weights.safetensors",
        "evaluate/metrics.json",
    ],
)
def test_a_file_that_was_changed_after_its_stage_shuts_the_door(lab: Lab, name: str) -> None:
    path = lab.build().root / name
    path.write_bytes(path.read_bytes() + b" ")
    assert name in lab.refused("tampered")


def test_findings_that_were_mended_by_hand_are_found_even_where_they_now_pass(lab: Lab) -> None:
    failing(lab)
    path = lab.build().root / "audit/findings.json"
    path.write_text(path.read_text().replace('"fail"', '"pass"'))
    lab.refused("tampered")


def test_the_audit_of_a_cohort_that_was_drawn_again_does_not_count(lab: Lab) -> None:
    lab.build()
    again = lab.synthetic.where(lab.synthetic.cases[:2])
    again.write(lab.root / "sample" / "cohort.jsonl")
    lab.receipt("sample")  # the stage 'sample' ran again, the audit did not
    assert "'audit' was made from another 'sample'" in lab.refused("other-cohort")


def test_a_receipt_that_names_no_outputs_proves_nothing(lab: Lab) -> None:
    lab.build()
    receipt = Receipt.read(lab.root / "audit" / RECEIPT)
    replace(receipt, outputs={}).write(lab.root / "audit" / RECEIPT)
    lab.receipt("report")
    lab.refused("tampered")


@pytest.mark.parametrize("name", ["syn-bb11.nii.gz", "syn-bb11-mask.nii.gz"])
def test_an_image_or_mask_that_was_changed_after_sampling_shuts_the_door(lab: Lab, name: str) -> None:
    path = lab.build().root / "sample" / "volumes" / name
    path.write_bytes(path.read_bytes() + b"\0")
    assert "syn-bb11" in lab.refused("tampered")


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_text("<p>another page</p>")])
def test_a_shareable_page_that_was_changed_after_the_report_shuts_the_door(lab: Lab, change: Callable[[Path], object]) -> None:
    change(lab.build().root / "report" / "shareable.html")
    assert "shareable.html" in lab.refused("tampered")


def test_a_page_that_the_report_did_not_make_does_not_leave(lab: Lab) -> None:
    lab.page = ""
    lab.build().text("report/shareable.html", "<p>planted</p>")
    assert not (lab.release() / "report.html").exists()


def test_findings_that_are_no_findings_shut_the_door(lab: Lab) -> None:
    lab.build().text("audit/findings.json", "[]")
    lab.receipt("audit")
    lab.receipt("report")
    lab.refused("unreadable-findings")


def test_without_the_key_nothing_can_be_searched_and_nothing_leaves(lab: Lab) -> None:
    lab.build()
    lab.key.unlink()
    lab.refused("no-key")
    assert not lab.key.exists()


def test_all_reasons_are_named_at_once(lab: Lab) -> None:
    failing(lab)
    undecided(lab)
    message = lab.build().refused("failed-check")
    assert "inconclusive-check: identifiers: the words of identifiers" in message
    assert "release.override=" in message


# ------------------------------------------------------------------------------------------------------------------------- it is attacked


def forged(lab: Lab, key: Path) -> None:
    """A failed audit, mended with all hashes made to fit, by somebody who holds the run folder and a key of his own."""
    path = lab.root / "audit/findings.json"
    path.write_text(path.read_text().replace('"fail"', '"pass"'))
    for stage in ("audit", "report"):
        lab.receipt(stage, key)


def test_a_forger_without_the_key_makes_no_receipt(lab: Lab, tmp_path: Path) -> None:
    failing(lab)
    forged(lab.build(), tmp_path / "his-own.key")
    message = lab.refused("forged")
    assert "audit/receipt.json does not bear the seal" in message
    assert "report/receipt.json" in message
    forged(lab, lab.key)  # the same with the key would be believed: it is the seal alone that refused
    assert (lab.release() / "audit.json").is_file()


@pytest.mark.parametrize("stage", release.SEALED)
@pytest.mark.parametrize("seal", ["", "00" * 32, "ä"])
def test_a_receipt_whose_seal_was_taken_off_or_made_up_is_refused(lab: Lab, stage: str, seal: str) -> None:
    path = lab.build().root / stage / RECEIPT
    replace(Receipt.read(path), seal=seal).write(path)
    assert f"{stage}/receipt.json" in lab.refused("forged")


def test_stages_that_ran_where_the_key_is_not_are_held_by_those_that_did(lab: Lab) -> None:
    """A cluster trains and samples without the key; what it made is named by sealed receipts."""
    lab.build()
    for stage in ("train", "sample"):
        path = lab.root / stage / RECEIPT
        replace(Receipt.read(path), seal="").write(path)
    assert lab.release().is_dir()


def cut_at_its_end(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))


def begun_anew(path: Path) -> None:
    path.unlink()


def one_look_taken_out(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[2:]))


@pytest.mark.parametrize("damage", [cut_at_its_end, begun_anew, one_look_taken_out])
def test_a_ledger_that_lost_a_look_shuts_the_door(lab: Lab, damage: Callable[[Path], None]) -> None:
    lab.build()
    lab.look(Cohort.read(lab.root / "prepare/cohort.jsonl").split("train").digest, "pass")
    damage(lab.ledger)
    lab.refused("ledger")


def test_without_held_out_people_nothing_leaves(lab: Lab) -> None:
    lab.held_out = 0
    lab.build().refused("no-holdout")


# ------------------------------------------------------------------------------------------------------------------- counted together


def test_cohorts_of_one_training_set_are_counted_together(lab: Lab, tmp_path: Path) -> None:
    """By hand: two cohorts of 3 cases at a bound of 1.51 % each; the bounds of both hold with 90 %; looks are 2, and one more unseen."""
    lab.findings[0]["details"] = {"hard_copies": {"count": 1, "interval": [0, 1]}}
    first = json.loads((lab.build().release() / "audit.json").read_text())["releases"]
    assert (first["cohorts"], first["cases"], first["looks"], first["untold"]) == (1, 3, 1, 0)
    assert first["copies"] == {"upper": 0.0151, "cases": 0, "confidence": 0.95}

    other = Lab(tmp_path, "mr2")
    other.first_seed, other.findings[0]["details"] = 2000, {"hard_copies": {"count": 0, "interval": [0, 1]}}
    folder = other.build().release()
    both = json.loads((folder / "audit.json").read_text())["releases"]
    assert (both["cohorts"], both["cases"], both["looks"]) == (2, 6, 2)
    assert both["copies"] == pytest.approx({"upper": 0.0151, "cases": 0, "confidence": 0.9})
    assert both["hard_copies"] == {"count": 1, "interval": pytest.approx(list(clopper_pearson(1, 6)))}
    assert "2 cohorts, 6 cases" in (folder / "datasheet.md").read_text()
    assert "2 cohorts with 6 images in all" in (folder / "audit.html").read_text()

    shutil.rmtree(lab.root)  # the first run is gone, what it released is not
    (other.root / "release").rename(tmp_path / "sent")
    assert json.loads((other.release() / "audit.json").read_text())["releases"] == both  # and the same cohort again is the same one


# ---------------------------------------------------------------------------------------------------------------------------- override


def test_a_written_reason_lets_it_go_and_stands_at_the_top(lab: Lab) -> None:
    failing(lab)
    lab.page = ""
    lab.settings.release.override = "Ethics board 12/3: a phantom, no patient behind it"
    folder = lab.build().release()
    text = (folder / "datasheet.md").read_text()
    assert text.index("Ethics board 12/3") < text.index("## What it is")
    assert "RELEASED IN SPITE OF ITS EVIDENCE" in text
    assert "failed-check: memorization" in text
    spite = json.loads((folder / "audit.json").read_text())["released_in_spite_of"]
    assert spite["reason"] == lab.settings.release.override
    assert verify(folder) == []
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("reason", ["", "   "])
def test_an_empty_reason_is_none(lab: Lab, reason: str) -> None:
    failing(lab)
    lab.settings.release.override = reason
    lab.build().refused("failed-check")


@pytest.mark.parametrize(
    ("broken", "code"), [(other_cohort, "other-cohort"), (other_level, "other-level"), (without_checks, "nothing-required")]
)
def test_a_reason_does_not_replace_evidence(lab: Lab, broken: Callable[[Lab], None], code: str) -> None:
    broken(lab)
    lab.settings.release.override = "because"
    lab.build().refused(code)


def test_a_reason_that_is_not_needed_does_not_stain_the_release(lab: Lab) -> None:
    lab.settings.release.override = "just in case"
    assert b"just in case" not in released_bytes(lab.build().release())


# ------------------------------------------------------------------------------------------------------------------------ real people


def test_no_canary_of_the_training_data_and_no_real_case_leaves(lab: Lab) -> None:
    content = released_bytes(lab.build().release())
    assert b"train-0" not in content
    assert b"holdout-0" not in content
    assert b"/archive" not in content
    for canary in CANARIES:
        assert canary.encode() not in content
        assert canary.encode("utf-16-le") not in content


def test_what_is_left_of_the_findings_is_aggregate(lab: Lab) -> None:
    folder = lab.build().release()
    details = json.loads((folder / "audit.json").read_text())["findings"][0]["details"]
    assert details == {"threshold": 0.912346, "of": [3]}
    assert [row["group"] for row in json.loads((folder / "metrics.json").read_text())["groups"]] == ["class=b"]


@pytest.mark.parametrize("canary", CANARIES)
def test_an_identifier_in_the_staged_bytes_shuts_the_door_whatever_is_written(lab: Lab, canary: str) -> None:
    lab.terms = f"by courtesy of {canary} and others"
    failing(lab)
    lab.settings.release.override = "because"
    message = lab.build().refused("identifier")
    assert "datasheet.md" in message
    assert canary not in message


def test_an_identifier_in_the_shareable_report_shuts_the_door(lab: Lab) -> None:
    lab.page = f"<p>{CANARIES[1]}</p>"
    lab.build()
    assert "report.html" in lab.refused("identifier")


def test_a_real_cases_pseudonym_in_the_shareable_report_shuts_the_door(lab: Lab) -> None:
    lab.page = "<td>nearest: train-000002.</td>"
    lab.build().refused("real-case")


def test_a_case_cannot_choose_where_it_is_written(lab: Lab) -> None:
    lab.build()
    first, *rest = lab.synthetic.cases
    cohort = replace(lab.synthetic, cases=(replace(first, id="../../out"), *rest))
    with pytest.raises(MedsynthError, match="cannot name a file"):
        release._check_case(cohort, cohort.cases[0])


def test_the_receipt_that_is_written_after_the_release_is_no_stranger(lab: Lab) -> None:
    folder = lab.build().release()
    lab.receipt("release")
    assert verify(folder) == []


@pytest.mark.parametrize("text", ["sub-1a2b", "see sub-1a2b.", "nifti/sub-1a2b_T1w.nii.gz", "pre_sub-1a2b-004", "x-sub-1a2b"])
def test_a_real_case_is_found_within_longer_names(text: str) -> None:
    assert release._mentions(text, frozenset({"sub-1a2b"}))
    assert not release._mentions(text.replace("1a2b", "1a2b3"), frozenset({"sub-1a2b"}))
