"""Cohorts released from one training set are one leak to who collects them all: their bounds must hold at once, and their copies add up."""

from collections.abc import Mapping, Sequence
from typing import Any

from medsynth.audit.rates import clopper_pearson


def share_of(cohort: str, cases: int, findings: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What one release adds: its cases, the upper bound of their rate of copies, and the near-exact copies found.

    A bound that did not pass is none: then it is 1. Where nobody searched at all, the count is None too.
    """
    search = next((finding for finding in findings if finding["check"] == "memorization" and finding["interval"]), None)
    hard = search["details"].get("hard_copies") if search else None
    upper = search["interval"][1] if search and search["verdict"] == "pass" else 1.0
    return {"synthetic": cohort, "cases": cases, "copies_upper": upper, "hard_copies": hard["count"] if hard else None}


def together(shares: Sequence[Mapping[str, Any]], *, told: int, taken: int) -> dict[str, Any]:
    """All releases of one training set in a few numbers; ``told`` of ``taken`` looks stand in the ledger.

    Each bound fails with a chance of at most 5 % (its upper end, and that of the recall it is divided by, at 2.5 % each), so all hold at
    once with at least ``1 - 0.05 k`` (Bonferroni), and then no more than the sum of the single bounds are copies.
    """
    cases = sum(share["cases"] for share in shares)
    copies = sum(share["cases"] * share["copies_upper"] for share in shares)
    hard = [share["hard_copies"] for share in shares]
    counted = None if None in hard else {"count": sum(hard), "interval": list(clopper_pearson(sum(hard), cases))}
    bound = {"upper": copies / max(cases, 1), "cases": int(copies), "confidence": max(0.0, round(1 - 0.05 * len(shares), 6))}
    return {"cohorts": len(shares), "cases": cases, "looks": taken, "untold": taken - told, "copies": bound, "hard_copies": counted}
