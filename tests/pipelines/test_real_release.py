"""From a flat folder of real DICOM to a release that validators pass and an archive takes: three patients prove nothing, so by override."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from medsynth.export.seal import verify
from tests.export.test_export_dicom import complaints
from tests.pacs.conftest import start_orthanc  # noqa: F401
from tests.pacs.test_orthanc import differences
from tests.pipelines.conftest import medsynth

pytestmark = [pytest.mark.slow, pytest.mark.real]
REASON = "twenty steps on three patients prove nothing; a test of the way out"
SMALL = (
    *("fit.steps=20", "fit.warmup=5", "fit.validate_every=20", "fit.checkpoint_every=20", "fit.preview_every=20"),
    *("sampling.cases=10", "sampling.steps=4", "evaluate.subsamples=10", "evaluate.permutations=19"),
    *("release.body_part=BRAIN", "release.formats=[nifti,dicom,bids]"),
)


@pytest.fixture(scope="module")
def settings(shared_data, tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("real")
    places = [f"source.root={shared_data}/brain_mr_dicom", f"paths.runs={folder}/runs", f"paths.key={folder}/key", "run.name=brain"]
    return ["experiment=brain_mr_2d", *SMALL, *places]


@pytest.fixture(scope="module")
def released(settings) -> Path:
    runs = next(setting for setting in settings if setting.startswith("paths.runs=")).removeprefix("paths.runs=")
    refused = medsynth("run", *settings)
    assert refused.returncode == 3, refused.stderr[-4000:]
    assert "inconclusive-check: memorization" in refused.stderr
    assert not (Path(runs) / "brain" / "release").exists()
    done = medsynth("release", *settings, f"release.override='{REASON}'")
    assert done.returncode == 0, done.stderr[-4000:]
    return Path(runs) / "brain" / "release"


def test_it_says_at_the_top_that_it_left_in_spite_of_its_evidence(released) -> None:
    assert verify(released) == []
    for name in ("datasheet.md", "bids/README.md"):
        head = "\n".join((released / name).read_text().splitlines()[:5])
        assert "IN SPITE OF ITS EVIDENCE" in head
        assert REASON in head
    assert json.loads((released / "audit.json").read_text())["released_in_spite_of"]["reason"] == REASON


@pytest.mark.parametrize("form", ["single_frame", "enhanced"])
def test_validators_find_nothing_wrong_and_an_archive_takes_it_and_gives_it_back(
    released,
    settings,
    start_orthanc,  # noqa: F811
    tmp_path,
    form,
) -> None:
    if form == "enhanced":
        released.rename(released.with_name("single"))
        done = medsynth("release", *settings, f"release.override='{REASON}'", "release.dicom=enhanced")
        assert done.returncode == 0, done.stderr[-4000:]
    files = list((released / "dicom").rglob("*.dcm"))
    assert len(files) == 10
    assert complaints(files) == []
    orthanc = start_orthanc()
    for to in (orthanc.dimse, orthanc.web):
        done = medsynth("push", str(released), f"to={to}")
        assert done.returncode == 0, done.stderr
        assert medsynth("pull", str(tmp_path / to[:5]), f"source={to}", "query={PatientID: synthetic*}").returncode == 0
        assert differences(files, list((tmp_path / to[:5]).rglob("*.dcm"))) == []
        orthanc.empty()


def test_bids_validator_has_nothing_to_say(released) -> None:
    validator = Path(sys.executable).parent / "bids-validator-deno"
    if not validator.exists():
        pytest.skip("bids-validator-deno is not installed (extra 'peers')")
    run = subprocess.run([validator, str(released / "bids"), "--json"], capture_output=True, text=True)
    assert json.loads(run.stdout)["issues"]["issues"] == []
