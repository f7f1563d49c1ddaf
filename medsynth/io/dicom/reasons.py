"""Why a file or series is not read, what would help, and the repairs that a setting may allow: the vocabulary of all verdicts."""

from collections.abc import Mapping
from dataclasses import dataclass

from medsynth.errors import UnreadableImage


@dataclass(frozen=True)
class Reason:
    what: str
    remedy: str


_AGAIN = "Export it again from the archive, or leave it out."
_SPLIT = "Export the images as series of their own, or leave them out."
_CONVERT = "Convert it with the vendor's or another tool, and judge the result; or leave it out."

REASONS: Mapping[str, Reason] = {
    "empty-file": Reason("The file has no bytes", _AGAIN),
    "not-a-file": Reason("It is a pipe, a socket or a device, not a file", "Take it out of the folder."),
    "link-outside": Reason("It is a link that leads out of the source folder, or nowhere", "Copy what it leads to into the folder."),
    "no-permission": Reason("It may not be read by this user", "Grant the right to read it."),
    "io-error": Reason("The system cannot read it", "Check the disk or the connection, and run again."),
    "unreadable": Reason("It begins like DICOM, but its header cannot be read", _AGAIN),
    "unreadable-folder": Reason("The folder cannot be listed", "Grant the right to list it."),
    "truncated": Reason("It ends before its pixels do, or has none though it says it is an image", _AGAIN),
    "not-an-image": Reason(
        "It is a DICOM object without pixels, such as a report, a plan or a presentation state", "Nothing is to be done: it is no image."
    ),
    "too-large": Reason(
        "Its pixels or its deflated content expand beyond the limit of 2 GiB a volume (128 MiB a deflated file)",
        "Split it, or leave it out.",
    ),
    "unsupported-transfer-syntax": Reason("Its compression is not one that is decoded", _CONVERT),
    "undecodable": Reason("Its compressed pixels cannot be decoded, or do not have the size that its header states", _AGAIN),
    "colour": Reason("It is a colour or palette image", "Allow the repair colour-to-luminance, or leave it out."),
    "supplemental-palette": Reason("Some of its values are grey and others colours of a supplemental palette", _CONVERT),
    "bad-pixels": Reason("Its pixel description (bits, sign, planes) contradicts itself", _CONVERT),
    "segmentation": Reason("It is a segmentation object: a mask of images, and no image", "Read it with the images that it refers to."),
    "multiframe": Reason("It holds several frames without functional groups that place them in space", _CONVERT),
    "enhanced-multiframe": Reason("Its functional groups do not place every frame of one volume in space", _CONVERT),
    "missing-uid": Reason("It has no series or instance UID, so that it cannot be told what belongs together", _AGAIN),
    "mixed-subject": Reason("One series UID is used for several people", "Export these people one by one."),
    "mixed-frame": Reason("One series lies in several frames of reference", _SPLIT),
    "mixed-size": Reason("Slices of one plane differ in rows, columns or pixel spacing", _SPLIT),
    "mixed-orientation": Reason("Slices are turned against each other by a small angle", _SPLIT),
    "mixed-attribute": Reason("Slices of one stack differ in an attribute that makes another image", _SPLIT),
    "incomplete": Reason("One of its files cannot be read, so that the others are not the whole of it", "Export that file again."),
    "uneven-stacks": Reason(
        "Its stacks (echoes, time points, b-values) do not cover the same slices", "Export the series again: slices may be missing."
    ),
    "missing-geometry": Reason("It does not say where its pixels lie: position, orientation or pixel spacing is missing", _AGAIN),
    "bad-geometry": Reason("Its orientation is not orthonormal, or its position or spacing is not a positive finite number", _AGAIN),
    "gantry-tilt": Reason(
        "Its slices are sheared against their normal, as under a tilted gantry", "Allow the repair gantry-tilt, or leave it out."
    ),
    "missing-slice": Reason("A gap between slices is a multiple of the others: slices are missing", _AGAIN),
    "uneven-spacing": Reason("Its slices are not evenly spaced", "Export it again, resample it with another tool, or leave it out."),
    "duplicate-instance": Reason(
        "One instance stands in several files", "If the files are equal, allow the repair duplicate-file; else keep the right one."
    ),
    "duplicate-position": Reason(
        "Several slices lie at one position, and no attribute tells them apart",
        "If their pixels are equal, allow the repair duplicate-slice; else keep the right ones.",
    ),
    "single-slice": Reason("A single slice is no volume; only radiographs are read from one file", _AGAIN),
    "localizer": Reason("It is a localizer", "Nothing is to be done: it shows where slices lie."),
    "mosaic": Reason("It is a mosaic of slices in one frame", _CONVERT),
    "bad-rescale": Reason("Its rescale is not finite, zero, or given for some slices only", _AGAIN),
    "modality-lut": Reason("Its values go through a modality look-up table", _CONVERT),
    "inverted-units": Reason("MONOCHROME1 with physical units (Hounsfield, activity): the polarity contradicts them", _AGAIN),
    "not-finite": Reason("Its pixels hold values that are not finite", _AGAIN),
    "several-volumes": Reason("The files hold more than one volume", "Read them one series at a time."),
    "fractional-segmentation": Reason("It is a fractional segmentation: probabilities, and no labels", "Export it as binary segments."),
    "overlapping-segments": Reason("Its segments overlap, so that a voxel has no one label", "Export the segments one by one."),
    "mask-grid": Reason("It lies on another grid than the image that it belongs to", "Resample it onto the image, or leave it out."),
}

REPAIRS: Mapping[str, str] = {
    "duplicate-file": "one instance in several files of the same header and pixels: one of them is read",
    "duplicate-slice": "slices of the same values at one place: one of them is read",
    "gantry-tilt": "slices of a tilted gantry are shifted within their plane (linear interpolation) onto an orthogonal grid that holds all "
    "of them; voxels outside get the lowest value",
    "colour-to-luminance": "colour becomes luminance, 0.299 R + 0.587 G + 0.114 B (ITU-R BT.601)",
    "padding": "padding (0028,0120) gets the lowest value of the image proper",
}
HARMLESS = ("duplicate-file",)  # what is allowed unless a setting says otherwise


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Files that are not used, and why. All but ``code`` and ``reason`` holds the archive's names and values: it stays in memory."""

    key: str
    files: tuple[str, ...]
    code: str
    reason: str
    series: str = ""  # of a single broken file, where its header still tells
    at: tuple[str, ...] = ()  # the files that the reason is about
    values: str = ""  # what differs between them


def refuse(code: str, detail: str = "") -> UnreadableImage:
    """The error of this code, worded by `REASONS`; ``detail`` holds derived numbers only, no header value."""
    return UnreadableImage(code, worded(code, detail))


def worded(code: str, detail: str = "") -> str:
    return f"{REASONS[code].what}{': ' + detail if detail else ''}. {REASONS[code].remedy}"
