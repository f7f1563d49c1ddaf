"""Does the synthetic cohort hold copies of training cases? A detector with both controls, run anew at every audit.

The detector scores how near a case comes to its nearest training case (`medsynth.audit.nearest`). It is never trusted on its word:

* *negative control*: held-out subjects go through it as if they were synthetic. Some set the threshold (split-conformal), others measure
  the false alarms;
* *positive control*: training cases, copied in every way that a leak is known to take (`medsynth.audit.plants`), must be found. One half
  of them is a rehearsal: where even its hardest copies lie beyond the conformal threshold, the threshold moves up half way to them, as
  nothing is gained by flagging more. The other half measures the recall;
* *never-seen reference*: generated images lie nearer to the middle of a distribution than real ones, so they come nearer to *any* real
  case. The rate of copies is therefore what lies at training subjects beyond what the same cases find at the rest of the held-out
  subjects, times how many training subjects there are for each of them: no training subject is left out, as an equal number would;
* *attraction*: whether training subjects are the nearest of more synthetic cases than another choice of as many subjects would be. It
  needs no threshold, and counts a subject that attracts many cases as one.

A *hard copy* lies nearer to a training case than to any of the reference, and beyond a line that a whole clean cohort crosses once in
twenty times (`_hard_line`). One is enough to fail.

Validation subjects chose the checkpoint: they are neither members nor controls, and are left out.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import pairwise

import numpy as np
from scipy import ndimage
from tqdm import tqdm

from medsynth.audit.finding import Evidence, Finding, Model, Verdict, rounded
from medsynth.audit.level import Level
from medsynth.audit.nearest import References, nearest, pooled, reduced, reduction
from medsynth.audit.plants import UNFORESEEN, kinds, redrawn
from medsynth.audit.rates import (
    calibration_units,
    clopper_pearson,
    conformal_threshold,
    label_share,
    paired_difference,
    units_for_upper_bound,
)
from medsynth.cohort import Case, Cohort
from medsynth.rng import generator_for, seed_for

TRAIN, HOLDOUT = 0, 1  # groups of references
FEWEST = 6  # held-out subjects: fewer make no three parts
BACKGROUND = 300  # training subjects whose distance to each other sets the scale of a view
WORST = 12  # pairs shown in the report
FAMILY = 0.05  # rate at which a clean cohort may hold one hard copy or more
TAIL = 0.1  # share of the cases that cannot be copies from which their tail is judged


@dataclass(frozen=True, kw_only=True)
class Memorization:
    """The check. Images are averaged down to at most ``voxels``; ``candidates`` real cases of each group are compared exactly."""

    voxels: int = 32768
    candidates: int = 16

    def __call__(self, evidence: Evidence) -> Finding:
        missing = _missing(evidence)
        if missing:
            return _finding("inconclusive", missing, evidence.level)
        return judge(self.look(evidence), evidence.level, evidence.seed)

    def look(self, evidence: Evidence) -> "Looked":
        """Score the synthetic cases, the controls and the plants against all real cases, in one search."""
        train, holdout, synthetic = (cohort.ordered() for cohort in (evidence.train, evidence.holdout, evidence.synthetic))
        level, seed = evidence.level, evidence.seed
        members, others, cases = (reduced(cohort, self.voxels) for cohort in (train, holdout, synthetic))
        calibration, test, reference = _divided(holdout, level.division, seed)
        background = _one_a_subject(train, seed)[:BACKGROUND]
        planted, names, sources = _plant(members, cases, train, 2 * level.plants, seed)
        if evidence.model is not None:
            copies, rows = _redrawn(evidence.model, train, 2 * level.plants, seed)
            planted = np.concatenate([planted, pooled(copies, reduction(train.header.shape, self.voxels))])
            names, sources = np.concatenate([names, ["redrawn"] * len(rows)]), np.concatenate([sources, rows])
        never_seen = holdout.where(holdout.cases[i] for i in reference)

        queries = np.concatenate([cases, others[calibration], others[test], members[background], planted])
        names_of = [*train.subjects, *never_seen.subjects]
        number = {subject: i for i, subject in enumerate(dict.fromkeys(names_of))}
        references = References(
            images=np.concatenate([members, others[reference]]),
            groups=np.repeat([TRAIN, HOLDOUT], [len(train), len(never_seen)]),
            subjects=np.array([number[subject] for subject in names_of]),
        )
        sizes = [len(cases), len(calibration), len(test), len(background), len(planted)]
        synthetic_part, calibration_part, test_part, background_part, planted_part = _parts(sizes)
        # A training subject is not its own neighbour; every other case may lie anywhere.
        own = np.full(len(queries), -1)
        own[background_part] = [number[train.subjects[i]] for i in background]
        matches = nearest(queries, references, own=own, candidates=self.candidates)
        score, row = on_one_scale(matches.score, matches.row, background_part)
        return Looked(
            train=train,
            reference=never_seen,
            synthetic=synthetic,
            score=score[synthetic_part],
            row=row[synthetic_part],
            calibration=score[calibration_part, TRAIN],
            test=score[test_part, TRAIN],
            background=score[background_part, TRAIN],
            rehearsal=score[planted_part, TRAIN][::2],
            rehearsed=names[::2],
            plants=score[planted_part, TRAIN][1::2],
            kinds=names[1::2],
            named=np.array([train.subjects[i] == train.subjects[j] for i, j in zip(row[planted_part, TRAIN], sources, strict=True)])[1::2],
            sharpness=sharpness(cases) / max(sharpness(members), 1e-12),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Looked:
    """What the search found. On the scores' scale 0 is a typical training subject's distance to the others, 1 their nearest twentieth."""

    train: Cohort
    reference: Cohort  # held-out cases that stand for everybody whom the model never saw
    synthetic: Cohort
    score: np.ndarray  # (synthetic case, group)
    row: np.ndarray  # of train and reference together, (synthetic case, group)
    calibration: np.ndarray  # held-out subjects against the training cases, that set the threshold
    test: np.ndarray  # others of them, that measure the false alarms
    background: np.ndarray  # training subjects against the other training subjects
    rehearsal: np.ndarray  # planted copies, against the training cases, that may move the threshold
    rehearsed: np.ndarray  # kinds of these
    plants: np.ndarray  # planted copies that measure the recall
    kinds: np.ndarray  # of each of them
    named: np.ndarray  # whether its own subject was found
    sharpness: float  # high-frequency energy, synthetic over training


def judge(looked: Looked, level: Level, seed: int) -> Finding:
    """The verdict and everything it rests on."""
    measured = Measured.of(looked, level, seed)
    short = [text for met, text in _limits(measured, looked, level) if not met]
    verdict: Verdict = "inconclusive" if short else "pass"
    why = level.on_copies if not short else f"Not enough is known: {'; '.join(short)}."
    # Both thresholds are asked: the higher one bounds best what is not there, the lower one sees best what is.
    excess = measured.excess
    found = next((each for each in (measured.sensitive, excess) if each.interval[0] > 0 and each.p < 0.01), None)
    if found:
        verdict = "fail"
        why = (
            f"{found.at_train} of {found.n} synthetic cases lie nearer to a training case than {1 - measured.alpha:.0%} of unseen subjects "
            f"do, against {found.at_holdout} that lie so near to one of {measured.strangers} subjects of the reference: an excess of at "
            f"least {found.interval[0]:.1%}."
        )
    if count := len(measured.hard):
        verdict = "fail"
        why = (
            f"{count} of {excess.n} synthetic cases {'is a near-exact copy' if count == 1 else 'are near-exact copies'} of a training "
            f"case, as near as planted copies and far nearer than any unseen subject."
        )
    interval = (max(excess.interval[0], 0.0), measured.high)
    control = measured.alarms / len(looked.test)
    details = _details(measured, looked) | {"short": short}
    return _finding(verdict, why, level, value=max(excess.rate, 0.0), interval=interval, control=control, details=details)


@dataclass(frozen=True, kw_only=True, eq=False)
class Measured:
    """What follows from a look at this level's rate of false alarms."""

    conformal: float  # the threshold that the calibration subjects set, and the rate that they can hold
    alpha: float
    threshold: float  # that one, or higher
    line: float  # of hard copies
    alarms: int
    false_alarm: tuple[float, float]
    recall: dict[str, dict]
    least: float  # lower bound of the recall, of the kinds that the search was made for
    least_unforeseen: float  # and of the others
    hard: np.ndarray  # synthetic cases, by number
    near: np.ndarray  # those that might be copies
    excess: "Excess"
    sensitive: "Excess"  # at the conformal threshold
    high: float  # upper bound of the rate of copies
    attraction: tuple[float, float, float]  # share, its expectation, p
    members: int
    strangers: int
    held_out: int

    @staticmethod
    def of(looked: Looked, level: Level, seed: int) -> "Measured":
        conformal, alpha = conformal_threshold(looked.calibration, level.alpha)
        threshold = max(conformal, (conformal + _hardest(looked, conformal)) / 2)
        line, n = _hard_line(looked), len(looked.score)
        alarms = int((looked.test > threshold).sum())
        recall = _recall(looked, threshold, line)
        least = _least(recall, False)
        nearer = looked.score[:, TRAIN] > looked.score[:, HOLDOUT]
        excess = _excess(looked, threshold, seed)
        strangers = len(set(looked.reference.subjects))
        return Measured(
            conformal=conformal,
            alpha=alpha,
            threshold=threshold,
            line=line,
            alarms=alarms,
            false_alarm=clopper_pearson(alarms, len(looked.test)),
            recall=recall,
            least=least,
            least_unforeseen=_least(recall, True),
            hard=np.flatnonzero((looked.score[:, TRAIN] > line) & nearer),
            # the lower threshold: a clean case that is drawn anew costs nothing
            near=np.flatnonzero((looked.score[:, TRAIN] > min(conformal, line)) & nearer),
            excess=excess,
            sensitive=_excess(looked, conformal, seed),
            # A control that fires more than its share must not talk the bound below what as many cases without a single hit could show.
            high=min(max(excess.interval[1], clopper_pearson(0, n)[1]) / max(least, 1e-6), 1.0),
            attraction=_attraction(looked, np.ones(n, bool), seed),
            members=len(set(looked.train.subjects)),
            strangers=strangers,
            held_out=len(looked.calibration) + len(looked.test) + strangers,
        )


def _limits(measured: Measured, looked: Looked, level: Level) -> list[tuple[bool, str]]:
    """Of the level: whether each is kept, and what is said where it is not."""
    smooth, sharp = level.sharpness
    share, expected, p = measured.attraction
    n, calibration, test = len(looked.score), len(looked.calibration), len(looked.test)
    bound = measured.false_alarm[1]
    return [
        (measured.held_out >= level.holdout, f"the holdout has {measured.held_out} subjects, {level.holdout} are needed"),
        (n >= level.synthetic, f"there are {n} synthetic cases, {level.synthetic} are needed"),
        (
            measured.alpha <= level.alpha,
            f"{calibration} calibration subjects hold a false alarm rate of {measured.alpha:.1%}; {level.alpha:.1%} needs "
            f"{calibration_units(level.alpha)}, {level.division[0]:.0%} of the holdout",
        ),
        (
            measured.least >= level.recall,
            f"planted copies are not found well enough ({_weakest(measured.recall, False)}; {level.recall:.0%} is needed)",
        ),
        (
            measured.least_unforeseen >= level.unforeseen,
            f"planted copies of a kind that the search does not enumerate are not found well enough ({_weakest(measured.recall, True)}; "
            f"{level.unforeseen:.0%} is needed)",
        ),
        (
            bound <= level.false_alarm,
            f"{measured.alarms} of {test} unseen subjects were taken for copies, so up to {bound:.0%} may be; {level.false_alarm:.0%} is "
            f"allowed, which needs {units_for_upper_bound(level.false_alarm, measured.alarms)} test subjects, {level.division[1]:.0%} of "
            f"the holdout",
        ),
        (
            smooth <= looked.sharpness <= sharp,
            f"the synthetic images hold {looked.sharpness:.2f} times the fine detail of the real ones, so the planted copies are no model "
            f"of copies among them",
        ),
        (
            p >= level.attraction,
            f"{share:.0%} of the synthetic cases lie nearest to a training subject, {expected:.0%} is chance (p={p:.2g})",
        ),
        (
            measured.high <= level.excess,
            f"the rate of copies may be up to {measured.high:.1%}, {level.excess:.0%} is allowed"
            + (_more(measured.excess, measured.least, level) if measured.least >= level.recall else ""),
        ),
    ]


def _details(measured: Measured, looked: Looked) -> dict:
    """For the report: aggregate numbers, and pairs of case ids."""
    n, test = len(looked.score), len(looked.test)
    counts = {"train_subjects": measured.members, "holdout_subjects": measured.held_out, "synthetic": n, "train_cases": len(looked.train)}
    counts |= {"calibration_subjects": len(looked.calibration), "test_subjects": test, "reference_subjects": measured.strangers}
    return {
        "unit": looked.train.header.unit,
        "counts": counts,
        "alpha": measured.alpha,
        "threshold": measured.threshold,
        "conformal_threshold": measured.conformal,
        "hard_line": measured.line,
        "hard_copies": {"count": len(measured.hard), "interval": clopper_pearson(len(measured.hard), n), "of_clean_cohorts": FAMILY},
        "copies": [looked.synthetic.cases[i].id for i in measured.near],  # what `sampling.reject` draws anew
        "subjects_hit": measured.excess.subjects_hit,
        "false_alarm": {"flagged": measured.alarms, "n": test, "interval": measured.false_alarm},
        "recall": measured.recall,
        "excess": measured.excess.as_json(),
        "excess_at_conformal_threshold": measured.sensitive.as_json(),
        "attraction": dict(zip(("share", "expected", "p"), measured.attraction, strict=True)),
        "sharpness": looked.sharpness,
        "duplicates_in_training": int((looked.background > measured.line).sum()),
        "holdout_near_training": int((np.concatenate([looked.calibration, looked.test]) > measured.line).sum()),
        "pairs": _worst(looked, measured.line),
        "histogram": _histogram(looked),
    }


def _missing(evidence: Evidence) -> str:
    """What stops the audit before it starts, or nothing."""
    unseen, level = len(set(evidence.holdout.subjects)), evidence.level
    needs = f"Level {level.name} needs {level.holdout} held-out subjects and {level.synthetic} synthetic cases."
    if unseen < FEWEST:
        return f"Without held-out subjects nothing says what is near by chance: there are {unseen}. {needs}"
    if len(set(evidence.train.subjects)) < 2:
        return f"The training set has {len(set(evidence.train.subjects))} subject: nothing to compare it with. {needs}"
    if len(evidence.synthetic) == 0:
        return f"There are no synthetic cases. {needs}"
    shapes = {cohort.header.shape for cohort in (evidence.train, evidence.holdout, evidence.synthetic)}
    if len(shapes) > 1:
        return f"The cohorts lie on different grids: {', '.join(str(shape) for shape in sorted(shapes))} voxels. Bring them to one."
    return ""


def _one_a_subject(cohort: Cohort, seed: int) -> list[int]:
    """Rows of one case a subject, subjects in an order drawn by the seed: a subject's many slices are no independent evidence."""
    rows: dict[str, list[int]] = {}
    for row, case in enumerate(cohort):
        rows.setdefault(case.subject, []).append(row)
    order = sorted(rows, key=lambda subject: seed_for(seed, "audit order", subject))
    return [min(rows[subject], key=lambda row: seed_for(seed, "audit case", cohort.cases[row].id)) for subject in order]


def _divided(holdout: Cohort, shares: tuple[float, float, float], seed: int) -> tuple[list[int], list[int], list[int]]:
    """Rows of the cases that calibrate, test and stand for the never seen. Parts share no subject; the first two take one case of each."""
    order = _one_a_subject(holdout, seed)
    first, second = (round(share * len(order)) for share in np.cumsum(shares)[:2])
    strangers = {holdout.subjects[row] for row in order[second:]}
    return order[:first], order[first:second], [row for row, subject in enumerate(holdout.subjects) if subject in strangers]


def _parts(sizes: Sequence[int]) -> list[slice]:
    """Where each of several parts lies that were put one behind the other."""
    ends = [0, *np.cumsum(sizes).tolist()]
    return [slice(start, end) for start, end in pairwise(ends)]


def _plant(members: np.ndarray, cases: np.ndarray, train: Cohort, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """``count`` copies of every kind: images, their kinds, and the rows of the training cases they are made of.

    Partial copies and mixtures are made with the synthetic ``cases``.
    """
    images, names, sources = [], [], []
    for name, plant in kinds(members.shape[1:]).items():
        rows = _one_a_subject(train, seed_for(seed, "plant", name))
        for number in range(count):
            row, generator = rows[number % len(rows)], generator_for(seed, "plant", name, number)
            copy = plant(members[row], cases[generator.integers(len(cases))], generator)
            images.append(np.ascontiguousarray(copy, dtype=np.float32))
            names.append(name)
            sources.append(row)
    return np.stack(images), np.array(names), np.array(sources)


def _redrawn(model: Model, train: Cohort, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` training cases, each drawn again by the model from a little noise, ``(count, *space)``, and their rows."""
    order = _one_a_subject(train, seed_for(seed, "plant", "redrawn"))
    rows = np.array([order[number % len(order)] for number in range(count)])

    def one(number: int) -> np.ndarray:
        case = train.cases[rows[number]]
        return redrawn(model, train.pixels(case), case.condition, generator_for(seed, "plant", "redrawn", number))[0]

    with model.session(), ThreadPoolExecutor(model.workers) as pool:
        return np.stack(list(tqdm(pool.map(one, range(count)), total=count, desc="near-duplicates of the model", leave=False))), rows


def on_one_scale(score: np.ndarray, row: np.ndarray, background: slice) -> tuple[np.ndarray, np.ndarray]:
    """The better of all views for each query and group, ``(query, group)``.

    Each view is scaled by how near training subjects lie to each other: 0 at the median, 1 at the nearest twentieth. The scale comes from
    the training set alone, so calibration and test subjects stay exchangeable.
    """
    own = score[:, background, TRAIN]
    middle, near = np.median(own, axis=1), np.quantile(own, 0.95, axis=1)
    spread = np.maximum(near - middle, 0.02)  # a view in which all subjects are equally near is not allowed to shout
    scaled = (score - middle[:, None, None]) / spread[:, None, None]
    best = scaled.argmax(0)
    return np.take_along_axis(scaled, best[None], 0)[0], np.take_along_axis(row, best[None], 0)[0]


def _hard_line(looked: Looked) -> float:
    """The score from which on a case is a near-exact copy.

    A clean cohort of this size crosses it with probability `FAMILY`, judged by what cannot be a copy: held-out subjects near training
    cases, and synthetic cases near the reference. Their largest tenth is taken for an exponential tail, which is heavier than that of
    correlations (peaks over a threshold, Pickands 1975). Where nine of ten planted copies with mild noise or blur lie farther out, the line
    moves half way up to them, as nothing is gained by a lower one.
    """
    mild = min(np.quantile(looked.plants[looked.kinds == kind], 0.1) for kind in ("noise", "blur"))
    # The reference, being smaller, lies farther off on the whole. At most by one unit: what copies differ by is far more.
    fewer = np.clip(np.median(looked.score[:, TRAIN]) - np.median(looked.score[:, HOLDOUT]), 0, 1)
    cannot = np.concatenate([looked.calibration, looked.score[:, HOLDOUT] + fewer])
    start = np.quantile(cannot, 1 - TAIL)
    beyond = cannot[cannot > start] - start
    family = start + (beyond.mean() if len(beyond) else 0.0) * np.log(TAIL * len(looked.score) / FAMILY)
    family = max(family, cannot.max())
    return float(max(family, (family + mild) / 2))


def _hardest(looked: Looked, conformal: float) -> float:
    """How near the hardest rehearsed copies come: all of each kind that the search was made for, and nine of ten of any other.

    Of the others, a kind that lies below the threshold anyway does not count.
    """
    kinds_of = {kind: looked.rehearsal[looked.rehearsed == kind] for kind in sorted(set(looked.rehearsed.tolist()))}
    made_for = [scores.min() for kind, scores in kinds_of.items() if kind not in UNFORESEEN]
    others = [np.quantile(scores, 0.1) for kind, scores in kinds_of.items() if kind in UNFORESEEN]
    return float(min([*made_for, *(score for score in others if score > conformal)]))


def _recall(looked: Looked, threshold: float, line: float) -> dict[str, dict]:
    rows = {}
    for kind in dict.fromkeys(looked.kinds.tolist()):
        own = looked.kinds == kind
        found = int((looked.plants[own] > threshold).sum())
        rows[kind] = {
            "found": found,
            "planted": int(own.sum()),
            "interval": clopper_pearson(found, int(own.sum())),
            "source_named": int((looked.named & (looked.plants > threshold))[own].sum()),
            "hard": int((looked.plants[own] > line).sum()),
            "unforeseen": kind in UNFORESEEN,
        }
    return rows


def _least(recall: dict[str, dict], unforeseen: bool) -> float:
    """Lower bound of the recall of the kind that is found worst."""
    return min(row["interval"][0] for row in recall.values() if row["unforeseen"] == unforeseen)


def _weakest(recall: dict[str, dict], unforeseen: bool) -> str:
    kind = min((name for name in recall if recall[name]["unforeseen"] == unforeseen), key=lambda name: recall[name]["interval"][0])
    return f"{kind}: {recall[kind]['found']} of {recall[kind]['planted']}, at least {recall[kind]['interval'][0]:.0%}"


@dataclass(frozen=True, kw_only=True)
class Excess:
    """Synthetic cases beyond a threshold, by whether a training or a held-out subject is nearest, of ``n``.

    ``weight`` is the number of training subjects a held-out one: chance gives training subjects so many times the matches.
    """

    at_train: int
    at_holdout: int  # at the reference
    n: int
    weight: float
    subjects_hit: int
    p: float  # of training subjects attracting so many of the flagged cases by chance

    @property
    def rate(self) -> float:
        return (self.at_train - self.weight * self.at_holdout) / self.n

    @property
    def interval(self) -> tuple[float, float]:
        return paired_difference(0, self.at_train, self.at_holdout, self.n - self.at_train - self.at_holdout, weight=self.weight)

    def as_json(self) -> dict:
        return {**asdict(self), "rate": self.rate, "interval": self.interval}


def _excess(looked: Looked, threshold: float, seed: int) -> Excess:
    flagged = looked.score.max(1) > threshold
    towards_train = looked.score[:, TRAIN] >= looked.score[:, HOLDOUT]
    return Excess(
        at_train=int((flagged & towards_train).sum()),
        at_holdout=int((flagged & ~towards_train).sum()),
        n=len(looked.score),
        weight=len(set(looked.train.subjects)) / len(set(looked.reference.subjects)),
        subjects_hit=len({looked.train.subjects[i] for i in looked.row[flagged & towards_train, TRAIN]}),
        p=_attraction(looked, flagged, seed)[2],
    )


def _more(excess: Excess, recall: float, level: Level) -> str:
    """How many synthetic cases would bring the bound below the limit, if the rates stay; nothing where none would."""

    def enough(times: int) -> bool:
        larger = replace(excess, n=times * excess.n, at_train=times * excess.at_train, at_holdout=times * excess.at_holdout)
        return larger.interval[1] / recall <= level.excess

    times = next((times for times in (2, 3, 5, 10, 20, 50) if enough(times)), None)
    return f"; about {times * excess.n} synthetic cases would tell, if the rates stay" if times else ""


def _attraction(looked: Looked, counted: np.ndarray, seed: int) -> tuple[float, float, float]:
    """Share of the counted synthetic cases whose nearest subject is a training subject, its expectation, and p."""
    nearest_group = np.where(looked.score[:, TRAIN] >= looked.score[:, HOLDOUT], TRAIN, HOLDOUT)
    rows = looked.row[np.arange(len(nearest_group)), nearest_group][counted]
    real = [*looked.train.subjects, *looked.reference.subjects]
    members = set(looked.train.subjects)
    order = sorted(set(real))
    counts = dict.fromkeys(order, 0)
    for row in rows:
        counts[real[row]] += 1
    member = np.array([subject in members for subject in order])
    return label_share(np.array(list(counts.values())), member, generator=generator_for(seed, "attraction"))


def _worst(looked: Looked, line: float) -> list[dict]:
    """The synthetic cases that lie nearest to a training case, with both neighbours."""
    real: Sequence[Case] = [*looked.train.cases, *looked.reference.cases]
    order = np.argsort(-looked.score[:, TRAIN], kind="stable")[:WORST]
    return [
        {
            "synthetic": looked.synthetic.cases[i].id,
            "train": real[looked.row[i, TRAIN]].id,
            "train_score": float(looked.score[i, TRAIN]),
            "holdout": real[looked.row[i, HOLDOUT]].id,
            "holdout_score": float(looked.score[i, HOLDOUT]),
            "hard_copy": bool(looked.score[i, TRAIN] > line),
        }
        for i in order
    ]


def _histogram(looked: Looked) -> dict:
    groups = {
        "synthetic to training": looked.score[:, TRAIN],
        "synthetic to reference": looked.score[:, HOLDOUT],
        "holdout to training": np.concatenate([looked.calibration, looked.test]),
        "planted copies": looked.plants,
    }
    everything = np.concatenate(list(groups.values()))
    edges = np.linspace(everything.min() - 1e-6, everything.max() + 1e-6, 41)
    return {"edges": edges.tolist(), "counts": {name: np.histogram(values, edges)[0].tolist() for name, values in groups.items()}}


def sharpness(images: np.ndarray) -> float:
    """Mean energy of what a Gaussian of one voxel removes."""
    fine = [image - ndimage.gaussian_filter(image, 1.0, mode="nearest") for image in images]
    return float(np.mean([np.square(image).mean() for image in fine]))


def _finding(verdict: Verdict, why: str, level: Level, *, value=None, interval=None, control=None, details=None) -> Finding:
    return Finding(
        check="memorization",
        verdict=verdict,
        value=rounded(value),
        interval=rounded(interval),
        control=rounded(control),
        limit=level.excess,
        why=why,
        details=rounded(details or {}),
    )
