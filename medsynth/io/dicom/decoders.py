"""Who decodes which compression: one decoder a transfer syntax, whatever else is installed, so that pixels are the same everywhere.

All have permissive licences and wheels for Python 3.11 to 3.13: pylibjpeg-openjpeg (JPEG 2000, HTJ2K), pyjpegls (JPEG-LS), pydicom (RLE)
and, as the plugin of pydicom that this module is, libjpeg-turbo through imagecodecs (JPEG baseline, extended with 12 bits, lossless). GDCM
would do too, but importing its wheel takes any folder named ``dl`` on the path for a library of Python's.
"""

import imagecodecs
import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder
from pydicom.pixels.decoders.base import DecodeRunner

_TURBO = "libjpeg-turbo"
_JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1)
DECODER_DEPENDENCIES = dict.fromkeys(_JPEG, ("imagecodecs",))  # pydicom asks each plugin for this
_DECODER = (
    dict.fromkeys((uid.JPEG2000Lossless, uid.JPEG2000, uid.HTJ2KLossless, uid.HTJ2KLosslessRPCL, uid.HTJ2K), "pylibjpeg")
    | dict.fromkeys((uid.JPEGLSLossless, uid.JPEGLSNearLossless), "pyjpegls")
    | dict.fromkeys(_JPEG, _TURBO)
    | {uid.RLELossless: "pydicom"}
)
_AS_STORED = {"colorspace": "YCBCR", "outcolorspace": "YCBCR"}  # the same on both sides: three channels are left as they are


def is_available(syntax: str) -> bool:
    """Whether this plugin decodes the transfer syntax (pydicom asks)."""
    return syntax in _JPEG


def is_decoded(syntax: uid.UID) -> bool:
    """Whether pixels of this transfer syntax are read."""
    return syntax in _DECODER or syntax in (
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
    )


def decode(data: Dataset) -> np.ndarray:
    """The pixels of a data set: ``([frame,] row, column[, sample])``, colour as RGB."""
    syntax = data.file_meta.TransferSyntaxUID
    return get_decoder(syntax).as_array(data, decoding_plugin=_DECODER.get(syntax, ""))[0]


def decode_frame(source: bytes, runner: DecodeRunner) -> bytes:
    """One JPEG frame, for pydicom. What colours mean is Photometric Interpretation's to say, unless an Adobe marker does."""
    marked = b"\xff\xee\x00\x0eAdobe" in source[: source.find(b"\xff\xda")]  # a whole one, before the first scan
    frame = imagecodecs.jpeg8_decode(source, **({} if marked or runner.samples_per_pixel == 1 else _AS_STORED))
    if frame.ndim == 3:
        runner.set_option("planar_configuration", 0)
        if marked:
            runner.set_option("photometric_interpretation", "RGB")
    runner.set_option("bits_allocated", 8 * frame.itemsize)
    return frame.tobytes()


for _syntax in _JPEG:
    get_decoder(_syntax).add_plugin(_TURBO, (__name__, decode_frame.__name__))
