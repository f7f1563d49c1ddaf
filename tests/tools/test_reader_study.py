"""The pack gives nothing away: neither by name, order, file, size nor header; and the key scores what comes back."""

import csv
import gzip
import re
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medsynth.cli import main
from medsynth.cohort import Cohort
from medsynth.errors import MedsynthError
from medsynth.tools.reader_study import score
from tests.stages.test_report import make_run


@pytest.fixture(scope="module", params=[(16, 12), (12, 10, 8)], ids=["2-D", "3-D"])
def study(request, tmp_path_factory) -> tuple[Path, Path]:
    root = make_run(tmp_path_factory.mktemp("runs") / "run", shape=request.param)
    out = root.parent / "study"
    assert main(["reader-study", str(root), f"out={out}", "cases=10", "seed=3"]) == 0
    return root, out


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_half_are_real_held_out_people_and_the_order_is_mixed(study):
    root, out = study
    key = table(out / "key.csv")
    truth = [row["truth"] for row in key]
    assert truth.count("real") == truth.count("synthetic") == 5
    assert truth != sorted(truth)
    assert truth != sorted(truth, reverse=True)
    holdout = {case.id: case.subject for case in Cohort.read(root / "prepare/cohort.jsonl").split("holdout")}
    people = [holdout[row["case"]] for row in key if row["truth"] == "real"]
    assert len(set(people)) == 5


def test_each_image_is_the_case_that_the_key_names(study):
    root, out = study
    cohorts = {"real": Cohort.read(root / "prepare/cohort.jsonl"), "synthetic": Cohort.read(root / "sample/cohort.jsonl")}
    for row in table(out / "key.csv"):
        cohort = cohorts[row["truth"]]
        (case,) = (case for case in cohort if case.id == row["case"])
        expected = np.clip((cohort.pixels(case)[0] + 1) * 127.5, 0, 255).round().astype(np.uint8)
        if expected.ndim == 2:
            shown = np.asarray(Image.open(out / "pack" / "images" / f"{row['number']}.png"))
            np.testing.assert_array_equal(np.sort(shown.ravel()), np.sort(expected.ravel()))
        else:
            np.testing.assert_array_equal(np.asarray(nib.load(out / "pack" / "volumes" / f"{row['number']}.nii.gz").dataobj), expected)


def test_nothing_in_the_pack_tells_real_from_synthetic(study):
    root, out = study
    key = {row["number"]: row for row in table(out / "key.csv")}
    assert {path.name for path in out.iterdir()} == {"pack", "key.csv"}
    files = [path for path in (out / "pack").rglob("*") if path.is_file()]
    assert all(re.fullmatch(r"\d{3}\.(png|nii\.gz)|form\.csv|index\.html", path.name) for path in files)
    names = {case.id for stage in ("prepare", "sample") for case in Cohort.read(root / stage / "cohort.jsonl")}
    for path in files:
        assert not any(name.encode() in path.read_bytes() for name in names)
    pictures = [Image.open(out / "pack" / "images" / f"{number}.png") for number in key]
    assert len({picture.size for picture in pictures}) == 1
    assert not any(picture.info for picture in pictures)
    headers = {gzip.decompress(path.read_bytes())[:352] for path in files if path.name.endswith(".nii.gz")}
    assert len(headers) <= 1
    assert {path.read_bytes()[3:8] for path in files if path.name.endswith(".nii.gz")} <= {bytes(5)}  # no name, no time


def test_the_page_warns_and_asks_for_every_image(study):
    _, out = study
    html = (out / "pack" / "index.html").read_text()
    assert "must stay inside" in html
    assert not re.search(r"https?://|url\(|@import", html)
    assert html.count('value="synthetic"') == 10
    assert [row["number"] for row in table(out / "pack" / "form.csv")] == [f"{n:03d}" for n in range(1, 11)]
    assert (out / "key.csv").stat().st_mode & 0o077 == 0


def test_one_seed_gives_one_pack(study, tmp_path):
    root, out = study
    assert main(["reader-study", str(root), f"out={tmp_path / 'again'}", "cases=10", "seed=3"]) == 0
    for path in (path for path in out.rglob("*") if path.is_file()):
        assert (tmp_path / "again" / path.relative_to(out)).read_bytes() == path.read_bytes()
    assert main(["reader-study", str(root), f"out={tmp_path / 'other'}", "cases=10", "seed=4"]) == 0
    assert (tmp_path / "other/key.csv").read_bytes() != (out / "key.csv").read_bytes()


def test_a_perfect_reader_is_told_from_one_who_guesses(study, tmp_path, capsys):
    _, out = study
    key = table(out / "key.csv")
    lines = [f"{int(row['number'])},{row['truth'].upper()} ,5," for row in key]  # as a spreadsheet would save it
    (tmp_path / "a.csv").write_text("\n".join(["number,real or synthetic,confidence 1 to 5,comment", *lines]))
    (tmp_path / "b.csv").write_text(
        "\n".join(["number,real or synthetic,confidence 1 to 5,comment", *(f"{row['number']},real,1," for row in key)])
    )
    assert main(["reader-study", "none", f"out={out}", f"answers=[{tmp_path}/a.csv,{tmp_path}/b.csv]"]) == 0
    perfect, guessing = capsys.readouterr().out.splitlines()
    # Clopper and Pearson, 10 of 10: the lower end is 0.025^(1/10)
    assert "10 of 10 right (69 to 100 %, better than guessing)" in perfect
    assert "5 of 10 right" in guessing
    assert "not told from guessing); 5 synthetic taken for real, 0 real" in guessing


def test_answers_that_are_none_are_refused():
    with pytest.raises(MedsynthError, match="maybe"):
        score({"001": "real"}, {"001": "maybe"}, "a.csv")
    with pytest.raises(MedsynthError, match="no number 007"):
        score({"001": "real"}, {"007": "real"}, "a.csv")


@pytest.mark.parametrize(("given", "said"), [("cases=7", "even number"), ("cases=400", "at most 16")])
def test_impossible_numbers_name_the_way_out(study, tmp_path, capsys, given, said):
    assert main(["reader-study", str(study[0]), f"out={tmp_path / 'x'}", given]) == 2
    assert said in capsys.readouterr().err


def test_a_pack_in_use_is_not_overwritten(study, capsys):
    assert main(["reader-study", str(study[0]), f"out={study[1]}", "cases=10"]) == 2
    assert "not empty" in capsys.readouterr().err
