"""What the page's viewer carries: the volumes that it says, NiiVue as published, and no way out."""

import base64
import gzip
import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from medsynth.cohort import Cohort
from medsynth.io.identifiers import write_identifiers
from medsynth.io.search import find
from medsynth.stages import viewer
from tests.make_cohort import make_cohort
from tests.stages.test_report import Page, make_report, make_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def volume(packed: str) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(packed)))


@pytest.fixture(scope="module")
def solid(tmp_path_factory) -> Path:
    root = make_run(tmp_path_factory.mktemp("runs") / "solid", shape=(14, 12, 10))
    return make_report(root)


def grey(cohort: Cohort) -> set[bytes]:
    """Every volume in the window of the pictures."""
    return {
        np.ascontiguousarray(np.clip((cohort.pixels(case)[0] + 1) * 127.5, 0, 255).round().astype(np.uint8)).tobytes() for case in cohort
    }


def block(html: str, of: str) -> list[str]:
    return re.findall(rf'<script type="application/octet-stream" {of}>([\w+/=]+)</script>', html)


def test_the_page_holds_the_first_real_and_synthetic_volume_and_the_shareable_copy_no_real_one(solid):
    inside, outside = ((solid / name).read_text(encoding="utf-8") for name in ("index.html", "shareable.html"))
    within, without = (
        {np.ascontiguousarray(volume(packed).dataobj).tobytes() for packed in block(html, 'class="image"')} for html in (inside, outside)
    )
    real, synthetic = (grey(Cohort.read(solid.parent / stage / "cohort.jsonl")) for stage in ("prepare", "sample"))
    assert [len(within), len(without)] == [2, 1]
    assert [len(within & real), len(within & synthetic)] == [1, 1]
    assert without < synthetic


def test_the_policy_lets_these_two_scripts_run_and_nothing_else(solid):
    for name in ("index.html", "shareable.html"):
        html = (solid / name).read_text(encoding="utf-8")
        page = Page(html)
        assert not {"link", "iframe", "object", "form", "base"} & set(page.tags)
        assert not re.search(r"url\(|@import|https?://", html)
        policy = re.search(r'Content-Security-Policy" content="([^"]+)"', html)[1]
        (glue,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
        (library,) = block(html, 'id="niivue"')
        scripts = [glue.encode(), gzip.decompress(base64.b64decode(library))]
        hashes = [f"'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" for script in scripts]
        assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {' '.join(hashes)}"
        assert scripts[1] == viewer.LIBRARY.read_bytes()


def test_niivue_is_the_published_one():
    notice = (Path(__file__).parents[2] / "NOTICE").read_text(encoding="utf-8")
    assert hashlib.sha256(viewer.LIBRARY.read_bytes()).hexdigest() in notice
    assert "Redistributions in binary form" in viewer.LIBRARY.with_name("LICENSES.txt").read_text(encoding="utf-8")


def test_a_date_in_the_viewers_source_refuses_no_release_and_hides_nothing(solid, tmp_path):
    birthdays, page = ["20170713", "19480229"], tmp_path / "out" / "report.html"  # the first also stands in a comment of a shader
    write_identifiers(tmp_path / "identifiers.json", bytes(32), birthdays)
    page.parent.mkdir()
    html, own = (solid / "shareable.html").read_text(encoding="utf-8"), viewer.packed_library().encode()
    page.write_text(html, encoding="utf-8")
    assert [hit.kind for hit in find(tmp_path / "identifiers.json", bytes(32), [page.parent])] == ["date"]
    assert find(tmp_path / "identifiers.json", bytes(32), [page.parent], own=own) == []
    for birthday in birthdays:
        page.write_text(html.replace("</main>", f"{birthday}</main>"), encoding="utf-8")
        assert "date" in {hit.kind for hit in find(tmp_path / "identifiers.json", bytes(32), [page.parent], own=own)}


def test_a_volume_keeps_its_grid_and_its_header_says_nothing_else():
    voxels = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    image = nib.Nifti1Image.from_bytes(gzip.decompress(viewer.nifti(voxels, (0.5, 1.5, 3.0))))
    np.testing.assert_array_equal(np.asarray(image.dataobj), voxels)
    np.testing.assert_allclose(image.affine, np.diag([0.5, 1.5, 3, 1]))
    text = b"".join(image.header[name].tobytes() for name in ("descrip", "db_name", "aux_file", "intent_name"))
    assert not text.strip(b"\0")


@pytest.mark.parametrize("shape", [(129, 128, 128), (600, 601, 3), (300, 300, 300), (4000, 3000, 2)])
def test_a_large_volume_is_made_coarser_until_it_fits(shape):
    factors = viewer.coarsening(shape)
    assert 0 < np.prod([n // factor for n, factor in zip(shape, factors, strict=True)]) <= viewer.MOST
    finer = [max(1, factor - 1) for factor in factors]
    assert max(factors) == 1 or np.prod([n // factor for n, factor in zip(shape, finer, strict=True)]) > viewer.MOST


def test_coarse_voxels_are_means_and_labels_stay_on_their_grid(tmp_path, monkeypatch):
    cohort = make_cohort(tmp_path, 1, 1, 1, shape=(9, 8, 7), joint_mask=True)
    monkeypatch.setattr(viewer, "MOST", 40)
    packed = viewer._volume(cohort, cohort.cases[0])
    image, labels = volume(packed["image"]), volume(packed["labels"])
    np.testing.assert_allclose(image.affine, labels.affine)
    factor = round(image.affine[0, 0] / cohort.cases[0].spacing[0])
    assert factor > 1
    grey, mask = (cohort.pixels(cohort.cases[0])[0] + 1) * 127.5, cohort.mask(cohort.cases[0])
    assert image.shape == labels.shape == tuple(n // factor for n in grey.shape)
    for at in np.ndindex(image.shape):
        block = tuple(slice(factor * k, factor * (k + 1)) for k in at)
        assert np.asarray(image.dataobj)[at] == round(float(np.clip(grey[block], 0, 255).mean()))
        assert np.asarray(labels.dataobj)[at] == mask[block][(factor // 2,) * 3]


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_without_a_network_shows_the_volume(solid, tmp_path):
    html = (solid / "index.html").read_text(encoding="utf-8").replace('<details id="viewer">', '<details id="viewer" open>')
    start, end = html.index('<details id="viewer"'), html.index("</script>\n</details>") + len("</script>\n</details>")
    page = tmp_path / "viewer.html"  # the section alone, under the same policy: all of the page would be a long picture
    page.write_text(f"{html[: html.index('<main>')]}<main>{html[start:end]}</main></body></html>", encoding="utf-8")
    flags = [
        "--headless=new",
        "--no-sandbox",
        "--enable-unsafe-swiftshader",
        "--use-gl=angle",
        "--use-angle=swiftshader",
        "--hide-scrollbars",
    ]
    network = ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--window-size=1200,800", "--virtual-time-budget=8000"]
    command = [CHROMIUM, *flags, *network, f"--user-data-dir={tmp_path / 'profile'}"]
    shot = tmp_path / "shot.png"
    seen = subprocess.run([*command, f"--screenshot={shot}", page.as_uri()], capture_output=True, text=True, timeout=200, check=True)
    said = [line for line in seen.stderr.splitlines() if "CONSOLE" in line]
    assert not [line for line in said if "Refused" in line or "violates" in line or "Failed to" in line], said
    dom = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=200, check=True).stdout
    assert re.search(r'id="viewer"[^>]*class="opening ready"', dom)
    pixels = np.asarray(Image.open(shot).convert("L"), float)[150:600]
    halves = pixels[:, 100:580], pixels[:, 620:1100]
    assert all(len(np.unique(half)) > 60 for half in halves), "a black canvas has few grey levels"
