"""The feature spaces of an evaluation that are learned from its own training cases, and whether each may be trusted; and those of
weights from elsewhere.

Encoders are trained once: their weights lie in the stage's folder (``encoders/``, safetensors), and are taken again where settings and
training cases are the same. Three seeds each; on a CPU every seed has a thread of its own, so that the number of threads moves no byte.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from medsynth.cohort import Cohort
from medsynth.encoder import Encoder, Learner, moved
from medsynth.features import code_of, identity
from medsynth.metrics.defects import Material
from medsynth.metrics.fidelity import GATE, readings
from medsynth.metrics.learned import Qualified, qualify
from medsynth.metrics.score import Absent, Metric, NotApplicable
from medsynth.pretrained import Pretrained, Unusable, load
from medsynth.rng import generator_for, seed_for
from medsynth.training.hardware import one_thread_each

SEEDS = 3
CONTRAST, CLASSES = "encoder", "classifier"  # what metrics call these spaces
WEIGHTS = "weights"  # stands for every folder of evaluate.weights
FEWEST = 16  # training subjects


def of_weights(
    metrics: Mapping[str, Metric], folders: Sequence[str], dims: int
) -> tuple[dict[str, Metric], dict[str, Pretrained], dict[str, str]]:
    """The metrics, of which those on `WEIGHTS` come once for each folder; the extractors by their folders' names; and what could not be
    had at all. Where a folder's weights cannot be used, its metrics say so: nothing else takes their place."""
    asked = {name: metric for name, metric in metrics.items() if metric.features == WEIGHTS}
    others = {name: metric for name, metric in metrics.items() if name not in asked}
    if not folders:
        return others, {}, {WEIGHTS: "not asked for: evaluate.weights=[]"} if asked else {}
    if not asked:
        return others, {}, {Path(folder).name: "no metric of the panel looks at weights" for folder in folders}
    found: dict[str, Pretrained] = {}
    for folder in map(Path, folders):
        try:
            found[folder.name], reason = load(folder.expanduser(), dims), ""
        except Unusable as answer:
            reason = str(answer)
        for name, metric in asked.items():
            own = replace(metric, features=folder.name)
            others[f"{name.removesuffix(f'_{WEIGHTS}')}_{folder.name}"] = (
                Absent(features=own.features, best=own.best, reason=reason) if reason else own
            )
    return others, found, {}


def learned(names: set[str], train: Cohort, steps: int, folder: Path, *, seed: int) -> tuple[dict[str, dict[str, Encoder]], dict[str, str]]:
    """The seeds of each of these spaces by name, such as ``{"encoder": {"encoder 0": ...}}``; and of the others the reason."""
    found, absent = {}, {}
    classes = next((a for a in train.header.conditions.attributes if len(a.values) > 1), None)
    for name in sorted(names & {CONTRAST, CLASSES}):
        if not steps:
            absent[name] = "not asked for: evaluate.encoder_steps=0"
        elif len(set(train.subjects)) < FEWEST:
            absent[name] = f"{FEWEST} training subjects are needed to learn a feature space; there are {len(set(train.subjects))}"
        elif name == CLASSES and classes is None:
            absent[name] = "the cases have no classes (data.conditions)"
        else:
            told = classes.name if name == CLASSES else ""
            learners = {f"{name} {k}": Learner(seed=seed_for(seed, "encoder", k), steps=steps, classes=told) for k in range(SEEDS)}
            found[name] = _trained(learners, train, classes.values if told else (), folder)
    return found, absent


def _trained(learners: Mapping[str, Learner], train: Cohort, values: tuple[str, ...], folder: Path) -> dict[str, Encoder]:
    digest, dims = train.digest, train.header.dims
    place = {value: k for k, value in enumerate(values)}

    def one(name: str, learner: Learner) -> Encoder:
        path = folder / f"{name.replace(' ', '-')}.safetensors"
        whose = {"made_from": f"{identity(learner)} of {digest} by {code_of()}"}
        if (kept := _read(path, whose)) is not None:
            return learner.loaded(kept, dims, digest)
        classes = [place.get(str(case.condition.get(learner.classes)), -1) for case in train] if learner.classes else None
        encoder = learner.fit((train.pixels(case)[:1] for case in train), train.subjects, digest, classes)
        partial = path.with_name(f".{path.name}.partial")
        save_file(encoder.network.state_dict(), partial, metadata=whose)
        partial.replace(path)
        return encoder

    folder.mkdir(parents=True, exist_ok=True)
    workers = torch.get_num_threads()
    with one_thread_each(torch.device("cpu")), ThreadPoolExecutor(workers) as pool:
        return dict(zip(learners, pool.map(one, learners, learners.values()), strict=True))


def _read(path: Path, whose: Mapping[str, str]) -> dict[str, torch.Tensor] | None:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()} if file.metadata() == whose else None  # noqa: SIM118
    except (FileNotFoundError, SafetensorError):
        return None


def qualified(encoders: Mapping[str, Mapping[str, Encoder]], material: Material) -> dict[str, Qualified]:
    """Each seed's trial on held-out cases; a classifier must also tell their classes."""
    views = moved(torch.from_numpy(np.array(material.clean.images)), generator_for(material.seed, "qualify")).numpy()
    found = {space: qualify(space, material, encoder(views)) for space, encoder in encoders.get(CONTRAST, {}).items()}
    for space in encoders.get(CLASSES, {}):
        trial = qualify(space, material, None)
        quality = _told_apart(space, material)
        fault = f"it tells held-out classes at an AUROC of {quality:.2f}, of {GATE} needed" if quality < GATE else ""
        reason = "; ".join(filter(None, (fault, trial.reason)))
        found[space] = Qualified(passed=not reason, reason=reason, told={"AUROC": quality, **trial.told})
    return found


def _told_apart(space: str, material: Material) -> float:
    try:
        reads, _ = readings(material.train, [material.clean], space)
    except NotApplicable:
        return 0.5
    return max((read.quality(np.arange(len(material.clean))) for read in reads if read.values), default=0.5)
