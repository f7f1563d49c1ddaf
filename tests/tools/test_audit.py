"""The audit of anybody's folders: planted copies fail, strangers pass, and nothing is taken for more than it is."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medsynth import config
from medsynth.audit.finding import Evidence, Finding
from medsynth.audit.identifiers import Identifiers
from medsynth.audit.level import LEVELS
from medsynth.audit.schema import faults_of
from medsynth.cli import main
from medsynth.errors import Refused
from medsynth.io.nifti import write
from medsynth.tools import audit
from tests.make_dicom import save, slices
from tests.make_evidence import images_of

SHAPE = (20, 20)
TRAIN, HOLDOUT = ([f"{name} {i}" for i in range(n)] for name, n in (("train", 30), ("holdout", 24)))
STRANGERS = [f"nobody {i}" for i in range(30)]


def nifti(folder: Path, names: list[str], pattern: str = "sub-{}{:03d}.nii.gz") -> Path:
    """One image each, in stored units; the file's name tells the subject unless ``pattern`` says otherwise."""
    folder.mkdir()
    for i, image in enumerate(images_of(SHAPE, names)):
        write(folder / pattern.format(folder.name[0], i), image * 400 + 900, np.diag([2.0, 2.5, 1.0, 1.0]), True)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    nifti(root / "train", TRAIN)
    nifti(root / "holdout", HOLDOUT)
    nifti(root / "clean", STRANGERS, "{}gen{:03d}.nii.gz")
    nifti(root / "leaky", [*TRAIN[:4], *STRANGERS[4:]], "{}gen{:03d}.nii.gz")
    return root


def demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """A level that few images can reach."""
    from dataclasses import replace

    monkeypatch.setitem(LEVELS, "demo", replace(LEVELS["demo"], plants=6, recall=0.2))


def arguments(folders: Path, synthetic: str, out: Path, *more: str) -> list[str]:
    paths = {"synthetic": folders / synthetic, "train": folders / "train", "holdout": folders / "holdout"}
    return ["audit", *(f"{name}={path}" for name, path in paths.items()), f"out={out}", "audit.level=demo", "data.workers=1", *more]


def test_copies_of_training_images_fail_and_strangers_pass(folders, tmp_path, monkeypatch, capsys) -> None:
    demo(monkeypatch)
    assert main(arguments(folders, "clean", tmp_path / "clean")) == 0
    assert "PASSED at level demo" in capsys.readouterr().out
    assert main(arguments(folders, "leaky", tmp_path / "leaky")) == 3
    said = capsys.readouterr().out
    assert "4 of 30 synthetic cases are near-exact copies" in said
    assert "30 images of 30 subjects" in said

    result = json.loads((tmp_path / "leaky/findings.json").read_text())
    assert faults_of(result) == []
    assert result["unit"] == "subject"
    assert result["preprocessing"]["size"] == [20, 20]
    assert result["preprocessing"]["spacing"] == [2.0, 2.5, 1.0]
    with (tmp_path / "leaky/cases.tsv").open() as file:
        names = {row["case"]: row["file"] for row in csv.DictReader(file, delimiter="\t")}
    (found,) = (finding for finding in result["findings"] if finding["check"] == "memorization")
    copies = {names[pair["synthetic"]]: names[pair["train"]] for pair in found["details"]["pairs"] if pair["hard_copy"]}
    assert copies == {f"lgen{i:03d}.nii.gz": f"sub-t{i:03d}.nii.gz" for i in range(4)}

    page = (tmp_path / "leaky/index.html").read_text()
    assert "Do not pass on" in page
    assert page.count("near-exact copy</b>") == 4
    assert "not tested" in page  # nobody attacked the model, and the page says so
    assert "anonymous" not in page
    assert (tmp_path / "leaky").stat().st_mode & 0o77 == 0
    assert not list((tmp_path / "leaky").glob(".reading*"))
    assert len((tmp_path / "audit-ledger.jsonl").read_text().splitlines()) == 4


def test_the_same_images_in_any_format_give_the_same_verdict(folders, tmp_path, monkeypatch) -> None:
    """Copies are found whatever file and grid they come in: pictures of whole images, resized, without millimetres."""
    from scipy.ndimage import zoom

    demo(monkeypatch)
    images = images_of(SHAPE, [*TRAIN[:4], *STRANGERS[4:]])
    pictures = np.stack([zoom(image, 1.5, order=1) for image in images]).transpose(0, 2, 1)[:, ::-1, ::-1]  # rows from above, from the left
    np.savez(tmp_path / "pictures.npz", train_images=pictures, train_labels=np.zeros((30, 1)))
    at = arguments(folders, "clean", tmp_path / "out", "data.dims=2")
    at[1] = f"synthetic={tmp_path / 'pictures.npz'}"
    assert main([*at, "place=box"]) == 3
    (found,) = (f for f in json.loads((tmp_path / "out/findings.json").read_text())["findings"] if f["check"] == "memorization")
    assert found["verdict"] == "fail"
    assert {pair["synthetic"] for pair in found["details"]["pairs"][:4]} == {f"synthetic-{i:06d}" for i in range(4)}


def test_pieces_of_another_size_are_not_compared(folders, tmp_path, capsys) -> None:
    folder = tmp_path / "small"
    folder.mkdir()
    write(folder / "a.nii.gz", images_of((20, 20), ["nobody"])[0], np.diag([1.0, 1.0, 1.0, 1.0]), False)
    at = arguments(folders, "clean", tmp_path / "out")
    at[1] = f"synthetic={folder}"
    assert main(at) == 2
    assert "show 20 x 20 mm, those of 'train' 40 x 50 mm" in capsys.readouterr().err


@pytest.mark.parametrize("by", ["name", "bytes"])
def test_a_holdout_that_was_trained_on_is_refused(folders, tmp_path, capsys, by: str) -> None:
    holdout = nifti(tmp_path / "holdout", [*HOLDOUT[:20], *TRAIN[:3]])
    if by == "name":
        for number, path in enumerate(sorted(holdout.iterdir())[:2]):
            path.rename(holdout / f"sub-t{number:03d}.nii.gz")
    at = arguments(folders, "clean", tmp_path / "out")
    at[3] = f"holdout={holdout}"
    assert main(at) == 2
    assert f"{'2 subjects' if by == 'name' else '3 images'} of train stand in holdout too" in capsys.readouterr().err


def subjects_in_a_table(root: Path) -> str:
    files = [path.name for name in ("train", "holdout") for path in sorted((root / name).iterdir())]
    (root / "who.csv").write_text("image,person\n" + "".join(f"{file},P{i // 2}\n" for i, file in enumerate(files)))
    return f"subjects={root / 'who.csv'}"


def subjects_by_folder(root: Path) -> str:
    for name in ("train", "holdout"):
        for i, path in enumerate(sorted((root / name).iterdir())):
            (root / name / f"{name}{i // 2}").mkdir(exist_ok=True)
            path.rename(root / name / f"{name}{i // 2}" / path.name)
    return "subjects=folders"


@pytest.mark.parametrize(
    ("who", "unit", "people"), [(lambda root: "", "image", 8), (subjects_in_a_table, "subject", 4), (subjects_by_folder, "subject", 4)]
)
def test_whose_images_they_are_is_told_by_names_tables_or_folders_or_by_nobody(
    tmp_path, who: Callable[[Path], str], unit: str, people: int
) -> None:
    """Where nobody tells, every claim is about images and says so."""
    for name, names in (("train", TRAIN[:8]), ("holdout", HOLDOUT[:8]), ("made", STRANGERS[:3])):
        nifti(tmp_path / name, names, "{}scan{:03d}.nii.gz")
    more = [word for word in (who(tmp_path),) if word]
    seen: list[Evidence] = []

    def check(evidence: Evidence) -> Finding:
        seen.append(evidence)
        return Finding(check="memorization", verdict="pass", value=0.0, interval=None, control=None, limit=None, why="It was so.")

    settings = audit.parse(
        audit.Settings,
        [argument for argument in arguments(tmp_path, "made", tmp_path / "out", *more)[1:] if not argument.startswith(audit.TAKEN)],
    )
    audit.run(settings, config.values(config.compose(["audit.level=demo", "data.workers=1"])), {"memorization": check})
    assert len(set(seen[0].train.subjects)) == people
    assert json.loads((tmp_path / "out/findings.json").read_text())["unit"] == unit
    assert ("not people" in (tmp_path / "out/index.html").read_text()) == (unit == "image")


def test_what_cannot_be_done_without_more_than_images_decides_nothing_and_the_search_for_copies_always_does() -> None:
    undone = {"verdict": "inconclusive", "value": None, "interval": None, "control": None, "limit": None, "why": "There is no model."}
    assert not audit._judged(Finding(check="membership_model", **undone), headers=True).required
    assert audit._judged(Finding(check="memorization", **undone), headers=True).required
    found = {**undone, "verdict": "fail", "value": 3}
    assert audit._judged(Finding(check="membership_cohort", **found), headers=False).required
    assert audit._judged(Finding(check="identifiers", **found), headers=True).required
    assert not audit._judged(Finding(check="identifiers", **found), headers=False).required


def test_nothing_else_is_overwritten_and_settings_that_mean_nothing_here_are_refused(folders, tmp_path, capsys) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").touch()
    assert main(arguments(folders, "clean", tmp_path / "thesis")) == 2
    assert "holds something else" in capsys.readouterr().err
    assert main(arguments(folders, "clean", tmp_path / "out", "fit.steps=3")) == 2
    assert "fit.steps=3: an audit of folders takes" in capsys.readouterr().err
    assert main(arguments(folders, "nowhere", tmp_path / "out")) == 2
    assert "there is no such file" in capsys.readouterr().err


def test_a_cohort_of_ours_gives_the_split_that_is_asked_for(tmp_path) -> None:
    from tests.make_cohort import make_cohort

    make_cohort(tmp_path / "prepare", n_train=8, n_validation=3, n_holdout=6)
    nifti(tmp_path / "made", STRANGERS[:3])
    seen: list[Evidence] = []

    def check(evidence: Evidence) -> Finding:
        seen.append(evidence)
        return Finding(check="memorization", verdict="pass", value=0.0, interval=None, control=None, limit=None, why="It was so.")

    manifest = f"{tmp_path / 'prepare/cohort.jsonl'}"
    settings = audit.Settings(synthetic=str(tmp_path / "made"), train=manifest, holdout=manifest, out=str(tmp_path / "out"), place="box")
    audit.run(settings, config.values(config.compose(["audit.level=demo", "data.workers=1"])), {"memorization": check})
    assert [len(cohort) for cohort in (seen[0].train, seen[0].holdout)] == [8, 6]


def test_a_header_that_was_copied_from_a_real_patient_fails(tmp_path) -> None:
    """Patients are told by their id, and what names one in a real header is looked for in the synthetic files."""
    for name, count in (("train", 3), ("holdout", 2), ("made", 2)):
        for i in range(count):
            who = {"PatientID": f"{name.upper()}-00{i}71", "PatientName": f"{name}^merle"}
            leak = {"PatientID": "TRAIN-00171"} if (name, i) == ("made", 1) else {}
            gap = 2.0 + 0.03 * i + 0.01 * len(name)  # no two images alike
            save(slices(4, series=f"1.2.{len(name)}.{i}", gap=gap, **{**who, **leak}), tmp_path / name / str(i))
    seen: list[Evidence] = []

    def check(evidence: Evidence) -> Finding:
        seen.append(evidence)
        return Finding(check="memorization", verdict="pass", value=0.0, interval=None, control=None, limit=None, why="It was so.")

    settings = audit.Settings(**{name: str(tmp_path / name) for name in ("train", "holdout")}, synthetic=str(tmp_path / "made"))
    settings.out = str(tmp_path / "out")
    values = config.values(config.compose(["audit.level=demo", "data.workers=1"]))
    with pytest.raises(Refused):
        audit.run(settings, values, {"memorization": check, "identifiers": Identifiers()})
    assert len(set(seen[0].train.subjects)) == 3
    result = json.loads((tmp_path / "out/findings.json").read_text())
    (found,) = (finding for finding in result["findings"] if finding["check"] == "identifiers")
    assert (result["unit"], found["verdict"], found["required"]) == ("subject", "fail", True)
    assert "TRAIN-00171" not in (tmp_path / "out/findings.json").read_text()
