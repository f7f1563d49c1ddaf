"""MedMNIST: arrays of small 2-D images with a class each, in one ``.npz`` file a data set.

Its own split is not kept: ours gives the holdout the share that the audit asks for, and cuts by the image's bytes, so that an image that
occurs twice never stands on two sides. The files know no subjects, so every claim is about images.
"""

import hashlib
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from medsynth.data.source import Item, Rejected, Scan
from medsynth.errors import MedsynthError, SettingsError, UnreadableImage
from medsynth.io.dicom import Journal
from medsynth.volume import Volume

PARTS = ("train", "val", "test")


class MedMNIST:
    """All images of ``root``, an ``.npz`` file or a folder of them. ``labels`` names the classes; without it they are called by their
    number.

    An image is a volume (1, x, y, 1) of isotropic 1 mm voxels: the files tell no size, so lengths in what follows are
    pixels. The picture's right is taken for the patient's left, as radiologists look at one, and its upper edge for
    +y; so it is seen the same way up and round wherever pictures are drawn by that convention. Which side it really
    is, the files do not tell.
    """

    unit = "image"

    def __init__(
        self, root: str, licence: str, terms: str, labels: Mapping[int, str] | None = None, modality: str = "DX", max_bytes: int = 4 << 30
    ) -> None:
        self.root = root
        self.licence = licence
        self.terms = terms
        self.labels = labels
        self.modality = modality
        self.max_bytes = max_bytes

    def scan(self, *, workers: int, journal: Journal | None = None) -> Scan:
        """List all images; ``workers`` are not needed. Raises MedsynthError where a file is no MedMNIST file.

        That is found before more than ``max_bytes`` are unpacked.
        """
        root = Path(self.root)
        if not root.exists():
            raise SettingsError(f"source.root={self.root}: there is no such file or folder.")
        every = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
        paths = [path for path in every if path.suffix == ".npz"]
        names = {str(key): str(name) for key, name in (self.labels or {}).items()}
        items, rejected = [], []
        for path in paths:
            shapes = self._shapes(path)
            for part in PARTS:
                if f"{part}_images" not in shapes:
                    continue
                images, labels = (_array(str(path), path.stat().st_mtime_ns, f"{part}_{name}") for name in ("images", "labels"))
                if labels.size != len(images):
                    raise MedsynthError(
                        f"{path}: {part}_labels has {labels.size} values for {len(images)} images. Several labels an image are not read."
                    )
                for number, (image, label) in enumerate(zip(images, labels.ravel(), strict=True)):
                    key, label = f"{path.name}/{part}/{number}", str(int(label))
                    if names and label not in names:
                        reason = f"Its class number is not among source.labels ({', '.join(sorted(names))})."
                        rejected.append(Rejected(key=key, files=0, code="unknown-label", reason=reason))
                        continue
                    items.append(
                        Item(
                            key=key,
                            subject=hashlib.sha256(image.tobytes()).hexdigest(),
                            modality=self.modality,
                            files=(str(path),),
                            condition={"class": names.get(label, label)},
                        )
                    )
        return Scan(items=tuple(items), rejected=tuple(rejected), files=len(every), other=len(every) - len(paths))

    def open(self, item: Item) -> Volume:
        """One picture. Raises UnreadableImage with code ``not-finite``."""
        (path,), (_, part, number) = item.files, item.key.rsplit("/", 2)
        image = _array(path, Path(path).stat().st_mtime_ns, f"{part}_images")[int(number)].astype(np.float32)
        if not np.isfinite(image).all():
            raise UnreadableImage("not-finite", "Some pixels are NaN or infinite.")
        return Volume(image.T[None, :, ::-1, None], np.diag([-1.0, 1.0, 1.0, 1.0]))

    def _shapes(self, path: Path) -> dict[str, tuple[int, ...]]:
        """Shapes of the arrays in a file, from their headers; each is judged before anything is unpacked."""
        shapes = {}
        try:
            with zipfile.ZipFile(path) as archive:
                for member in archive.namelist():
                    with archive.open(member) as file:
                        version = np.lib.format.read_magic(file)
                        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                        shape, _, dtype = read(file)
                    size = np.prod([float(n) for n in shape]) * dtype.itemsize
                    if dtype.hasobject or dtype.kind not in "uif":
                        raise MedsynthError(f"{path}: an array in it holds objects, not numbers. Only numbers are loaded.")
                    if size > self.max_bytes or archive.getinfo(member).file_size > self.max_bytes:
                        raise MedsynthError(f"{path}: an array in it unpacks to more than source.max_bytes={self.max_bytes}.")
                    shapes[member.removesuffix(".npy")] = shape
        except (zipfile.BadZipFile, ValueError, EOFError, OSError) as error:
            raise MedsynthError(f"{path} is no readable .npz file ({type(error).__name__}).") from None
        found = [part for part in PARTS if f"{part}_images" in shapes]
        if not found or any(f"{part}_labels" not in shapes for part in found):
            raise MedsynthError(f"{path} is no MedMNIST file: it needs train_images and train_labels (or val_, test_).")
        if wrong := [shapes[f"{part}_images"] for part in found if len(shapes[f"{part}_images"]) != 3]:
            raise MedsynthError(f"{path} holds images of shape {wrong[0][1:]}: only grey 2-D data sets are read, no colour and no volumes.")
        return shapes


@lru_cache(maxsize=8)
def _array(path: str, modified: int, name: str) -> np.ndarray:
    """One array of a file, kept, since thousands of images come from it. ``modified`` forgets an array whose file has changed."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[name]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        raise MedsynthError(f"{path} cannot be unpacked ({type(error).__name__}). Download it again.") from None
