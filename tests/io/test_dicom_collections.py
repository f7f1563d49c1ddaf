"""Other people's collections of odd DICOM files: each is read as pydicom reads it, or refused for the reason in `dicom_files.yaml`."""

from pathlib import Path

import numpy as np
import pydicom
import pydicom.data
import pytest
import SimpleITK as sitk
import yaml
from pydicom.pixels.processing import apply_color_lut

from medsynth.errors import UnreadableImage
from medsynth.io import dicom

EXPECTED = yaml.safe_load((Path(__file__).parent / "dicom_files.yaml").read_text())
COMPRESSED_JPEG = ("1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")
UNDECODED_ELSEWHERE = ("JPEG-lossy.dcm", "JPGExtended.dcm")  # 12 bits: neither pydicom with free decoders nor SimpleITK can


def outcome(path: Path) -> str:
    """``read``, ``other`` for what is no DICOM image, or the code of the refusal of this file taken alone."""
    try:
        headers = dicom.read_headers(path)
        if headers is None:
            return "other"
        found, refusals = dicom.stacks(headers)
        for stack in found:
            dicom.read_stack(stack)
    except UnreadableImage as error:
        return error.code
    return refusals[0].code if refusals else "read"


def reference(path: Path) -> np.ndarray:
    """Pixels by another reader, colour as luminance."""
    data = pydicom.dcmread(path, force=True)
    if data.file_meta.get("TransferSyntaxUID") in COMPRESSED_JPEG and data.SamplesPerPixel == 1:
        rescaled = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        return (rescaled - float(data.get("RescaleIntercept", 0))) / float(data.get("RescaleSlope", 1))
    pixels = data.pixel_array
    if data.PhotometricInterpretation == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, data)[..., :3]
    elif data.SamplesPerPixel == 3 and "YBR" in data.PhotometricInterpretation:
        pixels = pydicom.pixels.pixel_array(path)
    return pixels @ [0.299, 0.587, 0.114] if pixels.shape[-1] == 3 else pixels


def check(root: Path, expected: dict[str, list[str]]) -> None:
    files = [path for path in sorted(root.rglob("*")) if path.is_file() and path.suffix not in (".py", ".pyc")]
    found: dict[str, list[str]] = {}
    wrong = []
    for path in files:
        name = path.relative_to(root).as_posix()
        found.setdefault(outcome(path), []).append(name)
        try:
            headers = dicom.read_headers(path)
            pixels = dicom.read_pixels(path) if headers else None
        except UnreadableImage:
            continue
        if pixels is not None and path.name not in UNDECODED_ELSEWHERE:
            other = reference(path).reshape(pixels.shape)
            if np.abs(pixels - other.astype(float)).max() > (2 if headers[0].colour else 0):  # lossy colour is rounded by each decoder
                wrong.append(name)
    assert not wrong
    assert {code: sorted(names) for code, names in found.items()} == {code: sorted(names) for code, names in expected.items()}
    assert set(found) <= {"read", "other", *dicom.REASONS}


def test_each_file_that_comes_with_pydicom_is_read_alike_or_refused_for_its_reason():
    check(Path(pydicom.data.__file__).parent, EXPECTED["pydicom"])


@pytest.mark.real
def test_each_file_of_the_zoo_is_read_alike_or_refused_for_its_reason(shared_data):
    check(shared_data / "dicom_zoo", EXPECTED["dicom_zoo"])
