"""DICOM series whose truth is known: every voxel holds ``f(x, y, z) = 2000 + 3x + 5y + 7z`` of its own place in LPS millimetres.

A reader that orders, turns or places a slice wrongly is off by many grey levels; `ramp_error` says by how many.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from medsynth.volume import Volume

AXIAL = (1, 0, 0, 0, 1, 0)
CORONAL = (1, 0, 0, 0, 0, -1)
SAGITTAL = (0, 1, 0, 0, 0, -1)
_TURN = np.linalg.qr(np.array([[1.0, 0.3, 0.2], [-0.2, 1.0, 0.4], [0.1, -0.3, 1.0]]))[0]
OBLIQUE = (*_TURN[:, 0], *_TURN[:, 1])
CLASSES = {
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "PT": "1.2.840.10008.5.1.4.1.1.128",
}


def ramp(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    return 2000 + 3 * x + 5 * y + 7 * z


def slices(
    count: int = 8,
    *,
    orientation: Sequence[float] = AXIAL,
    shape: tuple[int, int] = (12, 10),
    spacing: tuple[float, float] = (1.5, 1.0),
    gap: float = 2.0,
    origin: Sequence[float] = (-10.0, -20.0, 5.0),
    shear: Sequence[float] = (0.0, 0.0, 0.0),
    series: str = "1.2.3.4.5",
    modality: str = "MR",
    patient: str = "P-0001",
    **values: object,
) -> list[Dataset]:
    """One series, slice by slice along the normal. ``shape`` is rows, columns; ``spacing`` between rows, between columns."""
    row, column = np.array(orientation[:3], float), np.array(orientation[3:], float)
    found = []
    for number in range(count):
        place = np.array(origin) + number * (gap * np.cross(row, column) + np.array(shear))
        r, c = np.mgrid[: shape[0], : shape[1]]
        x, y, z = (place[i] + row[i] * spacing[1] * c + column[i] * spacing[0] * r for i in range(3))
        data = Dataset()
        data.SOPClassUID = CLASSES[modality]
        data.SOPInstanceUID = f"{series}.{number + 1}"
        data.StudyInstanceUID, data.SeriesInstanceUID, data.FrameOfReferenceUID = "1.2.3.4", series, "1.2.3.9"
        data.PatientID, data.Modality, data.InstanceNumber = patient, modality, number + 1
        data.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
        data.ImageOrientationPatient = [f"{v:.12g}"[:16] for v in orientation]
        data.ImagePositionPatient = [f"{v:.9g}" for v in place]
        data.PixelSpacing = list(spacing)
        data.Rows, data.Columns, data.SamplesPerPixel = *shape, 1
        data.PhotometricInterpretation = "MONOCHROME2"
        store(data, ramp(x, y, z))
        for keyword, value in values.items():
            setattr(data, keyword, value)
        found.append(data)
    return found


def store(data: Dataset, values: np.ndarray, dtype: str = "u2", bits: int | None = None) -> None:
    """Put values into the pixels, as this integer type with so many bits used."""
    array = np.rint(values).astype(f"<{dtype}")
    data.BitsAllocated = array.itemsize * 8
    data.BitsStored = bits or data.BitsAllocated
    data.HighBit = data.BitsStored - 1
    data.PixelRepresentation = int(array.dtype.kind == "i")
    data.PixelData = array.tobytes()
    data["PixelData"].VR = "OW"


def stored(data: Dataset) -> np.ndarray:
    """The values that `store` put in."""
    dtype = f"<{'i' if data.PixelRepresentation else 'u'}{data.BitsAllocated // 8}"
    return np.frombuffer(data.PixelData, dtype).reshape(data.Rows, data.Columns).astype(float)


def enhanced(count: int = 6, orientation: Sequence[float] = OBLIQUE, modality: str = "MR") -> Dataset:
    """An enhanced object of the ramp, its frames stored in a shuffled order, each with its own rescale."""
    parts = slices(count, orientation=orientation, modality=modality)
    order = random.Random(2).sample(range(count), count)
    data = parts[0]
    data.SOPClassUID = f"{CLASSES[modality]}.1"
    data.NumberOfFrames = count
    shared, frames, pixels = Dataset(), [], []
    shared.PlaneOrientationSequence = [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = data.ImageOrientationPatient
    shared.PixelMeasuresSequence = [Dataset()]
    shared.PixelMeasuresSequence[0].PixelSpacing = data.PixelSpacing
    for number in order:
        frame = Dataset()
        frame.PlanePositionSequence = [Dataset()]
        frame.PlanePositionSequence[0].ImagePositionPatient = parts[number].ImagePositionPatient
        frame.PixelValueTransformationSequence = [Dataset()]
        frame.PixelValueTransformationSequence[0].RescaleSlope = 1
        frame.PixelValueTransformationSequence[0].RescaleIntercept = number
        frames.append(frame)
        pixels.append(stored(parts[number]) - number)
    del data.ImageOrientationPatient, data.ImagePositionPatient, data.PixelSpacing
    data.SharedFunctionalGroupsSequence, data.PerFrameFunctionalGroupsSequence = [shared], frames
    store(data, np.stack(pixels))
    return data


def coloured(series: Sequence[Dataset]) -> Sequence[Dataset]:
    """The same as RGB, 8 bits, of a luminance that is the ramp less 1900."""
    for data in series:
        grey = stored(data) - 1900
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PlanarConfiguration = 3, "RGB", 0
        store(data, np.repeat(grey[..., None], 3, axis=-1), "u1")
    return series


def compressed(series: Sequence[Dataset], encode: Callable[[np.ndarray], bytes]) -> Sequence[Dataset]:
    """The same pixels as one encapsulated frame each, by an encoder that pydicom does not have."""
    for data in series:
        dtype = f"<{'i' if data.PixelRepresentation else 'u'}{data.BitsAllocated // 8}"
        data.PixelData = encapsulate([encode(np.frombuffer(data.PixelData, dtype).reshape(data.Rows, data.Columns))])
        data["PixelData"].is_undefined_length = True
    return series


def save(
    datasets: Sequence[Dataset],
    folder: Path,
    *,
    name: Callable[[int], str] = "IM{:04d}".format,
    syntax: str = ExplicitVRLittleEndian,
    meta: bool = True,
) -> list[str]:
    """Write each data set; without ``meta`` as a bare data set, with neither preamble nor file meta information."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, data in enumerate(datasets):
        path = folder / name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        implicit, little = syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
        if meta:
            data.file_meta = FileMetaDataset()
            data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
            data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
            data.file_meta.TransferSyntaxUID = syntax
            data.preamble = b"\0" * 128
            dcmwrite(path, data, enforce_file_format=True)
        else:
            dcmwrite(path, data, implicit_vr=implicit, little_endian=little)
        paths.append(str(path))
    return paths


def off_ramp(volume: Volume) -> np.ndarray:
    """Each voxel's difference ``(x, y, z)`` to the ramp at its place, grey levels. LPS is made here, not by the code under test."""
    i, j, k = np.meshgrid(*(np.arange(n) for n in volume.array.shape[1:]), indexing="ij")
    x, y, z = (
        volume.affine[axis, 0] * i + volume.affine[axis, 1] * j + volume.affine[axis, 2] * k + volume.affine[axis, 3] for axis in range(3)
    )
    return volume.array[0] - ramp(-x, -y, z)


def ramp_error(volume: Volume) -> float:
    """Its largest difference to the ramp."""
    return float(np.abs(off_ramp(volume)).max())
