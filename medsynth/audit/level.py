"""How much proof is asked for. A level is chosen by name before anybody looks, and states what a pass at it means.

The numbers hang together. The holdout is divided by seed into subjects that set the threshold, subjects that measure the false alarms and
subjects that stand for everybody whom the model never saw. A threshold at alpha needs ``1 / alpha - 1`` of the first; a bound on the false
alarms so many of the second; a recall bound needs that many planted copies; the bound on the rate of copies needs synthetic cases. Where
the data is too little for a level the verdict is "inconclusive" and says what is missing: a weaker level is a decision of the person who
releases, never of the program.
"""

from dataclasses import asdict, dataclass

from medsynth.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class Level:
    """Limits of the audit. Bounds are ends of two-sided 95 % intervals.

    ``alpha``: rate at which unseen subjects may be taken for copies. ``false_alarm``: largest upper bound of that rate, measured on
    subjects that calibrated nothing. ``plants``: copies planted of each kind, and ``recall``: least lower bound of their recall, kind by
    kind, for the kinds that the search was made for. ``unforeseen``: the same for those that it does not enumerate. ``excess``: largest
    upper bound of the rate of synthetic cases that are copies, after division by the recall's lower bound. ``holdout`` and ``synthetic``:
    fewest subjects and cases. ``division``: shares of the holdout for calibration, test and reference. ``sharpness``: allowed ratio of
    high-frequency energy, synthetic over real, as a cohort smoother than the planted copies is not what they test. ``attraction``:
    smallest p of "training subjects attract more than their share of synthetic cases" with which a pass is still given; 0 never holds it
    back. ``linkage``: largest upper bound of what an attack on the table of attributes gains over its control, and ``k``: fewest training
    subjects that share what a case hands on. ``membership``: largest upper bound of the chance to tell a training from a held-out
    subject, and ``named``: of the share of training subjects that are named where 1 % of the others are accused (1: it is not asked, as it
    needs hundreds of subjects).
    """

    name: str
    alpha: float
    false_alarm: float
    plants: int
    recall: float
    unforeseen: float
    excess: float
    holdout: int
    division: tuple[float, float, float]
    synthetic: int
    sharpness: tuple[float, float]
    attraction: float
    linkage: float
    k: int
    membership: float
    named: float

    @property
    def claim(self) -> str:
        """What a pass of all checks means."""
        return f"{self.on_copies} {self.on_membership('cohort')} {self.on_attributes}"

    @property
    def on_copies(self) -> str:
        return (
            f"At most {self.excess:.0%} of the synthetic cases copy a training case beyond what chance gives (upper 95 % bound, "
            f"corrected for recall) and none is a near-exact copy, by a detector that finds at least {self.recall:.0%} of each kind of "
            f"planted copy that it was made for and {self.unforeseen:.0%} of each other kind (lower 95 % bounds), and takes at most "
            f"{self.false_alarm:.0%} of unseen subjects for copies (upper 95 % bound)."
        )

    @property
    def on_attributes(self) -> str:
        return (
            f"The released attributes let the attacks tried single out, link or guess at most {self.linkage:.0%} more than of held-out "
            f"subjects (upper 95 % bound), and at least {self.k} training subjects share each released combination of classes, or none."
        )

    def on_membership(self, held: str) -> str:
        """``held``: what the adversary holds, the cohort or the model."""
        named = (
            f", and names at most {self.named:.0%} of the training subjects where 1 % of the others are accused" if self.named < 1 else ""
        )
        return (
            f"Who holds a person's images and the {held} tells a training subject from another in at most {self.membership:.0%} of pairs "
            f"(upper 95 % bound; 50 % is guessing){named}, by the attacks tried."
        )

    @property
    def needs(self) -> dict[str, int]:
        """Fewest held-out subjects and synthetic cases with which this level can pass."""
        return {"holdout": self.holdout, "synthetic": self.synthetic}

    def as_json(self) -> dict:
        return {
            **asdict(self),
            "sharpness": list(self.sharpness),
            "division": list(self.division),
            "claim": self.claim,
            "needs": self.needs,
        }


LEVELS = {
    level.name: level
    for level in (
        # 100 subjects hold alpha 1 %; 200 without an alarm bound the false alarms by 2 %; 72 of 72 plants bound recall by 95 %
        Level(
            name="strict",
            alpha=0.01,
            false_alarm=0.02,
            plants=72,
            recall=0.95,
            unforeseen=0.75,
            excess=0.02,
            holdout=400,
            division=(0.25, 0.5, 0.25),
            synthetic=1000,
            sharpness=(0.8, 1.25),
            attraction=0.01,
            linkage=0.25,
            k=11,
            membership=0.60,
            named=0.05,
        ),
        # 20 subjects hold alpha 5 %; 20 more, of which 2 may alarm, bound it by 32 %; 24 plants of which 1 may be missed, by 78 %
        Level(
            name="standard",
            alpha=0.05,
            false_alarm=0.33,
            plants=24,
            recall=0.75,
            unforeseen=0.40,
            excess=0.10,
            holdout=60,
            division=(1 / 3, 1 / 3, 1 / 3),
            synthetic=200,
            sharpness=(0.5, 2.0),
            attraction=0.001,
            linkage=0.50,
            k=5,
            membership=0.75,
            named=1.0,
        ),
        # to see the machinery run, on a phantom: 8 subjects hold alpha 12 %; 11 of 20 plants found are enough, and of the phantom's 20 test
        # subjects 10 may alarm, which fewer than one clean hospital in a thousand exceeds; it shows that copying is not gross, and protects
        # nobody
        Level(
            name="demo",
            alpha=0.12,
            false_alarm=0.75,
            plants=20,
            recall=0.30,
            unforeseen=0.0,
            excess=0.30,
            holdout=24,
            division=(1 / 3, 1 / 3, 1 / 3),
            synthetic=20,
            sharpness=(0.1, 10.0),
            attraction=0.0,
            linkage=0.70,
            k=2,
            membership=0.85,
            named=1.0,
        ),
    )
}


def shortage(name: str, holdout: int, synthetic: int) -> str:
    """What is too little for a pass at this level, and what would do; nothing where it can be reached.

    ``holdout`` counts held-out subjects, ``synthetic`` cases to be drawn.
    """
    level = level_named(name)
    short = [
        f"{wanted} {what} are needed, there are {found}"
        for wanted, found, what in (
            (level.holdout, holdout, "held-out subjects"),
            (level.synthetic, synthetic, "synthetic cases"),
        )
        if found < wanted
    ]
    if not short:
        return ""
    fitting = [other.name for other in LEVELS.values() if holdout >= other.holdout and synthetic >= other.synthetic]
    ways = f"These can be reached: {', '.join(fitting)}." if fitting else "No level can be reached."
    return f"audit.level={name} cannot be passed: {'; '.join(short)}. {ways}"


def level_named(name: str) -> Level:
    """The level of this name; an unknown name is an error that lists the known ones."""
    if name not in LEVELS:
        raise SettingsError(f"audit.level={name} is not a level of proof. Known: {', '.join(LEVELS)}.")
    return LEVELS[name]
