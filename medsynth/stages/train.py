"""train: the prepared cohort becomes a denoiser. Run again after a kill, or with a larger ``fit.steps``, it goes on where it was, to
the same bytes.

Reads ``prepare/cohort.jsonl``; writes ``duplicates.jsonl`` (cases that are nearly the same as another one, and are left out),
``checkpoints/``, ``history.jsonl`` (losses, by step), ``previews/``, ``snapshots/`` (the averaged weights of a few steps on the way) and at
the end ``denoiser/``: the averaged weights, with a description that lets no later stage re-state the architecture.
"""

import hashlib
import json
import logging
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import torch
from lightning.pytorch.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

from medsynth import distributed
from medsynth.audit.duplicates import near_duplicates
from medsynth.canaries import CanarySet
from medsynth.cohort import Cohort, Header
from medsynth.data.loader import CohortData, Layout
from medsynth.diffusion.checkpoint import save_denoiser
from medsynth.diffusion.denoiser import Denoiser
from medsynth.diffusion.sampling import sample
from medsynth.errors import SettingsError
from medsynth.io.pseudonyms import load_key
from medsynth.rng import seed_for
from medsynth.stages import Run, figures, weights_of
from medsynth.training.allocator import keep_freed_memory
from medsynth.training.checkpoint import Checkpoints, SafeCheckpointIO, newest, step_of, write_durably
from medsynth.training.ema import EMA
from medsynth.training.hardware import device_for, precision_for
from medsynth.training.module import DiffusionModule
from medsynth.training.previews import Draw, Previews
from medsynth.training.privacy import DifferentialPrivacy, PrivateModule
from medsynth.training.progress import Progress
from medsynth.training.snapshots import Snapshots
from medsynth.training.validation import Validation

log = logging.getLogger(__name__)

PREVIEWS = 12  # images
FEWEST = 4  # validation subjects: with fewer the interval of memorization tells nothing


def work(run: Run, folder: Path) -> None:
    fit, seed, trainer = run.settings.fit, run.settings.run.seed, run.objects["trainer"]
    cohort = Cohort.read(run.folder("prepare") / "cohort.jsonl")
    _require_validation(cohort, run)
    _require_axes(cohort.header, fit.flips)
    distributed.require_launched(trainer.keywords.get("devices", 1), trainer.keywords.get("num_nodes", 1))
    device = device_for(trainer.keywords.get("accelerator", "auto"))
    if device.type == "cpu":
        keep_freed_memory()
    else:
        torch.set_float32_matmul_precision("highest" if fit.precision == "fp32" else "high")

    layout = Layout(global_batch=fit.global_batch, world_size=distributed.world_size(), device_batch=fit.device_batch)
    folder.mkdir(parents=True, exist_ok=True)
    twins = _duplicates(run, cohort, folder)
    trained_on = cohort.where(case for case in cohort if case.id not in twins)
    denoiser = new_denoiser(run, cohort.header)
    coarsest = [-(-n // run.objects["network"].reduction) for n in cohort.header.shape]
    settings = {
        "layout": layout,
        "seed": seed,
        "warmup": fit.warmup,
        "clip": fit.clip,
        "dropout": fit.condition_dropout,
        "flips": fit.flips,
    }
    promise: DifferentialPrivacy | None = run.objects["privacy"]
    secret = seed_for(load_key(run.settings.paths.key).hex(), "differential privacy", seed) if promise else None
    canaries = CanarySet(cohort.split("train"), run.settings.train.canaries, seed)
    data = CohortData(trained_on, layout=layout, rank=distributed.rank(), seed=seed, canaries=canaries, secret=secret)
    budget = promise.budget(records=len(set(data.subjects)), batch=fit.global_batch, steps=fit.steps) if promise else None
    if budget:
        log.info("train: noise of %.3g times the clipping norm keeps epsilon below %g.", budget.noise, promise.epsilon)
        module: DiffusionModule = PrivateModule(denoiser, run.objects["optimizer"], budget=budget, secret=secret, **settings)
    else:
        module = DiffusionModule(denoiser, run.objects["optimizer"], **settings)
    checkpoint = newest(folder / "checkpoints")
    history = History(folder / "history.jsonl", resumed_at=step_of(checkpoint) if checkpoint else 0)
    if checkpoint:
        log.info("train: resuming after step %d.", step_of(checkpoint))

    def record(step: int, values: Mapping[str, Any]) -> None:
        if distributed.rank() == 0 and history.add(step, values):
            run.tracker.metrics(_flat(values), step)

    def show(images: np.ndarray, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(grid(images, cohort.header))
        run.tracker.figure(path.stem, path, synthetic=True)

    snapshots = folder / "snapshots"
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # its adverts
    ema = EMA(fit.ema_halflife)
    watch = {"seed": seed, "record": record, "patience": fit.patience, "limit": fit.stop_on_memorization}
    validation = Validation(every=fit.validate_every, ema=ema, **watch)
    fitting: L.Trainer = trainer(
        max_steps=fit.steps,
        max_epochs=-1,
        accumulate_grad_batches=layout.accumulate,
        precision={"bf16": "bf16-mixed", "fp32": "32-true"}[precision_for(fit.precision, device, coarsest)],
        callbacks=[
            _Agreement(_digest(run, trained_on)),
            Progress(record=record),
            ema,
            validation,
            Snapshots(
                every=fit.validate_every,
                ema=ema,
                saved=[step_of(path) for path in snapshots.glob("step-*")],
                save=lambda step, model: save_denoiser(
                    snapshots / f"step-{step:08d}", model, description(cohort, seed=seed, steps=step, duplicates=len(twins))
                ),
                forget=lambda step: shutil.rmtree(snapshots / f"step-{step:08d}"),
            ),
            Previews(folder=folder / "previews", every=fit.preview_every, ema=ema, draw=_draw(run, cohort), show=show),
            Checkpoints(folder / "checkpoints", fit.checkpoint_every),
        ],
        plugins=[SafeCheckpointIO(), _environment()],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on workers and loggers, which are chosen here
        fitting.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    if fitting.is_global_zero:
        told = {"privacy": budget.statement(fitting.global_step, cohort.header.unit)} if budget else {}
        steps = fitting.global_step
        if validation.beyond:
            ema.weights, steps = validation.kept, validation.kept_step
            told["memorization"] = {"limit": fit.stop_on_memorization, "stopped": fitting.global_step, "kept": steps}
            log.warning(
                "train: stopped at step %d, where training cases are spared more than %g of the loss; the weights of step %d are kept.",
                fitting.global_step, fit.stop_on_memorization, steps,
            )  # fmt: skip
        with ema.swapped(denoiser):
            save_denoiser(folder / "denoiser", denoiser, description(cohort, seed=seed, steps=steps, duplicates=len(twins)) | told)
        run.tracker.model(weights_of(run.root))


def _duplicates(run: Run, cohort: Cohort, folder: Path) -> dict[str, str]:
    """Training cases that are left out, and the case that stands for each. They stay members in the audit: their twin was trained on."""
    twins = near_duplicates(cohort.split("train")) if run.settings.train.duplicates == "drop" else {}
    path = folder / "duplicates.jsonl"
    if distributed.rank() == 0 and not path.exists():
        lines = [json.dumps({"case": case, "twin": twin}) + "\n" for case, twin in twins.items()]
        write_durably(path, "".join(lines).encode())
        run.tracker.metrics({"train/duplicates": len(twins)})
    if twins:
        log.warning("train: %d training cases are nearly the same as another one, and are left out (train.duplicates=drop).", len(twins))
    return twins


def new_denoiser(run: Run, header: Header) -> Denoiser:
    """The untrained denoiser; its weights are a function of the run's seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed_for(run.settings.run.seed, "weights"))
        network = run.objects["network"].build(dims=header.dims, channels=header.channels, condition_size=header.conditions.size)
    return Denoiser(network, run.objects["process"])


def description(cohort: Cohort, *, seed: int, steps: int, duplicates: int) -> dict[str, Any]:
    """What the denoiser was trained on, in plain values: facts of the training set as a whole, of no case. ``duplicates`` were left out."""
    header = cohort.header
    return {
        "cohort": cohort.digest,
        "training_cases": len(cohort.split("train")) - duplicates,
        "duplicates": duplicates,
        "steps": steps,
        "seed": seed,
        "shape": list(header.shape),
        "spacing": list(header.spacing),
        "scale": list(header.scale),
        "labels": list(header.labels),
        "conditions": header.conditions.as_json(),
    }


def grid(images: np.ndarray, header: Header) -> bytes:
    """Images ``(n, channel, *space)`` in model units as one PNG file."""
    return figures.mosaic(
        [figures.picture(image[0], header.spacing) for image in np.clip(images, -1, 1)], columns=6 if header.dims == 2 else 2
    )


class History:
    """Losses by step, a JSON line each. Lines of steps that a resumed run does again are dropped first."""

    def __init__(self, path: Path, resumed_at: int) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        rows = [row for line in lines if (row := _row(line)) is not None]
        self._known = {(row["step"], name) for row in rows for name in row}
        if distributed.rank() == 0 and rows:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["step"] <= resumed_at), encoding="utf-8")

    def add(self, step: int, values: Mapping[str, Any]) -> bool:
        """Append a line; whether these values of this step are new to the whole run, kills included."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        return not any((step, name) in self._known for name in values)


class _Agreement(L.Callback):
    """All ranks hold one set of settings and one cohort, or all stop."""

    def __init__(self, digest: str) -> None:
        self.digest = digest

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        distributed.require_same(self.digest, "settings or data")


def _digest(run: Run, cohort: Cohort) -> str:
    settings = {name: value for name, value in asdict(run.settings).items() if name not in ("tracking", "paths")}
    return hashlib.sha256(json.dumps([settings, cohort.digest], sort_keys=True, default=str).encode()).hexdigest()


def _draw(run: Run, cohort: Cohort) -> Draw:
    """Previews: fixed seeds, and conditions of training cases spread over the cohort."""
    header, process, cases = cohort.header, run.objects["process"], cohort.split("train").cases
    chosen = [cases[k * len(cases) // PREVIEWS].condition for k in range(PREVIEWS)]
    condition = torch.tensor([header.conditions.encode(c) for c in chosen]) if header.conditions.size else None
    seeds = [seed_for(run.settings.run.seed, "preview", k) for k in range(PREVIEWS)]
    sigmas = run.objects["schedule"](run.settings.sampling.steps, process.sigma_min, process.sigma_max)

    def draw(denoiser: Denoiser, device: torch.device) -> torch.Tensor:
        shape = (header.channels, *header.shape)
        return sample(denoiser, run.objects["sampler"], sigmas, seeds, shape, condition, run.objects["guidance"], device)

    return draw


def _environment() -> ClusterEnvironment:
    # said outright: Lightning would otherwise guess from variables that a scheduler leaves, and requeue jobs by itself
    environments = {"torchrun": TorchElasticEnvironment, "srun": lambda: SLURMEnvironment(auto_requeue=False), None: LightningEnvironment}
    return environments[distributed.launcher()]()


def _require_validation(cohort: Cohort, run: Run) -> None:
    fit, subjects = run.settings.fit, len(set(cohort.split("validation").subjects))
    if fit.patience is not None and not subjects:
        raise SettingsError(
            f"fit.patience={fit.patience} needs validation cases, and the cohort has none. Raise data.splits.validation, or set "
            "fit.patience=null."
        )
    if fit.stop_on_memorization is None:
        return
    if subjects < FEWEST:
        raise SettingsError(
            f"fit.stop_on_memorization={fit.stop_on_memorization} needs {FEWEST} validation subjects, and the cohort has {subjects}. Raise "
            "data.splits.validation, or set fit.stop_on_memorization=null."
        )
    if run.objects["privacy"]:
        raise SettingsError(
            "fit.stop_on_memorization looks at the loss of training cases, which the promise of privacy=dp does not cover: weights that it "
            "chose would tell of them. Set fit.stop_on_memorization=null, or privacy=none."
        )


def _require_axes(header: Header, flips: list[int]) -> None:
    for axis in flips:
        if not 0 <= axis < header.dims:
            raise SettingsError(f"fit.flips={list(flips)}: {axis} is no axis of a {header.dims}-D image. Axes are 0 to {header.dims - 1}.")


def _row(line: str) -> dict[str, Any] | None:
    """A history line, or None for one that a kill cut off."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def _flat(values: Mapping[str, Any]) -> dict[str, float]:
    """Numbers by one name each: a validation's levels become ``validation.0.05``."""
    rows: dict[str, float] = {}
    for name, value in values.items():
        rows |= {f"{name}.{level}": number for level, number in value.items()} if isinstance(value, Mapping) else {name: value}
    return rows
