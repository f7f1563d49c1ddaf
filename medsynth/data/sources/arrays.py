"""NumPy files of images as other people's generators leave them: ``.npy`` and ``.npz``, one image a file or many.

They tell no size in millimetres, no sides and no persons: voxels count as 1 mm, every image as its own subject.
"""

import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np

from medsynth.data.source import Item, Scan
from medsynth.errors import MedsynthError, SettingsError, UnreadableImage
from medsynth.io.dicom import Journal
from medsynth.volume import Volume

SUFFIXES = (".npy", ".npz")


class Arrays:
    """All images below ``root``, a folder or one file.

    Of an ``.npz`` file with several arrays those count whose name ends in ``images``. An array has the axes (row, column) or (image, row,
    column) where ``dims`` is 2, and (x, y, z) or (image, x, y, z) where it is 3; a channel axis of length 1 may follow the first or stand
    last. ``dims`` 0 tells them by the number of axes, and asks where three could be either.
    """

    unit = "image"
    licence = terms = ""

    def __init__(self, root: str, dims: int = 0, modality: str = "OT") -> None:
        self.root = root
        self.dims = dims
        self.modality = modality

    def scan(self, *, workers: int, journal: Journal | None = None) -> Scan:
        """List all images; ``workers`` are not needed. Raises MedsynthError where a file holds no images, and says why."""
        root = Path(self.root)
        every = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
        paths = [path for path in every if path.suffix.lower() in SUFFIXES]
        items = [
            Item(key=key, subject=key, modality=self.modality, files=(str(path), name, str(number)))
            for path in paths
            for name, count in self._listed(path)
            for number in range(count)
            for key in [f"{path.relative_to(root) if root.is_dir() else path.name}{f':{name}' * bool(name)}:{number:06d}"]
        ]
        return Scan(items=tuple(items), rejected=(), files=len(every), other=len(every) - len(paths))

    def open(self, item: Item) -> Volume:
        """One image. A picture (``dims`` 2) stands upright: its first row is on top. Raises UnreadableImage with code ``not-finite``."""
        path, name, number = item.files
        images, dims = self._images(Path(path), _array(path, Path(path).stat().st_mtime_ns, name))
        image = np.asarray(images[int(number)], np.float32)
        if not np.isfinite(image).all():
            raise UnreadableImage("not-finite", "Some voxels are NaN or infinite.")
        if dims == 3:
            return Volume(image[None], np.eye(4))
        return Volume(image.T[None, :, ::-1, None], np.diag([-1.0, 1.0, 1.0, 1.0]))

    def _listed(self, path: Path) -> Iterator[tuple[str, int]]:
        names = [""]
        if path.suffix.lower() == ".npz":
            try:
                with np.load(path, allow_pickle=False) as arrays:
                    names = arrays.files
            except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
                raise MedsynthError(f"{path} is no readable .npz file ({type(error).__name__}).") from None
            if len(names) > 1:
                names = [name for name in names if name.endswith("images")]
            if not names:
                raise MedsynthError(f"{path} holds several arrays, and none whose name ends in 'images'. Save the images alone.")
        for name in names:
            images, _ = self._images(path, _array(str(path), path.stat().st_mtime_ns, name))
            yield name, len(images)

    def _images(self, path: Path, array: np.ndarray) -> tuple[np.ndarray, int]:
        """The array as (image, *space), and the number of its axes in space."""
        if array.ndim > 3:
            array = array[..., 0] if array.shape[-1] == 1 else array[:, 0] if array.shape[1] == 1 else array
        axes = array.ndim
        if axes == 3 and not self.dims:
            raise SettingsError(
                f"{path}: an array of shape {array.shape} is {array.shape[0]} pictures or one volume. Say data.dims=2 or data.dims=3."
            )
        dims = self.dims or {2: 2, 4: 3}.get(axes, 0)
        if axes not in (dims, dims + 1) or not dims or array.dtype.kind not in "uifb":
            raise MedsynthError(
                f"{path}: an array of shape {array.shape} and type {array.dtype} holds no grey images of {dims or '2 or 3'} dimensions."
            )
        return (array[None] if axes == dims else array), dims


@lru_cache(maxsize=4)
def _array(path: str, modified: int, name: str) -> np.ndarray:
    """An array, kept, since thousands of images come from it. ``modified`` forgets it when its file has changed."""
    try:
        if not name:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[name]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise MedsynthError(f"{path} cannot be read as an array of numbers ({type(error).__name__}).") from None
