"""Every way in which an archive holds an image, or holds it broken, as a folder whose truth is known by construction.

`CASES` is what docs/dicom.md compares readers on. A reader is right if it returns all volumes of the folder and no other, each with all of
its voxels in their places, or, where no right volume can be had, none.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import imagecodecs
import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    HTJ2KLossless,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from medsynth.volume import Volume
from tests.make_dicom import AXIAL, CORONAL, OBLIQUE, SAGITTAL, coloured, compressed, enhanced, off_ramp, save, slices, store, stored


@dataclass(frozen=True, kw_only=True)
class Case:
    """``make`` fills a folder; ``volumes`` right ones can be read from it, after ``repairs``; ``codes`` are what else is refused for."""

    make: Callable[[Path], object]
    volumes: int = 1
    slices: int = 8  # of each volume
    codes: Sequence[str] = ()
    repairs: Sequence[str] = ()  # allowed beside the harmless ones
    repaired: Sequence[str] = ()  # and what the verdict names
    judge: Callable[[Volume], bool] = lambda volume: share_off(volume) == 0  # whether its voxels are in their places


def edited(edit: Callable[[list[Dataset]], object], **settings: object) -> Callable[[Path], object]:
    """One series, changed by ``edit``, and saved."""

    def make(folder: Path) -> None:
        series = slices(**settings)
        edit(series)
        save(series, folder)

    return make


def each(edit: Callable[[Dataset, int], object]) -> Callable[[list[Dataset]], object]:
    return lambda series: [edit(data, number) for number, data in enumerate(series)]


def put(**values: object) -> Callable[[Dataset, int], object]:
    return lambda data, _: [setattr(data, keyword, value) for keyword, value in values.items()]


def drop(*keywords: str) -> Callable[[Dataset, int], object]:
    return lambda data, _: [delattr(data, keyword) for keyword in keywords]


def twice(attribute: str, **other: object) -> Callable[[Path], object]:
    """One series that holds each slice twice, told apart by ``attribute``."""

    def make(folder: Path) -> None:
        second = slices(**other)
        for data in second:
            data.SOPInstanceUID += ".2"
        series = slices() + second
        for number, data in enumerate(series):
            setattr(data, attribute, 1 + number // 8)
            data.InstanceNumber = number + 1
        save(series, folder)

    return make


def nonsensical_names(folder: Path) -> None:
    order = random.Random(1).sample(range(8), 8)
    save(slices(), folder, name=lambda number: f"{chr(112 - order[number])} {order[number]}.jpg")


def in_units(dtype: str, bits: int, offset: int) -> Callable[[Path], object]:
    """Integers of this type, which a rescale brings back to the ramp."""

    def store_as(data: Dataset, _: int) -> None:
        store(data, stored(data) - offset, dtype, bits)
        data.RescaleSlope, data.RescaleIntercept = 1, offset

    return edited(each(store_as), modality="CT", spacing=(0.5, 0.5), gap=1.0, origin=(0, 0, 0))


def own_slopes(data: Dataset, number: int) -> None:
    data.RescaleSlope, data.RescaleIntercept = 0.5 / (1 + number), 10 * number
    store(data, (stored(data) - 10 * number) * 2 * (1 + number))


def padded(data: Dataset, _: int) -> None:
    values = stored(data)
    values[:2] = 0
    store(data, values)
    data.PixelPaddingValue = 0


def spoiled(spoil: Callable[[Path], object], **settings: object) -> Callable[[Path], object]:
    """A series whose last slice is damaged after it was written."""

    def make(folder: Path) -> None:
        spoil(Path(save(slices(**settings), folder)[-1]))

    return make


def with_others(folder: Path) -> None:
    save(slices(), folder)
    (folder / "notes.txt").write_text("not a slice " * 50)
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1" + bytes(200))
    (folder / "empty.dcm").touch()


def with_objects(folder: Path) -> None:
    save(slices(), folder)
    for number, leaf in enumerate(("88.11", "481.5", "11.1")):  # report, plan, presentation state
        (data,) = slices(1, series=f"1.2.7.{number}", SOPClassUID=f"1.2.840.10008.5.1.4.1.1.{leaf}", Modality="OT")
        del data.PixelData, data.Rows, data.Columns
        save([data], folder, name=lambda _, number=number: f"object{number}")


def with_directory(folder: Path) -> None:
    save(slices(), folder / "DICOM")
    (data,) = slices(1, SOPClassUID="1.2.840.10008.1.3.10")
    del data.PixelData, data.Rows, data.Columns
    save([data], folder, name=lambda _: "DICOMDIR")


def localizer(folder: Path) -> None:
    (scout,) = slices(1, orientation=SAGITTAL, shape=(20, 20), ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    scout.SOPInstanceUID, scout.InstanceNumber = "1.2.77", 0
    save([scout, *slices()], folder)


def uneven(folder: Path) -> None:
    series = slices()
    series[3] = slices(origin=(-10, -20, 5.7))[3]
    save(series, folder)


def two_at_one_place(folder: Path) -> None:
    (again,) = slices(1, origin=(-10, -20, 9), SOPInstanceUID="1.2.3.4.5.9", InstanceNumber=9)
    store(again, stored(again) + 300)
    save([*slices(), again], folder)


def two_series(folder: Path) -> None:
    save(slices(series="1.2.1"), folder, name="a{}".format)
    save(slices(series="1.2.2", orientation=CORONAL), folder, name="b{}".format)


def two_planes(folder: Path) -> None:
    second = slices(orientation=CORONAL)
    for data in second:
        data.SOPInstanceUID += ".2"
        data.InstanceNumber += 8
    save(slices() + second, folder)


def packed(syntax: str, encode: Callable[[np.ndarray], bytes] | None = None, dtype: str = "u2") -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        series = slices(shape=(48, 40), spacing=(0.3, 0.3), origin=(0, 0, 0), gap=1.0, RescaleSlope=1, RescaleIntercept=1900)
        for data in series:
            store(data, stored(data) - 1900, dtype)
        save(series, folder)  # pydicom's encoders ask for file meta information
        for data in series:
            if encode is None and syntax != DeflatedExplicitVRLittleEndian:
                data.compress(syntax, generate_instance_uid=False)
        save(compressed(series, encode) if encode else series, folder, syntax=syntax)

    return make


def big_endian(folder: Path) -> None:
    series = slices()
    for data in series:
        data.PixelData = np.frombuffer(data.PixelData, "<u2").astype(">u2").tobytes()
    save(series, folder, syntax=ExplicitVRBigEndian)


def radiograph(**spacing: object) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        (data,) = slices(1, modality="CR", origin=(0, 0, 0), **spacing)
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID"):
            delattr(data, keyword)
        if spacing != {"PixelSpacing": [1.5, 1.0]}:
            del data.PixelSpacing
        save([data], folder)

    return make


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-30])


def corrupt(path: Path) -> None:
    """Its SeriesInstanceUID is there, and then an element whose length is beyond the file's end."""
    whole = path.read_bytes()
    at = whole.index(b"\x28\x00\x02\x00US")
    path.write_bytes(whole[:at] + b"\x28\x00\x02\x00OB\0\0\xff\xff\xff\x7f" + whole[at + 10 :])


def nearly(volume: Volume) -> bool:
    """As right as lossy compression leaves it."""
    return float(np.abs(off_ramp(volume)).mean()) < 1


def share_off(volume: Volume) -> float:
    """The share of voxels that are not the ramp's."""
    return float(np.mean(np.abs(off_ramp(volume)) >= 1))


def steps_fit(volume: Volume) -> bool:
    """A radiograph has no place, but its grey levels grow by 3 a millimetre along one axis and by 5 along the other."""
    plane, spacing = volume.array[0], volume.geometry.spacing
    steps = sorted(np.abs(np.diff(plane, axis=axis)).mean() / spacing[axis] for axis in range(3) if plane.shape[axis] > 1)
    return bool(np.allclose(steps, (3, 5), atol=0.2))


CASES: dict[str, Case] = {
    "axial": Case(make=edited(list, orientation=AXIAL)),
    "sagittal": Case(make=edited(list, orientation=SAGITTAL)),
    "oblique": Case(make=edited(list, orientation=OBLIQUE)),
    "shuffled and nonsensical file names": Case(make=nonsensical_names),
    "instance numbers missing": Case(make=edited(each(drop("InstanceNumber")))),
    "instance numbers all equal": Case(make=edited(each(put(InstanceNumber=1)))),
    "instance numbers reversed": Case(make=edited(each(lambda data, number: setattr(data, "InstanceNumber", 100 - number)))),
    "a missing slice": Case(make=edited(lambda s: s.pop(4)), volumes=0, codes=["missing-slice"]),
    "uneven spacing": Case(make=uneven, volumes=0, codes=["uneven-spacing"]),
    "two slices at one place": Case(make=two_at_one_place, volumes=0, codes=["duplicate-position"]),
    "the same file twice": Case(make=edited(lambda s: s.append(s[2])), repaired=["duplicate-file"]),
    "two series in one folder": Case(make=two_series, volumes=2),
    "a localizer in the series": Case(make=localizer, codes=["localizer"]),
    "two stacks of other orientation": Case(make=two_planes, volumes=2),
    "two echoes": Case(make=twice("EchoNumbers"), volumes=2),
    "two phases": Case(make=twice("TemporalPositionIdentifier"), volumes=2),
    "two b-values": Case(make=twice("DiffusionBValue"), volumes=2),
    "gantry tilt": Case(make=edited(list, modality="CT", shear=(0, 0.5, 0)), volumes=0, codes=["gantry-tilt"]),
    "gantry tilt, repair allowed": Case(
        make=edited(list, modality="CT", shear=(0, 0.5, 0)),
        repairs=["gantry-tilt"],
        repaired=["gantry-tilt"],
        judge=lambda volume: share_off(volume) < 0.35,  # the corners that no slice covers hold no ramp
    ),
    "rescale of each slice its own": Case(make=edited(each(own_slopes))),
    "no rescale": Case(make=edited(list, modality="CT")),
    "MONOCHROME1": Case(make=edited(each(put(PhotometricInterpretation="MONOCHROME1")))),
    "unsigned, 8 bits": Case(make=in_units("u1", 8, 1990)),
    "signed, 8 bits": Case(make=in_units("i1", 8, 2040)),
    "unsigned, 12 bits": Case(make=in_units("u2", 12, 1024)),
    "signed, 12 bits": Case(make=in_units("i2", 12, 2050)),
    "signed, 16 bits": Case(make=in_units("i2", 16, 5000)),
    "unsigned, 32 bits": Case(make=in_units("u4", 32, 0)),
    "padding values": Case(make=edited(each(padded)), judge=lambda volume: share_off(volume) == 2 / 12),
    "radiograph, PixelSpacing": Case(make=radiograph(PixelSpacing=[1.5, 1.0]), slices=1, judge=steps_fit),
    "radiograph, ImagerPixelSpacing": Case(make=radiograph(ImagerPixelSpacing=[1.5, 1.0]), slices=1, judge=steps_fit),
    "radiograph, no spacing": Case(make=radiograph(), volumes=0, codes=["missing-geometry"]),
    "no position and orientation": Case(
        make=edited(each(drop("ImagePositionPatient", "ImageOrientationPatient"))), volumes=0, codes=["missing-geometry"]
    ),
    "no orientation": Case(make=edited(each(drop("ImageOrientationPatient")), orientation=SAGITTAL), volumes=0, codes=["missing-geometry"]),
    "one slice of another size": Case(
        make=edited(lambda s: [setattr(s[7], "Rows", 6), store(s[7], stored(s[6])[:6])]), volumes=0, codes=["mixed-size"]
    ),
    "enhanced multi-frame MR": Case(make=lambda folder: save([enhanced(8)], folder)),
    "enhanced multi-frame CT": Case(make=lambda folder: save([enhanced(8, AXIAL, "CT")], folder)),
    "colour": Case(make=lambda folder: save(coloured(slices()), folder), volumes=0, codes=["colour"]),
    "colour, repair allowed": Case(
        make=lambda folder: save(coloured(slices(RescaleSlope=1, RescaleIntercept=1900)), folder),
        repairs=["colour-to-luminance"],
        repaired=["colour-to-luminance"],
    ),
    "RLE": Case(make=packed(RLELossless)),
    "JPEG baseline": Case(make=packed(JPEGBaseline8Bit, lambda a: imagecodecs.jpeg8_encode(a, level=100), "u1"), judge=nearly),
    "JPEG lossless": Case(make=packed(JPEGLosslessSV1, lambda a: imagecodecs.jpeg8_encode(a, lossless=True, predictor=1))),
    "JPEG-LS": Case(make=packed(JPEGLSLossless)),
    "JPEG 2000": Case(make=packed(JPEG2000Lossless)),
    "HTJ2K": Case(make=packed(HTJ2KLossless, lambda a: imagecodecs.htj2k_encode(a, reversible=True))),
    "deflated": Case(make=packed(DeflatedExplicitVRLittleEndian)),
    "implicit VR": Case(make=lambda folder: save(slices(), folder, syntax=ImplicitVRLittleEndian)),
    "big-endian": Case(make=big_endian),
    "no preamble": Case(make=lambda folder: save(slices(), folder, meta=False)),
    "DICOMDIR and a folder": Case(make=with_directory),
    "reports, plans, presentation states": Case(make=with_objects, codes=["not-an-image"] * 3),
    "zero-byte and other files": Case(make=with_others, codes=["empty-file"]),
    "a truncated slice": Case(make=spoiled(truncate), volumes=0, codes=["incomplete", "truncated"]),
    "a corrupt slice": Case(make=spoiled(corrupt), volumes=0, codes=["incomplete", "truncated"]),
}
