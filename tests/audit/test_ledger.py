"""The ledger of looks: all of them, in their order, and none taken out unseen."""

from pathlib import Path

import pytest

from medsynth.audit import ledger
from medsynth.errors import MedsynthError


def look(path: Path, synthetic: str, verdict: str | None = None, train: str = "T") -> None:
    line = {"train": train, "synthetic": synthetic, "level": "demo", "seed": 0}
    ledger.write(path, line | ({"limits": {}} if verdict is None else {"verdict": verdict}))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / ledger.LEDGER
    for cohort, verdict in (("A", "fail"), ("B", None), ("C", "pass")):
        look(path, cohort)
        if verdict:
            look(path, cohort, verdict)
    look(path, "other", train="U")
    return path


def test_each_look_at_this_training_set_is_told_with_its_verdict(path: Path):
    assert [(row["synthetic"], row["verdict"]) for row in ledger.looks(path, "T")] == [("A", "fail"), ("B", ""), ("C", "pass")]
    look(path, "A")  # once more, and now it passes: that is another look
    look(path, "A", "pass")
    assert [row["verdict"] for row in ledger.looks(path, "T")] == ["fail", "", "pass", "pass"]
    assert ledger.looks(path.with_name("none"), "T") == []


DAMAGE = {
    "the first line is gone": lambda lines: lines[1:],
    "one line is gone": lambda lines: [lines[0], *lines[2:]],
    "a verdict is another": lambda lines: [lines[0], lines[1].replace("fail", "pass"), *lines[2:]],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_line_taken_out_or_changed_is_found_by_the_next_look(path: Path, damage: str):
    path.write_text("\n".join(DAMAGE[damage](path.read_text().splitlines())) + "\n")
    with pytest.raises(MedsynthError, match="changed or taken out"):
        look(path, "D")


def test_half_a_line_of_a_killed_process_is_dropped(path: Path):
    path.write_text(path.read_text() + '{"train": "T", "synth')
    look(path, "D")
    assert [row["synthetic"] for row in ledger.looks(path, "T")] == ["A", "B", "C", "D"]
