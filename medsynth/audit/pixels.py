"""Can text be read in the synthetic pixels? What stood burned into training images, a model may draw again.

Every case is read by optical character recognition (`medsynth.deidentify.burned_in`), along each axis of a volume. Anatomy, too, is now and
then taken for a word, so each case is read a second time, transposed: there no writing is legible, and whatever is read is a false alarm.
And in every run text is written into synthetic cases, as bright as the training images are, and must be read.

Small pictures can hold no legible writing. A letter needs five pixels of height (of 48 phantoms of 32 to 96 pixels a side with text in
letters of four none was read), and letters burned into medical images take up to a twentieth of the picture's height (12 to 28 of 512
pixels), so that below `LEGIBLE` pixels a side nothing is looked for.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from medsynth.audit.finding import Evidence, Finding, Verdict
from medsynth.audit.level import Level
from medsynth.audit.rates import clopper_pearson, paired_difference
from medsynth.cohort import Case, Cohort
from medsynth.deidentify import burned_in
from medsynth.rng import generator_for

LEGIBLE = 96  # pixels of a picture's shorter side
RECALL = 0.5  # least lower bound of the share of planted texts that are read
READ = 1000  # cases read, drawn where there are more
NAMED = 12  # cases named in the finding


@dataclass(frozen=True, kw_only=True)
class Pixels:
    """The check. ``value`` is the rate of cases with text beyond that of false alarms, ``control`` the rate of false alarms."""

    def __call__(self, evidence: Evidence) -> Finding:
        cohort, level = evidence.synthetic, evidence.level
        planes = _planes(cohort.header.shape)
        if not planes:
            size = " x ".join(map(str, cohort.header.shape))
            why = f"No writing is legible on a grid of {size} voxels: below {LEGIBLE} pixels a side its letters have less than five."
            return _finding("pass", why, level, value=0.0, details={"read": 0})
        if not len(cohort):
            return _finding("inconclusive", "There are no synthetic cases to read.", level)
        if not burned_in.is_installed():
            why = "No program that reads text is installed, so nothing was read. Install tesseract (apt-get install tesseract-ocr)."
            return _finding("inconclusive", why, level)
        order = generator_for(evidence.seed, "read").permutation(len(cohort))
        cases = [sorted(cohort, key=lambda case: case.id)[row] for row in order]
        brightest = _brightest(evidence.train)
        written = [_read(_written(cohort, cases[n % len(cases)], brightest, evidence.seed + n), planes) for n in range(level.plants)]
        read = [(case, *(_read(cohort.pixels(case)[0], planes, turned=turned) for turned in (False, True))) for case in cases[:READ]]
        return _judge(read, sum(written), level)


def _judge(read: list[tuple[Case, bool, bool]], found: int, level: Level) -> Finding:
    n, hits, alarms = len(read), sum(text for _, text, _ in read), sum(alarm for *_, alarm in read)
    both = sum(text and alarm for _, text, alarm in read)
    low, high = paired_difference(both, hits - both, alarms - both, n - hits - alarms + both)
    recall = clopper_pearson(found, level.plants)
    value, high = max((hits - alarms) / n, 0.0), min(high / max(recall[0], 1e-6), 1.0)
    named = sorted(case.id for case, text, _ in read if text)[:NAMED]
    details = {
        "read": n,
        "text": hits,
        "false_alarms": alarms,
        "planted": {"read": found, "of": level.plants, "interval": recall},
        "cases": named,
    }
    seen = f"Words are read in {hits} of {n} synthetic cases and, where none can be, in {alarms}"
    verdict: Verdict = "pass"
    why = f"{seen}; text written into {level.plants} of them was read in {found}."
    if named:
        why += f" A person should look at {', '.join(named)}."
    if high > level.excess:
        verdict, why = "inconclusive", f"{seen}: up to {high:.1%} may hold text, {level.excess:.0%} is allowed. Read more cases."
    if hits > 2 * alarms:  # a reader that errs about as often by itself says nothing; one that does not has read something
        verdict = "inconclusive"
        why = f"{seen}. Look at {', '.join(named)}: if there is text, mask it by source.burned_in=mask and train anew."
    if recall[0] < RECALL:
        verdict = "inconclusive"
        why = f"Of {level.plants} texts written into synthetic cases {found} were read, too few to trust the reader here."
    if low > 0:
        verdict, why = "fail", f"{seen}: the cohort holds text. Take it out of the training images (source.burned_in=mask) and train anew."
    interval = (max(low, 0.0), max(high, value))
    return _finding(verdict, why, level, value=value, interval=interval, control=alarms / n, details=details)


def _planes(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """The planes of a grid, as pairs of axes, that are large enough for writing."""
    pairs = [(a, b) for a in range(len(shape)) for b in range(a + 1, len(shape))]
    return [(a, b) for a, b in pairs if min(shape[a], shape[b]) >= LEGIBLE]


def _pictures(image: np.ndarray, planes: list[tuple[int, int]]) -> Iterator[np.ndarray]:
    """Stacks of pictures (frame, row, column) as a viewer shows them: the axes of RAS+ run from right to left and from bottom to top."""
    for a, b in planes:
        rest = [axis for axis in range(image.ndim) if axis not in (a, b)]
        frames = image.transpose(*rest, b, a).reshape(-1, image.shape[b], image.shape[a])
        yield frames[:, ::-1, ::-1]


def _read(image: np.ndarray, planes: list[tuple[int, int]], *, turned: bool = False) -> bool:
    """Whether a word is read in an image ``(*space)``; ``turned``: transposed, so that no writing is legible."""
    return any(burned_in.find_in_frames(frames.swapaxes(1, 2) if turned else frames) for frames in _pictures(image, planes))


def _brightest(train: Cohort) -> float:
    """How bright writing is: the middle of the training images' largest values, in model units."""
    return float(np.median([train.pixels(case)[0].max() for case in train.cases[:: max(len(train) // 50, 1)]]))


def _written(cohort: Cohort, case: Case, brightness: float, seed: int) -> np.ndarray:
    """The case with two lines of text in a corner of every slice."""
    image = cohort.pixels(case)[0].copy()
    a, b = _planes(image.shape)[0]
    generator = generator_for(seed, "written")
    columns, rows = image.shape[a], image.shape[b]
    size = max(10, columns // 20)
    text = f"ID {generator.integers(1000, 9999)}-{generator.integers(1000, 9999)}\nDOE JANE"
    layer = Image.new("L", (columns, rows), 0)
    ImageDraw.Draw(layer).text((3, int(generator.choice((3, rows - 3 * size)))), text, fill=255, font=ImageFont.load_default(size))
    ink = (np.asarray(layer, np.float32) / 255)[::-1, ::-1].T.reshape([n if axis in (a, b) else 1 for axis, n in enumerate(image.shape)])
    return image + ink * (brightness - image).clip(0)


def _finding(verdict: Verdict, why: str, level: Level, *, value=None, interval=None, control=None, details=None) -> Finding:
    return Finding(
        check="pixels",
        verdict=verdict,
        value=value,
        interval=interval,
        control=control,
        limit=level.excess,
        why=why,
        details=details or {},
    )
