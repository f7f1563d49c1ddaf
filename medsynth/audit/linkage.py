"""What does the table of attributes tell of one person? The three risks of the Article 29 Working Party (WP216), each as an attack.

The attributes of a synthetic case (class, age, sex, as they stand in the released table) are made from those of training subjects. Three
attackers use them, and each plays against training subjects and, as a control, against held-out subjects whom the table cannot know:

* *singling out*: a predicate that is true of one synthetic record alone, of one attribute or of several, is true of one person alone;
* *linkability*: who holds two files about the same people, with half of the attributes each, joins a person's two records where both are
  nearest to the same synthetic one;
* *inference*: who knows all attributes of a person but one reads it off the nearest synthetic record.

The risk is what an attack gains over its control, ``(attack - control) / (1 - control)``. Each attack is also made with the training table
itself, as if that were released, and by guessing: with a table whose columns were shuffled. Where even the training table tells no more
than a guess, an attack can tell nothing about these attributes, and does not count (``idle``); singling out always counts.

Beside the attacks stands a rule that needs no statistics. Classes are handed on as they are, so a combination of classes that a case
shares with training subjects must be shared by at least k of them. A number, such as an age, is blurred before it is handed on
(`medsynth.stages.sample.plan`) and meets a real one by chance too; whether more often than by chance is what the attacks tell.

Units are subjects: of a subject with several records one is drawn, and it is singled out where any of them is.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from medsynth.audit.finding import Evidence, Finding, Verdict
from medsynth.audit.level import Level
from medsynth.audit.rates import residual_risk
from medsynth.cohort import Case, Cohort
from medsynth.rng import generator_for, seed_for

GUESSES = 4000  # predicates tried
NEAR = 0.05  # of a number's range: guessed so closely, it is guessed
SURE = 0.99  # confidence, over all attacks together, that makes a gain a failure
NEVER, MISSING = -1.0, -2.0  # a class that no synthetic case has; none given
AT_ONCE = 256  # targets, or predicates, compared at a time


@dataclass(frozen=True, kw_only=True)
class Linkage:
    """The check. ``value`` is the risk of the attack whose upper bound is highest, ``control`` its success on held-out subjects."""

    def __call__(self, evidence: Evidence) -> Finding:
        level, cohorts = evidence.level, (evidence.synthetic, evidence.train, evidence.holdout)
        columns = _columns(cohorts)
        details = {"attributes": [column.name for column in columns]}
        if not columns:
            return _finding("pass", "No table of attributes leaves: there are 0 attributes.", level, value=0.0, details=details)
        members, unseen = len(set(evidence.train.subjects)), len(set(evidence.holdout.subjects))
        if min(members, unseen) < level.holdout:
            why = (
                f"{len(columns)} attributes leave, and {members} training and {unseen} held-out subjects are too few to tell what these "
                f"say of a person: level {level.name} needs {level.holdout} of each."
            )
            return _finding("inconclusive", why, level, details=details)
        table, train, holdout = (_Table.of(cohort, columns) for cohort in cohorts)
        return _judge(_attacks(table, train, holdout, evidence.seed), _rare(table, train, level.k), len(table), level, details)


# ------------------------------------------------------------------------------------------------------------------------------ the table


@dataclass(frozen=True, kw_only=True)
class _Column:
    """One attribute of the released table: a class with its ``classes``, or a number with the ``span`` and ``digits`` it is written in."""

    name: str
    classes: tuple[str, ...] = ()
    span: float = 0.0
    digits: int = 6

    def number(self, case: Case) -> float:
        """The case's value: a class by its place, a number rounded as the synthetic ones are."""
        value = case.condition.get(self.name)
        if self.classes:
            return MISSING if value is None else float(self.classes.index(str(value))) if str(value) in self.classes else NEVER
        return float("nan") if value is None else round(float(value), self.digits)

    def apart(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """How far values lie apart, 0..1, numbers in their range; a missing number is as far as can be from any other."""
        if self.classes:
            return (a != b).astype(np.float64)
        distance = np.minimum(np.abs(a - b) / self.span, 1.0)
        return np.where(np.isnan(a) & np.isnan(b), 0.0, np.nan_to_num(distance, nan=1.0))


def _columns(cohorts: Sequence[Cohort]) -> list[_Column]:
    """The attributes of the first cohort, which leaves; one is a number where all cohorts say so."""
    columns = []
    for name in sorted({name for case in cohorts[0] for name, value in case.condition.items() if value is not None}):
        values = [case.condition[name] for cohort in cohorts for case in cohort if case.condition.get(name) is not None]
        released = [case.condition[name] for case in cohorts[0] if case.condition.get(name) is not None]
        if all(isinstance(value, int | float) for value in values):
            digits = 0 if all(float(value).is_integer() for value in released) else 6
            columns.append(_Column(name=name, span=float(max(released) - min(released)) or 1.0, digits=digits))
        else:
            columns.append(_Column(name=name, classes=tuple(sorted(set(map(str, released))))))
    return columns


@dataclass(frozen=True, kw_only=True, eq=False)
class _Table:
    """The distinct records of each subject, ``values`` ``(record, attribute)``, in an order that is not the manifest's."""

    columns: Sequence[_Column]
    values: np.ndarray
    subjects: np.ndarray

    @classmethod
    def of(cls, cohort: Cohort, columns: Sequence[_Column]) -> "_Table":
        rows = {(case.subject, *(column.number(case) for column in columns)) for case in cohort}
        ordered = sorted(rows, key=repr)
        values = np.array([row[1:] for row in ordered], np.float64).reshape(len(rows), len(columns))
        return cls(columns=columns, values=values, subjects=np.array([row[0] for row in ordered]))

    def __len__(self) -> int:
        return len(self.values)

    def one_each(self, seed: int) -> "_Table":
        """One record a subject, drawn."""
        rows: dict[str, int] = {}
        for row in generator_for(seed, "record of a subject").permutation(len(self)):
            rows.setdefault(self.subjects[row], row)
        chosen = np.array(sorted(rows.values()))
        return _Table(columns=self.columns, values=self.values[chosen], subjects=self.subjects[chosen])

    def shuffled(self, seed: int) -> "_Table":
        """The same columns, each in an order of its own: what is left is how often a value occurs."""
        columns = [
            self.values[generator_for(seed, "shuffle", number).permutation(len(self)), number] for number in range(len(self.columns))
        ]
        return _Table(columns=self.columns, values=np.stack(columns, axis=1), subjects=self.subjects)

    def matching(self, predicates: np.ndarray) -> np.ndarray:
        """Whether a record of the subject meets the predicate, ``(predicate, subject)``; subjects in their order here."""
        starts = np.flatnonzero(np.r_[True, self.subjects[1:] != self.subjects[:-1]])
        met = np.ones((len(predicates), len(self)), bool)
        for number in range(len(self.columns)):
            low, high = predicates[:, number, :1], predicates[:, number, 1:]
            asked = np.isfinite(low) | np.isfinite(high)
            met &= ~asked | ((self.values[:, number] >= low) & (self.values[:, number] <= high))
        return np.logical_or.reduceat(met, starts, axis=1)


# ---------------------------------------------------------------------------------------------------------------------------- the attacks


@dataclass(frozen=True, kw_only=True)
class Attack:
    """One attack's successes: ``hits`` of ``n`` training subjects, ``control_hits`` of ``control_n`` held-out ones; and of the training
    subjects by guessing (``naive``) and with the training table itself (``leaked``)."""

    name: str
    hits: int
    n: int
    control_hits: int
    control_n: int
    naive: int
    leaked: int

    @property
    def control(self) -> float:
        return self.control_hits / self.control_n

    @property
    def risk(self) -> float:
        return residual_risk(self.hits, self.n, self.control_hits, self.control_n)[0]

    def interval(self, confidence: float = 0.95, times: int = 1) -> tuple[float, float]:
        """Of the risk; ``times``: as it would be with so many times as many subjects."""
        return residual_risk(times * self.hits, times * self.n, times * self.control_hits, times * self.control_n, confidence)[1]

    @property
    def idle(self) -> bool:
        """Whether even the training table tells no more than a guess."""
        return self.name != "singling out" and residual_risk(self.leaked, self.n, self.naive, self.n)[1][0] <= 0

    def as_json(self) -> dict:
        low, high = self.interval()
        counts = {"training": [self.hits, self.n], "control": [self.control_hits, self.control_n]}
        own = {"naive": self.naive / self.n, "leaked": self.leaked / self.n, "idle": self.idle}
        return {**counts, **own, "risk": self.risk, "interval": (max(low, -1.0), high)}


def _attacks(table: _Table, train: _Table, holdout: _Table, seed: int) -> list[Attack]:
    """Every attack that these attributes allow: the last two need two attributes."""
    guess, n, m = table.shuffled(seed), len(set(train.subjects)), len(set(holdout.subjects))
    found, by_guess, leaked = (_singled_out(each, train, holdout, seed) for each in (table, guess, train))
    attacks = [Attack(name="singling out", hits=found[0], n=n, control_hits=found[1], control_n=m, naive=by_guess[0], leaked=leaked[0])]
    if len(table.columns) < 2:
        return attacks
    targets, others = train.one_each(seed), holdout.one_each(seed)
    halves = (list(range(0, len(table.columns), 2)), list(range(1, len(table.columns), 2)))

    def linked(people: _Table, told: _Table) -> int:
        one, other = (_nearest(people, told, half, seed) for half in halves)
        return int((one == other).sum())

    def inferred(secret: int, people: _Table, told: _Table) -> int:
        known = [number for number in range(len(told.columns)) if number != secret]
        nearest = told.values[_nearest(people, told, known, seed), secret]
        return int((told.columns[secret].apart(people.values[:, secret], nearest) <= NEAR).sum())

    played = {"linkability": linked}
    for number, column in enumerate(table.columns):
        played[f"inference of {column.name}"] = lambda people, told, secret=number: inferred(secret, people, told)
    for name, play in played.items():
        attacks.append(
            Attack(
                name=name,
                hits=play(targets, table),
                n=n,
                control_hits=play(others, table),
                control_n=m,
                naive=play(targets, guess),
                leaked=play(targets, train),
            )
        )
    return attacks


def _singled_out(told: _Table, train: _Table, holdout: _Table, seed: int) -> tuple[int, int]:
    """Training and held-out subjects of whom alone, among all these people, a predicate is true that is true of one record of ``told``."""
    hit_train, hit_holdout = (np.zeros(len(set(people.subjects)), bool) for people in (train, holdout))
    predicates = _predicates(told, seed)
    tried = 0
    for start in range(0, len(predicates), AT_ONCE):
        chunk = predicates[start : start + AT_ONCE]
        chunk = chunk[told.matching(chunk).sum(1) == 1][: GUESSES - tried]
        tried += len(chunk)
        members, others = train.matching(chunk), holdout.matching(chunk)
        alone = members.sum(1) + others.sum(1) == 1
        hit_train |= members[alone].any(0)
        hit_holdout |= others[alone].any(0)
    return int(hit_train.sum()), int(hit_holdout.sum())


def _predicates(told: _Table, seed: int) -> np.ndarray:
    """Predicates that the records suggest, in a drawn order: lower and upper bound of each attribute, ``(predicate, attribute, 2)``.

    Of one attribute: a value, and for numbers also "at least" and "at most" it. Of several: a whole record, and a drawn part of it of at
    least two attributes with numbers at least, or at most, their value, whichever is the rarer.
    """
    width = len(told.columns)
    numbers = np.array([not column.classes for column in told.columns])
    given = np.where(np.isnan(told.values), NEVER, told.values)
    middle = np.median(given, axis=0)
    rows = []
    for number in range(width):
        for value in np.unique(given[:, number]):
            bounds = [(value, value), *([(-np.inf, value), (value, np.inf)] if numbers[number] else [])]
            for low, high in bounds:
                row = np.tile([-np.inf, np.inf], (width, 1))
                row[number] = low, high
                rows.append(row)
    generator = generator_for(seed, "predicates")
    for record in np.unique(given, axis=0) if width > 1 else ():
        rows.append(np.stack([record, record], axis=1))
        row = np.tile([-np.inf, np.inf], (width, 1))
        for number in generator.permutation(width)[: generator.integers(2, width + 1)]:
            value, half = record[number], numbers[number]
            row[number] = (
                (value if not half or value >= middle[number] else -np.inf),
                (value if not half or value < middle[number] else np.inf),
            )
        rows.append(row)
    distinct = np.unique(np.array(rows), axis=0)
    return distinct[generator.permutation(len(distinct))]


def _nearest(people: _Table, told: _Table, columns: Iterable[int], seed: int) -> np.ndarray:
    """For each person the nearest record of ``told`` by these attributes, a row; of equally near ones one that is drawn for the person."""
    columns = list(columns)
    chance = np.array([seed_for(seed, "nearest", str(subject), *columns) / 2**63 for subject in people.subjects])
    rows = []
    for start in range(0, len(people), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        distance = sum(told.columns[n].apart(people.values[part, n, None], told.values[None, :, n]) for n in columns)
        near = distance <= distance.min(axis=1, keepdims=True) + 1e-9
        wanted = (chance[part] * near.sum(axis=1)).astype(int)
        rows.append((near.cumsum(axis=1) > wanted[:, None]).argmax(axis=1))
    return np.concatenate(rows)


# ---------------------------------------------------------------------------------------------------------------------------- the verdict


def _rare(table: _Table, train: _Table, k: int) -> dict[str, int]:
    """Synthetic cases, and their combinations, whose classes together are those of some training subjects, but of fewer than ``k``."""
    classes = [number for number, column in enumerate(table.columns) if column.classes]
    people: dict[tuple, set] = {}
    for record, subject in zip(train.values[:, classes].tolist(), train.subjects, strict=True):
        people.setdefault(tuple(record), set()).add(subject)
    handed_on = Counter(tuple(record) for record in table.values[:, classes].tolist()) if classes else Counter()
    rare = [count for record, count in handed_on.items() if 0 < len(people.get(record, ())) < k]
    return {"cases": sum(rare), "combinations": len(rare), "of": len(handed_on), "k": k}


def _judge(attacks: Sequence[Attack], rare: Mapping[str, int], cases: int, level: Level, details: Mapping) -> Finding:
    counted = [attack for attack in attacks if not attack.idle]
    worst = max(counted, key=lambda attack: attack.interval()[1])
    gains = [attack for attack in counted if attack.interval(1 - (1 - SURE) / len(attacks))[0] > 0]
    verdict: Verdict = "pass"
    why = (
        f"No attack on the released attributes ({', '.join(details['attributes'])}) gains more than {level.linkage:.0%} over its success "
        f"on people whom the table cannot know (upper 95 % bound: {worst.interval()[1]:.1%}, {worst.name}), and no combination of classes "
        f"is handed on that fewer than {level.k} training subjects have."
    )
    if worst.interval()[1] > level.linkage:
        verdict, why = "inconclusive", f"Not enough is known: {worst.name} may gain up to {worst.interval()[1]:.0%}, {_more(worst, level)}."
    if gains:
        most = max(gains, key=lambda attack: attack.risk)
        low, high = most.interval()
        verdict = "fail"
        why = (
            f"{most.name.capitalize()} succeeds with {most.hits} of {most.n} training subjects and with {most.control_hits} of "
            f"{most.control_n} held-out ones: the table tells of its training subjects (a gain of {low:.0%} to {high:.0%}). Leave "
            "attributes out of data.conditions, or make their values coarser."
        )
        worst = most
    if rare["cases"]:
        verdict = "fail"
        why = (
            f"{rare['cases']} of {cases} synthetic cases hand on a combination of classes that fewer than {level.k} training subjects "
            f"have ({rare['combinations']} combinations). Merge rare values, leave an attribute out of data.conditions, or ask for other "
            "combinations by sampling.per_condition."
        )
    value, (low, high) = max(worst.risk, 0.0), worst.interval()
    return _finding(
        verdict,
        why,
        level,
        value=value,
        interval=(max(low, 0.0), max(high, value)),
        control=worst.control,
        details={**details, "rare": dict(rare), "attacks": {attack.name: attack.as_json() for attack in attacks}},
    )


def _more(attack: Attack, level: Level) -> str:
    """What is allowed, and how many held-out subjects would tell, if the rates stay."""
    times = next((times for times in (2, 3, 5, 10, 20, 50) if attack.interval(times=times)[1] <= level.linkage), None)
    enough = f"; about {times * attack.control_n} held-out subjects would tell, if the rates stay" if times else ""
    return f"{level.linkage:.0%} is allowed{enough}"


def _finding(verdict: Verdict, why: str, level: Level, *, value=None, interval=None, control=None, details=None) -> Finding:
    return Finding(
        check="linkage",
        verdict=verdict,
        value=value,
        interval=interval,
        control=control,
        limit=level.linkage,
        why=why,
        details=details or {},
    )
