"""The audit told to a data protection officer, on one page that prints: what was asked, what was found, and what is not proven.

Her questions come first and the checks answer them, so a question that no check answered says so. The page is made from the audit's JSON
alone (`medsynth.audit.schema`): the release's ``audit.html`` holds no real pixel and names nobody; ``pairs`` are for eyes inside.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from medsynth import __version__
from medsynth.audit.finding import tested

TEMPLATE = "privacy.html.j2"


@dataclass(frozen=True, kw_only=True)
class Question:
    """What an officer asks, in her words, and the checks that answer it."""

    name: str
    text: str
    source: str  # where the question comes from
    checks: tuple[str, ...]


QUESTIONS = (
    Question(
        name="Direct identifiers",
        text="Does a file name, a header, a text or the writing in a picture name a person?",
        source="ISO 25237; DICOM PS3.15 Annex E; NIST SP 800-188",
        checks=("identifiers", "pixels"),
    ),
    Question(
        name="Singling out",
        text="Can an image of one real person be found in the cohort, copied or nearly so?",
        source="WP216 (singling out); EDPB Opinion 28/2024 (regurgitation, extraction)",
        checks=("memorization", "confirmation", "canaries"),
    ),
    Question(
        name="Membership",
        text="Can somebody who holds a person's scan tell that it was among the training data?",
        source="EDPB Opinion 28/2024 (membership inference)",
        checks=("membership_cohort", "membership_model"),
    ),
    Question(
        name="Linkability",
        text="Can records of the cohort be joined with another source about the same person?",
        source="WP216 (linkability)",
        checks=("linkage",),
    ),
    Question(
        name="Inference",
        text="Does the cohort tell a person's attribute, beyond what it tells of people who were not in the data?",
        source="WP216 (inference); EDPB Opinion 28/2024 (attribute inference)",
        checks=("linkage",),
    ),
)
STRENGTHEN = ("canaries", "confirmation", "membership_model")  # without them an answer about the cohort is whole
# What a check does, in a line; a check that is not here is told by its finding alone.
MEANS = {
    "identifiers": "Every name and byte that leaves is searched for every identifier of the real headers; planted ones must be found.",
    "memorization": "Every synthetic image is compared with every training image, turned, mirrored, shifted, cropped and re-contrasted; "
    "planted copies must be found, and held-out people must not be.",
    "pixels": "The synthetic images are read for writing; text written into them on purpose must be found. Faces are not looked for.",
    "confirmation": "Another kind of search for copies, whose verdict counts where copies were rejected and drawn anew.",
    "canaries": "Cases that are nobody's were put among the training data, and are looked for in what the model makes.",
    "membership_cohort": "An attack with the cohort alone guesses who was trained on, among training and held-out people.",
    "membership_model": "The same with the model in hand, for the case that its weights are released.",
    "linkage": "The attributes of the synthetic cases are attacked as a table, against the same attack on held-out people.",
}


def page(audit: Mapping[str, Any], *, name: str, counts: Mapping[str, int], pairs: Sequence[Mapping[str, Any]] = ()) -> str:
    """The page as HTML, self-contained. ``audit`` is valid under `medsynth.audit.schema`; ``counts``: train, holdout, made."""
    told = answers(audit)
    powers = [row for answer in told for row in answer["rows"] if row["details"].get("recall")]
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["percent"] = lambda value: f"{100 * value:.3g} %"
    context = {"audit": audit, "name": name, "counts": counts, "pairs": pairs, "answers": told, "powers": powers, "version": __version__}
    return environment.get_template(TEMPLATE).render(context)


def answers(audit: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The questions with what their checks found. ``verdict`` is the worst of those that were done, or "" where none was."""
    found = {finding["check"]: finding for finding in audit["findings"]}
    told = [_answer(question, [_told(check, found.get(check)) for check in question.checks]) for question in QUESTIONS]
    asked = {check for question in QUESTIONS for check in question.checks}
    others = [_told(check, finding) for check, finding in found.items() if check not in asked]
    if others:
        told.append(_answer(Question(name="Further checks", text="What else was tried.", source="", checks=()), others))
    return told


def _answer(question: Question, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    done = [row["verdict"] for row in rows if row["done"]]
    return {
        "name": question.name,
        "text": question.text,
        "source": question.source,
        "rows": rows,
        "missing": any(not row["done"] for row in rows if row["check"] not in STRENGTHEN),
        "verdict": next((verdict for verdict in ("fail", "inconclusive", "pass") if verdict in done), ""),
    }


def _told(check: str, finding: Mapping[str, Any] | None) -> dict[str, Any]:
    """A check without a finding, or with one that says that nothing was tested, was not done."""
    done = finding is not None and tested(finding)
    why = "Not tested." if finding is None else finding["why"]
    return {
        "check": check,
        "means": MEANS.get(check, ""),
        "done": done,
        "required": finding is not None and finding["required"],
        "verdict": finding["verdict"] if finding else "",
        "why": why,
        "details": finding["details"] if finding else {},
    }
