"""Pixels with their place in space.

A `Volume` is an array ``(channel, x, y, z)`` with a 4x4 affine from voxel index to millimetres in RAS+ (x to the patient's right, y to the
front, z to the head), as in NIfTI. A radiograph or a single slice is a volume with one voxel along its third axis.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Geometry:
    """A grid in space: ``shape`` (three spatial axes, voxels) and ``affine`` (4x4, voxel index to RAS+ millimetres, float64)."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    def __post_init__(self) -> None:
        # float64: the affine is inverted and composed
        object.__setattr__(self, "affine", np.asarray(self.affine, dtype=np.float64))
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        assert (self.affine.shape, len(self.shape)) == ((4, 4), 3), (self.shape, self.affine.shape)

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distance between neighbouring voxels along each axis, mm."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))

    @property
    def orientation(self) -> str:
        """Nearest axis codes, such as ``RAS`` or ``LPS``: the direction in which each index grows."""
        import nibabel as nib

        return "".join(nib.aff2axcodes(self.affine))

    def is_close(self, other: "Geometry", tolerance: float = 1e-4) -> bool:
        """Same shape, and every corner within ``tolerance`` mm."""
        if self.shape != other.shape:
            return False
        corners = np.array([[i, j, k, 1] for i in (0, self.shape[0]) for j in (0, self.shape[1]) for k in (0, self.shape[2])])
        return bool(np.abs(corners @ (self.affine - other.affine).T).max() <= tolerance)


@dataclass(frozen=True, eq=False)
class Volume:
    """An image in stored units (Hounsfield units for CT) with its geometry; ``mask`` is a label map on the same grid, or None.

    ``array`` is ``(channel, x, y, z)``; ``mask`` is ``(x, y, z)`` of integers.
    """

    array: np.ndarray
    affine: np.ndarray
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        assert self.array.ndim == 4, f"a volume's array is (channel, x, y, z), not {self.array.shape}"
        assert self.mask is None or self.mask.shape == self.array.shape[1:], (self.mask.shape, self.array.shape)

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.array.shape[1:], self.affine)
