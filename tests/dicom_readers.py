"""What other readers make of a folder, each called as its own documentation says, as volumes with a RAS+ affine."""

import subprocess
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from medsynth.io.dicom import HARMLESS
from medsynth.io.dicom.inspection import inspect
from medsynth.volume import Volume
from tests.dicom_defects import Case

RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def medsynth(folder: Path, case: Case) -> list[Volume]:
    with TemporaryDirectory() as target:
        inspect(folder, repairs=[*HARMLESS, *case.repairs], volumes=target)
        return _niftis(Path(target))


def pydicom_reader(folder: Path, case: Case) -> list[Volume]:
    from monai.data import PydicomReader

    return _monai(PydicomReader(), folder)


def itk_reader(folder: Path, case: Case) -> list[Volume]:
    from monai.data import ITKReader

    return _monai(ITKReader(), folder)


def _monai(reader: object, folder: Path) -> list[Volume]:
    from monai.transforms import LoadImage

    loaded = LoadImage(reader=reader, image_only=True)(folder)
    return [_volume(loaded.numpy(), loaded.affine.numpy())]


def simpleitk(folder: Path, case: Case) -> list[Volume]:
    import SimpleITK as sitk

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    found = []
    for series in sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder)):
        files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(files)
        image = reader.Execute() if len(files) > 1 else sitk.ReadImage(files[0])
        if image.GetNumberOfComponentsPerPixel() > 1:
            raise Colour
        affine = np.eye(4)
        affine[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
        found.append(_volume(sitk.GetArrayFromImage(image).T, RAS @ affine))
    return found


def dcm2niix(folder: Path, case: Case) -> list[Volume]:
    import dcm2niix

    with TemporaryDirectory() as target:
        subprocess.run([dcm2niix.bin, "-b", "n", "-z", "n", "-o", target, str(folder)], capture_output=True, timeout=60)
        return _niftis(Path(target))


def dicom2nifti(folder: Path, case: Case) -> list[Volume]:
    import dicom2nifti

    with TemporaryDirectory() as target:
        dicom2nifti.convert_directory(str(folder), target)
        return _niftis(Path(target))


READERS: Mapping[str, Callable[[Path, Case], list[Volume]]] = {
    "medsynth": medsynth,
    "MONAI PydicomReader": pydicom_reader,
    "MONAI ITKReader": itk_reader,
    "SimpleITK": simpleitk,
    "dcm2niix": dcm2niix,
    "dicom2nifti": dicom2nifti,
}


class Colour(Exception):
    """The reader returned colour, which no grey ramp can judge."""


def verdict(name: str, case: Case, folder: Path) -> str:
    """``right``, ``refused``, or what is wrong with what came back without an error.

    Right is every volume whole, each voxel in its place; other volumes beside them, such as a localizer, must be in their places too.
    """
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        try:
            found = READERS[name](folder, case)
        except Colour:
            return "as colour"
        except Exception:
            found = []
    if not found:
        return "refused"
    if not all(case.judge(volume) for volume in found):
        return "**wrong**"
    whole, wanted = sum(case.slices in volume.array.shape for volume in found), max(case.volumes, 1)
    return "right" if whole == wanted else f"**{whole} of {wanted}**" if whole else "**in part**"


def _niftis(folder: Path) -> list[Volume]:
    import nibabel as nib

    found = []
    for path in sorted(folder.glob("*.nii*")):
        image = nib.load(path)
        if image.get_data_dtype().fields:
            raise Colour
        array = np.asarray(image.dataobj, np.float32)
        array = array.reshape(*array.shape[:3], -1) if array.ndim > 3 else np.atleast_3d(array)[..., None]
        found += [_volume(array[..., number], image.affine) for number in range(array.shape[-1])]
    return found


def _volume(array: np.ndarray, affine: np.ndarray) -> Volume:
    array = array[..., 0] if array.ndim == 4 and array.shape[-1] == 1 else array
    if array.ndim == 4:
        raise Colour
    return Volume(np.atleast_3d(np.asarray(array, np.float32))[None], np.asarray(affine, float))
