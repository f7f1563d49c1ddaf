"""Settings: plain values as dataclasses, objects as ``_target_`` blocks.

Values (`run`, `paths`, `data`, `train`, `fit`, `sampling`, `audit`, `evaluate`, `release`, `tracking`) are typed here, so that
Hydra refuses a misspelt key or a wrong type. Objects stand in the group named after their noun. The rest of the
package below this module has never seen a ``DictConfig``.
"""

import importlib
import inspect
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from difflib import get_close_matches
from pathlib import Path, PurePath
from typing import Any, get_type_hints

from omegaconf import DictConfig, OmegaConf

from medsynth.audit.level import LEVELS
from medsynth.errors import SettingsError


@dataclass
class RunSettings:
    name: str = "run"  # its folder under paths.runs; the same name again goes on with it
    seed: int = 0  # of everything drawn


@dataclass
class PathSettings:
    runs: str = "runs"  # where runs, their ledger and their tracking lie
    key: str = "~/.config/medsynth/pseudonym.key"  # secret of the pseudonyms: outside every run folder
    signing_key: str = ""  # Ed25519 key that signs releases; empty: signing.key beside paths.key


@dataclass
class Splits:
    train: float = 0.7  # share of the subjects that the model learns from
    validation: float = 0.1  # share of the subjects that tell when to stop
    holdout: float = 0.2  # share of the subjects that audit and evaluation compare with; no model sees them


@dataclass
class Slices:
    """Which slices of a volume become cases where ``data.dims`` is 2."""

    axis: int = 2  # of the oriented volume: 0 sagittal, 1 coronal, 2 axial in RAS
    every: int = 1  # 2: every second slice, and so on
    range: list[float] = field(default_factory=lambda: [0.0, 1.0])  # share of the axis
    foreground: float = 0.0  # least share of voxels above the lower intensity bound


@dataclass
class DataSettings:
    dims: int = 2  # 2: slices; 3: volumes
    size: list[int] = field(default_factory=lambda: [64, 64])  # voxels along x, y (and z) of the oriented image
    spacing: list[float] | None = None  # mm; none: the median of the training set
    orientation: str = "RAS"  # axes of the grid, as nibabel names them
    percentiles: list[float] = field(default_factory=lambda: [0.5, 99.5])  # of each case, mapped to -1 and +1
    window: list[float] | None = None  # fixed stored values mapped to -1 and +1, instead of percentiles (CT)
    conditions: list[str] = field(default_factory=list)  # attributes that the model is told: class, sex, age, ...
    joint_mask: bool = False  # label maps are learned and drawn with the images
    splits: Splits = field(default_factory=Splits)
    slices: Slices = field(default_factory=Slices)
    workers: int = 2  # processes that read


@dataclass
class TrainSettings:
    canaries: int = 0  # pictures of nobody that training is given, so that the audit can measure how strongly a case is repeated
    duplicates: str = "drop"  # training cases that are nearly the same: one of each is trained on (drop), or all (keep)


@dataclass
class FitSettings:
    steps: int = 2000  # of the optimiser
    global_batch: int = 16  # cases a step, over all devices
    device_batch: int | None = None  # largest batch that fits on one device; the rest is accumulated
    warmup: int = 100  # steps of linear learning-rate warm-up
    clip: float = 1.0  # gradient norm
    ema_halflife: int = 500  # steps, of the exponential moving average of the weights
    precision: str = "auto"  # auto: bf16 where the hardware has it; fp32; bf16
    condition_dropout: float = 0.1  # for classifier-free guidance
    flips: list[int] = field(default_factory=list)  # spatial axes that may be mirrored, as augmentation
    validate_every: int = 500  # steps
    checkpoint_every: int = 500  # steps
    preview_every: int = 1000  # steps, between pictures of samples
    patience: int | None = None  # validations without improvement before training stops early
    stop_on_memorization: float | None = None  # share of the loss that training cases are spared, beyond which training stops


@dataclass
class SamplingSettings:
    cases: int = 200  # of the cohort
    steps: int = 30  # of the sampler: more are slower and finer
    batch: int = 16  # cases at a time; the images do not depend on it
    seed: int | None = None  # none: run.seed
    processes: int = 1  # the images do not depend on it either
    per_condition: dict[str, int] = field(default_factory=dict)  # "class=pneumonia": 100; empty: the training distribution
    reject: bool = False  # draw copies anew, after the audit of what was drawn (medsynth/stages/rejection.py)


@dataclass
class AuditSettings:
    level: str = "strict"  # a named level of proof: strict, standard, demo (medsynth/audit/level.py)


@dataclass
class EvaluateSettings:
    seed: int | None = None  # none: run.seed
    subsamples: int = 100  # half-subsamples for the intervals
    permutations: int = 199  # for p
    encoder_steps: int = 300  # training of each learned feature space, once; 0: none
    weights: list[str] = field(default_factory=list)  # folders of networks trained elsewhere, each a feature space (docs/metrics.md)
    sanity: str = "quick"  # defects injected into held-out images: off, small (one severity), quick (three), full (five)
    likelihood: int = 0  # cases of each cohort whose cost in bits per dimension is told; each takes as long as drawing about ten
    likelihood_steps: int = 50  # Heun steps of the ODE, each two evaluations with their derivative


@dataclass
class UtilitySettings:
    """Of ``medsynth utility``, which trains one net for each arm and each of ``nets``."""

    steps: int = 300  # of the optimiser, the same for every net whatever it is trained on
    batch: int = 32  # cases a step
    nets: int = 3  # seeds: of weights, of batches, and of who is in a share
    shares: list[float] = field(default_factory=lambda: [0.1, 0.25, 0.5, 1.0])  # of the real training subjects
    mixtures: list[float] = field(default_factory=lambda: [0.5, 1.0])  # synthetic cases that are added, times the real training cases
    attribute: str = ""  # the class that the classifier tells; none: the first of data.conditions that is one
    draws: int = 1000  # of subjects and nets, for the intervals
    workers: int = 2  # processes that train


@dataclass
class SweepSettings:
    """Of ``medsynth sweep``, which draws the same cases in other settings."""

    cases: int = 60  # drawn in each setting
    steps: list[int] = field(default_factory=lambda: [5, 10, 20, 50])  # of the sampler, beside sampling.steps
    scales: list[float] = field(default_factory=lambda: [1.0, 1.5, 2.0, 4.0])  # of the guidance, where there is one
    subsamples: int = 100  # half-subsamples for the intervals


@dataclass
class ReleaseSettings:
    formats: list[str] = field(default_factory=lambda: ["nifti", "dicom"])  # of nifti, dicom, bids
    bids_suffix: str = ""  # contrast of MR images where bids is among the formats, such as T1w; none: a condition's value says it
    dicom: str = "single_frame"  # or enhanced: CT and MR as one multi-frame file a case
    override: str = ""  # a written reason that lets a cohort leave in spite of its findings; it stays in the release
    model: bool = False  # the weights leave too, as model/, once membership_model has passed
    body_part: str = "WHOLEBODY"  # DICOM's BodyPartExamined; an unpaired one, see medsynth/export/dicom.py


@dataclass
class TrackingSettings:
    uri: str = ""  # empty: sqlite under paths.runs
    experiment: str = "medsynth"  # of MLflow


@dataclass
class Settings:
    """The whole of it. Object blocks are ``Any``: `check` binds each against its constructor's signature."""

    run: RunSettings = field(default_factory=RunSettings)
    paths: PathSettings = field(default_factory=PathSettings)
    data: DataSettings = field(default_factory=DataSettings)
    train: TrainSettings = field(default_factory=TrainSettings)
    fit: FitSettings = field(default_factory=FitSettings)
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    audit: AuditSettings = field(default_factory=AuditSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    utility: UtilitySettings = field(default_factory=UtilitySettings)
    sweep: SweepSettings = field(default_factory=SweepSettings)
    release: ReleaseSettings = field(default_factory=ReleaseSettings)
    tracking: TrackingSettings = field(default_factory=TrackingSettings)
    source: Any = None
    network: Any = None
    process: Any = None
    schedule: Any = None
    sampler: Any = None
    guidance: Any = None
    optimizer: Any = None
    privacy: Any = None
    trainer: Any = None
    check: Any = None
    metric: Any = None


def explained(block: str = "", kind: type = Settings) -> dict[str, str]:
    """Each value ``block.name`` and what stands behind it in the source above."""
    said = dict(re.findall(r"^    (\w+): [^#\n]+  # (.+)$", inspect.getsource(kind), re.MULTILINE))
    found: dict[str, str] = {}
    for name, type_ in get_type_hints(kind).items():
        path = f"{block}.{name}".lstrip(".")
        found |= explained(path, type_) if is_dataclass(type_) else {path: said.get(name, "")}
    return found


def explained_object(path: Path) -> dict[str, str]:
    """The same of the values of one object, from the comments of its file ``conf/group/name.yaml``."""
    text = path.read_text(encoding="utf-8")
    package = re.search(r"^# @package (\S+)", text, re.MULTILINE)
    said = re.findall(r"^([a-z]\w*):[^#\n]*(?:# (.+))?$", text, re.MULTILINE)
    return {f"{package.group(1) if package else path.parent.name}.{name}": about for name, about in said}


OBJECTS = ("source", "network", "process", "schedule", "sampler", "guidance", "optimizer", "privacy", "trainer", "check", "metric")
SANITY = ("off", "small", "quick", "full")
SPACES = ("random_convolution", "texture", "encoder", "classifier", "weights")  # feature spaces that metrics have names for
FORMATS = ("nifti", "dicom", "bids")
ALLOWED = ("medsynth.", "monai.networks.", "torch.optim.", "lightning.")  # what a _target_ may name


def compose(overrides: Sequence[str]) -> DictConfig:
    """The settings that these overrides give, checked. All mistakes are reported at once, each with the nearest valid name."""
    cfg = composed(overrides)
    check(cfg)
    return cfg


def composed(overrides: Sequence[str]) -> DictConfig:
    """The same, with values checked by type alone: quick, since no target is imported."""
    import hydra

    register()
    with hydra.initialize_config_module("medsynth.conf", version_base="1.3"):
        try:
            return hydra.compose("config", list(overrides))
        except Exception as error:  # Hydra stops at its first mistake: try each override alone to name them all
            chosen = _choices(overrides)
            mistakes = [m for o in overrides if o not in chosen and (m := _mistake(o, chosen))] or [str(error).splitlines()[0]]
            raise SettingsError("\n".join(mistakes)) from error


def refuse_mistakes(arguments: Sequence[str]) -> None:
    """Before Hydra runs a program of ``pipelines/``: name all mistakes on its command line, or do nothing. Hydra
    itself would stop at the first."""
    if any(argument.startswith("-") for argument in arguments):
        return
    try:
        compose(arguments)
    except SettingsError as error:
        print(error, file=sys.stderr)
        raise SystemExit(error.exit_code) from None


def register() -> None:
    """Make `Settings` known to Hydra as the base of ``config.yaml``."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="settings", node=Settings)


def _choices(overrides: Sequence[str]) -> list[str]:
    """Those overrides that rightly choose an option of a group: they decide which other settings there are."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    groups, chosen = GlobalHydra.instance().config_loader().list_groups(""), []
    for override in overrides:
        if override.lstrip("+").partition("=")[0] in groups:
            try:
                hydra.compose("config", [*chosen, override])
                chosen.append(override)
            except Exception:  # `_mistake` names it
                continue
    return chosen


def _mistake(override: str, chosen: Sequence[str]) -> str | None:
    """What is wrong with one override on top of the defaults and of the ``chosen`` options, or None."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    name, _, value = override.lstrip("+~").partition("=")
    try:
        hydra.compose("config", [*chosen, override])
        return None
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
    group = GlobalHydra.instance().config_loader().list_groups("")
    if name in group:
        options = GlobalHydra.instance().config_loader().get_group_options(name)
        return f"{override}: there is no {name} of that name.{_nearest(value.strip('[]'), options)} Known: {', '.join(sorted(options))}."
    known = _names(OmegaConf.to_container(hydra.compose("config", [*chosen])))
    if name not in known:
        return f"{override}: there is no setting of that name.{_nearest(name, [*known, *group])}"
    return f"{override}: {reason}"


def _names(tree: Mapping, prefix: str = "") -> list[str]:
    names = []
    for name, value in tree.items():
        names.append(f"{prefix}{name}")
        if isinstance(value, Mapping):
            names += _names(value, f"{prefix}{name}.")
    return names


def _nearest(name: str, known: Sequence[str]) -> str:
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {close[0]}?" if close else ""


def check(cfg: DictConfig, allow: Sequence[str] = ()) -> None:
    """Bind every ``_target_`` block to its callable's signature without building anything; report all mistakes at once.

    Hydra does not look into an object block before it builds it, and building happens hours into a job. A target
    outside the allow-list is refused, by its spelled name and by the module of the object that it resolves to:
    ``_target_`` is code execution.
    """
    mistakes = [*_missing(cfg), *_out_of_range(cfg)]
    for group in OBJECTS:
        mistakes += _check_block(
            OmegaConf.to_container(cfg[group], resolve=True) if cfg[group] is not None else None, group, (*ALLOWED, *allow)
        )
    if mistakes:
        raise SettingsError("\n".join(mistakes))


def _missing(cfg: DictConfig) -> list[str]:
    return [f"{name}: a value is missing; give {name}=..." for name in sorted(OmegaConf.missing_keys(cfg))]


def _out_of_range(cfg: DictConfig) -> list[str]:
    mistakes = []
    positive = (
        "data.slices.every", "fit.checkpoint_every", "fit.ema_halflife", "fit.global_batch", "fit.preview_every", "fit.steps",
        "utility.batch", "utility.draws", "utility.nets", "utility.steps",
        "evaluate.likelihood_steps", "fit.validate_every", "sampling.batch", "sampling.cases", "sampling.processes", "sampling.steps",
    )  # fmt: skip
    for name in positive:
        value = OmegaConf.select(cfg, name)
        if value < 1:
            mistakes.append(f"{name}={value}: must be at least 1.")
    if cfg.data.dims not in (2, 3):
        mistakes.append(f"data.dims={cfg.data.dims}: must be 2 (slices) or 3 (volumes).")
    elif len(cfg.data.size) != cfg.data.dims:
        mistakes.append(f"data.size={list(cfg.data.size)}: needs {cfg.data.dims} numbers, as data.dims={cfg.data.dims}.")
    if cfg.data.spacing is not None and len(cfg.data.spacing) != 3:
        mistakes.append(f"data.spacing={list(cfg.data.spacing)}: needs 3 numbers, mm along the oriented volume's axes (also for slices).")
    if cfg.audit.level not in LEVELS:
        mistakes.append(f"audit.level={cfg.audit.level}: must be one of {', '.join(LEVELS)}.{_nearest(cfg.audit.level, [*LEVELS])}")
    if cfg.evaluate.encoder_steps < 0:
        mistakes.append(f"evaluate.encoder_steps={cfg.evaluate.encoder_steps}: must be 0 (none) or more.")
    if cfg.evaluate.sanity not in SANITY:
        mistakes.append(
            f"evaluate.sanity={cfg.evaluate.sanity}: must be one of {', '.join(SANITY)}.{_nearest(cfg.evaluate.sanity, SANITY)}"
        )
    mistakes += _mistaken_weights(list(cfg.evaluate.weights))
    if cfg.train.canaries < 0:
        mistakes.append(f"train.canaries={cfg.train.canaries}: must be 0 (none) or more.")
    for name in ("shares", "mixtures"):
        listed = cfg.utility[name]
        if not listed or min(listed) <= 0 or (name == "shares" and max(listed) > 1):
            mistakes.append(f"utility.{name}={list(listed)}: needs numbers above 0{', at most 1' if name == 'shares' else ''}.")
    if cfg.sweep.cases < 50:
        mistakes.append(f"sweep.cases={cfg.sweep.cases}: must be at least 50; fewer tell too little of a distribution.")
    if min(cfg.sweep.steps, default=1) < 1:
        mistakes.append(f"sweep.steps={list(cfg.sweep.steps)}: must be numbers of at least 1.")
    if cfg.sweep.subsamples < 2:
        mistakes.append(f"sweep.subsamples={cfg.sweep.subsamples}: must be at least 2.")
    if cfg.train.duplicates not in ("drop", "keep"):
        mistakes.append(f"train.duplicates={cfg.train.duplicates}: must be drop or keep.")
    limit = cfg.fit.stop_on_memorization
    if limit is not None and not 0 < limit < 1:
        mistakes.append(f"fit.stop_on_memorization={limit}: must be above 0 and below 1, or null.")
    splits = cfg.data.splits
    if abs(splits.train + splits.validation + splits.holdout - 1) > 1e-6 or min(splits.train, splits.validation, splits.holdout) < 0:
        mistakes.append(f"data.splits: {splits.train} + {splits.validation} + {splits.holdout} must be shares that sum to 1.")
    if cfg.fit.precision not in ("auto", "fp32", "bf16"):
        mistakes.append(f"fit.precision={cfg.fit.precision}: must be auto, fp32 or bf16.")
    for name in cfg.release.formats:
        if name not in FORMATS:
            mistakes.append(f"release.formats: {name!r} is not known.{_nearest(name, FORMATS)} Known: {', '.join(FORMATS)}.")
    if cfg.release.dicom not in ("single_frame", "enhanced"):
        mistakes.append(f"release.dicom={cfg.release.dicom}: must be single_frame or enhanced.")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,80}", cfg.run.name):
        mistakes.append(f"run.name={cfg.run.name!r}: use letters, digits, '.', '_' and '-' (it names a folder).")
    return mistakes


def _mistaken_weights(folders: Sequence[str]) -> list[str]:
    """A folder's name is that of its feature space. Whether it is there, and what it holds, is for the evaluation to tell."""
    names = [PurePath(folder).name for folder in folders]
    wrong = [name for name in names if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}", name) or name in SPACES]
    return [
        f"evaluate.weights: a folder called {name!r} cannot name a feature space: use letters, digits, '.', '_' and '-', and none of "
        f"{', '.join(SPACES)}."
        for name in wrong
    ] + [f"evaluate.weights: two folders are called {name}; rename one." for name in sorted({n for n in names if names.count(n) > 1})]


def _check_block(block: Any, where: str, allowed: Sequence[str]) -> list[str]:
    if isinstance(block, list):
        return [m for i, item in enumerate(block) for m in _check_block(item, f"{where}[{i}]", allowed)]
    if not isinstance(block, Mapping):
        return []
    if "_target_" not in block:
        return [m for name, item in block.items() for m in _check_block(item, f"{where}.{name}", allowed)]
    target = block["_target_"]
    mistakes = []
    try:
        found = resolve_target(target, allowed)
        parameters = inspect.signature(found).parameters
    except SettingsError as error:
        return [f"{where}: {error}"]
    given = {name: value for name, value in block.items() if not (name.startswith("_") and name.endswith("_"))}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    if not takes_any:
        mistakes += [
            f"{where}.{name}: {target} has no such setting.{_nearest(name, list(parameters))}" for name in given if name not in parameters
        ]
    if not block.get("_partial_"):
        needed = [n for n, p in parameters.items() if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        mistakes += [f"{where}.{name}: {target} needs it; give {where}.{name}=..." for name in needed if name not in given]
    for name, value in given.items():
        mistakes += _check_block(value, f"{where}.{name}", allowed)
    return mistakes


def resolve_target(target: str, allowed: Sequence[str] = ALLOWED) -> Any:
    """The class or function that a dotted name means, if the allow-list lets it through. Raises SettingsError."""
    if not any(target.startswith(prefix) for prefix in allowed):
        raise SettingsError(f"_target_ {target} is not allowed; it must begin with one of {', '.join(allowed)}.")
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise SettingsError(f"_target_ {target}: {module_name} cannot be imported ({error}).") from error
    found = getattr(module, name, None)
    if not callable(found):
        public = [known for known, value in vars(module).items() if callable(value) and not known.startswith("_")]
        raise SettingsError(f"_target_ {target}: {module_name} has no {name}.{_nearest(name, public)}")
    home = f"{getattr(found, '__module__', '')}."
    if not any(home.startswith(prefix) for prefix in allowed):
        raise SettingsError(f"_target_ {target} is really {home}{name}, which is not allowed.")
    return found


def build(cfg: DictConfig, groups: Sequence[str]) -> dict[str, Any]:
    """All objects of these groups, made before any data is touched."""
    from hydra.utils import instantiate

    return {group: instantiate(cfg[group], _convert_="all") for group in groups}


def values(cfg: DictConfig) -> Settings:
    """The settings' values as plain dataclasses; object blocks stay plain dictionaries."""
    return OmegaConf.to_object(cfg)


def flat(cfg: DictConfig, names: Sequence[str]) -> dict[str, Any]:
    """These blocks or settings as one flat mapping ``"fit.steps": 2000``."""
    tree = OmegaConf.to_container(cfg, resolve=True)
    rows: dict[str, Any] = {}
    for name in names:
        node: Any = tree
        for part in name.split("."):
            node = node[part]
        _flatten(name, node, rows)
    return rows


def _flatten(name: str, node: Any, rows: dict[str, Any]) -> None:
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            _flatten(f"{name}.{key}", value, rows)
    else:
        rows[name] = node
