"""What every check of conf/check/ promises: it fires on a planted leak, is quiet on the control, and repeats under its seed."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from medsynth.audit.finding import Check, Evidence, Finding
from medsynth.audit.level import LEVELS
from medsynth.canaries import CanarySet
from medsynth.deidentify import burned_in
from medsynth.io.identifiers import write_identifiers
from tests.make_evidence import cohort_of, images_of, learned_by_heart, make_evidence
from tests.make_text import burn, phantom

FILES = sorted((Path(__file__).resolve().parents[2] / "conf" / "check").glob("*.yaml"))
NO_READER = pytest.mark.skipif(not burned_in.is_installed(), reason="tesseract is not installed")
MARKS = {"pixels": [pytest.mark.slow, pytest.mark.timeout(1200), NO_READER]}  # to read a picture takes half a second
KEY = b"k" * 32
IDENTIFIER = "MRN00771234"


@pytest.fixture(params=[pytest.param(path, id=path.stem, marks=MARKS.get(path.stem, ())) for path in FILES])
def check(request: pytest.FixtureRequest) -> Check:
    return instantiate(OmegaConf.load(request.param))


@pytest.fixture
def name(request: pytest.FixtureRequest, check: Check) -> str:
    return request.node.callspec.params["check"].stem


def evidence(folder: Path, name: str, leak: bool) -> Evidence:
    """A cohort that holds every leak that a check is for, or none of them."""
    shape = (20, 20)
    planted = images_of(shape, [f"train {i}" for i in range(40)]) if leak else None
    made = make_evidence(folder, shape=shape, n_synthetic=60, planted=planted, level=replace(LEVELS["demo"], plants=6, recall=0.3))
    leaving = folder / "leaving"
    leaving.mkdir()
    (leaving / "cohort.jsonl").write_text(json.dumps({"comment": f"from {IDENTIFIER}" if leak else "nobody"}) + "\n")
    write_identifiers(folder / "identifiers.json", KEY, [IDENTIFIER])
    cohorts = {"train": made.train, "holdout": made.holdout, "synthetic": made.synthetic}
    rare = {"train": 4, "synthetic": 0} if leak else {}  # a case's place
    for split, cohort in cohorts.items():
        classes = ["rare" if rare.get(split) == i else ("ill", "well")[i % 2] for i in range(len(cohort))]
        cohorts[split] = cohort.where(replace(case, condition={"class": known}) for case, known in zip(cohort, classes, strict=True))
    made = replace(made, **cohorts)
    if name == "pixels":
        pictures = [phantom(128, n, rim=False) for n in range(60)]
        if leak:
            text = {"text": "SMITH, JOHN M\nID 4711", "size": 13, "contrast": 200, "place": (4, 4)}
            pictures = [burn(each, **text) if n < 12 else each for n, each in enumerate(pictures)]
        arrays = np.stack([each.T[::-1, ::-1] / np.float32(127.5) - 1 for each in pictures])
        pictured = {split: cohort_of(folder / "pictures", split, arrays) for split in ("train", "synthetic")}
        made = replace(made, level=replace(made.level, plants=12), **pictured)
    canaries = CanarySet(made.train, 60, 0)
    if name == "canaries" and leak:
        arrays = np.stack([canaries.image(number)[0] for number in canaries.inserted])
        made = replace(made, synthetic=cohort_of(folder / "canaries", "synthetic", arrays))
    known = images_of(shape, [f"{'train' if leak else 'somebody'} {i}" for i in range(60)])
    made = replace(made, model=learned_by_heart(known))
    return replace(made, canaries=canaries, folders=(leaving,), identifiers=folder / "identifiers.json", key=KEY)


def bytes_of(finding: Finding) -> str:
    return json.dumps(finding.as_json(), sort_keys=True, allow_nan=False)


def test_it_fires_on_a_planted_leak_and_names_no_value(check: Check, name: str, tmp_path: Path) -> None:
    finding = check(evidence(tmp_path, name, leak=True))
    assert (finding.check, finding.verdict) == (name, "fail")
    assert finding.why.endswith(".")
    assert IDENTIFIER not in bytes_of(finding)


def test_it_is_quiet_on_the_control_and_repeats_under_its_seed(check: Check, name: str, tmp_path: Path) -> None:
    looked_at = evidence(tmp_path, name, leak=False)
    finding = check(looked_at)
    assert finding.verdict == "pass"
    assert finding.value <= finding.limit
    assert finding.interval is None or finding.interval[0] <= finding.value <= finding.interval[1] <= finding.limit
    assert bytes_of(check(looked_at)) == bytes_of(finding)


def test_without_what_it_needs_it_says_that_nothing_is_known(
    check: Check, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = evidence(tmp_path, name, leak=True)
    monkeypatch.setattr(burned_in, "is_installed", lambda: False)
    finding = check(replace(looked_at, holdout=looked_at.holdout.where(()), key=None, canaries=None))
    assert finding.verdict == "inconclusive"
    assert (finding.value, finding.interval) == (None, None)
