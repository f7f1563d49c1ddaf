"""Verbs beside the stages: they look at a folder, or move one, and know of no run.

Each is a module with a dataclass ``Settings`` and ``run(settings)``. The command line is ``medsynth VERB PATH setting=value ...``: PATH is
the first field, every further argument names its own. A field's ``metadata["help"]`` is its line in ``medsynth VERB --help``.
"""

import importlib
import shutil
from collections.abc import Sequence
from dataclasses import MISSING, fields
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from medsynth.errors import SettingsError

READING = ".reading-"  # begins the name of a folder in which a call keeps the images that it has read, as long as it runs


def perform(verb: str, arguments: Sequence[str]) -> None:
    """Read the arguments and do the work. Raises SettingsError for mistakes on the command line, all at once."""
    if not arguments:
        raise SettingsError(f"{describe(verb)[0]}; see medsynth {verb} --help.")
    module = _module(verb)
    module.run(parse(module.Settings, arguments))


def _module(verb: str) -> ModuleType:
    return importlib.import_module(f"medsynth.tools.{verb.replace('-', '_')}")


def parse(kind: type, arguments: Sequence[str]) -> Any:
    """``arguments`` as an instance of the dataclass ``kind``, types checked: ``["/data", "json=a.json"]``."""
    kinds = get_type_hints(kind)
    names = [field.name for field in fields(kind)]
    mistakes, settings = [], OmegaConf.structured(kind)
    for place, argument in enumerate(arguments):
        name, given, value = argument.partition("=")
        if place == 0 and (not given or name not in names):
            name, value = names[0], argument  # a path may hold "="
        if name not in names:
            close = get_close_matches(name, names, n=1, cutoff=0.5)
            mistakes.append(f"{argument}: there is no setting of that name.{f' Did you mean {close[0]}?' if close else ''}")
            continue
        try:
            settings.merge_with(OmegaConf.create({name: _value(kinds[name], value)}))
        except (OmegaConfBaseException, yaml.YAMLError) as error:
            mistakes.append(f"{argument}: {str(error).splitlines()[0]}")
    mistakes += [f"{name}: a value is missing; give {name}=..." for name in sorted(OmegaConf.missing_keys(settings)) if name in names]
    if mistakes:
        raise SettingsError("\n".join(mistakes))
    return OmegaConf.to_object(settings)


def _value(kind: Any, text: str) -> Any:
    """Text is taken as it stands, inside lists and mappings too: the patient id 00123 is no number, and "no" no truth value."""
    if kind is str:
        return text
    return yaml.load(text, yaml.BaseLoader if get_args(kind) else yaml.SafeLoader)


def folder_for(out: Path, what: str, holds: Sequence[str]) -> Path:
    """``out``, made for its owner alone, for ``what``: the file ``holds[0]``, written last, and others. What an interrupted call finished
    there is kept, and the images that it had read are taken away. Raises SettingsError where something else lies there."""
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    left = {name for name in there if name.startswith(READING)}
    if (out.exists() and not out.is_dir()) or (there - left - {*holds} and holds[0] not in there):
        raise SettingsError(f"out={out} holds something else than {what}. Name another folder.")
    out.mkdir(parents=True, exist_ok=True)
    out.chmod(0o700)
    for name in left:
        shutil.rmtree(out / name)
    return out.resolve()


def describe(verb: str, *, placed: bool = True) -> list[str]:
    """The lines of ``medsynth VERB --help`` about its settings, the first of which is known by its place or, like the others, by name."""
    every = fields(_module(verb).Settings)
    first = every[0].name.upper()
    lines = [f"usage: medsynth {verb} {first} [setting=value ...]", "", *([f"  {first:<28} {every[0].metadata['help']}"] if placed else [])]
    for field in every[placed:]:
        default = field.default_factory() if field.default_factory is not MISSING else field.default
        shown = f"{field.name}={'' if default is MISSING or default == '???' else default}"
        lines.append(f"  {shown:<28} {field.metadata['help']}")
    return lines
