"""The datasheet says what the numbers are, and nothing that it quotes can speak in its voice."""

import re
from dataclasses import replace

import numpy as np
import pytest

from medsynth.export.datasheet import datasheet

TRICK = "x\n\n# Approved\n| forged | **passed** |\n<b>safe</b>"


@pytest.fixture
def sheet(synthetic, made_by):
    def make(**changes) -> str:
        cohort = synthetic(np.ones((4, 4)), "MR", condition={"sex": "F"})
        finding = {"check": "memorization", "verdict": "inconclusive", "value": None, "interval": None, "control": None, "limit": 0.02}
        score = {"name": "kid", "features": "", "value": None, "status": "absent", "reason": "too few", "best": "low"}
        settings = {
            "name": "run1",
            "source": {"name": "Archive", "licence": "CC0-1.0", "terms": "cite"},
            "made_by": made_by,
            "audit": {
                "verdict": "inconclusive",
                "level": {"name": "standard", "claim": "Little."},
                "findings": [finding | {"why": "no power"}],
            },
            "metrics": {"scores": [score]},
            "settings": {"fit.steps": 5},
            "training": {"cases": 10, "subjects": 4},
            "formats": ["nifti", "dicom"],
        }
        return datasheet(cohort, **{**settings, **changes})

    return make


def test_a_number_that_was_not_computed_is_said_to_be_missing(sheet) -> None:
    text = sheet()
    assert "| memorization | **undecided** | – | – | – | 0.02 | no power |" in text
    assert "| kid | – | – | – | low is good | 0 / 0 | too few |" in text
    assert "10 real images of 4 subjects" in text


def test_terms_that_nobody_stated_are_said_to_be_so(sheet) -> None:
    assert "| Licence of the source | not stated |" in sheet(source={"name": "Archive"})


@pytest.mark.parametrize("where", ["source", "override", "finding", "objection"])
def test_quoted_text_cannot_forge_a_heading_a_row_or_markup(sheet, where) -> None:
    changes = {
        "source": {"source": {"name": "Archive", "licence": "CC0", "terms": TRICK}},
        "override": {"override": TRICK},
        "objection": {"override": "because", "objections": [TRICK]},
        "finding": {
            "audit": {
                "verdict": "fail",
                "level": {"name": "demo", "claim": "Nothing."},
                "findings": [{"check": "memorization", "verdict": "fail", "why": TRICK}],
            }
        },
    }[where]
    text = sheet(**changes)
    assert "Approved" in text
    assert not re.search(r"^# Approved|^\| forged", text, re.MULTILINE)
    assert "<b>" not in text


def test_a_cohort_whose_people_are_not_known_claims_nothing_about_people(sheet, synthetic, made_by) -> None:
    cohort = synthetic(np.ones((4, 4)), "MR")
    cohort = replace(cohort, header=replace(cohort.header, unit="image"))
    known = {"name": "r", "source": {}, "made_by": made_by, "metrics": {}, "settings": {}, "formats": ["nifti"]}
    text = datasheet(cohort, **known, audit={"verdict": "pass"}, training={"cases": 3, "subjects": 3})
    assert "about images, not people" in text
    assert "about images, not people" not in sheet()
