"""The audit of memorization: planted faults are found, clean cohorts pass, and what is not known is said."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from medsynth.audit.finding import Finding, Model
from medsynth.audit.level import LEVELS
from medsynth.audit.memorization import Excess, Memorization
from medsynth.audit.plants import kinds
from medsynth.errors import MedsynthError
from medsynth.rng import generator_for
from tests.make_evidence import cohort_of, images_of, make_evidence, shuffled

FLAT, SOLID = (20, 20), (14, 16, 14)
QUICK = replace(LEVELS["demo"], plants=4, recall=0.3)  # where the recall is not what a test is about


def bytes_of(finding: Finding) -> str:
    return json.dumps(finding.as_json(), sort_keys=True, allow_nan=False)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Finding:
    return Memorization()(make_evidence(tmp_path_factory.mktemp("clean")))


def test_a_clean_cohort_passes_at_the_demo_level_and_the_reason_is_its_part_of_the_claim(clean: Finding) -> None:
    assert clean.verdict == "pass"
    assert clean.why == LEVELS["demo"].on_copies
    assert clean.why in LEVELS["demo"].claim
    assert clean.details["hard_copies"]["count"] == 0
    assert clean.interval[0] <= clean.value <= clean.interval[1] <= clean.limit


def test_planted_copies_of_every_kind_are_found_and_unseen_subjects_are_not(clean: Finding) -> None:
    recall = clean.details["recall"]
    assert set(recall) == set(kinds(FLAT))
    worst = min((row["found"], row["source_named"], kind) for kind, row in recall.items() if kind != "part")
    assert worst >= (18, 18, ""), worst
    assert clean.details["false_alarm"]["flagged"] <= 5  # of 14, at a rate of 20 %
    assert clean.control == clean.details["false_alarm"]["flagged"] / 14


def test_with_the_model_at_hand_its_own_near_duplicates_are_planted_too(tmp_path: Path) -> None:
    model = Model(denoise=lambda x, sigma, condition: x / np.float32(1 + sigma[0] ** 2), levels=(0.1,))
    recall = Memorization()(replace(make_evidence(tmp_path, level=QUICK), model=model)).details["recall"]
    assert set(recall) == {*kinds(FLAT), "redrawn"}
    assert (recall["redrawn"]["found"], recall["redrawn"]["source_named"], recall["redrawn"]["planted"]) == (4, 4, 4)
    assert recall["redrawn"]["unforeseen"]


@pytest.mark.parametrize("level", LEVELS)
def test_one_exact_copy_of_one_training_case_among_two_hundred_fails_at_every_level(tmp_path: Path, level: str) -> None:
    copy = images_of(FLAT, ["train 17"])
    thrifty = replace(LEVELS[level], plants=4)  # the strict level's 1,440 plants would only take time
    finding = Memorization()(make_evidence(tmp_path, n_synthetic=200, planted=copy, level=thrifty))
    assert finding.verdict == "fail"
    assert finding.details["hard_copies"]["count"] == 1
    worst = finding.details["pairs"][0]
    assert (worst["synthetic"], worst["train"], worst["hard_copy"]) == ("synthetic-000000", "train-000017", True)
    assert worst["train_score"] > worst["holdout_score"]
    assert "synthetic-000000" in finding.details["copies"]


@pytest.mark.parametrize("kind", ["flip_x", "blur", "shift"])
def test_a_disguised_copy_is_a_hard_copy_too(tmp_path: Path, kind: str) -> None:
    copy = kinds(FLAT)[kind](images_of(FLAT, ["train 5"])[0], images_of(FLAT, ["nobody 5"])[0], generator_for(1, kind)).astype(np.float32)
    finding = Memorization()(make_evidence(tmp_path, planted=copy[None], level=QUICK))
    assert finding.verdict == "fail"
    assert finding.details["pairs"][0]["train"] == "train-000005"


def test_a_cohort_of_noisy_training_cases_fails_by_the_rate_alone(tmp_path: Path) -> None:
    """No single case need be a hard copy: the excess over what held-out subjects attract gives it away."""
    members, nobody = images_of(FLAT, [f"train {i}" for i in range(40)]), images_of(FLAT, [f"nobody {i}" for i in range(40)])
    mixed = (0.32 * members + 0.68 * nobody).astype(np.float32)
    finding = Memorization()(make_evidence(tmp_path, n_holdout=80, planted=mixed, level=QUICK))
    assert finding.details["hard_copies"]["count"] == 0
    assert finding.verdict == "fail"
    assert finding.details["excess_at_conformal_threshold"]["interval"][0] > 0
    assert finding.details["attraction"]["p"] < 0.05
    assert "an excess of at least" in finding.why


def test_what_chance_gives_training_subjects_is_subtracted() -> None:
    """Three training subjects for each held-out one: two matches there stand for six here."""
    excess = Excess(at_train=9, at_holdout=2, n=100, weight=3.0, subjects_hit=8, p=0.5)
    assert excess.rate == pytest.approx(0.03)
    assert excess.interval[0] < 0 < excess.rate < excess.interval[1]


def test_copies_of_held_out_subjects_are_no_leak(tmp_path: Path) -> None:
    """The model never saw them: the same copies that would fail against the training set do not count against it."""
    finding = Memorization()(make_evidence(tmp_path, planted=images_of(FLAT, [f"holdout {i}" for i in range(5)]), level=QUICK))
    assert finding.verdict != "fail"
    assert finding.value == 0


def test_a_mirrored_volume_is_found_like_an_image(tmp_path: Path) -> None:
    copy = np.flip(images_of(SOLID, ["train 3"]), 3)
    evidence = make_evidence(tmp_path, shape=SOLID, n_train=20, n_holdout=20, n_synthetic=20, planted=copy, level=QUICK)
    finding = Memorization()(evidence)
    assert (finding.verdict, finding.details["hard_copies"]["count"]) == ("fail", 1)
    assert finding.details["pairs"][0]["train"] == "train-000003"


@pytest.mark.slow
def test_a_clean_cohort_of_volumes_passes(tmp_path: Path) -> None:
    assert Memorization()(make_evidence(tmp_path, shape=SOLID)).verdict == "pass"


@pytest.mark.parametrize("n_holdout", [0, 3])
def test_without_held_out_subjects_nothing_is_known_and_the_needed_number_is_said(tmp_path: Path, n_holdout: int) -> None:
    finding = Memorization()(make_evidence(tmp_path, n_holdout=n_holdout, level="standard"))
    assert finding.verdict == "inconclusive"
    assert f"there are {n_holdout}" in finding.why
    assert "60 held-out subjects" in finding.why
    assert "200 synthetic cases" in finding.why


def test_too_little_data_for_a_level_is_doubt_with_the_missing_numbers(tmp_path: Path) -> None:
    finding = Memorization()(make_evidence(tmp_path, level=replace(LEVELS["standard"], plants=4), n_holdout=20))
    assert finding.verdict == "inconclusive"
    assert "the holdout has 20 subjects, 60 are needed" in finding.why
    assert "there are 60 synthetic cases, 200 are needed" in finding.why
    assert "12.5%" in finding.why  # alpha that 7 calibration subjects hold


def test_a_blind_detector_gives_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault in the audit itself: without the residual view mirrored copies are missed, and the audit notices."""
    monkeypatch.setattr("medsynth.audit.nearest.Anatomy._ways", lambda self: [((), False)])
    finding = Memorization()(make_evidence(tmp_path))
    assert finding.verdict == "inconclusive"
    assert "planted copies are not found" in finding.why


def test_a_cohort_smoother_than_the_plants_gives_no_verdict_where_the_level_asks(tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path, level=replace(QUICK, sharpness=(0.8, 1.25)))
    smooth = np.stack([kinds(FLAT)["blur"](image[0], image[0], generator_for(0)) for image in evidence.synthetic.images()])
    finding = Memorization()(replace(evidence, synthetic=cohort_of(tmp_path / "smooth", "synthetic", smooth)))
    assert finding.details["sharpness"] < 0.8
    assert finding.verdict == "inconclusive"
    assert "fine detail" in finding.why


def test_the_same_seed_gives_the_same_bytes_in_any_order_of_cases(tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path, level=QUICK, n_synthetic=30)
    other = replace(evidence, **{name: shuffled(getattr(evidence, name), 3) for name in ("train", "holdout", "synthetic")})
    first = bytes_of(Memorization()(evidence))
    assert bytes_of(Memorization()(other)) == first
    assert bytes_of(Memorization()(replace(evidence, seed=1))) != first


def test_many_slices_of_a_subject_count_as_one(tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path, level=QUICK)
    subjects = [f"holdout-{i // 5}" for i in range(40)]
    holdout = cohort_of(tmp_path / "slices", "holdout", images_of(FLAT, [f"holdout {i}" for i in range(40)]), subjects)
    finding = Memorization()(replace(evidence, holdout=holdout))
    assert finding.details["counts"]["holdout_subjects"] == 8
    assert finding.details["false_alarm"]["n"] == 2
    assert "8 subjects, 24 are needed" in finding.why


def test_duplicates_in_training_are_counted_and_hide_no_copy(tmp_path: Path) -> None:
    names = [f"train {i}" for i in range(59)] + ["train 0"]
    evidence = make_evidence(tmp_path, planted=images_of(FLAT, ["train 9"]), level=QUICK)
    train = cohort_of(tmp_path / "twice", "train", images_of(FLAT, names))
    finding = Memorization()(replace(evidence, train=train))
    assert finding.details["duplicates_in_training"] == 2
    assert finding.verdict == "fail"


def test_a_holdout_that_overlaps_with_training_gives_no_pass(tmp_path: Path) -> None:
    evidence = make_evidence(tmp_path, level=QUICK)
    leaked = images_of(FLAT, [f"train {i}" for i in range(12)] + [f"holdout {i}" for i in range(28)])
    finding = Memorization()(replace(evidence, holdout=cohort_of(tmp_path / "leaked", "holdout", leaked)))
    assert finding.verdict != "pass"


@pytest.mark.slow
def test_large_images_are_averaged_down_and_copies_are_still_found(tmp_path: Path) -> None:
    shape, copy = (60, 60), images_of((60, 60), ["train 2"])
    evidence = make_evidence(tmp_path, shape=shape, n_train=30, n_holdout=20, n_synthetic=30, planted=copy, level=QUICK)
    assert Memorization(voxels=900)(evidence).details["pairs"][0]["hard_copy"]


def test_images_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    broken = images_of(FLAT, ["nobody 0"])
    broken[0, 3, 3] = np.nan
    with pytest.raises(MedsynthError, match="not finite"):
        Memorization()(make_evidence(tmp_path, planted=broken))


@pytest.mark.real
def test_held_out_hippocampi_are_left_alone_and_planted_copies_found(tmp_path: Path, shared_data: Path) -> None:
    """200 real volumes: 120 train, 40 held out, 40 that no model made stand for a clean synthetic cohort."""
    import nibabel as nib
    from scipy.ndimage import zoom

    volumes = []
    for path in sorted((shared_data / "hippocampus_mr" / "images").glob("*.nii*")):
        array = np.asarray(nib.load(path).dataobj, dtype=np.float32)
        low, high = np.percentile(array, (0.5, 99.5))
        scaled = np.clip((array - low) / (high - low) * 2 - 1, -1, 1)
        volumes.append(
            zoom(scaled, [n / m for n, m in zip((16, 24, 16), array.shape, strict=True)], order=1, grid_mode=True, mode="nearest")
        )
    volumes = np.stack(volumes)[generator_for(0, "order").permutation(len(volumes))]
    evidence = make_evidence(tmp_path, n_train=2, n_synthetic=1)
    parts = {"train": volumes[:120], "holdout": volumes[120:160], "synthetic": volumes[160:]}
    finding = Memorization()(replace(evidence, **{name: cohort_of(tmp_path / "real", name, part) for name, part in parts.items()}))
    assert finding.verdict == "pass"
    assert finding.details["false_alarm"]["flagged"] <= 3
    assert all(row["found"] >= 11 for row in finding.details["recall"].values())
