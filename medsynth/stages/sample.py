"""sample: the denoiser becomes a synthetic cohort, one NIfTI file a case, the manifest last.

A case is a function of its id: its seed, its condition and so its bytes do not depend on how many cases are drawn with it, in which
order, batch or process. So any number of processes may share the work without talking to each other, and after a kill only what is
missing is drawn.

On a CPU that promise needs one thread an evaluation: with two, matrix products are summed in another order (3e-6 in a pixel, measured).
Cores are used by drawing several batches at a time. On a GPU, kernels depend on the batch, and bytes are repeatable for one
``sampling.batch`` only.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from difflib import get_close_matches
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from tqdm import tqdm

from medsynth import __version__, distributed
from medsynth.cohort import Case, Cohort, Header, sha256_of
from medsynth.conditions import Attribute, Value
from medsynth.diffusion.checkpoint import load_denoiser
from medsynth.diffusion.denoiser import Denoiser
from medsynth.diffusion.guidance import Guidance
from medsynth.diffusion.sampling import Sampler, sample
from medsynth.diffusion.schedule import Schedule
from medsynth.diffusion.trajectory import Watched, step_errors
from medsynth.errors import MedsynthError, SettingsError, UnreadableImage
from medsynth.io import nifti
from medsynth.rng import generator_for, seed_for
from medsynth.stages import Run, figures, rejection
from medsynth.training.hardware import device_for, one_thread_each, precision_for

T = TypeVar("T")

JITTER = 0.05  # of a continuous attribute's training range: standard deviation of what is added to a drawn training value
PREVIEWS = 24  # cases on the picture
WATCHED, LEVELS = 3, 10  # cases that are drawn again for the report's look at the way there, and noise levels of it
COMPARED = 2  # of these, drawn in other numbers of steps too: four times the cost of a case each


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A case to draw."""

    id: str
    seed: int
    condition: Mapping[str, Value]


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one process draws, and with what; it crosses a process border."""

    denoiser: Path
    volumes: Path
    plans: Sequence[Plan]
    header: Header
    sampler: Sampler
    schedule: Schedule
    guidance: Guidance
    steps: int
    batch: int
    device: torch.device
    bf16: bool
    threads: int  # batches at a time


def work(run: Run, folder: Path) -> None:
    settings = run.settings.sampling
    seed = run.settings.run.seed if settings.seed is None else settings.seed
    real = Cohort.read(run.folder("prepare") / "cohort.jsonl")
    plans = plan(real, cases=settings.cases, per_condition=settings.per_condition, seed=seed)
    volumes = folder / "volumes"
    volumes.mkdir(parents=True, exist_ok=True)

    part, parts = distributed.rank(), distributed.world_size()
    job = job_of(run, real.header, distributed.shard(plans, part, parts), volumes)
    _draw(job, settings.processes, quiet=part > 0)

    manifest = folder / "cohort.jsonl"
    if part > 0:
        _wait_for(lambda: manifest.is_file())  # rank 0 writes it when the last case of the last rank is there
        return
    _wait_for(lambda: all(path.is_file() for each in plans for path in _files(volumes, each, real.header)))
    for left_over in volumes.glob(".*.partial"):
        left_over.unlink()
    header = replace(
        real.header,
        kind="synthetic",
        source={"name": "medsynth", **{name: real.header.source[name] for name in ("licence", "terms") if name in real.header.source}},
        made_with={
            "medsynth": __version__,
            "weights": sha256_of(job.denoiser / "weights.safetensors"),
            "sampler": name_of(job.sampler),
            "schedule": name_of(job.schedule),
            "guidance": str(job.guidance.scale),
            "steps": str(job.steps),
            "seed": str(seed),
        },
    )
    cohort = Cohort(header, tuple(_case(volumes, each, header) for each in plans), folder)
    if settings.reject:

        def anew(places: Sequence[Case], round: int) -> list[Case]:
            again = [planned_anew(case, round, seed) for case in places]
            _draw(replace(job, plans=again), settings.processes)
            return [_case(volumes, each, header) for each in again]

        cohort = rejection.without_copies(run, cohort, anew)
    shown = [cohort.cases[k * len(cohort) // PREVIEWS] for k in range(PREVIEWS)] if len(cohort) > PREVIEWS else cohort.cases
    pictures = [figures.picture(cohort.pixels(case)[0], case.spacing) for case in shown]
    (folder / "preview.png").write_bytes(figures.mosaic(pictures, columns=6 if header.dims == 2 else 2))
    run.tracker.figure("samples", folder / "preview.png", synthetic=True)
    _watch(job, plans[: max(1, min(WATCHED, len(plans) // 50))], folder / "trajectory.npz")
    cohort.write(manifest)
    run.tracker.metrics({"cases": len(cohort), "rejected": len(cohort.header.rejected)})
    run.tracker.dataset("synthetic", cohort.digest, len(cohort), "synthetic")


def job_of(run: Run, header: Header, plans: Sequence[Plan], volumes: Path) -> Job:
    """These cases, drawn as the run's settings say."""
    settings, device = run.settings.sampling, device_for((run.settings.trainer or {}).get("accelerator", "auto"))
    return Job(
        denoiser=run.folder("train") / "denoiser",
        volumes=volumes,
        plans=plans,
        header=header,
        sampler=run.objects["sampler"],
        schedule=run.objects["schedule"],
        guidance=run.objects["guidance"],
        steps=settings.steps,
        batch=settings.batch,
        device=device,
        bf16=device.type == "cuda" and precision_for(run.settings.fit.precision, device) == "bf16",
        threads=max(1, torch.get_num_threads() // settings.processes) if device.type == "cpu" else 1,
    )


def plan(real: Cohort, *, cases: int, per_condition: Mapping[str, int], seed: int) -> list[Plan]:
    """The cases to draw: ``cases`` of the training distribution of conditions, or the counts of ``per_condition``, which replace ``cases``.

    A condition is a training case's, drawn by the case's seed: its attributes come together, so that no patient is 5 years old and has
    prostate cancer. Continuous ones are moved by normal noise of `JITTER` of their range (mirrored at its ends), so that no person's
    exact combination is handed on; those of whole numbers are rounded again, and may meet a real combination by chance alone.
    """
    training = [case.condition for case in real.split("train")]
    attributes = real.header.conditions.attributes
    wanted: list[dict[str, Value]] = [{} for _ in range(cases)]
    if per_condition:
        wanted = [_wanted(text, attributes) for text, count in per_condition.items() for _ in range(count)]
    plans = []
    for number, given in enumerate(wanted, start=1):
        identity = f"synthetic{number:06d}"  # one word: a bare 000001 is a patient's id in some archive
        generator = generator_for(seed, "condition", identity)
        like = [c for c in training if all(c.get(a.name) == given[a.name] for a in attributes if a.values and a.name in given)] or training
        drawn = like[generator.integers(len(like))]
        condition = {a.name: _moved(drawn[a.name], a, training, generator) for a in attributes if drawn.get(a.name) is not None}
        plans.append(Plan(id=identity, seed=seed_for(seed, "sample", identity), condition=condition | given))
    return plans


def planned_anew(case: Case, round: int, seed: int) -> Plan:
    """Another case in the place of a rejected one, on the same condition. Its id tells the round (synthetic000007r2), and so its seed."""
    identity = f"{case.id}r{round}"
    return Plan(id=identity, seed=seed_for(seed, "sample", identity), condition=case.condition)


def _draw(job: Job, processes: int, *, quiet: bool = False) -> None:
    """Draw a job in this process or several, with a bar."""
    with tqdm(total=len(job.plans), desc="sample", unit="case", disable=quiet) as bar:
        if processes == 1:
            draw(job, bar.update)
        else:
            _share(job, processes, bar.update)


def draw(job: Job, drawn: Callable[[int], object]) -> None:
    """Draw what is missing of a job, telling ``drawn`` how many cases are done each time."""
    pending = [each for each in job.plans if not finished(job.volumes, each, job.header)]
    drawn(len(job.plans) - len(pending))
    parent = os.getppid()

    def keep(batch: Sequence[Plan], images: np.ndarray) -> None:
        if os.getppid() != parent:
            os._exit(1)  # the process that shares the work was killed: its next attempt must not find us writing
        for each, image in zip(batch, images, strict=True):
            _write(job.volumes, each, image, job.header)
        drawn(len(batch))

    each_batch(replace(job, plans=pending), keep)


def each_batch(job: Job, use: Callable[[Sequence[Plan], np.ndarray], T]) -> list[T]:
    """What ``use`` makes of each batch of a job and its images, float32 ``(n, channel, *space)`` in model units; no file is written."""
    if not job.plans:
        return []
    denoiser, _ = load_denoiser(job.denoiser)
    denoiser.to(job.device)

    def one(batch: Sequence[Plan]) -> T:
        return use(batch, _images(denoiser, job, batch))

    batches = [job.plans[start : start + job.batch] for start in range(0, len(job.plans), job.batch)]
    with one_thread_each(job.device), ThreadPoolExecutor(job.threads) as pool:
        try:
            return [future.result() for future in [pool.submit(one, batch) for batch in batches]]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def finished(volumes: Path, each: Plan, header: Header) -> bool:
    """Whether a case's files are there, whole (gzip's checksum) and on the cohort's grid."""
    try:
        for path in _files(volumes, each, header):
            array, affine, _ = nifti.read(path)
            if array.size != np.prod(header.shape) or not np.allclose(affine, header.affine, atol=1e-4):
                return False
    except (FileNotFoundError, UnreadableImage):
        return False
    return True


def labelled(channels: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """A label map ``(*space)``, uint8, from one channel a label: the largest where it is positive, else 0 for background."""
    return np.where(channels.max(axis=0) > 0, np.array(labels)[channels.argmax(axis=0)], 0).astype(np.uint8)


def _watch(job: Job, plans: Sequence[Plan], path: Path) -> None:
    """Draw these cases again, and keep what the sampler saw of their (middle) slice and how other numbers of steps would have differed."""
    if path.is_file():
        return
    denoiser, _ = load_denoiser(job.denoiser)
    denoiser.to(job.device)

    def draw_with(sampler: Sampler, steps: int, batch: Sequence[Plan] = plans[:COMPARED]) -> torch.Tensor:
        return torch.from_numpy(_images(denoiser, replace(job, sampler=sampler, steps=steps), batch))

    def middle(x: torch.Tensor) -> torch.Tensor:
        return x[0, 0] if x.ndim == 4 else x[0, 0, ..., x.shape[-1] // 2]

    with one_thread_each(job.device):
        errors = step_errors(draw_with, job.sampler, job.steps)
        ways = []
        for each in plans:
            watched = Watched(sampler=job.sampler, cut=middle)
            draw_with(watched, job.steps, [each])
            ways.append(watched.levels(LEVELS))
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez(
            file,
            sigmas=np.array([sigma for sigma, _, _ in ways[0]]),
            noisy=np.array([[x for _, x, _ in way] for way in ways], np.float16),
            expected=np.array([[x for _, _, x in way] for way in ways], np.float16),
            steps=np.array(list(errors), np.int64),
            errors=np.array(list(errors.values())),
        )
    partial.replace(path)


def _images(denoiser: Denoiser, job: Job, batch: Sequence[Plan]) -> np.ndarray:
    header, process = job.header, denoiser.process
    sigmas = job.schedule(job.steps, process.sigma_min, process.sigma_max)
    condition = torch.tensor([header.conditions.encode(each.condition) for each in batch]) if header.conditions.size else None
    seeds, shape = [each.seed for each in batch], (header.channels, *header.shape)
    with torch.autocast(job.device.type, torch.bfloat16, enabled=job.bf16):
        images = sample(denoiser, job.sampler, sigmas, seeds, shape, condition, job.guidance, job.device)
    return images.float().cpu().numpy()


def _write(volumes: Path, each: Plan, image: np.ndarray, header: Header) -> None:
    """Stored units on the canonical grid; the mask first, so that a case whose image is there is whole."""
    if not np.isfinite(image).all():
        raise MedsynthError(f"{each.id}: the sampler gave values that are not finite. Train longer, or take fit.precision=fp32.")
    low, high = header.scale
    affine = np.array(header.affine)
    *mask, path = reversed(_files(volumes, each, header))
    for extra in mask:
        nifti.write(extra, labelled(image[1:], header.labels), affine, True)
    stored = (np.clip(image[0], -1, 1) + np.float32(1)) * np.float32((high - low) / 2) + np.float32(low)
    nifti.write(path, stored, affine, header.integer)


def _files(volumes: Path, each: Plan, header: Header) -> list[Path]:
    """The image, and the mask where the model makes one."""
    return [volumes / f"{each.id}.nii.gz"] + ([volumes / f"{each.id}-mask.nii.gz"] if header.joint_mask else [])


def _case(volumes: Path, each: Plan, header: Header) -> Case:
    image, *mask = _files(volumes, each, header)
    return Case(
        id=each.id,
        subject=each.id,
        split="synthetic",
        path=f"volumes/{image.name}",
        sha256=sha256_of(image),
        shape=header.shape,
        spacing=header.spacing,
        modality=header.modality,
        scale=header.scale,
        condition=each.condition,
        mask=f"volumes/{mask[0].name}" if mask else None,
        mask_sha256=sha256_of(mask[0]) if mask else None,
        seed=each.seed,
    )


def _share(job: Job, processes: int, drawn: Callable[[int], object]) -> None:
    """Every ``processes``-th case to each of several processes. They only share a count, for the bar."""
    context = get_context("spawn")  # forked children would inherit threads and a CUDA context that cannot be used
    count, seen = context.Value("L", 0), 0
    devices = torch.cuda.device_count() if job.device.type == "cuda" else 1
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(count,)) as pool:
        waiting = set()
        for part in range(processes):
            device = torch.device("cuda", part % devices) if job.device.type == "cuda" else job.device
            waiting.add(pool.submit(_draw_counted, replace(job, plans=distributed.shard(job.plans, part, processes), device=device)))
        try:
            while waiting:
                done, waiting = wait(waiting, timeout=0.5)
                drawn(count.value - seen)
                seen = count.value
                for future in done:
                    future.result()
        except BrokenProcessPool as error:
            raise MedsynthError(
                "sample: one of its processes was killed (out of memory?). What is drawn is kept: run the same command again, and if it "
                "happens again, with a smaller sampling.batch or sampling.processes."
            ) from error


_count: Any = None  # of the process that draws: shared memory travels at a process' start only


def _begin(count: Any) -> None:
    global _count
    _count = count


def _draw_counted(job: Job) -> None:
    def drawn(cases: int) -> None:
        with _count.get_lock():
            _count.value += cases

    draw(job, drawn)


def _wait_for(condition: Callable[[], bool]) -> None:
    """Other ranks draw without a process group, so their files are the signal. If one fails, torchrun or srun ends us all."""
    while not condition():
        time.sleep(1.0)


def _wanted(text: str, attributes: Sequence[Attribute]) -> dict[str, Value]:
    """``"class=pneumonia,age=63"`` as a condition."""
    known = {attribute.name: attribute for attribute in attributes}
    given: dict[str, Value] = {}
    for pair in text.split(","):
        name, _, value = (part.strip() for part in pair.partition("="))
        if name not in known:
            near = get_close_matches(name, known, n=1)
            raise SettingsError(
                f"sampling.per_condition: {text!r} names {name!r}, which the model was not trained on"
                f" (trained on: {', '.join(known) or 'nothing'}).{f' Did you mean {near[0]}?' if near else ''}"
            )
        try:
            given[name] = value if known[name].values else float(value)
        except ValueError:
            raise SettingsError(f"sampling.per_condition: {text!r}: {name} is a number, not {value!r}.") from None
        known[name].encode(given[name])  # an unknown class is said here, before anything is drawn
    return given


def _moved(value: Value, attribute: Attribute, training: Sequence[Mapping[str, Value]], generator: np.random.Generator) -> Value:
    if attribute.values:
        return value
    low, span = attribute.low, attribute.high - attribute.low
    if not span:
        return value
    offset = (float(value) + JITTER * span * generator.standard_normal() - low) % (2 * span)
    moved = low + min(offset, 2 * span - offset)
    whole = all(float(c[attribute.name]).is_integer() for c in training if c.get(attribute.name) is not None)
    return float(round(moved)) if whole else round(moved, 6)


def name_of(thing: Any) -> str:
    """A function's or an object's own name, through ``functools.partial``."""
    thing = getattr(thing, "func", thing)
    return getattr(thing, "__name__", type(thing).__name__)
