"""A scorecard of the cohort under the seven headings for synthetic medical data of Zamzmi et al. 2025 (FDA/CDRH), "Scorecard for synthetic
medical data evaluation", Communications Engineering 4:130: congruence, coverage, constraint, completeness, comprehension, compliance,
consistency.

The headings are theirs, the evidence is this release's, and each heading says also what nobody has measured.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from medsynth.cohort import Cohort
from medsynth.export.markdown import interval, line, number, table

CONGRUENCE = ("kid", "mmd", "frechet", "intensity", "spectrum", "radiomics", "texture_effects")
COVERAGE = ("coverage", "recall", "vendi", "ms_ssim")
CONSTRAINT = ("precision", "density", "label_volumes", "implausible")
VERDICTS = {"pass": "passed", "fail": "**FAILED**", "inconclusive": "**undecided**"}


def scorecard(cohort: Cohort, *, name: str, audit: Mapping[str, Any], metrics: Mapping[str, Any]) -> str:
    """The card as Markdown; ``audit`` and ``metrics`` are what the release holds as ``audit.json`` and ``metrics.json``."""
    parts = [
        f"# {line(name)}: scorecard",
        "Seven questions about synthetic medical data, after Zamzmi et al. 2025 (doi:10.1038/s44172-025-00450-1). The authors work at the "
        "FDA; the agency has neither filled in nor endorsed this card. Beside each score stands the same score between real training and "
        "real held-out images: the best that a generator could reach. Intervals are 95 %.",
        "## Congruence: do the images resemble real ones?",
        _scores(metrics, CONGRUENCE),
        "Not known: whether a reader can tell them apart (`medsynth reader-study` makes the pack for it), and what no score here can see.",
        "## Coverage: do they show the variety of real ones?",
        _scores(metrics, COVERAGE),
        "Not known: whether findings that are rare among the real images appear at all.",
        "## Constraint: are they anatomically and physically possible?",
        _scores(metrics, CONSTRAINT),
        _implausible(metrics),
        "Not known: whether a radiologist would accept each of them; nobody has read them.",
        "## Completeness: is what a task needs there?",
        _completeness(cohort),
        "Attributes are what the model was asked to show, not what a reader confirmed.",
        "## Comprehension: is it told how they were made?",
        "`datasheet.md` (source, terms, settings), `model_card.md` (the model) and `manifest.jsonl` (each case's seed). The same model, "
        "settings and seed draw the same case again.",
        "## Compliance: privacy, security, standards",
        _compliance(audit),
        "Not known: attacks that were not tried, and how the law sees these data.",
        "## Consistency: is the quality the same for all?",
        _consistency(metrics),
        "Not known: how another training with another seed would score; this is one model.",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _scores(metrics: Mapping[str, Any], names: Sequence[str]) -> str:
    rows = [
        (
            score["name"] + (f" ({score['features']})" if score.get("features") else ""),
            number(score.get("value")),
            interval(score.get("interval")),
            number(score.get("anchor")),
            interval(score.get("anchor_interval")),
            score.get("reason", ""),
        )
        for score in metrics["scores"]
        if score["name"] in names
    ]
    return table(("Score", "Synthetic", "95 % interval", "Real against real", "95 % interval", "Note"), rows) if rows else "Not measured."


def _implausible(metrics: Mapping[str, Any]) -> str:
    found = [score["details"] for score in metrics["scores"] if score["name"] == "implausible" and score.get("details")]
    if not found:
        return "No structures were outlined, or too few, so implausible cases were not counted."
    return (
        f"Cases with a structure whose size, number of parts or place hardly any training case has: {100 * found[0]['synthetic']:.3g} % of "
        f"the synthetic, {100 * found[0]['real']:.3g} % of held-out real ones."
    )


def _completeness(cohort: Cohort) -> str:
    count = len(cohort)
    rows = [("image", count, "100 %")]
    for attribute in cohort.header.conditions.attributes:
        filled = sum(case.condition.get(attribute.name) is not None for case in cohort)
        rows.append((attribute.name, filled, f"{100 * filled / max(count, 1):.3g} %"))
    masked = sum(case.mask is not None for case in cohort)
    rows.append(("mask", masked, f"{100 * masked / max(count, 1):.3g} %"))
    return table(("What", "Cases that have it", "Share"), rows)


def _compliance(audit: Mapping[str, Any]) -> str:
    rows = [
        (finding["check"], VERDICTS[finding["verdict"]], finding.get("why", ""))
        for finding in audit["findings"]
        if finding.get("required", True)
    ]
    spite = "**Released in spite of this verdict; `datasheet.md` has the reason.** " if audit.get("released_in_spite_of") else ""
    return (
        f"{spite}Audit: {VERDICTS[audit['verdict']]} at the level “{line(audit['level']['name'])}”. Files are signed (`signature.json`); "
        "DICOM objects are marked as Synthetic Data (0008,001C).\n\n" + table(("Check", "Verdict", "Why"), rows)
    )


def _consistency(metrics: Mapping[str, Any]) -> str:
    groups = [score for score in metrics.get("groups", []) if score.get("value") is not None]
    if not groups:
        return "Not measured: no class has enough people on every side for scores of its own."
    rows = [
        (score["group"], score["name"], number(score["value"]), interval(score["interval"]), number(score["anchor"])) for score in groups
    ]
    return table(("Group", "Score", "Synthetic", "95 % interval", "Real against real"), rows)
