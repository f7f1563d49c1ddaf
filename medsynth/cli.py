"""The command line: ``medsynth VERB [Hydra overrides]``. Only the standard library is imported before a verb is
known, so that help answers at once."""

import errno
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from omegaconf import DictConfig

VERBS = {
    "run": "all stages in order; finished ones are skipped, an interrupted one resumes",
    "prepare": "read the archive, give each series a verdict, de-identify, split by subject, cache",
    "train": "train the diffusion model; run again after an interruption to resume",
    "sample": "draw the synthetic cohort",
    "audit": "attack the cohort: identifiers, memorized training cases, with controls",
    "evaluate": "measure quality against held-out subjects, with intervals and a real-against-real floor",
    "utility": "train small classifiers and segmenters on real, synthetic and mixed cases; test them on held-out subjects (not in run)",
    "sweep": "draw a few cases after less training, in other sampling steps and guidance, and score each setting (not in run)",
    "report": "write report/index.html",
    "release": "write release/ if every verdict allows it; else say why not and exit with 3",
}
TOOLS = {
    "plan": "which level of proof so many subjects can reach; ask before anybody trains",
    "inspect": "what an archive holds: which series can be read, which only after a repair, which not and why",
    "push": "send a release to a PACS, by C-STORE or STOW-RS",
    "pull": "fetch series from a PACS for prepare, by C-GET, C-MOVE or WADO-RS",
    "deidentify": "the DICOM and NIfTI files of a folder, rebuilt without what names anybody",
    "verify": "is a release whole, and who signed it; needs nothing but the release",
    "reader-study": "a blinded pack for readers: real or synthetic? The key is kept apart; answers= scores it",
    "trace": "which runs and releases a person went into, by the id that the archive has",
}
SETTINGS = {  # groups of objects, single values, and whole blocks of them
    "run": ("run", "paths", "tracking"),
    "prepare": ("source", "source.root", "data"),
    "train": ("network", "process", "optimizer", "trainer", "privacy", "fit", "train"),
    "sample": ("sampler", "schedule", "guidance", "sampling"),
    "audit": ("check", "audit"),
    "evaluate": ("metric", "evaluate"),
    "utility": ("utility",),
    "sweep": ("sampler", "schedule", "guidance", "sampling.steps", "sweep"),
    "report": (),
    "release": ("release",),
}
ANYBODYS = {  # of folders from anywhere, and no stage of a run: the tool of the verb's name does it
    "audit": ("synthetic=", "train=", "holdout="),
    "evaluate": ("real=", "synthetic=", "train="),
}
ERRNO = {
    errno.ENOSPC: "The disk is full. Free some space and run the same command again: finished work is kept.",
    errno.EDQUOT: "The disk quota is used up. Free some space and run the same command again: finished work is kept.",
    errno.EROFS: "The file system is read-only. Choose another place with paths.runs=...",
    errno.EACCES: "No permission there. Mend the rights, or choose another place with paths.runs=...",
}


def _help() -> str:
    from medsynth import __version__

    conf = _conf()
    experiments = [(path.stem, path.read_text(encoding="utf-8").splitlines()) for path in sorted((conf / "experiment").glob("*.yaml"))]
    lines = [
        f"medsynth {__version__}: from a DICOM or NIfTI archive to a released, audited synthetic cohort",
        "",
        "usage: medsynth VERB [setting=value ...]",
        "",
    ]
    lines += ["verbs:", *(f"  {verb:<10}{text}" for verb, text in VERBS.items()), ""]
    lines += ["tools (medsynth TOOL PATH [setting=value ...]):", *(f"  {tool:<14}{text}" for tool, text in TOOLS.items()), ""]
    lines += ["experiments (experiment=NAME):"]
    for name, text in experiments:
        about = next((line.lstrip("# ").strip() for line in text if line.startswith("#") and "@package" not in line), "")
        lines.append(f"  {name:<18}{about}")
    lines += [
        "",
        "examples:",
        "  medsynth run experiment=phantom_2d run.name=demo",
        "  medsynth run source=dicom_tree source.root=/data/export run.name=ct data.dims=3 'data.size=[64,64,32]'",
        "  medsynth evaluate real=/data/real 'synthetic=[/data/gan,/data/diffusion]'  # folders from anywhere: a leaderboard",
        "  medsynth audit synthetic=/data/gan train=/data/train holdout=/data/holdout  # anybody's cohort, attacked",
        "",
        "medsynth VERB --help shows a verb's settings; medsynth VERB --cfg job prints all of them as they are composed.",
    ]
    return "\n".join(lines)


def _verb_help(verb: str, overrides: Sequence[str]) -> str:
    """What the verb takes, with the values that ``overrides`` give; of objects that they choose (source=folder), their own settings too."""
    names = SETTINGS["run"] if verb == "run" else SETTINGS[verb] + SETTINGS["run"]
    lines = [
        f"medsynth {verb}: {VERBS[verb]}",
        "",
        f"usage: medsynth {verb} [setting=value ...]",
        "",
        f"settings that matter here (with their {'values' if overrides else 'defaults'}):",
    ]
    from textwrap import fill

    from omegaconf import OmegaConf

    from medsynth.config import composed, explained, explained_object

    cfg, values = composed(overrides), explained()
    chosen = dict(override.split("=", 1) for override in overrides if "=" in override)
    objects = {name: sorted((_conf() / name).glob("*.yaml")) for name in names if (_conf() / name).is_dir()}
    shown: dict[str, str] = {}
    for name in names:
        if name in objects:
            known = ", ".join(path.stem for path in objects[name])
            lines.append(fill(f"{name}={{{known}}}", 120, initial_indent="  ", subsequent_indent="    "))
            told = [explained_object(path) for path in objects[name] if path.stem == chosen.get(name)]
            shown |= told[0] if told else {}
        else:
            shown |= {value: text for value, text in values.items() if f"{value}.".startswith(f"{name}.")} or {name: shown.get(name, "")}
    for value, text in shown.items():
        setting = f"{value}={_shown(OmegaConf.select(cfg, value, default=''))}"
        lines.append(f"  {setting:<36}  {text}".rstrip())
    if objects and not overrides:
        group = next(iter(objects))
        lines += ["", f"The settings of one {group}: medsynth {verb} {group}=NAME --help."]
    if verb in ANYBODYS:
        from medsynth.tools import describe

        asked = {"audit": "synthetic=PATH train=PATH holdout=PATH", "evaluate": "real=PATH synthetic=[A,B,...]"}[verb]
        also = {"audit": "audit.level, check", "evaluate": "evaluate.*, metric"}[verb]
        lines += ["", f"cohorts from anywhere, with no run of ours (medsynth {verb} {asked} [setting=value ...]):"]
        lines += [*describe(verb, placed=False)[2:], f"  {also}, data.*, run.seed  as above; the grid follows from the images"]
    if verb == "run":
        lines += ["", "and those of each stage: medsynth prepare --help, medsynth train --help, ..."]
    lines += ["", f"All settings: medsynth {verb} --cfg job. A sweep: medsynth {verb} --multirun run.name=a,b"]
    return "\n".join(lines)


def _shown(value: object) -> str:
    """As it is written on a command line."""
    return str(value).replace("'", "").replace(", ", ",") if value is not None else "null"


def _conf() -> Path:
    import medsynth.conf

    return Path(next(iter(medsynth.conf.__path__)))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; the exit code is 0, 2 for a mistake of the user's, 3 where a release is refused."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        from medsynth import __version__

        print(__version__)
        return 0
    verb, *overrides = arguments
    if verb not in VERBS and verb not in TOOLS:
        from difflib import get_close_matches

        close, known = get_close_matches(verb, [*VERBS, *TOOLS], n=1), ", ".join([*VERBS, *TOOLS])
        print(f"medsynth: there is no verb {verb!r}.{f' Did you mean {close[0]}?' if close else ''} Known: {known}.", file=sys.stderr)
        return 2
    if verb in TOOLS:
        from medsynth import tools

        if any(flag in overrides for flag in ("-h", "--help")):
            print("\n".join([f"medsynth {verb}: {TOOLS[verb]}", "", *tools.describe(verb)]))
            return 0
        return _guarded(verb, lambda: tools.perform(verb, overrides))
    if verb in ANYBODYS and any(override.startswith(ANYBODYS[verb]) for override in overrides):
        tool = importlib.import_module(f"medsynth.tools.{verb}")
        return _guarded(verb, lambda: tool.perform(overrides))
    if any(flag in overrides for flag in ("-h", "--help")):
        return _guarded(verb, lambda: print(_verb_help(verb, [override for override in overrides if not override.startswith("-")])))
    if any(flag.startswith("-") for flag in overrides):  # Hydra's own flags: --multirun, --cfg, --info, --shell-completion
        sys.argv = [f"medsynth {verb}", *overrides]
        importlib.import_module(f"medsynth.pipelines.{verb}").main()
        return 0
    return guarded(verb, overrides)


def guarded(verb: str, overrides: Sequence[str]) -> int:
    """Compose, check and perform; turn what the user can mend into one message on standard error. Returns the exit code."""
    from medsynth.config import compose

    return _guarded(verb, lambda: _perform(verb, compose(overrides)))


def guarded_job(verb: str, cfg: "DictConfig") -> None:
    """The same for settings that Hydra has composed."""
    from medsynth.config import check

    def checked() -> None:
        check(cfg)
        _perform(verb, cfg)

    code = _guarded(verb, checked)
    if code:
        raise SystemExit(code)


def _perform(verb: str, cfg: "DictConfig") -> None:
    from medsynth.stages import perform

    perform(verb, cfg)


def _guarded(verb: str, work: Callable[[], None]) -> int:
    from concurrent.futures import BrokenExecutor

    from medsynth.errors import MedsynthError

    quiet()
    try:
        work()
        return 0
    except MedsynthError as error:
        print(f"medsynth {verb}: {error}", file=sys.stderr)
        return error.exit_code
    except (MemoryError, BrokenExecutor) as error:
        what = "The memory was not enough." if isinstance(error, MemoryError) else "A process was killed, most likely for want of memory."
        print(
            f"medsynth {verb}: {what} Take smaller batches or fewer data.workers and run the same command again: finished work is kept.",
            file=sys.stderr,
        )
        return 2
    except BrokenPipeError:  # whoever read our output has seen enough, as head does
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 141
    except OSError as error:
        if error.errno not in ERRNO:
            raise
        print(f"medsynth {verb}: {ERRNO[error.errno]}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nmedsynth {verb}: interrupted. Run the same command again to go on.", file=sys.stderr)
        return 130


def quiet() -> None:
    """One plain log line an event, and none of the libraries' adverts."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("alembic", "mlflow", "lightning", "lightning.pytorch", "lightning.fabric", "matplotlib", "torch.distributed"):
        logging.getLogger(name).setLevel(logging.ERROR)
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


if __name__ == "__main__":
    raise SystemExit(main())
