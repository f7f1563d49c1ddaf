"""What the command line promises about a whole run: done once, done again for nothing, and never silently from something else."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import medsynth
from benchmarks.quality import tables_of
from medsynth import cli
from medsynth.cohort import Cohort
from medsynth.errors import SettingsError, StageConflict
from medsynth.stages import VERBS
from tests.pipelines.conftest import OVERRIDE, ROOT, Chain

AGAIN = 15  # seconds that a run may take that has nothing to do


def written(folder: Path) -> dict[str, tuple[int, int]]:
    """When each file was written, and its size; but for the lock, which is taken anew."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_size) for path in files}


def children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def test_a_run_ends_with_the_paths_of_the_report_and_of_the_release(chain: Chain):
    *_, report, release = chain.first.stdout.strip().splitlines()
    assert Path(report.removeprefix("report:").strip()) == chain.root / "report" / "index.html"
    assert Path(release.removeprefix("release:").strip()) == chain.root / "release"
    assert (chain.root / "report" / "index.html").is_file()
    assert (chain.root / "release" / "SHA256SUMS").is_file()
    assert "Traceback" not in chain.first.stderr


def test_the_names_that_other_work_relies_on_are_there(chain: Chain):
    for name in ("prepare/cohort.jsonl", "prepare/rejected.jsonl", "sample/cohort.jsonl", "audit/findings.json", "evaluate/metrics.json"):
        assert (chain.root / name).is_file(), name
    header, *cases = (chain.root / "prepare" / "cohort.jsonl").read_text().splitlines()
    assert "id" not in json.loads(header)
    assert all({"id", "subject", "split"} <= json.loads(line).keys() for line in cases)
    assert len(list((chain.root / "sample" / "volumes").iterdir())) == len(Cohort.read(chain.root / "sample" / "cohort.jsonl")) == 60
    assert chain.root.stat().st_mode & 0o777 == 0o700


def test_run_again_it_does_nothing_and_is_quick(chain: Chain):
    before, started = written(chain.runs), children_seconds()
    again = chain.medsynth("run", OVERRIDE)
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("already done") == len(VERBS)
    assert written(chain.runs) == before
    # processor time: other work on the machine must not decide
    assert children_seconds() - started < AGAIN


def test_with_another_number_of_cases_it_refuses_and_says_what_changed(chain: Chain, capsys):
    before = written(chain.runs)
    assert cli.main(["run", *chain.settings(OVERRIDE, "sampling.cases=61")]) == 2
    told = capsys.readouterr().err
    assert "sampling.cases: 60 there, 61 now" in told
    assert f"delete the folder {chain.root / 'sample'} to redo it" in told
    assert written(chain.runs) == before


def test_every_verb_is_a_function_of_the_same_overrides(chain: Chain):
    from medsynth import audit, prepare, sample, train

    before = written(chain.runs)
    for verb, function in {"prepare": prepare, "train": train, "sample": sample, "audit": audit, "release": medsynth.release}.items():
        assert function(*chain.settings(OVERRIDE)) == chain.root / verb
    assert written(chain.runs) == before
    assert all(callable(getattr(medsynth, verb)) for verb in (*VERBS, "run"))


def test_the_verb_that_is_also_a_package_is_there_from_the_start():
    told = subprocess.run(
        [sys.executable, "-c", "import medsynth; print(callable(medsynth.audit))"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert told.stdout.strip() == "True", told.stderr


def test_a_function_raises_what_the_command_line_prints(chain: Chain):
    with pytest.raises(StageConflict, match=r"sampling\.cases: 60 there, 61 now"):
        medsynth.sample(*chain.settings("sampling.cases=61"))
    with pytest.raises(SettingsError, match=r"sampling\.cases"):
        medsynth.sample("sampling.caes=61")


def test_the_quality_benchmark_reads_a_finished_run(chain: Chain):
    kid, anatomy = tables_of(chain.root)
    assert [row["cohort"] for row in kid.rows] == ["synthetic", "blurred", "gaussian"]
    assert [row["cohort"] for row in anatomy.rows] == ["training", "held out", "synthetic"]
