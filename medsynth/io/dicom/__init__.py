"""DICOM series to volumes: no file name is believed, no geometry is guessed.

Files are sniffed by content (`files`), read as `Header` values, one a frame (`headers`), grouped by series and judged (`verdicts`): a group
becomes stacks that are evenly spaced and complete as far as their positions tell, where a named repair of `REPAIRS` is allowed after that
repair, or a refusal with a code of `REASONS`. Nothing is merged, shortened, padded or reordered without a word. `series` and `pixels` read
what was accepted, `segmentations` the masks that refer to it; `decoders` says who decompresses what, and
`journal` lets an interrupted scan go on.

This package is the only reader that knows the LPS axes of DICOM: what it returns is RAS+ millimetres, axes (x along a row, y down a column,
z along the normal), in stored units after the rescale of the modality (PS3.3 C.7.6.2, C.7.6.3, C.11.1).
"""

from medsynth.io.dicom.files import header_texts, is_dicom, is_keyword, open_dataset, parallel, read_full_header
from medsynth.io.dicom.headers import PROJECTION, Found, Header, read_headers, scan
from medsynth.io.dicom.journal import Journal
from medsynth.io.dicom.pixels import read_pixels
from medsynth.io.dicom.reasons import HARMLESS, REASONS, REPAIRS, Refusal, refuse
from medsynth.io.dicom.segmentations import Segmentation, is_segmentation, read_segmentation
from medsynth.io.dicom.series import read_series, read_stack
from medsynth.io.dicom.verdicts import Stack, stacks

__all__ = [
    "HARMLESS",
    "PROJECTION",
    "REASONS",
    "REPAIRS",
    "Found",
    "Header",
    "Journal",
    "Refusal",
    "Segmentation",
    "Stack",
    "header_texts",
    "is_dicom",
    "is_keyword",
    "is_segmentation",
    "open_dataset",
    "parallel",
    "read_full_header",
    "read_headers",
    "read_pixels",
    "read_segmentation",
    "read_series",
    "read_stack",
    "refuse",
    "scan",
    "stacks",
]
