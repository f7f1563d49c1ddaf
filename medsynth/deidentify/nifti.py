"""NIfTI files and their BIDS sidecars: voxels and their place are kept, every text goes.

The header is written anew from numbers; ``descrip``, ``aux_file``, ``db_name``, ``intent_name``, extensions and the file name and time in
a gzip header have no place in it. Of a JSON sidecar the fields of an allow-list pass, if they hold numbers or known words.
"""

import gzip
import io
import json
import math
import re
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np

from medsynth.deidentify.profile import terms, words
from medsynth.errors import UnreadableImage

MAX_BYTES = 8 << 30  # of one file, unpacked
_NUMBERS = (
    *("dim", "intent_p1", "intent_p2", "intent_p3", "intent_code", "datatype", "bitpix", "slice_start", "pixdim", "scl_slope", "scl_inter"),
    *("slice_end", "slice_code", "xyzt_units", "cal_max", "cal_min", "slice_duration", "toffset", "qform_code", "sform_code", "dim_info"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
_CODED = frozenset(["ScanningSequence", "SequenceVariant", "ScanOptions", "ImageType"])  # coded strings, whose terms may be single letters
SIDECAR = frozenset(
    [
        "Modality",
        "MagneticFieldStrength",
        "ImagingFrequency",
        "BodyPartExamined",
        "PatientPosition",
        "ScanningSequence",
        "SequenceVariant",
        "ScanOptions",
        "MRAcquisitionType",
        "ImageType",
        "NonlinearGradientCorrection",
        "SliceThickness",
        "SpacingBetweenSlices",
        "SAR",
        "EchoTime",
        "EchoTime1",
        "EchoTime2",
        "RepetitionTime",
        "InversionTime",
        "FlipAngle",
        "EchoNumber",
        "EchoTrainLength",
        "SliceTiming",
        "PhaseEncodingDirection",
        "PhaseEncodingAxis",
        "TotalReadoutTime",
        "EffectiveEchoSpacing",
        "BandwidthPerPixelPhaseEncode",
        "PixelBandwidth",
        "DwellTime",
        "AcquisitionMatrixPE",
        "ReconMatrixPE",
        "PercentPhaseFOV",
        "PercentSampling",
        "BaseResolution",
        "ParallelReductionFactorInPlane",
        "MultibandAccelerationFactor",
        "PartialFourier",
        "ImageOrientationPatientDICOM",
        "InPlanePhaseEncodingDirectionDICOM",
        "Manufacturer",
        "Units",
        "KVP",
        "XRayTubeCurrent",
        "ExposureTime",
        "ConvolutionKernel",
        "RepetitionTimeExcitation",
        "RepetitionTimePreparation",
        "NumberOfVolumesDiscardedByScanner",
        "DelayTime",
        "FrameDuration",
        "FrameTimesStart",
        "DecayCorrectionFactor",
        "InjectedRadioactivity",
        "InjectedRadioactivityUnits",
        "ShimSetting",
        "EstimatedTotalReadoutTime",
    ]
)


def clean_volume(path: Path, flat: bool = False) -> bytes:
    """The file's voxels and the numbers of its header, packed if its name ends in ``.gz``.

    ``flat`` takes pictures alone: no header tells whether a volume shows a face. Raises UnreadableImage (``not-nifti``, ``too-large``,
    ``truncated``, ``damaged``, ``face``).
    """
    is_packed = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path, "rb") if is_packed else path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableImage("damaged", f"It cannot be unpacked ({type(error).__name__}).") from None
    if len(content) > MAX_BYTES:
        raise UnreadableImage("too-large", f"It holds more than {MAX_BYTES >> 30} GiB.")
    second = 540 in (int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big"))
    kind = nib.Nifti2Header if second else nib.Nifti1Header
    try:
        given = kind(content[: kind.sizeof_hdr], check=False)
        fresh = kind(endianness=given.endianness)
        for name in _NUMBERS:
            fresh[name] = given[name]
        shape, size = given.get_data_shape(), given.get_data_dtype().itemsize
        assert int(given["bitpix"]) == 8 * size
        assert min(shape) >= 1
        offset, count = int(given["vox_offset"]), int(np.prod(shape, dtype=object)) * size
    except Exception:  # nibabel raises whatever the bytes lead it to
        raise UnreadableImage("not-nifti", "The header is not one of a NIfTI-1 or NIfTI-2 file.") from None
    if given["magic"].tobytes()[:3] not in (b"n+1", b"n+2") or offset < kind.sizeof_hdr:
        raise UnreadableImage("not-nifti", "The file is not a single-file NIfTI-1 or NIfTI-2 image (header and voxels in one file).")
    if flat and sum(length > 1 for length in shape) > 2:
        raise UnreadableImage("face", "It may show a head: no NIfTI header tells. Set faces=keep to take volumes with their faces.")
    voxels = content[offset : offset + count]
    if len(voxels) < count:
        raise UnreadableImage("truncated", "The file ends before its last voxel. Copy it again from its source.")
    fresh["magic"], fresh["vox_offset"] = (b"n+2" if second else b"n+1"), kind.sizeof_hdr + 4
    cleaned = fresh.binaryblock + bytes(4) + voxels
    if not is_packed:
        return cleaned
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", fileobj=buffer, mode="wb", compresslevel=4, mtime=0) as packed:
        packed.write(cleaned)
    return buffer.getvalue()


def clean_sidecar(path: Path) -> bytes:
    """The fields of a BIDS sidecar that hold numbers or known words, as JSON. Raises UnreadableImage (``not-json``)."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        assert isinstance(content, dict)
    except (ValueError, AssertionError, RecursionError):
        raise UnreadableImage("not-json", "It is no JSON object.") from None
    kept = {name: value for name, given in content.items() if name in SIDECAR and (value := _harmless(given, name)) is not None}
    return json.dumps(kept, indent=2, sort_keys=True).encode() + b"\n"


def clean_gradients(path: Path) -> bytes:
    """The numbers of a ``.bval`` or ``.bvec`` file. Raises UnreadableImage (``not-numbers``)."""
    try:
        rows = [[float(number) for number in line.split()] for line in path.read_text(encoding="ascii").splitlines()]
    except ValueError:
        raise UnreadableImage("not-numbers", "It holds something else than numbers.") from None
    return "".join(" ".join(f"{number:.10g}" for number in row) + "\n" for row in rows).encode()


def _harmless(value: object, name: str) -> object:
    """A number, a direction, known words, or a list of such; None for everything else."""
    if isinstance(value, bool) or (isinstance(value, int | float) and math.isfinite(value)):
        return value
    if isinstance(value, str):
        parts = re.findall(r"[^\W_]+", value)
        known = (terms()[""] if name in _CODED else words()).issuperset(map(str.casefold, parts))
        return value if (parts and known) or re.fullmatch(r"[ijk]-?", value) else None
    if isinstance(value, list):
        kept = [_harmless(part, name) for part in value]
        return kept if all(part is not None for part in kept) else None
    return None
