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


@pytest.fixture
def witness(tmp_path: Path) -> Path:
    (tmp_path / "key").touch()
    return ledger.witness_of(tmp_path / "key")


def test_without_a_key_there_is_no_witness(tmp_path: Path):
    assert ledger.witness_of(tmp_path / "key") is None


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_an_end_that_was_cut_is_found_by_the_witness(tmp_path: Path, witness: Path, kept: int):
    path = tmp_path / "runs.jsonl"
    lines = [{"train": "T", "synthetic": str(i), "level": "demo", "seed": 0} for i in range(4)]
    for line in lines:
        ledger.write(path, line, witness)
    assert len(ledger.looks(path, "T", witness)) == ledger.taken(path, "T", witness) == 4
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:kept]))
    assert len(ledger.looks(path, "T")) == kept  # unseen without it
    with pytest.raises(MedsynthError, match="had 4 lines, and its end was cut"):
        ledger.looks(path, "T", witness)
    with pytest.raises(MedsynthError, match="its end was cut"):
        ledger.write(path, lines[0], witness)
    for line in lines[kept:]:
        ledger.write(path, line | {"seed": 1})  # as many lines again, with other looks in them
    with pytest.raises(MedsynthError, match="written anew"):
        ledger.looks(path, "T", witness)


def test_looks_of_a_ledger_that_was_thrown_away_stay_counted(tmp_path: Path, witness: Path):
    path = tmp_path / "runs.jsonl"
    for _ in range(3):
        ledger.write(path, {"train": "T", "synthetic": "A", "level": "demo", "seed": 0}, witness)
    path.unlink()
    ledger.write(path, {"train": "T", "synthetic": "B", "level": "demo", "seed": 0}, witness)
    assert (len(ledger.looks(path, "T", witness)), ledger.taken(path, "T", witness), ledger.taken(path, "U", witness)) == (1, 4, 0)


def test_a_release_is_no_look_and_the_same_cohort_is_counted_once(path: Path):
    for cohort, cases in (("A", 3), ("B", 4), ("A", 3)):
        ledger.write(path, {"train": "T", "synthetic": cohort, "released": {"cases": cases}})
    assert ledger.releases(path, "T") == [{"cases": 3}, {"cases": 4}]
    assert len(ledger.looks(path, "T")) == 3
    assert ledger.releases(path, "U") == []
