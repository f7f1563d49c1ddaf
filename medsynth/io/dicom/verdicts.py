"""Verdicts: the frames of a series become stacks that are evenly spaced and complete, or a refusal that says why.

A defect that a named repair mends is repaired where that repair is allowed, and the stack says so.
"""

import math
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from filecmp import cmp
from itertools import combinations

import numpy as np

from medsynth.errors import UnreadableImage
from medsynth.io.dicom.headers import EXPANDED_LIMIT, HARD, SOFT, Header
from medsynth.io.dicom.pixels import in_units, read_pixels
from medsynth.io.dicom.reasons import HARMLESS, Refusal, worded
from medsynth.volume import Geometry

ANGLE = 1e-4  # direction cosines of one plane may differ by their rounding
_MUTE = frozenset({"no-permission", "io-error", "unreadable", "truncated"})  # a file that may be a slice, and does not say of what
Copies = dict[str, tuple[str, str]]  # path: the equal file that is read in its place, and the repair's name
PLANES = math.sin(math.radians(5))  # directions that differ by more are planes of their own


@dataclass(frozen=True, kw_only=True)
class Stack:
    """One volume's headers in the order of its third axis, and its grid."""

    key: str  # SeriesInstanceUID, with ``#2`` and so on where a series is several stacks
    headers: tuple[Header, ...]
    geometry: Geometry
    repairs: tuple[str, ...] = ()  # what was wrong with it, in the words of `REPAIRS`
    copies: tuple[str, ...] = ()  # files that hold what another one of the stack holds
    shear: tuple[float, float] = (0.0, 0.0)  # by how many columns and rows each slice lies further than the one before it

    @property
    def files(self) -> tuple[str, ...]:
        return (*dict.fromkeys(header.path for header in self.headers), *self.copies)


class _Fault(UnreadableImage):
    """A refusal that knows which frames it is about."""

    def __init__(self, code: str, detail: str = "", at: Sequence[Header] = ()) -> None:
        super().__init__(code, worded(code, detail))
        self.at = at


def stacks(
    headers: Iterable[Header], broken: Iterable[Refusal] = (), repairs: Collection[str] = HARMLESS
) -> tuple[list[Stack], list[Refusal]]:
    """Group headers by series and judge each group: every header ends in exactly one stack or one refusal.

    A series of which a ``broken`` file was part is refused: without its last slice it would look whole. Where that file cannot tell its
    series, it is taken for a part of the one series that lies in its folder. ``repairs`` are those of `REPAIRS` that are allowed; to
    compare copies, the pixels of just these files are read.
    """
    headers, broken = list(headers), list(broken)
    torn = {refusal.series for refusal in broken} | _alone_beside(headers, broken)
    groups: dict[tuple[str, str], list[Header]] = defaultdict(list)
    found: list[Stack] = []
    refusals: list[Refusal] = []
    for header in headers:
        if header.series and header.instance:
            groups[header.study, header.series].append(header)
        else:
            refusals.append(_refusal(header.path, [header], _Fault("missing-uid")))
    for (_, series), members in sorted(groups.items()):
        if series in torn and not all(header.projection for header in members):
            refusals.append(_refusal(series, members, _Fault("incomplete")))
            continue
        copies: Copies = {}
        volumes: list[list[Header]] = []
        for part in _planes(sorted(members, key=lambda header: (header.path, header.frame)), refusals, repairs, copies):
            try:
                volumes.extend(_volumes(part, repairs, copies))
            except UnreadableImage as error:
                refusals.append(_refusal(series, part, error, copies))
        for number, volume in enumerate(volumes, 1):
            key = series if number == 1 else f"{series}#{number}"
            try:
                found.append(_with_copies(_stack(key, volume, repairs), copies))
            except UnreadableImage as error:
                refusals.append(_refusal(key, volume, error, copies))
    return found, refusals


def _alone_beside(headers: Iterable[Header], broken: Iterable[Refusal]) -> set[str]:
    """Series that have a folder with such a file to themselves."""
    mute = {os.path.dirname(file) for refusal in broken if refusal.code in _MUTE and not refusal.series for file in refusal.files}
    lying: dict[str, set[str]] = defaultdict(set)
    for header in headers:
        lying[os.path.dirname(header.path)].add(header.series)
    return {series for folder in mute if len(lying[folder]) == 1 for series in lying[folder]}


def _with_copies(stack: Stack, copies: Copies) -> Stack:
    mine = {path: repair for path, (kept, repair) in copies.items() if kept in stack.files}
    return replace(stack, copies=tuple(mine), repairs=tuple(dict.fromkeys((*mine.values(), *stack.repairs))))


def _refusal(key: str, members: Sequence[Header], error: UnreadableImage, copies: Copies | None = None) -> Refusal:
    files = dict.fromkeys(header.path for header in members)
    at = getattr(error, "at", ())
    return Refusal(
        key=key,
        files=(*files, *(path for path, (kept, _) in (copies or {}).items() if kept in files)),
        code=error.code,
        reason=str(error),
        at=tuple(dict.fromkeys(header.path for header in at)),
        values=_values(at or members),
    )


def _values(members: Sequence[Header]) -> str:
    """What differs between these frames, as the headers have it; of a single one, where it says it lies."""
    shown: dict[str, list[object]] = {
        "PatientID": [h.patient for h in members],
        "FrameOfReferenceUID": [h.reference for h in members],
        "Rows x Columns": [f"{h.rows} x {h.columns}" for h in members],
        "PixelSpacing": [h.spacing for h in members],
        "ImageOrientationPatient": [h.orientation for h in members],
        "ImagePositionPatient": [h.position for h in members],
        "BitsStored": [h.bits for h in members],
        "RescaleSlope, RescaleIntercept": [(h.slope, h.intercept) for h in members],
    }
    shown |= {name: [h.hard[i] for h in members] for i, name in enumerate(HARD)}
    shown |= {name: [h.soft[i] for h in members] for i, name in enumerate(SOFT)}
    lines = []
    for name, values in shown.items():
        counts = Counter(map(str, values))
        if len(members) == 1 and name in ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient"):
            lines.append(f"{name} {values[0]}")
        elif 1 < len(counts) <= 4:
            lines.append(f"{name} " + ", ".join(f"{value or 'none'} ({count})" for value, count in counts.most_common()))
        elif 1 < len(counts) < len(members):
            lines.append(f"{name} {len(counts)} values")
    return "; ".join(lines)


def _planes(members: list[Header], refusals: list[Refusal], repairs: Collection[str], copies: Copies) -> Iterator[list[Header]]:
    """The parts of a series that lie in one plane each: copies, colour and localizers set aside, radiographs one by one."""
    series = members[0].series
    try:
        if len({(header.patient, header.issuer) for header in members}) > 1:
            raise _Fault("mixed-subject")
        members = _without_copies(members, repairs, copies)
    except UnreadableImage as error:
        refusals.append(_refusal(series, members, error))
        return
    for code, of_kind in _ASIDE.items():
        if code == "colour" and "colour-to-luminance" in repairs:
            continue
        if aside := [header for header in members if of_kind(header)]:
            refusals.append(_refusal(series, aside, _Fault(code), copies))
            members = [header for header in members if not of_kind(header)]
    if not members:
        return
    if all(header.projection for header in members):
        yield from ([header] for header in members)
        return
    try:
        if len({header.reference for header in members}) > 1:
            raise _Fault("mixed-frame")
        for header in members:
            _check_geometry(header)
        planes = _by_orientation(members)
    except UnreadableImage as error:
        refusals.append(_refusal(series, members, error, copies))
        return
    yield from planes


_ASIDE: Mapping[str, Callable[[Header], bool]] = {
    "colour": lambda header: header.colour,
    "localizer": lambda header: "LOCALIZER" in header.image_type,
    "mosaic": lambda header: "MOSAIC" in header.image_type,
}


def _without_copies(members: list[Header], repairs: Collection[str], copies: Copies) -> list[Header]:
    """Each frame of each instance once. Another file of the same instance must hold the same."""
    kept: dict[tuple[str, int], Header] = {}
    for header in members:
        first = kept.setdefault((header.instance, header.frame), header)
        if first is header:
            continue
        if "duplicate-file" not in repairs or not _is_copy(first, header, copies):
            raise _Fault("duplicate-instance", at=[first, header])
        copies[header.path] = first.path, "duplicate-file"
    return list(kept.values())


def _is_copy(first: Header, other: Header, copies: Copies) -> bool:
    if replace(other, path=first.path, begin=first.begin) != first:
        return False
    known = copies.get(other.path, ("", ""))[0] == first.path  # an earlier frame told
    try:
        return known or cmp(first.path, other.path, shallow=False) or np.array_equal(read_pixels(first.path), read_pixels(other.path))
    except UnreadableImage:
        return False


def _check_geometry(header: Header) -> None:
    if header.orientation is None or header.position is None or header.spacing is None:
        raise _Fault("enhanced-multiframe" if header.frames > 1 else "missing-geometry", at=[header])
    values = np.array([*header.orientation, *header.position, *header.spacing])
    row, column = np.array(header.orientation[:3]), np.array(header.orientation[3:])
    # 1e-3: real scanners round direction cosines to four digits
    askew = abs(row @ row - 1) > 1e-3 or abs(column @ column - 1) > 1e-3 or abs(row @ column) > 1e-3
    if not np.isfinite(values).all() or np.abs(values).max() > 1e5 or min(header.spacing) <= 0 or askew:
        raise _Fault("bad-geometry", at=[header])


def _by_orientation(members: list[Header]) -> list[list[Header]]:
    planes: list[list[Header]] = []
    for header in members:
        for plane in planes:
            apart = np.abs(np.subtract(header.orientation, plane[0].orientation)).max()
            if apart <= ANGLE:
                plane.append(header)
                break
            if apart < PLANES:
                raise _Fault("mixed-orientation", at=[plane[0], header])
        else:
            planes.append([header])
    return planes


def _volumes(part: list[Header], repairs: Collection[str], copies: Copies) -> list[list[Header]]:
    """One plane's headers as one volume, or as several where an attribute tells repeated positions apart."""
    if part[0].projection:
        return [part]
    if len({(h.rows, h.columns, *np.round(h.spacing, 5)) for h in part}) > 1:
        raise _Fault("mixed-size")
    places = _places(part)
    hard = [i for i in range(len(HARD)) if len({h.hard[i] for h in part}) > 1]
    if len(set(places)) == len(part):
        if hard:
            raise _Fault("mixed-attribute", ", ".join(HARD[i] for i in hard))
        return [part]
    soft = [i for i in range(len(part[0].soft)) if len({h.soft[i] for h in part}) > 1]
    for extra in [(), *((i,) for i in soft), *combinations(soft, 2)]:
        groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for number, header in enumerate(part):
            groups[tuple(header.hard[i] for i in hard) + tuple(header.soft[i] for i in extra)].append(number)
        covered = [sorted(places[number] for number in group) for group in groups.values()]
        if len(groups) > 1 and all(cover == covered[0] for cover in covered) and len(set(covered[0])) == len(covered[0]):
            return [[part[number] for number in group] for _, group in sorted(groups.items())]
    by_hard = defaultdict(list)
    for header, place in zip(part, places, strict=True):
        by_hard[tuple(header.hard[i] for i in hard)].append(place)
    told_apart = len(by_hard) > 1 and all(len(set(group)) == len(group) for group in by_hard.values())
    if told_apart:
        raise _Fault("uneven-stacks")
    if "duplicate-slice" not in repairs or hard:
        raise _Fault("duplicate-position", at=_at_one_place(part, places))
    return [_without_equal_slices(part, places, copies)]


def _at_one_place(part: Sequence[Header], places: Sequence[int]) -> list[Header]:
    """All frames of the first place that is taken more than once."""
    place = next(place for place, count in Counter(places).items() if count > 1)
    return [header for header, other in zip(part, places, strict=True) if other == place]


def _without_equal_slices(part: Sequence[Header], places: Sequence[int], copies: Copies) -> list[Header]:
    kept: dict[int, Header] = {}
    for header, place in zip(part, places, strict=True):
        first = kept.setdefault(place, header)
        if first is header:
            continue
        same = header.frames == first.frames == 1 and np.array_equal(*(in_units(read_pixels(h.path)[0], h) for h in (first, header)))
        if not same:
            raise _Fault("duplicate-position", at=[first, header])
        copies[header.path] = first.path, "duplicate-slice"
    return list(kept.values())


def _normal(header: Header) -> np.ndarray:
    normal = np.cross(header.orientation[:3], header.orientation[3:])
    return normal / np.linalg.norm(normal)


def _places(part: Sequence[Header]) -> list[int]:
    """The number of each header's position along the normal: equal for positions within 0.01 mm."""
    along = np.array([header.position for header in part]) @ _normal(part[0])
    order = np.argsort(along, kind="stable")
    steps = np.concatenate([[0], np.cumsum(np.diff(along[order]) > 0.01)])
    places = np.empty(len(part), int)
    places[order] = steps
    return places.tolist()


def _stack(key: str, members: list[Header], repairs: Collection[str]) -> Stack:
    """Order by position on the normal, and judge spacing, shear and values."""
    first = members[0]
    _check_values(members)
    done = []
    if first.colour:
        done.append("colour-to-luminance")
    if "padding" in repairs and any(header.padding for header in members):
        done.append("padding")
    if first.projection:
        return Stack(key=key, headers=tuple(members), geometry=_radiograph(first), repairs=tuple(done))
    if len(members) < 2:
        raise _Fault("single-slice")
    if len(members) * first.rows * first.columns * 4 > EXPANDED_LIMIT:
        raise _Fault("too-large")
    normal = _normal(first)
    members = sorted(members, key=lambda header: float(np.dot(header.position, normal)))
    positions = np.array([header.position for header in members], np.float64)
    gaps = np.diff(positions @ normal)
    gap = float(np.median(gaps))
    tolerance = max(0.01 * gap, 0.01)
    worst = int(np.abs(gaps - gap).argmax())
    if abs(gaps[worst] - gap) > tolerance:
        # in multiples of the smallest, since more gaps than one may be wide
        multiples = gaps / gaps.min()
        missing = multiples.max() > 1.5 and np.abs(multiples - multiples.round()).max() < 0.05
        says = f"slices {worst + 1} and {worst + 2} are {gaps[worst]:.2f} mm apart, the others {gap:.2f} mm"
        raise _Fault("missing-slice" if missing else "uneven-spacing", says, at=members[worst : worst + 2])
    step = (positions[-1] - positions[0]) / (len(members) - 1)
    sideways = np.abs(np.diff(positions, axis=0) - np.outer(gaps, normal)).max(initial=0)
    drift = np.abs(positions - positions[0] - np.outer(np.arange(len(members)), step)).max()
    if drift > tolerance:
        says = f"shifted sideways by {sideways:.2f} mm" if sideways > tolerance else f"positions drift by {drift:.2f} mm"
        raise _Fault("uneven-spacing", f"{says} from an even grid")
    if sideways > tolerance:
        if "gantry-tilt" not in repairs:
            raise _Fault("gantry-tilt", f"shifted sideways by {sideways:.2f} mm a slice")
        return _upright(key, members, step, (*done, "gantry-tilt"))
    # the mean step, not the normal: exact at both ends, so that no rounding adds up over the stack
    return Stack(key=key, headers=tuple(members), geometry=_geometry(first, members[0].position, step, len(members)), repairs=tuple(done))


def _upright(key: str, members: Sequence[Header], step: np.ndarray, repairs: tuple[str, ...]) -> Stack:
    """A sheared stack on the orthogonal grid that holds all of its slices."""
    first, last = members[0], len(members) - 1
    across, down = np.array(first.orientation[:3]), np.array(first.orientation[3:])
    shear = float(step @ across) / first.spacing[1], float(step @ down) / first.spacing[0]
    before = [math.floor(min(0.0, last * by)) for by in shear]  # columns and rows in front of the first slice's
    added = [math.ceil(max(0.0, last * by)) - start for by, start in zip(shear, before, strict=True)]
    position = first.position + across * first.spacing[1] * before[0] + down * first.spacing[0] * before[1]
    if len(members) * (first.rows + added[1]) * (first.columns + added[0]) * 4 > EXPANDED_LIMIT:
        raise _Fault("too-large")
    wide = replace(first, columns=first.columns + added[0], rows=first.rows + added[1])
    normal = _normal(first)
    geometry = _geometry(wide, position, normal * (step @ normal), len(members))
    return Stack(key=key, headers=tuple(members), geometry=geometry, repairs=repairs, shear=shear)


def _check_values(members: Sequence[Header]) -> None:
    first = members[0]
    rescales = [(header.slope, header.intercept) for header in members]
    given = {slope is not None or intercept is not None for slope, intercept in rescales}
    numbers = [value for pair in rescales for value in pair if value is not None]
    if len(given) > 1 or not np.isfinite(numbers).all() or any(slope == 0 for slope, _ in rescales):
        raise _Fault("bad-rescale")
    if len({(header.bits, header.signed) for header in members}) > 1 and first.inverted:
        raise _Fault("bad-pixels")
    if first.inverted and (first.modality in ("CT", "PT") or first.units == "HU"):
        raise _Fault("inverted-units")


def _geometry(header: Header, position: Sequence[float], step: np.ndarray, slices: int) -> Geometry:
    """LPS to RAS+, the only place: the first two axes change their sign (PS3.3 C.7.6.2.1.1; NIfTI-1 quaternion note)."""
    row_spacing, column_spacing = header.spacing
    affine = np.eye(4)
    affine[:3, 0] = np.array(header.orientation[:3]) * column_spacing  # the column index grows along a row
    affine[:3, 1] = np.array(header.orientation[3:]) * row_spacing
    affine[:3, 2] = step
    affine[:3, 3] = position
    return Geometry((header.columns, header.rows, slices), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)


def _radiograph(header: Header) -> Geometry:
    """A projection has no place in the patient: its plane is laid like an axial slice, in millimetres at the detector, third axis 1 mm."""
    if header.spacing is None:
        raise _Fault("missing-geometry")
    if not np.isfinite(header.spacing).all() or not 1e-6 < min(header.spacing) <= max(header.spacing) < 1e5:
        raise _Fault("bad-geometry")
    flat = np.diag([-header.spacing[1], -header.spacing[0], 1.0, 1.0])
    return Geometry((header.columns, header.rows, 1), flat)
