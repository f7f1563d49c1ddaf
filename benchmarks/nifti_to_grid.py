"""One NIfTI file to the training grid: what `medsynth prepare` does with a volume, against MONAI's chain of transforms.

Both sides read the same packed file and come to float16 in -1..+1 on the same voxel centres; ours averages what falls between two voxels
(antialiasing), MONAI's ``Spacing`` interpolates and does not.
"""

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from monai import transforms as monai
from scipy import ndimage

from benchmarks.table import Table
from benchmarks.timing import Variant, against, alternated
from medsynth.data.transforms import scale_of, to_grid, to_model
from medsynth.io import nifti
from medsynth.rng import generator_for
from medsynth.volume import Volume

PERCENTILES = (0.5, 99.5)


def measure(tiny: bool) -> list[Table]:
    shape, grid, rounds = ((48, 48, 40), (16, 16, 16), 2) if tiny else ((512, 512, 200), (128, 128, 128), 5)
    spacing = (0.7, 0.7, 1.5)
    # the grid whose first and last voxel lie on the file's: MONAI counts from a corner, we from the centre, and both are then one grid
    wanted = tuple(s * (n - 1) / (m - 1) for s, n, m in zip(spacing, shape, grid, strict=True))
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "image.nii.gz"
        write_image(file, shape, spacing)
        apart = difference(_ours(file, grid, wanted)(), _theirs(file, grid, wanted)())
        peer = "MONAI transforms"
        variants = [
            Variant(name=peer, make=partial(_theirs, file, grid, wanted)),
            Variant(name="medsynth", make=partial(_ours, file, grid, wanted)),
            Variant(name=f"{peer}, our allocator", make=partial(_theirs, file, grid, wanted), tuned=not tiny),
            Variant(name="medsynth, our allocator", make=partial(_ours, file, grid, wanted), tuned=not tiny),
        ]
        rows = against(alternated(variants, rounds), peer)
    text = ["x".join(map(str, axes)) for axes in (shape, grid)]
    note = (
        f"{text[0]} int16 .nii.gz to {text[1]} float16: LoadImage, Orientation, Spacing, ResizeWithPadOrCrop, "
        f"ScaleIntensityRangePercentiles against read, to_grid, scale_of, to_model. Median of {rounds} rounds; the peer is the first row. "
        f"The results differ by {apart:.4f} of the scale of 2 in the mean, since ours is antialiased. Preparing runs with glibc's own "
        "allocator settings, as the first two rows do."
    )
    return [Table(title="NIfTI to the training grid", note=note, rows=rows)]


def _ours(file: Path, grid: tuple[int, ...], spacing: tuple[float, ...]) -> Callable[[], np.ndarray]:
    def work() -> np.ndarray:
        array, affine, _ = nifti.read(file)
        image, _ = to_grid(Volume(array, affine), size=grid, spacing=spacing)
        return to_model(image, scale_of(image, percentiles=PERCENTILES)).astype(np.float16)

    return work


def _theirs(file: Path, grid: tuple[int, ...], spacing: tuple[float, ...]) -> Callable[[], np.ndarray]:
    chain = monai.Compose(
        [
            monai.LoadImage(image_only=True, ensure_channel_first=True),
            monai.Orientation("RAS", labels=None),
            monai.Spacing(spacing, mode="bilinear"),
            monai.ResizeWithPadOrCrop(grid),
            monai.ScaleIntensityRangePercentiles(*PERCENTILES, b_min=-1, b_max=1, clip=True),
            monai.EnsureType(dtype=torch.float16, track_meta=False),
        ]
    )
    return lambda: chain(file)[0].numpy()


def difference(mine: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference; beyond 2 % of the scale they are different images."""
    assert mine.shape == other.shape
    assert mine.dtype == other.dtype == np.float16
    apart = float(np.abs(mine.astype(np.float32) - other.astype(np.float32)).mean())
    assert apart < 0.04, f"the results differ by {apart:.3f} in the mean"
    return apart


def write_image(path: Path, shape: tuple[int, ...], spacing: tuple[float, ...]) -> None:
    """Blobs with noise in Hounsfield-like units; axes that grow to the left and to the back, as scanners write them."""
    generator = generator_for(0, "image")
    coarse = generator.normal(0, 400, (6, 6, 6))
    array = ndimage.zoom(coarse, [n / 6 for n in shape], order=1, grid_mode=True, mode="nearest") + generator.normal(0, 10, shape)
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    nifti.write(path, array, affine, True)
