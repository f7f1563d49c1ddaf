"""Reading a DICOM series: ours against MONAI's ``LoadImage(PydicomReader)`` on the same folder, with the same voxels and place.

Ours judges every header and the geometry before it reads a pixel. In `medsynth prepare` the scan of the archive reads the headers once
more, which the third row includes.
"""

import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from monai.data import PydicomReader
from monai.transforms import LoadImage
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filewriter import dcmwrite
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from benchmarks.table import Table
from benchmarks.timing import Variant, against, alternated
from medsynth.io import dicom
from medsynth.rng import generator_for
from medsynth.volume import Volume

PRIVATE = 30  # elements a file: a real scanner writes as many and more


def measure(tiny: bool) -> list[Table]:
    count, size, rounds = (10, 64, 2) if tiny else (200, 512, 7)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_series(folder, count, size)
        require_same(_ours(folder)(), _theirs(folder)())
        peer = "MONAI LoadImage(PydicomReader)"
        variants = [
            Variant(name=peer, make=partial(_theirs, folder)),
            Variant(name="medsynth read_series", make=partial(_ours, folder)),
            Variant(name="medsynth scan, judge, read_series", make=partial(_ours_with_scan, folder)),
            Variant(name=f"{peer}, our allocator", make=partial(_theirs, folder), tuned=not tiny),
            Variant(name="medsynth read_series, our allocator", make=partial(_ours, folder), tuned=not tiny),
        ]
        rows = against(alternated(variants, rounds), peer)
    note = (
        f"{count} slices of {size}x{size}, int16, explicit VR little endian, no compression, {PRIVATE} private elements a file, to float32 "
        f"with rescale. Files are in the page cache. Median of {rounds} rounds. The peer is the first row. Preparing runs with glibc's own "
        "allocator settings, as the first three rows do; the last two show how much of the ratio is the allocator's."
    )
    return [Table(title="Reading a DICOM series", note=note, rows=rows)]


def _ours(folder: Path) -> Callable[[], Volume]:
    files = sorted(folder.iterdir())
    return lambda: dicom.read_series(files)


def _ours_with_scan(folder: Path) -> Callable[[], Volume]:
    def work() -> Volume:
        found = dicom.scan(folder)
        (stack,), refused = dicom.stacks(found.headers, found.refusals)
        assert not refused
        return dicom.read_series(stack.files)

    return work


def _theirs(folder: Path) -> Callable[[], object]:
    load = LoadImage(reader=PydicomReader(), image_only=True)
    return lambda: load(folder)


def require_same(volume: Volume, loaded) -> None:
    """Voxel for voxel; and each voxel at the same place, wherever either side begins to count."""
    other, affine = loaded.numpy(), loaded.affine.numpy()
    if np.dot(affine[:3, 2], volume.affine[:3, 2]) < 0:  # MONAI may stack from the other end
        affine = affine.copy()
        affine[:3, 3] += affine[:3, 2] * (other.shape[2] - 1)
        affine[:3, 2] *= -1
        other = other[:, :, ::-1]
    assert volume.array.dtype == other.dtype == np.float32
    assert np.array_equal(volume.array[0], other), "voxels differ"
    assert np.allclose(volume.affine, affine, atol=1e-3), (volume.affine, affine)


def write_series(folder: Path, count: int, size: int, uid: str = "1.2.840.555.1000") -> None:
    """A CT series below ``uid``, with names that say nothing of its order."""
    folder.mkdir(exist_ok=True)
    generator = generator_for(0, "series")
    smooth = np.add.outer(np.hanning(size), np.hanning(size)) * 600
    for number, name in enumerate(generator.permutation(count)):
        data = Dataset()
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, f"{uid}.{number + 1}"
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = f"{uid}.1000", f"{uid}.2000", f"{uid}.3000"
        data.PatientID, data.Modality, data.InstanceNumber = "phantom", "CT", number + 1
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.ImageOrientationPatient, data.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-170, -180, 1.5 * number]
        data.PixelSpacing, data.SliceThickness = [0.7, 0.7], 1.5
        data.Rows = data.Columns = size
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 1
        data.RescaleSlope, data.RescaleIntercept = 1, -1024
        block = data.private_block(0x0019, "MEDSYNTH BENCHMARK", create=True)
        for element in range(PRIVATE):
            block.add_new(element, "LO", f"a value of element {element}")
        data.PixelData = (smooth + generator.normal(0, 20, smooth.shape) + number).astype("<i2").tobytes()
        data["PixelData"].VR = "OW"
        data.file_meta = FileMetaDataset()
        data.file_meta.MediaStorageSOPClassUID, data.file_meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcmwrite(folder / f"{name:04d}.dcm", data, enforce_file_format=True)
