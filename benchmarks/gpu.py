"""``python -m benchmarks.gpu [OVERRIDE ...]``: training, sampling and memory on one GPU, for the networks of two experiments.

**It has never been run on a GPU**: only its code, tiny, on a CPU. Read its first figures with that in mind. It needs CUDA, and where there
is none it says so and ends well.

Overrides are settings of `medsynth`, such as ``network=unet_base``. The peer is MONAI's tutorial loop on the same network and batch, with
the mixed precision that the tutorial has (fp16 with a loss scaler) and in bf16, and its 50 steps of DDIM. Networks take no condition here.
Figures are wall time between two synchronisations, of variants that take turns.
"""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from monai.inferers import DiffusionInferer
from monai.networks.schedulers import DDIMScheduler

from benchmarks.table import Row, Table, write
from benchmarks.training_step import Size, monai_unet, ours, require_one_network, theirs, unet
from medsynth import config
from medsynth.diffusion.denoiser import Denoiser
from medsynth.diffusion.sampling import sample

EXPERIMENTS: Mapping[str, Sequence[str]] = {
    "hippocampus, 1 mm": ("experiment=hippocampus_3d", "data.spacing=[1,1,1]", "data.size=[40,56,40]"),
    "chest_xray": ("experiment=chest_xray_2d",),
}
ROUNDS = 9
WINDOW = 0.5  # seconds of work between two synchronisations, at least
PEER_STEPS = 50  # of DDIM, as in MONAI's tutorials


def main(overrides: Sequence[str]) -> int:
    if not torch.cuda.is_available():
        print("benchmarks.gpu needs CUDA, and there is none here: nothing was measured.")
        return 0
    device = torch.device("cuda")
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    tables = [table for name in EXPERIMENTS for table in measure(name, device, overrides)]
    print("\n".join(table.markdown() for table in tables))
    conditions = {
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        "Overrides": " ".join(overrides) or "none",
    }
    print(f"written to {write(tables, hardware=torch.cuda.get_device_name(device), conditions=conditions)}")
    return 0


def measure(
    experiment: str, device: torch.device, overrides: Sequence[str] = (), rounds: int = ROUNDS, window: float = WINDOW
) -> list[Table]:
    """Training and sampling of one experiment's network."""
    cfg = config.compose([*EXPERIMENTS[experiment], *overrides])
    settings, objects = config.values(cfg), config.build(cfg, ("network", "process", "schedule", "sampler"))
    size = Size(network=objects["network"], batch=settings.fit.global_batch, space=tuple(settings.data.size))
    require_one_network(size)
    half = torch.float16 if device.type == "cuda" else None  # a CPU's autocast has no loss scaler
    training = {
        "MONAI tutorial, fp16": partial(theirs, size, device, half),
        "MONAI tutorial, bf16": partial(theirs, size, device, torch.bfloat16),
        "medsynth, fp32": partial(ours, size, device, bf16=False),
        "medsynth, bf16": partial(ours, size, device, bf16=True),
    }
    steps, batch = settings.sampling.steps, settings.sampling.batch
    sampling = {
        f"MONAI DDIM, {PEER_STEPS} steps, bf16": partial(_their_sampling, size, batch, device),
        f"medsynth, {steps} steps, bf16": partial(_our_sampling, size, batch, device, objects, steps),
    }
    weights = sum(parameter.numel() for parameter in unet(size).parameters())
    what = f"{'x'.join(map(str, size.space))}, {weights:,} weights, median of {rounds} rounds, the peer is the first row"
    return [
        Table(
            title=f"{experiment}: training step",
            note=f"Batch {size.batch}, {what}.",
            rows=_rows(training, size.batch, device, rounds, window),
        ),
        Table(
            title=f"{experiment}: sampling",
            note=f"Batch {batch}, {what}. The steps differ: see the sampling errors at equal evaluations.",
            rows=_rows(sampling, batch, device, rounds, window),
        ),
    ]


def _rows(makes: Mapping[str, Callable], cases: int, device: torch.device, rounds: int, window: float) -> list[Row]:
    memory = {name: _peak(make, device) for name, make in makes.items()}  # one at a time: each alone on the device
    works = {name: make() for name, make in makes.items()}
    repeats, found = {}, {name: [] for name in works}
    for name, work in works.items():
        _seconds(work, 3, device)  # kernels are chosen
        repeats[name] = max(1, round(window / _seconds(work, 1, device)))
    for number in range(rounds):
        for name in works if number % 2 == 0 else reversed(works):
            found[name].append(_seconds(works[name], repeats[name], device))
    peer = found[next(iter(found))]
    return [
        {
            "variant": name,
            "ms": 1e3 * median(seconds),
            "cases/s": cases / median(seconds),
            "times the peer": median(a / b for a, b in zip(peer, seconds, strict=True)),
            "peak MiB": memory[name],
        }
        for name, seconds in found.items()
    ]


def _seconds(work: Callable[[], object], repeats: int, device: torch.device) -> float:
    """Wall seconds a call."""
    _synchronize(device)
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    _synchronize(device)
    return (time.perf_counter() - start) / repeats


def _peak(make: Callable[[], Callable[[], object]], device: torch.device) -> float:
    """MiB on the device, weights included, at the peak of the second call: the first one makes the optimiser's state."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device)
    work = make()
    work()
    torch.cuda.reset_peak_memory_stats(device)
    work()
    _synchronize(device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _our_sampling(size: Size, batch: int, device: torch.device, objects: Mapping[str, Any], steps: int) -> Callable[[], torch.Tensor]:
    process = objects["process"]
    denoiser = Denoiser(unet(size), process).to(device)
    sigmas = objects["schedule"](steps, process.sigma_min, process.sigma_max)

    def work() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return sample(denoiser, objects["sampler"], sigmas, range(batch), (1, *size.space), device=device)

    return work


def _their_sampling(size: Size, batch: int, device: torch.device) -> Callable[[], torch.Tensor]:
    model = monai_unet(size).to(device).eval()
    scheduler = DDIMScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(PEER_STEPS)
    inferer = DiffusionInferer(scheduler)

    def work() -> torch.Tensor:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            return inferer.sample(torch.randn(batch, 1, *size.space, device=device), model, scheduler, verbose=False)

    return work


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
