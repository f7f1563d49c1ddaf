"""plan: which level of proof can so many subjects reach. To be asked before anybody trains."""

import math
import textwrap
from dataclasses import MISSING, dataclass, field

from medsynth.audit.level import LEVELS, Level, shortage
from medsynth.errors import SettingsError

LARGEST = 0.5  # share of the subjects that may reasonably be held out


@dataclass
class Settings:
    subjects: int = field(default=MISSING, metadata={"help": "people in the archive (images, where the source knows no people)"})
    holdout: float = field(default=0.2, metadata={"help": "share of them that is held out: data.splits.holdout"})
    cases: int = field(default=200, metadata={"help": "synthetic cases to be drawn: sampling.cases"})


def run(settings: Settings) -> None:
    """Print what each level needs, what a pass at it claims, and whether it can be reached."""
    if settings.subjects < 1 or not 0 < settings.holdout < 1 or settings.cases < 1:
        raise SettingsError("SUBJECTS and cases are counts from 1, holdout is a share between 0 and 1.")
    held_out = int(settings.subjects * settings.holdout)
    print(f"{settings.subjects} subjects, {held_out} of them held out, {settings.cases} synthetic cases")
    for level in LEVELS.values():
        short = shortage(level.name, held_out, settings.cases)
        print(f"\naudit.level={level.name}: {'OUT OF REACH' if short else 'within reach'}")
        print(f"  needs   {level.holdout} held-out subjects and {level.synthetic} synthetic cases")
        if short:
            print(f"  way out {_way_out(level, settings)}")
        print(textwrap.fill(f"claims  {level.claim}", 100, initial_indent="  ", subsequent_indent=" " * 10))


def _way_out(level: Level, settings: Settings) -> str:
    share = math.ceil(100 * level.holdout / settings.subjects) / 100
    if share > LARGEST:
        return f"more subjects: {level.holdout} are needed for the holdout alone, and more than these to train on"
    cases = max(level.synthetic, settings.cases)
    return f"data.splits.holdout={max(share, settings.holdout):.2f} or more, sampling.cases={cases} or more"
