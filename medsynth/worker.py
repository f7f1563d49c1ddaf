"""One process of a stage that several share: ``torchrun -m medsynth.worker VERB FILE`` or ``srun python -m medsynth.worker VERB FILE``.

It runs on a file of resolved settings that the first process wrote, so that no two ranks can be composed differently:
a sweep in which Lightning relaunched the command itself once trained ranks with different learning rates, and exited
with 0.
"""

import importlib
import sys
from pathlib import Path

from omegaconf import OmegaConf

from medsynth import config
from medsynth.cli import quiet
from medsynth.errors import MedsynthError
from medsynth.stages import STAGES, Run, rank_tracker


def main(verb: str, settings: Path) -> int:
    """Do this process' share of ``verb``; the launching process holds the lock and writes the receipt."""
    quiet()
    try:
        cfg = OmegaConf.merge(OmegaConf.structured(config.Settings), OmegaConf.load(settings))
        config.check(cfg)
        root = Path(cfg.paths.runs).expanduser() / cfg.run.name
        run = Run(
            settings=config.values(cfg), objects=config.build(cfg, STAGES[verb].objects), root=root, tracker=rank_tracker(cfg, root, verb)
        )
        importlib.import_module(f"medsynth.stages.{verb}").work(run, root / verb)
    except MedsynthError as error:
        print(f"medsynth {verb}: {error}", file=sys.stderr)
        return error.exit_code
    run.tracker.close(succeeded=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1], Path(sys.argv[2])))
