"""The page says all of the evidence, verdict first; it asks nothing of the world; and its shareable copy knows no patient."""

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import yaml
from jinja2 import Environment, PackageLoader

from medsynth.audit import ledger, plants
from medsynth.audit.level import LEVELS
from medsynth.cohort import Case, Cohort, sha256_of
from medsynth.errors import MedsynthError
from medsynth.receipt import Receipt
from medsynth.stages import figures, report
from medsynth.stages.facts import _score, facts_of, read
from tests.make_cohort import blobs, make_cohort

SCRIPT = "<script>alert('x')</script>"


def finding(check: str, verdict: str = "pass", **fields) -> dict:
    row = {
        "check": check,
        "verdict": verdict,
        "value": None,
        "interval": None,
        "control": None,
        "limit": None,
        "why": f"because of {check}",
        "details": {},
    }
    return {**row, "required": True, **fields}


def findings(verdict: str, level: str) -> dict:
    memorization = finding(
        "memorization",
        verdict,
        value=0.004,
        interval=[0.0, 0.015],
        control=0.0125,
        limit=0.02,
        why="The upper bound 1.5 % of copies beyond chance is below 2 %, and the attack finds what was planted.",
        details={
            "threshold": 0.91,
            "sharpness": 1.04,
            "recall": {
                "exact": {"found": 72, "planted": 72, "interval": [0.95, 1.0], "source_named": 72},
                "flip, noise": {"found": 71, "planted": 72, "interval": [0.925, 0.9996], "source_named": 70},
            },
            "histogram": {
                "edges": [0.0, 0.25, 0.5, 0.75, 1.0],
                "counts": {"synthetic to training": [2, 9, 8, 1], "holdout to training": [3, 9, 7, 1]},
            },
            "hard_line": 3.2,
            "pairs": [
                {
                    "synthetic": "syn-000001",
                    "train": "train-000003",
                    "train_score": 0.93,
                    "holdout": "holdout-000002",
                    "holdout_score": 0.71,
                    "hard_copy": False,
                },
                {
                    "synthetic": "syn-000004",
                    "train": "train-000005",
                    "train_score": 0.95,
                    "holdout": "holdout-000001",
                    "holdout_score": 0.77,
                    "hard_copy": True,
                },
            ],
        },
    )
    identifiers = finding(
        "identifiers", value=0, control=0, limit=0, why="No file holds one of the 412 identifier values that prepare saw."
    )
    return {
        "level": LEVELS[level].as_json(),
        "train": "c" * 64,
        "verdict": verdict,
        "unit": "subject",
        "findings": [identifiers, memorization, finding("small_cells", "inconclusive", required=False)],
    }


def score(name: str, **fields) -> dict:
    row = dict.fromkeys(("value", "interval", "anchor", "anchor_interval", "p"))
    row |= {
        "name": name,
        "features": "",
        "group": "",
        "n_real": 8,
        "n_synthetic": 20,
        "best": "low",
        "status": "ok",
        "reason": "",
        "details": {},
    }
    return {**row, **fields}


def metrics() -> dict:
    return {
        "unit": "subject",
        "n": {name: {"cases": n, "subjects": n, "cases_used": n} for name, n in (("train", 24), ("holdout", 8), ("synthetic", 20))},
        "features": {"texture": "Texture()"},
        "seed": 0,
        "scores": [
            score("kid", features="texture", value=0.031, interval=[0.02, 0.042], anchor=0.001, anchor_interval=[-0.002, 0.004], p=0.005),
            score("frechet", features="texture", value=12.0, interval=[9.0, 15.0], anchor=6.0, anchor_interval=[4.0, 9.5], p=0.2),
            score(
                "coverage", features="convolutions", value=0.81, interval=[0.7, 0.9], anchor=0.95, anchor_interval=[0.88, 0.99], best="high"
            ),
            score("precision", status="absent", reason="needs 50 subjects on each side, and there are 8", best="high"),
        ],
        "baselines": [
            {**score("frechet", features="texture", value=55.0), "baseline": "blurred"},
            {**score("frechet", features="texture", value=80.0), "baseline": "gaussian"},
        ],
        "groups": [
            {
                **score("kid", features="texture", value=0.044, interval=[0.01, 0.08], anchor=0.0, anchor_interval=[0.0, 0.0]),
                "group": f"class={name}",
                "subjects_real": subjects,
            }
            for name, subjects in (("normal", 11), ("rare", 10))
        ],
        "not_computed": [{"name": "utility", "reason": "no labels to train a classifier on"}],
    }


def memorized(step: int) -> dict:
    """The share of the loss that training cases are spared grows by a tenth every hundred steps."""
    return {"gap": step / 1000, "low": step / 1000 - 0.05, "high": step / 1000 + 0.05, "subjects": 7}


def make_run(root: Path, verdict: str = "pass", level: str = "strict", shape=(16, 16), conditions=None, n: int = 20) -> Path:
    """A run folder as the five stages would leave it."""
    real = make_cohort(root / "prepare", shape=shape, conditions=conditions)
    (root / "prepare/rejected.jsonl").write_text(
        "".join(
            json.dumps({"id": f"r{i}", "files": 20, "code": code, "reason": "x"}) + "\n"
            for i, code in enumerate(["missing-slice"] * 2 + ["burned-in"])
        )
    )
    (root / "sample/volumes").mkdir(parents=True)
    cases = []
    for i in range(n):
        image, name = blobs(shape, 1, f"syn-{i}")[0], f"syn-{i:06d}"
        path = root / f"sample/volumes/{name}.nii.gz"
        nib.save(nib.Nifti1Image((1000 * image).astype(np.int16).reshape(*shape, *[1] * (3 - len(shape))), np.eye(4)), path)
        condition = {attribute: values[i % len(values)] for attribute, values in (conditions or {}).items()}
        cases.append(
            Case(
                id=name,
                subject=name,
                split="synthetic",
                path=f"volumes/{name}.nii.gz",
                sha256=sha256_of(path),
                shape=tuple(shape),
                spacing=(2.0,) * len(shape),
                modality="OT",
                scale=real.header.scale,
                condition=condition,
                seed=i,
            )
        )
    Cohort(replace(real.header, kind="synthetic"), tuple(cases), root / "sample").write(root / "sample/cohort.jsonl")
    for stage in ("train/denoiser", "train/previews", "audit", "evaluate"):
        (root / stage).mkdir(parents=True)
    (root / "train/denoiser/weights.safetensors").write_bytes(b"weights")
    (root / "train/denoiser/denoiser.yaml").write_text(
        "network:\n  channels: [32, 64]\nprocess: edm\nsigma_data: 0.5\ndescription:\n  low: 20.0\n"
    )
    steps = range(10, 210, 10)
    rows = [
        {
            "step": s,
            "loss": 1 / s,
            "lr": 1e-4,
            "samples_per_second": 50.0,
            **({"validation": {"0.1": 2 / s, "1.0": 3 / s}, "memorization": memorized(s)} if s % 50 == 0 else {}),
        }
        for s in steps
    ]
    (root / "train/history.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for step in (100, 200):
        (root / f"train/previews/step-{step:06d}.png").write_bytes(figures.png(np.full((16, 64), step, np.uint8)))
    (root / "audit/findings.json").write_text(json.dumps(findings(verdict, level)))
    looks = [
        {"synthetic": "a" * 64, "level": level, "seed": 1, "checks": ["one"], "verdict": ""},
        {"synthetic": "b" * 64, "level": level, "seed": 2, "checks": ["one"], "verdict": verdict},
    ]
    (root / "audit/looks.json").write_text(json.dumps(looks))
    (root / "evaluate/metrics.json").write_text(json.dumps(metrics()))
    sign(root)
    return root


def sign(root: Path) -> None:
    """Write the stages' receipts."""
    outputs = {
        "prepare": ["cohort.jsonl"],
        "train": ["denoiser/denoiser.yaml"],
        "sample": ["cohort.jsonl"],
        "audit": ["findings.json"],
        "evaluate": ["metrics.json"],
    }
    settings = {
        "prepare": {"run.seed": 0, "source.root": "/archive/ward-7", "source.weights": "/archive/w"},
        "sample": {"sampling.cases": 20},
    }
    for stage, files in outputs.items():
        made = {name: sha256_of(root / stage / name) for name in files}
        Receipt(stage=stage, settings=settings.get(stage, {}), inputs={}, outputs=made).write(root / stage / "receipt.json")


def make_report(root: Path) -> Path:
    sent = []
    tracker = SimpleNamespace(figure=lambda name, png, *, synthetic: sent.append(png), artifact=lambda path, to: sent.append(path))
    tracker.alias = lambda weights, alias: None
    run = SimpleNamespace(
        root=root, settings=SimpleNamespace(run=SimpleNamespace(seed=0), release=SimpleNamespace(model=False)), tracker=tracker
    )
    (root / "report").mkdir(exist_ok=True)
    report.work(run, root / "report")
    assert sent, "nothing was logged"
    assert root / "report/index.html" not in sent
    return root / "report"


class Page(HTMLParser):
    """What a reader gets: text in order, addresses, tags."""

    VOID = frozenset({"meta", "img", "br", "line", "rect", "link", "input", "hr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words, self.addresses, self.tags, self.open = [], [], [], []
        self.feed(html)
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "srcset", "data", "poster")]
        assert not any(name.startswith("on") for name, _ in attrs), attrs
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def passed(tmp_path_factory) -> Path:
    """A run that passes at the strict level, with its report."""
    root = make_run(tmp_path_factory.mktemp("runs") / "clinic-1", conditions={"class": ["normal", SCRIPT], "age": [20.0, 91.0]})
    make_report(root)
    return root


def page_of(root: Path, name: str = "index.html") -> Page:
    return Page((root / "report" / name).read_text(encoding="utf-8"))


def pixels(html: str) -> set[str]:
    return set(re.findall(r"data:image/png;base64,([\w+/=]+)", html))


@pytest.mark.parametrize("name", ["index.html", "shareable.html"])
def test_the_page_needs_nothing_from_the_world(passed, name):
    page = page_of(passed, name)
    assert page.addresses
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in page.addresses)
    assert not {"script", "link", "iframe", "object", "form", "base"} & set(page.tags)
    html = (passed / "report" / name).read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?://", html)
    assert "default-src 'none'" in html


def test_every_picture_on_the_page_is_a_png_that_decodes(passed):
    for uri in pixels((passed / "report/index.html").read_text(encoding="utf-8")):
        assert base64.b64decode(uri).startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize(
    ("verdict", "level", "headline"),
    [
        ("pass", "strict", "The evidence allows the release"),
        ("pass", "demo", "only the weak level “demo”"),
        ("fail", "strict", "must not be released"),
        ("inconclusive", "standard", "do not release"),
    ],
)
def test_the_verdict_comes_before_everything_else(tmp_path, verdict, level, headline):
    root = make_run(tmp_path / "run", verdict=verdict, level=level)
    make_report(root)
    text = page_of(root).text
    assert headline in text
    assert text.index(headline) < text.index(LEVELS[level].claim) < text.index("Next step") < text.index("What was asked for")
    assert (root / "report/shareable.html").exists() == (verdict == "pass")
    assert ("Weak level of proof" in text) == (level == "demo")
    assert ("The evidence allows" in text) == (verdict == "pass" and level != "demo")


def test_every_finding_and_every_score_is_on_the_page(passed):
    text = page_of(passed).text
    for row in findings("pass", "strict")["findings"]:
        assert row["check"] in text
        assert row["why"] in text
    for said in (
        "0.4 %",
        "0 % to 1.5 %",
        "1.25 %",
        "72 of 72",
        "92.5 % to 100 %",
        "nearness 0.95",
        "syn-000004",
        "holdout-000001",
        "2 looks were taken",
    ):
        assert said in text, said
    for row in metrics()["scores"]:
        assert row["name"] in text
    for said in (
        "0.031",
        "0.02 to 0.042",
        "clearly worse than real against real",
        "×2",
        "needs 50 subjects",
        "no labels to train",
        "class=normal",
        "0.044",
        "real images, blurred",
        "55",
    ):
        assert said in text, said
    for said in ("missing-slice", "made by a test", "sampling.cases", "What the audit does not prove", "motivated intruder"):
        assert said in text, said
    for stage in ("prepare", "train", "sample", "audit", "evaluate"):
        receipt = json.loads((passed / stage / "receipt.json").read_text())
        assert receipt["fingerprint"][:16] in text
        assert all(digest in text for digest in receipt["outputs"].values())
    kept = json.loads((passed / "report/report.json").read_text())
    assert [row["name"] for row in kept["scores"]] == [row["name"] for row in metrics()["scores"]]
    assert kept["verdict"] == "pass"


def test_a_check_that_had_nothing_to_look_at_is_not_tested_and_a_required_one_stays_undecided(tmp_path):
    root = make_run(tmp_path / "run", verdict="inconclusive")
    told = findings("inconclusive", "strict")
    told["findings"] += [finding("canaries", "inconclusive", required=False), finding("linkage", "inconclusive")]
    told["findings"] += [finding("membership_model", "inconclusive", value=0.6, required=False)]
    (root / "audit/findings.json").write_text(json.dumps(told))
    sign(root)
    make_report(root)
    text = page_of(root).text
    assert "– not tested How strongly does the model repeat a single case?" in text
    assert "? undecided Do the released attributes point to" in text
    assert "? undecided Can one tell from the model" in text
    shown = {row["check"]: row["shown"] for row in facts_of(read(root), 0)["findings"]}
    assert (shown["identifiers"], shown["canaries"], shown["linkage"]) == ("pass", "untested", "inconclusive")


def test_the_page_never_promises_anonymity(passed):
    for name in ("index.html", "shareable.html"):
        assert "anonym" not in page_of(passed, name).text.lower()


def test_the_nearest_pairs_come_worst_first(passed):
    text = page_of(passed).text
    assert text.index("nearness 0.95") < text.index("nearness 0.93")


def test_a_script_in_a_condition_is_text(passed):
    html = (passed / "report/index.html").read_text(encoding="utf-8")
    assert SCRIPT not in html
    assert SCRIPT in page_of(passed).text


def test_no_path_of_the_source_is_on_any_page(passed):
    for name in ("index.html", "shareable.html", "report.json"):
        content = (passed / "report" / name).read_text(encoding="utf-8")
        assert "/archive" not in content
        assert str(passed.parent) not in content


def test_cohorts_that_left_before_are_counted_with_this_one(tmp_path):
    root = make_run(tmp_path / "run")
    share = {"synthetic": "A", "cases": 80, "copies_upper": 0.05, "hard_copies": 0}
    ledger.write(tmp_path / ledger.LEDGER, {"train": "c" * 64, "synthetic": "A", "released": share})
    page = (make_report(root) / "index.html").read_text(encoding="utf-8")
    assert "2 cohorts of 100 images in all will have left of this training set" in page
    assert "at least 90 % confidence" in page


def test_the_shareable_copy_knows_no_patient(passed):
    inside, outside = ((passed / "report" / name).read_text(encoding="utf-8") for name in ("index.html", "shareable.html"))
    real = Cohort.read(passed / "prepare/cohort.jsonl")
    shown = {base64.b64encode(figures.png(report._grey(real, case))).decode() for case in real}
    assert shown & pixels(inside)
    assert not shown & pixels(outside)
    assert not any(case.id in outside or case.subject in outside for case in real)
    assert "description.low" not in outside
    assert "Nearest training" in inside
    assert "Nearest training" not in outside
    # a class of ten people is told of inside alone, however many images they gave
    assert "class=rare" in inside
    assert "class=normal" in outside
    assert "class=rare" not in outside
    # the schema's ends are round numbers, nobody's own age
    assert f"{real.header.conditions.attributes[1].low:.4g} to" in outside
    synthetic = Cohort.read(passed / "sample/cohort.jsonl")
    assert {base64.b64encode(figures.png(report._grey(synthetic, synthetic.cases[0]))).decode()} <= pixels(outside)


def test_no_real_picture_even_reaches_the_template_of_the_shareable_copy(tmp_path, monkeypatch):
    given, render = [], report.render
    monkeypatch.setattr(report, "render", lambda page: given.append(page) or render(page))
    root = make_run(tmp_path / "run", conditions={"class": ["a", "b"]})
    make_report(root)
    (outside,) = (json.dumps(page) for page in given if not page["inside"])
    real = Cohort.read(root / "prepare/cohort.jsonl")
    assert not any(base64.b64encode(figures.png(report._grey(real, case))).decode() in outside for case in real)
    assert not any(case.id in outside for case in real)


def test_a_shareable_page_that_quotes_a_patient_is_refused(passed):
    story = read(passed)
    report.refuse_people("<p>nothing of the kind</p>", story.real)
    with pytest.raises(MedsynthError, match="1 real cases"):
        report.refuse_people(f"<p>see {story.real.cases[3].id}.</p>", story.real)


def test_a_shareable_copy_of_an_earlier_pass_does_not_outlive_it(tmp_path):
    root = make_run(tmp_path / "run")
    assert (make_report(root) / "shareable.html").exists()
    (root / "audit/findings.json").write_text(json.dumps(findings("fail", "strict")))
    sign(root)
    assert not (make_report(root) / "shareable.html").exists()


def test_the_same_run_gives_the_same_bytes(tmp_path):
    root = make_run(tmp_path / "run", conditions={"class": ["a", "b"]})
    first = {path.name: path.read_bytes() for path in make_report(root).rglob("*.*") if path.is_file()}
    second = {path.name: path.read_bytes() for path in make_report(root).rglob("*.*") if path.is_file()}
    assert first == second
    assert {"index.html", "shareable.html", "report.json", "training.png", "memorization.png", "audit.png", "synthetic.png"} == set(first)


@pytest.mark.parametrize("stage", ["prepare", "sample", "audit", "evaluate"])
def test_a_missing_stage_is_named(tmp_path, stage):
    root = make_run(tmp_path / "run")
    (root / stage / "receipt.json").unlink()
    with pytest.raises(MedsynthError, match=f"medsynth {stage}"):
        read(root)


def test_evidence_that_was_changed_afterwards_is_refused(tmp_path):
    root = make_run(tmp_path / "run", verdict="fail")
    (root / "audit/findings.json").write_text(json.dumps(findings("pass", "strict")))
    with pytest.raises(MedsynthError, match="was changed"):
        read(root)


def test_what_was_the_same_and_where_training_stopped_for_it_is_told_inside_alone(tmp_path):
    root = make_run(tmp_path / "run", verdict="pass", level="strict")
    (root / "prepare/summary.json").write_text(json.dumps({"merged_subjects": 3, "moved_cases": 2}))
    told = {"duplicates": 4, "memorization": {"limit": 0.1, "stopped": 200, "kept": 150}}
    (root / "train/denoiser/denoiser.yaml").write_text(json.dumps({"process": "edm", "description": told}))
    make_report(root)
    text = " ".join(page_of(root).text.split())
    assert "training cases were spared 20 % of the loss" in text
    assert "95 % interval 15 to 25 %, 7 pairs of subjects" in text
    assert "Training stopped at step 200 , where this was more than 10 %; the weights of step 150" in text.replace("200,", "200 ,")
    assert "3 subjects have an image that is equal to one of another subject" in text
    assert "4 training cases were left out, as nearly the same" in text
    shareable = (root / "report/shareable.html").read_text()
    assert "is equal to one of another" not in shareable
    assert "as nearly the same" not in shareable


def test_a_cohort_from_elsewhere_has_a_report_without_training(tmp_path):
    root = make_run(tmp_path / "run")
    (root / "train/history.jsonl").unlink()
    (root / "train/receipt.json").unlink()
    make_report(root)
    assert "No training belongs to this run" in page_of(root).text


def test_a_volume_shows_three_planes_and_a_report_of_volumes_says_so(tmp_path):
    root = make_run(tmp_path / "run", shape=(12, 10, 8))
    make_report(root)
    assert "axial, coronal, sagittal" in page_of(root).text


def test_a_ratio_is_given_only_to_a_floor_that_is_above_zero(passed):
    ratio = {row["name"]: row["ratio"] for row in facts_of(read(passed), 0)["scores"]}
    assert ratio["frechet"] == 2
    assert ratio["kid"] is None
    assert ratio["precision"] is None


@pytest.mark.parametrize(
    ("best", "value", "as_good"),
    [
        ("low", 0.9, True),
        ("low", 5.0, False),
        ("high", 5.0, True),
        ("high", 0.1, False),
        ("anchor", 1.0, True),
        ("anchor", 5.0, False),
        ("anchor", 0.1, False),
    ],
)
def test_a_score_is_judged_in_its_good_direction(best, value, as_good):
    row = _score(score("x", value=value, interval=[value - 0.05, value + 0.05], anchor=1.0, anchor_interval=[0.9, 1.1], best=best))
    assert row["as_good"] is as_good


@pytest.mark.parametrize(
    ("value", "best", "as_good"), [(1.05, "low", False), (0.95, "low", True), (0.95, "high", False), (1.05, "high", True)]
)
def test_a_permutation_test_shows_a_difference_where_intervals_overlap(value, best, as_good):
    row = score("x", value=value, interval=[0.5, 1.5], anchor=1.0, anchor_interval=[0.5, 1.5], best=best, p=0.01)
    assert _score(row)["as_good"] is as_good
    assert _score({**row, "p": 0.3})["as_good"] is True


def test_the_page_that_may_leave_is_named_by_its_hash_in_what_the_receipt_binds(passed, tmp_path):
    kept = json.loads((passed / "report/report.json").read_text())
    assert kept["shareable_sha256"] == sha256_of(passed / "report/shareable.html")
    failed = make_report(make_run(tmp_path / "run", verdict="fail"))
    assert json.loads((failed / "report.json").read_text())["shareable_sha256"] is None


def keep_features(root: Path) -> None:
    """What `evaluate` keeps of each case. Case 7 lies far from everybody, case 3 on a held-out case."""
    real, synthetic = Cohort.read(root / "prepare/cohort.jsonl"), Cohort.read(root / "sample/cohort.jsonl")
    parts = {"train": real.split("train"), "holdout": real.split("holdout"), "synthetic": synthetic}
    generator = np.random.default_rng(0)
    arrays = {f"cases/{name}": np.array([case.id for case in cohort]) for name, cohort in parts.items()}
    arrays |= {f"texture/{name}": generator.standard_normal((len(cohort), 5)) for name, cohort in parts.items()}
    arrays["texture/synthetic"][7] = 6
    arrays["texture/synthetic"][3] = arrays["texture/holdout"][0]
    np.savez(root / "evaluate/features.npz", made_from=np.array("x"), **arrays)


def test_the_worst_case_is_the_farthest_from_the_held_out_and_the_best_the_nearest(tmp_path):
    root = make_run(tmp_path / "run")
    keep_features(root)
    facts = facts_of(read(root), 0)["extremes"]
    assert facts["worst"][0]["case"] == "syn-000007"
    assert facts["best"][0] == {"case": "syn-000003", "distance": 0.0}
    distances = [row["distance"] for row in facts["worst"]]
    assert distances == sorted(distances, reverse=True)
    make_report(root)
    assert "The worst and the best of all 20" in page_of(root).text
    outside = (root / "report/shareable.html").read_text(encoding="utf-8")
    assert "The worst and the best" in outside
    assert "syn-000007" not in outside


def test_what_the_page_lacks_is_named_with_its_reason(tmp_path):
    root = make_run(tmp_path / "run")
    named = {row["name"] for row in facts_of(read(root), 0)["not_computed"]}
    assert {"utility", "precision", "worst and best cases", "what each score can see", "the sampler's way"} <= named
    told = [{"name": "what each score can see", "reason": "not asked for: evaluate.sanity=off"}]
    (root / "evaluate/metrics.json").write_text(json.dumps(metrics() | {"not_computed": told}))
    sign(root)
    assert [row for row in facts_of(read(root), 0)["not_computed"] if row["name"] == told[0]["name"]] == told
    keep_features(root)
    assert "worst and best cases" not in {row["name"] for row in facts_of(read(root), 0)["not_computed"]}


def test_the_way_from_noise_is_shown_inside_alone(tmp_path):
    root = make_run(tmp_path / "run")
    images = np.random.default_rng(0).standard_normal((2, 4, 16, 16)).astype(np.float16)
    way = {"sigmas": np.array([20.0, 5, 1, 0.1]), "noisy": images, "expected": images / 2}
    np.savez(root / "sample/trajectory.npz", **way, steps=np.array([3, 6, 12]), errors=np.array([0.2, 0.08, 0.02]))
    make_report(root)
    inside, outside = page_of(root), page_of(root, "shareable.html")
    assert "From noise to image" in inside.text
    assert "From noise to image" not in outside.text
    assert "enough sampling steps" in outside.text
    assert facts_of(read(root), 0)["steps"][-1] == {"steps": 12, "error": 0.01}


def test_what_each_score_can_see_is_a_table_of_scores_by_defects(tmp_path):
    root = make_run(tmp_path / "run")
    rows = [
        {"name": "kid", "features": "texture", "defect": "blur", "sees": True},
        {"name": "kid", "features": "texture", "defect": "dropped class", "sees": False},
        {"name": "coverage", "features": "convolutions", "defect": "blur", "sees": None},
    ]
    (root / "evaluate/metrics.json").write_text(json.dumps(metrics() | {"sanity": rows}))
    sign(root)
    make_report(root)
    table = facts_of(read(root), 0)["sanity"]
    assert table["defects"] == ["blur", "dropped class"]
    assert [row["cells"] for row in table["rows"]] == [[True, False], [None, None]]
    assert "sees blind" in page_of(root).text


def test_the_utility_has_its_rows_once_somebody_asked_for_it(tmp_path):
    root = make_run(tmp_path / "run")
    make_report(root)
    assert "Trained on it" not in page_of(root).text
    arm = {"name": "real + synthetic", "cases": 80, "value": 0.912, "interval": [0.87, 0.943]}
    task = {"task": "segmentation", "measure": "Dice coefficient", "n": {"holdout": {"subjects": 24}}, "arms": [arm]}
    (root / "utility" / "figures").mkdir(parents=True)
    (root / "utility" / "utility.json").write_text(json.dumps({"tasks": [task]}))
    picture = figures.bars("Utility", "Dice", {"real": 0.9})
    (root / "utility" / "figures" / "segmentation.png").write_bytes(picture)
    make_report(root)
    for name in ("index.html", "shareable.html"):
        assert base64.b64encode(picture).decode() in pixels((root / "report" / name).read_text())
    assert (root / "report" / "figures" / "utility_segmentation.png").read_bytes() == picture  # what is handed to the tracker
    text = page_of(root).text
    for part in ("Trained on it, tested on real people: segmentation", "real + synthetic", "0.912", "0.87 to 0.943"):
        assert part in text


def test_other_settings_are_told_if_they_were_measured_on_the_weights_of_this_run(tmp_path):
    root = make_run(tmp_path / "run")
    cohort = Cohort.read(root / "sample/cohort.jsonl")
    replace(cohort, header=replace(cohort.header, made_with={"weights": "f" * 64})).write(root / "sample/cohort.jsonl")
    sign(root)
    row = {"at": 5, "own": False, "value": 0.1234, "interval": [0.05, 0.21], "floor": 0.0, "floor_interval": [-0.01, 0.02], "seconds": 0.5}
    broken = dict.fromkeys(row) | {"at": 2, "own": True, "seconds": 0.25}
    told = {
        "cases": 60,
        "reference": {"split": "validation", "subjects": 55},
        "curves": [{"name": "steps", "points": [broken, row]}],
        "not_computed": [{"name": "quality against guidance", "reason": "guidance=none"}],
    }
    (root / "sweep/figures").mkdir(parents=True)
    picture = figures.bars("Sweep", "KID", {"5": 0.1})
    (root / "sweep/figures/quality.png").write_bytes(picture)
    for weights, shown in (("e", False), ("f", True)):
        (root / "sweep/sweep.json").write_text(json.dumps(told | {"weights": weights * 64}))
        make_report(root)
        page = page_of(root, "shareable.html")
        assert ("sampling steps 2 – not finite 0.25 5 0.123 0.05 to 0.21 0.5" in page.text) == shown
        assert ("quality against guidance : guidance=none" in page.text) == shown
        assert ("quality against training steps, sampling steps and guidance" in page.text) != shown
        assert (base64.b64encode(picture).decode() in pixels((root / "report/shareable.html").read_text())) == shown


def test_every_metric_and_every_planted_kind_is_told_in_plain_words():
    words = Environment(loader=PackageLoader("medsynth.stages", "")).get_template("words.html.j2").module
    for path in (Path(report.__file__).parents[2] / "conf/metric").glob("*.yaml"):
        features = (yaml.safe_load(path.read_text()) or {}).get("features", "")
        if path.stem != "fast":
            assert path.stem.removesuffix(f"_{features}") in words.METRIC
    assert {*plants.kinds((8, 8, 8)), *plants.kinds((8, 8)), "redrawn"} <= set(words.PLANTED)
