"""A synthetic cohort of one case, whose voxels are known."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medsynth.cohort import Case, Cohort, Header, sha256_of
from medsynth.export.dicom import Provenance
from medsynth.io import nifti

AXIAL = np.array([[0.7, 0, 0, -11.5], [0, 0.9, 0, 20.25], [0, 0, 2.5, -3], [0, 0, 0, 1]])


@pytest.fixture
def made_by() -> Provenance:
    return Provenance(weights="a1" * 32, fingerprint="b2" * 32, version="1.2.3")


@pytest.fixture
def synthetic(tmp_path: Path) -> Callable[..., Cohort]:
    """Make a cohort of one case from an array ``(x, y[, z])`` in stored units, and a mask on the same grid."""

    def make(
        array: np.ndarray,
        modality: str,
        *,
        affine: np.ndarray = AXIAL,
        integer: bool = True,
        mask: np.ndarray | None = None,
        labels: tuple[int, ...] = (),
        condition: dict | None = None,
        seed: int = 7,
        id: str = "syn-a1b2",
        source: dict | None = None,
    ) -> Cohort:
        folder = tmp_path / f"cohort-{len(list(tmp_path.iterdir()))}"
        (folder / "volumes").mkdir(parents=True)
        image = folder / "volumes" / f"{id}.nii"
        nifti.write(image, array, affine, integer)
        if mask is not None:
            nifti.write(folder / "volumes" / f"{id}-mask.nii", mask, affine, True)
        spacing = tuple(float(s) for s in np.linalg.norm(affine[:3, :3], axis=0))[: array.ndim]
        low, high = float(array.min()), float(max(array.max(), array.min() + 1))
        case = Case(
            id=id,
            subject=id,
            split="synthetic",
            path=f"volumes/{id}.nii",
            sha256=sha256_of(image),
            shape=array.shape,
            spacing=spacing,
            modality=modality,
            scale=(low, high),
            condition=condition or {},
            mask=f"volumes/{id}-mask.nii" if mask is not None else None,
            seed=seed,
        )
        header = Header(
            kind="synthetic",
            unit="subject",
            source=source or {"name": "phantom", "licence": "CC0-1.0", "terms": "none"},
            shape=array.shape,
            spacing=spacing,
            affine=tuple(map(tuple, affine.tolist())),
            scale=(low, high),
            integer=integer,
            modality=modality,
            labels=labels,
        )
        return Cohort(header, (case,), folder)

    return make
