"""The evaluation of anybody's folders: one protocol for all, the floor first, ranks that say their doubt."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from medsynth.cli import main
from medsynth.cohort import sha256_of
from medsynth.encoder import Learner
from medsynth.io.nifti import write
from medsynth.metrics.defects import Material
from medsynth.metrics.learned import Qualified
from medsynth.stages import spaces
from tests.make_cohort import blobs
from tests.make_evidence import images_of
from tests.test_pretrained import networks

SHAPE = (20, 20)
AFFINE = np.diag([2.0, 2.5, 1.0, 1.0])
METRICS = "metric=[mmd,spectrum,coverage]"


def nifti(folder: Path, images, pattern: str = "{:03d}.nii.gz") -> Path:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        write(folder / pattern.format(i), image * 400 + 900, AFFINE, True)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folders")
    nifti(root / "hospital", images_of(SHAPE, [f"somebody {i}" for i in range(120)]), "sub-{:03d}.nii.gz")
    good, other = (images_of(SHAPE, [f"{name} {i}" for i in range(n)]) for name, n in (("nobody", 60), ("no one", 55)))
    nifti(root / "sharp", good)
    nifti(root / "blurred", [gaussian_filter(image, 0.8) for image in good])
    # rows from above, columns from the left, as generators leave them
    np.savez(root / "arrays.npz", images=np.stack(other).transpose(0, 2, 1)[:, ::-1, ::-1])
    return root


def arguments(folders: Path, synthetic: str, out: Path, *more: str, real: str = "hospital") -> list[str]:
    fixed = ["data.dims=2", "data.workers=1", "evaluate.subsamples=30", "evaluate.permutations=19", "place=box"]
    return ["evaluate", f"real={folders / real}", f"synthetic={synthetic}", f"out={out}", *fixed, *more]


def board(out: Path) -> dict:
    return json.loads((out / "leaderboard.json").read_text())


def found(told: dict, metric: str) -> dict[str, dict]:
    (row,) = (row for row in told["metrics"] if row["name"] == metric)
    return {each["cohort"]: each for each in row["cohorts"]} | {"floor": row["floor"]}


def test_a_blurred_cohort_comes_last_whatever_file_the_others_come_in(folders, tmp_path, capsys) -> None:
    three = f"[{folders / 'blurred'},{folders / 'sharp'},{folders / 'arrays.npz'}]"
    assert main(arguments(folders, three, tmp_path / "out", METRICS)) == 0
    said = capsys.readouterr().out
    told = board(tmp_path / "out")
    assert told["order"][-1] == "blurred"
    assert told["subjects_compared"] == 55
    assert told["n"]["train"]["subjects"] == told["n"]["holdout"]["subjects"] == 60
    assert told["training"] in said
    assert "half of the real subjects" in said
    for metric in ("mmd", "spectrum"):
        rows = found(told, metric)
        assert rows["blurred"]["rank"] == [3, 3]
        assert {tuple(rows[name]["rank"]) for name in ("sharp", "arrays")} == {(1, 2)}
        assert rows["blurred"]["value"] > rows["floor"]["interval"][1]
        assert rows["sharp"]["interval"][0] < rows["floor"]["interval"][1]
    page = (tmp_path / "out/index.html").read_text()
    assert "do not pass on" in page.lower()
    assert "://" not in page
    assert page.count("data:image/png") == 3 + 4  # a forest plot a metric, a grid of each cohort and of the real images
    assert (tmp_path / "out").stat().st_mode & 0o77 == 0
    assert not list((tmp_path / "out").glob(".reading*"))


def test_who_is_named_first_does_not_matter_and_a_second_look_gives_the_same_bytes(folders, tmp_path, capsys) -> None:
    two = [str(folders / "sharp"), str(folders / "blurred")]
    assert main(arguments(folders, f"[{','.join(two)}]", tmp_path / "out", METRICS)) == 0
    first = (tmp_path / "out/leaderboard.json").read_bytes()
    assert main(arguments(folders, f"[{','.join(two[::-1])}]", tmp_path / "out", METRICS)) == 0
    assert (tmp_path / "out/leaderboard.json").read_bytes() == first


def test_one_protocol_the_numbers_are_those_of_the_metric_alone(folders, tmp_path, capsys) -> None:
    """Given training images, a cohort's row equals `score` on the same images, read by themselves."""
    from medsynth.config import build, compose
    from medsynth.data.transforms import scale_of, to_model
    from medsynth.metrics.intervals import score
    from medsynth.metrics.score import Sample
    from medsynth.rng import seed_for

    nifti(tmp_path / "train", images_of(SHAPE, [f"patient {i}" for i in range(60)]), "sub-t{:03d}.nii.gz")
    at = arguments(folders, str(folders / "sharp"), tmp_path / "out", "metric=[spectrum]", f"train={tmp_path / 'train'}")
    assert main(at) == 0
    row = found(board(tmp_path / "out"), "spectrum")["sharp"]

    def sample(who: str, n: int) -> Sample:
        images = [np.rint(image * 400 + 900) for image in images_of(SHAPE, [f"{who} {i}" for i in range(n)])]
        pixels = [to_model(image[..., None].astype(np.float32), scale_of(image))[..., 0].astype(np.float16) for image in images]
        return Sample(
            images=np.stack(pixels)[:, None].astype(np.float32), features={}, subjects=[str(i) for i in range(n)], spacing=(2.0, 2.5)
        )

    metric = build(compose(["metric=[spectrum]"]), ["metric"])["metric"]["spectrum"]
    samples = [sample("patient", 60), sample("somebody", 120), sample("nobody", 60)]
    seed = seed_for(seed_for(0, "evaluate"), "metric", "spectrum")
    expected = score("spectrum", metric, *samples, seed=seed, subsamples=30, permutations=0)
    assert row["value"] == pytest.approx(expected.value, rel=1e-3)
    widths = [high - low for low, high in (row["interval"], expected.interval)]
    assert 0.6 < widths[0] / widths[1] < 1.6  # other halves


def test_a_learned_space_counts_through_one_seed_that_qualified_for_all_cohorts(folders, tmp_path, capsys, monkeypatch) -> None:
    nifti(tmp_path / "collapsed", images_of(SHAPE, [f"nobody {i % 7}" for i in range(60)]))
    two = f"[{folders / 'sharp'},{tmp_path / 'collapsed'}]"
    taught = ("metric=[frechet_encoder,coverage_encoder,frechet_classifier]", "evaluate.encoder_steps=2", "evaluate.sanity=small")

    def passing(*good: str) -> None:
        def qualified(encoders: dict, material: Material) -> dict[str, Qualified]:
            assert material.clean.features.keys() >= {"encoder 0", "encoder 1", "encoder 2"}
            return {space: Qualified(passed=space in good, reason="weak", told={}) for space in encoders["encoder"]}

        monkeypatch.setattr(spaces, "qualified", qualified)
        assert main(arguments(folders, two, tmp_path / "out", *taught)) == 0

    passing()
    told = board(tmp_path / "out")
    assert "no seed passed on injected defects: encoder 0: weak" in found(told, "frechet_encoder")["sharp"]["reason"]
    assert found(told, "frechet_encoder")["sharp"]["rank"] is None
    assert found(told, "frechet_classifier")["sharp"]["reason"] == "the cases have no classes (data.conditions)"
    monkeypatch.setattr(Learner, "fit", lambda *_: pytest.fail("the encoders were there"))
    passing("encoder 2")
    told = board(tmp_path / "out")
    assert {row["space"] for row in told["metrics"] if row["features"] == "encoder"} == {"encoder 2"}
    rows = found(told, "frechet_encoder")
    assert (rows["sharp"]["rank"], rows["collapsed"]["rank"]) == ([1, 1], [2, 2])
    assert rows["collapsed"]["value"] > 2 * rows["floor"]["interval"][1]
    assert "frechet_encoder (encoder): lower is better" in capsys.readouterr().out


def test_volumes_and_their_masks_are_compared(tmp_path, capsys) -> None:
    """Folders of ``images/`` and ``labels/``: structures count, and organs that are cut away are seen."""
    for name, count in (("real", 40), ("made", 20), ("cut", 20)):
        for i in range(count):
            image, mask = blobs((10, 12, 8), 0, f"{name} {i}")
            mask = mask * (np.arange(10) < 3)[:, None, None] if name == "cut" else mask
            for part, array in (("images", image * 500), ("labels", mask.astype(np.float32))):
                (tmp_path / name / part).mkdir(parents=True, exist_ok=True)
                write(tmp_path / name / part / f"sub-{i:03d}.nii.gz", array, np.diag([2.0, 2.0, 2.0, 1.0]), True)
    two = f"[{tmp_path / 'made'},{tmp_path / 'cut'}]"
    fixed = ["data.workers=1", "evaluate.subsamples=20", "evaluate.permutations=0", "metric=[label_volumes,kid]"]
    assert main(["evaluate", f"real={tmp_path / 'real'}", f"synthetic={two}", f"out={tmp_path / 'out'}", *fixed]) == 0
    told = board(tmp_path / "out")
    rows = found(told, "label_volumes")
    assert told["preprocessing"]["size"] == [10, 12, 8]
    assert set(told["n"]) == {"train", "holdout", "made", "cut"}
    assert rows["cut"]["rank"] == [2, 2]
    assert rows["made"]["rank"] == [1, 1]
    assert found(told, "kid")["made"]["reason"].startswith("needs 50 subjects")
    assert "kid (random_convolution): not computed: needs 50 subjects" in capsys.readouterr().out
    page = (tmp_path / "out/index.html").read_text()
    assert page.count("needs 50 subjects") == 1  # one reason stands once, not in the cells of every cohort
    assert page.count("<b>label_volumes</b>") == 1


def test_networks_from_elsewhere_are_ranked_by_too_and_a_missing_one_says_so(folders, tmp_path, capsys, monkeypatch) -> None:
    nets = networks(tmp_path / "nets", monkeypatch)
    two = f"[{folders / 'sharp'},{folders / 'blurred'}]"
    at = arguments(folders, two, tmp_path / "out", "metric=[mmd_weights]")
    assert main([*at, f"evaluate.weights=[{','.join(nets)}]"]) == 0
    told = board(tmp_path / "out")
    rows = found(told, "mmd_net")
    assert None not in [rows[name][part] for name in ("sharp", "blurred") for part in ("value", "rank")]
    assert rows["sharp"]["value"] != rows["blurred"]["value"]
    assert {row["reason"] for name, row in found(told, "mmd_gone").items() if name != "floor"} == {"there is no such folder"}
    assert sha256_of(tmp_path / "nets/net/weights.safetensors") in told["features"]["net"]
    assert "mmd_gone (gone): not computed: there is no such folder" in capsys.readouterr().out
    assert main(at) == 0
    assert "scores on weights: not computed: not asked for: evaluate.weights=[]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("fit.steps=3", "fit.steps=3: a comparison of folders takes"),
        ("train={hospital}", "of train stand in real too"),
        ("evaluate.likelihood=5", "a likelihood needs the model"),
        ("synthetic=[]", "give synthetic=PATH"),
        ("out={hospital}", "holds something else than a leaderboard"),
        ("synthetic=[{hospital},/nowhere]", "there is no such file"),
    ],
)
def test_mistakes_are_named(folders, tmp_path, capsys, argument: str, message: str) -> None:
    given = argument.format(hospital=folders / "hospital")
    at = arguments(folders, str(folders / "sharp"), tmp_path / "out", METRICS)
    at = [each for each in at if not given.startswith(each.partition("=")[0] + "=")] + [given]
    assert main(at) == 2
    assert message in capsys.readouterr().err
