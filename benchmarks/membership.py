"""``python -m benchmarks.membership [--tiny]``: does the audit tell a model that has learned people by heart from one that has not?

Small denoisers are trained on slices of so many of the phantom hospital's people, each for as many steps; then both membership attacks are
run on each, against people whom none of them saw. One model is overfit on purpose: 16 people, no augmentation. The last row has all of the
member half. Everything is drawn by seeds, so a second run gives the same numbers. ``--tiny`` writes nothing.
"""

import copy
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.table import Row, Table, alone
from medsynth.audit.finding import Evidence, Finding
from medsynth.audit.level import LEVELS
from medsynth.audit.membership import MembershipCohort, MembershipModel
from medsynth.cohort import Case, Cohort, Header, sha256_of
from medsynth.data.sources.phantom_anatomy import image_of, truth
from medsynth.diffusion.denoiser import Denoiser
from medsynth.diffusion.networks import UNetSettings
from medsynth.diffusion.process import EDM
from medsynth.diffusion.samplers import dpmpp_2m
from medsynth.diffusion.sampling import sample
from medsynth.diffusion.schedule import LogSNR
from medsynth.rng import seed_for
from medsynth.stages.audit import model_of
from medsynth.training.allocator import keep_freed_memory

SIZE = 16  # voxels along each axis, 18 mm each
NETWORK = UNetSettings(channels=(16, 32), attention_levels=(False, False), res_blocks=1, head_channels=16, norm_groups=8)
SIZES = (64, 256, 1000)  # training subjects, besides the 16 of the overfit model
OTHERS = 400
DRAWN = 400
STEPS, BATCH = 2500, 16


def measure(tiny: bool) -> list[Table]:
    if tiny:
        return tables(overfit=10, sizes=(12,), others=12, drawn=10, steps=4)
    return tables(overfit=16, sizes=SIZES, others=OTHERS, drawn=DRAWN, steps=STEPS)


def tables(*, overfit: int, sizes: Sequence[int], others: int, drawn: int, steps: int) -> list[Table]:
    keep_freed_memory()
    unseen, rows = people(10**6, others), []
    for count, flip in [(overfit, False), *((size, True) for size in sizes)]:
        started, members = time.process_time(), people(0, count)
        denoiser = trained(members, steps=steps, flip=flip)
        minutes = (time.process_time() - started) / 60
        rows.append(_row(count, flip, minutes, *attacked(denoiser, members, unseen, drawn)))
        print(rows[-1], file=sys.stderr, flush=True)
    note = (
        f"Axial slices of {SIZE}x{SIZE}, a person each; {steps} steps of batch {BATCH} for every model, mirrored half of the time where "
        f"augmented. Attacked with {others} people whom no model saw and {drawn} synthetic images. “Told” is the share of pairs of a "
        "member and another in which the strongest attack is right, 0.5 is guessing; its 95 % interval counts subjects and allows for the "
        f"two attacks, and 0.5 as its lower end means that guessing is not ruled out. “Baseline” sees the images alone. {_held(rows)}"
    )
    return [Table(title="Membership inference by number of training subjects", note=note, rows=rows)]


def people(first: int, count: int) -> np.ndarray:
    """The middle slices of so many people, ``(n, 1, SIZE, SIZE)`` in model units."""
    slices = [image_of(truth(0, i), "CT", size=SIZE, slices=1, thickness=8.0, seed=i) for i in range(first, first + count)]
    return np.clip(np.stack(slices).transpose(0, 3, 1, 2) / 160, -1, 1)


def trained(images: np.ndarray, *, steps: int, flip: bool, seed: int = 0) -> Denoiser:
    """The averaged denoiser after so many steps."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(seed, "weights"))
        denoiser = Denoiser(NETWORK.build(2, 1, 0), EDM())
    average, generator, known = copy.deepcopy(denoiser), torch.Generator().manual_seed(seed_for(seed, "steps")), torch.from_numpy(images)
    optimizer = torch.optim.AdamW(denoiser.parameters(), weight_decay=0.0, fused=True)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 2e-3 * min(1, (step + 1) / 50) * (1 - step / steps) ** 0.5
        x = known[torch.randint(len(known), (BATCH,), generator=generator)]
        mirrored = (torch.rand(BATCH, generator=generator) < 0.5 * flip).reshape(-1, 1, 1, 1)
        x = torch.where(mirrored, x.flip(2), x)
        noise = torch.randn(x.shape, generator=generator)
        loss = denoiser.loss(x, denoiser.process.draw_sigma(BATCH, generator), noise).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(average.parameters()), list(denoiser.parameters()), 1 - 0.5 ** (1 / 100))
    return average.eval()


def attacked(denoiser: Denoiser, members: np.ndarray, others: np.ndarray, drawn: int) -> tuple[Finding, Finding]:
    """What the attacks find on the model and on a cohort that it drew, at the strict level but for the number of synthetic cases."""
    seeds = [seed_for(0, "drawn", number) for number in range(drawn)]
    images = sample(denoiser, dpmpp_2m, LogSNR()(12, 0.002, 80.0), seeds, members.shape[1:])
    with tempfile.TemporaryDirectory() as folder:
        cohorts = (("train", members), ("holdout", others), ("synthetic", images.numpy()))
        train, holdout, synthetic = (cohort_of(Path(folder), name, each) for name, each in cohorts)
        evidence = Evidence(
            train=train,
            holdout=holdout,
            synthetic=synthetic,
            level=replace(LEVELS["strict"], synthetic=drawn),
            seed=0,
            model=model_of(denoiser, train.header.conditions, torch.device("cpu")),
        )
        return MembershipModel()(evidence), MembershipCohort()(evidence)


def cohort_of(folder: Path, split: str, images: np.ndarray) -> Cohort:
    """A cohort of these images, a subject each."""
    np.save(folder / f"{split}.npy", images)
    shape, spacing = images.shape[2:], (288 / SIZE, 288 / SIZE)
    header = Header(
        kind="synthetic" if split == "synthetic" else "real",
        unit="subject",
        source={"name": "phantom"},
        shape=shape,
        spacing=spacing,
        affine=tuple(map(tuple, np.eye(4).tolist())),
        scale=(-160.0, 160.0),
        integer=False,
        modality="CT",
    )
    cases = (
        Case(
            id=f"{split}{row:06d}",
            subject=f"{split}{row:06d}",
            split=split,
            path=f"{split}.npy",
            sha256=sha256_of(image.tobytes()),
            shape=shape,
            spacing=spacing,
            modality="CT",
            scale=header.scale,
            row=row,
        )
        for row, image in enumerate(images)
    )
    return Cohort(header, tuple(cases), folder)


def _row(count: int, flip: bool, minutes: float, model: Finding, cohort: Finding) -> Row:
    row: dict = {"training": f"{count} people, " + ("augmented" if flip else "overfit on purpose")}
    for name, finding in (("model", model), ("cohort", cohort)):
        numbers = {"told": finding.value, "low": finding.interval[0], "high": finding.interval[1], "verdict": finding.verdict}
        row |= {f"{name}: {what}": number for what, number in numbers.items()}
    return row | {"baseline": model.control, "CPU minutes to train": minutes}


def _held(rows: Sequence[Row]) -> str:
    """The smallest size at which guessing is not ruled out, for each adversary."""
    said = []
    for name in ("model", "cohort"):
        found = next((row["training"] for row in rows if row[f"{name}: low"] <= 0.5), None)
        said.append(
            f"From the {name} guessing is not ruled out from {found.split(',')[0]} on." if found else f"From the {name} it always is."
        )
    return " ".join(said)


if __name__ == "__main__":
    sys.exit(alone("membership", measure, sys.argv[1:]))
