"""A folder of DICOM files as an archive exports it: flat or nested, any names, several people, series that are images, masks or neither.

What a header says becomes a condition (age, sex, diagnosis, class) by a rule that the settings state; a series to which no rule, or more
than one, applies is set aside with its reason. Which files are a volume is decided by `medsynth.io.dicom` alone.
"""

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from medsynth.conditions import Value
from medsynth.data.source import Item, Rejected, Scan
from medsynth.deidentify import burned_in
from medsynth.deidentify.faces import is_head
from medsynth.errors import MedsynthError, SettingsError, UnreadableImage
from medsynth.io import dicom
from medsynth.io.identifiers import identifying_values
from medsynth.volume import Volume

OLDEST = 90.0  # years: higher ages single people out (45 CFR 164.514(b)(2)(i)(C))
SAME_GRID = 0.01  # mm: masks are written with rounded positions
_MODALITY = {"CT": "CT", "MR": "MR"} | dict.fromkeys(dicom.PROJECTION, "DX")
_DEMOGRAPHY = ("PatientAge", "PatientBirthDate", "PatientSex", "StudyDate", "SeriesDate", "AcquisitionDate", "SeriesDescription")
_TOLD = ("BurnedInAnnotation", "ConversionType", "BodyPartExamined", "ProtocolName", "StudyDescription", "SeriesDescription")

Mask = dicom.Stack | dicom.Segmentation


class DicomTree:
    """Every series below ``root``.

    ``modalities`` are DICOM's (CT, MR, CR, ...); none takes all. ``class_from`` names a header attribute, such as ``SeriesDescription``,
    and ``class_map`` the classes that it tells: class to regular expression, searched without regard to case. ``diagnosis_from`` names the
    attribute of the condition ``diagnosis``, or is empty. Series whose description matches ``mask_series`` are label maps of those images
    of their study that lie on the same grid; segmentation objects are label maps of the images that they refer to, all of them or, with
    ``mask_series``, those whose description matches. ``repairs`` are the defects, of `medsynth.io.dicom.REPAIRS`, that are repaired and
    not refused. ``burned_in`` says what becomes of images that show text (keep, reject, mask) and ``faces`` of heads (keep, reject).
    """

    unit = "subject"

    def __init__(
        self,
        root: str,
        licence: str,
        terms: str,
        modalities: Sequence[str] | None = None,
        class_from: str = "",
        class_map: Mapping[str, str] | None = None,
        mask_series: str = "",
        diagnosis_from: str = "AdmittingDiagnosesDescription",
        repairs: Sequence[str] = dicom.HARMLESS,
        burned_in: str = "keep",
        faces: str = "keep",
    ) -> None:
        self.root = root
        self.licence = licence
        self.terms = terms
        self.modalities = modalities
        self.class_from = class_from
        self.class_map = class_map
        self.mask_series = mask_series
        self.diagnosis_from = diagnosis_from
        self.repairs = repairs
        self.burned_in = burned_in
        self.faces = faces

    def scan(self, *, workers: int, journal: dicom.Journal | None = None) -> Scan:
        """Read all headers, judge all series. Raises SettingsError for rules that cannot be applied."""
        if not Path(self.root).is_dir():
            raise MedsynthError(f"source.root={self.root} is not a folder.")
        classes = self._classes()
        keywords = [keyword for keyword in (*_DEMOGRAPHY, *_TOLD, self.class_from, self.diagnosis_from) if keyword]
        found = dicom.scan(self.root, workers=workers, keywords=keywords, journal=journal)
        stacks, refusals = dicom.stacks(found.headers, found.refusals, self.repairs)
        rejected = [Rejected(key=r.key, files=len(r.files), code=r.code, reason=r.reason) for r in (*found.refusals, *refusals)]

        images: list[tuple[dicom.Stack, dict[str, Value]]] = []
        masks: list[Mask] = []
        for stack in stacks:
            try:
                if self._is_mask(stack):
                    masks.append(stack)
                else:
                    self._check_told(stack)
                    images.append((stack, self._condition(stack, classes)))
            except UnreadableImage as error:
                rejected.append(_rejected(stack, error))
        for segmentation in found.segmentations:
            if re.search(self.mask_series, segmentation.text["SeriesDescription"], re.IGNORECASE):
                masks.append(segmentation)
            else:
                error = UnreadableImage("unwanted-mask", "Its description does not match source.mask_series.")
                rejected.append(_rejected(segmentation, error))

        pairs, unused = _pair([stack for stack, _ in images], masks)
        rejected.extend(unused)
        items, unread = self._items(images, pairs, workers)
        return Scan(items=tuple(items), rejected=tuple(rejected + unread), files=found.files, other=found.other)

    def open(self, item: Item) -> Volume:
        """The image and its mask, in stored units. Raises UnreadableImage."""
        image = self._without_text(dicom.read_series(item.files, repairs=self.repairs))
        if not item.mask:
            return image
        if dicom.is_segmentation(item.mask[0]):
            return Volume(image.array, image.affine, dicom.read_segmentation(item.mask[0], image.geometry))
        mask = dicom.read_series(item.mask, repairs=self.repairs)
        if not mask.geometry.is_close(image.geometry, SAME_GRID):
            raise UnreadableImage("mask-grid", "Its mask lies on another grid.")
        labels = mask.array[0]
        if labels.min() < 0 or labels.max() > 255 or (labels != np.rint(labels)).any():
            raise UnreadableImage("mask-values", "Its mask holds values that are no labels (integers from 0 to 255).")
        return Volume(image.array, image.affine, labels.astype(np.uint8))

    def _classes(self) -> dict[str, re.Pattern[str]]:
        if bool(self.class_from) != bool(self.class_map):
            raise SettingsError(
                "source.class_from and source.class_map belong together: an attribute, and the classes that its text tells."
            )
        for name, keyword in (("class_from", self.class_from), ("diagnosis_from", self.diagnosis_from)):
            if keyword and not dicom.is_keyword(keyword):
                raise SettingsError(f"source.{name}={keyword} is no DICOM keyword. Write it as in PS3.6, such as SeriesDescription.")
        if unknown := [name for name in self.repairs if name not in dicom.REPAIRS]:
            raise SettingsError(f"source.repairs: there is no repair {unknown[0]!r}. There are {', '.join(dicom.REPAIRS)}.")
        for name, value, known in (("burned_in", self.burned_in, ("keep", "reject", "mask")), ("faces", self.faces, ("keep", "reject"))):
            if value not in known:
                raise SettingsError(f"source.{name}={value}: it is one of {', '.join(known)}.")
        if self.burned_in == "mask" and not burned_in.is_installed():
            raise SettingsError("source.burned_in=mask needs tesseract. Install it (apt-get install tesseract-ocr), or use reject.")
        try:
            re.compile(self.mask_series)
            return {str(name): re.compile(str(pattern), re.IGNORECASE) for name, pattern in (self.class_map or {}).items()}
        except re.error as error:
            raise SettingsError(
                f"{error.pattern!r} in source.class_map or source.mask_series is no regular expression: {error.msg}."
            ) from error

    def _check_told(self, stack: dicom.Stack) -> None:
        """Raises UnreadableImage where the attributes tell of text in the pixels, or of a head, and the settings do not want such."""
        told = Dataset()
        told.Modality, told.ImageType = stack.headers[0].modality, list(stack.headers[0].image_type)
        for keyword in _TOLD:
            setattr(told, keyword, stack.headers[0].text[keyword])
        suspicion = burned_in.suspicion(told)
        if suspicion and self.burned_in == "reject" and (suspicion.certain or told.BurnedInAnnotation != "NO"):
            raise UnreadableImage("burned-in-text", f"It may show text: {suspicion.why}. Allow it with source.burned_in.")
        if self.faces == "reject" and is_head(told):
            raise UnreadableImage("face", "It shows a head, whose face can be recognised. Allow it with source.faces=keep.")

    def _without_text(self, image: Volume) -> Volume:
        """The image with text masked. Raises UnreadableImage where text is rejected and seen."""
        if self.burned_in == "keep" or not burned_in.is_installed():
            return image
        frames = image.array[0].transpose(2, 1, 0)
        if self.burned_in == "reject" and burned_in.find_in_frames(frames):
            raise UnreadableImage("burned-in-text", "Text is seen in its pixels. Mask it with source.burned_in=mask, or leave it out.")
        clean = burned_in.cleaned(frames) if self.burned_in == "mask" else frames
        return Volume(clean.transpose(2, 1, 0)[None], image.affine, image.mask)

    def _is_mask(self, stack: dicom.Stack) -> bool:
        if not self.mask_series:
            return False
        matches = {bool(re.search(self.mask_series, text, re.IGNORECASE)) for text in _texts(stack, "SeriesDescription")}
        if len(matches) > 1:
            raise UnreadableImage("mask-unclear", "Some of its slices say that they are a mask, others do not.")
        return matches.pop()

    def _condition(self, stack: dicom.Stack, classes: Mapping[str, re.Pattern[str]]) -> dict[str, Value]:
        """What the headers tell about this image. Raises UnreadableImage where it is of no wanted modality or of no one class."""
        first = stack.headers[0]
        if self.modalities is not None and first.modality not in self.modalities:
            raise UnreadableImage("modality", "Its modality is not among source.modalities.")
        if not first.patient:
            raise UnreadableImage("missing-subject", "It has no patient id, so that nobody can tell which images are of one person.")
        condition: dict[str, Value] = {}
        if classes:
            named = {name for text in _texts(stack, self.class_from) for name, pattern in classes.items() if pattern.search(text)}
            untold = any(not any(p.search(text) for p in classes.values()) for text in _texts(stack, self.class_from))
            if not named or untold:
                raise UnreadableImage("no-class", "The attribute of source.class_from matches no class of source.class_map.")
            if len(named) > 1:
                raise UnreadableImage("several-classes", f"The attribute of source.class_from matches {', '.join(sorted(named))}.")
            condition["class"] = named.pop()
        if (age := age_in_years(first.text)) is not None:
            condition["age"] = age
        if first.text["PatientSex"].upper() in ("M", "F", "O"):
            condition["sex"] = first.text["PatientSex"].upper()
        if self.diagnosis_from and (diagnosis := first.text[self.diagnosis_from]):
            condition["diagnosis"] = diagnosis
        return condition

    def _items(self, images: list, pairs: Mapping[str, Mask], workers: int) -> tuple[list[Item], list[Rejected]]:
        root = Path(self.root).resolve()
        firsts = [stack.files[0] for stack, _ in images] + [_files(mask)[0] for mask in pairs.values()]
        firsts = list(dict.fromkeys(firsts))
        named = dict(zip(firsts, dicom.parallel(_identifiers, firsts, workers, "reading identifiers"), strict=True))
        items, rejected = [], []
        for stack, condition in images:
            first = stack.headers[0]
            mask = pairs.get(stack.key)
            try:
                values = [value for part in (stack, mask) if part for value in (*_named(named[_files(part)[0]]), *_uids(part))]
            except UnreadableImage as error:
                rejected.append(_rejected(stack, error))
                continue
            values += [part for part in Path(first.path).relative_to(root).parts[:-1] if not part.isalpha()]
            # what the user asked the cohort to show, and what its terms say: collections carry their own name in their headers
            public = {str(value).casefold() for value in condition.values()}
            stated = f"{self.licence} {self.terms}".casefold()
            items.append(
                Item(
                    key=stack.key,
                    subject=f"{first.patient}@{first.issuer}" if first.issuer else first.patient,
                    modality=_MODALITY.get(first.modality, "OT"),
                    files=stack.files,
                    condition=condition,
                    mask=_files(mask) if mask else (),
                    repairs=stack.repairs,
                    identifiers=tuple(
                        value for value in dict.fromkeys(values) if value.casefold() not in public and value.casefold() not in stated
                    ),
                )
            )
        return items, rejected


def age_in_years(text: Mapping[str, str]) -> float | None:
    """Age at the study in years, at most `OLDEST`, from PatientAge (PS3.5, AS: ``045Y``) or else the birth date; None if neither tells."""
    if match := re.fullmatch(r"(\d{1,3})([DWMY])", text["PatientAge"].upper()):
        years = int(match[1]) / {"D": 365.25, "W": 365.25 / 7, "M": 12.0, "Y": 1.0}[match[2]]
    else:
        born = _date(text["PatientBirthDate"])
        seen = next((day for name in ("StudyDate", "SeriesDate", "AcquisitionDate") if (day := _date(text[name]))), None)
        if born is None or seen is None:
            return None
        # whole years, as PatientAge has them
        years = float(math.floor((seen - born).days / 365.25))
    return min(round(years, 2), OLDEST) if 0 <= years <= 130 else None


def _date(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None


def _texts(stack: dicom.Stack, keyword: str) -> set[str]:
    return {header.text[keyword] for header in stack.headers}


def _files(part: Mask) -> tuple[str, ...]:
    return part.files if isinstance(part, dicom.Stack) else (part.path,)


def _rejected(part: Mask, error: UnreadableImage) -> Rejected:
    key = part.key if isinstance(part, dicom.Stack) else part.instance
    return Rejected(key=key, files=len(_files(part)), code=error.code, reason=str(error))


def _pair(images: Sequence[dicom.Stack], masks: Sequence[Mask]) -> tuple[dict[str, Mask], list[Rejected]]:
    """Mask of each image by key, and the masks that are set aside. Two masks for one image are none: nobody said which."""
    fits: dict[str, list[int]] = defaultdict(list)
    misfits: dict[int, UnreadableImage] = {}
    for number, mask in enumerate(masks):
        for image in _candidates(mask, images):
            try:
                _require_fit(mask, image)
                fits[image.key].append(number)
            except UnreadableImage as error:
                misfits[number] = error
    pairs = {key: masks[numbers[0]] for key, numbers in fits.items() if len(numbers) == 1}
    used = {numbers[0] for numbers in fits.values() if len(numbers) == 1}
    contested = {number for numbers in fits.values() if len(numbers) > 1 for number in numbers}
    rejected = []
    for number, mask in enumerate(masks):
        if number in used:
            continue
        if number in contested:
            error = UnreadableImage("mask-unclear", "Several masks of the study fit the same image.")
        else:
            error = misfits.get(number) or UnreadableImage("mask-without-image", "The images that it belongs to are not there.")
        rejected.append(_rejected(mask, error))
    return pairs, rejected


def _candidates(mask: Mask, images: Sequence[dicom.Stack]) -> list[dicom.Stack]:
    """The images that it may be a mask of, going by what the headers say."""
    if isinstance(mask, dicom.Segmentation):
        return [image for image in images if mask.belongs_to(image.headers[0])]
    return [image for image in images if _study(image) == _study(mask)]


def _study(stack: dicom.Stack) -> tuple[str, ...]:
    first = stack.headers[0]
    return first.patient, first.issuer, first.study


def _require_fit(mask: Mask, image: dicom.Stack) -> None:
    if isinstance(mask, dicom.Segmentation):
        dicom.read_segmentation(mask.path, image.geometry)
    elif not mask.geometry.is_close(image.geometry, SAME_GRID):
        raise UnreadableImage("mask-without-image", "No image of its study lies on its grid.")


def _identifiers(path: str) -> tuple[str, ...] | UnreadableImage:
    try:
        return identifying_values(dicom.read_full_header(path))
    except UnreadableImage as error:
        return error


def _named(outcome: tuple[str, ...] | UnreadableImage) -> tuple[str, ...]:
    if isinstance(outcome, UnreadableImage):
        raise outcome
    return outcome


def _uids(part: Mask) -> list[str]:
    if isinstance(part, dicom.Segmentation):
        return [uid for uid in (part.instance, part.series, part.study) if uid]
    return [uid for header in part.headers for uid in (header.instance, header.series, header.study, header.reference) if uid]
