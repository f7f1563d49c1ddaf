"""Rejection of copies while the cohort is drawn: after the verdict on what the model drew, and never instead of it.

A filter in front of the audit would hide a model that copies. So the whole cohort is audited first, and that verdict is kept
(``unfiltered/findings.json``, of the manifest ``unfiltered.jsonl``). Then each case that a check names as a copy is drawn anew under
another seed, until none is named. The manifest says what was rejected and holds the first verdict's hash, so that neither can be taken off
it. The cohort that is left is audited like any other; what rejected its copies cannot find them any more, so there it is another kind of
detector (`medsynth.audit.confirmation`) that must find none.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from medsynth.audit.finding import Check
from medsynth.cohort import Case, Cohort, sha256_of
from medsynth.errors import MedsynthError
from medsynth.stages import Run, audit

log = logging.getLogger(__name__)

ROUNDS = 10  # times that a case is drawn anew before the cohort goes on without it
VERDICT = "unfiltered/findings.json"

Draw = Callable[[Sequence[Case], int], Sequence[Case]]


def without_copies(run: Run, drawn: Cohort, anew: Draw) -> Cohort:
    """The cohort with other cases in the places of copies.

    ``anew(cases, round)`` draws one case in the place of each of these of ``drawn``. A place whose cases are all copies stays empty.
    Raises MedsynthError where all do.
    """
    drawn.write(drawn.folder / "unfiltered.jsonl")
    copies = _copies(_unfiltered(run, drawn)["findings"])
    finders = [run.objects["check"][name] for name in sorted(set(copies.values()))]
    cases, rejected = list(drawn), dict(copies)
    for round in range(1, ROUNDS + 1):
        places = [place for place, case in enumerate(cases) if case.id in copies]
        if not places:
            break
        log.info("sample: %d cases are copies and are drawn anew (round %d).", len(places), round)
        others = anew([drawn.cases[place] for place in places], round)
        for place, case in zip(places, others, strict=True):
            cases[place] = case
        copies = _named(run, finders, drawn.where(others))
        rejected |= copies
    kept = [case for case in cases if case.id not in copies]
    if not kept:
        raise MedsynthError(
            f"Each of the {len(drawn)} cases is a copy of a training case, in each of {ROUNDS} draws. The model has nothing else to give: "
            "train it on more subjects, or for fewer steps."
        )
    if len(kept) < len(drawn):
        log.warning("sample: %d cases were copies in each of %d draws; the cohort goes on without them.", len(drawn) - len(kept), ROUNDS)
    header = drawn.header
    made_with = {**header.made_with, "unfiltered": sha256_of(drawn.folder / VERDICT)}
    return replace(drawn, header=replace(header, rejected=rejected, made_with=made_with), cases=tuple(kept))


def _unfiltered(run: Run, drawn: Cohort) -> Mapping[str, Any]:
    """The audit of the cohort as it was drawn, from the last attempt where it was done then: no second look is taken."""
    path = drawn.folder / VERDICT
    if not path.is_file() or json.loads(path.read_text(encoding="utf-8"))["synthetic"] != drawn.digest:
        path.parent.mkdir(exist_ok=True)
        audit.examine(audit.evidence_of(run, drawn), run.objects["check"], path.parent, *audit.ledger_of(run))
    return json.loads(path.read_text(encoding="utf-8"))


def _named(run: Run, finders: Sequence[Check], cases: Cohort) -> dict[str, str]:
    """Copies among cases that were drawn anew."""
    evidence = audit.evidence_of(run, cases)
    return _copies([finder(evidence).as_json() for finder in finders])


def _copies(findings: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The check that names each case as a copy, by the case's id."""
    return {case: finding["check"] for finding in findings for case in finding["details"].get("copies", ())}
