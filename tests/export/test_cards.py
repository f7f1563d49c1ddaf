"""The cards say what was measured and what was not, and the description for machines is read by its own reader."""

import json
from dataclasses import replace

import numpy as np
import pytest

from medsynth.conditions import ConditionSchema
from medsynth.export import nifti
from medsynth.export.croissant import croissant
from medsynth.export.model_card import model_card
from medsynth.export.scorecard import scorecard

CS = ("Congruence", "Coverage", "Constraint", "Completeness", "Comprehension", "Compliance", "Consistency")
AUDIT = {
    "verdict": "pass",
    "level": {"name": "standard", "claim": "Little."},
    "findings": [{"check": "memorization", "verdict": "pass", "why": "nothing | found\n# Approved"}],
}
SCORE = {"name": "kid", "features": "texture", "value": 0.031, "interval": [0.02, 0.04], "anchor": 0.001, "anchor_interval": None}
VOLUMES = {"name": "implausible", "value": 0.125, "details": {"real": 0.01, "synthetic": 0.125}}
METRICS = {"scores": [SCORE, VOLUMES], "groups": [SCORE | {"group": "sex=F"}]}


@pytest.fixture
def cohort(synthetic):
    made = synthetic(np.ones((4, 4)), "MR", condition={"sex": "F", "age": 50.0})
    schema = ConditionSchema.of(("sex", "age"), [{"sex": "F", "age": 20.0}, {"sex": "M", "age": 70.0}])
    return replace(made, header=replace(made.header, conditions=schema))


def test_the_scorecard_answers_its_seven_questions_in_order(cohort):
    text = scorecard(cohort, name="run1", audit=AUDIT, metrics=METRICS)
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert [heading.removeprefix("## ").partition(":")[0] for heading in headings[1:]] == list(CS)
    congruence = text[text.index("## Congruence") : text.index("## Coverage")]
    assert "| kid (texture) | 0.031 | 0.02 to 0.04 | 0.001 | – |" in congruence
    assert "12.5 % of the synthetic, 1 % of held-out" in text
    assert "| sex | 1 | 100 % |" in text
    assert "| mask | 0 | 0 % |" in text
    assert "| sex=F | kid | 0.031 |" in text
    assert "Not measured." in text[text.index("## Coverage") : text.index("## Constraint")]
    assert text.count("Not known") >= 5


def test_the_scorecard_of_an_override_says_so_and_no_text_forges_a_heading(cohort):
    text = scorecard(cohort, name="x\n# y", audit=AUDIT | {"verdict": "fail", "released_in_spite_of": {"reason": "r"}}, metrics=METRICS)
    assert "Released in spite of this verdict" in text
    assert "**FAILED**" in text
    assert sum(line.startswith("# ") for line in text.splitlines()) == 1


def test_the_model_card_describes_the_checkpoint_without_its_cohort(cohort, made_by):
    model = {
        "network": {"_target_": "medsynth.diffusion.networks.UNetSettings", "channels": [32, 64]},
        "process": {"_target_": "medsynth.diffusion.process.EDM", "sigma_data": 0.5},
        "weights": {"parameters": 1234},
        "description": {"low": 20.123},
    }
    training = {"cases": 10, "subjects": 4}
    text = model_card(cohort, name="run1", source={"name": "Archive"}, made_by=made_by, audit=AUDIT, model=model, training=training)
    for said in (
        "UNetSettings (channels=[32, 64])",
        "EDM (sigma_data=0.5)",
        "1234",
        "10 real images of 4 subjects",
        "Asked of the model: sex, age",
    ):
        assert said in text, said
    assert "20.123" not in text
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")][:2] == ["Model details", "Intended use"]


def test_croissant_is_valid_and_its_records_are_the_cases(cohort, tmp_path):
    mlcroissant = pytest.importorskip("mlcroissant")
    (case,) = cohort.cases
    nifti.write_table(cohort, {case.id: nifti.write(cohort, case, tmp_path / "nifti")}, tmp_path)
    source = {"name": "Archive", "licence": "CC0-1.0"}
    described = croissant(cohort, tmp_path, name="run1", source=source, audit=AUDIT, formats=["nifti", "dicom"], version="1.2.3")
    path = tmp_path / "croissant.json"
    path.write_text(json.dumps(described))
    dataset = mlcroissant.Dataset(str(path))
    assert not dataset.metadata.ctx.issues.errors
    # no clock is read, so there is no date to tell
    assert all("datePublished" in warning for warning in dataset.metadata.ctx.issues.warnings)
    (row,) = dataset.records("case")
    assert row["case/id"] == case.id.encode()
    assert row["case/seed"] == case.seed
    assert row["case/age"] == 50.0
    assert [node["@id"] for node in described["distribution"]] == ["cases.tsv", "images", "dicom"]
