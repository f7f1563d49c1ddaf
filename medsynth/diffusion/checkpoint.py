"""Checkpoints explain themselves: ``weights.safetensors``, and a readable ``denoiser.yaml`` that says what they are weights of.

The description names classes and their settings, never code: loading builds dataclasses below `ALLOWED` from plain values and nothing else,
compares every shape before it takes memory, and compares the hash before it reads a number.
"""

import importlib
import json
import os
import shutil
import struct
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file, save

from medsynth.cohort import sha256_of
from medsynth.diffusion.denoiser import Denoiser
from medsynth.errors import MedsynthError

ALLOWED = ("medsynth.diffusion.",)  # what a file may name; a user's own networks are added by the caller
WEIGHTS = "weights.safetensors"
DESCRIPTION = "denoiser.yaml"


def save_denoiser(folder: Path, denoiser: Denoiser, description: Mapping[str, Any]) -> None:
    """Write ``folder`` by rename, in place of an older one. ``description`` is plain values, such as the cohort's facts for sampling.

    The network must keep what it was built from: ``settings`` (a dataclass with ``build``), ``dims``, ``channels``, ``condition_size``.
    """
    folder = Path(folder)
    partial, old = (folder.with_name(f".{folder.name}.{state}") for state in ("partial", "old"))
    for left_over in (partial, old):
        shutil.rmtree(left_over, ignore_errors=True)
    partial.mkdir(parents=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in denoiser.network.state_dict().items()}
    (partial / WEIGHTS).write_bytes(save(weights))  # its own writing would hide a full disk in an error of its own kind
    network = denoiser.network
    document = {
        "medsynth": "denoiser",
        "version": 1,
        "network": _described(network.settings),
        "build": {"dims": network.dims, "channels": network.channels, "condition_size": network.condition_size},
        "process": _described(denoiser.process),
        "weights": {"sha256": sha256_of(partial / WEIGHTS), "parameters": sum(value.numel() for value in weights.values())},
        "description": json.loads(json.dumps(dict(description))),  # plain values, or it fails here and not at loading
    }
    (partial / DESCRIPTION).write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8")
    for path in (partial / WEIGHTS, partial / DESCRIPTION, partial):
        _flush(path)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    _flush(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def load_denoiser(folder: Path, *, allow: tuple[str, ...] = ALLOWED) -> tuple[Denoiser, dict[str, Any]]:
    """The denoiser on the CPU, in evaluation mode, and the description it was saved with.

    ``allow`` are the prefixes that the file's class names may have. Raises `MedsynthError` where the folder is incomplete, names anything
    else, or its weights are not those that it describes.
    """
    folder = Path(folder)
    document = _read(folder)
    settings = _built(document["network"], "build", allow, folder)
    process = _built(document["process"], "scalings", allow, folder)
    header = _shapes(folder)
    try:
        build = {name: int(document["build"][name]) for name in ("dims", "channels", "condition_size")}
        with torch.device("meta"):  # shapes without memory: what a file asks for is checked before it gets any
            network = settings.build(**build)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise _refused(folder, f"its network cannot be built ({type(error).__name__})") from error
    expected = {name: list(value.shape) for name, value in network.state_dict().items()}
    if expected != header:
        odd = sorted(name for name in expected.keys() | header.keys() if expected.get(name) != header.get(name))
        first = f"{odd[0]} is {header.get(odd[0], 'missing')}, described as {expected.get(odd[0], 'absent')}"
        raise _refused(folder, f"{len(odd)} of its weights have other shapes than described; {first}")
    if sha256_of(folder / WEIGHTS) != document["weights"]["sha256"]:
        raise _refused(folder, f"the hash of {WEIGHTS} is not the one described")
    with torch.random.fork_rng(devices=[]):  # the initial weights, soon overwritten, are nobody's random numbers
        network = settings.build(**build)
    network.load_state_dict(load_file(folder / WEIGHTS))  # copied: the file's own memory is not aligned, and kernels round by alignment
    return Denoiser(network, process).eval(), document["description"]


def _described(settings: Any) -> dict[str, Any]:
    """A dataclass as ``_target_`` and plain values."""
    assert is_dataclass(settings), f"a checkpoint describes dataclasses; {type(settings).__name__} is none"
    target = {"_target_": f"{type(settings).__module__}.{type(settings).__qualname__}"}
    return target | json.loads(json.dumps(asdict(settings)))


def _read(folder: Path) -> dict[str, Any]:
    for name in (DESCRIPTION, WEIGHTS):
        if not (folder / name).is_file():
            raise MedsynthError(f"There is no {name} in {folder}. The training that writes it has not finished; run it first.")
    try:
        document = yaml.safe_load((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise _refused(folder, f"{DESCRIPTION} is not readable YAML") from error
    parts = {"network": dict, "build": dict, "process": dict, "weights": dict, "description": dict}
    if not isinstance(document, dict) or document.get("medsynth") != "denoiser" or document.get("version") != 1:
        raise _refused(folder, f"{DESCRIPTION} is not a description of this version")
    for name, kind in parts.items():
        if not isinstance(document.get(name), kind):
            raise _refused(folder, f"{DESCRIPTION} has no block {name!r}")
    if not {"dims", "channels", "condition_size"} <= document["build"].keys() or "sha256" not in document["weights"]:
        raise _refused(folder, f"{DESCRIPTION} is incomplete")
    return document


def _built(block: dict[str, Any], method: str, allow: tuple[str, ...], folder: Path) -> Any:
    """The dataclass that a block names, with ``method``. The name must be allowed, and be where the class was really defined."""
    values = dict(block)
    target = values.pop("_target_", None)
    refusal = _refused(folder, f"it names {target!r}, which is no settings class below {', '.join(allow)}")
    if not isinstance(target, str) or not target.startswith(allow):
        raise refusal
    module_name, _, name = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise refusal from error
    if not isinstance(found, type) or not is_dataclass(found) or found.__module__ != module_name or not hasattr(found, method):
        raise refusal
    unknown = values.keys() - {field.name for field in fields(found) if field.init}
    if unknown:
        raise _refused(folder, f"{target} has no setting {', '.join(sorted(map(str, unknown)))}")
    try:
        return found(**values)
    except (TypeError, ValueError) as error:
        raise _refused(folder, f"{target} does not take the settings described") from error


def _shapes(folder: Path) -> dict[str, list[int]]:
    """Name to shape of the stored weights, from the file's header alone."""
    try:
        with (folder / WEIGHTS).open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > 10**8:
                raise ValueError("header too long")
            header = json.loads(file.read(length))
        return {name: list(entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _refused(folder, f"{WEIGHTS} is truncated or no safetensors file") from error


def _refused(folder: Path, why: str) -> MedsynthError:
    return MedsynthError(f"The denoiser in {folder} is refused: {why}. Take the folder as training wrote it, or train again.")


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
