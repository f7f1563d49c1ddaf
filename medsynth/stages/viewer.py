"""Volumes that a reader can slice and turn on the page itself: NiiVue and a few small volumes, packed into the HTML.

The page asks the world for nothing, so its Content-Security-Policy forbids everything but the two scripts here, which it names by their
hashes. Library and volumes are unpacked when the section is opened (``viewer.js``), and a reader who never opens it pays for a string.
"""

import base64
import gzip
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from markupsafe import Markup  # jinja2 brings it

from medsynth.cohort import Case, Cohort

LIBRARY = Path(__file__).parent / "niivue" / "niivue.umd.js"
GLUE = Path(__file__).with_name("viewer.js")
MOST = 2**21  # voxels of a volume on the page: two of them and the library take under 7 MB of text


def viewer(shown: Sequence[tuple[str, Cohort, Case]]) -> dict[str, Any]:
    """What the template needs to show these volumes, each with its title: the scripts, their hashes for the policy, the packed volumes."""
    library, glue = LIBRARY.read_text(encoding="utf-8"), GLUE.read_text(encoding="utf-8")
    return {
        "library": packed_library(),
        "glue": Markup(glue),  # our own file, and no part of it comes from data
        "hashes": [_hash(glue), _hash(library)],
        "volumes": [{"title": title, **_volume(cohort, case)} for title, cohort, case in shown],
    }


def _volume(cohort: Cohort, case: Case) -> dict[str, Any]:
    image = cohort.pixels(case)[0]
    grey = np.clip((image + 1) * 127.5, 0, 255)  # the window of the pictures
    factors = coarsening(grey.shape)
    spacing = [step * factor for step, factor in zip(case.spacing, factors, strict=True)]
    blocks, middle = _blocks(grey, factors), tuple(factor // 2 for factor in factors)
    labels = None if case.mask is None else _blocks(cohort.mask(case), factors)[:, middle[0], :, middle[1], :, middle[2]]
    return {
        "image": _text(nifti(blocks.mean(axis=(1, 3, 5)).round().astype(np.uint8), spacing)),
        "labels": None if labels is None else _text(nifti(labels, spacing)),
        "spacing": [f"{step:.3g}" for step in spacing],
    }


def coarsening(shape: Sequence[int]) -> list[int]:
    """How many voxels along each axis become one, so that a volume of this shape has at most `MOST`; the same for all but short axes."""
    factor = 1
    while np.prod([n // min(factor, n) for n in shape]) > MOST:
        factor += 1
    return [min(factor, n) for n in shape]


def nifti(voxels: np.ndarray, spacing: Sequence[float]) -> bytes:
    """A volume ``(x, y, z)``, uint8, RAS+, as a gzipped NIfTI-1 file; its header holds the grid and nothing else."""
    return gzip.compress(nib.Nifti1Image(voxels, np.diag([*spacing, 1.0])).to_bytes(), 9, mtime=0)


def _blocks(image: np.ndarray, factors: Sequence[int]) -> np.ndarray:
    """``(x, y, z)`` as ``(block, in block, block, in block, block, in block)``; what does not fill a block at the far ends is left out."""
    whole = image[tuple(slice(0, n // factor * factor) for n, factor in zip(image.shape, factors, strict=True))]
    return whole.reshape([part for n, factor in zip(whole.shape, factors, strict=True) for part in (n // factor, factor)])


@cache
def packed_library() -> str:
    """NiiVue as it stands in every page with a viewer: base64 of its gzipped source."""
    return _text(gzip.compress(LIBRARY.read_bytes(), 9, mtime=0))


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
