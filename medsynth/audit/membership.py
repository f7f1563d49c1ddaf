"""Can one tell whose images the model was trained on? Two adversaries, and one who must not succeed.

Both hold images of a person. `MembershipCohort` has *the released cohort alone*: where it crowds around images more than other people do,
they look like training images. `MembershipModel` has *the released model*: it asks how well these images are denoised, at several noise
levels, with the same noise for everybody. The split by subject, drawn by the seed before training, is the coin flip that makes members
(training subjects) and others (held-out subjects) alike in all else; validation subjects are left out.

An attack gives each subject one number. What counts is the chance that it tells a member from another (the AUC; one half is guessing), in
either direction, as an attack that is always wrong is as good as one that is always right. Of several attacks the strongest counts, with
an interval that allows for their number.

* *Calibration*: some images are hard for every model. What they alone foretell of an attack's number is taken away, by the distance to
  other people's images, or by regression on features of the image; members and others are treated alike.
* *Baseline*: an attack that sees the images and neither model nor cohort. Where it succeeds, members and others differ in themselves, and
  nothing that the attacks find is known to be about the model.
* *Planted leak*: the attacks must find one that was made on purpose, in this very run.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.special import logsumexp, softmax
from tqdm import tqdm

from medsynth.audit.finding import Evidence, Finding, Model, Verdict, rounded
from medsynth.audit.level import Level
from medsynth.audit.nearest import reduced
from medsynth.audit.rates import Interval, auc, auc_interval, clopper_pearson, rate_above
from medsynth.cohort import Case, Cohort
from medsynth.conditions import Value
from medsynth.features import Texture
from medsynth.rng import generator_for, seed_for

FEWEST = 10  # subjects of either kind: fewer carry no interval worth the name
LEAK = 0.60  # lower bound of the chance to tell members beyond which there is a leak, at every level
FALSE_POSITIVES = (0.01, 0.001)  # rates at which true positives are counted
TRUSTED = 0.01  # smallest p of the baseline with which the attacks are believed
SHUFFLES = 499
FOLDS = 5
MODES = 16  # main ways in which images differ, among the features that the baseline sees
BANDWIDTH = 0.5  # of the kernel density, and distance of a planted copy, in distances between nearest people
VOXELS = 4096  # of an image that is compared
BLOCK = 512  # images whose distances are taken together
PLANTED = 64  # training subjects in a planted leak, at most
LEAN = 0.1  # of a planted leaky model: so much of its output is its training set itself


@dataclass(frozen=True, kw_only=True)
class MembershipCohort:
    """The attack of who holds the released cohort alone (black box). Images are averaged down to at most ``voxels``.

    Two numbers: the calibrated distance to the nearest synthetic case, of the subject's most suspicious image (Chen et al. 2020,
    "GAN-Leaks", Sec. 4.5); and the ratio of the density of synthetic cases to that of other people's images, in the mean over the
    subject's (van Breugel et al. 2023, "DOMIAS", Eq. 2).
    """

    voxels: int = VOXELS

    def __call__(self, evidence: Evidence) -> Finding:
        if missing := _missing(evidence) or _missing_cohort(evidence):
            return _finding("membership_cohort", "inconclusive", missing, evidence, required=True)
        people = People.of(evidence.train.ordered(), evidence.holdout.ordered(), self.voxels)
        drawn = reduced(evidence.synthetic.ordered(), self.voxels)
        chosen = people.some_members(evidence.seed, (len(drawn) + 1) // 2)
        copies = [people.copied(one, generator_for(evidence.seed, "planted copy", one)) for one in chosen]
        found = Attacked(
            held="cohort",
            people=people,
            attacks=people.crowded_by(drawn),
            planted=chosen,
            leak=people.crowded_by(np.concatenate([copies, drawn[len(copies) :]])),
        )
        return found.finding("membership_cohort", evidence, required=True, cases=len(drawn))


@dataclass(frozen=True, kw_only=True)
class MembershipModel:
    """The attack of who holds the released weights (white box): what the denoiser makes of a subject's images.

    At each noise level: the loss (Matsumoto et al. 2023); the size of the noise that one evaluation sees in the clean image ("SimA", 2025);
    and how far that noise, added, is seen again ("PIA", Kong et al. 2024, Eq. 10). One attack is the mean loss, the other weighs all of
    them as tells members from others among other subjects. At most ``subjects`` members and as many others, chosen by the seed, are asked
    about, each with at most ``cases`` images and ``draws`` of the noise.
    """

    subjects: int = 400
    cases: int = 1
    draws: int = 2

    def __call__(self, evidence: Evidence) -> Finding:
        model = evidence.model
        required = model is not None and model.leaves
        missing = _missing(evidence) or ("" if model else "The model that made the cohort is not here to be attacked.")
        if missing or model is None:
            return _finding("membership_model", "inconclusive", missing, evidence, required=required)
        people = People.of(*(self._chosen(cohort, evidence.seed) for cohort in (evidence.train, evidence.holdout)), VOXELS)
        chosen = people.some_members(evidence.seed, PLANTED)
        said, leaking = self._signals(model, people, chosen, evidence.seed)
        calibrated, leaking = (values - people.foretold(values, evidence.seed) for values in (said, leaking))
        found = Attacked(
            held="model",
            people=people,
            attacks=_attacks(calibrated, len(model.levels), people, evidence.seed),
            planted=chosen,
            leak=_attacks(leaking, len(model.levels), people, evidence.seed),
        )
        by_level = {f"{sigma:.3g}": people.told(-calibrated[:, k]) for k, sigma in enumerate(model.levels)}
        return found.finding("membership_model", evidence, required=required, loss_by_level=by_level)

    def _chosen(self, cohort: Cohort, seed: int) -> Cohort:
        """``cases`` images of each of ``subjects`` subjects."""
        own: dict[str, list[Case]] = {}
        for case in sorted(cohort, key=lambda case: seed_for(seed, "asked case", case.id)):
            own.setdefault(case.subject, []).append(case)
        subjects = sorted(own, key=lambda subject: seed_for(seed, "asked subject", subject))[: self.subjects]
        return cohort.where(case for subject in subjects for case in own[subject][: self.cases]).ordered()

    def _signals(self, model: Model, people: "People", planted: Sequence[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Logarithms of loss, size and echo, ``(subject, 3 levels)``: of the model, and of one that leans to the planted subjects."""
        known = np.stack([people.pixels(people.first(one)) for one in planted])
        shape = (len(model.levels) * self.draws, *known.shape[1:])
        noise = generator_for(seed, "membership noise").standard_normal(shape, dtype=np.float32)

        def of(row: int) -> tuple[np.ndarray, np.ndarray]:
            return _said(model, people.pixels(row), people.cases[row].condition, noise, known)

        with model.session(), ThreadPoolExecutor(model.workers) as pool:
            rows = list(tqdm(pool.map(of, range(len(people.cases))), total=len(people.cases), desc="asking the model", leave=False))
        said, leaking = (np.stack(each) for each in zip(*rows, strict=True))
        return people.mean(said), people.mean(leaking)


def _said(
    model: Model, image: np.ndarray, condition: Mapping[str, Value], noise: np.ndarray, known: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What the model, and a leaky one, say to one case; all its evaluations are batches of its own, so no other case can change them."""
    levels = np.asarray(model.levels, np.float32)
    draws = len(noise) // len(levels)

    def denoised(x: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        return model.denoise(x, sigma, condition)

    sigma = np.repeat(levels, draws)
    noised = image + _wide(sigma, noise) * noise
    error = denoised(noised, sigma) - image
    leaning = (1 - LEAN) * error + LEAN * (_recalled(noised, sigma, known) - image)
    clean = np.repeat(image[None], len(levels), axis=0)
    seen = (clean - denoised(clean, levels)) / _wide(levels, clean)
    moved = clean + _wide(levels, clean) * seen[:1]
    echo = (moved - denoised(moved, levels)) / _wide(levels, clean) - seen[:1]
    loss, leaky = (np.square(part).reshape(len(levels), -1).mean(1) for part in (error, leaning))
    size, again = np.square(seen).reshape(len(levels), -1).mean(1), np.square(np.square(echo)).reshape(len(levels), -1).mean(1)
    own, leaking = (np.log(np.concatenate([each, size, again]) + 1e-12) for each in (loss, leaky))
    return own, leaking


def _recalled(noised: np.ndarray, sigma: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The denoiser that has learned these images by heart: their mean, weighted by how likely each is under the noise."""
    known_rows, rows = known.reshape(len(known), -1), noised.reshape(len(noised), -1)
    likely = softmax(-_squared_distances(rows, known_rows) / (2 * sigma[:, None].astype(np.float64) ** 2), axis=1)
    return (likely @ known_rows).reshape(noised.shape).astype(np.float32)


def _wide(sigma: np.ndarray, images: np.ndarray) -> np.ndarray:
    return sigma.reshape(-1, *[1] * (images.ndim - 1))


def _attacks(said: np.ndarray, levels: int, people: "People", seed: int) -> dict[str, np.ndarray]:
    standard = _standard(said)
    return {"loss": -standard[:, :levels].mean(1), "all signals": _predictor(standard, seed) @ people.is_member}


@dataclass(frozen=True, kw_only=True, eq=False)
class People:
    """The cases of members, then of others; ``owner`` is the number of each case's subject, members first. Images are averaged down."""

    cohorts: tuple[Cohort, Cohort]
    images: np.ndarray  # (case, *space)
    owner: np.ndarray
    members: int
    others: int

    @classmethod
    def of(cls, train: Cohort, holdout: Cohort, voxels: int) -> "People":
        members, others = (sorted(set(cohort.subjects)) for cohort in (train, holdout))
        number = {("member", subject): i for i, subject in enumerate(members)}
        number |= {("other", subject): len(members) + i for i, subject in enumerate(others)}
        owner = [number["member", subject] for subject in train.subjects] + [number["other", subject] for subject in holdout.subjects]
        images = np.concatenate([reduced(train, voxels), reduced(holdout, voxels)])
        return cls(cohorts=(train, holdout), images=images, owner=np.array(owner), members=len(members), others=len(others))

    @cached_property
    def cases(self) -> tuple[Case, ...]:
        return (*self.cohorts[0], *self.cohorts[1])

    @cached_property
    def is_member(self) -> np.ndarray:
        return np.repeat([1.0, 0.0], [self.members, self.others])

    def pixels(self, row: int) -> np.ndarray:
        """What a model sees of a case, ``(channel, *space)``."""
        return self.cohorts[row >= len(self.cohorts[0])].pixels(self.cases[row])

    def first(self, subject: int) -> int:
        return int(np.flatnonzero(self.owner == subject)[0])

    def some_members(self, seed: int, count: int) -> list[int]:
        """Members to plant a leak of: at most ``count``, and at most `PLANTED`."""
        return generator_for(seed, "planted members").permutation(self.members)[: min(count, PLANTED)].tolist()

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Of each subject, from values of each case."""
        total = np.zeros((self.members + self.others, *values.shape[1:]))
        np.add.at(total, self.owner, values)
        return total / np.bincount(self.owner).reshape(-1, *[1] * (values.ndim - 1))

    def most(self, values: np.ndarray) -> np.ndarray:
        best = np.full(self.members + self.others, -np.inf)
        np.maximum.at(best, self.owner, values)
        return best

    def told(self, scores: np.ndarray) -> float:
        """The chance that a member's score is the higher one of a pair."""
        return auc(scores[: self.members], scores[self.members :])

    def copied(self, subject: int, generator: np.random.Generator) -> np.ndarray:
        """A subject's image with noise, nearer to it by `BANDWIDTH` than people are to each other."""
        image = self.images[self.first(subject)]
        return image + self._bandwidth / np.sqrt(image.size) * generator.standard_normal(image.shape)

    def crowded_by(self, drawn: np.ndarray) -> dict[str, np.ndarray]:
        """How much nearer drawn images ``(n, *space)`` come than other people's, and how much denser they lie, for each subject."""
        near, density = self._near(drawn.reshape(len(drawn), -1), None)
        near_others, density_others = self._near_others
        return {"nearest": self.most(near_others - near), "density": self.mean(density - density_others)}

    @cached_property
    def _near_others(self) -> tuple[np.ndarray, np.ndarray]:
        return self._near(self._rows, self.owner)

    @cached_property
    def _rows(self) -> np.ndarray:
        return self.images.reshape(len(self.images), -1)

    @cached_property
    def _bandwidth(self) -> float:
        """In the images' units: a share of the median distance between nearest people."""
        nearest = [self._squared(part, self._rows, self.owner).min(1) for part in self._parts]
        return BANDWIDTH * float(np.sqrt(np.median(np.concatenate(nearest))))

    @cached_property
    def _parts(self) -> list[slice]:
        return [slice(start, start + BLOCK) for start in range(0, len(self.images), BLOCK)]

    def _near(self, rows: np.ndarray, owner: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Of each case: log distance to the nearest of these rows, and log density of them. ``owner``: whose they are, as nobody counts as
        his own neighbour."""
        near, density = [], []
        for part in self._parts:
            squared = self._squared(part, rows, owner)
            # copies are at distance 0, which has no logarithm
            near.append(0.5 * np.log(np.maximum(squared.min(1), (1e-3 * self._bandwidth) ** 2)))
            density.append(logsumexp(-squared / (2 * self._bandwidth**2), axis=1) - np.log(np.isfinite(squared).sum(1)))
        return np.concatenate(near), np.concatenate(density)

    def _squared(self, part: slice, rows: np.ndarray, owner: np.ndarray | None) -> np.ndarray:
        squared = _squared_distances(self._rows[part], rows)
        if owner is not None:
            squared[self.owner[part, None] == owner] = np.inf
        return squared

    def foretold(self, values: np.ndarray, seed: int) -> np.ndarray:
        """What the images alone foretell of values of each subject."""
        return self._predictor(seed) @ values

    def baseline(self, seed: int) -> tuple[float, float]:
        """How well the images alone tell members from others, and p: how often they would where membership was shuffled."""
        labels = [self.is_member] + [generator_for(seed, "baseline", i).permutation(self.is_member) for i in range(SHUFFLES)]
        scores = np.round(self._predictor(seed) @ np.stack(labels, axis=1), 9)
        found = [auc(score[label == 1], score[label == 0]) for score, label in zip(scores.T, labels, strict=True)]
        return found[0], (1 + sum(other >= found[0] for other in found[1:])) / (1 + SHUFFLES)

    def _predictor(self, seed: int) -> np.ndarray:
        return _predictor(self._features, seed)

    @cached_property
    def _features(self) -> np.ndarray:
        """Texture and the main modes of each subject's images."""
        rows = self.mean(self._rows)
        modes = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
        return np.concatenate([self.mean(Texture()(self.images[:, None])), (modes.U * modes.S)[:, :MODES]], axis=1)


def _predictor(features: np.ndarray, seed: int) -> np.ndarray:
    """The matrix that turns numbers of subjects into what their features ``(subject, feature)`` foretell of these numbers.

    Ridge regression, cross-fitted: what is foretold of a subject comes from other subjects. It does not know the numbers, nor who is a
    member.
    """
    fold = generator_for(seed, "folds").permutation(len(features)) % FOLDS
    standard = _standard(features)
    matrix = np.zeros((len(features), len(features)))
    for each in range(FOLDS):
        known = fold != each
        middle = standard[known].mean(0)
        x = standard[known] - middle
        weights = np.linalg.solve(x.T @ x + known.sum() * np.eye(x.shape[1]), x.T)
        matrix[np.ix_(~known, known)] = (standard[~known] - middle) @ weights
    return matrix


def _standard(values: np.ndarray) -> np.ndarray:
    """Columns of mean 0 and standard deviation 1; a constant one becomes 0."""
    centred, spread = values - values.mean(0), values.std(0)
    return np.where(spread > 1e-9, centred / np.maximum(spread, 1e-9), 0.0)


def _squared_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return np.maximum((a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T, 0.0)


@dataclass(frozen=True, kw_only=True)
class Told:
    """How well one attack tells members from others, in its better direction; the interval allows for all attacks together."""

    chance: float
    interval: tuple[float, float]
    named: Mapping[str, Mapping[str, Any]]  # true positives by rate of false ones

    @classmethod
    def by(cls, scores: np.ndarray, members: int, attacks: int) -> "Told":
        scores, confidence = np.round(scores, 9), 1 - 0.05 / attacks
        own, other = scores[:members], scores[members:]
        forward = auc(own, other)
        low, high = auc_interval(forward, len(own), len(other), confidence)
        if forward < 0.5:
            own, other = -own, -other
        named = {}
        for rate in FALSE_POSITIVES:
            hits = rate_above(own, other, rate)
            interval = None if hits is None else clopper_pearson(hits, len(own), confidence)
            named[f"{rate:.1%}"] = {"needs": round(1 / rate)} if hits is None else {"named": hits, "of": len(own), "interval": interval}
        return cls(chance=max(forward, 1 - forward), interval=(max(low, 1 - high, 0.5), max(high, 1 - low)), named=named)


@dataclass(frozen=True, kw_only=True, eq=False)
class Attacked:
    """Numbers that attacks gave to each subject, and what they gave where the ``planted`` members had leaked."""

    held: str  # cohort, model
    people: People
    attacks: Mapping[str, np.ndarray]
    planted: Sequence[int]
    leak: Mapping[str, np.ndarray]

    def finding(self, check: str, evidence: Evidence, *, required: bool, cases: int | None = None, **details: Any) -> Finding:
        """The verdict and everything it rests on. ``cases`` are the synthetic ones, where these are attacked."""
        level, people = evidence.level, self.people
        told = {name: Told.by(scores, people.members, len(self.attacks)) for name, scores in self.attacks.items()}
        strongest = max(told, key=lambda name: told[name].chance)
        chance, (low, high) = told[strongest].chance, told[strongest].interval
        leak = self._power()
        baseline, p = people.baseline(evidence.seed)
        first = f"{FALSE_POSITIVES[0]:.1%}"
        counted = {name: each.named[first] for name, each in told.items() if "interval" in each.named[first]}
        named = max((row["interval"][1] for row in counted.values()), default=1.0)
        short = [
            text
            for met, text in (
                (people.others >= level.holdout, f"{people.others} held-out subjects were asked about, {level.holdout} are needed"),
                (cases is None or cases >= level.synthetic, f"there are {cases} synthetic cases, {level.synthetic} are needed"),
                (leak[0] > LEAK, f"a planted leak is not found (told in {leak[0]:.0%} of pairs at least; more than {LEAK:.0%} is needed)"),
                (high <= level.membership, self._too_wide(chance, high, level)),
                (
                    named <= level.named,
                    f"up to {named:.0%} of the training subjects may be named at 1 % false alarms, {level.named:.0%} is allowed",
                ),
            )
            if not met
        ]
        verdict: Verdict = "inconclusive" if short else "pass"
        why = f"Not enough is known: {'; '.join(short)}." if short else level.on_membership(self.held)
        leaked = [row for row in counted.values() if row["interval"][0] > level.named]
        if low > LEAK or leaked:
            verdict = "fail"
            why = (
                f"Who holds the {self.held} tells a training subject from another in {chance:.0%} of pairs (at least {low:.0%}; 50% is "
                f"guessing), by the attack “{strongest}”."
            )
        if leaked:
            why += f" At 1 % false alarms it names {max(row['named'] for row in leaked)} of {people.members} training subjects."
        if p < TRUSTED:
            verdict = "inconclusive"
            why = (
                f"Training and held-out subjects differ in their images alone: these tell them in {baseline:.0%} of pairs (p={p:.2g}), "
                f"without the {self.held}. So the attacks show nothing about it. Split the subjects by lot."
            )
        everything = {
            "adversary": f"holds the released {self.held}" + (" alone" if self.held == "cohort" else ""),
            "unit": evidence.train.header.unit,
            "counts": {"members": people.members, "others": people.others, "real_cases": len(people.cases)},
            "attacks": {name: {"told": each.chance, "interval": each.interval, "named_at": each.named} for name, each in told.items()},
            "strongest": strongest,
            "planted_leak": {"members": len(self.planted), "told_at_least": leak[0], "told_at_most": leak[1]},
            "baseline": {"told": baseline, "p": p},
            "histogram": self._histogram(strongest),
            "short": short,
            **details,
        }
        return _finding(
            check, verdict, why, evidence, required=required, value=chance, interval=(low, high), control=baseline, details=everything
        )

    def _power(self) -> Interval:
        """How well the planted members are told from the others, by the attack that does best."""
        rows = [*self.planted, *range(self.people.members, self.people.members + self.people.others)]
        return max(Told.by(scores[rows], len(self.planted), len(self.leak)).interval for scores in self.leak.values())

    def _too_wide(self, chance: float, high: float, level: Level) -> str:
        """What is said where the bound is too high, with the number of subjects that would do if the chance stays."""
        text = f"members may be told in up to {high:.0%} of pairs, {level.membership:.0%} is allowed"
        confidence, people = 1 - 0.05 / len(self.attacks), self.people

        def enough(times: int) -> bool:
            return auc_interval(chance, times * people.members, times * people.others, confidence)[1] <= level.membership

        times = next((times for times in (2, 3, 5, 10, 20, 50) if enough(times)), None)
        return text + (f"; about {times * people.others} held-out subjects beside {times * people.members} would tell" if times else "")

    def _histogram(self, name: str) -> dict[str, Any]:
        """How the strongest attack's numbers are spread, members beside others."""
        scores = self.attacks[name]
        edges = np.linspace(scores.min() - 1e-6, scores.max() + 1e-6, 21)
        split = {"training subjects": scores[: self.people.members], "held-out subjects": scores[self.people.members :]}
        return {
            "axis": f"what “{name}” says of each subject",
            "edges": edges.tolist(),
            "counts": {group: np.histogram(values, edges)[0].tolist() for group, values in split.items()},
        }


def _missing(evidence: Evidence) -> str:
    """What stops any attack before it starts, or nothing."""
    level = evidence.level
    for cohort, what in ((evidence.train, "training"), (evidence.holdout, "held-out")):
        if (count := len(set(cohort.subjects))) < FEWEST:
            return f"There are {count} {what} subjects, and {FEWEST} are the fewest; level {level.name} needs {level.holdout} held out."
    if evidence.train.header.shape != evidence.holdout.header.shape:
        return "Training and held-out images lie on different grids. Bring them to one."
    return ""


def _missing_cohort(evidence: Evidence) -> str:
    if not len(evidence.synthetic):
        return f"There are no synthetic cases; level {evidence.level.name} needs {evidence.level.synthetic}."
    if evidence.synthetic.header.shape != evidence.train.header.shape:
        return "Real and synthetic images lie on different grids. Bring them to one."
    return ""


def _finding(check: str, verdict: Verdict, why: str, evidence: Evidence, *, required: bool, **found: Any) -> Finding:
    numbers = {"value": None, "interval": None, "control": None, "details": {}} | found
    return Finding(check=check, verdict=verdict, why=why, limit=evidence.level.membership, required=required, **rounded(numbers))
