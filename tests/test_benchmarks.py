"""Every benchmark, tiny: it runs, and what it compares is the same work. How long anything takes is nobody's failure."""

import math
from functools import partial

import numpy as np
import pytest
import torch

import benchmarks
from benchmarks import dp, false_release, gpu, membership, rejection
from benchmarks.__main__ import LATEST, README
from benchmarks.sampling_quality import dpmpp, error
from benchmarks.table import RESULTS, Table, write
from benchmarks.timing import Variant, against, alternated
from medsynth.diffusion.process import EDM


@pytest.mark.parametrize("name", benchmarks.BENCHMARKS)
def test_a_benchmark_runs_and_fills_its_table(name):
    for table in benchmarks.measure(name, tiny=True):
        assert table.rows
        assert all(list(row) == list(table.rows[0]) for row in table.rows)
        numbers = [value for row in table.rows for value in row.values() if not isinstance(value, str)]
        assert all(math.isfinite(number) and number >= 0 for number in numbers)
        assert table.markdown().count("\n|") == len(table.rows) + 2


def test_ratios_are_taken_within_rounds():
    """A slow round falls on both sides and leaves their ratio alone."""
    found = {"peer": [(2.0, 9.0), (20.0, 9.0), (2.0, 9.0)], "mine": [(1.0, 3.0), (10.0, 3.0), (0.5, 3.0)]}
    rows = {row["variant"]: row for row in against(found, "peer")}
    assert [rows["mine"][name] for name in ("CPU s", "times the peer", "lowest", "highest")] == [1.0, 2.0, 2.0, 4.0]
    assert rows["peer"]["times the peer"] == 1.0


def test_variants_take_turns_forwards_and_backwards_after_one_uncounted_call():
    calls: list[str] = []
    variants = [Variant(name=name, make=lambda name=name: partial(calls.append, name)) for name in "abc"]
    found = alternated(variants, 3)
    assert "".join(calls) == "abc" + "abc" + "cba" + "abc"
    assert {len(seconds) for seconds in found.values()} == {3}


def test_the_error_of_an_exact_sampler_vanishes():
    """From ever higher to ever lower levels, in ever more evaluations: the figure measures the sampler and nothing else."""
    assert error(dpmpp(400, EDM(sigma_min=1e-4, sigma_max=1e4))) < 1e-3


def test_a_result_is_named_by_day_and_hardware_and_says_what_its_table_says(tmp_path):
    table = Table(title="A title", note="A note.", rows=[{"variant": "x", "CPU s": 1234.5}, {"variant": "y", "CPU s": 0.00123}])
    path = write([table], hardware="Some CPU (R) 9", conditions={"Compute threads": "1"}, folder=tmp_path)
    assert path.name.endswith("-some-cpu-r-9.md")
    assert path.with_suffix(".json").is_file()
    assert "| x | 1234 |\n| y | 0.0012 |" in path.read_text()


def test_the_readme_holds_the_newest_result():
    newest = max(RESULTS.glob("*.md"))
    assert README.read_text().partition(LATEST)[2].strip() == newest.read_text().strip()


def test_without_a_gpu_its_benchmark_says_so_and_ends_well(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 0
    assert "needs CUDA" in capsys.readouterr().out


def test_the_benchmark_of_false_releases_runs_tiny():
    (table,) = false_release.measure(tiny=True)
    assert [row["copies planted"] for row in table.rows] == ["0%", "1%", "2%", "3%", "4%", "5%"]
    assert all(row["pass"] + row["inconclusive"] + row["fail"] == row["cohorts"] for row in table.rows)


def test_the_benchmark_of_membership_runs_tiny():
    (table,) = membership.measure(tiny=True)
    assert [row["training"] for row in table.rows] == ["10 people, overfit on purpose", "12 people, augmented"]
    assert all(
        0.5 <= row[f"{held}: low"] <= row[f"{held}: told"] <= row[f"{held}: high"] for row in table.rows for held in ("model", "cohort")
    )


def test_the_judge_of_copies_forgives_flips_turns_and_shifts_alone():
    people = np.random.default_rng(0).standard_normal((4, 12, 12)).astype(np.float32)
    moved = np.stack([np.roll(people[0], (2, -1), (0, 1)), np.rot90(people[1]), 2 * people[2, ::-1] + 1])
    assert rejection.likeness(moved, people) == pytest.approx(1, abs=1e-5)
    assert rejection.likeness(moved, people[3:]).max() < 0.7


@pytest.mark.slow
def test_the_benchmark_of_rejection_runs_tiny():
    (table,) = rejection.measure(tiny=True)
    assert [row["trained on"] for row in table.rows] == ["10 people", "20 people, augmented"]


@pytest.mark.slow
def test_the_benchmark_of_differential_privacy_runs_tiny():
    (table,) = dp.measure(tiny=True)
    assert [row["training"] for row in table.rows] == ["no promise", "epsilon 8"]
    assert table.rows[1]["noise"] > 0


@pytest.mark.slow
def test_a_model_overfit_on_purpose_is_told_from_one_that_is_not(capsys):
    """A sixth of the benchmark's steps and fewer people: the intervals lie apart already."""
    (table,) = membership.tables(overfit=16, sizes=(400,), others=200, drawn=60, steps=800)
    overfit, fitted = table.rows
    assert overfit["model: low"] > 0.9
    assert overfit["model: verdict"] == "fail"
    assert fitted["model: high"] < overfit["model: low"]
    assert fitted["model: low"] == 0.5
    assert overfit["cohort: low"] > fitted["cohort: high"]


@pytest.mark.parametrize(("experiment", "size"), [("hippocampus, 1 mm", "[12,12,12]"), ("chest_xray", "[12,12]")])
def test_the_gpu_benchmark_runs_tiny_on_a_cpu(experiment, size, monkeypatch):
    monkeypatch.setattr(gpu, "PEER_STEPS", 2)
    overrides = [f"data.size={size}", "fit.global_batch=2", "sampling.batch=2", "sampling.steps=2"]
    training, sampling = gpu.measure(experiment, torch.device("cpu"), overrides, rounds=1, window=0.0)
    assert len(training.rows) == 4
    assert len(sampling.rows) == 2
