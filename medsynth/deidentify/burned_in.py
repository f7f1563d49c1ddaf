"""Text burned into pixels: said by attributes, or seen by optical character recognition (tesseract, a program of its own).

Before it reads, everything that is no thin stroke among others of its height is taken out of the picture: shading, noise and most of
anatomy. What then looks like writing is enlarged, since tesseract is made for letters of some twenty pixels, and read dark on white.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from pydicom.dataset import Dataset
from scipy import ndimage

from medsynth.errors import MedsynthError, UnreadableImage

CONFIDENCE = 70  # of 100, tesseract's own
LETTERS = 3  # alphanumeric characters of a word that counts
STROKE = 9  # pixels: the pen of a letter is thinner
LOWEST, HIGHEST = 4, 64  # pixels of a letter's height
FAINTEST = 16  # of 255: the least that a letter stands out
MARGIN = 3  # pixels masked around a word
LEGIBLE = 28  # pixels of a letter's height that tesseract reads best: smaller ones are enlarged
FRAMES = 8  # looked at one by one
ROUNDS = 5  # of masking and looking again: what stood beside a word may be legible once the word is gone
TIMEOUT = 120  # seconds for one picture
# Modalities whose pictures are made of screens: ultrasound, secondary capture, other
SCREENS = frozenset({"US", "SC", "OT", "IVUS", "ES", "XC", "DOC"})

Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class Suspicion:
    """Why a data set may show text, by its attributes alone. ``certain``: it says so itself."""

    why: str
    certain: bool


@cache
def is_installed() -> bool:
    return shutil.which("tesseract") is not None


def suspicion(data: Dataset) -> Suspicion | None:
    """What the attributes say (PS3.3 C.7.6.1.1.1, C.8.6.1, C.7.6.1)."""
    given = data.get("ImageType") or []
    image_type = " ".join(str(part).upper() for part in ([given] if isinstance(given, str) else given))
    if str(data.get("BurnedInAnnotation", "")).upper() == "YES":
        return Suspicion("Burned In Annotation (0028,0301) is YES", certain=True)
    if "SCREEN SAVE" in image_type or "SCREEN_SAVE" in image_type or "SCREENSAVE" in image_type:
        return Suspicion("Image Type (0008,0008) says that it is a screen save", certain=True)
    if str(data.get("Modality", "")).upper() in SCREENS:
        return Suspicion("its modality is one of screens and captures", certain=False)
    if str(data.get("ConversionType", "")).upper() in ("DF", "SD", "SI", "DRW", "DV"):
        return Suspicion("Conversion Type (0008,0064) says that it was digitised", certain=False)
    return None


def outside_regions(data: Dataset) -> list[Box]:
    """What of an ultrasound picture lies outside its Sequence of Ultrasound Regions (0018,6011): that is the screen around the image."""
    regions = [
        (int(r.RegionLocationMinX0), int(r.RegionLocationMinY0), int(r.RegionLocationMaxX1), int(r.RegionLocationMaxY1))
        for r in data.get("SequenceOfUltrasoundRegions") or []
    ]
    if not regions:
        return []
    left, top = min(r[0] for r in regions), min(r[1] for r in regions)
    right, bottom = max(r[2] for r in regions) + 1, max(r[3] for r in regions) + 1
    rows, columns = int(data.Rows), int(data.Columns)
    bands = [(0, 0, columns, top), (0, bottom, columns, rows), (0, top, left, bottom), (right, top, columns, bottom)]
    return [(a, b, c, d) for a, b, c, d in bands if c > a and d > b]


def find_in_frames(frames: np.ndarray) -> list[Box]:
    """Boxes of words in frames (frame, row, column) or (frame, row, column, 3) of any type: they hold for all frames.

    Of many frames some are looked at one by one, and the brightest and the darkest of all.
    """
    if len(frames) <= FRAMES:
        pictures = list(frames)
    else:
        spread = np.linspace(0, len(frames) - 1, FRAMES).round().astype(int)
        pictures = [frames.max(axis=0), frames.min(axis=0), *frames[spread]]
    return [box for picture in pictures for box in find(_grey(picture))]


def cleaned(frames: np.ndarray) -> np.ndarray:
    """Frames in which no text is seen any more: where it was, each frame has its lowest value. Raises UnreadableImage (``burned-in-text``)
    where some is seen however much is masked.
    """
    for _ in range(ROUNDS):
        boxes = find_in_frames(frames)
        if not boxes:
            return frames
        frames = masked(frames, boxes)
    raise UnreadableImage("burned-in-text", f"Text is seen in its pixels after {ROUNDS} rounds of masking. Leave it out.")


def masked(frames: np.ndarray, boxes: Sequence[Box]) -> np.ndarray:
    """Frames with these rectangles set to the lowest value of each frame."""
    frames = frames.copy()
    for frame in frames:
        lowest = frame.min()
        for left, top, right, bottom in boxes:
            frame[top:bottom, left:right] = lowest
    return frames


def _grey(frame: np.ndarray) -> np.ndarray:
    """A frame (row, column) or (row, column, 3) as uint8 (row, column), its values stretched over the whole range."""
    image = (frame.max(axis=-1) if frame.ndim == 3 else frame).astype(np.float32)
    low, high = np.percentile(image, (0.1, 99.9))
    return np.zeros(image.shape, np.uint8) if high <= low else np.clip((image - low) * (255 / (high - low)), 0, 255).astype(np.uint8)


def find(image: np.ndarray) -> list[Box]:
    """Boxes of words in a uint8 picture (row, column). Raises MedsynthError where tesseract is not installed or does not answer."""
    if not is_installed():
        raise MedsynthError("tesseract is not installed: no text can be found in pixels. Install it (apt-get install tesseract-ocr).")
    boxes: list[Box] = []
    for shown in (image, 255 - image):
        for strokes, height, ink in _strokes(shown):
            found = _words(255 - strokes, height)
            boxes += [_whole_line(box, ink, height) for box in found]
            if found:
                break
    return boxes


def _whole_line(box: Box, ink: np.ndarray, height: float) -> Box:
    """A word's box with what stands beside it on its line: of a name and a number that touches an edge, only the name may be read."""
    left, top, right, bottom = box
    columns = np.flatnonzero(ink[top:bottom].any(axis=0))
    gap = round(1.5 * height)  # wider than a space between words
    while len(more := columns[(columns >= right) & (columns < right + gap)]):
        right = int(more[-1]) + MARGIN + 1
    while len(more := columns[(columns < left) & (columns >= left - gap)]):
        left = max(int(more[0]) - MARGIN, 0)
    return left, top, right, bottom


def _strokes(image: np.ndarray) -> Iterator[tuple[np.ndarray, float, np.ndarray]]:
    """What in a picture is thin, bright and in pieces of the size of letters that stand in a row, and then, since letters may touch
    something else, all that is thin and bright; with the height of a letter in pixels, and where all that is. Nothing where no letters
    stand in a row: most pictures without text end here, so that they cost no recognition.
    """
    values = image.astype(np.float32)
    thin = values - ndimage.grey_opening(values, (STROKE, STROKE))
    noise = float(np.median(np.abs(values - ndimage.median_filter(values, 3)))) * 1.4826
    ink = thin > max(FAINTEST, 6 * noise)
    labels, _ = ndimage.label(ink, np.ones((3, 3)))
    letters, boxes = [], []
    for number, place in enumerate(ndimage.find_objects(labels), 1):
        height, width = (part.stop - part.start for part in place)
        if LOWEST <= height <= HIGHEST and width <= 8 * height:
            letters.append(number)
            boxes.append((place[0].start, place[0].stop, place[1].start, place[1].stop))
    rows = np.array(boxes, int).reshape(-1, 4)
    in_row = [number for number, place in zip(letters, rows, strict=True) if _neighbours(place, rows) >= LETTERS - 1]
    if not in_row:
        return
    height = float(np.median([place[1] - place[0] for number, place in zip(letters, rows, strict=True) if number in set(in_row)]))
    bright = np.clip(thin * (255 / max(float(thin[ink].mean()), 1)), 0, 255).astype(np.uint8)
    yield np.where(np.isin(labels, in_row), bright, 0).astype(np.uint8), height, ink
    yield np.where(ink, bright, 0).astype(np.uint8), height, ink


def _neighbours(place: np.ndarray, rows: np.ndarray) -> int:
    """How many pieces of a like height stand within a few heights on the same line."""
    top, bottom, left, right = place
    height = bottom - top
    level = np.abs((rows[:, 0] + rows[:, 1]) / 2 - (top + bottom) / 2) < 0.6 * height
    alike = np.abs(rows[:, 1] - rows[:, 0] - height) <= 0.6 * height
    near = np.maximum(rows[:, 2] - right, left - rows[:, 3]) < 3 * height
    return int((level & alike & near).sum()) - 1


def _words(image: np.ndarray, height: float) -> list[Box]:
    scale = int(np.clip(round(LEGIBLE / height), 1, 4))
    large = ndimage.zoom(image, scale, order=1) if scale > 1 else image
    header = f"P5 {large.shape[1]} {large.shape[0]} 255\n".encode()
    command = ["tesseract", "stdin", "stdout", "--psm", "11", "--dpi", "150", "tsv"]
    alone = os.environ | {"OMP_THREAD_LIMIT": "1"}
    try:
        done = subprocess.run(command, input=header + large.tobytes(), capture_output=True, timeout=TIMEOUT, check=True, env=alone)
    except (subprocess.SubprocessError, OSError) as error:
        raise MedsynthError(f"tesseract failed on an image ({type(error).__name__}). Mend its installation.") from None
    boxes = []
    for line in done.stdout.decode("utf-8", "replace").splitlines()[1:]:
        part = line.split("\t")
        if len(part) == 12 and float(part[10]) >= CONFIDENCE and len(re.findall(r"[^\W_]", part[11])) >= LETTERS:
            left, top, width, height = (int(number) for number in part[6:10])
            if height >= LOWEST * scale and width <= large.shape[1] * 0.9:
                right, bottom = (left + width) // scale + MARGIN + 1, (top + height) // scale + MARGIN + 1
                boxes.append((max(left // scale - MARGIN, 0), max(top // scale - MARGIN, 0), right, bottom))
    return boxes
